// SPDX-License-Identifier: LGPL-2.1-only
//! Closing what nobody uses again.
//!
//! # Safety
//! Its callers own no descriptor of those that they name, or use it no more: their process is about to become another.
#![allow(unsafe_code)]

use nix::libc;

/// Whether close_range(2) is to be had.
pub(crate) fn is_possible() -> bool {
    // SAFETY: nobody has that number.
    unsafe { libc::syscall(libc::SYS_close_range, u32::MAX, u32::MAX, 0) == 0 }
}

/// Closes all descriptors from one to another (close_range(2)); one by one where the filter of a container refuses that.
pub(crate) fn close_range(first: u32, last: u32) {
    // SAFETY: nothing that owns one is used again in this process.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return;
    }
    if first == last {
        // SAFETY: as above.
        unsafe { libc::close(first.cast_signed()) };
        return;
    }
    let Ok(all) = std::fs::read_dir("/proc/self/fd") else { return };
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let all: Vec<_> = all.flatten().filter_map(number).collect();
    for fd in all.into_iter().filter(|fd| (first..=last).contains(fd)) {
        // SAFETY: as above.
        unsafe { libc::close(fd.cast_signed()) };
    }
}
