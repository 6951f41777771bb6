// SPDX-License-Identifier: LGPL-2.1-only
//! docs/messages.md has a line for every message: the sentences of the sources are looked up in it by its patterns.

use std::path::Path;

/// What a message is an argument of.
const SAID_BY: [&str; 13] = [
    "Error::new(",
    "because(",
    "eprintln!(",
    "warnings.push(",
    "say(",
    "damaged(",
    "broken(",
    "refused(",
    "denied(",
    "no_file(",
    "complain(",
    "damage(",
    "bad(",
];

/// What has no more words goes on another sentence, or repeats one.
const PART: usize = 2;

/// Behind these other texts stand, too: what has fewer than so many plain words is no message.
const ALSO_BY: [&str; 8] = [
    "let text =",
    "let sentence =",
    "let error =",
    "let refused =",
    "let said =",
    "let message =",
    "=>",
    "println!(",
];
const SENTENCE: usize = 4;

/// What begins so goes on a sentence that has a line, stands in its parentheses, or is its way out.
const PARTS: [&str; 26] = [
    "one that is under way in a socket",
    "has given it back to the kernel, ",
    "takes it for itself",
    "forbid capset(2), by which ",
    "forbid rt_sigreturn(2), by which ",
    "leave calls to another process ",
    "not saved, since its parent has them too: ",
    "the thread for further timers with SIGEV_THREAD ",
    "a restart does not find it",
    "… bytes that are in it already are saved",
    "a socket of a kind that cannot be saved",
    "a socket of which this kernel does not tell ",
    "a pipe to another program",
    "a terminal that is not the program's own",
    "an object of the kernel",
    "its path leads elsewhere by now",
    "byte …, over what is there",
    "a lease that is just broken",
    "the kernel answered something else than asked for",
    "was ended by signal …",
    "raise the limit of ",
    "give it more memory, ",
    "a sandbox (seccomp) may forbid it: ",
    "bring these back, ",
    "what it remembers of its old one goes wrong ",
    "whatever remembers one goes wrong ",
];

/// Whoever says it, what begins so is a message.
const ALWAYS: &str = "\"cannot ";

/// The sources without what is only for tests, and without comments.
fn sources(folder: &Path, all: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, all);
            continue;
        }
        let name = path.display().to_string();
        if !name.ends_with(".rs") || name.contains("/tests") || name.ends_with("fault.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        all.push((name, code.collect::<Vec<_>>().join("\n")));
    }
}

/// The literal at the head of the arguments: behind a closure's bars, braces and `format!(`.
fn literal(mut rest: &str) -> Option<&str> {
    loop {
        rest = rest.trim_start();
        if let Some(text) = rest.strip_prefix('"') {
            let mut is_escaped = false;
            let end = text.find(|c| {
                let ends = c == '"' && !is_escaped;
                is_escaped = c == '\\' && !is_escaped;
                ends
            })?;
            return Some(&text[..end]);
        }
        let skipped =
            ["||", "|e|", "|_|", "{", "&format!(", "format!(", "return ", "Err(", "Some("];
        rest = skipped.iter().find_map(|word| rest.strip_prefix(word))?;
    }
}

/// As users see it, with "…" for what is another each time.
fn normal(literal: &str) -> String {
    let (mut text, mut rest) = (String::new(), literal);
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\\' if rest.starts_with('\n') => rest = rest.trim_start(),
            '\\' if rest.starts_with('n') => rest = &rest[1..],
            '\\' => {}
            '{' if rest.starts_with('{') => {
                text.push('{');
                rest = &rest[1..];
            }
            '{' => {
                text.push('…');
                rest = rest.split_once('}').map_or("", |(_, rest)| rest);
            }
            c => text.push(c),
        }
    }
    text.strip_prefix("ckpt: ").unwrap_or(&text).to_owned()
}

/// Whether these are words enough to be a sentence, and not names of the kernel's, of a runtime's or of a protocol's.
fn is_sentence(said: &str) -> bool {
    let is_plain = |word: &&str| {
        let letters = word.trim_matches(|c: char| ",.:;()'".contains(c));
        letters.len() > 1 && letters.chars().all(char::is_lowercase)
    };
    said.split(' ').filter(is_plain).count() >= SENTENCE
}

