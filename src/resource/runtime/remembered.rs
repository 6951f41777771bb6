// SPDX-License-Identifier: LGPL-2.1-only
//! Whether a program remembers ids of its own: that of its process, of its threads or of their CPU clocks, outside of
//! where a restart corrects them.
//!
//! It is found by the values, in all writable memory that the image gets: as numbers of 32 bits (C, Java, python, node,
//! R), odd ones (Ruby, OCaml) and floating-point ones. Such a value may stand there by chance, the more likely the smaller
//! the id is and the more numbers there are; so nothing is rewritten, and who is taken for one that remembers only has its
//! ids again. Text is not looked at: files with process ids are read by others.

use super::clocks::{KIND, OF_THREAD, SCHED, id_of};
use super::{glibc, holding, musl};
use crate::order;
use crate::resource::threads;
use ckpt_abi::image::{Owner, Thread, thread_flag};
use ckpt_loops::pages::find_word;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Of more threads some id is met by chance: two letters and zeros behind them are such a number, too.
const THREADS: usize = 64;

/// The search for such ids.
pub(crate) struct Search {
    /// Ids, and those of CPU clocks, in order.
    words: Vec<u32>,
    /// The process's id as an odd number, and as the upper half of a floating-point one.
    boxed: [u32; 2],
    pid: u32,
    /// Where ids stand that are corrected.
    corrected: HashSet<u64>,
    /// Where no program keeps any: ckpt's own, and the text of its arguments and environment.
    apart: [Range<u64>; 2],
    found: AtomicBool,
}

impl Search {
    /// For those of a process with these threads, the main one first, which hold some locks; what is `apart` is not
    /// looked at.
    pub(crate) fn new(all: &[Thread], owners: &[Owner], apart: [Range<u64>; 2]) -> Self {
        let pid = all.first().map_or(0, |main| main.tid);
        let of_thread = |tid: u32| id_of(tid.cast_signed(), OF_THREAD | SCHED);
        let tids = || all.iter().take(THREADS).map(|thread| thread.tid);
        let clocks = (0..KIND - OF_THREAD).map(|kind| id_of(pid.cast_signed(), kind));
        let clocks = tids().map(of_thread).chain(clocks).map(i32::cast_unsigned);
        let mut words: Vec<u32> = tids().chain(clocks).collect();
        order::numbers(&mut words);
        Self {
            words,
            boxed: [2 * pid + 1, (f64::from(pid).to_bits() >> 32) as u32],
            pid,
            corrected: all.iter().flat_map(kept).chain(owners.iter().map(|o| o.address)).collect(),
            apart,
            found: AtomicBool::new(false),
        }
    }

    /// Whether one is among these words of memory that were read from `addr`, a multiple of 8, but for the `owners` of locks
    /// in it; false if one was found before.
    pub(crate) fn is_in(&self, addr: u64, bytes: &[u8], owners: &[Owner]) -> bool {
        if self.found.load(Ordering::Relaxed) {
            return false;
        }
        let Some(clocks) = self.words.iter().position(|word| word.cast_signed() < 0) else {
            return false;
        };
        let (ids, clocks) = self.words.split_at(clocks);
        let span =
            |some: &[u32]| some.first().zip(some.last()).map(|(least, most)| [*least, *most]);
        let (Some(ids), Some(clocks)) = (span(ids), span(clocks)) else { return false };
        let [odd, float] = self.boxed;
        let ranges = [ids, clocks, [odd; 2], [float; 2]];
        let mut at = 0;
        while let Some(offset) = find_word(bytes, at, &ranges) {
            if self.is_one(addr + offset as u64, &bytes[offset & !7..], offset % 8, owners) {
                self.found.store(true, Ordering::Relaxed);
                return true;
            }
            at = offset + 4;
        }
        false
    }

