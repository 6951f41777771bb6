// SPDX-License-Identifier: LGPL-2.1-only
//! What of memory is to be tracked, and comes to be.

use super::{Errno, LARGE, Pagemap, Pages, Process, Rolling, Tracker, is_trackable};
use crate::resource::memory::Area;
use ckpt_abi::image::{VmaKind, VmaRecord, vma_flag};
use std::ops::Range;

/// Mappings that never become one with plain memory, or are ours.
const OTHERS: u64 = vma_flag::HUGETLB | vma_flag::DROPPABLE | vma_flag::REGION;

impl Rolling {
    pub(super) fn wants(&self, area: &Area) -> bool {
        let was = |[start, end]: &[u64; 2]| *start == area.start && *end <= area.end;
        is_trackable(area) && (self.all || self.before.iter().any(was))
    }

    /// Whether this stop has found memory that is to be tracked, and is not.
    pub(in crate::dump) fn has_found(&self) -> bool {
        !self.found.is_empty()
    }

    /// Tracks what this stop has found: while the program stands still, since a part of a mapping would be one of its own.
    /// Until the next stop all of it counts as written to. When its picture is taken: what is tracked may become one with
    /// what is so already.
    pub(in crate::dump) fn track_new(&mut self, has_picture: bool) {
        let mut found = std::mem::take(&mut self.found);
        if !has_picture {
            return;
        }
        self.ask(&mut found, true, Tracker::register);
        self.ask(&mut found, false, Tracker::clear);
        // Marks of before may be left.
        if !found.is_empty() {
            self.lose();
        }
    }

    /// Tracks what is to be and is not, in the stop of a program that is read when it goes on, which is [looked at](Self::look)
    /// behind it.
    pub(in crate::dump) fn track_now(
        &mut self,
        process: &Process,
        (areas, vmas): (&[Area], &[VmaRecord]),
    ) {
        let Ok(pagemap) = Pagemap::of(process) else { return };
        let is_new = |area: &&Area| self.wants(area) && !pagemap.is_tracked(area.start);
        let new = areas.iter().filter(is_new).map(|area| [area.start, area.end]);
        let mut found = new.collect();
        self.add_neighbours(&pagemap, (areas, vmas), &mut found);
        self.ask(&mut found, true, Tracker::register);
        // Some may be left of one that has failed behind its stop.
        self.found.append(&mut found);
    }

    /// Has what the last stop has begun to track count as written to, of a program that goes on: of others it was done in the
    /// stop. What is left is another mapping by now, or none: in what there is of it marks of before may be left.
    pub(super) fn clear_found(&mut self) -> Vec<[u64; 2]> {
        let mut found = std::mem::take(&mut self.found);
        match self.moves {
            true => self.ask(&mut found, false, Tracker::clear),
            false => found.clear(),
        }
        found
    }

    /// Asks the tracker for something about each of some mappings; of them remain those where that `works`, or the others.
    fn ask(
        &mut self,
        found: &mut Vec<[u64; 2]>,
        works: bool,
        what: fn(&Tracker, &Range<u64>) -> nix::Result<()>,
    ) {
        let Some(tracker) = &self.tracker else { return found.clear() };
        let mut is_gone = false;
        found.retain(|[start, end]| {
            let done = what(tracker, &(*start..*end));
            // Its memory is gone, the program has executed another.
            is_gone |= done == Err(Errno::ESRCH);
            done.is_ok() == works
        });
        if is_gone {
            self.lose();
        }
    }

    /// Adds what touches mappings that are to be tracked, and what touches that, if it may be a part of the same: one half of
    /// a mapping that is protected, or advised, is one of its own until that is taken back. Were only the other half tracked,
    /// they would stay apart (`vm_userfaultfd_ctx` in mm/vma.c, `is_mergeable_vma`), and who moves both meets EFAULT.
    pub(super) fn add_neighbours(
        &self,
        pagemap: &Pagemap,
        (areas, vmas): (&[Area], &[VmaRecord]),
        found: &mut Vec<[u64; 2]>,
    ) {
        let (first, mut at) = (found.len(), 0);
        while let Some(&[start, end]) = found.get(at) {
            at += 1;
            let own = vmas.partition_point(|vma| vma.start < start);
            for vma in [own.wrapping_sub(1), own + 1].iter().filter_map(|near| vmas.get(*near)) {
                let known = found[..first].binary_search_by_key(&vma.start, |it| it[0]).is_ok()
                    || found[first..].iter().any(|it| it[0] == vma.start);
                let touches = vma.end == start || vma.start == end;
                if touches && !known && self.may_join(pagemap, areas, vma) {
                    found.push([vma.start, vma.end]);
                }
            }
        }
    }

