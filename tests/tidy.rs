// SPDX-License-Identifier: LGPL-2.1-only
//! Rules for the sources that no compiler checks.

mod sources;

use std::path::{Path, PathBuf};

use sources::{Source, extension, files, sources, words};

/// Where Rust sources lie.
const TREES: [&str; 4] = ["src", "payload", "tests", "build.rs"];

/// Lines of a file and of a function: above the soft ceiling a word, above the hard one a failure.
const FILE: (usize, usize) = (400, 500);
const FUNCTION: (usize, usize) = (60, 90);

/// Names that say nothing about what a file or module holds.
const EMPTY_NAMES: [&str; 8] =
    ["util", "misc", "common", "helper", "manager", "context", "info", "data"];

fn rust_sources() -> impl Iterator<Item = Source> {
    TREES.into_iter().flat_map(|tree| sources(tree, &["rs"]))
}

#[test]
fn unsafe_code_is_opted_into_with_a_reason() {
    let mut wrong = Vec::new();
    for source in rust_sources() {
        let Some((number, _)) = source.code().find(|(_, l)| words(l).any(|w| w == "unsafe")) else {
            continue;
        };
        let head = source.head();
        if !head.contains("#![allow(unsafe_code") || !head.contains("//! # Safety") {
            wrong.push(format!("{}:{number}", source.path.display()));
        }
    }
    assert!(
        wrong.is_empty(),
        "unsafe without #![allow(unsafe_code)] and a `# Safety` paragraph at the file's head:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_shared_types_forbid_unsafe_code() {
    for (package, lint) in [("payload/abi/src", "forbid"), ("src/loops", "deny")] {
        let shared = sources(package, &["rs"]);
        let root = shared.iter().find(|s| s.path.ends_with("lib.rs")).expect("lib.rs");
        let lint = format!("#![{lint}(unsafe_code)]");
        assert!(root.head().contains(&lint), "{}", root.path.display());
    }
}

#[test]
fn machine_code_stays_in_its_files() {
    for source in sources("payload", &["rs"]).iter().chain(&sources("src", &["rs"])) {
        let name = source.path.file_stem().and_then(|s| s.to_str()).expect("utf-8");
        let may = source.path.starts_with("payload") && (name == "sys" || name.contains("thunk"));
        let lines = source.code().filter(|(_, line)| line.contains("asm!"));
        let calls = lines.filter(|(number, _)| {
            let rest = source.text.lines().skip(number - 1).take(12);
            rest.take_while(|l| !l.trim_start().starts_with(");")).any(|l| l.contains("syscall"))
        });
        let numbers: Vec<_> = calls.map(|(number, _)| number).collect();
        assert!(may || numbers.is_empty(), "{}: lines {numbers:?}", source.path.display());
    }
}

#[test]
fn system_calls_of_the_payload_have_names() {
    let mut orders = 0;
    for source in sources("payload/src", &["rs"]) {
        let name = source.path.file_stem().and_then(|s| s.to_str()).expect("utf-8");
        if name == "sys" || name.contains("thunk") {
            continue;
        }
        for (number, line) in source.code() {
            let called = line.contains("sys::call(");
            orders += usize::from(called && name == "run");
            let raw = (called || line.contains("nr::")) && name != "run";
            assert!(!raw, "{}:{number}: a function of sys.rs instead", source.path.display());
        }
    }
    assert_eq!(orders, 1, "the host's orders alone have a number");
}

/// Where a process is found by its id: whoever looks at one elsewhere has a `Process`, which stays the same one.
const BY_ID: [&str; 4] =
    ["src/proc/process.rs", "src/proc/stat.rs", "src/proc/thread.rs", "src/proc/tree.rs"];

#[test]
fn processes_are_looked_at_by_what_was_opened() {
    let mut wrong = Vec::new();
    for source in sources("src", &["rs"]) {
        if BY_ID.iter().any(|path| source.path == Path::new(path)) {
            continue;
        }
        // In a sentence it is only called so, and an id of our own is nobody else's.
        let paths = |line: &str| line.contains("\"/proc/{") && !line.contains("process::id()");
        let code = source.text.lines().take_while(|line| *line != "#[cfg(test)]");
        let code = code.enumerate().filter(|(_, line)| paths(line));
        wrong.extend(code.map(|(n, _)| format!("{}:{}", source.path.display(), n + 1)));
    }
    assert!(
        wrong.is_empty(),
        "/proc/PID by an id in place of a proc::Process:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn files_and_functions_stay_short() {
    let (mut wrong, mut long) = (Vec::new(), Vec::new());
    let mut judge = |what: String, lines: usize, (soft, hard): (usize, usize)| {
        let list = if lines > hard { &mut wrong } else { &mut long };
        if lines > soft {
            list.push(format!("{what}: {lines} lines"));
        }
    };
    for source in rust_sources() {
        let path = source.path.display();
        judge(path.to_string(), source.text.lines().count(), FILE);
        for (name, begin, lines) in functions(&source) {
            judge(format!("{path}:{begin}: {name}"), lines, FUNCTION);
        }
    }
    println!("above the soft ceiling:\n{}", long.join("\n"));
    assert!(wrong.is_empty(), "above the hard ceiling:\n{}", wrong.join("\n"));
}

/// The functions of a file that rustfmt has laid out: name, first line, number of lines.
fn functions(source: &Source) -> Vec<(String, usize, usize)> {
    let lines: Vec<_> = source.code().map(|(_, line)| line).collect();
    let mut found = Vec::new();
    for (begin, line) in lines.iter().enumerate() {
        let mut names = words(line).skip_while(|w| *w != "fn").skip(1);
        let Some(name) = names.next().filter(|_| line.contains("fn ")) else { continue };
        let indent = line.len() - line.trim_start().len();
        let close = format!("{}}}", " ".repeat(indent));
        let rest = lines[begin..].iter();
        let end = rest.take_while(|l| l.trim_end() != close && !is_short(l, indent)).count();
        found.push((name.to_owned(), begin + 1, end + 1));
    }
    found
}

/// A function on one line, or a signature without a body.
fn is_short(line: &str, indent: usize) -> bool {
    let own = line.len() - line.trim_start().len() == indent;
    let end = line.trim_end();
    own && (end.ends_with(';') || (end.ends_with('}') && line.contains("fn ")))
}

#[test]
fn functions_are_measured() {
    let text = "fn a() {\n    1;\n}\n\nimpl X {\n    fn b(\n        x: u8,\n    ) -> u8 {\n        x\n    }\n\
                \n    fn c() {}\n    fn d();\n}\n";
    let found = functions(&Source { path: "x.rs".into(), text: text.into() });
    let expected = [("a", 1, 3), ("b", 6, 5), ("c", 12, 1), ("d", 13, 1)];
    assert_eq!(found, expected.map(|(name, begin, lines)| (name.to_owned(), begin, lines)));
}

#[test]
fn names_say_something() {
    let empty = |name: &str| {
        name.split('_')
            .any(|part| EMPTY_NAMES.iter().any(|e| part == *e || part.strip_suffix('s') == Some(e)))
    };
    let mut wrong = Vec::new();
    for source in TREES.into_iter().flat_map(|tree| sources(tree, &["rs", "c", "h", "s", "sh"])) {
        for part in source.path.with_extension("").iter().filter_map(|p| p.to_str()) {
            if empty(part) {
                wrong.push(source.path.display().to_string());
            }
        }
        for (number, line) in source.code() {
            let mut rest = words(&line).skip_while(|w| *w != "mod").skip(1);
            if rest.next().is_some_and(empty) && source.path.extension().is_some_and(|e| e == "rs")
            {
                wrong.push(format!("{}:{number}: {}", source.path.display(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_names_its_licence() {
    const PLACES: [&str; 12] = [
        "src",
        "payload",
        "tests",
        "scripts",
        "packaging",
        "examples",
        "fuzz",
        "build.rs",
        "Cargo.toml",
        ".cargo",
        ".ci",
        "rustfmt.toml",
    ];
    // Prose, and files that a program writes: what they hold begins with the first byte.
    let without = |path: &PathBuf| {
        matches!(extension(path), Some("md" | "ckpt" | "lock" | "pyc" | "gitignore"))
            || path.iter().any(|part| part == "corpus" || part == "artifacts" || part == "target")
    };
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let line = concat!("SPDX-License-Identifier: ", env!("CARGO_PKG_LICENSE"));
    let named = |path: &PathBuf| {
        let text = std::fs::read(top.join(path)).expect("a file");
        text.split(|byte| *byte == b'\n').take(2).any(|l| String::from_utf8_lossy(l).contains(line))
    };
    let all = PLACES.into_iter().flat_map(files).filter(|path| !without(path));
    let wrong: Vec<_> = all.filter(|path| !named(path)).collect();
    assert!(wrong.is_empty(), "without a line \"{line}\": {wrong:#?}");
}

/// What a merge could not settle is in no file of text.
#[test]
fn nothing_of_a_conflict_is_left() {
    let mut wrong = Vec::new();
    let trees = [&TREES[..], &["docs", "scripts", "README.md", "CHANGELOG.md", "Cargo.toml"]];
    for path in trees.concat().into_iter().flat_map(files) {
        let text =
            std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(&path)).expect("a file");
        let marks = ["<".repeat(7), ">".repeat(7), "|".repeat(7)];
        let is_mark = |line: &[u8]| marks.iter().any(|mark| line.starts_with(mark.as_bytes()));
        if !text.contains(&0) && text.split(|byte| *byte == b'\n').any(is_mark) {
            wrong.push(path.display().to_string());
        }
    }
    assert!(wrong.is_empty(), "marks of a conflict:\n{}", wrong.join("\n"));
}
