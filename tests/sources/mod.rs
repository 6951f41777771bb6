// SPDX-License-Identifier: LGPL-2.1-only
//! The project's own sources, for the tests that read them.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::path::{Path, PathBuf};

/// A source file.
pub(crate) struct Source {
    /// Its path from the top of the project.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// The files below `start`, a directory or a file, in order; their paths are from the top of the project.
pub(crate) fn files(start: &str) -> Vec<PathBuf> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut open) = (Vec::new(), vec![top.join(start)]);
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a directory");
            open.extend(entries.map(|e| e.expect("an entry").path()));
        } else {
            found.push(path.strip_prefix(top).expect("below the top").to_owned());
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no files in {start}");
    found
}

/// The files below `directory` with one of the extensions, in order.
pub(crate) fn sources(directory: &str, extensions: &[&str]) -> Vec<Source> {
    let wanted = |path: &PathBuf| extension(path).is_some_and(|e| extensions.contains(&e));
    let read = |path: PathBuf| {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&path));
        Source { path, text: text.expect("a text file") }
    };
    let found: Vec<_> = files(directory).into_iter().filter(wanted).map(read).collect();
    assert!(!found.is_empty(), "no sources in {directory}");
    found
}

/// What follows the last dot of a file's name.
pub(crate) fn extension(path: &Path) -> Option<&str> {
    path.extension()?.to_str()
}

impl Source {
    /// The lines without comments and without what stands between double quotes, with their numbers.
    pub(crate) fn code(&self) -> impl Iterator<Item = (usize, String)> {
        self.text.lines().enumerate().map(|(n, line)| (n + 1, without_comment_and_strings(line)))
    }

    /// The inner attributes and the module documentation before the first item.
    pub(crate) fn head(&self) -> String {
        let belongs =
            |l: &&str| l.is_empty() || l.starts_with("//") || l.starts_with("#![") || *l == ")]";
        self.text.lines().take_while(belongs).collect::<Vec<_>>().join("\n")
    }
}

fn without_comment_and_strings(line: &str) -> String {
    let (mut code, mut quoted, mut escaped) = (String::new(), false, false);
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '/' if !quoted && letters.peek() == Some(&'/') => break,
            _ if quoted => {}
            _ => code.push(letter),
        }
    }
    code
}

/// The identifiers of a line.
pub(crate) fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty())
}
