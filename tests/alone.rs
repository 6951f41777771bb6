// SPDX-License-Identifier: LGPL-2.1-only
//! A program meets nothing of ours, whatever it looks for and however little it may have: no child, descriptor or signal.

mod harness;

use harness::{Bench, Build, Way, Who, periods::renewed};

const KINDS: [&str; 13] = [
    "",
    "handled",
    "ignored",
    "signalfd",
    "reaper",
    "processes",
    "files",
    "sizes",
    "signals",
    "space",
    "data",
    "locked",
    "stack",
];

/// Checkpoints by itself and by `ckpt save`, and a restart.
fn meets_nobody(who: Who) {
    let bench = Bench::new(who);
    let program = bench.subject("alone", Build::Static);
    for kind in KINDS {
        let image = format!("{kind}.ckpt");
        let mut run = bench.launch(&["-z", "100", "-n", &image], &program, &[kind]);
        run.expect("ready");
        renewed(&bench.path(&image), None);
        run.check();
        let mut run = Way::Save.save(&bench, "save.ckpt", run).expect("it goes on");
        run.check();
        run.go();
        let mut again = bench.run(bench.path("save.ckpt"), &[]);
        again.check();
        again.go();
    }
}

/// The dumper of a signal takes what the hard limits leave.
#[test]
fn soft_limits_are_the_programs() {
    for who in [Who::Me, Who::Nobody] {
        for kind in ["soft space", "soft files"] {
            let bench = Bench::new(who);
            let program = bench.subject("alone", Build::Static);
            let mut run = bench.launch(&["-n", "x.ckpt"], &program, &[kind]);
            run.expect("ready");
            run.check();
            Way::Launch.save(&bench, "x.ckpt", run);
            let mut again = bench.run(bench.path("x.ckpt"), &[]);
            again.check();
            again.go();
        }
    }
}

#[test]
fn a_program_meets_nobody() {
    meets_nobody(Who::Me);
}

#[test]
fn a_program_meets_nobody_unprivileged() {
    meets_nobody(Who::Nobody);
}

/// As the first process of a PID namespace it would be init to whatever loses its parent there.
#[test]
fn the_first_process_of_a_namespace_meets_nobody() {
    let bench = Bench::new(Who::Me);
    let program = bench.subject("alone", Build::Static);
    let words = ["-Urpf", "--mount-proc", "--kill-child", "./ckpt", "-z", "100", "-n", "x.ckpt"];
    for kind in ["", "handled", "ignored", "signalfd"] {
        let path = program.to_string_lossy();
        let mut run = bench.run("/usr/bin/unshare", &[&words[..], &[&path, kind]].concat());
        run.expect("ready");
        let first = renewed(&bench.path("x.ckpt"), None);
        renewed(&bench.path("x.ckpt"), Some(first));
        run.check();
        run.go();
        std::fs::remove_file(bench.path("x.ckpt")).expect("its checkpoint");
    }
}
