// SPDX-License-Identifier: LGPL-2.1-only
//! The tables of docs/manual.md are those of the program.

use super::*;

/// The table rows whose first cell begins with a word in backquotes.
fn rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    include_str!("../../../docs/manual.md").lines().filter_map(|line| {
        let rest = line.strip_prefix("| `")?;
        let (first, rest) = rest.split_once('`')?;
        Some((first, rest))
    })
}

#[test]
fn the_manual_names_every_option() {
    for opt in table::options(&[Form::Launch]).filter(|opt| !opt.is_page()) {
        let short = opt.shortest();
        let row = rows().find(|(cell, _)| cell.starts_with('-') && has_word(cell, &short));
        let networked = opt.is_of(&[Form::List]);
        let Some((cell, rest)) = row else {
            // Those of servers are told in their own page.
            let text = include_str!("../../../docs/server.md");
            let fallback = opt.long == "fallback";
            assert!(
                (networked || fallback) && has_word(text, &short),
                "docs/server.md lacks {short}"
            );
            continue;
        };
        assert!(opt.value.is_none_or(|(value, _)| has_word(cell, value)), "{short}: {cell}");
        assert!(opt.env.is_none_or(|env| has_word(rest, env.name)), "{short}: {rest}");
    }
    for (cell, _) in rows().filter(|(cell, _)| cell.starts_with('-')) {
        let known = OPTIONS.iter().any(|opt| has_word(cell, &opt.shortest()));
        assert!(known, "docs/manual.md has {cell}");
    }
}

#[test]
fn the_manual_names_every_subcommand() {
    let text = include_str!("../../../docs/manual.md");
    for (word, _) in table::subcommands() {
        let named = text.contains(&format!("`ckpt {word}")) || text.contains(&format!("`{word}`"));
        assert!(named, "docs/manual.md lacks {word}");
    }
}
