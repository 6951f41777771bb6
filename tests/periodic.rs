//! Periodic checkpoints, and what goes with them: names with placeholders, `--keep`, `--resume`,
//! `--truncate-files`, and signals that meet a checkpoint.

mod harness;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal::{self, SIGKILL, SIGTERM, SIGTSTP, SIGUSR1};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use harness::{Bench, Build, Run, Who, until};

const BOTH: [Who; 2] = [Who::Me, Who::Nobody];

/// The living monitors of a process.
fn monitors(pid: u32) -> Vec<i32> {
    let wanted = format!("ckpt\0__monitor\0{pid}\0");
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    // A zombie has no command line.
    pids.filter(|pid| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted.as_bytes())
    })
    .collect()
}

#[track_caller]
fn one_monitor(pid: u32) -> i32 {
    until("one monitor", || match monitors(pid)[..] {
        [one] => Some(one),
        _ => None,
    })
}

#[track_caller]
fn no_monitor(pid: u32) {
    until("the monitor's end", || monitors(pid).is_empty().then_some(()));
}

/// Waits until a file is there that was not there before or is another one now.
#[track_caller]
fn renewed(path: &Path, before: Option<u64>) -> u64 {
    until(&format!("a new {}", path.display()), || {
        inode(path).filter(|inode| Some(*inode) != before)
    })
}

fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|m| m.ino() ^ m.mtime_nsec().cast_unsigned() << 20)
}

/// The numbers of the checkpoints x.N.ckpt.
fn numbers(bench: &Bench) -> Vec<u64> {
    let names = bench.names("x.");
    let number = |name: &String| name.split('.').nth(1)?.parse().ok();
    let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

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
    assert_eq!(ended.stdout, ["process 1", "end"], "{ended:?}");
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
        bench.must(&["-p", &pid, "-z", "0"]);
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
        run.signal(SIGKILL);
        run.end();
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
