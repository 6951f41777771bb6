// SPDX-License-Identifier: LGPL-2.1-only
//! Sorting of records.

/// A key of two numbers, and where its record stands.
pub type Key = ((u64, u64), usize);

/// Sorts keys; those of one value by place. Whether they were not sorted before.
pub fn sort(keys: &mut [Key]) -> bool {
    if keys.is_sorted() {
        return false;
    }
    keys.sort_unstable();
    true
}
