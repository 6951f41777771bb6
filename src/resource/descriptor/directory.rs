// SPDX-License-Identifier: LGPL-2.1-only
//! Directories: opened by their path, at their position, which for most file systems is a mark that stays
//! valid for the same directory.

use super::open::{by_path, seek};
use super::{Kind, Look, Opening, Origin, Saving, file_type, names};
use crate::error::Result;
use crate::proc::fds::Fd;
use ckpt_abi::image::Descriptor;
use nix::libc;

pub(super) const KIND: Kind = Kind { recognise, save, open };

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    file_type(fd.mode) == libc::S_IFDIR && names::locate(fd, look).is_some()
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    saving.path = names::locate(fd, look).map_or_else(|| fd.target.clone(), Into::into);
    Ok(())
}

fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let path = opening.sources.path(record);
    let file = by_path(record, &path)?;
    seek(&file, record, &path)?;
    Ok(Origin::Own(file))
}
