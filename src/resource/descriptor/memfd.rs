// SPDX-License-Identifier: LGPL-2.1-only
//! Memory with a descriptor (memfd_create(2)).

use super::{Kind, Look, Saving, deleted, file_type, objects};
use crate::error::{Because, Result};
use crate::proc::fds::Fd;
use crate::ptrace::borrowed::is_refusal;
use ckpt_abi::image::ObjectKind;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
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

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    deleted::say_attributes(fd, look, saving);
    saving.file = Some(ObjectKind::Memory);
    Ok(())
}

/// A memfd of `size` bytes, which may be executed if its mode says so, whatever vm.memfd_noexec makes the
/// rule. Where a filter refuses memfd_create(2) it is in /dev/shm.
pub(crate) fn memfd(name: &str, size: u64) -> Result<OwnedFd> {
    /// MFD_EXEC (Linux 6.3).
    const EXEC: MFdFlags = MFdFlags::from_bits_retain(0x10);
    let name = CString::new(name).unwrap_or_default();
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let made = match memfd_create(name.as_c_str(), flags | EXEC) {
        Err(Errno::EINVAL | Errno::EACCES) => memfd_create(name.as_c_str(), flags),
        made => made,
    };
    let made = match made {
        // A file without a name is as good, but that it cannot be sealed.
        Err(errno) if is_refusal(errno) => {
            let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
            let made = open("/dev/shm", flags, Mode::from_bits_truncate(0o600));
            made.map_err(|_| errno).because(|| "cannot make a memfd").and_then(deleted::plain)
        }
        made => made.because(|| "cannot make a memfd"),
    };
    let file = File::from(made?);
    file.set_len(size).because(|| "cannot make room in a memfd")?;
    Ok(file.into())
}
