// SPDX-License-Identifier: LGPL-2.1-only
//! glibc: the cached id of a thread, and the locks that name their owner.
//!
//! A robust, recursive, error-checking or priority-inheriting mutex and the reader-writer lock hold the thread
//! id of who locked them; after a restart with another id its owner could not unlock them, and everybody
//! would wait for good. Robust mutexes, and all such mutexes of musl, are in a list of their owner
//! ([`super::listed`]). No list leads to the others, so they are found by their shape in the pages that the
//! image gets: a word that is a thread's id, between what glibc writes around it.

use super::{among, holding, sorted};
use crate::proc::Process;
use crate::proc::{Pid, Tid};
use crate::ptrace::memory::Memory;
use crate::ptrace::regs::Regs;
use crate::resource::Target;
use ckpt_abi::image::{Owner, Thread, thread_flag};
use ckpt_loops::pages::find_half;
use nix::libc;
use zerocopy::{FromBytes, IntoBytes};

/// struct __pthread_mutex_s (sysdeps/x86/nptl/bits/struct_mutex.h): lock, count, owner, users, kind, spins and
/// elision, list.
pub(crate) type Mutex = [u32; 10];
/// struct __pthread_rwlock_arch_t (sysdeps/x86/nptl/bits/struct_rwlock.h) since glibc 2.25: readers, writers,
/// two futexes, padding, the writer, shared, padding, flags.
pub(crate) type ReadWrite = [u32; 13];
/// Where the owner stands in them.
pub(crate) const OWNER: u64 = 8;
/// How far behind a thread's id struct pthread has the process's, before glibc 2.25.
pub(super) const PID_BEHIND: u64 = 4;
const WRITER: u64 = 24;

/// Bits of a mutex's kind (nptl/pthreadP.h).
const RECURSIVE: u32 = 1;
const ERROR_CHECKING: u32 = 2;
const TYPE: u32 = 3;
const ROBUST: u32 = 16;
const INHERITS_PRIORITY: u32 = 32;
/// The lock word has the priority ceiling in its upper bits.
const PROTECTS_PRIORITY: u32 = 64;
const CEILING_SHIFT: u32 = 19;
const SHARED: u32 = 128;
/// Whether lock elision is wanted (PTHREAD_MUTEX_ELISION_NP, PTHREAD_MUTEX_NO_ELISION_NP).
const ELISION: u32 = 256 | 512;
/// The id in a lock word that the kernel shares (include/uapi/linux/futex.h, FUTEX_TID_MASK).
pub(crate) const ID: u32 = 0x3fff_ffff;
/// What the lowest bits of `readers` are while a writer has the lock: PTHREAD_RWLOCK_WRPHASE and
/// PTHREAD_RWLOCK_WRLOCKED.
const WRITING: u32 = 3;
const READER_SHIFT: u32 = 3;

/// [`thread_flag::TID_CACHED`] if struct pthread has the id of this thread, at the tid address, and
/// [`thread_flag::PID_CACHED`] if the process's stands behind it, as before glibc 2.25.
pub(crate) fn cached(memory: &Memory, pid: Pid, thread: &Thread) -> u32 {
    let has = |addr, id| memory.get::<u32>(addr).is_ok_and(|word| word == id);
    if thread.tid_address == 0 || !has(thread.tid_address, thread.tid) {
        return 0;
    }
    match has(thread.tid_address + PID_BEHIND, pid.word()) {
        true => thread_flag::TID_CACHED | thread_flag::PID_CACHED,
        false => thread_flag::TID_CACHED,
    }
}

/// The word in which glibc keeps the id of the thread that runs the functions of SIGEV_THREAD timers
/// (sysdeps/unix/sysv/linux/timer_routines.c, __timer_helper_tid), for further timers; None if the thread is not
/// that, or nothing has its id. Beside the word stands a pthread_once_t that is done. The thread may be anywhere: it waits
/// for a signal, or is just making a thread for one; but it always blocks that signal.
///
/// # Errors
/// What is lost, as a part of a sentence: several words could be it.
pub(crate) fn timer_helper(
    target: &Target<'_>,
    regs: &Regs,
    mask: u64,
    tid: u32,
) -> Result<Option<u64>, &'static str> {
    const DONE: u32 = 2;
    const MOST: u64 = 16 << 20;
    let blocks = mask >> (SIGTIMER - 1) & 1 != 0;
    if !blocks || !(waits_for_timers(target.memory, regs) || is_woken(target.frozen.pid, tid)) {
        return Ok(None);
    }
    let mut all = Vec::new();
    for range in holding::library_data(target.loaded) {
        let start = range.start.next_multiple_of(4);
        let mut words = vec![0u32; range.end.saturating_sub(start).min(MOST) as usize / 4];
        let Ok(len) = target.memory.read_some(start, words.as_mut_bytes()) else { continue };
        words.truncate(len / 4);
        let is_once = |at: usize| words.get(at) == Some(&DONE);
        let found = words.iter().enumerate().filter(|(_, word)| **word == tid);
        all.extend(found.map(|(at, _)| {
            (start + 4 * at as u64, is_once(at + 1) || at.checked_sub(1).is_some_and(is_once))
        }));
    }
    let beside: Vec<u64> = all.iter().filter(|(_, once)| *once).map(|(at, _)| *at).collect();
    match (beside.as_slice(), all.as_slice()) {
        ([word], _) | ([], [(word, _)]) => Ok(Some(*word)),
        (_, []) => Ok(None),
        _ => Err(
            "the thread for further timers with SIGEV_THREAD (timer_create(2) may fail after a restart)",
        ),
    }
}

