// SPDX-License-Identifier: LGPL-2.1-only
//! What the kernel keeps for a program and its threads, and says no to: each refusal behind the point of
//! no return has a sentence, and what cannot be saved is named.

mod harness;

use harness::{Bench, Build, Way, Who, survive};

/// Kinds of order, the system calls of each that are refused (number, argument, value), and a part of the
/// sentence.
const REFUSALS: [(&str, &[&str]); 11] = [
    ("have the memory that the restart itself took", &["11", "0", "0"]),
    ("have its memory at its place", &["25", "3", "3"]),
    ("have a vdso", &["158", "0", "0x2003"]),
    ("set its brk, arguments and environment", &["157", "0", "35"]),
    ("install a signal handler", &["13", "0", "64"]),
    ("have the signals that were pending", &["129", "-1", "0"]),
    ("have the signals that were pending", &["297", "-1", "0"]),
    // clone(2) with the flags of the restorer, which do not have the CLONE_SETTLS of a C library.
    ("create a thread", &["435", "-1", "0", "56", "0", "0x1150f00"]),
    ("set an attribute of a thread", &["273", "1", "24"]),
    ("set a timer", &["38", "-1", "0"]),
    ("watch a descriptor", &["233", "-1", "0"]),
];

#[track_caller]
fn refusals_are_explained(who: Who) {
    let bench = Bench::new(who);
    let (deny, lively) =
        (bench.subject("deny", Build::Static), bench.subject("lively", Build::Pie));
    let plain = ["--", &lively.to_string_lossy()];
    let mut run = bench.run(&deny, &plain);
    run.expect("ready");
    run.check();
    Way::SaveStop.save(&bench, "x.ckpt", run);
    let image = bench.name("x.ckpt");
    for (sentence, calls) in REFUSALS {
        let args = [calls, &["--", &image]].concat();
        let ended = bench.run(&deny, &args).finish();
        assert_eq!(ended.code(), Some(125), "{sentence}: {ended:?}");
        for part in [
            "ckpt: cannot restart: the kernel did not let the program ",
            sentence,
            "Operation not permitted",
        ] {
            assert!(ended.stderr.contains(part), "no {part:?} in {:?}", ended.stderr);
        }
    }
    let mut again = bench.run(&deny, &["--", &image]);
    again.check();
    again.go();
}

/// Of a job one process speaks for all, and nothing else is said.
#[test]
fn a_refusal_is_said_once_of_a_job() {
    const JOB: &str = "import os, signal, sys\nsignal.pthread_sigmask(signal.SIG_BLOCK, [10])\nr, w = os.pipe()\n\
        for i in range(4):\n if not os.fork():\n  os.close(w); os.kill(os.getpid(), 10); os.read(r, 1); os._exit(0)\n\
        print('ready', flush=True)\nsys.stdin.readline()\nos.close(w)\n[os.wait() for i in range(4)]";
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let deny = bench.subject("deny", Build::Static);
        let image = bench.name("x.ckpt");
        // get_robust_list(2) of the job and of its dumper: a sandbox of the one alone would be something else.
        let denied = ["274", "-1", "0", "--"];
        let mut run = bench.run(&deny, &[&denied[..], &["/usr/bin/python3", "-c", JOB]].concat());
        run.expect("ready");
        let save = ["./ckpt", "save", &run.pid_text(), "-n", &image];
        let refused = bench.run(&deny, &[&denied[..], &save].concat()).finish();
        assert_eq!(refused.code(), Some(125), "{refused:?}");
        assert_eq!(refused.stderr.matches("a sandbox (seccomp)").count(), 1, "{refused:?}");
        run.say("go");
        run.ends_well();
        let mut run = bench.run("/usr/bin/python3", &["-c", JOB]);
        run.expect("ready");
        // linkat(2) of the dumper.
        let save = ["./ckpt", "save", &run.pid_text(), "-n", &image];
        bench.run(&deny, &[&["265", "-1", "0", "--"][..], &save].concat()).ends_well();
        run.say("go");
        run.ends_well();
        let ended = bench.run(&deny, &["129", "-1", "0", "--", &image]).finish();
        assert_eq!(ended.code(), Some(125), "{ended:?}");
        assert_eq!(
            ended.stderr.matches("have the signals that were pending").count(),
            1,
            "{ended:?}"
        );
        assert!(!ended.stderr.contains("was ended while"), "{ended:?}");
        assert_eq!(bench.names(".ckpt-"), Vec::<String>::new());
        let mut again = bench.run(&image, &[]);
        again.say("go");
        again.ends_well();
    }
}

