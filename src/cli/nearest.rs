// SPDX-License-Identifier: LGPL-2.1-only
//! What somebody may have meant by a word that is not known.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::table::{self, Opt};

/// The subcommand that is spelt most like `word`, if one is near.
pub(crate) fn nearest_subcommand(word: &OsStr) -> Option<&'static str> {
    nearest(word.as_bytes(), table::subcommands().map(|(known, _)| known))
}

/// The same for the long name of an option, without its dashes.
pub(super) fn nearest_option<'a>(
    word: &str,
    among: impl Iterator<Item = &'a Opt>,
) -> Option<&'static str> {
    nearest(word.as_bytes(), among.map(|opt| opt.long))
}

/// The known word with the fewest differences: one in a word of up to four letters, else two.
/// The beginning of a word counts as near, too ("verif", "comp").
fn nearest(word: &[u8], known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let most = if word.len() <= 4 { 1 } else { 2 };
    let differences = |name: &&str| {
        let begins = word.len() >= 3 && name.as_bytes().starts_with(word);
        if begins { 1 } else { differences(word, name.as_bytes()) }
    };
    known.filter(|name| word.len() > 1 && differences(name) <= most).min_by_key(differences)
}

/// Letters to add, drop, replace or swap with their neighbour.
fn differences(a: &[u8], b: &[u8]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_are_meant() {
        for (word, meant) in [
            ("sav", Some("save")),
            ("svae", Some("save")),
            ("ifno", Some("info")),
            ("verfy", Some("verify")),
            ("comp", Some("completions")),
            ("restrat", Some("restart")),
            ("list", None),
            ("foo", None),
            ("python3", None),
            ("__dumb", None),
            ("s", None),
            ("", None),
        ] {
            assert_eq!(nearest_subcommand(OsStr::new(word)), meant, "{word}");
        }
    }
}
