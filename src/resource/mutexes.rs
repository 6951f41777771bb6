//! The locks that name their owner, and are held when the checkpoint is taken.
//!
//! A robust, recursive, error-checking or priority-inheriting mutex and glibc's reader-writer lock hold the
//! thread id of who locked them; after a restart with another id its owner could not unlock them, and everybody
//! would wait for good. Robust mutexes, and all such mutexes of musl, are in a list of their owner. No list leads
//! to the others, so they are found by their shape in the pages that the image gets: a word that is a thread's
//! id, between what glibc writes around it.

use crate::ptrace::memory::Memory;
use ckpt_abi::image::{Owner, Thread, thread_flag};

/// struct __pthread_mutex_s (sysdeps/x86/nptl/bits/struct_mutex.h): lock, count, owner, users, kind, spins and
/// elision, list.
type Mutex = [u32; 10];
/// struct __pthread_rwlock_arch_t (sysdeps/x86/nptl/bits/struct_rwlock.h) since glibc 2.25: readers, writers,
/// two futexes, padding, the writer, shared, padding, flags.
type ReadWrite = [u32; 13];
/// Where the owner stands in them.
const MUTEX_OWNER: u64 = 8;
const WRITER: u64 = 24;

/// Bits of a mutex's kind (nptl/pthreadP.h).
const RECURSIVE: u32 = 1;
const ERROR_CHECKING: u32 = 2;
const TYPE: u32 = 3;
const INHERITS_PRIORITY: u32 = 32;
const SHARED: u32 = 128;
/// Whether lock elision is wanted (PTHREAD_MUTEX_ELISION_NP, PTHREAD_MUTEX_NO_ELISION_NP).
const ELISION: u32 = 256 | 512;
/// The id in a lock word that the kernel shares (include/uapi/linux/futex.h, FUTEX_TID_MASK).
const ID: u32 = 0x3fff_ffff;
/// What the lowest bits of `readers` are while a writer has the lock: PTHREAD_RWLOCK_WRPHASE and
/// PTHREAD_RWLOCK_WRLOCKED.
const WRITING: u32 = 3;
const READER_SHIFT: u32 = 3;

/// Offset of the futex from its entry in musl's list: `_m_lock` from `_m_next` (src/internal/pthread_impl.h).
const MUSL_FUTEX: i64 = -28;
/// Where in musl's struct pthread the head of that list is looked for: behind the thread's id. Its place differs
/// from version to version; it is the word from which the list leads back to itself.
const MUSL_LIST: std::ops::Range<u64> = 0x38..0x180;
/// ROBUST_LIST_LIMIT of include/linux/futex.h: a list may be damaged.
const LIMIT: usize = 2048;

/// The owners' words of the mutexes in a thread's list: the futex, whose lower bits are the owner's id
/// (get_robust_list(2), Documentation/locking/robust-futexes.rst), and glibc's own copy of it two words further.
/// `head` is what the kernel knows: nothing in musl, until a mutex is shared between processes.
pub fn listed(memory: &Memory, head: u64, fs_base: u64, thread: &Thread) -> Vec<Owner> {
    // struct robust_list_head: first entry, offset of the futex from its entry, pending entry.
    let known = memory.get::<[u64; 3]>(head).ok().filter(|_| head != 0);
    let (mut entries, offset) = if let Some([first, offset, pending]) = known {
        let mut entries = entries(memory, first, head).0;
        entries.push(pending);
        (entries, offset.cast_signed())
    } else if thread.flags & thread_flag::MUSL != 0 {
        (musl(memory, fs_base), MUSL_FUTEX)
    } else {
        return Vec::new();
    };
    entries.retain(|entry| *entry != 0);
    let mut owners = Vec::new();
    for entry in entries {
        let futex = entry.wrapping_add_signed(offset);
        let mut holds = |address: u64, mask: u32| {
            let held = memory.get::<u32>(address).is_ok_and(|word| word & mask == thread.tid);
            if held {
                owners.push(Owner { tid: thread.tid, reserved: 0, address });
            }
            held
        };
        if holds(futex, ID) {
            holds(futex.wrapping_add(MUTEX_OWNER), u32::MAX);
        }
    }
    owners
}

/// The entries of a list, and whether it led back to its head.
fn entries(memory: &Memory, first: u64, head: u64) -> (Vec<u64>, bool) {
    const PRIORITY_INHERITING: u64 = 1;
    let (mut entries, mut entry) = (Vec::new(), first);
    while entries.len() < LIMIT {
        let address = entry & !PRIORITY_INHERITING;
        if address == 0 || address == head {
            return (entries, address == head);
        }
        entries.push(address);
        entry = memory.get(address).unwrap_or(0);
    }
    (entries, false)
}

fn musl(memory: &Memory, fs_base: u64) -> Vec<u64> {
    let list = MUSL_LIST.step_by(8).find_map(|at| {
        let (entries, whole) = entries(memory, memory.get(fs_base + at).ok()?, fs_base + at);
        whole.then_some(entries)
    });
    list.unwrap_or_default()
}

/// The search for the locks that some threads hold.
#[derive(Default)]
pub struct Search {
    ids: Vec<u32>,
}

impl Search {
    /// For the locks of these threads.
    pub fn new(threads: &[Thread]) -> Self {
        Self { ids: threads.iter().map(|thread| thread.tid).collect() }
    }

    /// Adds the owners' words in memory that was read from `addr`, a multiple of 8. A lock may begin
    /// before or end behind it.
    pub fn look(&self, memory: &Memory, addr: u64, bytes: &[u8], owners: &mut Vec<Owner>) {
        let (Some(first), Some(last)) = (self.ids.iter().min(), self.ids.iter().max()) else {
            return;
        };
        let span = last - first;
        // An owner is the first half of an aligned word: one comparison tells most words from it.
        for (word, at) in bytes.as_chunks::<8>().0.iter().zip((addr..).step_by(8)) {
            let id = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            if id.wrapping_sub(*first) <= span && self.ids.contains(&id) {
                self.suspect(memory, at, id, owners);
            }
        }
    }

    fn suspect(&self, memory: &Memory, at: u64, tid: u32, owners: &mut Vec<Owner>) {
        let mut found = |address| owners.push(Owner { tid, reserved: 0, address });
        let most = self.ids.len() as u32;
        let start = at.saturating_sub(MUTEX_OWNER);
        if let Some(word_too) = memory.get(start).ok().and_then(|m| mutex(&m, tid)) {
            found(at);
            if word_too {
                found(start);
            }
        } else if memory.get(at.saturating_sub(WRITER)).is_ok_and(|l| read_write(&l, tid, most)) {
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
    let held = if inherits { lock & ID == tid } else { matches!(lock, 1 | 2) };
    let counted = match kind & TYPE {
        RECURSIVE => count != 0,
        ERROR_CHECKING => count == 0,
        _ => inherits,
    };
    let known = kind & !(TYPE | INHERITS_PRIORITY | SHARED | ELISION) == 0;
    (shape && held && counted && known).then_some(inherits)
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
    fn a_writer_is_told_from_readers() {
        let held = [3, 0, 1, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0];
        assert!(read_write(&held, 77, 1));
        let mut readers = held;
        readers[0] = 8;
        assert!(!read_write(&readers, 77, 1));
    }
}
