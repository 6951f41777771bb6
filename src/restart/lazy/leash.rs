// SPDX-License-Identifier: LGPL-2.1-only
//! What ends a program together with its pager and the pager's guard, if both die at once: were their descriptors closed while
//! memory is missing, the kernel would give zeros in its place.
//!
//! The kernel itself sends SIGKILL (fcntl(2), F_SETOWN and F_SETSIG) when one end of a pipe is closed whose other end is
//! open yet; those two have both, so their end is what closes them, whatever ended it. One has to be closed before the
//! memory's descriptors are: kernels close the descriptors of a process that ends from the lowest number on, or from the
//! highest, so one end has a low number and one a high one.
//!
//! # Safety
//! fcntl(2) with numbers, on descriptors that live during the call.
#![allow(unsafe_code)]

use crate::proc::Pid;
use crate::proc::pidfd::Pidfd;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// include/uapi/asm-generic/fcntl.h
const F_SETSIG: i32 = 10;
/// So many descriptors are enough for thousands of children.
const MANY: u64 = 1 << 16;
/// What the guard has of them for itself.
const OURS: u64 = 1 << 10;

/// A pipe for one process.
pub(super) struct Leash {
    ends: Vec<OwnedFd>,
}

impl Leash {
    /// Ends a process with this one.
    ///
    /// # Errors
    /// It is gone (ESRCH), or there are no descriptors.
    pub(super) fn of(pid: Pid) -> nix::Result<Self> {
        let process = Pidfd::open(pid)?;
        let (one, other) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let mut ends = Vec::new();
        for (end, first) in [(one, 0), (other, highest())] {
            let above = fcntl(&end, FcntlArg::F_DUPFD_CLOEXEC(first))?;
            // SAFETY: the kernel just made this descriptor for us.
            ends.push(unsafe { OwnedFd::from_raw_fd(above) });
        }
        for end in ends.iter().map(AsRawFd::as_raw_fd) {
            set(end, libc::F_SETOWN, pid.get())?;
            set(end, F_SETSIG, libc::SIGKILL)?;
            set(end, libc::F_SETFL, libc::O_ASYNC)?;
        }
        // Else it may be another that has the number by now.
        match process.ended_within(Duration::ZERO) {
            true => {
                Self { ends }.loosen();
                Err(Errno::ESRCH)
            }
            false => Ok(Self { ends }),
        }
    }

    /// Lets it go.
    pub(super) fn loosen(self) {
        self.ends.iter().map(AsRawFd::as_raw_fd).for_each(loosen_end);
    }
}

/// Has nobody ended by an end of a pipe.
pub(super) fn loosen_end(end: RawFd) {
    let _ = set(end, libc::F_SETFL, 0);
    let _ = set(end, libc::F_SETOWN, 0);
}

/// Gives a descriptor that stands for missing memory a number between those of the pipes.
///
/// # Errors
/// EMFILE
pub(super) fn amid(fd: &impl AsFd) -> nix::Result<OwnedFd> {
    let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(highest() / 2))?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Where the highest numbers begin; below, there is room for all others.
fn highest() -> i32 {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((64, 64));
    (soft.min(MANY) / 2) as i32
}

/// Allows the guard, and then with less the pager, as many descriptors as can be had.
pub(super) fn allow(is_guard: bool) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((64, 64));
    let most = |hard: u64| hard.min(MANY) - if is_guard { 0 } else { OURS.min(hard / 8) };
    let raised = hard.max(MANY);
    if setrlimit(Resource::RLIMIT_NOFILE, most(raised), raised).is_err() {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most(hard), hard);
    }
}

fn set(end: RawFd, command: i32, value: i32) -> nix::Result<()> {
    // SAFETY: the argument is a number, and what is no descriptor is an error.
    Errno::result(unsafe { libc::fcntl(end, command, value) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::fork::{end, fork};
    use nix::sys::signal::Signal;
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

    #[test]
    fn who_is_on_it_ends_with_it() {
        let sleeper = || match fork(libc::SIGCHLD).unwrap() {
            Some(pid) => pid,
            None => loop {
                std::thread::sleep(Duration::from_secs(5));
            },
        };
        let (one, other) = (sleeper(), sleeper());
        let Some(holder) = fork(libc::SIGCHLD).unwrap() else {
            let both = (Leash::of(one), Leash::of(other));
            let (Ok(_kept), Ok(loosened)) = both else { end(1) };
            loosened.loosen();
            end(0)
        };
        let all = Some(WaitPidFlag::__WALL);
        assert_eq!(waitpid(holder.nix(), all), Ok(WaitStatus::Exited(holder.nix(), 0)));
        let killed = |pid: Pid| WaitStatus::Signaled(pid.nix(), Signal::SIGKILL, false);
        assert_eq!(waitpid(one.nix(), all), Ok(killed(one)));
        assert_eq!(waitpid(other.nix(), Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive));
        Pidfd::open(other).unwrap().kill();
        assert_eq!(waitpid(other.nix(), all), Ok(killed(other)));
    }
}
