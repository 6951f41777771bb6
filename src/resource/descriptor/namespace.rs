// SPDX-License-Identifier: LGPL-2.1-only
//! Descriptors of namespaces (setns(2)): the process's own is that of the restarted process.

use super::lost::stand_in;
use super::open::by_path;
use super::{Kind, Look, Opening, Origin, Saving, file_type};
use crate::error::Result;
use crate::proc::fds::Fd;
use ckpt_abi::image::Descriptor;
use nix::libc;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub(super) const KIND: Kind = Kind { recognise, save, open };

/// "net" of "net:[4026531840]", if that is the process's own.
fn own(fd: &Fd, look: &Look<'_>) -> Option<String> {
    let text = fd.target.to_str()?;
    let (name, _) = text.strip_suffix(']')?.split_once(":[")?;
    // Pipes and sockets, of which there are many, are called so, too.
    if file_type(fd.mode) != libc::S_IFREG {
        return None;
    }
    let place = look.process.path(&format!("ns/{name}"));
    let same = std::fs::metadata(&place).is_ok_and(|m| (m.dev(), m.ino()) == (fd.device, fd.inode));
    same.then(|| name.to_owned())
}

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    own(fd, look).is_some()
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    saving.path = own(fd, look).unwrap_or_default().into();
    Ok(())
}

fn open(_: &Descriptor, _: &mut Opening<'_>) -> Result<Origin> {
    stand_in().map(Origin::Own)
}

/// Opens it in the process that has it.
///
/// # Errors
/// There is none of this name.
pub(super) fn late(record: &Descriptor, name: &Path) -> Result<OwnedFd> {
    by_path(record, &Path::new("/proc/self/ns").join(name))
}
