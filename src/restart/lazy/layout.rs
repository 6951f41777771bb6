// SPDX-License-Identifier: LGPL-2.1-only
//! Where memory that is still missing lies in a process by now.

use crate::order;
use std::ops::Range;

/// Of how many messages behind another one may have had its effect before.
const NEAR: usize = 256;

/// Missing memory, which was at `from` when it was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub at: u64,
    pub len: u64,
    pub from: u64,
}

impl Extent {
    fn end(&self) -> u64 {
        self.at + self.len
    }

    /// What of it lies in a range.
    fn within(&self, range: &Range<u64>) -> Option<Self> {
        let (at, end) = (self.at.max(range.start), self.end().min(range.end));
        (at < end).then(|| Self { at, len: end - at, from: self.from + (at - self.at) })
    }
}

/// What has become of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// From, to, bytes; whether there is memory from where it was moved, of zeros (MREMAP_DONTUNMAP).
    Moved(u64, u64, u64, bool),
    /// Its content is forgotten.
    Removed(u64, u64),
    Unmapped(u64, u64),
}

impl Change {
    /// The addresses of which it is one.
    fn parts(self) -> [Range<u64>; 2] {
        match self {
            Self::Moved(from, to, len, _) => [from..from + len, to..to + len],
            Self::Removed(start, end) | Self::Unmapped(start, end) => [start..end, 0..0],
        }
    }

    /// Whether it is one of what lies at an address.
    pub(super) fn concerns(self, at: u64) -> bool {
        self.parts().iter().any(|part| part.contains(&at))
    }

    fn meets(self, other: Self) -> bool {
        let common =
            |one: &Range<u64>, two: &Range<u64>| one.start < two.end && two.start < one.end;
        let others = other.parts();
        self.parts().iter().any(|one| others.iter().any(|two| common(one, two)))
    }
}

/// The missing memory of a process, and the areas in which it is awaited. Both are by address, and nothing overlaps.
#[derive(Clone, Default)]
pub(super) struct Layout {
    extents: Vec<Extent>,
    areas: Vec<Range<u64>>,
}

impl Layout {
    /// Of memory that is by address.
    pub(super) fn new(extents: Vec<Extent>, areas: Vec<Range<u64>>) -> Self {
        Self { extents, areas }
    }

    /// Where memory is awaited.
    pub(super) fn areas(&self) -> impl Iterator<Item = &Range<u64>> {
        self.areas.iter()
    }

    /// Whether nothing is missing.
    pub(super) fn is_whole(&self) -> bool {
        self.extents.is_empty()
    }

    /// The last that is missing.
    pub(super) fn last(&self) -> Option<Extent> {
        self.extents.last().copied()
    }

    /// What is missing at an address, and where it lies.
    pub(super) fn find(&self, address: u64) -> Option<Extent> {
        let index = self.extents.partition_point(|extent| extent.end() <= address);
        self.extents.get(index).copied().filter(|extent| extent.at <= address)
    }

    /// The first area that lies, at least in part, in a range.
    pub(super) fn area(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let index = self.areas.partition_point(|area| area.end <= range.start);
        self.areas.get(index).filter(|area| area.start < range.end).cloned()
    }

    /// Nothing is missing in a range any more.
    pub(super) fn cut(&mut self, range: &Range<u64>) -> Vec<Extent> {
        let first = self.extents.partition_point(|extent| extent.end() <= range.start);
        let count = self.extents[first..].partition_point(|extent| extent.at < range.end);
        let old: Vec<_> = self.extents[first..first + count].to_vec();
        let rest = [0..range.start, range.end..u64::MAX];
        let left = old.iter().flat_map(|one| rest.iter().filter_map(|part| one.within(part)));
        let left: Vec<_> = left.collect();
        self.extents.splice(first..first + count, left);
        old.iter().filter_map(|one| one.within(range)).collect()
    }

