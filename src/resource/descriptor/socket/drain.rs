// SPDX-License-Identifier: LGPL-2.1-only
//! Bringing what a TCP connection has under way to the end where it is read, and can be looked at.
//!
//! What the reader has no room for stays with the sender, where only TCP_REPAIR would show it, which needs privilege and
//! silences a connection whose dumper dies. So the reader gets room: the kernel moves the bytes by itself, and
//! the program reads the same ones.
//!
//! # Safety
//! The system calls take numbers, and buffers of our own with their lengths; the child makes nothing but system calls.
#![allow(unsafe_code)]

use super::options::{self, LOCKS, NODELAY, QUICKACK, RCVBUF, RCVLOWAT, get, set_int};
use crate::fault::{Point, reach};
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long the bytes may take: some only go when the sender looks again by its own timer (200 ms).
const PATIENCE: Duration = Duration::from_millis(400);
const PAUSE: Duration = Duration::from_micros(100);
/// How long it is waited before more room is made.
const STUCK: Duration = Duration::from_millis(20);
/// The most that a connection is brought to hold, in bytes: the kernel's memory for all of them has its limits (tcp_mem).
const AT_MOST: usize = 32 << 20;
/// Room beside that of the bytes, which the kernel's own records take.
const MARGIN: usize = 1 << 16;

/// Bytes that can be read.
pub(super) fn readable(fd: &OwnedFd) -> usize {
    ask(fd, libc::FIONREAD)
}

/// Bytes that the other end has not acknowledged (tcp(7), SIOCOUTQ); an end that was sent counts as one.
pub(super) fn unsent(fd: &OwnedFd) -> usize {
    ask(fd, libc::TIOCOUTQ)
}

fn ask(fd: &OwnedFd, what: libc::Ioctl) -> usize {
    let mut value = 0i32;
    let at: *mut i32 = &mut value;
    // SAFETY: the kernel writes an int.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), what, at) };
    if result == 0 { value.unsigned_abs() as usize } else { 0 }
}

/// Brings everything to `reader`; `under_way` says how many bytes, at least, have not come, `sender` is the other end if
/// somebody has it. Whether it has all come.
pub(super) fn drain(
    reader: &OwnedFd,
    sender: Option<&OwnedFd>,
    under_way: impl Fn() -> usize,
) -> bool {
    let restrain = |slow| sender.into_iter().for_each(|sender| options::restrain(sender, slow));
    if under_way() == 0 {
        restrain(false);
        return true;
    }
    // They may all be there, and only not acknowledged, or wait to be sent with others (TCP_CORK).
    let push = || {
        acknowledge(reader);
        sender.into_iter().for_each(send_all);
    };
    push();
    if under_way() == 0 {
        return true;
    }
    let (begun, mut moved) = (Instant::now(), Instant::now());
    let (mut room, mut before) = (Room::of(reader), usize::MAX);
    let mut more = 0;
    while under_way() > 0 && begun.elapsed() < PATIENCE {
        if under_way() < before {
            (before, moved) = (under_way(), Instant::now());
        } else if moved.elapsed() > STUCK {
            (more, moved) = (more + 1, Instant::now());
        }
        if readable(reader) > AT_MOST {
            break;
        }
        // What is told to the sender cannot be taken back: more than is needed would be filled, too.
        room.grow_for(readable(reader) + under_way(), more);
        reach(Point::Roomy);
        peek(reader);
        push();
        if under_way() > 0 {
            std::thread::sleep(PAUSE);
        }
    }
    room.take_back();
    restrain(true);
    under_way() == 0
}

/// Has the kernel tell the sender what has come and how much room there is: a look is enough where that has doubled
/// (net/ipv4/tcp.c, tcp_cleanup_rbuf).
pub(super) fn peek(reader: &OwnedFd) {
    let (mut byte, flags) = ([0u8], libc::MSG_PEEK | libc::MSG_DONTWAIT);
    // SAFETY: the kernel writes at most the byte.
    unsafe { libc::recv(reader.as_raw_fd(), byte.as_mut_ptr().cast(), 1, flags) };
}

