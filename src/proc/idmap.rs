// SPDX-License-Identifier: LGPL-2.1-only
//! Which users and groups there are in our user namespace: /proc/PID/uid_map, gid_map and setgroups (user_namespaces(7)).

use std::fs::read_to_string;
use std::ops::Range;

/// The ids that mean somebody.
pub(crate) struct IdMap(Vec<Range<u64>>);

impl IdMap {
    /// Those of users.
    pub(crate) fn users() -> Self {
        Self::parse(&read_to_string("/proc/self/uid_map").unwrap_or_default())
    }

    /// Those of groups.
    pub(crate) fn groups() -> Self {
        Self::parse(&read_to_string("/proc/self/gid_map").unwrap_or_default())
    }

    /// "         0       1000          1": the first here, the first outside, how many.
    fn parse(text: &str) -> Self {
        let range = |line: &str| {
            let words = line.split_ascii_whitespace();
            let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
            let [first, _, count] = numbers[..] else { return None };
            Some(first..first.saturating_add(count))
        };
        Self(text.lines().filter_map(range).collect())
    }

    /// Whether an id is one.
    pub(crate) fn has(&self, id: u32) -> bool {
        self.0.iter().any(|range| range.contains(&id.into()))
    }
}

/// Whether nobody may change his supplementary groups there.
pub(crate) fn are_groups_fixed() -> bool {
    read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim_ascii() == "deny")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_looked_for_in_all_lines() {
        let map = IdMap::parse("         0       1000          1\n      1000 100000 2\n");
        assert!([0, 1000, 1001].into_iter().all(|id| map.has(id)));
        assert!([1, 999, 1002, u32::MAX].into_iter().all(|id| !map.has(id)));
        assert!(!IdMap::parse("0 x 1\n\n").has(0));
    }
}
