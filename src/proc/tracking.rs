// SPDX-License-Identifier: LGPL-2.1-only
//! What of its memory a process writes to, by the kernel's word: a userfaultfd(2) that write-protects pages and answers
//! their faults itself (UFFD_FEATURE_WP_ASYNC, Linux 6.7), so that nobody waits for anybody. Which pages were written to
//! [`Pagemap::rearm`](super::pagemap::Pagemap::rearm) tells. The memory is that of the process that made the descriptor,
//! which need not have it any more; when the last of its duplicates is closed all is as it was.
//!
//! # Safety
//! Each ioctl has the structure that belongs to it in linux/userfaultfd.h, which lives during the call; addresses in it are
//! numbers for the kernel.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Flags for userfaultfd(2): without a privilege faults of the kernel itself may not be waited for, which nobody does.
pub(crate) const FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | 1;

const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 2;
/// Numbers of requests.
const API: u32 = 0x3f;
const REGISTER: u32 = 0;
const WRITEPROTECT: u32 = 6;

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

/// struct uffdio_writeprotect
#[repr(C)]
#[derive(Default)]
struct Protect {
    start: u64,
    len: u64,
    mode: u64,
}

/// A userfaultfd(2) that tracks.
#[derive(Debug)]
pub(crate) struct Tracker(OwnedFd);

impl Tracker {
    /// Makes one of a descriptor that is new; None: the kernel has no such tracking.
    pub(crate) fn begin(fd: OwnedFd) -> Option<Self> {
        let tracker = Self(fd);
        let features = UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC;
        tracker.ioctl(API, &mut Api { api: UFFD_API, features, ioctls: 0 }).ok()?;
        Some(tracker)
    }

    /// One that has begun.
    pub(crate) fn of(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Whether this process could have one of its own.
    pub(crate) fn is_possible() -> bool {
        // SAFETY: userfaultfd(2) takes a number.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) };
        // SAFETY: the descriptor was just opened, for this value.
        Errno::result(fd)
            .is_ok_and(|fd| Self::begin(unsafe { OwnedFd::from_raw_fd(fd as i32) }).is_some())
    }

    /// Begins to track a mapping, all of which counts as written to.
    ///
    /// # Errors
    /// It is none any more, or another userfaultfd has it (EBUSY).
    pub(crate) fn register(&self, mapping: &Range<u64>) -> nix::Result<()> {
        let (start, len) = (mapping.start, mapping.end - mapping.start);
        let mode = UFFDIO_REGISTER_MODE_WP;
        self.ioctl(REGISTER, &mut Register { start, len, mode, ioctls: 0 })?;
        // Pages that came from a tracked mapping by mremap(2) may be protected still (before Linux 6.13).
        self.ioctl(WRITEPROTECT, &mut Protect { start, len, mode: 0 })
    }

    fn ioctl<T>(&self, number: u32, argument: &mut T) -> nix::Result<()> {
        // _IOWR(0xaa, number, T)
        let request = 3 << 30 | (size_of::<T>() as u32) << 16 | 0xaa << 8 | number;
        // SAFETY: the argument is the structure of this request.
        let result = unsafe {
            libc::ioctl(self.0.as_raw_fd(), request as libc::Ioctl, std::ptr::from_mut(argument))
        };
        Errno::result(result).map(drop)
    }
}

impl AsFd for Tracker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::pagemap::{PAGE, Pagemap};
    use super::super::tests::we;
    use super::*;
    use memmap2::{Advice, MmapMut};

    fn of_us() -> Option<Tracker> {
        // SAFETY: userfaultfd(2) takes a number.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) };
        // SAFETY: the descriptor was just opened, for this value.
        Tracker::begin(unsafe { OwnedFd::from_raw_fd(Errno::result(fd).ok()? as i32) })
    }

    #[test]
    fn what_is_written_to_is_told_once() {
        let Some(tracker) = of_us() else { return };
        let pages = 1024;
        let mut memory = MmapMut::map_anon(pages * PAGE as usize).unwrap();
        memory.advise(Advice::NoHugePage).unwrap();
        let start = memory.as_ptr().addr() as u64;
        let all = start..start + memory.len() as u64;
        memory[..512 * PAGE as usize].fill(1);
        let map = Pagemap::of(&we()).unwrap();
        assert!(!map.is_tracked(start));
        tracker.register(&all).unwrap();
        assert!(map.is_tracked(start));
        // What is not there is not touched.
        assert_eq!(map.rearm(all.clone()).unwrap(), vec![start..start + 512 * PAGE; 1]);
        assert_eq!(map.rearm(all.clone()).unwrap(), []);
        let page = |n: u64| start + n * PAGE..start + (n + 1) * PAGE;
        memory[3 * PAGE as usize] = 2;
        memory[700 * PAGE as usize] = 2;
        memory[703 * PAGE as usize] = 0;
        assert_eq!(std::hint::black_box(memory[9 * PAGE as usize]), 1);
        assert_eq!(map.rearm(all.clone()).unwrap(), [page(3), page(700), page(703)]);
        assert_eq!(map.rearm(all.clone()).unwrap(), []);
        // SAFETY: nobody has a reference into it now.
        unsafe { memory.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) }.unwrap();
        assert_eq!(map.populated(all.start, all.end, true).unwrap(), []);
        assert_eq!(map.rearm(all.clone()).unwrap(), []);
        memory[3 * PAGE as usize] = 0;
        assert_eq!(map.rearm(all.clone()).unwrap(), [page(3)]);
        drop(tracker);
        assert!(!map.is_tracked(start));
    }
}
