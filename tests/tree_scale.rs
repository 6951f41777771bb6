// SPDX-License-Identifier: LGPL-2.1-only
//! Jobs of many processes and threads, and jobs that make others all the time. `CKPT_SOAK_SECONDS=60` lets the storms last
//! longer.

mod harness;

use harness::{Bench, Build, Run, Who};
use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// So many children with so many threads each, and chains of so many more below them.
#[track_caller]
fn goes_on(who: Who, build: Build, shape: [&str; 3], stopped_before: bool) {
    let bench = Bench::new(who);
    let mut run = bench.run(bench.subject("scale", build), &shape);
    run.expect("ready");
    bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    if stopped_before {
        stop_all_for_a_moment(&run);
    }
    for name in ["a.ckpt", "b.ckpt", "c.ckpt"] {
        bench.must(&["save", "--stop", &run.pid_text(), "-n", &bench.name(name)]);
        run.ends_well();
        run = bench.run(bench.path(name), &[]);
        bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    }
    run.go();
}

/// Somebody else stops the children and lets them go on.
fn stop_all_for_a_moment(run: &Run) {
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.pid()));
    let children: Vec<Pid> = children
        .expect("its children")
        .split_ascii_whitespace()
        .map(|child| Pid::from_raw(child.parse().expect("an id")))
        .collect();
    for signal in [SIGSTOP, SIGCONT] {
        children.iter().for_each(|child| kill(*child, signal).expect("a child"));
        let wanted = if signal == SIGSTOP { 'T' } else { 'S' };
        for child in &children {
            let state = || {
                let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
                (stat.rsplit(") ").next()?.starts_with(wanted)).then_some(())
            };
            harness::until("a child's state", state);
        }
    }
}

#[test]
fn two_hundred_processes() {
    goes_on(Who::Me, Build::Pie, ["200", "1", "0"], false);
}

#[test]
fn twenty_chains_unprivileged() {
    goes_on(Who::Nobody, Build::Musl, ["20", "2", "2"], false);
}

#[test]
fn two_thousand_threads() {
    goes_on(Who::Nobody, Build::Pie, ["20", "100", "0"], false);
}

#[test]
fn polls_that_others_have_stopped_go_on() {
    goes_on(Who::Nobody, Build::Pie, ["3", "9", "0"], true);
    goes_on(Who::Me, Build::Musl, ["3", "9", "0"], true);
}

/// More processes than may be open files: the limit is raised as far as it goes, else said, and nothing happens.
#[test]
fn few_descriptors_are_enough_or_named() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("scale", Build::Static), &["60", "1", "0"]);
    run.expect("ready");
    let limited = |limit: &str, words: &[&str]| {
        let script = format!("ulimit {limit}; exec \"$@\"");
        bench.run("sh", &[&["-c", &script, "sh"][..], words].concat())
    };
    let image = bench.name("x.ckpt");
    let pid = run.pid_text();
    let refused = limited("-n 40", &["./ckpt", "save", "--stop", &pid, "-n", &image]).finish();
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    assert!(refused.stderr.contains("(ulimit -n)"), "{refused:?}");
    for _ in 0..3 {
        let pid = run.pid_text();
        limited("-Sn 40", &["./ckpt", "save", "--stop", &pid, "-n", &image]).ends_well();
        run.ends_well();
        run = limited("-Sn 40", &[&image]);
        bench.must(&["save", &run.pid_text(), "-n", &bench.name("y.ckpt")]);
    }
    run.go();
}

/// A script that runs others all the time is saved again and again meanwhile; each result is looked at. What was saved
/// last comes to the same end.
#[track_caller]
fn storm(who: Who, shell: &str, body: &str) {
    let seconds = std::env::var("CKPT_SOAK_SECONDS").unwrap_or_else(|_| "4".to_owned());
    let script = format!(
        "n=0; end=$(($(date +%s) + {seconds})); bad() {{ echo \"bad $1\"; exit 1; }}; \
         echo ready; while [ $(date +%s) -lt $end ]; do {body} n=$((n + 1)); done; echo done"
    );
    let bench = Bench::new(who);
    let options = ["-c", "-z", "200", "-n", "s.ckpt"];
    let mut run = bench.launch(&options, shell, &["-c", &script]);
    run.expect("ready");
    run.expect("done");
    run.ends_well();
    let mut again = bench.run(bench.path("s.ckpt"), &[]);
    again.expect("done");
    again.ends_well();
}

#[test]
fn a_storm_of_forks_is_saved_all_the_time() {
    let body = "/bin/true || bad true; (exit 7); [ $? = 7 ] || bad 7; \
                x=$(echo $n | (read y; echo $((y + 1)))); [ $x = $((n + 1)) ] || bad $x;";
    storm(Who::Nobody, "/bin/dash", body);
    storm(Who::Me, "/bin/bash", body);
}

#[test]
fn a_storm_of_eight_at_once_is_saved_all_the_time() {
    let body = "x=$(seq 40 | xargs -P8 -n1 sh -c 'echo $(($0 * 3))' | sort -n | tail -1); \
                [ $x = 120 ] || bad $x;";
    storm(Who::Nobody, "/bin/bash", body);
}
