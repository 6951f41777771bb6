// SPDX-License-Identifier: LGPL-2.1-only
//! The ids of CPU clocks that a program keeps (clock_getcpuclockid(3), pthread_getcpuclockid(3)): they are made of the id
//! of a process or thread, so after a restart with another id they are of nobody, or of a stranger.
//!
//! They are found where a program asks for such ids, as words with the very values, and named. They are not rewritten: in
//! arrays of numbers the same values mean something else. (Of the ids of processes below 32768 a third is met by chance in
//! 50 MiB of python's integers, nearly all in R's; of those above one in ten thousand.)

use crate::proc::Pid;
use crate::resource::Target;
use ckpt_abi::image::Thread;

/// Below this many ids are met by chance.
const CROWDED: Pid = Pid::new(32768);
/// Functions that tell the id of a CPU clock.
const FUNCTIONS: [&str; 2] = ["clock_getcpuclockid", "pthread_getcpuclockid"];

/// The id of a CPU clock: its kind in the lowest bits, the complement of an id above (include/linux/posix-timers.h).
pub(crate) const KIND: i32 = 7;
pub(crate) const OF_THREAD: i32 = 4;
/// CPUCLOCK_SCHED, of which CLOCK_PROCESS_CPUTIME_ID and CLOCK_THREAD_CPUTIME_ID are short forms.
pub(crate) const SCHED: i32 = 2;

/// The clock of this kind of a process or thread; 0 is the caller's.
pub(crate) fn id_of(id: i32, kind: i32) -> i32 {
    !id << 3 | kind
}

/// What is said where such an id was found.
pub(crate) const LOSS: &str = "the ids of CPU clocks that it keeps (clock_getcpuclockid(3)): they are made of its process \
     and thread ids, and hold only if it restarts with --ids keep";

/// Whether a program may keep such ids. Its libraries are not asked: they import such functions for all who use them.
/// A static program does not tell.
pub(crate) fn may_be_kept(target: &Target<'_>) -> bool {
    match target.loaded.first() {
        Some(executable) => executable.names(target.memory, &FUNCTIONS),
        None => target.frozen.pid >= CROWDED,
    }
}

/// The search for such ids.
pub(crate) struct Search {
    ids: Vec<i32>,
}

impl Search {
    /// For those of a process with these threads, the main one first.
    pub(crate) fn new(threads: &[Thread]) -> Self {
        let tids = threads.iter().map(|thread| thread.tid.cast_signed());
        let process = threads.first().map(|main| id_of(main.tid.cast_signed(), SCHED));
        Self { ids: tids.map(|tid| id_of(tid, OF_THREAD | SCHED)).chain(process).collect() }
    }

    /// Whether one is among these words of memory.
    pub(crate) fn is_in(&self, bytes: &[u8]) -> bool {
        let (Some(first), Some(last)) = (self.ids.iter().min(), self.ids.iter().max()) else {
            return false;
        };
        let words = bytes.as_chunks::<4>().0.iter().map(|word| i32::from_le_bytes(*word));
        words.into_iter().any(|word| (*first..=*last).contains(&word) && self.ids.contains(&word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn ids_are_found_in_words() {
        let threads = [40_000, 40_007].map(|tid| Thread { tid, ..Thread::new_zeroed() });
        let search = Search::new(&threads);
        let bytes = |words: [i32; 3]| words.map(i32::to_le_bytes).concat();
        assert!(search.is_in(&bytes([0, !40_000 << 3 | 2, 5])));
        assert!(search.is_in(&bytes([7, 7, !40_000 << 3 | 6])));
        assert!(search.is_in(&bytes([!40_007 << 3 | 6, 0, 0])));
        assert!(!search.is_in(&bytes([!40_007 << 3 | 2, 40_000, !40_003 << 3 | 6])));
        assert!(!Search::new(&[]).is_in(&bytes([0, 1, 2])));
    }
}
