// SPDX-License-Identifier: LGPL-2.1-only
//! Notes about the waits that a stop has interrupted.

use super::freeze::Frozen;
use super::memory::Memory;
use super::{interrupted, waits};
use crate::error::Result;
use std::cmp::Ordering;
use zerocopy::IntoBytes;

impl Frozen {
    /// Works out the waits that the stops have interrupted and leaves notes about them in the
    /// payload's region, for the image and for the next dump.
    pub(super) fn note_waits(&mut self, memory: &Memory, region: u64) -> Result<()> {
        self.shifts = Some(self.process.shifts());
        let skew = self.skew();
        let notes = waits::notes(memory, region, skew);
        let known = waits::by_thread(&notes);
        let mut found = Vec::new();
        for (index, thread) in self.threads.iter_mut().enumerate() {
            thread.makes_the_rest(self.pid, memory, region)?;
            if interrupted::call_in_progress(&thread.regs).is_none() {
                continue;
            }
            if thread.waits_on_a_socket(self.pid, memory, region)? {
                continue;
            }
            thread.stay_suspended(memory, region)?;
            let known = waits::of_thread(&known, thread.tid);
            let wait = waits::interrupted(thread.tid, &thread.regs, thread.since, memory, known);
            found.extend(wait.map(|wait| (index, (thread.regs, wait))));
        }
        // No slot is written before all are read: a time-out may lie in one, also of a thread that goes on.
        let (threads, found): (Vec<usize>, Vec<_>) = found.into_iter().unzip();
        let goes_on = |tid| self.one && self.threads.iter().all(|thread| thread.tid.word() != tid);
        let kept: Vec<usize> = waits::of_threads(&notes, goes_on);
        let slots = waits::slots(region, &found, &kept);
        let used: Vec<usize> = slots.iter().flatten().chain(&kept).copied().collect();
        waits::count(memory, region, notes.len(), &used, Ordering::Greater)?;
        for ((index, (_, wait)), slot) in threads.into_iter().zip(found).zip(&slots) {
            let slot = slot.map(|slot| waits::slot_address(region, slot));
            self.threads[index].wait = slot.map(|slot| (wait, slot));
        }
        self.write_notes(memory)?;
        waits::forget(memory, region, &notes, &used)?;
        waits::count(memory, region, notes.len(), &used, Ordering::Less)
    }

    /// The time left once more, now that it is about to begin.
    pub(super) fn renew_notes(&self) {
        if self.threads.iter().all(|t| t.wait.is_none()) {
            return;
        }
        let _ = Memory::open(&self.process).and_then(|memory| self.write_notes(&memory));
    }

    fn write_notes(&self, memory: &Memory) -> Result<()> {
        let noted = self.threads.iter().filter_map(|thread| {
            let (wait, slot) = thread.wait.as_ref()?;
            Some((*slot, wait.slot(thread.tid, thread.regs.rsp, self.skew())))
        });
        let noted: Vec<_> = noted.collect();
        let pieces: Vec<_> = noted.iter().map(|(slot, note)| (*slot, note.as_bytes())).collect();
        memory.write_each(&pieces)
    }
}