    /// Whether the word at an address is one; `around` begins with the 8 bytes in which it is the half at `half`.
    fn is_one(&self, address: u64, around: &[u8], half: usize, owners: &[Owner]) -> bool {
        let Some(whole) = around.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)) else {
            return false;
        };
        let word = (whole >> (8 * half)) as u32;
        let is_corrected =
            || self.corrected.contains(&address) || owners.iter().any(|o| o.address == address);
        if self.apart.iter().any(|range| range.contains(&address)) {
            return false;
        }
        let boxed = [u64::from(self.boxed[0]), f64::from(self.pid).to_bits()];
        match self.words.binary_search(&word) {
            Ok(_) => !is_corrected(),
            Err(_) => boxed.contains(&whole),
        }
    }
}

/// Whether a register of one of these threads, the main one first, has the process's id: it may stand nowhere else.
pub(crate) fn in_registers(all: &[Thread]) -> bool {
    let pid = all.first().map_or(0, |main| main.tid);
    all.iter().any(|one| holding::remembers(&threads::regs(one), one.id_registers, pid))
}

/// Where a thread's C library or Go keeps its id.
fn kept(thread: &Thread) -> Vec<u64> {
    let mut all = Vec::new();
    if thread.flags & thread_flag::TID_CACHED != 0 {
        all.push(thread.tid_address);
    }
    if thread.flags & thread_flag::PID_CACHED != 0 {
        all.push(thread.tid_address + glibc::PID_BEHIND);
    }
    if thread.flags & thread_flag::MUSL != 0 {
        all.push(threads::regs(thread).fs_base + musl::TID);
    }
    all.extend(Some(thread.go_id).filter(|at| *at != 0));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn search() -> Search {
        let threads = [40_000, 40_007].map(|tid| Thread { tid, ..Thread::new_zeroed() });
        let held = Owner { tid: 40_000, reserved: 0, address: 0x1008 };
        Search::new(&threads, &[held], [0x2000..0x3000, 0..0])
    }

    fn is_in(words: [i32; 4]) -> bool {
        search().is_in(0x1000, &words.map(i32::to_le_bytes).concat(), &[])
    }

    #[test]
    fn ids_are_found_in_words() {
        assert!(is_in([0, 40_000, 0, 0]) && is_in([0, 0, 0, 40_007]));
        assert!(!is_in([0, 0, 40_000, 0]) && !is_in([39_999, 0, 40_001, 40_008]));
        let owner = Owner { tid: 40_000, reserved: 0, address: 0x1000 };
        let bytes = 40_000u64.to_le_bytes();
        assert!(!search().is_in(0x1000, &bytes, &[owner]) && !search().is_in(0x2000, &bytes, &[]));
    }

    #[test]
    fn clocks_are_found() {
        assert!(is_in([0, !40_000 << 3 | 2, 0, 0]) && is_in([5, !40_000 << 3, 0, 0]));
        assert!(is_in([!40_007 << 3 | 6, 0, 0, 0]) && is_in([0, 0, 0, !40_000 << 3 | 6]));
        assert!(!is_in([!40_007 << 3 | 2, 7, !40_003 << 3 | 6, !40_000 << 3 | 4]));
    }

    #[test]
    fn boxed_ids_are_found() {
        let as_float = f64::from(40_000).to_bits();
        let halves = [as_float as i32, (as_float >> 32) as i32];
        assert!(is_in([80_001, 0, 0, 0]) && is_in([0, 0, halves[0], halves[1]]));
        assert!(!is_in([80_001, 1, 0, 0]) && !is_in([0, 80_001, 1, halves[1]]));
    }

    #[test]
    fn one_is_enough() {
        let search = search();
        let bytes = 40_000u64.to_le_bytes();
        assert!(search.is_in(0, &bytes, &[]) && !search.is_in(0, &bytes, &[]));
        assert!(!Search::new(&[], &[], [0..0, 0..0]).is_in(0, &[1; 16], &[]));
    }
}
