// SPDX-License-Identifier: LGPL-2.1-only
//! Memory with a descriptor (memfd_create(2)).

use super::{Kind, Look, Saving, file_type, objects};
use crate::error::{Because, Result};
use crate::proc::fds::Fd;
use ckpt_abi::image::ObjectKind;
use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::OwnedFd;

pub(super) const KIND: Kind = Kind { recognise, save, open: objects::open };

/// What the kernel puts before the name.
pub(crate) const PREFIX: &str = "/memfd:";

fn recognise(fd: &Fd, _: &Look<'_>) -> bool {
    let named = fd.target.as_encoded_bytes().starts_with(PREFIX.as_bytes());
    named && fd.nlink == 0 && file_type(fd.mode) == libc::S_IFREG
}

fn save(_: &Fd, _: &Look<'_>, saving: &mut Saving) -> Result<()> {
    saving.file = Some(ObjectKind::Memory);
    Ok(())
}

/// A memfd of `size` bytes, which may be executed if its mode says so, whatever vm.memfd_noexec makes the
/// rule.
pub(crate) fn memfd(name: &str, size: u64) -> Result<OwnedFd> {
    /// MFD_EXEC (Linux 6.3).
    const EXEC: MFdFlags = MFdFlags::from_bits_retain(0x10);
    let name = CString::new(name).unwrap_or_default();
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let made = match memfd_create(name.as_c_str(), flags | EXEC) {
        Err(Errno::EINVAL | Errno::EACCES) => memfd_create(name.as_c_str(), flags),
        made => made,
    };
    let file = File::from(made.because(|| "cannot make a memfd")?);
    file.set_len(size).because(|| "cannot make room in a memfd")?;
    Ok(file.into())
}