    /// Whether a mapping is private memory that is not tracked yet. Unless all is to be, only if it is empty: what has content
    /// was read at this stop, and is tracked when it is large.
    fn may_join(&self, pagemap: &Pagemap, areas: &[Area], vma: &VmaRecord) -> bool {
        let next = areas.partition_point(|area| area.end <= vma.start);
        let area = areas.get(next).filter(|area| area.start < vma.end);
        // What is larger and empty has no area.
        let is_empty = || {
            vma.end - vma.start <= 2 * LARGE
                && pagemap.populated(vma.start, vma.end, false).is_ok_and(|pages| pages.is_empty())
        };
        let may = |area: &Area| area.pages == Pages::Populated && (self.all || is_empty());
        vma.kind == VmaKind::Private as u32
            && vma.flags & OTHERS == 0
            && area.is_none_or(may)
            && !pagemap.is_tracked(vma.start)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::excluded::tests::area;
    use super::*;
    use crate::image::PAGE;
    use memmap2::{Advice, MmapMut};
    use zerocopy::FromZeros;

    fn memory(pages: u64) -> (MmapMut, u64) {
        let memory = MmapMut::map_anon((pages * PAGE) as usize).unwrap();
        memory.advise(Advice::NoHugePage).unwrap();
        let start = memory.as_ptr().addr() as u64;
        (memory, start)
    }

    #[test]
    fn what_is_gone_when_it_is_looked_at_loses_nothing() {
        let Some(tracker) = Tracker::own() else { return };
        let we = Process::own().unwrap();
        let ((mut stays, at), (gone, other)) = (memory(64), memory(64));
        let areas: Vec<_> = [at, other].map(|at| area(at, at + 64 * PAGE, Pages::Populated)).into();
        let mut known =
            Rolling { tracker: Some(tracker), moves: true, all: true, ..Rolling::default() };
        known.track_now(&we, (&areas, &[]));
        // One that has failed behind its stop leaves it to the next.
        known.track_now(&we, (&areas, &[]));
        assert_eq!(known.found, [[at, at + 64 * PAGE], [other, other + 64 * PAGE]]);
        stays[5 * PAGE as usize] = 1;
        drop(gone);
        known.look((&we, false), (&areas, &[]), 1);
        assert!(known.tracker.is_some());
        let [_, told] = known.intervals[0].pages.split(&[at..at + 64 * PAGE; 1]);
        assert_eq!(told, [at + 5 * PAGE..at + 6 * PAGE; 1]);
        assert!(known.found.is_empty());
    }

    #[test]
    fn what_was_one_mapping_with_it_is_tracked_with_it() {
        let we = Process::own().unwrap();
        let pagemap = Pagemap::of(&we).unwrap();
        let (mut memory, at) = memory(12);
        memory[(6 * PAGE) as usize] = 1;
        let place = |page: u64| at + page * PAGE;
        let record = |start, end, flags| VmaRecord {
            start: place(start),
            end: place(end),
            kind: VmaKind::Private as u32,
            flags,
            ..VmaRecord::new_zeroed()
        };
        let vmas = [
            record(0, 1, 0),
            record(1, 2, 0),
            record(2, 3, 0),
            record(3, 5, 0),
            record(5, 6, 0),
            record(6, 7, 0),
            record(7, 8, 0),
            record(9, 10, 0),
            record(10, 11, vma_flag::DROPPABLE),
        ];
        let plain = |start, end| area(place(start), place(end), Pages::Populated);
        let areas = [
            area(place(0), place(1), Pages::Whole),
            plain(2, 3),
            plain(3, 5),
            plain(6, 7),
            plain(9, 10),
        ];
        for (all, most) in [(false, 6), (true, 8)] {
            let known = Rolling { all, ..Rolling::default() };
            let mut found = vec![[place(3), place(5)], [place(9), place(10)]];
            known.add_neighbours(&pagemap, (&areas, &vmas), &mut found);
            found.sort_unstable();
            let expected: Vec<_> = [[1, 2], [2, 3], [3, 5], [5, 6], [6, 7], [7, 8], [9, 10]]
                .into_iter()
                .filter(|[_, end]| *end <= most || *end == 10)
                .map(|bounds| bounds.map(place))
                .collect();
            assert_eq!(found, expected, "{all}");
        }
    }
}
