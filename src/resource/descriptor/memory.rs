//! Memory with a descriptor (memfd_create(2)).

use super::{Kind, Look, Opening, Origin, Saving, file_type};
use crate::error::{Because, Result};
use crate::proc::fds::Fd;
use ckpt_abi::image::{Descriptor, Object, ObjectKind};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::os::fd::OwnedFd;

pub(super) const KIND: Kind = Kind { recognise, save, open };

fn object(fd: &Fd, look: &Look<'_>) -> Option<usize> {
    let memory = |o: &Object| o.kind == ObjectKind::Memory as u32;
    let same = |o: &Object| (o.device, o.inode) == (fd.device, fd.inode);
    look.objects.iter().position(|o| memory(o) && same(o))
}

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    let nameless = file_type(fd.mode) == libc::S_IFREG && (fd.deleted || fd.nlink == 0);
    nameless && object(fd, look).is_some()
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    saving.record.content = object(fd, look).unwrap_or(0) as u32;
    Ok(())
}

fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let file = opening.sources.object(record.content)?;
    super::open::seek(&file, record, &opening.sources.path(record))?;
    Ok(Origin::Own(file))
}

/// A memfd of `size` bytes.
pub fn memfd(name: &str, size: u64) -> Result<OwnedFd> {
    let name = std::ffi::CString::new(name).unwrap_or_default();
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create(name.as_c_str(), flags).because(|| "cannot make a memfd")?;
    let file = File::from(fd);
    file.set_len(size).because(|| "cannot make room in a memfd")?;
    Ok(file.into())
}
