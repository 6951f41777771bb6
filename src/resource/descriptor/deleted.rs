//! Files without a name, whose content travels in the image.

use super::open::seek;
use super::{Kind, Look, Opening, Origin, Saving, Sources, file_type, memory, names, only_names};
use crate::error::{Because, Result};
use crate::proc::fds::Fd;
use ckpt_abi::image::{Descriptor, ObjectKind};
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

pub(super) const KIND: Kind = Kind { recognise, save, open };

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    file_type(fd.mode) == libc::S_IFREG
        && !only_names(fd.flags)
        && Path::new(&fd.target).is_absolute()
        && names::locate(fd, look).is_none()
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    if File::open(format!("/proc/{}/fd/{}", look.pid, fd.number)).is_err() {
        saving.lose("a file without a name that cannot be read");
        return Ok(());
    }
    if fd.nlink != 0 {
        let path = saving.path.display();
        saving.say(format!(
            "the place of {path}, which has another name by now: a restart has a copy of its own"
        ));
    }
    saving.file = Some(ObjectKind::Deleted);
    Ok(())
}

fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let path = opening.sources.path(record);
    let file = nameless(&path, opening.sources, record)?;
    seek(&file, record, &path)?;
    Ok(Origin::Own(file))
}

/// A file without a name: where its name once was, else in a directory for temporary files, else
/// in memory.
pub fn nameless(path: &Path, sources: &dyn Sources, record: &Descriptor) -> Result<OwnedFd> {
    let access =
        OFlag::from_bits_retain(record.flags as i32 & (super::open::KEPT & !libc::O_ACCMODE));
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC | access;
    let mode = Mode::from_bits_truncate(record.mode & 0o7777);
    let own = path.parent().filter(|dir| dir.is_absolute());
    let dirs = own.into_iter().chain([Path::new("/tmp"), Path::new("/dev/shm")]);
    let mut opened = dirs.filter_map(|dir| nix::fcntl::open(dir, flags, mode).ok());
    let file = match opened.next() {
        Some(file) => file,
        None => memory::memfd("ckpt", 0)?,
    };
    let file = File::from(file);
    sources.fill(record.content, &file).because(|| "cannot restore a deleted file")?;
    Ok(file.into())
}
