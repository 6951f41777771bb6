// SPDX-License-Identifier: LGPL-2.1-only
//! What the processes of a job talk by: shared memory with names, locks in it, process descriptors, System V objects.

mod harness;

use harness::{Bench, Build, Run, Who};

/// Three generations, each of which looks at its state and goes on; the last comes to its end.
fn generations(bench: &Bench, mut run: Run) {
    for generation in 1..4 {
        run.check();
        // As it is configured: in a user namespace, too, its file is touched with its own rights.
        bench.must(&["save", &run.pid_text()]);
        run.check();
        let saved = bench.must(&["save", "--stop", &run.pid_text()]);
        assert_eq!(saved.complaints(), "", "generation {generation}");
        run.ends_well();
        run = bench.run(bench.path("x.ckpt"), &[]);
        run.check();
    }
    run.go();
}

fn start(bench: &Bench, args: &[&str]) -> Run {
    let program = bench.subject("ipc", Build::Pie);
    bench.launch(&["-c", "-n", "x.ckpt"], program.to_str().expect("a path"), args)
}

fn posix(bench: &Bench) -> Run {
    let mut run = start(bench, &["posix", &bench.name("mapped")]);
    run.expect("ready");
    run
}

#[test]
fn memory_with_names_and_locks_in_it() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        generations(&bench, posix(&bench));
    }
}

/// The job goes on, changes all of it, and takes the names with it; its checkpoint has what was there before.
#[test]
fn memory_with_names_is_that_of_the_checkpoint() {
    let bench = Bench::new(Who::Nobody);
    let mut run = posix(&bench);
    run.check();
    bench.must(&["save", &run.pid_text(), "-n", &bench.name("a.ckpt")]);
    let second = bench.run(bench.path("a.ckpt"), &[]).finish();
    assert_eq!(second.code(), Some(125));
    assert!(second.complaints().contains(" uses /dev/shm/"), "{}", second.complaints());
    run.check();
    run.go();
    let mut again = bench.run(bench.path("a.ckpt"), &[]);
    again.check();
    again.go();
}

/// A job that has System V objects; those of its first life stay in the kernel, as of any that is killed.
fn of_system_v(kind: &str) {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = start(&bench, &[kind]);
        let ids = run.line();
        run.expect("ready");
        generations(&bench, run);
        let removed = std::process::Command::new("ipcrm").args(ids.split(' ').skip(1)).output();
        assert!(removed.expect("ipcrm").status.success());
    }
}

/// The kernel tells of no use before it is done: they are the program's by the calls in which its children wait.
#[test]
fn system_v_objects_that_nobody_has_used_yet() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = start(&bench, &["awaited"]);
        let ids = run.line();
        run.expect("ready");
        let saved = bench.must(&["save", "--stop", &run.pid_text()]);
        assert_eq!(saved.complaints(), "");
        run.ends_well();
        let removed = std::process::Command::new("ipcrm").args(ids.split(' ').skip(1)).output();
        assert!(removed.expect("ipcrm").status.success());
        generations(&bench, bench.run(bench.path("x.ckpt"), &[]));
    }
}

/// They have their identifiers and keys again, and what is in them.
#[test]
fn system_v_objects() {
    of_system_v("sysv");
}

#[test]
fn semaphores_are_given_back() {
    of_system_v("undo");
}

/// Descriptors of a process that lives, of one that is dead, and of one that was waited for; descriptors of events that two
/// processes have; watches.
#[test]
fn descriptors_of_processes_and_events() {
    for who in [Who::Me, Who::Nobody] {
        for kind in [&["pidfd"][..], &["events"], &["inotify", "watched"]] {
            let bench = Bench::new(who);
            let mut run = start(&bench, kind);
            run.expect("ready");
            generations(&bench, run);
        }
    }
}
