// SPDX-License-Identifier: LGPL-2.1-only
//! The layers of the project: imports point down only.

mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sources::{Source, sources};

/// The modules of the `ckpt` crate by layer, the highest last. Layer 0 is the crate `ckpt_abi`.
const LAYERS: [&[&str]; 4] = [
    &[
        "abreast", "loops", "proc", "ptrace", "error", "fault", "heap", "object", "order",
        "packed", "progress", "rights", "settings", "speech", "units",
    ],
    &["resource", "image", "inject"],
    &["dump", "restart", "serve"],
    &["main", "naming", "unwinding", "cli", "command"],
];

/// The layer whose modules never see each other.
const APART: usize = 3;

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|names| names.contains(&module)).map(|i| i + 1)
}

/// The top module that a file of src/ belongs to.
fn module_of(path: &Path) -> String {
    let inside = path.strip_prefix("src").expect("a file of src");
    let first = inside.components().next().expect("a name").as_os_str();
    Path::new(first).file_stem().and_then(|s| s.to_str()).expect("utf-8").to_owned()
}

/// How many modules deep a file is: src/a.rs and src/a/mod.rs are 1, src/a/b.rs is 2.
fn depth(path: &Path) -> usize {
    let parts = path.components().count() - 1;
    if path.file_stem().is_some_and(|s| s == "mod") { parts - 1 } else { parts }
}

/// The first names after `prefix` in the text: one, or those of a braced list.
fn names_after<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    let mut names = Vec::new();
    let begins_a_path = |at: usize| {
        let before = text[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    };
    for (at, _) in text.match_indices(prefix).filter(|&(at, _)| begins_a_path(at)) {
        let rest = &text[at + prefix.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            names.extend(sources::words(rest).next().filter(|w| rest.starts_with(w)));
            continue;
        };
        let (mut open, mut begin) = (0, 0);
        for (i, letter) in list.char_indices() {
            match letter {
                '{' => open += 1,
                '}' if open > 0 => open -= 1,
                ',' | '}' if open == 0 => {
                    names.extend(sources::words(&list[begin..i]).next());
                    begin = i + 1;
                    if letter == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
    }
    names
}

/// The top modules that a file names.
fn imports(source: &Source) -> BTreeSet<String> {
    let code: Vec<_> = source.code().map(|(_, line)| line).collect();
    let code = code.join("\n");
    let depth = depth(&source.path);
    // Inside an inline module (tests) one `super` more reaches the top.
    let ways = ["crate::".to_owned(), "ckpt::".to_owned()];
    let upwards = [depth, depth + 1].map(|n| "super::".repeat(n));
    let all = ways.iter().chain(&upwards).flat_map(|prefix| names_after(&code, prefix));
    all.filter(|name| layer(name).is_some()).map(str::to_owned).collect()
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources("src", &["rs"]).iter().filter(|s| s.path != Path::new("src/lib.rs")) {
        let module = module_of(&source.path);
        let path = source.path.display();
        let Some(own) = layer(&module) else {
            wrong.push(format!("{path}: the module {module} has no layer"));
            continue;
        };
        for name in imports(source).into_iter().filter(|name| *name != module) {
            let other = layer(&name).expect("imports are modules");
            if other > own || (other == own && own == APART) {
                wrong.push(format!("{path} (layer {own}) imports {name} (layer {other})"));
            }
            graph.entry(module.clone()).or_default().insert(name);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(graph.get("main").is_some_and(|m| !m.is_empty()), "no imports were found: {graph:?}");
    for module in graph.keys() {
        let reached = reach(&graph, module);
        assert!(!reached.contains(module), "{module} imports itself by way of {reached:?}");
    }
}

fn reach(graph: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&String> = graph.get(from).into_iter().flatten().collect();
    while let Some(module) = open.pop() {
        if reached.insert(module.clone()) {
            open.extend(graph.get(module).into_iter().flatten());
        }
    }
    reached
}

#[test]
fn the_payload_depends_on_the_shared_types_alone() {
    let manifest = sources("payload", &["toml"]);
    let [shared, payload] = &manifest[..] else { panic!("two manifests in payload/") };
    let dependencies = |text: &str| -> Vec<String> {
        let lines = text.lines().skip_while(|l| *l != "[dependencies]").skip(1);
        let lines = lines.take_while(|l| !l.starts_with('[')).filter(|l| l.contains('='));
        lines.map(|l| l.split(['=', '.']).next().expect("a name").trim().to_owned()).collect()
    };
    assert_eq!(dependencies(&payload.text), ["ckpt-abi"]);
    let allowed = ["zerocopy", "static_assertions"];
    let shared = dependencies(&shared.text);
    assert!(shared.iter().all(|d| allowed.contains(&d.as_str())), "{shared:?}");
    for source in sources("payload", &["rs"]) {
        for (number, line) in source.code() {
            for foreign in ["std::", "libc::", "nix::", "goblin::"] {
                let found = line.contains(foreign) && !line.contains(&format!("_{foreign}"));
                assert!(!found, "{}:{number}: {foreign}", source.path.display());
            }
        }
    }
}

#[test]
fn imports_are_found() {
    let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
    let deep = source(
        "src/dump/gather.rs",
        "use crate::{error::{Error, Result}, proc};\nuse super::super::image;\n// crate::serve\n\
         fn f() { crate::inject::g(\"crate::cli\") }\nuse super::restart;",
    );
    let found: Vec<_> = imports(&deep).into_iter().collect();
    assert_eq!(found, ["error", "image", "inject", "proc"]);
    let top = source("src/restart/mod.rs", "use super::dump;");
    assert_eq!(imports(&top).into_iter().collect::<Vec<_>>(), ["dump"]);
}
