// SPDX-License-Identifier: LGPL-2.1-only
//! Sorting by numbers. The standard library's sort is compiled anew for each type, 4 KiB each: here numbers are sorted, once
//! for all, and the items follow.

use ckpt_loops::records::sort;

/// Sorts by a key of two numbers; items of one key stay in their order (as slice::sort_by_key).
pub(crate) fn by_key<T>(items: &mut [T], key: impl Fn(&T) -> (u64, u64)) {
    let mut keys: Vec<_> = items.iter().enumerate().map(|(at, item)| (key(item), at)).collect();
    if !sort(&mut keys) {
        return;
    }
    // Round by round of those that change their places with each other, so that there is no second list of items.
    for first in 0..keys.len() {
        let mut to = first;
        loop {
            let from = std::mem::replace(&mut keys[to].1, to);
            if from == first {
                break;
            }
            items.swap(to, from);
            to = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::by_key;

    #[test]
    fn items_of_one_key_stay_in_their_order() {
        let mut items = vec![(2, 'a'), (1, 'b'), (2, 'c'), (0, 'd'), (1, 'e')];
        by_key(&mut items, |item| (item.0, 0));
        assert_eq!(items, [(0, 'd'), (1, 'b'), (1, 'e'), (2, 'a'), (2, 'c')]);
    }
}
