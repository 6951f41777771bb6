// SPDX-License-Identifier: LGPL-2.1-only
//! Files without a name, whose content travels in the image.

use super::open::reopened;
use super::{Kind, Look, Saving, file_type, memfd, objects};
use crate::error::{Because, Result};
use crate::proc::{attributes, fds::Fd};
use ckpt_abi::image::ObjectKind;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

pub(super) const KIND: Kind = Kind { recognise, save, open: objects::open };

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    file_type(fd.mode) == libc::S_IFREG
        && Path::new(&fd.target).is_absolute()
        && look.path(fd).is_none()
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    if File::open(look.process.fd(fd.number)).is_err() {
        saving.lose("a file without a name that cannot be read");
        return Ok(());
    }
    if fd.nlink != 0 {
        let path = saving.path.display();
        saving.say(format!(
            "the place of {path}, which has another name by now: a restart has a copy of its own"
        ));
    }
    say_attributes(fd, look, saving);
    saving.file = Some(ObjectKind::Deleted);
    Ok(())
}

/// Names what of a file without a name does not travel.
pub(super) fn say_attributes(fd: &Fd, look: &Look<'_>, saving: &mut Saving) {
    if attributes::any(&look.process.fd(fd.number)) {
        let path = saving.path.display();
        saving.say(format!("the extended attributes of {path}, which has no name (xattr(7))"));
    }
}

/// A new file without a name: where its name once was, else in a directory for temporary files, else in
/// memory; `fill` writes the content. It can be read and written by us alone until [`objects`] is done.
pub(crate) fn nameless(path: &Path, fill: impl Fn(&File) -> Result<()>) -> Result<OwnedFd> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let mode = Mode::from_bits_truncate(0o600);
    let own = path.parent().filter(|dir| dir.is_absolute());
    let dirs = own.into_iter().chain([Path::new("/tmp"), Path::new("/dev/shm")]);
    for dir in dirs {
        let Ok(file) = nix::fcntl::open(dir, flags, mode) else { continue };
        let file = File::from(file);
        // A full file system is not the last.
        if fill(&file).is_ok() {
            return plain(file.into());
        }
    }
    let file = File::from(memfd::memfd("ckpt", 0)?);
    fill(&file).because(|| format!("cannot restore the deleted file {}", path.display()))?;
    Ok(file.into())
}

/// The same without O_TMPFILE, which fcntl(2) would show (F_GETFL).
pub(super) fn plain(file: OwnedFd) -> Result<OwnedFd> {
    reopened(&file, libc::O_RDWR as u32)
}
