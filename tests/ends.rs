// SPDX-License-Identifier: LGPL-2.1-only
//! What becomes of checkpoints when their program has come to its end.

mod harness;
mod serving;

use nix::sys::signal::Signal::{SIGKILL, SIGTSTP};

use harness::periods::no_monitor;
use harness::{Bench, Run, Who, until};
use serving::{Server, all, insecure};

const BOTH: [Who; 2] = [Who::Me, Who::Nobody];
const DONE: &str = "is of a run that has come to its end, so the program starts from its beginning";

/// Says "ready", answers lines, ends with the status that a line says.
const ENDING: &str = r#"$| = 1; print "ready\n";
    while (<STDIN>) { chomp; exit $_ if /^\d+$/; print "ok\n" }"#;

struct Job<'a> {
    bench: &'a Bench,
    line: Vec<&'a str>,
}

impl Job<'_> {
    fn start(&self) -> Run {
        self.bench.launch(&self.line, "perl", &["-e", ENDING])
    }

    /// Starts it where it must begin anew.
    #[track_caller]
    fn begins(&self) -> Run {
        let mut run = self.start();
        run.expect("ready");
        run
    }

    /// Starts it where it must go on.
    #[track_caller]
    fn goes_on(&self) -> Run {
        let mut run = self.start();
        run.check();
        run
    }
}

#[track_caller]
fn ends(mut run: Run, status: i32) {
    run.say(&status.to_string());
    assert_eq!(run.end().code(), Some(status));
}

#[track_caller]
fn saved(bench: &Bench, run: &Run) {
    bench.must(&["save", &run.pid_text()]);
}

#[test]
fn a_normal_end_sets_the_checkpoint_aside() {
    for who in BOTH {
        let bench = Bench::new(who);
        for line in [&["-n", "x.ckpt"][..], &["-n", "x.ckpt", "-z", "60000"]] {
            let job =
                Job { bench: &bench, line: [&["--resume", "--exit-status", "85"], line].concat() };
            let run = job.begins();
            saved(&bench, &run);
            ends(run, 0);
            // At once, whether or not it is set aside by now.
            let run = job.begins();
            run.complaint(DONE);
            assert_eq!(bench.names("x."), ["x.ckpt.finished"]);
            // A checkpoint that ends the program is no end, nor is a status.
            run.signal(SIGTSTP);
            assert_eq!(run.end().code(), Some(85));
            ends(job.goes_on(), 3);
            let run = job.goes_on();
            run.signal(SIGKILL);
            run.end();
            // Several generations later.
            let run = job.goes_on();
            run.signal(SIGTSTP);
            assert_eq!(run.end().code(), Some(85));
            ends(job.goes_on(), 0);
            job.begins().complaint(DONE);
            assert_eq!(bench.names("x."), ["x.ckpt.finished"]);
        }
    }
}

#[test]
fn all_of_a_counted_name_are_set_aside() {
    let bench = Bench::new(Who::Nobody);
    let job = Job { bench: &bench, line: vec!["--resume", "-n", "x.%n.ckpt"] };
    let run = job.begins();
    saved(&bench, &run);
    saved(&bench, &run);
    run.signal(SIGTSTP);
    run.ends_well();
    let run = job.goes_on();
    saved(&bench, &run);
    ends(run, 0);
    job.begins().complaint("x.4.ckpt.finished");
    let names = [1, 2, 3, 4].map(|number| format!("x.{number}.ckpt.finished"));
    assert_eq!(bench.names("x."), names);
}

#[test]
fn finished_checkpoints_are_kept() {
    let bench = Bench::new(Who::Nobody);
    let job = Job { bench: &bench, line: vec!["--resume", "--keep-finished", "-n", "x.ckpt"] };
    let run = job.begins();
    saved(&bench, &run);
    ends(run, 0);
    ends(job.goes_on(), 0);
    assert_eq!(bench.names("x."), ["x.ckpt"]);
    // Without --resume it can be asked for.
    let aside = Job { bench: &bench, line: vec!["--keep-finished=0", "-n", "y.ckpt"] };
    let run = aside.begins();
    saved(&bench, &run);
    ends(run, 0);
    until("the new name", || bench.path("y.ckpt.finished").exists().then_some(()));
}

#[test]
fn another_runs_checkpoint_stays() {
    // In namespaces of its own a run is saved from in there.
    for (who, ids) in BOTH.into_iter().flat_map(|who| [(who, "auto"), (who, "keep")]) {
        let bench = Bench::new(who);
        let job = Job { bench: &bench, line: vec!["--resume", "-n", "x.ckpt"] };
        let run = job.begins();
        saved(&bench, &run);
        run.signal(SIGKILL);
        run.end();
        let image = bench.path("x.ckpt");
        let [mut one, mut other] = [0; 2].map(|_| bench.run(&image, &["--ids", ids]));
        one.check();
        other.check();
        saved(&bench, &one);
        let pid = other.pid();
        ends(other, 0);
        no_monitor(pid);
        assert_eq!(bench.names("x."), ["x.ckpt"]);
        // A checkpoint to elsewhere ends it: it goes on from there, or from here.
        let pid = one.pid();
        bench.must(&["save", "--stop", &one.pid_text(), "-n", "elsewhere"]);
        one.ends_well();
        no_monitor(pid);
        assert_eq!(bench.names("x."), ["x.ckpt"]);
        let run = job.goes_on();
        let pid = run.pid();
        ends(run, 0);
        no_monitor(pid);
        assert_eq!(bench.names("x."), ["x.ckpt.finished"]);
    }
}

#[test]
fn without_resume_the_checkpoint_keeps_its_name() {
    let bench = Bench::new(Who::Nobody);
    let periodic = Job { bench: &bench, line: vec!["-z", "60000", "-n", "x.ckpt"] };
    let run = periodic.begins();
    saved(&bench, &run);
    let pid = run.pid();
    ends(run, 0);
    no_monitor(pid);
    let mut again = bench.run(bench.path("x.ckpt"), &["-z", "0"]);
    again.check();
    ends(again, 0);
    let job = Job { bench: &bench, line: vec!["--resume", "-n", "x.ckpt"] };
    job.begins().complaint(DONE);
    assert_eq!(bench.names("x."), ["x.ckpt.finished"]);
}

#[test]
fn a_server_sets_them_aside_too() {
    let bench = Bench::new(Who::Nobody);
    let options = insecure();
    let server = Server::start(&bench, &options);
    for name in ["job/x.%n", "plain"] {
        let name = server.name(name);
        let line = all(&["--resume", "-n", &name], &options);
        let job = Job { bench: &bench, line };
        let run = job.begins();
        saved(&bench, &run);
        run.signal(SIGTSTP);
        run.ends_well();
        ends(job.goes_on(), 0);
        job.begins().complaint(DONE);
    }
    let there = |name| server.file(name).exists();
    assert!(there("job/x.1.finished") && there("job/x.2.finished") && there("plain.finished"));
    assert!(!there("job/x.2") && !there("plain"));
    server.stop();
}
