// SPDX-License-Identifier: LGPL-2.1-only
//! Sets of pages of a process.

use crate::image::PAGE;
use crate::order;
use ckpt_abi::image::CHUNK_MAX;
use std::ops::Range;

/// Pages, as a bit each in the windows of [`CHUNK_MAX`] bytes that have any: the window's number, and its pages from the
/// lowest bit on; by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PageSet(Vec<[u64; 2]>);

impl PageSet {
    /// Those of some ranges of addresses.
    pub(crate) fn of(ranges: impl Iterator<Item = Range<u64>>) -> Self {
        let mut set = Self::default();
        for Range { start: mut at, end } in ranges {
            while at < end {
                let (window, pages, next) = part(at, end);
                match set.0.last_mut() {
                    Some([last, bits]) if *last == window => *bits |= pages,
                    _ => set.0.push([window, pages]),
                }
                at = next;
            }
        }
        set.settle();
        set
    }

    /// Those that [`Self::words`] has told.
    pub(crate) fn from_words(words: &[u64]) -> Self {
        let mut set = Self(words.as_chunks::<2>().0.to_vec());
        set.settle();
        set
    }

    /// All of it as numbers.
    pub(crate) fn words(&self) -> &[u64] {
        self.0.as_flattened()
    }

    /// Adds another.
    pub(crate) fn join(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
        self.settle();
    }

    fn settle(&mut self) {
        order::numbers(&mut self.0);
        self.0.dedup_by(|next, kept| {
            let same = next[0] == kept[0];
            kept[1] |= if same { next[1] } else { 0 };
            same
        });
    }

    /// Of ordered ranges those that are not in the set, and those that are.
    pub(crate) fn split(&self, ranges: &[Range<u64>]) -> [Vec<Range<u64>>; 2] {
        let mut parts = [Vec::new(), Vec::new()];
        let mut index = 0;
        for range in ranges {
            let mut at = range.start;
            while at < range.end {
                let (window, _, next) = part(at, range.end);
                while self.0.get(index).is_some_and(|[other, _]| *other < window) {
                    index += 1;
                }
                let bits = self.0.get(index).filter(|[other, _]| *other == window);
                let bits = bits.map_or(0, |[_, bits]| *bits);
                if bits == 0 {
                    push(&mut parts[0], at..next);
                    at = next;
                }
                while at < next {
                    let rest = bits >> (at % CHUNK_MAX / PAGE);
                    let is_in = (rest & 1) as usize;
                    // Those behind the last are in nothing, and the range ends there.
                    let alike = [rest, !rest][is_in].trailing_zeros();
                    let end = next.min(at + u64::from(alike) * PAGE);
                    push(&mut parts[is_in], at..end);
                    at = end;
                }
            }
        }
        parts
    }
}

/// The first window of a range, its pages there, and where the rest of the range begins.
fn part(at: u64, end: u64) -> (u64, u64, u64) {
    let window = at / CHUNK_MAX;
    let next = end.min((window + 1) * CHUNK_MAX);
    let (first, pages) = (at % CHUNK_MAX / PAGE, (next - at).div_ceil(PAGE));
    (window, (u64::MAX >> (64 - pages)) << first, next)
}

fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranges in pages as addresses.
    fn pages<const N: usize>(ranges: [Range<u64>; N]) -> Vec<Range<u64>> {
        ranges.map(|range| range.start * PAGE..range.end * PAGE).to_vec()
    }

    #[test]
    fn ranges_are_split_by_what_is_in_the_set() {
        let mut set = PageSet::of(pages([3..5, 60..130, 1000..1001]).into_iter());
        set.join(&PageSet::of(pages([4..6, 200..201]).into_iter()));
        let [out, within] = set.split(&pages([0..70, 100..210, 999..1002]));
        assert_eq!(out, pages([0..3, 6..60, 130..200, 201..210, 999..1000, 1001..1002]));
        assert_eq!(within, pages([3..6, 60..70, 100..130, 200..201, 1000..1001]));
        assert_eq!(PageSet::from_words(set.words()), set);
        assert_eq!(PageSet::default().split(&pages([5..6, 8..9]))[0], pages([5..6, 8..9]));
    }
}
