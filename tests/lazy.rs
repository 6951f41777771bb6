// SPDX-License-Identifier: LGPL-2.1-only
//! `--lazy`: programs that go on before their memory is there, and do at once with it all that is difficult.

mod harness;

use std::fs;
use std::os::unix::fs::FileExt;

use nix::libc::SIGKILL;
use nix::unistd::geteuid;

use harness::faults::armed;
use harness::{Bench, Build, Run, Who, until};

/// A checkpoint of the subject, with so many MiB.
fn saved(bench: &Bench, options: &[&str], mebibytes: &str) {
    let image = bench.name("x.ckpt");
    let options = [&["-n", &image], options].concat();
    let mut run = bench.launch(&options, bench.subject("lazy", Build::Pie), &[mebibytes]);
    run.expect("ready");
    save(bench, run);
}

/// Saves it, and ends it with that.
fn save(bench: &Bench, run: Run) {
    bench.must(&["save", "--stop", &run.pid_text()]);
    run.ends_well();
}

/// Nothing is said that only a restart says whose memory is there from the beginning.
#[track_caller]
fn is_lazy(run: &Run) {
    assert!(!run.stderr().contains("--lazy"), "{}", run.stderr());
}

#[test]
fn all_that_a_program_does_with_missing_memory() {
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    saved(&bench, &[], "72");
    for _ in 0..3 {
        let mut run = bench.run(bench.path("x.ckpt"), &["--lazy"]);
        run.check();
        is_lazy(&run);
        save(&bench, run);
    }
    bench.run(bench.path("x.ckpt"), &["--lazy"]).go();
}

#[test]
fn a_checkpoint_of_missing_memory_is_whole() {
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    saved(&bench, &["--lazy"], "96");
    // From generation to generation, without a look at it.
    for _ in 0..3 {
        let run = bench.run(bench.path("x.ckpt"), &[]);
        save(&bench, run);
    }
    bench.run(bench.path("x.ckpt"), &["--lazy=0"]).go();
}

#[test]
fn the_checkpoint_may_vanish() {
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    saved(&bench, &["--compress"], "64");
    let mut run = bench.run(bench.path("x.ckpt"), &["--lazy"]);
    run.check();
    fs::remove_file(bench.path("x.ckpt")).expect("the checkpoint");
    run.check();
    is_lazy(&run);
    run.go();
}

/// The program may end only by the signal, with this sentence.
#[track_caller]
fn is_ended(mut run: Run, sentence: &str) {
    run.complaint(sentence);
    until("its end", || (!run.lives()).then_some(()));
    let ended = run.finish();
    assert_eq!(ended.signal(), Some(SIGKILL), "{ended:?}");
}

#[test]
fn who_kills_the_pager_ends_the_program() {
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    saved(&bench, &[], "64");
    for time in [1, 2, 9, 40, 150] {
        let image = bench.command(bench.path("x.ckpt"));
        let run = Run::start(armed(image, &format!("bringing:{time}"), &["--lazy", "--ids=new"]));
        is_ended(run, "was killed, so the program is ended");
        // With its guard, who can say nothing any more.
        let image = bench.command(bench.path("x.ckpt"));
        let run = Run::start(armed(image, &format!("-bringing:{time}"), &["--lazy", "--ids=new"]));
        is_ended(run, "");
    }
}

#[test]
fn spoiled_memory_ends_the_program() {
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    saved(&bench, &[], "64");
    let image = fs::File::options().read(true).write(true).open(bench.path("x.ckpt"));
    let image = image.expect("the checkpoint");
    let (middle, mut byte) = (image.metadata().expect("its length").len() / 2, [0]);
    image.read_exact_at(&mut byte, middle).expect("a byte");
    image.write_all_at(&[!byte[0]], middle).expect("a byte");
    drop(image);
    let run = bench.run(bench.path("x.ckpt"), &["--lazy", "--ids=new"]);
    is_ended(run, "is damaged: the checksum of the memory at");
}

#[test]
fn who_may_not_has_it_at_once() {
    let bench = Bench::new(Who::Nobody);
    saved(&bench, &["--lazy"], "24");
    let mut run = bench.run(bench.path("x.ckpt"), &[]);
    run.check();
    run.complaint(
        "all memory is read before the program goes on, as without --lazy: that takes root",
    );
    run.go();
}