/// A message, and what is left of it behind each colon and semicolon, as one may follow another.
fn tails(said: &str) -> impl Iterator<Item = &str> {
    let ends = [": ", "; "].into_iter().flat_map(|end| said.match_indices(end));
    std::iter::once(said).chain(ends.map(|(at, end)| &said[at + end.len()..]))
}

fn is_whole(said: &str) -> bool {
    let words = said.split(['…', ' ']).filter(|w| w.chars().any(char::is_alphabetic));
    words.count() > PART
}

/// All messages with where they are said.
fn messages() -> Vec<(String, String)> {
    let mut all = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    let mut found = Vec::new();
    for (name, text) in &all {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let ends = |head: &&str| {
            let heads = text.match_indices(*head);
            let apart = heads.filter(|(at, _)| !text[..*at].ends_with(is_word));
            apart.map(|(at, head)| at + head.len()).collect::<Vec<_>>()
        };
        let always = text.match_indices(ALWAYS).map(|(at, _)| at);
        let said = |at| literal(&text[at..]).map(normal);
        let also = ALSO_BY.iter().flat_map(ends).filter_map(said);
        let also = also
            .filter(|said| is_sentence(said) && !PARTS.iter().any(|part| said.starts_with(part)));
        let places = SAID_BY.iter().flat_map(ends).chain(always);
        let said = places.filter_map(said).chain(also);
        found.extend(said.map(|said| (name.clone(), said)));
    }
    assert!(found.len() > 400, "they are found: {}", found.len());
    found
}

/// Whether the fixed parts of a pattern stand in the text in their order, the first at its beginning. A pattern of hardly
/// any words would fit nearly everything: it has to be the whole text.
fn fits(pattern: &str, text: &str) -> bool {
    if pattern.starts_with('…') && !is_whole(pattern) {
        return pattern == text;
    }
    let (mut rest, mut is_first) = (text, true);
    for part in pattern.split('…') {
        let found = if is_first { rest.starts_with(part).then_some(0) } else { rest.find(part) };
        let Some(at) = found else { return false };
        rest = &rest[at + part.len()..];
        is_first = false;
    }
    true
}

/// The patterns of the page: what stands in backquotes in the first cell of a line of a table.
fn patterns(page: &str) -> Vec<&str> {
    let told = page.split("<!-- kinds -->").next().unwrap_or_default();
    let cells = told.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    cells
        .flat_map(|cell| cell.split('`').step_by(2))
        .filter(|pattern| !pattern.is_empty())
        .collect()
}

#[test]
fn every_message_is_in_the_docs() {
    let page = include_str!("../../../docs/messages.md");
    let (patterns, messages) = (patterns(page), messages());
    let kind = |said: &str| {
        crate::resource::kinds::advice(said).is_some() || crate::resource::kinds::is_known(said)
    };
    let mut missing: Vec<_> = messages
        .iter()
        .filter(|(_, said)| {
            let is_told = |tail| patterns.iter().any(|pattern| fits(pattern, tail));
            is_whole(said) && !kind(said) && !tails(said).any(is_told)
        })
        .map(|(name, said)| format!("{name}: {said}"))
        .collect();
    missing.dedup();
    assert!(
        missing.is_empty(),
        "docs/messages.md has no line for these: add one, or their first words to the line of their kind: {missing:#?}"
    );
    let unused: Vec<_> = patterns
        .iter()
        .filter(|p| !messages.iter().any(|(_, said)| tails(said).any(|tail| fits(p, tail))))
        .collect();
    assert!(unused.is_empty(), "nobody says these of docs/messages.md: {unused:#?}");
}

#[test]
fn patterns_are_looked_for() {
    assert!(fits("cannot read", "cannot read …"));
    assert!(fits("… is gone by now", "process … is gone by now"));
    assert!(!fits("… is gone", "process … is gone") && fits("… is gone", "… is gone"));
    assert!(!fits("is gone", "process … is gone") && !fits("a…c…b", "abc"));
    assert_eq!(normal("ckpt: {a:?} \\\"x\\\" \\\n   {{y}}"), "… \"x\" {y}}");
    assert_eq!(literal("|| {\n  format!(\"a \\\" b\", c)"), Some("a \\\" b"));
}
