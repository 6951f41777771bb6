// SPDX-License-Identifier: LGPL-2.1-only
//! A page that all processes of a restart share: where they wait for each other, and where one says that it failed.
//!
//! Whoever waits there sees when the restarter is gone, whatever has ended it and whoever ended with it: the kernel marks a
//! word of the page when a process ends that has it in its list of robust futexes (get_robust_list(2); kernel/futex/core.c,
//! handle_futex_death). That needs no descriptor, no signal and no parent, and holds from birth into the restorer.
//!
//! # Safety
//! The page is mapped once, shared, and stays mapped in every process until that becomes its program. Its words are
//! atomic.
#![allow(unsafe_code)]

use crate::error::{Because, Error, Result};
use crate::image::{PAGE, hash};
use crate::proc::Tid;
use ckpt_abi::op::{OWNER_DIED, REPORTS};
use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::kill;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Meetings of all processes, in running order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Stage {
    /// Every process has been made.
    Made = 0,
    /// Groups without leaders have begun again.
    Revived = 1,
    /// Every process is in its group.
    Joined = 2,
    /// The System V objects are there.
    Furnished = 3,
    /// Memory is filled.
    Filled = 4,
    /// Orders are written: nothing can fail any more but what the kernel refuses.
    Planned = 5,
    /// The restorers have made their threads.
    Threaded = 6,
    /// The last one, in the restorers.
    Restored = 7,
}

/// How many stages there are.
const STAGES: usize = 8;

/// How many different sentences are said once only.
const SENTENCES: usize = 64;

/// How long a wait lasts before the waiter looks whether those it waits for still live, in nanoseconds.
const LOOK: i64 = 20_000_000;

/// How long a sentence may take, in nanoseconds.
const LONGEST_SPEECH: i64 = 2_000_000_000;

/// A process has failed, and says why.
const SPEAKS: u32 = 1;
/// It has said so.
const FAILED: u32 = 2;
/// An id was taken that had been free: there is another place for all of them.
const TAKEN: u32 = 3;

#[repr(C)]
struct Board {
    /// 0, [`SPEAKS`], [`FAILED`], [`TAKEN`] or [`REPORTS`].
    failed: AtomicU32,
    /// What init says ([`super::init`]).
    init: AtomicU32,
    /// Who has the turn ([`super::counted`]), or 0.
    turn: AtomicU32,
    arrived: [AtomicU32; STAGES],
    /// The restarter's thread id, until the kernel marks it ([`OWNER_DIED`]).
    restarter: AtomicU32,
    /// How many processes live when all is done.
    living: AtomicU32,
    /// The restarter's struct robust_list_head, and the one entry of the list: their addresses are all that counts.
    robust: [AtomicU64; 4],
    /// Hashes of the sentences that were said.
    said: [AtomicU64; SENTENCES],
}

// One page is mapped for it.
const _: () = assert!(size_of::<Board>() <= PAGE as usize);

/// The page.
#[derive(Clone, Copy)]
pub(crate) struct Rendezvous {
    page: &'static Board,
}

impl Rendezvous {
    /// Maps the page at `at`, which is free here and in every program of the tree.
    ///
    /// # Errors
    /// There is no memory there.
    pub(crate) fn map(at: u64) -> Result<Self> {
        let len = NonZeroUsize::new(PAGE as usize).unwrap_or(NonZeroUsize::MIN);
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
        let mapped = unsafe { mmap_anonymous(NonZeroUsize::new(at as usize), len, prot, flags) };
        let mapped = mapped.because(|| format!("cannot map a page at {at:#x}"))?;
        // SAFETY: the page is zeros, which are a Board, and is never unmapped by us.
        let page = unsafe { mapped.cast::<Board>().as_ref() };
        Ok(Self { page })
    }

    /// Has all others know when this process is gone, which restarts so many that live.
    pub(crate) fn watch_over(&self, living: u32) {
        const HEAD: usize = 3 * size_of::<u64>();
        let page = self.page;
        page.living.store(living, Ordering::Release);
        let [next, offset, _, entry] = &page.robust;
        let address = |word: &AtomicU64| word.as_ptr().expose_provenance() as u64;
        let own = page.restarter.as_ptr().expose_provenance() as u64;
        next.store(address(entry), Ordering::Release);
        offset.store(own.wrapping_sub(address(entry)), Ordering::Release);
        entry.store(address(next), Ordering::Release);
        page.restarter.store(Tid::own().word(), Ordering::Release);
        // SAFETY: the list lies in a page that is never unmapped here, and the C library has none.
        unsafe { libc::syscall(libc::SYS_set_robust_list, address(next), HEAD) };
    }

