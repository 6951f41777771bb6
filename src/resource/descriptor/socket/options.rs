// SPDX-License-Identifier: LGPL-2.1-only
//! The options of a socket (socket(7), SOL_SOCKET).
//!
//! # Safety
//! The system calls read or write buffers of our own, whose lengths they are given.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsFd, AsRawFd};

/// Where a peek begins, or -1 (socket(7)).
pub(super) const SO_PEEK_OFF: i32 = 42;
/// The sender's pidfd (Linux 6.5).
const SO_PASSPIDFD: i32 = 76;

/// Those that are saved, with the size of their values: an int, a struct linger or a struct timeval.
const OPTIONS: [(i32, usize); 17] = [
    (libc::SO_SNDBUF, 4),
    (libc::SO_RCVBUF, 4),
    (libc::SO_PASSCRED, 4),
    (libc::SO_PASSSEC, 4),
    (SO_PASSPIDFD, 4),
    (libc::SO_REUSEADDR, 4),
    (libc::SO_KEEPALIVE, 4),
    (libc::SO_OOBINLINE, 4),
    (libc::SO_BROADCAST, 4),
    (libc::SO_PRIORITY, 4),
    (libc::SO_RCVLOWAT, 4),
    (libc::SO_TIMESTAMP, 4),
    (libc::SO_TIMESTAMPNS, 4),
    (libc::SO_LINGER, 8),
    (libc::SO_RCVTIMEO, 16),
    (libc::SO_SNDTIMEO, 16),
    (SO_PEEK_OFF, 4),
];

/// The option's number and a value.
const ENTRY: usize = 4 + 16;

/// Asks for one; None where the kernel does not know it.
pub(super) fn get(fd: impl AsFd, option: i32, size: usize) -> Option<[u8; 16]> {
    let mut value = [0u8; 16];
    let mut len = size as libc::socklen_t;
    let (at, number): (*mut u8, _) = (value.as_mut_ptr(), fd.as_fd().as_raw_fd());
    // SAFETY: the kernel writes at most `len` bytes of the value, and the length.
    let result =
        unsafe { libc::getsockopt(number, libc::SOL_SOCKET, option, at.cast(), &raw mut len) };
    (result == 0).then_some(value)
}

/// Sets one.
pub(super) fn set(fd: impl AsFd, option: i32, value: &[u8]) -> nix::Result<()> {
    let (at, len) = (value.as_ptr(), value.len() as libc::socklen_t);
    let number = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel reads the value.
    let result = unsafe { libc::setsockopt(number, libc::SOL_SOCKET, option, at.cast(), len) };
    Errno::result(result).map(drop)
}

/// All of a socket.
pub(super) fn save(fd: impl AsFd + Copy) -> Vec<u8> {
    let asked =
        OPTIONS.iter().filter_map(|(option, size)| Some((option, get(fd, *option, *size)?)));
    asked.flat_map(|(option, value)| [&option.to_le_bytes()[..], &value].concat()).collect()
}

/// Sets those that a new socket does not have so.
///
/// # Errors
/// The number of the option that the kernel refuses.
pub(super) fn restore(fd: impl AsFd + Copy, saved: &[u8]) -> Result<(), i32> {
    for entry in saved.chunks_exact(ENTRY) {
        let (number, value) = entry.split_first_chunk().unwrap_or((&[0; 4], &[]));
        let option = i32::from_le_bytes(*number);
        let Some((_, size)) = OPTIONS.iter().find(|(known, _)| *known == option) else { continue };
        let is = get(fd, option, *size);
        if is.is_none_or(|is| is[..*size] != value[..*size]) {
            change(fd, option, &value[..*size]).map_err(|_| option)?;
        }
    }
    Ok(())
}

/// The kernel doubles the sizes of buffers that it is given, and only privilege goes above its limits.
fn change(fd: impl AsFd + Copy, option: i32, value: &[u8]) -> nix::Result<()> {
    let forced = match option {
        libc::SO_SNDBUF => libc::SO_SNDBUFFORCE,
        libc::SO_RCVBUF => libc::SO_RCVBUFFORCE,
        _ => return set(fd, option, value),
    };
    let size = value.first_chunk().map_or(0, |bytes| i32::from_le_bytes(*bytes));
    let half = (size / 2).to_le_bytes();
    set(fd, forced, &half).or_else(|_| set(fd, option, &half))
}
