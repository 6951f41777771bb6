// SPDX-License-Identifier: LGPL-2.1-only
//! Programs with threads: whatever they do and however many they are, they are saved, go on as if
//! nothing had been, and are all there after a restart.

mod harness;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use harness::{Bench, Build, Run, Way, Who, saved_often, status_line, survive, until};

macro_rules! survives {
    ($($test:ident: $subject:literal $args:expr;)*) => {$(
        mod $test {
            use super::*;

            #[test]
            fn launched() {
                survive(Who::Me, Way::Launch, $subject, Build::Pie, &$args);
            }

            #[test]
            fn saved() {
                survive(Who::Me, Way::Save, $subject, Build::Pie, &$args);
            }

            #[test]
            fn launched_unprivileged() {
                survive(Who::Nobody, Way::LaunchContinue, $subject, Build::Pie, &$args);
            }

            #[test]
            fn saved_unprivileged() {
                survive(Who::Nobody, Way::SaveStop, $subject, Build::Pie, &$args);
            }

            #[test]
            fn static_glibc() {
                survive(Who::Nobody, Way::SaveStop, $subject, Build::Static, &$args);
            }

            #[test]
            fn static_musl() {
                survive(Who::Nobody, Way::SaveStop, $subject, Build::Musl, &$args);
                survive(Who::Me, Way::Attach, $subject, Build::Musl, &$args);
            }
        }
    )*};
}

survives! {
    posix_threads: "pthreads" [];
    state_of_each_thread: "perthread" [];
    robust_mutexes: "robust" [];
    held_robust_mutexes: "robust" ["held"];
    held_locks_that_name_their_owner: "owners" [];
    restartable_sequences: "rseq" [];
    creation_and_end: "churn" [];
}

/// Real-time policies and rising priorities, which only root may set.
#[test]
fn privileged_state_of_each_thread() {
    if !nix::unistd::geteuid().is_root() {
        println!("not run: only root may set real-time policies");
        return;
    }
    survive(Who::Me, Way::SaveStop, "perthread", Build::Pie, &["privileged"]);
}

/// What a thread answers ends with a signal of its own, and the same may come from elsewhere before.
#[test]
fn signals_that_are_nothing_change_no_answers() {
    const SAVES: usize = 5;
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = bench.run(bench.subject("perthread", Build::Pie), &[]);
        run.expect("ready");
        let (pid, is_over) = (Pid::from_raw(run.pid() as i32), AtomicBool::new(false));
        let name = |n: usize| format!("{n}.ckpt");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) && kill(pid, Signal::SIGURG).is_ok() {
                    std::thread::sleep(Duration::from_micros(1700));
                }
            });
            let save = |n| bench.order(&["save", &run.pid_text(), "-n", &bench.name(&name(n))]);
            let all: Vec<_> = (0..SAVES).map(save).collect();
            is_over.store(true, Ordering::Relaxed);
            assert!(all.iter().all(|saved| saved.code() == Some(0)), "{all:?}");
        });
        run.check();
        run.go();
        for n in 0..SAVES {
            let mut again = bench.run(bench.path(name(n)), &[]);
            again.check();
            again.go();
        }
    }
}

#[test]
fn subjects_work_by_themselves() {
    let bench = Bench::new(Who::Nobody);
    let plain: [(&str, &[&str]); 9] = [
        ("pthreads", &[]),
        ("perthread", &[]),
        ("robust", &[]),
        ("owners", &[]),
        ("rseq", &[]),
        ("churn", &[]),
        ("crowd", &["2000"]),
        ("crowd", &["200", "deaf"]),
        ("soak", &[]),
    ];
    for build in Build::ALL {
        for (subject, args) in plain {
            let mut run = bench.run(bench.subject(subject, build), args);
            run.expect("ready");
            run.check();
            run.go();
        }
    }
}

