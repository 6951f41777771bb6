// SPDX-License-Identifier: LGPL-2.1-only
//! Periodic checkpoints: the monitor, programs that look for it, kills, and signals that meet a checkpoint.

mod harness;

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal::{self, SIGKILL, SIGTERM, SIGTSTP, SIGUSR1};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use harness::periods::{inode, no_monitor, numbers, one_monitor, renewed};
use harness::{Bench, Build, Run, Who, until};

const BOTH: [Who; 2] = [Who::Me, Who::Nobody];

#[test]
fn the_program_does_not_notice() {
    for who in BOTH {
        for attach in [false, true] {
            let bench = Bench::new(who);
            let (subject, options) = (bench.subject("waiter", Build::Pie), ["-z", "200", "-n"]);
            let name = bench.name("x.%n.ckpt");
            let mut run = if attach {
                let run = bench.run(&subject, &[]);
                bench.must(&[&options[..], &[&name, "-p", &run.pid_text()]].concat());
                run
            } else {
                bench.launch(&[&options[..], &[&name]].concat(), &subject, &[])
            };
            run.expect("ready");
            one_monitor(run.pid());
            for number in 1..=8 {
                let path = bench.path(format!("x.{number}.ckpt"));
                until("the next checkpoint", || {
                    run.check();
                    path.exists().then_some(())
                });
            }
            let (pid, ended) = (run.pid(), run.go());
            // One line, however many checkpoints.
            let loss = "ckpt: not saved: child processes: waiter.pie (a restart is without them";
            let complaints = ended.complaints();
            let lines = complaints.lines().count();
            assert!(lines == 0 || lines == 1 && complaints.starts_with(loss), "{ended:?}");
            no_monitor(pid);
        }
    }
}

#[test]
fn an_observer_finds_no_trace() {
    let bench = Bench::new(Who::Nobody);
    let mut run =
        bench.launch(&["-z", "20", "-n", "x.ckpt"], bench.subject("observer", Build::Static), &[]);
    run.expect("ready");
    let image = bench.path("x.ckpt");
    let mut last = None;
    for _ in 0..20 {
        last = Some(renewed(&image, last));
        run.check();
    }
    run.signal(SIGKILL);
    let pid = run.pid();
    run.end();
    no_monitor(pid);
    let mut again = bench.run(&image, &[]);
    again.check();
    one_monitor(again.pid());
    for _ in 0..5 {
        last = Some(renewed(&image, last));
        again.check();
    }
    again.go();
}

#[test]
fn an_init_does_not_notice() {
    // The first process of a container adopts all orphans: ours must not become any.
    let bench = Bench::new(Who::Me);
    let program = "use POSIX ':sys_wait_h'; $SIG{CHLD} = sub { print qq(SIGCHLD\n) }; $| = 1;
        print qq(process $$\n);
        until (-e 'x.5.ckpt') { select undef, undef, undef, 0.01;
          print qq(a child\n) if waitpid(-1, WNOHANG) != -1 }
        print qq(end\n)";
    let root = nix::unistd::geteuid().is_root();
    let space: &[&str] = if root { &[] } else { &["--map-root-user", "--user"] };
    let mut command = bench.command("unshare");
    command.args(space).args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    command.arg(bench.ckpt()).args(["-z", "50", "-n", "x.%n.ckpt", "perl", "-e", program]);
    let ended = Run::start(command).ends_well();
    // ckpt stays as the first one.
    let [begin, end] = &ended.stdout[..] else { panic!("{ended:?}") };
    assert!(begin.starts_with("process 3") && end == "end", "{ended:?}");
}

