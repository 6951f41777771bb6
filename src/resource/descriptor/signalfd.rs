// SPDX-License-Identifier: LGPL-2.1-only
//! signalfd(2).
//!
//! # Safety
//! The system call reads one word of our own.
#![allow(unsafe_code)]

use super::open::owned;
use super::{Kind, Look, Opening, Origin, Saving};
use crate::error::{Because, Result};
use crate::proc::fds::Fd;
use ckpt_abi::image::Descriptor;
use nix::libc;

pub(super) const KIND: Kind = Kind { recognise, save, open };

fn recognise(fd: &Fd, _: &Look<'_>) -> bool {
    fd.target == "anon_inode:[signalfd]"
}

fn save(fd: &Fd, _: &Look<'_>, saving: &mut Saving) -> Result<()> {
    let mask = fd.extra("sigmask").and_then(|v| u64::from_str_radix(v.trim(), 16).ok());
    saving.record.value = mask.unwrap_or(0);
    Ok(())
}

fn open(record: &Descriptor, _: &mut Opening<'_>) -> Result<Origin> {
    let mask: *const u64 = &record.value;
    // SAFETY: the kernel reads the one word.
    let result = unsafe { libc::syscall(libc::SYS_signalfd4, -1, mask, 8, libc::SFD_CLOEXEC) };
    owned(result).map(Origin::Own).because(|| "cannot make a signalfd")
}