    /// Whether the restarter is gone.
    fn is_abandoned(&self) -> bool {
        self.page.restarter.load(Ordering::Acquire) & OWNER_DIED != 0
    }

    /// The address of the word that tells so, for an order of the restorer.
    pub(crate) fn restarter(&self) -> u64 {
        self.page.restarter.as_ptr().expose_provenance() as u64
    }

    /// The address of the word by which the restorers tell that one has failed.
    pub(crate) fn failure(&self) -> u64 {
        self.page.failed.as_ptr().expose_provenance() as u64
    }

    /// Whether this restart comes to nothing: somebody has failed, or the restarter is gone.
    pub(crate) fn is_vain(&self) -> bool {
        self.has_failed() || self.is_abandoned()
    }

    /// Whether no process may end yet that belongs to the restart.
    pub(super) fn needs_all(&self) -> bool {
        !self.is_over(Stage::Planned, self.page.living.load(Ordering::Acquire))
    }

    /// Its address.
    pub(crate) fn address(&self) -> u64 {
        std::ptr::from_ref(self.page).expose_provenance() as u64
    }

    /// The address of the word that counts who has come to a stage, for an order of the restorer.
    pub(crate) fn word(&self, stage: Stage) -> u64 {
        std::ptr::from_ref(&self.page.arrived[stage as usize]).expose_provenance() as u64
    }

    /// Says that this process has failed: all others give up, and the first says why. Who sees it may be about to end
    /// all of them, so it is not seen before that is said; one that is killed while it speaks is spoken for.
    pub(crate) fn fail(&self, say: impl FnOnce()) {
        let failed = &self.page.failed;
        let first = failed.compare_exchange(0, SPEAKS, Ordering::AcqRel, Ordering::Acquire);
        if first == Err(REPORTS) {
            // Seen by its end, before which it has spoken.
            failed.store(FAILED, Ordering::Release);
            return self.wake_all();
        }
        if first.is_err() {
            for _ in 0..LONGEST_SPEECH / LOOK {
                if self.is_vain() {
                    return;
                }
                wait(failed, SPEAKS);
            }
        }
        say();
        failed.store(FAILED, Ordering::Release);
        self.wake_all();
    }

