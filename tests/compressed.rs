// SPDX-License-Identifier: LGPL-2.1-only
//! `--compress`: checkpoints whose memory and files are compressed restart like all others, and so do theirs.

mod harness;

use std::fs;

use nix::sys::signal::Signal::SIGTSTP;

use harness::{Bench, Build, Who};

/// What `ckpt info` says of an image's compression.
#[track_caller]
fn compression(bench: &Bench, image: &str) -> String {
    bench.must(&["verify", &bench.name(image)]);
    let said = bench.must(&["info", "--json", &bench.name(image)]).stdout.join("\n");
    let rest = said.split("\"compression\":").nth(1).unwrap_or_else(|| panic!("{said}"));
    rest.split('"').nth(1).expect("a text").to_owned()
}

/// Three generations; the restarted program remembers how it was asked to be saved.
fn three_generations(who: Who, name: &str, build: Build, args: &[&str]) {
    let bench = Bench::new(who);
    let image = bench.name("x.ckpt");
    let mut run = bench.launch(&["--compress", "-n", &image], bench.subject(name, build), args);
    run.expect("ready");
    for _ in 0..3 {
        // The pool says nothing until it looks at all that it has when it goes; `ckpt save` waits for a restart.
        match name {
            "pool" => drop(bench.must(&["save", "--stop", &run.pid_text()])),
            _ => run.signal(SIGTSTP),
        }
        run.ends_well();
        assert_eq!(compression(&bench, "x.ckpt"), "LZ4");
        run = bench.run(bench.path("x.ckpt"), &[]);
        if name != "pool" {
            run.check();
            run.check();
        }
    }
    run.go();
}

#[test]
fn memory() {
    three_generations(Who::Nobody, "memory", Build::Static, &[]);
}

#[test]
fn memory_of_root() {
    three_generations(Who::Me, "memory", Build::Pie, &[]);
}

#[test]
fn files_that_travel_along() {
    three_generations(Who::Nobody, "nameless", Build::Pie, &[]);
}

#[test]
fn memory_that_processes_have_in_common() {
    three_generations(Who::Nobody, "pool", Build::Pie, &["changed", "3", "16"]);
}

#[test]
fn holes_and_what_does_not_get_smaller() {
    three_generations(Who::Nobody, "sparse", Build::Musl, &["8"]);
}

#[test]
fn it_is_smaller_and_only_if_asked_for() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("pool", Build::Pie), &["flat", "2", "8"]);
    run.expect("ready");
    let save = |more: &[&str], image: &str| {
        let name = bench.name(image);
        bench.must(&[&["save", &run.pid_text(), "-n", &name], more].concat());
        fs::metadata(bench.path(image)).expect("the image").len()
    };
    let (plain, packed) = (save(&[], "plain.ckpt"), save(&["--compress"], "packed.ckpt"));
    assert!(packed < plain, "{packed} bytes are not less than {plain}");
    assert_eq!(compression(&bench, "plain.ckpt"), "none");
    assert_eq!(compression(&bench, "packed.ckpt"), "LZ4");
    run.go();
    for image in ["plain.ckpt", "packed.ckpt"] {
        bench.run(bench.path(image), &[]).go();
    }
}
