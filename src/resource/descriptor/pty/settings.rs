// SPDX-License-Identifier: LGPL-2.1-only
//! What the kernel keeps for a terminal, by ioctl_tty(2).
//!
//! # Safety
//! Each call reads or writes one value, whose type has the size that the request says.
#![allow(unsafe_code)]

use crate::proc::Pid;
use ckpt_abi::image::Termios;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const TCGETS2: u64 = 0x802c_542a;
const TCSETS2: u64 = 0x402c_542b;
const TIOCGPTPEER: u64 = 0x5441;
/// The device number of a terminal, of /dev/tty too, in the kernel's encoding.
const TIOCGDEV: u64 = 0x8004_5432;

/// Settings of one word that can be asked for and set.
#[derive(Clone, Copy)]
pub(super) struct Word {
    get: u64,
    set: u64,
    /// 0 is set by a request of its own, or by the same.
    clear: u64,
}

/// TIOCPKT.
pub(super) const PACKETS: Word = Word { get: 0x8004_5438, set: 0x5420, clear: 0x5420 };
/// TIOCSPTLCK.
pub(super) const LOCK: Word = Word { get: 0x8004_5439, set: 0x4004_5431, clear: 0x4004_5431 };
/// TIOCEXCL.
pub(super) const EXCLUSIVE: Word = Word { get: 0x8004_5440, set: 0x540c, clear: 0x540d };

/// tcflow(3): TCOOFF and TCOON.
pub(super) const STOP: i32 = 0;
pub(super) const START: i32 = 1;

fn ask<T: FromBytes + IntoBytes>(fd: &impl AsFd, request: u64) -> nix::Result<T> {
    let mut value = T::new_zeroed();
    let at: *mut T = &mut value;
    // SAFETY: the kernel writes the value.
    let done = unsafe { libc::syscall(libc::SYS_ioctl, fd.as_fd().as_raw_fd(), request, at) };
    Errno::result(done).map(|_| value)
}

fn tell<T: IntoBytes + Immutable>(fd: &impl AsFd, request: u64, value: &T) -> nix::Result<()> {
    let at: *const T = value;
    // SAFETY: the kernel reads the value.
    let done = unsafe { libc::syscall(libc::SYS_ioctl, fd.as_fd().as_raw_fd(), request, at) };
    Errno::result(done).map(drop)
}

fn order(fd: &impl AsFd, request: u64, number: i32) -> nix::Result<i64> {
    // SAFETY: a number is all that these requests take.
    let done = unsafe { libc::syscall(libc::SYS_ioctl, fd.as_fd().as_raw_fd(), request, number) };
    Errno::result(done)
}

impl Word {
    /// Whether it is set.
    pub(super) fn is_set(self, fd: &impl AsFd) -> bool {
        ask::<i32>(fd, self.get).is_ok_and(|word| word != 0)
    }

    /// Sets it, or takes it back.
    pub(super) fn put(self, fd: &impl AsFd, set: bool) -> nix::Result<()> {
        tell(fd, if set { self.set } else { self.clear }, &i32::from(set))
    }
}

pub(in super::super) fn termios(fd: &impl AsFd) -> nix::Result<Termios> {
    ask(fd, TCGETS2)
}

pub(in super::super) fn set_termios(fd: &impl AsFd, termios: &Termios) -> nix::Result<()> {
    tell(fd, TCSETS2, termios)
}

/// Rows, columns, and pixels of both.
pub(crate) fn window(fd: &impl AsFd) -> nix::Result<[u16; 4]> {
    ask(fd, libc::TIOCGWINSZ as u64)
}

pub(crate) fn set_window(fd: &impl AsFd, window: [u16; 4]) -> nix::Result<()> {
    tell(fd, libc::TIOCSWINSZ as u64, &window)
}

/// How many bytes can be read; in canonical mode, of whole lines.
pub(super) fn readable(fd: &impl AsFd) -> usize {
    ask::<i32>(fd, libc::FIONREAD as u64).map_or(0, |count| count.unsigned_abs() as usize)
}

/// Lets what is written wait ([`STOP`]), or go on.
pub(super) fn flow(fd: &impl AsFd, how: i32) -> nix::Result<()> {
    order(fd, libc::TCXONC as u64, how).map(drop)
}

/// The number N of the /dev/pts/N that is behind a descriptor, be it opened as /dev/tty.
pub(super) fn number(fd: &impl AsFd) -> Option<u32> {
    let device: u32 = ask(fd, TIOCGDEV).ok()?;
    super::number_of(super::super::terminal::decoded(device))
}

/// Opens the slave of a master (Linux 4.13). O_CLOEXEC would stay among the flags of the description for ever, where
/// /proc/PID/fdinfo shows it for every duplicate.
pub(super) fn peer(master: &impl AsFd, flags: OFlag) -> nix::Result<OwnedFd> {
    let fd = order(master, TIOCGPTPEER, (flags | OFlag::O_NOCTTY).bits())? as i32;
    // SAFETY: the kernel has just made it for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map(|_| fd)
}

/// Whether a description says of every descriptor that it closes on exec, true or not ([`peer`]).
pub(super) fn hides_cloexec(fd: &impl AsFd) -> bool {
    fcntl(fd, FcntlArg::F_GETFL).is_ok_and(|flags| flags & libc::O_CLOEXEC != 0)
}

/// Makes it the controlling terminal of the session that this process leads.
///
/// # Errors
/// EPERM: it is another's already, or the process leads no session.
pub(crate) fn control(fd: &impl AsFd) -> nix::Result<()> {
    order(fd, libc::TIOCSCTTY as u64, 0).map(drop)
}

/// Makes a group of this process's session the foreground one.
///
/// # Errors
/// EPERM, ESRCH: there is no such group in the session.
pub(crate) fn set_foreground(fd: &impl AsFd, group: Pid) -> nix::Result<()> {
    tell(fd, libc::TIOCSPGRP as u64, &group.get())
}