    /// Whether any process has failed.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.page.failed.load(Ordering::Acquire), FAILED | TAKEN)
    }

    /// Has all give up without a word, since an id is taken, unless somebody else has failed before.
    pub(super) fn give_way(&self) {
        let failed = &self.page.failed;
        let _ = failed.compare_exchange(0, TAKEN, Ordering::AcqRel, Ordering::Acquire);
        self.wake_all();
    }

    /// Whether all have given up for an id that is taken.
    pub(crate) fn has_given_way(&self) -> bool {
        self.page.failed.load(Ordering::Acquire) == TAKEN
    }

    /// Is as if nobody had been here, when they are gone.
    pub(crate) fn begin_again(&self) {
        for word in self.page.arrived.iter().chain([&self.page.failed, &self.page.init]) {
            word.store(0, Ordering::Release);
        }
    }

    fn wake_all(&self) {
        self.page.arrived.iter().chain([&self.page.failed, &self.page.init]).for_each(wake);
    }

    /// Whether nobody has said a sentence yet; it counts as said then.
    pub(crate) fn is_news(&self, sentence: &str) -> bool {
        let new = hash(sentence.as_bytes()) | 1;
        let mut slots = self.page.said.iter();
        let known = slots.find_map(|slot| {
            match slot.compare_exchange(0, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => Some(false),
                Err(old) => (old == new).then_some(true),
            }
        });
        known != Some(true)
    }

    /// Whether `all` have come to a stage.
    pub(crate) fn is_over(&self, stage: Stage, all: u32) -> bool {
        self.page.arrived[stage as usize].load(Ordering::Acquire) >= all
    }

    /// Comes to a stage and waits there for `all`; `lives` says now and then whether those that this process can see
    /// still live. The restarter is always seen.
    ///
    /// # Errors
    /// Another process has failed, or is gone.
    pub(crate) fn meet(&self, stage: Stage, all: u32, lives: impl FnMut() -> bool) -> Result<()> {
        let word = &self.page.arrived[stage as usize];
        if word.fetch_add(1, Ordering::AcqRel).saturating_add(1) >= all {
            wake(word);
        }
        self.watch(stage, all, lives)
    }

    /// Waits as [`Rendezvous::meet`] does, without being one of them.
    pub(crate) fn watch(
        &self,
        stage: Stage,
        all: u32,
        mut lives: impl FnMut() -> bool,
    ) -> Result<()> {
        let word = &self.page.arrived[stage as usize];
        loop {
            let here = word.load(Ordering::Acquire);
            if here >= all {
                return Ok(());
            }
            if self.has_failed() {
                return Err(Error::new("another process of the tree could not be restarted"));
            }
            if (self.is_abandoned() || !lives()) && !self.is_over(stage, all) {
                // Who fails says so before it ends; for one that was killed whoever finds it speaks.
                return Err(ended());
            }
            wait(word, here);
        }
    }

    /// Waits until `all` are made, and with them the groups whose leaders are gone: no id is wanted any more.
    ///
    /// # Errors
    /// As of [`Rendezvous::meet`].
    pub(crate) fn watch_births(&self, all: u32, mut lives: impl FnMut() -> bool) -> Result<()> {
        self.watch(Stage::Made, all, &mut lives)?;
        self.watch(Stage::Revived, all, lives)
    }

    /// Waits until nobody else has the turn, or who has it is gone; false if that has become vain.
    pub(super) fn take_turn(&self, is_vain: impl Fn() -> bool) -> bool {
        let own = std::process::id();
        while let Err(other) =
            self.page.turn.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire)
        {
            let process = nix::unistd::Pid::from_raw(other.cast_signed());
            if kill(process, None) == Err(Errno::ESRCH) {
                let _ =
                    self.page.turn.compare_exchange(other, 0, Ordering::AcqRel, Ordering::Acquire);
            }
            if is_vain() {
                return false;
            }
            wait(&self.page.turn, other);
        }
        true
    }

    /// Lets the next have it.
    pub(super) fn give_turn(&self) {
        self.page.turn.store(0, Ordering::Release);
        wake(&self.page.turn);
    }

    /// Tells what init has to say, or what it is told.
    pub(crate) fn tell_init(&self, word: u32) {
        self.page.init.store(word, Ordering::Release);
        wake(&self.page.init);
    }

    /// Waits until the word about init is another than `known`; `lives` as above.
    ///
    /// # Errors
    /// It never will be.
    pub(crate) fn hear_init(&self, known: u32, mut lives: impl FnMut() -> bool) -> Result<u32> {
        loop {
            match self.page.init.load(Ordering::Acquire) {
                word if word != known => return Ok(word),
                _ if self.is_abandoned() || !lives() => {
                    return Err(Error::new("the first process of the namespace has ended"));
                }
                word => wait(&self.page.init, word),
            }
        }
    }
}

/// A process is gone that did not fail by itself.
pub(crate) fn ended() -> Error {
    Error::new("a process of the tree was ended while it was restarted")
        .hint("somebody has killed it, or the kernel, for want of memory")
}

/// Wakes all who wait for a word, in whatever process.
fn wake(word: &AtomicU32) {
    // SAFETY: the kernel only looks at the address.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Sleeps while a word is `value`, for [`LOOK`] at most.
fn wait(word: &AtomicU32, value: u32) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: LOOK };
    let time: *const libc::timespec = &time;
    // SAFETY: the kernel reads the word and the time, which live until it returns.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, time) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_meet_and_a_failure_lets_nobody_wait() {
        let page = Rendezvous::map(0x3000_0000_0000).unwrap();
        std::thread::scope(|scope| {
            let all = (0..3).map(|_| scope.spawn(|| page.meet(Stage::Made, 3, || true)));
            let all: Vec<_> = all.collect();
            assert!(all.into_iter().all(|one| one.join().unwrap().is_ok()));
        });
        assert!(page.is_over(Stage::Made, 3));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| page.meet(Stage::Joined, 2, || true));
            page.fail(|| ());
            assert!(waits.join().unwrap().is_err());
        });
        assert!(page.meet(Stage::Planned, 2, || true).is_err());
        assert!(page.is_news("a") && page.is_news("b") && !page.is_news("a"));
        page.begin_again();
        page.give_way();
        page.fail(|| panic!("it was said"));
        assert!(page.has_given_way() && page.meet(Stage::Made, 1, || true).is_ok());
    }
}