#[test]
fn monitors_come_and_go() {
    for who in BOTH {
        let bench = Bench::new(who);
        let options = ["-z", "100", "-n", "x.ckpt"];
        let mut run = bench.launch(&options, bench.subject("observer", Build::Pie), &[]);
        run.expect("ready");
        let (pid, image) = (run.pid_text(), bench.path("x.ckpt"));
        let first = one_monitor(run.pid());
        renewed(&image, None);
        // Killed at some moment, mostly while its dumper works.
        kill(Pid::from_raw(first), SIGKILL).expect("the monitor");
        no_monitor(run.pid());
        run.check();
        bench.must(&["-p", &pid, "-z", "50"]);
        let second = one_monitor(run.pid());
        assert_ne!(second, first);
        let last = renewed(&image, inode(&image));
        run.check();
        bench.must(&["-p", &pid, "-z", "70"]);
        until("a new monitor", || (one_monitor(run.pid()) != second).then_some(()));
        renewed(&image, Some(last));
        // Without a signal to be followed with it needs none.
        bench.must(&["-p", &pid, "-z", "0", "-a", "0"]);
        no_monitor(run.pid());
        run.check();
        run.go();
    }
}

#[test]
fn a_short_period_does_not_pile_up() {
    let bench = Bench::new(Who::Nobody);
    let mut run =
        bench.launch(&["-z", "1", "-n", "x.ckpt"], bench.subject("sparse", Build::Pie), &["64"]);
    run.expect("ready");
    let monitor = one_monitor(run.pid());
    let mut last = None;
    for _ in 0..5 {
        last = Some(renewed(&bench.path("x.ckpt"), last));
        let list = format!("/proc/{monitor}/task/{monitor}/children");
        let children = fs::read_to_string(list).unwrap_or_default();
        assert!(children.split_whitespace().count() <= 1, "{children}");
    }
    run.check();
    run.go();
}

#[test]
fn a_signal_ends_what_periodic_checkpoints_do_not() {
    let period = ["-z", "50", "-n", "x.%n.ckpt", "--exit-status", "85"];
    for (variable, option, goes_on) in [
        (None, None, None),
        (Some("0"), None, Some(false)),
        (Some("1"), None, Some(true)),
        (None, Some("-c"), Some(true)),
    ] {
        let bench = Bench::new(Who::Nobody);
        let mut command = bench.command(bench.ckpt());
        command.args(period).args(option).arg(bench.subject("observer", Build::Pie));
        command.envs(variable.map(|value| ("CKPT_CONTINUE", value)));
        let mut run = Run::start(command);
        run.expect("ready");
        if goes_on == Some(false) {
            assert_eq!(run.end().code(), Some(85));
            assert_eq!(numbers(&bench), [1]);
            continue;
        }
        until("three checkpoints", || (numbers(&bench).len() >= 3).then_some(()));
        run.check();
        let before = numbers(&bench).last().copied().expect("three");
        run.signal(SIGTSTP);
        if goes_on == Some(true) {
            until("more", || (numbers(&bench).last() > Some(&(before + 3))).then_some(()));
            run.check();
            run.go();
            continue;
        }
        assert_eq!(run.end().code(), Some(85));
        let last = numbers(&bench).last().copied().expect("a checkpoint");
        let mut again = bench.run(bench.path(format!("x.{last}.ckpt")), &["-z", "0"]);
        again.check();
        again.go();
    }
}

/// Some seconds of work in a language with a garbage collector, with unbuffered output.
const WORK: &str = include_str!("programs/gated.pl");

#[test]
fn killed_at_random_ten_times() {
    for who in BOTH {
        let expected = {
            let bench = Bench::new(who);
            bench.file("gate", "");
            bench.run("perl", &["-MIO::Handle", "-e", WORK]).ends_well();
            fs::read(bench.path("result")).expect("a result")
        };
        let bench = Bench::new(who);
        let image = bench.path("x.ckpt");
        let options = ["-z", "150", "-n", "x.ckpt"];
        let mut run = bench.launch(&options, "perl", &["-MIO::Handle", "-e", WORK]);
        let mut seed = u64::from(std::process::id());
        let mut last = None;
        for kills in 1..=10 {
            until("a new checkpoint", || {
                assert!(run.lives(), "before kill {kills} it {}", run.fate());
                inode(&image).filter(|inode| Some(*inode) != last)
            });
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // The random moment; nothing depends on its being in time.
            std::thread::sleep(Duration::from_millis((seed >> 33) % 200));
            run.signal(SIGKILL);
            run.end();
            bench.must(&["verify", image.to_str().expect("utf-8")]);
            last = inode(&image);
            run = bench.run(&image, &["--truncate-files"]);
        }
        bench.file("gate", "");
        let ended = run.ends_well();
        assert_eq!(ended.complaints(), "");
        let result = fs::read(bench.path("result")).expect("a result");
        assert!(result == expected, "the results differ");
    }
}

