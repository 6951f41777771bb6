// SPDX-License-Identifier: LGPL-2.1-only
//! Processes of a job that are stopped: a checkpoint, its end at any step, and a restart leave them so, and their
//! parents hear of nothing.

mod harness;

use harness::faults::{armed, steps};
use harness::{Bench, Build, Run, Who, status_line, until};
use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};

fn halted(bench: &Bench) -> Run {
    let program = match bench.path("halted.pie") {
        program if program.exists() => program,
        _ => bench.subject("halted", Build::Pie),
    };
    let mut run = bench.run(program, &[]);
    run.expect("ready");
    run
}

fn generations(who: Who) {
    let bench = Bench::new(who);
    let mut run = halted(&bench);
    for name in ["a.ckpt", "b.ckpt", "c.ckpt"].map(|name| bench.name(name)) {
        for _ in 0..2 {
            bench.must(&["save", &run.pid_text(), "-n", &name]);
            run.check();
        }
        bench.must(&["save", "--stop", &run.pid_text(), "-n", &name]);
        run.ends_well();
        run = bench.run(&name, &[]);
        run.check();
    }
    run.go();
}

#[test]
fn stopped_children_stay_stopped_for_three_generations() {
    generations(Who::Me);
    generations(Who::Nobody);
}

/// Kills `ckpt save` at a step; whether it came there.
#[track_caller]
fn killed(bench: &Bench, step: &str, args: &[&str]) -> bool {
    let ended = Run::start(armed(bench.command(bench.ckpt()), step, args)).end();
    // One that enters a namespace waits for the dumper there.
    let killed = ended.signal() == Some(9) || ended.code() == Some(128 + 9);
    assert!(killed || ended.code() == Some(0), "{step}: {ended:?}");
    killed
}

#[test]
fn a_killed_dumper_lets_no_stopped_child_go_on() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = halted(&bench);
        let (pid, x) = (run.pid_text(), bench.name("x.ckpt"));
        let mut met = 0;
        for (step, turn) in steps(&bench, "dumper").into_iter().zip([2, 3].into_iter().cycle()) {
            if killed(&bench, &format!("{step}:{turn}"), &["save", &pid, "-n", &x]) {
                run.check();
                met += 1;
            }
        }
        assert!(met >= 10, "{met} steps");
        bench.must(&["save", "--stop", &pid, "-n", &x]);
        run.ends_well();
        let mut run = bench.run(&x, &[]);
        run.check();
        // Its stopped processes are in the restorer still.
        for step in ["frozen", "working:9", "cloned:2", "cloned:3", "pictured"] {
            let pid = run.pid_text();
            assert!(killed(&bench, step, &["save", &pid, "-n", &x]), "{step}");
            run.check();
        }
        run.go();
    }
}

/// Where there is no payload yet, threads work in holes; a stopped one stays there when its host dies.
#[test]
fn a_stopped_child_comes_out_of_a_hole() {
    let bench = Bench::new(Who::Nobody);
    for step in ["borrowed:2", "lending:2", "working:50", "entered:80", "mapped:3", "injected:3"] {
        let mut run = halted(&bench);
        let (pid, x) = (run.pid_text(), bench.name("x.ckpt"));
        assert!(killed(&bench, step, &["save", &pid, "-n", &x]));
        run.check();
        bench.must(&["save", &pid, "-n", &x]);
        run.check();
        run.go();
    }
}

/// One process alone, of one thread and of many: stopped again by its restart, it can be saved again as it stands.
#[test]
fn a_stopped_program_stays_stopped_for_three_generations() {
    let crowd: (_, &[&str]) = ("crowd", &["20"]);
    for (who, (subject, args)) in
        [(Who::Me, crowd), (Who::Nobody, crowd), (Who::Nobody, ("fpu", &[]))]
    {
        let bench = Bench::new(who);
        let mut run = bench.run(bench.subject(subject, Build::Pie), args);
        run.expect("ready");
        run.signal(SIGSTOP);
        for name in ["a.ckpt", "b.ckpt", "c.ckpt"].map(|name| bench.name(name)) {
            for args in [&["save"][..], &["save", "--stop"]] {
                until("its stop", || is_stopped(&run).then_some(()));
                bench.must(&[args, &[&run.pid_text(), "-n", &name]].concat());
            }
            run.ends_well();
            run = bench.run(&name, &[]);
        }
        until("its stop", || is_stopped(&run).then_some(()));
        run.signal(SIGCONT);
        run.check();
        run.go();
    }
}

fn is_stopped(run: &Run) -> bool {
    status_line(run.pid(), "State").is_some_and(|state| state.starts_with('T'))
}
