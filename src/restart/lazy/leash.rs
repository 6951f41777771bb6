// SPDX-License-Identifier: LGPL-2.1-only
//! What ends a program together with its pager: were the pager's descriptors closed while memory is missing, the kernel
//! would give zeros in its place.
//!
//! The kernel itself sends SIGKILL (fcntl(2), F_SETOWN and F_SETSIG) when one end of a pipe is closed whose other end is
//! open yet; the pager has both, so its end is what closes them, whatever ended it. They have to be closed before the
//! memory's descriptors are: kernels close the descriptors of a process that ends from the lowest number on, or from the
//! highest, so one pipe has the lowest numbers and one the highest.
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
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// include/uapi/asm-generic/fcntl.h
const F_SETSIG: i32 = 10;
/// How long a process that was killed is waited for.
const END: Duration = Duration::from_secs(5);
/// The highest numbers begin here, where so many are allowed.
const HIGH: u64 = 1 << 13;

/// Two pipes for one process.
pub(super) struct Leash {
    pid: Pid,
    process: Pidfd,
    ends: Vec<OwnedFd>,
}

impl Leash {
    /// Ends a process with this one.
    ///
    /// # Errors
    /// It is gone, or there are no descriptors.
    pub(super) fn of(pid: Pid) -> nix::Result<Self> {
        let process = Pidfd::open(pid)?;
        let mut ends = Vec::new();
        for first in [0, highest()] {
            let (one, other) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
            for end in [one, other] {
                let above = fcntl(&end, FcntlArg::F_DUPFD_CLOEXEC(first))?;
                // SAFETY: the kernel just made this descriptor for us.
                ends.push(unsafe { OwnedFd::from_raw_fd(above) });
            }
        }
        for end in &ends {
            set(end, libc::F_SETOWN, pid.get())?;
            set(end, F_SETSIG, libc::SIGKILL)?;
            set(end, libc::F_SETFL, libc::O_ASYNC)?;
        }
        // Else it may be another that has the number by now.
        match process.ended_within(Duration::ZERO) {
            true => Err(Errno::ESRCH),
            false => Ok(Self { pid, process, ends }),
        }
    }

    /// Whose it is.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Lets it go.
    pub(super) fn loosen(self) {
        for end in &self.ends {
            let _ = set(end, libc::F_SETFL, 0);
            let _ = set(end, libc::F_SETOWN, 0);
        }
    }

    /// Ends the process.
    pub(super) fn kill(&self) {
        self.process.kill();
        self.process.ended_within(END);
    }
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
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((64, 64));
    let limit = hard.clamp(64, 2 * HIGH);
    if soft < limit {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, limit, hard);
    }
    (limit / 2) as i32
}

fn set(end: &OwnedFd, command: i32, value: i32) -> nix::Result<()> {
    // SAFETY: the descriptor is open, and the argument is a number.
    Errno::result(unsafe { libc::fcntl(end.as_raw_fd(), command, value) }).map(drop)
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
                std::thread::sleep(END);
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
