// SPDX-License-Identifier: LGPL-2.1-only
//! A process by descriptor (pidfd_open(2)): it stands for the same one whatever its number becomes.
//!
//! # Safety
//! The descriptor that is made an owner's is one that the kernel just made.
#![allow(unsafe_code)]

use super::id::Pid;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A process.
pub(crate) struct Pidfd(OwnedFd);

impl Pidfd {
    /// That of this number.
    ///
    /// # Errors
    /// ESRCH where there is none, and what open(2) gives.
    pub(crate) fn open(pid: Pid) -> Result<Self, Errno> {
        Self::with(pid, 0)
    }

    /// That of a thread, whose descriptors can be had (Linux 6.9).
    pub(crate) fn of_thread(tid: Pid) -> Result<Self, Errno> {
        Self::with(tid, libc::O_EXCL)
    }

    fn with(pid: Pid, flags: i32) -> Result<Self, Errno> {
        // SAFETY: pidfd_open has no memory arguments.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.get(), flags) })?;
        // SAFETY: the kernel just made this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Sends SIGKILL (pidfd_send_signal(2)). One that is gone needs none.
    pub(crate) fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Sends a signal (pidfd_send_signal(2)), if we may.
    pub(crate) fn signal(&self, signal: Signal) {
        let fd = self.0.as_raw_fd();
        // SAFETY: the siginfo_t is left to the kernel.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as i32, 0, 0) };
    }

    /// Frees the memory of one that is ending, beside itself (process_mrelease(2), Linux 5.15); nothing of one that is not.
    pub(crate) fn free(&self) {
        // SAFETY: process_mrelease has no memory arguments.
        unsafe { libc::syscall(libc::SYS_process_mrelease, self.0.as_raw_fd(), 0) };
    }

    /// The wait status (wait(2)) of a process that has ended and was waited for, where the kernel tells it
    /// (PIDFD_INFO_EXIT, Linux 6.15: include/uapi/linux/pidfd.h).
    pub(crate) fn wait_status(&self) -> Option<i32> {
        // SAFETY: the record is numbers only.
        let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
        let wanted = u64::from(libc::PIDFD_INFO_EXIT);
        info.mask = wanted;
        // SAFETY: the kernel writes the record that the request is made of.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::PIDFD_GET_INFO, &mut info) };
        (done == 0 && info.mask & wanted != 0).then_some(info.exit_code)
    }

    /// Whether it has ended, or does in time.
    pub(crate) fn ended_within(&self, limit: Duration) -> bool {
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut polled, limit), Ok(1..))
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
