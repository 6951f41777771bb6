// SPDX-License-Identifier: LGPL-2.1-only
//! What the kernel shows of a mapping of a file.
//!
//! # Safety
//! A page of the file is mapped and never touched, so it does not matter who changes the file.
#![allow(unsafe_code)]

use super::Process;
use std::fs::File;

/// Device and inode number as /proc/PID/maps shows them of whoever maps the file; None if we may not map it.
pub(crate) fn shown(file: &File) -> Option<(u64, u64)> {
    // SAFETY: the memory is not looked at.
    let page = unsafe { memmap2::MmapOptions::new().len(1).map(file) }.ok()?;
    let at = page.as_ptr() as u64;
    let own = Process::own().ok()?.maps().ok()?;
    own.iter().find(|vma| (vma.start..vma.end).contains(&at)).map(|vma| (vma.device, vma.inode))
}