/// Also of threads that have much memory, which is not freed before the kernel has looked into it for their locks.
#[test]
fn others_get_the_locks_of_who_ends_with_its_checkpoint() {
    let bench = Bench::new(Who::Nobody);
    let (subject, locks) = (bench.subject("bequest", Build::Pie), bench.name("locks"));
    for _ in 0..4 {
        let mut run = bench.run(&subject, &[&locks]);
        run.expect("ready");
        run.check();
        bench.must(&["save", &run.pid_text(), "--stop", "-n", &bench.name("x.ckpt")]);
        run.end();
        bench.run(&subject, &[&locks, "left"]).ends_well();
    }
}

#[track_caller]
fn threads_of(run: &Run) -> usize {
    status_line(run.pid(), "Threads").expect("the process lives").parse().expect("a number")
}

#[track_caller]
fn all_come_back(who: Who, build: Build, number: usize, args: &[&str]) {
    let bench = Bench::new(who);
    let mut run = bench.run(bench.subject("crowd", build), args);
    run.expect("ready");
    assert_eq!(threads_of(&run), number + 1);
    let mut run = Way::Save.save(&bench, "first.ckpt", run).expect("it goes on");
    run.check();
    run.go();
    // Where a number has the value of its id by chance, it would be a child of the restarter.
    let mut again = bench.run(bench.path("first.ckpt"), &["--ids=new"]);
    again.check();
    assert_eq!(threads_of(&again), number + 1);
    Way::SaveStop.save(&bench, "second.ckpt", again);
    let mut again = bench.run(bench.path("second.ckpt"), &[]);
    again.check();
    again.go();
}

#[test]
fn two_thousand_threads() {
    all_come_back(Who::Me, Build::Pie, 2000, &["2000"]);
}

#[test]
fn two_thousand_threads_unprivileged() {
    all_come_back(Who::Nobody, Build::Musl, 2000, &["2000"]);
}

#[test]
fn threads_that_block_every_signal() {
    all_come_back(Who::Nobody, Build::Pie, 200, &["200", "deaf"]);
}

/// Whatever moment a checkpoint meets while threads come and go, it is whole.
#[track_caller]
fn saved_again_and_again(who: Who, build: Build) {
    let bench = Bench::new(who);
    let mut run = bench.run(bench.subject("churn", build), &[]);
    run.expect("ready");
    saved_often(&bench, run, 40, 8);
}

#[test]
fn saved_while_threads_come_and_go() {
    saved_again_and_again(Who::Me, Build::Pie);
}

#[test]
fn saved_while_threads_come_and_go_unprivileged() {
    saved_again_and_again(Who::Nobody, Build::Musl);
}

/// The thread of `run` that is in vfork(2): the kernel shows it in state D.
fn stuck_thread(run: &Run) -> Option<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", run.pid())).expect("the process lives");
    let names = tasks.filter_map(|t| t.ok()?.file_name().into_string().ok());
    let mut stuck = names.filter(|tid| {
        let stat = fs::read_to_string(format!("/proc/{}/task/{tid}/stat", run.pid()));
        stat.is_ok_and(|text| text.rsplit(") ").next().is_some_and(|rest| rest.starts_with('D')))
    });
    stuck.next()
}

/// This test takes the time that ckpt gives a thread to stop.
#[test]
fn a_parent_in_vfork_is_named_and_unharmed() {
    let bench = Bench::new(Who::Nobody);
    let gate = bench.path("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("a FIFO");
    bench.give(&gate);
    let mut run = bench.run(bench.subject("vfork", Build::Pie), &["gate"]);
    run.expect("ready");
    let stuck = until("the thread in vfork", || stuck_thread(&run));
    let saved = bench.order(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    assert_eq!(saved.code(), Some(125), "{saved:?}");
    for word in [&format!("thread {stuck} "), "waits in vfork(2)"] {
        assert!(saved.stderr.contains(word), "no {word:?} in {:?}", saved.stderr);
    }
    assert!(!bench.path("x.ckpt").exists());
    run.check();
    fs::write(&gate, "x").expect("the child reads");
    run.check();
    run.go();
}
