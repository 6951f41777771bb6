// SPDX-License-Identifier: LGPL-2.1-only
//! Timers, sleeps and time-outs: a checkpoint changes nothing in them, and a restart gives them the
//! time that they had left.

mod harness;

use harness::{Bench, Build, Run, Way, Who, survive, until};

macro_rules! timers_go_on {
    ($($test:ident: $who:ident $way:ident $build:ident;)*) => {$(
        #[test]
        fn $test() {
            survive(Who::$who, Way::$way, "timers", Build::$build, &[]);
        }
    )*};
}

mod timers {
    use super::*;

    timers_go_on! {
        launched: Me Launch Pie;
        saved: Me Save Pie;
        attached: Me Attach Pie;
        launched_unprivileged: Nobody LaunchContinue Pie;
        saved_unprivileged: Nobody SaveStop Pie;
        static_glibc: Nobody SaveStop Static;
        static_musl: Nobody SaveStop Musl;
        static_musl_as_root: Me Save Musl;
    }
}

#[test]
fn subjects_work_by_themselves() {
    let bench = Bench::new(Who::Nobody);
    for build in Build::ALL {
        let mut run = bench.run(bench.subject("timers", build), &[]);
        run.expect("ready");
        run.check();
        run.go();
    }
    for which in ["timed", "untimed", "restartable"] {
        let mut run = bench.run(bench.subject("sleeps", Build::Pie), &[which]);
        run.expect("ready");
        run.expect("over");
        run.go();
    }
}

/// One thread sleeps in each call; they are saved all the time until the last limit is over. A sleep
/// that began anew with each checkpoint would never end, one that was disturbed is noticed by the
/// subject.
#[track_caller]
fn sleepers_notice_nothing(who: Who) {
    let saves = || {
        let bench = Bench::new(who);
        let mut run = bench.run(bench.subject("sleeps", Build::Pie), &["timed"]);
        run.expect("ready");
        let saves = saved_until_over(&bench, &mut run);
        run.go();
        saves
    };
    // On a busy machine the sleeps may be over sooner.
    assert!((0..10).any(|_| saves() >= 3), "no three saves in any sleep");
}

/// Saves until the program says "over"; how often. Where something in it cannot be saved, the threads
/// are stopped and go on all the same.
#[track_caller]
fn saved_until_over(bench: &Bench, run: &mut Run) -> usize {
    let mut saves = 0;
    let said = until("the end of all sleeps, saved all the time", || {
        bench.order(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
        saves += 1;
        run.line_now().or_else(|| (!run.lives()).then(|| run.fate()))
    });
    assert_eq!(said, "over");
    saves
}

#[test]
fn sleeps_with_limits_notice_nothing() {
    sleepers_notice_nothing(Who::Me);
}

#[test]
fn sleeps_with_limits_notice_nothing_unprivileged() {
    sleepers_notice_nothing(Who::Nobody);
}

/// Sleeps without a limit: saved twenty times, none of them ends before it is woken, and then all do.
#[track_caller]
fn nobody_wakes_early(who: Who) {
    let bench = Bench::new(who);
    let mut run = bench.run(bench.subject("sleeps", Build::Pie), &["untimed"]);
    run.expect("ready");
    run.expect("over");
    for _ in 0..20 {
        bench.order(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
        assert!(run.lives(), "{}", run.fate());
    }
    run.go();
}

#[test]
fn sleeps_without_limits_notice_nothing() {
    nobody_wakes_early(Who::Me);
}

#[test]
fn sleeps_without_limits_notice_nothing_unprivileged() {
    nobody_wakes_early(Who::Nobody);
}

/// Sleeps go on after a restart, those with a limit not shorter than they asked.
#[track_caller]
fn sleepers_sleep_on(who: Who, way: Way) {
    let bench = Bench::new(who);
    let mut run =
        way.start(&bench, "x.ckpt", &bench.subject("sleeps", Build::Pie), &["restartable"]);
    run.expect("ready");
    if let Some(mut original) = way.save(&bench, "x.ckpt", run) {
        original.expect("over");
        original.go();
    }
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.expect("over");
    again.go();
}

#[test]
fn sleeps_go_on_after_the_restart() {
    sleepers_sleep_on(Who::Me, Way::SaveStop);
}

#[test]
fn sleeps_go_on_after_the_restart_unprivileged() {
    sleepers_sleep_on(Who::Nobody, Way::Save);
}

/// The signal wakes nobody but the thread that does not block it, which is in no sleep that may tell.
#[test]
fn sleeps_go_on_after_the_signal() {
    sleepers_sleep_on(Who::Nobody, Way::LaunchContinue);
}

/// What is noted about waits stays when one thread alone is stopped: the next checkpoint knows how long they have lasted.
#[test]
fn waits_of_threads_that_are_not_stopped_stay_known() {
    const WAIT: &str = "import select, sys, threading\n\
        wait = lambda: select.poll().poll(10**8)\n\
        for _ in range(3): threading.Thread(target=wait, daemon=True).start()\n\
        print('ready', flush=True)\n\
        sys.stdin.readline()";
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = bench.run("/usr/bin/python3", &["-c", WAIT]);
        run.expect("ready");
        let (pid, x) = (run.pid_text(), bench.name("x.ckpt"));
        for _ in 0..2 {
            let saved = bench.must(&["save", &pid, "-n", &x]);
            assert!(!saved.stderr.contains("has slept or waited already"), "{saved:?}");
            bench.must(&["-p", &pid, "-n", &x]);
        }
        run.say("go");
        run.ends_well();
    }
}
