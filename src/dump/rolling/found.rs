// SPDX-License-Identifier: LGPL-2.1-only
//! What of memory is to be tracked, and comes to be.

use super::{Errno, Pagemap, Process, Rolling, Tracker, is_trackable};
use crate::resource::memory::Area;
use std::ops::Range;

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
    pub(in crate::dump) fn track_now(&mut self, process: &Process, areas: &[Area]) {
        let Ok(pagemap) = Pagemap::of(process) else { return };
        let is_new = |area: &&Area| self.wants(area) && !pagemap.is_tracked(area.start);
        let new = areas.iter().filter(is_new).map(|area| [area.start, area.end]);
        let mut found = new.collect();
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
}

#[cfg(test)]
mod tests {
    use super::super::super::excluded::tests::area;
    use super::*;
    use crate::image::PAGE;
    use crate::resource::memory::Pages;
    use memmap2::{Advice, MmapMut};

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
        known.track_now(&we, &areas);
        // One that has failed behind its stop leaves it to the next.
        known.track_now(&we, &areas);
        assert_eq!(known.found, [[at, at + 64 * PAGE], [other, other + 64 * PAGE]]);
        stays[5 * PAGE as usize] = 1;
        drop(gone);
        known.look((&we, false), &areas, 1);
        assert!(known.tracker.is_some());
        let [_, told] = known.intervals[0].pages.split(&[at..at + 64 * PAGE; 1]);
        assert_eq!(told, [at + 5 * PAGE..at + 6 * PAGE; 1]);
        assert!(known.found.is_empty());
    }
}