#[test]
fn several_processes_have_it_at_once() {
    let bench = Bench::new(Who::Me);
    let image = bench.name("x.ckpt");
    let program = bench.subject("pool", Build::Pie);
    let mut run = bench.launch(&["--lazy", "-n", &image], program, &["flat", "2", "16"]);
    run.expect("ready");
    save(&bench, run);
    let run = bench.run(bench.path("x.ckpt"), &[]);
    run.complaint("as without --lazy: there are several processes");
    run.go();
}

/// A checkpoint of a program that makes kin in a way, as soon as it goes on, in the bench's directory.
fn saved_kin(bench: &Bench, mebibytes: &str, way: &str) {
    let image = bench.name("x.ckpt");
    let subject = bench.subject("lazykin", Build::Pie);
    let mut run = bench.launch(&["-n", &image], subject, &[mebibytes, way]);
    run.expect("ready");
    save(bench, run);
}

/// The process that brings the memory of `bench`'s program, which has its checkpoint open, when it stands still.
fn pager(bench: &Bench) -> Option<i32> {
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_one = |pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        name == "ckpt-assist\n" && targets.any(|target| target == bench.path("x.ckpt"))
    };
    let stat = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    all.filter(is_one).find(|pid| stat(pid).contains(") T "))
}

/// Its restart, whose pager stops amid its work, and the kin that was born by then.
fn half_brought(bench: &Bench, way: &str) -> (Run, i32, i32) {
    saved_kin(bench, "192", way);
    let image = bench.command(bench.path("x.ckpt"));
    let mut run = Run::start(armed(image, "+bringing:300", &["--lazy", "--ids=new"]));
    run.say("check");
    let born = || fs::read_to_string(bench.path("born")).ok();
    let born = until("its kin", born).trim().parse().expect("a process id");
    (run, born, until("the pager's stop", || pager(bench)))
}

fn kill(pid: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
}

fn has_ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| stat.contains(") Z "))
}

#[test]
fn no_kin_reads_zeros_when_the_pager_is_killed() {
    if !geteuid().is_root() {
        return;
    }
    for way in ["orphan", "sibling"] {
        let bench = Bench::new(Who::Me);
        let (run, born, pager) = half_brought(&bench, way);
        kill(pager);
        is_ended(run, "was killed, so the program is ended");
        until("its kin's end", || has_ended(born).then_some(()));
        assert!(!bench.path("bad").exists(), "{way}: it reads what was never there");
    }
}

#[test]
fn who_needs_nothing_of_it_is_not_ended_with_it() {
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let (run, born, pager) = half_brought(&bench, "other");
    kill(pager);
    is_ended(run, "was killed, so the program is ended");
    let lives = !has_ended(born);
    kill(born);
    assert!(lives, "it had executed another program");
}

#[test]
fn an_orphan_has_what_was_wiped_empty() {
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    saved_kin(&bench, "48", "wiped");
    let mut run = bench.run(bench.path("x.ckpt"), &["--lazy"]);
    run.check();
    is_lazy(&run);
    let fate = || ["done", "bad"].into_iter().find(|name| bench.path(name).exists());
    assert_eq!(until("the orphan's look", fate), "done");
}

#[test]
fn few_descriptors_are_no_few_children() {
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    saved_kin(&bench, "48", "many");
    let limited = |limit: &str| {
        let mut command = bench.command("sh");
        let script = format!("{limit}; exec \"$0\" --lazy --ids=new");
        command.args(["-c", &script]).arg(bench.path("x.ckpt"));
        Run::start(command)
    };
    let mut run = limited("ulimit -Sn 64");
    run.check();
    is_lazy(&run);
    run.go();
    let mut run = limited("ulimit -n 64");
    run.say("check");
    // Where the limit may be raised it is; else it ends.
    let mut fate = || match run.line_now() {
        Some(line) => (line == "ok").then_some(true),
        None => (!run.lives()).then_some(false),
    };
    match until("what becomes of it", &mut fate) {
        true => drop(run.go()),
        false => is_ended(run, "cannot follow a child of the program"),
    }
}

#[test]
fn a_checkpoint_names_whom_it_waits_for() {
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let (mut run, born, pager) = half_brought(&bench, "other");
    let ended = bench.order(&["save", &run.pid_text()]);
    kill(born);
    assert!(ended.complaints().contains(&format!("(--lazy), by process {pager}")), "{ended:?}");
    // Who stands still is no harm: it goes on.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pager), nix::sys::signal::SIGCONT)
        .expect("the pager");
    run.expect("ok");
    kill(run.pid().cast_signed());
    until("its end", || (!run.lives()).then_some(()));
}
