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
        let skipped = ["||", "|e|", "|_|", "{", "&format!(", "format!("];
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
        let places = SAID_BY.iter().flat_map(ends).chain(always);
        let said = places.filter_map(|at| literal(&text[at..])).map(normal);
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
            is_whole(said) && !kind(said) && !patterns.iter().any(|pattern| fits(pattern, said))
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
        .filter(|pattern| !messages.iter().any(|(_, said)| fits(pattern, said)))
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
