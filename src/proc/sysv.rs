// SPDX-License-Identifier: LGPL-2.1-only
//! The System V objects of our IPC namespace (/proc/sysvipc, sysvipc(7)).

use super::text::{decimal, lines, words};

/// The identifier of each set of semaphores, and how many are in it; none where there are none to be seen.
pub(crate) fn semaphores() -> Vec<(i32, i32)> {
    parse(&std::fs::read("/proc/sysvipc/sem").unwrap_or_default())
}

/// "       key      semid perms      nsems   uid   gid ...", and a line for each set.
fn parse(text: &[u8]) -> Vec<(i32, i32)> {
    let set = |line: &[u8]| {
        let mut numbers = words(line).skip(1);
        let id = decimal(numbers.next()?).ok()?;
        Some((id, decimal(numbers.nth(1)?).ok()?))
    };
    lines(text).skip(1).filter_map(set).collect()
}

/// See [`super::parse_anything`].
pub(super) fn parse_anything(bytes: &[u8]) {
    let _ = parse(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_behind_the_headline() {
        let text = b"       key      semid perms      nsems   uid   gid\n         0          7   600          3     0     0\nx\n";
        assert_eq!(parse(text), [(7, 3)]);
        assert!(parse(b"").is_empty());
    }
}
