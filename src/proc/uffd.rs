// SPDX-License-Identifier: LGPL-2.1-only
//! userfaultfd(2): requests and messages (ioctl_userfaultfd(2), linux/userfaultfd.h).
//!
//! # Safety
//! Each ioctl has the structure that belongs to it in linux/userfaultfd.h, which lives during the call; addresses in it are
//! numbers for the kernel. A descriptor becomes an owner's when the kernel has just made it.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Faults of system calls are none of it.
pub(crate) const USER_MODE_ONLY: i32 = 1;
const UFFD_API: u64 = 0xaa;
const REGISTER_MISSING: u64 = 1;
const REGISTER_WP: u64 = 2;

/// UFFD_FEATURE_...
pub(crate) mod feature {
    pub(crate) const EVENT_FORK: u64 = 1 << 1;
    pub(crate) const EVENT_REMAP: u64 = 1 << 2;
    pub(crate) const EVENT_REMOVE: u64 = 1 << 3;
    pub(crate) const EVENT_UNMAP: u64 = 1 << 6;
    /// Linux 5.18.
    pub(crate) const EXACT_ADDRESS: u64 = 1 << 11;
    pub(crate) const WP_UNPOPULATED: u64 = 1 << 13;
    /// Linux 6.7.
    pub(crate) const WP_ASYNC: u64 = 1 << 15;
    /// Linux 6.8.
    pub(crate) const MOVE: u64 = 1 << 16;
}

/// Requests that take addresses.
#[derive(Clone, Copy)]
pub(crate) enum Request {
    Wake = 2,
    Copy = 3,
    Zero = 4,
    Move = 5,
}

/// struct uffdio_api
#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// struct uffdio_register
#[repr(C)]
#[derive(Default)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// struct uffdio_copy, and struct uffdio_move
#[repr(C)]
#[derive(Default)]
struct Part {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    done: i64,
}

/// struct uffdio_zeropage, which begins with struct uffdio_range
#[repr(C)]
#[derive(Default)]
struct Range {
    start: u64,
    len: u64,
    mode: u64,
    done: i64,
}

/// struct uffd_msg
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Message {
    event: u8,
    reserved: [u8; 7],
    args: [u64; 3],
}

/// What a message says.
pub(crate) enum Heard {
    /// Somebody waits for the page at an address.
    Fault(u64),
    /// The process has forked.
    Fork(Uffd),
    /// Memory was moved: from, to, bytes.
    Remap(u64, u64, u64),
    /// The content of a range is about to be forgotten.
    Remove(u64, u64),
    /// A range was unmapped.
    Unmap(u64, u64),
}

/// struct uffdio_writeprotect
#[repr(C)]
#[derive(Default)]
struct Protect {
    start: u64,
    len: u64,
    mode: u64,
}

/// A userfaultfd(2). Its last descriptor ends all that was registered with it.
#[derive(Debug)]
pub(crate) struct Uffd(OwnedFd);