/// The signal by which glibc's timers wake their thread.
const SIGTIMER: u32 = 32;

/// Whether a timer wakes the thread by that signal.
fn is_woken(pid: Pid, tid: u32) -> bool {
    let timers = Process::glimpse(pid).and_then(|it| it.posix_timers()).unwrap_or_default();
    timers.iter().any(|timer| {
        timer.notify & libc::SIGEV_THREAD_ID != 0
            && (timer.signal, timer.target) == (SIGTIMER.cast_signed(), Tid::of_word(tid))
    })
}

/// Whether a thread waits for that signal, and for no other.
fn waits_for_timers(memory: &Memory, regs: &Regs) -> bool {
    // Or one that begins it anew by itself, after EINTR.
    let answer = regs.rax.cast_signed();
    let waits = answer == libc::SYS_rt_sigtimedwait || answer == -i64::from(libc::EINTR);
    waits && memory.get::<u64>(regs.rdi).is_ok_and(|set| set == 1 << (SIGTIMER - 1))
}

/// Memory of which some is read already.
struct Around<'a> {
    memory: &'a Memory,
    addr: u64,
    bytes: &'a [u8],
}

impl Around<'_> {
    fn get<T: FromBytes + IntoBytes>(&self, at: u64) -> Option<T> {
        let inside = at.checked_sub(self.addr).and_then(|from| self.bytes.get(from as usize..));
        match inside.and_then(|bytes| T::read_from_prefix(bytes).ok()) {
            Some((value, _)) => Some(value),
            None => self.memory.get(at).ok(),
        }
    }
}

/// The search for the locks that some threads hold.
#[derive(Default)]
pub(crate) struct Search {
    ids: Vec<u32>,
}

impl Search {
    /// For the locks of these threads.
    pub(crate) fn new(threads: &[Thread]) -> Self {
        Self { ids: sorted(threads.iter().map(|thread| thread.tid)) }
    }

    /// Adds the owners' words in memory that was read from `addr`, a multiple of 8. A lock may begin
    /// before or end behind it.
    pub(crate) fn look(&self, memory: &Memory, addr: u64, bytes: &[u8], owners: &mut Vec<Owner>) {
        let (Some(first), Some(last)) = (self.ids.first(), self.ids.last()) else { return };
        let span = last - first;
        // An owner is the first half of an aligned word: one comparison tells most words from it.
        let mut at = 0;
        while let Some((end, id)) = find_half(bytes, at, *first, span) {
            if among(&self.ids, id) {
                self.suspect(&Around { memory, addr, bytes }, addr + end as u64 - 8, id, owners);
            }
            at = end;
        }
    }

    fn suspect(&self, memory: &Around<'_>, at: u64, tid: u32, owners: &mut Vec<Owner>) {
        let mut found = |address| owners.push(Owner { tid, reserved: 0, address });
        let most = self.ids.len() as u32;
        let start = at.saturating_sub(OWNER);
        if let Some(word_too) = memory.get(start).and_then(|m| mutex(&m, tid)) {
            found(at);
            if word_too {
                found(start);
            }
        } else if memory.get(at.saturating_sub(WRITER)).is_some_and(|l| read_write(&l, tid, most)) {
            found(at);
        }
    }
}

/// Whether this is a mutex that `tid` holds and whose owner matters; and then, whether the lock word holds the
/// id, too.
fn mutex(mutex: &Mutex, tid: u32) -> Option<bool> {
    let [lock, count, owner, users, kind, spins, list @ ..] = *mutex;
    let shape = owner == tid && users != 0 && spins == 0 && list == [0; 4];
    let inherits = kind & INHERITS_PRIORITY != 0;
    let held = if inherits { lock & ID == tid } else { is_taken(lock, kind) };
    let counted = match kind & TYPE {
        RECURSIVE => count != 0,
        // Only where a priority is looked at the mutex is counted, too (__pthread_mutex_lock_full).
        ERROR_CHECKING => {
            count == 0 || count == 1 && kind & (INHERITS_PRIORITY | PROTECTS_PRIORITY) != 0
        }
        _ => inherits,
    };
    let known = kind & !(TYPE | INHERITS_PRIORITY | PROTECTS_PRIORITY | SHARED | ELISION) == 0;
    (shape && held && counted && known).then_some(inherits)
}

