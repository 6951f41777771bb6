// SPDX-License-Identifier: LGPL-2.1-only
//! What a program has set that hardly anything shows: given back, named or refused, never silent and never its end.

mod harness;

use harness::{Bench, Build, Way, Who, survive};

#[test]
fn what_is_kept_saved() {
    survive(Who::Nobody, Way::SaveStop, "unseen", Build::Pie, &["kept"]);
}

#[test]
fn what_is_kept_launched() {
    survive(Who::Me, Way::LaunchContinue, "unseen", Build::Static, &["kept"]);
}

/// Pages of a private mapping that were not written follow the memfd, and its holes stay holes.
#[test]
fn a_private_mapping_follows_its_memfd() {
    survive(Who::Nobody, Way::Save, "unseen", Build::Pie, &["shown"]);
    survive(Who::Me, Way::Launch, "unseen", Build::Static, &["shown"]);
}

/// The system calls of a checkpoint would end the program; root keeps that from them, but could not put it back.
#[test]
fn a_thread_in_a_sandbox_is_refused() {
    for (kind, sentence) in
        [("filter", "has installed seccomp filters"), ("strict", "is in seccomp's strict mode")]
    {
        refused(Who::Nobody, kind, &format!(" of process PID {sentence}"));
    }
    let by_root = match nix::unistd::geteuid().is_root() {
        true => "has seccomp filters that forbid rt_sigreturn(2)",
        false => "has installed seccomp filters",
    };
    refused(Who::Me, "filter", &format!(" of process PID {by_root}"));
}

/// The signal's handler makes no system call there, and the program is told why nothing comes of it.
#[test]
fn a_program_that_locks_itself_in_ignores_the_signal() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let options = ["-n", &bench.name("x.ckpt")];
        let mut run = bench.launch(&options, bench.subject("unseen", Build::Pie), &["locked"]);
        run.expect("ready");
        let pid = run.pid_text();
        let why = format!(
            "ckpt: no checkpoints by the signal: process {pid} has installed seccomp filters"
        );
        run.complaint(&why);
        for _ in 0..5 {
            run.signal(nix::sys::signal::Signal::SIGTSTP);
            run.check();
        }
        assert!(bench.names("x.ckpt").is_empty());
        run.go();
    }
}

#[test]
fn segments_of_its_own_are_refused() {
    refused(Who::Nobody, "segments", "process PID cannot be saved: it has memory segments");
}

/// `sentence` names the process as PID.
#[track_caller]
fn refused(who: Who, kind: &str, sentence: &str) {
    let bench = Bench::new(who);
    let mut run = bench.run(bench.subject("unseen", Build::Pie), &[kind]);
    run.expect("ready");
    let pid = run.pid_text();
    for args in [["save", &pid, "-n", &bench.name("x.ckpt")], ["save", &pid, "--stop", "-n=x.ckpt"]]
    {
        let ended = bench.order(&args);
        assert_eq!(ended.code(), Some(125), "{ended:?}");
        assert!(ended.stderr.contains(&sentence.replace("PID", &pid)), "{ended:?}");
        run.check();
    }
    run.go();
}

#[test]
fn what_is_lost_is_named() {
    for who in [Who::Nobody, Who::Me] {
        let bench = Bench::new(who);
        let inner = bench.subdirectory("inner");
        let mut run = bench.run(bench.subject("unseen", Build::Static), &["lost"]);
        run.expect("ready");
        let saved = bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]).stderr;
        let root = who == Who::Me && nix::unistd::geteuid().is_root();
        let named = |what: &str| saved.contains(&format!("not saved: {what}"));
        assert!(named("the notices of changes in "), "{saved}");
        assert_eq!(named("its own namespaces (IPC)"), root, "{saved}");
        // Root gives it again.
        assert!(!named(&format!("its root directory {}", inner.display())), "{saved}");
        assert_eq!(named("the namespaces (host name) that thread "), root, "{saved}");
        assert_eq!(named("the capabilities that thread "), root, "{saved}");
        run.check();
        run.go();
    }
}

/// NUMA policies of threads and of memory, also those that are what there is without any (BLAS libraries set them).
#[test]
fn numa_policies_are_kept() {
    survive(Who::Me, Way::Save, "numa", Build::Pie, &[]);
    survive(Who::Nobody, Way::LaunchContinue, "numa", Build::Static, &[]);
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("numa", Build::Pie), &[]);
    run.expect("ready");
    for generation in 0..3 {
        let name = bench.name(&format!("{generation}.ckpt"));
        let saved = bench.must(&["save", "--stop", "-n", &name, &run.pid_text()]);
        assert!(!saved.stderr.contains("NUMA"), "{saved:?}");
        run.ends_well();
        run = bench.run(name, &[]);
        run.check();
    }
    run.go();
}
