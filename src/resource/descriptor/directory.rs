// SPDX-License-Identifier: LGPL-2.1-only
//! Directories: opened by their path, at their position, which for most file systems is a mark that stays
//! valid for the same directory. One that was removed is made anew, and removed again: it holds nothing.

use super::open::{by_path, place, seek};
use super::{Kind, Look, Opening, Origin, Saving, file_type, names};
use crate::error::{Because, Result};
use crate::proc::fds::Fd;
use ckpt_abi::image::Descriptor;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::mkdtemp;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

pub(super) const KIND: Kind = Kind { recognise, save, open };

/// [`Descriptor::extra`] of one that was removed.
const REMOVED: u32 = 1;

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    file_type(fd.mode) == libc::S_IFDIR && (is_removed(fd) || names::locate(fd, look).is_some())
}

fn is_removed(fd: &Fd) -> bool {
    fd.deleted && fd.target.as_encoded_bytes().starts_with(b"/")
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    match names::locate(fd, look) {
        Some(path) => saving.path = path.into(),
        None => saving.record.extra = REMOVED,
    }
    Ok(())
}

fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let path = opening.sources.path(record);
    if record.extra == REMOVED {
        let named = removed(&path, record.mode)?;
        return by_path(record, &place(&named)).map(Origin::Own);
    }
    let file = by_path(record, &path)?;
    seek(&file, record, &path)?;
    Ok(Origin::Own(file))
}

/// Those that were made, by their paths: of one directory, descriptors and working directories stay the same.
static MADE: Mutex<Vec<(PathBuf, OwnedFd)>> = Mutex::new(Vec::new());

/// A directory that was removed: at its place, else among temporary files.
///
/// # Errors
/// None can be made.
pub(crate) fn removed(path: &Path, mode: u32) -> Result<OwnedFd> {
    let why = || format!("cannot make the removed directory {} again", path.display());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, known)) = made.iter().find(|(place, _)| place == path) {
        return known.try_clone().because(why);
    }
    let at = match fs::create_dir(path) {
        Ok(()) => path.to_path_buf(),
        Err(_) => mkdtemp("/tmp/ckpt-XXXXXX").because(why)?,
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let new = nix::fcntl::open(&at, flags, Mode::empty());
    let _ = fs::set_permissions(&at, fs::Permissions::from_mode(mode & 0o7777));
    fs::remove_dir(&at).because(why)?;
    let new = new.because(why)?;
    made.push((path.to_path_buf(), new.try_clone().because(why)?));
    Ok(new)
}
