// SPDX-License-Identifier: LGPL-2.1-only
//! Checkpoints that replace each other and checkpoints with numbers: placeholders, `--keep`, `--resume`,
//! `--truncate-files`.

mod harness;

use std::fs;

use nix::sys::signal::Signal::{SIGKILL, SIGTSTP, SIGUSR1};

use harness::periods::{no_monitor, numbers, one_monitor, renewed};
use harness::{Bench, Build, Run, Who, until};

#[test]
fn a_hundred_generations_of_which_three_are_kept() {
    let bench = Bench::new(Who::Nobody);
    let options = ["-z", "10", "--keep", "3", "-n", "x.%n.ckpt"];
    bench.file("x.1.ckpt.old", "not our name");
    let mut run = bench.launch(&options, bench.subject("counter", Build::Musl), &["counted"]);
    run.expect("ready");
    let ours = |bench: &Bench| {
        let there = |n: &u64| bench.path(format!("x.{n}.ckpt")).exists();
        numbers(bench).into_iter().filter(there).collect::<Vec<_>>()
    };
    let mut generation = 0;
    while generation < 100 {
        let next = generation + 10;
        until("ten more", || {
            let there = ours(&bench);
            assert!(there.len() <= 5, "{there:?}");
            (there.last() >= Some(&next)).then_some(())
        });
        let pid = run.pid();
        run.signal(SIGKILL);
        run.end();
        no_monitor(pid);
        let there = ours(&bench);
        generation = there.last().copied().expect("a checkpoint");
        // The third but last goes after the last is whole, so a kill may leave one more.
        assert!((3..=4).contains(&there.len()), "{there:?}");
        for number in &there {
            bench.must(&["verify", &bench.name(&format!("x.{number}.ckpt"))]);
        }
        run = bench.run(bench.path(format!("x.{generation}.ckpt")), &["--truncate-files"]);
        run.check();
    }
    run.go();
    assert!(bench.path("x.1.ckpt.old").exists());
}

#[test]
fn names_have_placeholders() {
    let bench = Bench::new(Who::Nobody);
    bench.subdirectory("50%");
    let host = nix::unistd::gethostname().expect("a host name").into_string().expect("utf-8");
    let mut command = bench.command(bench.ckpt());
    command.current_dir(bench.path("50%"));
    command.args(["-c", "-n", "%h.%p.%%.%n"]).arg(bench.subject("observer", Build::Pie));
    let mut run = Run::start(command);
    run.expect("ready");
    for number in 1..=3 {
        let path = bench.path(format!("50%/{host}.{}.%.{number}", run.pid()));
        until("the next number", || {
            // One that comes while a dumper works is ignored.
            run.signal(SIGTSTP);
            path.exists().then_some(())
        });
    }
    run.check();
    run.go();
    for (options, part) in [
        (&["-n", "x%d"][..], "'%d'"),
        (&["-n", "%n/x"], "%n"),
        (&["--keep", "3", "-n", "x"], "%n"),
        (&["--exit-status", "256"], "256"),
        (&["--resume", "-n", "x%p"], "%p"),
    ] {
        let ended = bench.order(&[options, &["--", "true"]].concat());
        assert_eq!(ended.code(), Some(125), "{ended:?}");
        assert!(ended.stderr.contains(part), "{ended:?}");
    }
}

#[test]
fn resume_takes_the_newest_that_is_whole() {
    let bench = Bench::new(Who::Nobody);
    let subject = bench.subject("counter", Build::Pie);
    let line = ["--resume", "--truncate-files", "-n", "x.%n.ckpt", "--exit-status", "99"];
    for _ in 0..3 {
        let mut run = bench.launch(&line, &subject, &["counted"]);
        if numbers(&bench).is_empty() {
            run.expect("ready");
        }
        run.check();
        run.signal(SIGTSTP);
        assert_eq!(run.end().code(), Some(99));
    }
    assert_eq!(numbers(&bench), [1, 2, 3]);
    let damage = |number: u64| {
        let path = bench.path(format!("x.{number}.ckpt"));
        let mut bytes = fs::read(&path).expect("the image");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).expect("the image");
    };
    damage(3);
    let mut run = bench.launch(&line, &subject, &["counted"]);
    run.check();
    run.complaint("x.3.ckpt is damaged");
    run.complaint("resuming the one before it");
    run.signal(SIGTSTP);
    assert_eq!(run.end().code(), Some(99));
    assert_eq!(numbers(&bench), [1, 2, 3, 4]);
    [1, 2, 4].into_iter().for_each(damage);
    let mut run = bench.launch(&line, &subject, &["counted"]);
    run.expect("ready");
    run.complaint("starts from its beginning");
    run.check();
    run.go();
}

#[test]
fn resume_takes_the_options_of_its_command_line() {
    let bench = Bench::new(Who::Nobody);
    let subject = bench.subject("observer", Build::Pie);
    let mut run = bench.launch(&["-n", "x.ckpt"], &subject, &[]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
    let line = ["--resume", "-n", "x.ckpt", "-a", "USR1", "--exit-status", "7", "-z", "60000"];
    let mut run = bench.launch(&line, &subject, &[]);
    run.check();
    one_monitor(run.pid());
    run.signal(SIGUSR1);
    assert_eq!(run.end().code(), Some(7));
    bench.file("y.ckpt", "no checkpoint at all");
    let ended = bench.launch(&["--resume", "-n", "y.ckpt"], &subject, &[]).end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("y.ckpt is not a checkpoint"), "{ended:?}");
    let whole = fs::read(bench.path("x.ckpt")).expect("the checkpoint");
    bench.file("z.ckpt", &whole[..whole.len() / 2]);
    let mut run = bench.launch(&["--resume", "-n", "z.ckpt"], &subject, &[]);
    run.complaint("z.ckpt was cut off");
    run.expect("ready");
    run.go();
}

#[test]
fn files_that_grew_are_cut_or_named() {
    let bench = Bench::new(Who::Nobody);
    let options = ["-c", "-n", "x.ckpt"];
    let mut run = bench.launch(&options, bench.subject("counter", Build::Pie), &["counted"]);
    run.expect("ready");
    run.check();
    run.signal(SIGTSTP);
    renewed(&bench.path("x.ckpt"), None);
    run.check();
    run.go();
    let grown = fs::read(bench.path("counted")).expect("counted");
    let first = bench.run(bench.path("x.ckpt"), &[]);
    first.complaint("--truncate-files would cut off");
    first.signal(SIGKILL);
    first.end();
    assert!(fs::metadata(bench.path("counted")).expect("counted").len() >= grown.len() as u64);
    bench.file("counted", [&grown[..], b"never written by the program"].concat());
    let mut second = bench.run(bench.path("x.ckpt"), &["--truncate-files"]);
    second.check();
    assert_eq!(second.go().stderr, "");
    let text = fs::read_to_string(bench.path("counted")).expect("text");
    assert!(text.lines().enumerate().all(|(at, line)| line == (at + 1).to_string()));
}
