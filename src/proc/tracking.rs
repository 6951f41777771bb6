// SPDX-License-Identifier: LGPL-2.1-only
//! What of its memory a process writes to, by the kernel's word: a userfaultfd(2) that write-protects pages and answers
//! their faults itself (UFFD_FEATURE_WP_ASYNC, Linux 6.7), so that nobody waits for anybody. Which pages were written to
//! [`Pagemap::rearm`](super::pagemap::Pagemap::rearm) tells. The memory is that of the process that made the descriptor,
//! which need not have it any more; when the last of its duplicates is closed all is as it was.
//!
//! # Safety
//! A test forgets pages of a mapping of its own, which hold numbers only.
#![allow(unsafe_code)]

use super::uffd::{USER_MODE_ONLY, Uffd, feature};
use nix::libc;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Flags for userfaultfd(2): without a privilege faults of the kernel itself may not be waited for, which nobody does.
pub(crate) const FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY) as u64;

const FEATURES: u64 = feature::WP_UNPOPULATED | feature::WP_ASYNC;

/// A userfaultfd(2) that tracks.
#[derive(Debug)]
pub(crate) struct Tracker(Uffd);

impl Tracker {
    /// Makes one of a descriptor that is new; None: the kernel has no such tracking.
    pub(crate) fn begin(fd: OwnedFd) -> Option<Self> {
        Uffd::begin(fd, FEATURES).ok().map(Self)
    }

    /// One that has begun.
    pub(crate) fn of(fd: OwnedFd) -> Self {
        Self(fd.into())
    }

    /// One of this process.
    pub(crate) fn own() -> Option<Self> {
        Uffd::new(USER_MODE_ONLY, FEATURES).ok().map(Self)
    }

    /// Whether this process could have one of its own.
    pub(crate) fn is_possible() -> bool {
        Self::own().is_some()
    }

    /// Begins to track a mapping.
    ///
    /// # Errors
    /// As [`Uffd::track`].
    pub(crate) fn register(&self, mapping: &Range<u64>) -> nix::Result<()> {
        self.0.track(mapping.start, mapping.end - mapping.start)
    }

    /// Has all of it count as written to, before it is asked for the first time what was.
    ///
    /// # Errors
    /// As [`Uffd::clear`].
    pub(crate) fn clear(&self, mapping: &Range<u64>) -> nix::Result<()> {
        self.0.clear(mapping.start, mapping.end - mapping.start)
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

    #[test]
    fn what_is_written_to_is_told_once() {
        let Some(tracker) = Tracker::own() else { return };
        let pages = 1024;
        let mut memory = MmapMut::map_anon(pages * PAGE as usize).unwrap();
        memory.advise(Advice::NoHugePage).unwrap();
        let start = memory.as_ptr().addr() as u64;
        let all = start..start + memory.len() as u64;
        memory[..512 * PAGE as usize].fill(1);
        let map = Pagemap::of(&we()).unwrap();
        assert!(!map.is_tracked(start));
        tracker.register(&all).unwrap();
        tracker.clear(&all).unwrap();
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
