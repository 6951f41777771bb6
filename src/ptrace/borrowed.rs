// SPDX-License-Identifier: LGPL-2.1-only
//! Descriptors of other processes, to look into what is behind them.
//!
//! pidfd_getfd(2) gives duplicates. The filters of containers refuse it to who lacks CAP_SYS_PTRACE, though not
//! ptrace(2). Then what /proc opens anew is as good for pipes and terminals: they have no position, and what is in them
//! is seen through each of their descriptions.

use super::raw;
use crate::error::{Because, Result};
use crate::proc::{Pid, Process, forebear, of_this_namespace};
use nix::errno::Errno;
use nix::libc;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

/// Major numbers of terminals that opening does not change: consoles and serial lines, and the slaves of
/// pseudo-terminals (Documentation/admin-guide/devices.txt).
const TERMINALS: [std::ops::RangeInclusive<u32>; 2] = [4..=4, 136..=143];

/// A descriptor of what another process's descriptor shows: of the same description, or else of another of the same pipe
/// or terminal.
///
/// # Errors
/// EBADF, or the refusal.
pub(crate) fn take(pid: Pid, fd: i32) -> nix::Result<OwnedFd> {
    raw::take_descriptor(pid, fd)
        .or_else(|error| if is_refusal(error) { reopen(pid, fd).ok_or(error) } else { Err(error) })
}

/// The same with a sentence about a failure, and what helps.
///
/// # Errors
/// `why`.
pub(crate) fn look_into(pid: Pid, number: u32, why: impl Fn() -> String) -> Result<OwnedFd> {
    take(pid, number.cast_signed()).map_err(|errno| {
        let error = Err::<(), _>(errno).because(&why).unwrap_err();
        match is_refusal(errno) && !forebear::is_engaged() {
            true => error.hint("pidfd_getfd(2) is refused here, as by the filter of a container: it needs the capability SYS_PTRACE (docker run --cap-add SYS_PTRACE)"),
            false => error,
        }
    })
}

/// Whether a call that this kernel knows is refused: to us, or to all by the filter of a container.
pub(crate) fn is_refusal(error: Errno) -> bool {
    matches!(error, Errno::EPERM | Errno::EACCES | Errno::ENOSYS)
}

fn reopen(pid: Pid, fd: i32) -> Option<OwnedFd> {
    of_this_namespace().ok()?;
    let process = Process::glimpse(pid).ok()?;
    let path = process.fd(fd.cast_unsigned());
    let found = fs::metadata(&path).ok()?;
    let major = libc::major(found.rdev());
    let alike = match found.mode() & libc::S_IFMT {
        libc::S_IFIFO => true,
        libc::S_IFCHR => TERMINALS.iter().any(|majors| majors.contains(&major)),
        _ => false,
    };
    let flags = process.descriptor(fd.unsigned_abs()).ok()??.flags.cast_signed();
    let access = flags & libc::O_ACCMODE;
    let mut options = File::options();
    options.read(access != libc::O_WRONLY).write(access != libc::O_RDONLY);
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    alike.then(|| options.open(&path).ok().map(OwnedFd::from))?
}
