// SPDX-License-Identifier: LGPL-2.1-only
//! What few programs have, and what nobody sees missing before it is used.

mod harness;

use harness::{Bench, Build, Way, Who};

/// Three generations of the subject, which looks at its state in each, as a session's leader.
#[track_caller]
fn keeps(kind: &str) {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let subject = bench.subject("rare", Build::Pie);
        let mut run = bench.run("/usr/bin/setsid", &[&subject.to_string_lossy(), kind]);
        match run.line().as_str() {
            "ready" => {}
            "none" => continue,
            other => panic!("{other}"),
        }
        for image in ["1.ckpt", "2.ckpt", "3.ckpt"] {
            Way::SaveStop.save(&bench, image, run);
            if ["serial", "console"].contains(&kind) {
                // As another boot leaves it.
                let sane = ["-F", "/dev/tty63", "sane"];
                bench.run("/usr/bin/stty", &sane).ends_well();
            }
            run = bench.run(bench.path(image), &[]);
            run.check();
        }
        run.go();
    }
}

/// Who closes the master is told of the end of its own terminal, as before.
#[test]
fn a_leader_of_a_session_keeps_its_own_terminal() {
    keeps("terminal");
    keeps("closed");
}

#[test]
fn who_is_told_of_a_shared_pipe() {
    keeps("owner");
}

#[test]
fn nodes_without_a_name() {
    keeps("nodes");
}

#[test]
fn settings_of_serial_lines() {
    keeps("serial");
    keeps("console");
}

#[test]
fn watches_on_a_tree_of_directories() {
    keeps("watches");
}

/// What a restart itself does is no news.
#[test]
fn watches_tell_nothing_of_a_restart() {
    keeps("quiet");
}

#[test]
fn who_holds_a_lock_of_several() {
    keeps("holder");
}