impl Uffd {
    /// Makes one, for this process.
    ///
    /// # Errors
    /// EPERM; EINVAL where the kernel does not know the features; ENOSYS.
    pub(crate) fn new(flags: i32, features: u64) -> nix::Result<Self> {
        let flags = flags | libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: userfaultfd(2) takes a number.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })?;
        // SAFETY: the descriptor was just opened, for this value.
        Self::begin(unsafe { OwnedFd::from_raw_fd(fd as i32) }, features)
    }

    /// Makes one of a descriptor that is new.
    ///
    /// # Errors
    /// EINVAL where the kernel does not know the features.
    pub(crate) fn begin(fd: OwnedFd, features: u64) -> nix::Result<Self> {
        let made = Self(fd);
        made.ioctl(3, 0x3f, &mut Api { api: UFFD_API, features, ioctls: 0 })?;
        Ok(made)
    }

    /// Has the kernel note what is written to of a range, when that was [cleared](Self::clear).
    ///
    /// # Errors
    /// It is none any more, or another userfaultfd has it (EBUSY).
    pub(crate) fn track(&self, start: u64, len: u64) -> nix::Result<()> {
        self.ioctl(3, 0, &mut Register { start, len, mode: REGISTER_WP, ioctls: 0 })
    }

    /// Has all of a range that is tracked count as written to: pages that came from a tracked mapping by mremap(2) may be
    /// protected still (before Linux 6.13). The kernel walks all its page tables.
    ///
    /// # Errors
    /// Not all of it is tracked.
    pub(crate) fn clear(&self, start: u64, len: u64) -> nix::Result<()> {
        self.ioctl(3, 6, &mut Protect { start, len, mode: 0 })
    }

    /// Has missing pages of a range awaited, whoever touches them.
    ///
    /// # Errors
    /// EBUSY: another one has it; EINVAL: memory of another kind, or none.
    pub(crate) fn register(&self, start: u64, len: u64) -> nix::Result<()> {
        self.ioctl(3, 0, &mut Register { start, len, mode: REGISTER_MISSING, ioctls: 0 })
    }

    /// The same, and with a mark ("uw" among its flags in /proc/PID/smaps) that does nothing but to be seen. The kernel takes
    /// none away from what is registered: for a moment nothing is awaited there when it goes.
    ///
    /// # Errors
    /// As [`Uffd::register`].
    pub(crate) fn mark(&self, start: u64, len: u64, is_marked: bool) -> nix::Result<()> {
        let mode = REGISTER_MISSING | if is_marked { REGISTER_WP } else { 0 };
        if !is_marked {
            // Unless it was not registered.
            let _ = self.ioctl(2, 1, &mut [start, len]);
        }
        self.ioctl(3, 0, &mut Register { start, len, mode, ioctls: 0 })
    }

    /// Copies or moves; how many bytes were.
    pub(crate) fn put(
        &self,
        request: Request,
        to: u64,
        from: u64,
        len: u64,
    ) -> (nix::Result<()>, u64) {
        let mut part = Part { to, from, len, ..Part::default() };
        let result = self.ioctl(3, request as u32, &mut part);
        (result, part.done.max(0).cast_unsigned())
    }

    /// Whether a call is under way that changes what lies where, and of which not all was heard.
    pub(crate) fn is_changing(&self) -> bool {
        // The kernel says so before it looks at what it is to copy.
        self.put(Request::Copy, 0, 0, 0).0 == Err(Errno::EAGAIN)
    }

    /// Makes pages zeros.
    pub(crate) fn zero(&self, start: u64, len: u64) -> nix::Result<()> {
        self.ioctl(3, Request::Zero as u32, &mut Range { start, len, ..Range::default() })
    }

    /// Has those who wait for a range look again.
    pub(crate) fn wake(&self, start: u64, len: u64) {
        let _ = self.ioctl(2, Request::Wake as u32, &mut [start, len]);
    }

    /// `_IOR` (2) or `_IOWR` (3).
    fn ioctl<T>(&self, way: u32, number: u32, argument: &mut T) -> nix::Result<()> {
        let request = way << 30 | (size_of::<T>() as u32) << 16 | 0xaa << 8 | number;
        // SAFETY: the argument is the structure of this request.
        let result = unsafe {
            libc::ioctl(self.0.as_raw_fd(), request as libc::Ioctl, std::ptr::from_mut(argument))
        };
        Errno::result(result).map(drop)
    }

    /// What there is to be heard, at most so much as there is room for; nothing waits.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM: a child's descriptor cannot be had; it can be heard again.
    pub(crate) fn hear(&self, room: &mut [Message]) -> nix::Result<Vec<Heard>> {
        // SAFETY: the kernel writes whole messages, for all bytes of which there is a meaning.
        let read =
            unsafe { libc::read(self.0.as_raw_fd(), room.as_mut_ptr().cast(), size_of_val(room)) };
        let read = match Errno::result(read) {
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            read => read?,
        };
        let count = usize::try_from(read).unwrap_or(0) / size_of::<Message>();
        Ok(room[..count].iter().filter_map(Message::meaning).collect())
    }
}

impl From<OwnedFd> for Uffd {
    /// Another descriptor of one.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Message {
    fn meaning(&self) -> Option<Heard> {
        let [a, b, c] = self.args;
        Some(match self.event {
            0x12 => Heard::Fault(b),
            // SAFETY: the kernel has just opened it for who reads this.
            0x13 => Heard::Fork(Uffd(unsafe { OwnedFd::from_raw_fd(a as i32) })),
            0x14 => Heard::Remap(a, b, c),
            0x15 => Heard::Remove(a, b),
            0x16 => Heard::Unmap(a, b),
            _ => return None,
        })
    }
}