/// Acknowledges at once what waits for that, and leaves the mode as it is (net/ipv4/tcp.c, __tcp_sock_set_quickack).
fn acknowledge(reader: &OwnedFd) {
    let once = 2;
    let mode = get(reader, QUICKACK).filter(|quick| *quick != 0).unwrap_or(once);
    let _ = set_int(reader, QUICKACK, mode);
}

/// Sends what waits for more (net/ipv4/tcp.c, __tcp_sock_set_nodelay: also where TCP_CORK holds it).
fn send_all(sender: &OwnedFd) {
    let before = get(sender, NODELAY);
    let _ = set_int(sender, NODELAY, 1);
    if before == Some(0) {
        let _ = set_int(sender, NODELAY, 0);
    }
}

/// Room that a reader has for a while.
pub(super) struct Room<'a> {
    reader: &'a OwnedFd,
    size: i32,
    locks: Option<i32>,
    given: usize,
}

impl<'a> Room<'a> {
    /// What there is.
    pub(super) fn of(reader: &'a OwnedFd) -> Self {
        let size = get(reader, RCVBUF).unwrap_or(0);
        Self { reader, size, locks: get(reader, LOCKS), given: 0 }
    }

    /// Gives the reader room for so many bytes, and a quarter more each time that this was not enough. The kernel tells
    /// of no room that is less than a sixteenth of all (net/ipv4/tcp_output.c, __tcp_select_window).
    pub(super) fn grow_for(&mut self, bytes: usize, more: usize) {
        self.grow(bytes + bytes / 8 + bytes / 4 * more + MARGIN);
    }

    /// Gives the reader room for so many bytes, as far as the kernel lets.
    ///
    /// SO_RCVLOWAT makes the buffer larger without privilege, up to tcp_rmem (net/ipv4/tcp.c, tcp_set_rcvlowat), unless
    /// the program has chosen its size. The value itself must not stay: a child sets it and takes it back, so that it does
    /// not if somebody kills us.
    pub(super) fn grow(&mut self, wanted: usize) {
        if wanted <= self.given {
            return;
        }
        self.given = wanted;
        let (reader, wanted) = (self.reader, i32::try_from(wanted).unwrap_or(i32::MAX));
        let own = self.locks.filter(|locks| locks & 2 != 0);
        own.map(|locks| set_int(reader, LOCKS, locks & !2));
        if let Some(least) = get(reader, RCVLOWAT) {
            aside(|| {
                let _ = set_int(reader, RCVLOWAT, wanted);
                let _ = set_int(reader, RCVLOWAT, least);
            });
        }
        if get(reader, RCVBUF).is_some_and(|size| size / 2 < wanted) {
            options::enlarge(reader, RCVBUF, wanted);
        }
    }

    /// The size is what it was: the bytes that are there stay.
    pub(super) fn take_back(self) {
        let Self { reader, size, locks, given } = self;
        // Where the kernel does not tell whether the program has chosen a size, to set one would be to choose.
        if let Some(locks) = locks.filter(|_| given > 0) {
            let _ = options::change(reader, RCVBUF, &size.to_ne_bytes());
            let _ = set_int(reader, LOCKS, locks);
        }
    }
}

/// Does something in a child, which nobody knows who kills us, and waits for it.
fn aside(act: impl FnOnce()) {
    // SAFETY: the child, without an exit signal, makes nothing but system calls.
    let child = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
    match child {
        0 => {
            act();
            // SAFETY: ends the child without running anything of its maker's.
            unsafe { libc::_exit(0) }
        }
        child if child > 0 => loop {
            // SAFETY: waits for the child.
            let waited =
                unsafe { libc::waitpid(child as i32, std::ptr::null_mut(), libc::__WCLONE) };
            if Errno::result(waited) != Err(Errno::EINTR) {
                return;
            }
        },
        _ => {}
    }
}
