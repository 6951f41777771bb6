// SPDX-License-Identifier: LGPL-2.1-only
//! Sorting. The standard library's sort is compiled anew for each type, 4 KiB each: here numbers and places are sorted, once
//! for all, and the items follow.

use ckpt_loops::records::{Key, sort};
use std::cmp::Ordering;
use std::ops::Range;

/// What numbers are sorted by.
pub(crate) trait Number: Copy {
    /// Two numbers in the order of these.
    fn key(self) -> (u64, u64);
}

impl Number for u64 {
    fn key(self) -> (u64, u64) {
        (self, 0)
    }
}

impl Number for u32 {
    fn key(self) -> (u64, u64) {
        (self.into(), 0)
    }
}

impl Number for i32 {
    fn key(self) -> (u64, u64) {
        (i64::from(self).wrapping_sub(i64::MIN).cast_unsigned(), 0)
    }
}

impl Number for (u64, u64) {
    fn key(self) -> (u64, u64) {
        self
    }
}

impl Number for [u64; 2] {
    fn key(self) -> (u64, u64) {
        self.into()
    }
}

/// Sorts numbers (as slice::sort).
pub(crate) fn numbers<T: Number>(items: &mut [T]) {
    by_key(items, |item| item.key());
}

/// Sorts by a key of two numbers; items of one key stay in their order (as slice::sort_by_key).
pub(crate) fn by_key<T>(items: &mut [T], key: impl Fn(&T) -> (u64, u64)) {
    let mut keys: Vec<_> = items.iter().enumerate().map(|(at, item)| (key(item), at)).collect();
    if sort(&mut keys) {
        follow(&mut keys, &mut |a, b| items.swap(a, b));
    }
}

/// Ranges in order, those that touch as one, without empty ones.
pub(crate) fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| !range.is_empty());
    by_key(&mut ranges, |range| (range.start, 0));
    let mut all: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

/// Sorts by a comparison; items that are equal stay in their order (as slice::sort_by). For lists that are not long.
pub(crate) fn by<T>(items: &mut [T], compare: impl Fn(&T, &T) -> Ordering) {
    let mut keys: Vec<_> = (0..items.len()).map(|at| ((0, 0), at)).collect();
    sort_places(&mut keys, &|a, b| compare(&items[a], &items[b]));
    follow(&mut keys, &mut |a, b| items.swap(a, b));
}

/// Heapsort, in a tenth of the code that the standard library has for it: few places are sorted by a comparison.
fn sort_places(places: &mut [Key], compare: &dyn Fn(usize, usize) -> Ordering) {
    let is_before = |a: &Key, b: &Key| compare(a.1, b.1).then(a.1.cmp(&b.1)).is_lt();
    let len = places.len();
    // First each inner place is the root of a heap, from the last on; then the largest goes behind the rest, again and again.
    for turn in (0..len + len / 2).rev() {
        let (mut root, end) = (turn.saturating_sub(len), turn.min(len));
        if turn < len {
            places.swap(0, turn);
        }
        while 2 * root + 1 < end {
            let child = 2 * root + 1;
            let is_second = child + 1 < end && is_before(&places[child], &places[child + 1]);
            let largest = child + usize::from(is_second);
            if !is_before(&places[root], &places[largest]) {
                break;
            }
            places.swap(root, largest);
            root = largest;
        }
    }
}

/// Has items follow their keys: round by round of those that change their places with each other, so that there is no second
/// list of items.
fn follow(keys: &mut [Key], swap: &mut dyn FnMut(usize, usize)) {
    for first in 0..keys.len() {
        let mut to = first;
        loop {
            let from = std::mem::replace(&mut keys[to].1, to);
            if from == first {
                break;
            }
            swap(to, from);
            to = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{by, by_key, joined, numbers};

    #[test]
    fn ranges_are_joined() {
        let ranges = vec![5..7, 1..3, 2..4, 4..5, 9..9, 10..11, 10..12];
        assert_eq!(joined(ranges), [1..7, 10..12]);
    }

    #[test]
    fn items_of_one_key_stay_in_their_order() {
        let sorted = [(0, 'd'), (1, 'b'), (1, 'e'), (2, 'a'), (2, 'c')];
        let mut items = vec![(2, 'a'), (1, 'b'), (2, 'c'), (0, 'd'), (1, 'e')];
        let mut again = items.clone();
        by_key(&mut items, |item| (item.0, 0));
        assert_eq!(items, sorted);
        by(&mut again, |a, b| a.0.cmp(&b.0));
        assert_eq!(again, sorted);
    }

    #[test]
    fn comparisons_sort_as_the_standard_library_does() {
        for len in 0..200usize {
            let mut items: Vec<_> = (0..len).map(|at| (at * 7919 % 61, at)).collect();
            let mut sorted = items.clone();
            sorted.sort_by_key(|item| std::cmp::Reverse(item.0));
            by(&mut items, |a, b| b.0.cmp(&a.0));
            assert_eq!(items, sorted);
        }
    }

    #[test]
    fn numbers_below_zero_come_first() {
        let mut items = [3, i32::MIN, -1, i32::MAX, 0];
        numbers(&mut items);
        assert_eq!(items, [i32::MIN, -1, 0, 3, i32::MAX]);
    }
}
