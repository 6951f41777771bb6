// SPDX-License-Identifier: LGPL-2.1-only
//! Time and thread ids after a restart: no wait until a moment is over because the program was not there for a while, and
//! what knows a thread's id knows the new one.

mod harness;
mod toolchains;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::{Bench, Build, Run, Way, Who, survive, until};
use nix::unistd::geteuid;
use toolchains::Program;

/// Longer than the waits of subjects/moments.c last.
const PAUSE: Duration = Duration::from_millis(2200);

/// Waits until the moments of a program that was just saved are in the past.
fn pass(pause: Duration) {
    let begin = Instant::now();
    until("time to pass", || (begin.elapsed() > pause).then_some(()));
}

/// Whether a restart by this user gives the program clocks of its own.
fn goes_on_with_its_clocks(who: Who) -> bool {
    who == Who::Me && geteuid().is_root() && Path::new("/proc/self/ns/time").exists()
}

/// Saved three times, each time restarted when all of its moments are over for others.
#[track_caller]
fn moments_wait(who: Who, build: Build, ways: [Way; 3]) {
    let bench = Bench::new(who);
    let mut run = ways[0].start(&bench, "0.ckpt", &bench.subject("moments", build), &[]);
    run.expect("ready");
    for (generation, way) in ways.into_iter().enumerate() {
        let image = format!("{generation}.ckpt");
        if let Some(mut original) = way.save(&bench, &image, run) {
            original.expect("over");
            original.say("0");
            original.ends_well();
        }
        pass(PAUSE);
        run = bench.run(bench.path(&image), &[]);
    }
    run.expect("over");
    let missed = PAUSE.as_millis() * 3;
    run.say(&if goes_on_with_its_clocks(who) { missed.to_string() } else { "0".into() });
    run.ends_well();
}

#[test]
fn moments_wait_for_the_program() {
    moments_wait(Who::Me, Build::Pie, [Way::SaveStop, Way::Save, Way::SaveStop]);
}

#[test]
fn moments_wait_for_the_program_unprivileged() {
    moments_wait(Who::Nobody, Build::Pie, [Way::SaveStop, Way::SaveStop, Way::Save]);
}

/// The thread behind timers with functions has another id in each generation.
#[track_caller]
fn another_timer_can_be_made(build: Build) {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("functions", build), &[]);
    run.expect("ready");
    for generation in 0..6 {
        let image = format!("{generation}.ckpt");
        Way::SaveStop.save(&bench, &image, run);
        run = bench.run(bench.path(&image), &[]);
        run.check();
    }
    run.go();
}

#[test]
fn another_timer_with_a_function_can_be_made() {
    another_timer_can_be_made(Build::Pie);
}

#[test]
fn another_timer_with_a_function_can_be_made_in_a_static_program() {
    another_timer_can_be_made(Build::Static);
}

/// CPU time begins at 0 again: said of programs that have used some and may look.
#[track_caller]
fn spent_time_is_named(bench: &Bench, mut run: Run) {
    const LOSS: &str = "not saved: the CPU time that it has used";
    run.expect("ready");
    let said = bench.must(&["save", &run.pid_text(), "--stop", "-n", &bench.name("x.ckpt")]);
    assert!(said.stderr.contains(LOSS), "{said:?}");
    run.ends_well();
}

#[test]
fn time_spent_is_named() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        spent_time_is_named(&bench, bench.run(bench.subject("spent", Build::Pie), &[]));
        bench.run(bench.path("x.ckpt"), &[]).go();
    }
}

#[test]
fn time_that_python_has_spent_is_named() {
    let program =
        "import time\nwhile time.process_time() < 0.6: pass\nprint('ready', flush=True)\ninput()";
    let bench = Bench::new(Who::Nobody);
    spent_time_is_named(&bench, bench.run("/usr/bin/python3", &["-c", program]));
    // None has been spent in the second run.
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    let said = bench.must(&["save", &again.pid_text(), "-n", &bench.name("y.ckpt")]);
    assert!(!said.stderr.contains("CPU time"), "{said:?}");
    again.say("go");
    again.ends_well();
}

/// Every sort of lock that names its owner, with new ids for owners and for who waits.
mod held_locks {
    use super::*;

    #[test]
    fn saved() {
        survive(Who::Nobody, Way::SaveStop, "held", Build::Pie, &[]);
    }

    #[test]
    fn saved_by_root() {
        survive(Who::Me, Way::Save, "held", Build::Pie, &[]);
    }

    #[test]
    fn launched() {
        survive(Who::Nobody, Way::LaunchContinue, "held", Build::Static, &[]);
    }

    #[test]
    fn static_musl() {
        survive(Who::Nobody, Way::Attach, "held", Build::Musl, &[]);
    }
}

/// What is in it travels with standard input.
#[test]
fn a_fifo_may_be_standard_input_and_something_else() {
    let bench = Bench::new(Who::Nobody);
    bench.subject("spent", Build::Pie);
    bench.file("make", "mkfifo fifo; exec 7<>fifo <fifo ./spent.pie");
    let mut run = bench.run("/bin/sh", &["make"]);
    run.expect("ready");
    Way::SaveStop.save(&bench, "x.ckpt", run);
    // It holds both ends of the FIFO, which is its own, then.
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    let mut fifo = fs::OpenOptions::new().write(true).open(bench.path("fifo")).expect("the FIFO");
    fifo.write_all(b"check\n").expect("written");
    again.expect("ok");
    fifo.write_all(b"go\n").expect("written");
    again.ends_well();
}

const JAVA: Program = Program {
    source: "Moments.java",
    compiler: &["javac", "-d", "DIRECTORY", "SOURCE"],
    made: &["Moments.class", "Moments$Wait.class"],
    words: &["java", "-Xmx64m", "-XX:+UseSerialGC", "Moments"],
};
const PYTHON: Program = Program {
    source: "moments.py",
    compiler: &[],
    made: &[],
    words: &["/usr/bin/python3", "moments.py"],
};

/// The same of a runtime, twice.
#[track_caller]
fn runtimes_wait(who: Who, program: Program) {
    let bench = Bench::new(who);
    for file in program.files() {
        let name = file.file_name().and_then(|n| n.to_str()).expect("utf-8");
        bench.file(name, fs::read(&file).expect("a program"));
    }
    let mut run = bench.run(program.words[0], &program.words[1..]);
    run.expect("ready");
    for image in ["0.ckpt", "1.ckpt"] {
        Way::SaveStop.save(&bench, image, run);
        pass(PAUSE);
        run = bench.run(bench.path(image), &[]);
    }
    run.expect("over");
    run.ends_well();
}

#[test]
fn java_waits() {
    runtimes_wait(Who::Me, JAVA);
}

#[test]
fn java_waits_unprivileged() {
    runtimes_wait(Who::Nobody, JAVA);
}

#[test]
fn python_waits() {
    runtimes_wait(Who::Me, PYTHON);
}

#[test]
fn python_waits_unprivileged() {
    runtimes_wait(Who::Nobody, PYTHON);
}
