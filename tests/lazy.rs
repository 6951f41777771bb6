// SPDX-License-Identifier: LGPL-2.1-only
//! `--lazy`: programs that go on before their memory is there, and do at once with it all that is difficult.

mod harness;

use std::fs;
use std::os::unix::fs::FileExt;

use nix::libc::SIGKILL;
use nix::unistd::geteuid;

use harness::faults::armed;
use harness::{Bench, Build, Run, Who};

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
fn is_ended(run: Run, sentence: &str) {
    run.complaint(sentence);
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
        is_ended(run, "was killed, so the program was ended");
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