/// Whether a lock word of 0 (free), 1 (taken) and 2 (taken, and somebody waits) is not 0.
fn is_taken(lock: u32, kind: u32) -> bool {
    let ceiling = kind & PROTECTS_PRIORITY != 0;
    matches!(if ceiling { lock & ((1 << CEILING_SHIFT) - 1) } else { lock }, 1 | 2)
}

/// What a thread that is about to take a mutex, or to give it back, does with its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It keeps the id that it has read before, and writes that when it has the mutex.
    Kept,
    /// It reads the id when it has the mutex, if it waits without a time limit.
    ReadAgain,
}

/// What a thread of `ids` does that takes this mutex, free or held; None if it is none that names its owner.
/// `pthread_mutex_timedlock` of every kind, and whatever takes a robust, priority-inheriting or
/// priority-protecting mutex, keeps the id (nptl/pthread_mutex_lock.c, pthread_mutex_timedlock.c).
pub(crate) fn taken_by(mutex: &Mutex, ids: &[u32]) -> Option<Use> {
    let [lock, _, owner, _, kind, spins, ..] = *mutex;
    let whole = ROBUST | INHERITS_PRIORITY | PROTECTS_PRIORITY;
    let known = kind & !(TYPE | whole | SHARED | ELISION) == 0 && spins == 0;
    let somebody = owner == 0 || among(ids, owner) || owner >> 30 != 0;
    let plain = lock == 0 || is_taken(lock, kind) || among(ids, lock & ID);
    match kind & whole {
        _ if !known || !somebody || !plain => None,
        0 => matches!(kind & TYPE, RECURSIVE | ERROR_CHECKING).then_some(Use::ReadAgain),
        _ => Some(Use::Kept),
    }
}

/// Whether this is a reader-writer lock that a writer has taken or is just taking.
pub(crate) fn is_written(lock: &ReadWrite, ids: &[u32]) -> bool {
    let writer = lock[WRITER as usize / 4];
    let mut settled = *lock;
    settled[WRITER as usize / 4] = ids.first().copied().unwrap_or(0);
    let known = writer == 0 || among(ids, writer);
    known && read_write(&settled, settled[WRITER as usize / 4], ids.len() as u32)
}

fn read_write(lock: &ReadWrite, tid: u32, threads: u32) -> bool {
    let [readers, writers, phase, waiting, pad3, pad4, writer, shared, rest @ ..] = *lock;
    let [elision, pad1, pad2, pad2_high, flags] = rest;
    let zeros = [pad3, pad4, elision, pad1, pad2, pad2_high] == [0; 6];
    let futexes = matches!(phase, 1 | 3) && waiting <= 3;
    let held = readers & WRITING == WRITING && readers >> READER_SHIFT <= threads;
    writer == tid && zeros && futexes && held && writers <= threads && shared <= 1 && flags <= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutexes_that_name_their_owner_are_known() {
        assert_eq!(mutex(&[2, 3, 77, 1, RECURSIVE, 0, 0, 0, 0, 0], 77), Some(false));
        assert_eq!(mutex(&[1, 0, 77, 1, ERROR_CHECKING | SHARED, 0, 0, 0, 0, 0], 77), Some(false));
        let waiters = 0x8000_0000;
        assert_eq!(mutex(&[77 | waiters, 1, 77, 1, 32 | 512, 0, 0, 0, 0, 0], 77), Some(true));
        assert_eq!(mutex(&[77 | waiters, 1, 77, 1, 32 | 2, 0, 0, 0, 0, 0], 77), Some(true));
    }

    #[test]
    fn other_words_are_not() {
        for other in [
            [1, 0, 77, 1, 0, 0, 0, 0, 0, 0],
            [0, 1, 77, 1, RECURSIVE, 0, 0, 0, 0, 0],
            [1, 1, 77, 1, RECURSIVE, 0, 5, 0, 0, 0],
            [1, 1, 77, 1, 0x401, 0, 0, 0, 0, 0],
            [78, 0, 77, 1, INHERITS_PRIORITY, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(mutex(&other, 77), None, "{other:?}");
        }
    }

    #[test]
    fn what_is_read_is_not_read_again() {
        let memory = Memory::open(&Process::own().unwrap()).unwrap();
        let words = [1u32, 2, 3, 4];
        let addr = std::ptr::from_ref(&words).addr() as u64;
        let around = Around { memory: &memory, addr: addr + 4, bytes: [9u32, 8].as_bytes() };
        let get = |at| around.get::<u32>(at);
        assert_eq!([addr, addr + 4, addr + 8, addr + 12].map(get), [1, 9, 8, 4].map(Some));
        assert_eq!((around.get::<[u32; 2]>(addr + 8), get(4)), (Some([3, 4]), None));
        assert_eq!(sorted([7, 5, 6].into_iter()), [5, 6, 7]);
        assert!(among(&[5, 6, 7], 6) && !among(&[5, 7], 6));
    }

    #[test]
    fn a_writer_is_told_from_readers() {
        let held = [3, 0, 1, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0];
        assert!(read_write(&held, 77, 1));
        let mut readers = held;
        readers[0] = 8;
        assert!(!read_write(&readers, 77, 1));
    }
}