#[test]
fn refusals_behind_the_point_of_no_return_are_explained() {
    refusals_are_explained(Who::Me);
}

#[test]
fn refusals_are_explained_unprivileged() {
    refusals_are_explained(Who::Nobody);
}

/// Threads in the middle of taking locks that name their owner, running and asleep, get new ids.
mod locks {
    use super::*;

    #[test]
    fn saved() {
        survive(Who::Nobody, Way::SaveStop, "locking", Build::Pie, &[]);
    }

    #[test]
    fn saved_by_root() {
        survive(Who::Me, Way::Save, "locking", Build::NoPie, &[]);
    }

    #[test]
    fn launched() {
        survive(Who::Nobody, Way::Launch, "locking", Build::Pie, &["signal"]);
    }

    #[test]
    fn static_glibc() {
        survive(Who::Nobody, Way::SaveStop, "locking", Build::Static, &[]);
    }

    #[test]
    fn static_musl() {
        survive(Who::Nobody, Way::Launch, "locking", Build::Musl, &["signal"]);
    }
}

/// High numbers, a thread's CPU clock, and what glibc remembers of its thread for timers.
#[test]
fn timers_of_every_number_and_clock() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("late", Build::Pie), &[]);
    run.expect("ready");
    Way::SaveStop.save(&bench, "x.ckpt", run);
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.check();
    again.go();
}

#[test]
fn a_thread_with_descriptors_of_its_own_is_refused() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("late", Build::Pie), &["unshared"]);
    run.expect("ready");
    let saved = bench.order(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    assert_eq!(saved.code(), Some(125), "{saved:?}");
    assert!(saved.stderr.contains("has descriptors of its own"), "{saved:?}");
    run.check();
}

/// What prctl(2), personality(2), sched_setattr(2) and files of /proc set for a process or for one thread.
mod granted {
    use super::*;

    #[test]
    fn saved() {
        survive(Who::Nobody, Way::Save, "granted", Build::Pie, &[]);
    }

    #[test]
    fn saved_by_root() {
        survive(Who::Me, Way::SaveStop, "granted", Build::NoPie, &[]);
    }

    #[test]
    fn launched() {
        survive(Who::Nobody, Way::Launch, "granted", Build::Static, &[]);
    }

    #[test]
    fn what_is_lost_is_named() {
        for who in [Who::Nobody, Who::Me] {
            let bench = Bench::new(who);
            let mut run = bench.run(bench.subject("granted", Build::Pie), &["lost"]);
            run.expect("ready");
            let saved = bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
            let root = who == Who::Me && nix::unistd::geteuid().is_root();
            let named = |what: &str| saved.stderr.contains(&format!("not saved: {what}"));
            assert!(named("the keys in its process or thread keyring"), "{saved:?}");
            // Who may do more than the program is no witness.
            assert_eq!(named("the sandbox that it has locked itself in"), !root, "{saved:?}");
            // Root gives them again.
            assert!(!named("its capabilities") && !named("its securebits"), "{saved:?}");
            run.check();
            run.go();
        }
    }
}

/// A pipe that is empty, but has a writer still, is the only loss of a program that has nothing else.
#[test]
fn a_writer_of_standard_input_is_named() {
    for who in [Who::Nobody, Who::Me] {
        let bench = Bench::new(who);
        let mut run = bench.run("/bin/sh", &["-c", "echo ready; read line; exec cat"]);
        run.expect("ready");
        let args = ["save", &run.pid_text(), "-n", &bench.name("x.ckpt")];
        let said = bench.must(&args).stderr;
        let writer = "not saved: what is written to the pipe of standard input from now on (a restart does not find it)";
        assert!(said.contains(writer) && said.matches("not saved").count() == 1, "{said}");
        run.say("a line");
        assert_eq!(run.finish().code(), Some(0));
    }
}