    fn cut_area(&mut self, range: &Range<u64>) {
        let rest = |area: Range<u64>| {
            [area.start..area.end.min(range.start), area.start.max(range.end)..area.end]
        };
        let areas = std::mem::take(&mut self.areas);
        self.areas = areas.into_iter().flat_map(rest).filter(|area| !area.is_empty()).collect();
    }

    /// Whether a change is one of this layout, and not of a later one.
    fn fits(&self, change: Change) -> bool {
        match change {
            Change::Moved(from, to, len, _) => {
                self.area(&(from..from + 1)).is_some() && self.area(&(to..to + len)).is_none()
            }
            Change::Removed(..) => true,
            Change::Unmapped(start, end) => self.area(&(start..end)).is_some(),
        }
    }

    /// Which of some changes is to be made first: messages of several threads may come in another order than their effects.
    fn next(&self, changes: &[Change]) -> usize {
        let Some((first, others)) = changes.split_first() else { return 0 };
        if self.fits(*first) {
            return 0;
        }
        let makes_way = |other: &Change| {
            other.meets(*first) && self.fits(*other) && {
                let mut then = self.clone();
                then.change(*other);
                then.fits(*first)
            }
        };
        others.iter().take(NEAR).position(makes_way).map_or(0, |index| index + 1)
    }

    /// Makes all of some changes.
    pub(super) fn make(&mut self, mut changes: &mut [Change]) {
        while !changes.is_empty() {
            let next = self.next(changes);
            changes[..=next].rotate_right(1);
            self.change(changes[0]);
            changes = &mut changes[1..];
        }
    }

    /// Makes a change.
    pub(super) fn change(&mut self, change: Change) {
        match change {
            Change::Moved(from, to, len, stays) => {
                // Whatever the model has there was unmapped.
                self.cut(&(to..to + len));
                self.cut_area(&(to..to + len));
                let moved = self.cut(&(from..from + len)).into_iter();
                self.extents.extend(moved.map(|one| Extent { at: one.at - from + to, ..one }));
                order::by_key(&mut self.extents, |extent| (extent.at, 0));
                if !stays {
                    self.cut_area(&(from..from + len));
                }
                self.areas.push(to..to + len);
                order::by_key(&mut self.areas, |area| (area.start, 0));
            }
            Change::Removed(start, end) => drop(self.cut(&(start..end))),
            Change::Unmapped(start, end) => {
                self.cut(&(start..end));
                self.cut_area(&(start..end));
            }
        }
    }
}

