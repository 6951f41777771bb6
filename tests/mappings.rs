// SPDX-License-Identifier: LGPL-2.1-only
//! Mappings of files and of shared memory: what is seen through them after a restart is what was there at the
//! checkpoint, and what could be done with them can be done.

mod harness;

use harness::{Bench, Build, Way, Who, rounds, survive};

macro_rules! mappings {
    ($($test:ident: $kind:literal;)*) => {$(
        #[test]
        fn $test() {
            survive(Who::Me, Way::SaveStop, "mappings", Build::Pie, &[$kind]);
            survive(Who::Nobody, Way::LaunchContinue, "mappings", Build::Pie, &[$kind]);
            survive(Who::Nobody, Way::Launch, "mappings", Build::Static, &[$kind]);
        }
    )*};
}

mappings! {
    a_guard_in_a_mapped_file_is_not_its_end: "guard";
    a_shared_file_can_be_made_writable_again: "protection";
    there_is_nothing_behind_the_end_of_a_file: "end";
    flags_of_mappings_stay: "flags";
    guards_in_shared_memory_hide_what_was_there: "shared-guard";
    what_is_only_read_may_be_larger_than_memory: "large";
}

#[test]
fn mappings_become_one_again() {
    survive(Who::Me, Way::SaveStop, "joined", Build::Pie, &[]);
    survive(Who::Nobody, Way::Save, "joined", Build::Static, &[]);
}

#[test]
fn untouched_pages_follow_their_file() {
    survive(Who::Me, Way::SaveStop, "mappings", Build::Pie, &["follow"]);
    survive(Who::Nobody, Way::Launch, "mappings", Build::Musl, &["follow"]);
}

/// What is known of mappings before the program stands still may be another thing then.
#[test]
fn advice_that_changes_under_a_checkpoint() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = bench.run(bench.subject("advises", Build::Pie), &[]);
        run.expect("ready");
        bench.must(&["-p", &run.pid_text(), "-z", "100000"]);
        for _ in rounds(4) {
            let x = bench.name("x.ckpt");
            bench.must(&["save", &run.pid_text(), "-n", &x]);
            let mut again = bench.run(&x, &[]);
            again.check();
            bench.must(&["save", "--stop", &again.pid_text(), "-n", &x]);
            again.ends_well();
            let mut third = bench.run(&x, &[]);
            third.check();
            third.go();
        }
        run.check();
        run.go();
    }
}

/// A shell's limits are the restarter's, not the program's: they are no reason to crash.
#[test]
fn small_limits_of_the_restarter_do_no_harm() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let program = bench.subject("mappings", Build::Pie);
        let mut run = Way::SaveStop.start(&bench, "x.ckpt", &program, &["protection"]);
        run.expect("ready");
        Way::SaveStop.save(&bench, "x.ckpt", run);
        for limits in ["-s 64", "-s 128", "-S -d 100", "-S -f 0", "-S -v 10000"] {
            let line = format!("ulimit {limits}; exec ./x.ckpt");
            let mut run = bench.run("sh", &["-c", &line]);
            run.check();
            run.go();
        }
        let (ckpt, program) = (bench.ckpt(), program.display());
        let line = format!("ulimit -S -d 20000; exec {} {program} protection", ckpt.display());
        let mut run = bench.run("sh", &["-c", &line]);
        run.expect("ready");
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", run.pid()));
        let limits = limits.expect("its limits");
        let data = limits.lines().find(|line| line.starts_with("Max data size")).expect("a limit");
        assert!(data.contains(" 20480000 "), "ckpt's own limits are the program's: {data}");
        run.go();
    }
}
