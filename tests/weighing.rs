// SPDX-License-Identifier: LGPL-2.1-only
//! `scripts/bench` measures what it says; how much that is, no test asserts.

use std::path::Path;
use std::process::{Command, Output};

fn bench(args: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bench");
    let mut command = Command::new(script);
    command.args(args).env("CKPT_BENCH_RUNS", "1").env("CKPT_BENCH_MIB", "1");
    command.output().expect("the script runs")
}

#[test]
fn the_bench_prints_a_document_and_makes_a_table_of_it() {
    let ended = bench(&["--json", "launch", "image"]);
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success(), "{said}");
    let document = String::from_utf8(ended.stdout).expect("utf-8");
    // Nothing that ckpt says stands between the figures.
    assert!(document.starts_with("{\n") && document.ends_with("}\n"), "{document}");
    for key in ["\"kernel\"", "\"ckpt_ms\"", "\"goal_ms\"", "\"ckpt_bytes\"", "\"limit_bytes\""] {
        assert!(document.contains(key), "{key} is missing: {document}");
    }
    let file = std::env::temp_dir().join(format!("ckpt-weighing-{}", std::process::id()));
    std::fs::write(&file, &document).expect("a file");
    let table = bench(&["--from", file.to_str().expect("utf-8")]);
    std::fs::remove_file(&file).expect("it is there");
    let table = String::from_utf8(table.stdout).expect("utf-8");
    assert!(table.contains("| launch: of true |"), "{table}");
    assert!(table.contains("| image: of a program with 64 MiB |"), "{table}");
}