#[test]
fn repeated_signals_make_one_checkpoint() {
    for options in [&["-n", "x.%n.ckpt"][..], &["-n", "x.%n.ckpt", "-z", "1"]] {
        let bench = Bench::new(Who::Nobody);
        let all = [options, &["-a", "USR1", "--exit-status", "85"]].concat();
        let mut run = bench.launch(&all, bench.subject("sparse", Build::Pie), &["32"]);
        run.expect("ready");
        let periodic = options.contains(&"-z");
        if periodic {
            until("a periodic one", || (!numbers(&bench).is_empty()).then_some(()));
        }
        while run.lives() {
            let _ = kill(Pid::from_raw(run.pid().cast_signed()), SIGUSR1);
        }
        assert_eq!(run.end().code(), Some(85), "{periodic}");
        let there = numbers(&bench);
        assert!(periodic || there == [1], "{there:?}");
        // No half file, also not under another name.
        until("the last dumper's end", || {
            let ours = ["x.", "ckpt", "sparse.pie"];
            let names = bench.names("");
            names.iter().all(|n| ours.iter().any(|o| n.starts_with(o))).then_some(())
        });
        for number in &there {
            bench.must(&["verify", &bench.name(&format!("x.{number}.ckpt"))]);
        }
        let last = there.last().expect("a checkpoint");
        let mut again = bench.run(bench.path(format!("x.{last}.ckpt")), &["-z", "0"]);
        again.check();
        again.go();
    }
}

#[test]
fn the_signal_of_a_scheduler_and_its_term() {
    // What a batch system sends to all processes of a job at once: the configured signal, and TERM,
    // which a program that is being saved no longer meets.
    for signals in [[SIGUSR1, SIGTERM], [SIGTERM, SIGUSR1]] {
        let bench = Bench::new(Who::Nobody);
        let options = ["-a", "USR1", "-z", "20", "--exit-status", "85", "-n", "x.ckpt"];
        let mut run = bench.launch(&options, bench.subject("sparse", Build::Pie), &["16"]);
        run.expect("ready");
        let image = bench.path("x.ckpt");
        // The second from now on was begun after "ready".
        let next = renewed(&image, inode(&image));
        renewed(&image, Some(next));
        signals.into_iter().for_each(|signal: Signal| {
            let _ = kill(Pid::from_raw(run.pid().cast_signed()), signal);
        });
        let ended = run.end();
        let saved = ended.code() == Some(85);
        assert!(saved || ended.signal() == Some(SIGTERM as i32), "{ended:?}");
        bench.must(&["verify", image.to_str().expect("utf-8")]);
        let mut again = bench.run(&image, &["-z", "0"]);
        again.check();
        again.go();
    }
}

#[test]
fn orders_go_before_periodic_checkpoints() {
    let bench = Bench::new(Who::Nobody);
    let mut run =
        bench.launch(&["-z", "1", "-n", "x.ckpt"], bench.subject("sparse", Build::Pie), &["32"]);
    run.expect("ready");
    for number in 0..10 {
        bench.must(&["save", &run.pid_text(), "-n", &bench.name(&format!("y.{number}"))]);
        bench.must(&["-p", &run.pid_text(), "-z", "2"]);
    }
    run.check();
    bench.must(&["save", "--stop", &run.pid_text(), "-n", &bench.name("y")]);
    run.ends_well();
    let mut again = bench.run(bench.path("y"), &["-z", "0"]);
    again.check();
    again.go();
}
