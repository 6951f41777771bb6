// SPDX-License-Identifier: LGPL-2.1-only
//! Memory that processes have in common since they were forked: once in the image, and once in memory after the restart,
//! whoever made whom and whatever became of them.

mod harness;

use harness::{Bench, Build, Run, Who};
use std::fs;

const MIB: u64 = 1 << 20;

/// Workers, and what they have in common in MiB.
const SHAPE: [&str; 2] = ["5", "24"];

/// What libraries, stacks and processes of ckpt's own take of so few processes.
const OTHERS: u64 = 20 * MIB;

/// The processes below one, with it.
fn all_of(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    for at in 0.. {
        let Some(pid) = all.get(at).copied() else { break };
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        all.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    all
}

/// The memory that they take together.
fn memory(run: &Run) -> u64 {
    let of = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    all_of(run.pid()).iter().filter_map(of).sum::<u64>() << 10
}

#[track_caller]
fn stays_small(who: Who, build: Build, shape: &str) {
    let bench = Bench::new(who);
    let mut run = bench.run(bench.subject("pool", build), &[&[shape], &SHAPE[..]].concat());
    run.expect("ready");
    let bound = memory(&run) + OTHERS;
    for name in ["a.ckpt", "b.ckpt", "c.ckpt"] {
        bench.must(&["save", "--stop", &run.pid_text(), "-n", &bench.name(name)]);
        run.ends_well();
        let image = fs::metadata(bench.path(name)).expect("a checkpoint").len();
        assert!(image < bound, "{shape}: {} MiB of {}", image / MIB, bound / MIB);
        run = bench.run(bench.path(name), &[]);
        // It waits until the restart is over.
        bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
        let now = memory(&run);
        assert!(now < bound, "{shape}: {} MiB of {}", now / MIB, bound / MIB);
    }
    run.go();
}

#[test]
fn workers_share_with_their_parent() {
    stays_small(Who::Me, Build::Pie, "flat");
    stays_small(Who::Nobody, Build::Musl, "huge");
}

/// A script that runs a program which has a pool.
#[test]
fn workers_of_a_child_share_with_it() {
    stays_small(Who::Me, Build::Static, "below");
    stays_small(Who::Nobody, Build::Pie, "below");
}

#[test]
fn workers_share_whose_parent_is_gone() {
    stays_small(Who::Nobody, Build::Pie, "dead");
    stays_small(Who::Me, Build::Pie, "siblings");
}

#[test]
fn workers_share_what_their_parent_has_changed() {
    stays_small(Who::Nobody, Build::Pie, "changed");
    stays_small(Who::Me, Build::Pie, "moving");
}
