// SPDX-License-Identifier: LGPL-2.1-only
//! What is set in a socket for a moment, and is set back should somebody kill us meanwhile: by a process beside us, which
//! does nothing else. It is in a session of its own, so that what ends our group does not end it.
//!
//! # Safety
//! The child makes nothing but system calls, whose memory is its own.
#![allow(unsafe_code)]

use super::options::set_int;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{close, pipe2, read, setsid, write};
use std::os::fd::{IntoRawFd, OwnedFd};

/// The process; it is let go when this value is dropped.
pub(super) struct Minder {
    pid: i32,
    tell: OwnedFd,
}

impl Minder {
    /// Has an option be `value` when we are gone; None where no process can be made.
    pub(super) fn of(fd: &OwnedFd, option: i32, value: i32) -> Option<Self> {
        let (hear, tell) = pipe2(OFlag::O_CLOEXEC).ok()?;
        // SAFETY: a copy of this thread that goes on here, without an exit signal.
        match unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) } {
            0 => {
                let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
                let _ = setsid();
                let _ = close(tell.into_raw_fd());
                let mut byte = [0];
                // Nothing is said by who was killed.
                if read(&hear, &mut byte) == Ok(0) {
                    let _ = set_int(fd, option, value);
                }
                // SAFETY: ends the child without running anything of its maker's.
                unsafe { libc::_exit(0) }
            }
            pid if pid > 0 => Some(Self { pid: pid as i32, tell }),
            _ => None,
        }
    }
}

impl Drop for Minder {
    fn drop(&mut self) {
        let _ = write(&self.tell, &[1]);
        loop {
            // SAFETY: waits for the child, and writes nothing.
            let waited = unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), libc::__WCLONE) };
            if Errno::result(waited) != Err(Errno::EINTR) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::{PEEK_OFF, get};
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    #[test]
    fn it_acts_for_who_is_killed_alone() {
        let ours: OwnedFd = UnixDatagram::pair().expect("sockets").0.into();
        set_int(&ours, PEEK_OFF, 7).expect("an offset");
        drop(Minder::of(&ours, PEEK_OFF, -1));
        assert_eq!(get(&ours, PEEK_OFF), Some(7));
        let minder = Minder::of(&ours, PEEK_OFF, -1).expect("a process");
        let pid = minder.pid;
        let Minder { tell, .. } = &minder;
        let _ = close(std::os::fd::AsRawFd::as_raw_fd(tell));
        std::mem::forget(minder);
        // SAFETY: as above.
        while unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WCLONE) } < 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(get(&ours, PEEK_OFF), Some(-1));
    }
}
