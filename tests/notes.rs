// SPDX-License-Identifier: LGPL-2.1-only
//! What is said on standard error beside losses: a checkpoint signal that the program has taken for itself, and what
//! `--verbose` asks for.

mod harness;

use std::os::fd::AsRawFd;

use nix::fcntl::{F_SETFD, FdFlag, OFlag, fcntl};
use nix::sys::signal::Signal::{SIGTSTP, SIGUSR1};

use harness::{Bench, Run, Who, until};

const BOTH: [Who; 2] = [Who::Me, Who::Nobody];

/// Takes SIGUSR1 as its argument says when it is told to, and answers lines.
const TAKING: &str = r#"$| = 1; print "ready\n";
    while (<STDIN>) { chomp; exit 0 if $_ eq "go";
        $SIG{USR1} = $ARGV[0] eq "handler" ? sub { print "mine\n" } : $ARGV[0] if $_ eq "take";
        print "ok\n" }"#;

#[test]
fn a_signal_that_the_program_takes_is_named_once() {
    for who in BOTH {
        for (how, does) in [
            ("handler", "takes it for itself"),
            ("IGNORE", "ignores it"),
            ("DEFAULT", "has given it back to the kernel"),
        ] {
            let bench = Bench::new(who);
            let line = ["-a", "USR1", "-z", "100", "-n", "x.%n.ckpt", "--keep", "2"];
            let mut run = bench.launch(&line, "perl", &["-e", TAKING, how]);
            run.expect("ready");
            let next = |run: &mut Run, number: usize| {
                until("a later checkpoint", || {
                    run.check();
                    bench.path(format!("x.{number}.ckpt")).exists().then_some(())
                });
            };
            next(&mut run, 2);
            assert!(!run.stderr().contains("USR1"), "{}", run.stderr());
            run.say("take");
            run.expect("ok");
            run.complaint(&format!("SIGUSR1 makes no checkpoint: the program {does}"));
            if how == "handler" {
                run.signal(SIGUSR1);
                run.expect("mine");
            }
            let newest = bench.names("x.").len() + 5;
            next(&mut run, newest);
            let ended = run.go();
            assert_eq!(ended.stderr.matches("makes no checkpoint").count(), 1, "{ended:?}");
        }
    }
}

#[test]
fn without_a_period_the_monitor_sees_what_is_not_caught() {
    let bench = Bench::new(Who::Nobody);
    let line = ["--resume", "-a", "USR1", "-n", "x.ckpt"];
    let mut run = bench.launch(&line, "perl", &["-e", TAKING, "IGNORE"]);
    run.expect("ready");
    run.say("take");
    run.expect("ok");
    run.complaint("SIGUSR1 makes no checkpoint: the program ignores it");
    run.go();
}

#[test]
fn inherited_descriptors_are_named_if_asked_for() {
    let bench = Bench::new(Who::Nobody);
    let (reader, _writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    fcntl(&reader, F_SETFD(FdFlag::empty())).expect("no close-on-exec");
    let number = reader.as_raw_fd();
    // The shell that stays is the parent, and has the pipe under the same number.
    let start = |options: &str| {
        let script = format!("./ckpt {options} -n x.ckpt perl -e '{TAKING}' IGNORE; exit $?");
        let mut run = bench.run("bash", &["-c", &script]);
        run.expect("ready");
        run
    };
    let told = format!("not saved, since its parent has them too: descriptors {number} (pipe:");
    let pid = |run: &Run| {
        let list = format!("/proc/{0}/task/{0}/children", run.pid());
        let children = std::fs::read_to_string(list).expect("the shell's children");
        children.trim().to_owned()
    };
    for (options, is_told) in [("", false), ("--verbose", true)] {
        let run = start(options);
        let saved = bench.must(&["save", &pid(&run), "-n", &bench.name("y.ckpt")]);
        assert_eq!(saved.stderr.contains(&told), is_told, "{saved:?}");
        let order = bench.must(&["save", "--verbose", &pid(&run), "-n", &bench.name("y.ckpt")]);
        assert!(order.stderr.contains(&told), "{order:?}");
        let target = pid(&run).parse().expect("a process id");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(target), SIGTSTP).expect("the program");
        let ended = run.ends_well();
        assert_eq!(ended.stderr.contains(&told), is_told, "{ended:?}");
    }
    let mut command = bench.command(bench.ckpt());
    command.env("CKPT_VERBOSE", "1").args(["-n", "x.ckpt", "perl", "-e", TAKING, "IGNORE"]);
    let mut run = Run::start(command);
    run.expect("ready");
    run.go();
}
