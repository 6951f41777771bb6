// SPDX-License-Identifier: LGPL-2.1-only
//! Sorting of records.

/// A key of two numbers, and where its record stands.
pub type Key = ((u64, u64), usize);

/// Sorts keys; those of one value by place. Whether they were not sorted before.
///
/// Sorted pieces are merged into another list, of one key first, of two then, and so on. The standard library's sort has ten
/// times the code.
pub fn sort(keys: &mut [Key]) -> bool {
    if keys.is_sorted() {
        return false;
    }
    let mut other = keys.to_vec();
    let (mut from, mut to, mut piece, mut is_other) = (keys, &mut other[..], 1, false);
    while piece < from.len() {
        for start in (0..from.len()).step_by(2 * piece) {
            let [middle, end] = [1, 2].map(|nth| from.len().min(start + nth * piece));
            let (mut left, mut right) = (start, middle);
            for place in &mut to[start..end] {
                let takes_left = right == end || left < middle && from[left] < from[right];
                let next = if takes_left { &mut left } else { &mut right };
                *place = from[*next];
                *next += 1;
            }
        }
        std::mem::swap(&mut from, &mut to);
        (piece, is_other) = (2 * piece, !is_other);
    }
    if is_other {
        to.copy_from_slice(from);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_as_by_the_standard_library() {
        for len in 0..300usize {
            let number = |at: usize| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            let mut keys: Vec<Key> =
                (0..len).map(|at| ((number(at) % 50, number(at) % 3), at)).collect();
            let mut sorted = keys.clone();
            sorted.sort_unstable();
            let differs = keys != sorted;
            assert_eq!(sort(&mut keys), differs);
            assert_eq!(keys, sorted);
            assert!(!sort(&mut keys));
        }
    }
}
