// SPDX-License-Identifier: LGPL-2.1-only
//! eventfd(2).
//!
//! # Safety
//! The system call takes numbers.
#![allow(unsafe_code)]

use super::open::owned;
use super::{Kind, Look, Opening, Origin, Saving};
use crate::error::{Because, Result};
use crate::proc::fds::Fd;
use ckpt_abi::image::Descriptor;
use nix::libc;

pub(super) const KIND: Kind = Kind { recognise, save, open };

fn recognise(fd: &Fd, _: &Look<'_>) -> bool {
    fd.target == "anon_inode:[eventfd]"
}

/// Count and semaphore flag.
fn save(fd: &Fd, _: &Look<'_>, saving: &mut Saving) -> Result<()> {
    let hex = |key| fd.extra(key).and_then(|v| u64::from_str_radix(v.trim(), 16).ok());
    saving.record.value = hex("eventfd-count").unwrap_or(0);
    // Only newer kernels say whether it is a semaphore (Linux 6.5).
    saving.record.extra = hex("eventfd-semaphore").unwrap_or(0) as u32;
    Ok(())
}

/// A count above what eventfd(2) takes is written.
fn open(record: &Descriptor, _: &mut Opening<'_>) -> Result<Origin> {
    let flags = if record.extra != 0 { libc::EFD_SEMAPHORE } else { 0 } | libc::EFD_CLOEXEC;
    // SAFETY: numbers only.
    let result = unsafe { libc::syscall(libc::SYS_eventfd2, 0, flags) };
    let fd = owned(result).because(|| "cannot make an eventfd")?;
    if record.value != 0 {
        nix::unistd::write(&fd, &record.value.to_ne_bytes()).because(|| "cannot set an eventfd")?;
    }
    Ok(Origin::Own(fd))
}
