// SPDX-License-Identifier: LGPL-2.1-only
//! Hundreds of checkpoints of one program, and nothing grows in it.

mod harness;

use std::collections::BTreeSet;
use std::fs;

use harness::{Bench, Build, Run, Way, Who, rounds, status_line};

const CHECKPOINTS: usize = 500;
/// The first ones may settle what stays: the payload, allocator arenas, stacks touched by handlers.
const SETTLED: usize = 50;

/// What must not grow.
#[derive(Debug, PartialEq, Eq)]
struct Size {
    descriptors: BTreeSet<String>,
    mappings: usize,
    children: String,
    threads: String,
    pending: String,
}

fn size(run: &Run) -> Size {
    let of = |what: &str| format!("/proc/{}/{what}", run.pid());
    let names = fs::read_dir(of("fd")).expect("the process lives");
    let descriptors = names.map(|e| e.expect("an entry").file_name().into_string().expect("utf-8"));
    let tasks = fs::read_dir(of("task")).expect("the process lives");
    let children = tasks.map(|t| fs::read_to_string(t.expect("an entry").path().join("children")));
    Size {
        descriptors: descriptors.collect(),
        mappings: fs::read_to_string(of("maps")).expect("maps").lines().count(),
        children: children.map(|c| c.expect("children")).collect(),
        threads: status_line(run.pid(), "Threads").expect("status"),
        pending: status_line(run.pid(), "ShdPnd").expect("status"),
    }
}

fn kilobytes(run: &Run, line: &str) -> u64 {
    let text = status_line(run.pid(), line).expect("status");
    text.trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn five_hundred_checkpoints_leave_nothing_behind() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("soak", Build::Pie), &[]);
    run.expect("ready");
    let name = bench.name("x.ckpt");
    let save = |run: &Run| bench.must(&["save", &run.pid_text(), "-n", &name]);
    for _ in 0..SETTLED {
        save(&run);
    }
    let (settled, resident) = (size(&run), kilobytes(&run, "VmRSS"));
    let reserved = kilobytes(&run, "VmSize");
    for _ in rounds(CHECKPOINTS - SETTLED) {
        save(&run);
        assert!(run.lives(), "{}", run.fate());
    }
    run.check();
    assert_eq!(size(&run), settled);
    assert_eq!(kilobytes(&run, "VmSize"), reserved);
    // The program's own allocations come and go; a page for each checkpoint would be 1,800 kB.
    let now = kilobytes(&run, "VmRSS");
    assert!(now <= resident + 400, "{now} kB instead of {resident}");
    assert_eq!(bench.names("x.ckpt"), ["x.ckpt"], "files were left behind");
    Way::SaveStop.save(&bench, "x.ckpt", run);
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.check();
    again.go();
}
