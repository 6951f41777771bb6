//! Giving descriptors their numbers.
//!
//! Until the point of no return the restored descriptors wait above all numbers that the program
//! has; then each is duplicated to its own, and everything else is closed.
//!
//! # Safety
//! Numbers become descriptors only for single calls or where their owner is known.
#![allow(unsafe_code)]

use super::descriptors::Restored;
use crate::error::{Because, Result};
use ckpt_abi::image::Descriptor;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

/// The lowest number above those of the program.
pub fn above(records: &[Descriptor]) -> i32 {
    records.iter().map(|r| r.fd + 1).max().unwrap_or(0).max(3) as i32
}

/// A duplicate at a number that no restored descriptor will have.
pub fn duplicate(file: &OwnedFd, above: i32) -> Result<OwnedFd> {
    let fd = fcntl(file, FcntlArg::F_DUPFD_CLOEXEC(above))
        .because(|| "cannot duplicate a descriptor (RLIMIT_NOFILE?)")?;
    Ok(own(fd))
}

/// Moves a descriptor of ours to a number above those of the program.
pub fn move_above(file: OwnedFd, records: &[Descriptor]) -> Result<OwnedFd> {
    duplicate(&file, above(records))
}

/// Gives every restored descriptor its number and closes all others but `kept`. From here on
/// standard error is the program's.
pub fn install(restored: Vec<Restored>, kept: &[i32]) {
    let mut wanted = Vec::new();
    // The restarter's own three first move out of the way, for they may be wanted elsewhere.
    let above = restored.iter().map(|r| r.record.fd + 1).max().unwrap_or(0).max(3) as i32;
    let std: Vec<Option<OwnedFd>> = (0..3).map(|fd| duplicate_raw(fd, above)).collect();
    for Restored { record, file } in restored {
        let source = match (&file, std.get(record.value as usize)) {
            (Some(file), _) => Some(file.as_raw_fd()),
            (None, Some(Some(standard))) => Some(standard.as_raw_fd()),
            _ => None,
        };
        let Some(source) = source else { continue };
        place(source, record.fd as i32, record.cloexec != 0);
        if file.is_some() {
            restore_flags(record.fd as i32, record.flags as i32);
        }
        wanted.push(record.fd as i32);
        drop(file);
    }
    drop(std);
    wanted.extend_from_slice(kept);
    close_others(&mut wanted);
}

fn place(from: i32, to: i32, cloexec: bool) {
    let flags = if cloexec { OFlag::O_CLOEXEC } else { OFlag::empty() };
    let from = borrowed(from);
    let mut to = std::mem::ManuallyDrop::new(own(to));
    let _ = nix::unistd::dup3(from, &mut to, flags);
}

/// O_APPEND, O_NONBLOCK and their kin of files that were not opened with them (content, objects).
fn restore_flags(fd: i32, flags: i32) {
    let flags =
        OFlag::from_bits_retain(flags & (libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT));
    let _ = fcntl(borrowed(fd), FcntlArg::F_SETFL(flags));
}

fn close_others(kept: &mut [i32]) {
    kept.sort_unstable();
    let mut next = 0u32;
    for fd in kept.iter().map(|fd| fd.cast_unsigned()) {
        if fd > next {
            close_range(next, fd - 1);
        }
        next = next.max(fd + 1);
    }
    close_range(next, u32::MAX);
}

fn duplicate_raw(fd: i32, above: i32) -> Option<OwnedFd> {
    fcntl(borrowed(fd), FcntlArg::F_DUPFD_CLOEXEC(above)).ok().map(own)
}

fn borrowed(fd: i32) -> BorrowedFd<'static> {
    // SAFETY: used for single calls that fail with EBADF where there is no such descriptor.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn own(fd: i32) -> OwnedFd {
    // SAFETY: either fresh from fcntl, or wrapped so that it is never dropped.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn close_range(first: u32, last: u32) {
    // SAFETY: what is closed has no owner any more: the process is about to become another.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Gives up ownership of a descriptor that the restorer will close.
pub fn leak(file: OwnedFd) -> i32 {
    file.into_raw_fd()
}