/// Puts the messages of a move into one, and nothing into the place of the second: mremap(2) tells where memory has gone,
/// and then that there is none any more where it was. In older kernels the first has the length of before where less was
/// moved; `is_there` says whether the last page of it is where it was moved to, while `others` may have moved it on.
pub(super) fn join(changes: &mut [Change], is_there: impl Fn(u64, &[Change]) -> bool) {
    for index in 1..=changes.len() {
        let Change::Moved(from, to, len, _) = changes[index - 1] else { continue };
        let others = &changes[index..changes.len().min(index + NEAR)];
        let exact = others.iter().position(|it| *it == Change::Unmapped(from, from + len));
        let shorter = |it: &Change| match *it {
            Change::Unmapped(start, end) => start == from && end < from + len,
            _ => false,
        };
        let shorter = others.iter().position(shorter).filter(|_| !is_there(to + len - 1, others));
        let Some(own) = exact.or(shorter) else {
            changes[index - 1] = Change::Moved(from, to, len, true);
            continue;
        };
        let own = std::mem::replace(&mut changes[index + own], Change::Removed(0, 0));
        if let Change::Unmapped(_, end) = own {
            changes[index - 1] = Change::Moved(from, to, end - from, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = 4096;

    fn layout() -> Layout {
        let extents = [Extent { at: 10 * K, len: 10 * K, from: 110 * K }];
        Layout::new(extents.to_vec(), [10 * K..30 * K, 40 * K..50 * K].to_vec())
    }

    fn moved(from: u64, to: u64, len: u64, stays: bool) -> Change {
        Change::Moved(from * K, to * K, len * K, stays)
    }

    fn unmapped(start: u64, end: u64) -> Change {
        Change::Unmapped(start * K, end * K)
    }

    /// What is missing at some pages.
    fn found<const N: usize>(layout: &Layout, pages: [u64; N]) -> [u64; N] {
        let at = |page: u64| layout.find(page * K).map(|it| (it.from + page * K - it.at) / K);
        pages.map(|page| at(page).unwrap_or(0))
    }

    #[test]
    fn what_is_forgotten_is_not_missing() {
        let mut layout = layout();
        layout.change(Change::Removed(12 * K, 14 * K));
        let pages = found(&layout, [9, 10, 11, 12, 13, 14, 19, 20]);
        assert_eq!(pages, [0, 110, 111, 0, 0, 114, 119, 0]);
        assert!(!layout.fits(moved(20, 12, 1, false)), "it is mapped still");
        assert!(layout.fits(moved(20, 60, 1, false)));
    }

    #[test]
    fn what_is_moved_is_missing_where_it_is() {
        for stays in [false, true] {
            let mut layout = layout();
            layout.change(moved(12, 62, 4, stays));
            let pages = found(&layout, [11, 12, 15, 16, 61, 62, 65, 66]);
            assert_eq!(pages, [111, 0, 0, 116, 0, 112, 115, 0]);
            assert!(layout.fits(unmapped(62, 63)));
            assert_eq!(layout.fits(unmapped(12, 13)), stays);
        }
    }

    #[test]
    fn what_was_there_before_is_replaced() {
        let mut layout = layout();
        layout.change(moved(40, 10, 2, false));
        assert_eq!(found(&layout, [10, 11, 12]), [0, 0, 112]);
        layout.change(unmapped(0, 100));
        assert!(layout.is_whole());
    }

    #[test]
    fn a_move_is_one_change() {
        let mut changes = vec![moved(10, 60, 4, false), moved(40, 10, 4, false)];
        // The other thread's messages come before the second of the first.
        changes.extend([unmapped(10, 14), moved(60, 70, 4, false), unmapped(40, 44)]);
        join(&mut changes, |_, _| true);
        let nothing = Change::Removed(0, 0);
        let first = [moved(10, 60, 4, false), moved(40, 10, 4, false), nothing];
        assert_eq!(changes, [&first[..], &[moved(60, 70, 4, true), nothing]].concat());
    }

    #[test]
    fn of_what_shrinks_only_the_beginning_was_moved() {
        for (is_there, expected) in [
            (true, vec![moved(10, 60, 4, true), unmapped(10, 12)]),
            (false, vec![moved(10, 60, 2, false), Change::Removed(0, 0)]),
        ] {
            let mut changes = vec![moved(10, 60, 4, false), unmapped(10, 12)];
            join(&mut changes, |at, others| {
                assert_eq!((at / K, others.len()), (63, 1));
                is_there
            });
            assert_eq!(changes, expected);
        }
    }

    #[test]
    fn changes_are_made_in_the_order_of_their_effects() {
        let mut layout = layout();
        // Something comes to where something else has just gone, or was unmapped.
        assert_eq!(layout.next(&[moved(40, 10, 2, false), moved(10, 60, 2, false)]), 1);
        assert_eq!(layout.next(&[moved(10, 40, 2, false), unmapped(40, 50)]), 1);
        // What is known from nowhere is taken as it comes.
        assert_eq!(layout.next(&[unmapped(90, 91), moved(10, 60, 2, false)]), 0);
        layout.make(&mut [moved(40, 10, 2, false), moved(10, 60, 2, false)]);
        assert_eq!(found(&layout, [10, 11, 12, 60, 61, 62]), [0, 0, 112, 110, 111, 0]);
    }
}
