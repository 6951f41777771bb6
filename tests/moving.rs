// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt move`: a program goes on elsewhere with its streams, whoever is killed on the way, and never twice. The other host
//! is this one, reached by a shell or by an sshd of the test's own.

mod harness;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use harness::host::{Host, called, changes_meanwhile, resume};
use harness::{Bench, Build, Run, Who, await_stop, ssh, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn three_times(who: Who, build: Build) {
    let bench = Bench::new(who);
    let host = Host::new(&bench);
    let mut run = bench.run(bench.subject("memory", build), &[]);
    run.expect("ready");
    let comm = fs::read_to_string(format!("/proc/{}/comm", run.pid())).expect("its name");
    let (mut pid, mut movers) = (run.pid(), Vec::new());
    for _ in 0..3 {
        run.check();
        movers.push(host.moves(&bench, pid));
        // It may have its id again: the one that has ended has no directory any more.
        pid = until("the moved program", || called(&bench, comm.trim()).into_iter().next());
    }
    run.check();
    // It ended here, with nothing but its end to say.
    run.say("go");
    for mover in movers.into_iter().rev() {
        mover.ends_well();
    }
    run.ends_well();
    bench.alone(&[]);
    assert!(host.images().is_empty());
}

#[test]
fn a_program_moves_three_times() {
    three_times(Who::Me, Build::Pie);
}

#[test]
fn a_users_program_moves_three_times() {
    three_times(Who::Nobody, Build::Musl);
}

#[test]
fn a_tree_moves() {
    let bench = Bench::new(Who::Nobody);
    let host = Host::new(&bench);
    let program = bench.subject("memory", Build::Static);
    let line = format!("{}; echo end $?; exit 5", program.display());
    let mut run = bench.run("/bin/sh", &["-c", &line]);
    run.expect("ready");
    run.check();
    let mover = host.moves(&bench, run.pid());
    run.check();
    run.say("go");
    run.expect("end 0");
    assert_eq!(mover.end().code(), Some(5));
    run.ends_well();
}

#[test]
fn signals_and_the_end_of_input_are_passed_on() {
    let bench = Bench::new(Who::Nobody);
    let host = Host::new(&bench);
    let script = "trap 'echo trapped' TERM; echo ready; while read x; do echo got $x; done; read y < /dev/null; exit 9";
    let mut run = bench.run("/bin/bash", &["-c", script]);
    run.expect("ready");
    let mover = host.moves(&bench, run.pid());
    mover.signal(Signal::SIGTERM);
    run.say("1");
    let lines = [run.line(), run.line()];
    assert!(lines.contains(&"trapped".into()) && lines.contains(&"got 1".into()), "{lines:?}");
    let ended = run.finish();
    assert_eq!((ended.code(), mover.end().code()), (Some(0), Some(9)), "{ended:?}");
}

#[test]
fn what_is_missing_there_is_said_while_it_runs_here() {
    let bench = Bench::new(Who::Nobody);
    let host = Host::new(&bench);
    bench.file("data", "1\n");
    let program = bench.subject("memory", Build::Static);
    let line = format!("exec 5< data; exec {}", program.display());
    let mut run = bench.run("/bin/sh", &["-c", &line]);
    run.expect("ready");
    let mut order = host.order(&bench, run.pid());
    let ended = Run::start({
        order.arg("--map-path").arg(format!("{}=/nowhere", bench.name("data")));
        order
    });
    let ended = ended.end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("/nowhere"), "{ended:?}");
    assert!(ended.stderr.contains("stays where it was"), "{ended:?}");
    run.check();
    bench.alone(&[run.pid()]);
    assert!(host.images().is_empty());
    // That was no checkpoint, nor one that has failed.
    let listed = bench.must(&["ps"]).stdout.join("\n");
    assert!(!listed.contains("/nowhere"), "{listed}");
    // Nor is it called by the host's name from now on.
    bench.must(&["save", &run.pid_text()]);
    assert_eq!(bench.names("memory.static.ckpt").len(), 1);
    run.go();
}

#[test]
fn memory_whose_mappings_change_meanwhile_is_right() {
    for (step, seed) in [("rounded", "1"), ("rounded:2", "2"), ("rounded", "3")] {
        changes_meanwhile(step, seed);
    }
}

/// Numbers each page; a child that is forked later knows the same, until its end is asked for.
const FORKS: &str = "
import mmap, os, sys
pages = 4096
memory = mmap.mmap(-1, pages << 12, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
def fill(base):
    for page in range(pages): memory[page << 12:(page << 12) + 8] = (base + page).to_bytes(8, 'little')
def right(base):
    return all(memory[page << 12:(page << 12) + 8] == (base + page).to_bytes(8, 'little') for page in range(pages))
base, child = 1, 0
fill(base)
print('ready', flush=True)
for line in sys.stdin:
    if line == 'fork\\n':
        base += 100000
        fill(base)
        inner, outer = os.pipe()
        child = os.fork()
        if not child:
            os.close(outer)
            os.read(inner, 1)
            os._exit(0 if right(base) else 1)
        os.close(inner)
    elif line == 'end\\n':
        os.close(outer)
        base += 0 if os.waitpid(child, 0)[1] == 0 else 1
        child = 0
    print('right' if right(base) else 'wrong', flush=True)
";

#[test]
fn memory_of_one_that_forks_meanwhile_is_right() {
    let bench = Bench::new(Who::Nobody);
    let host = Host::new(&bench);
    let mut run = bench.run("/usr/bin/python3", &["-c", FORKS]);
    run.expect("ready");
    let mover = host.stops(&bench, run.pid(), "rounded");
    await_stop(mover.pid());
    run.say("fork");
    run.expect("right");
    resume(mover.pid());
    mover.complaint("has moved to there");
    run.say("look");
    run.expect("right");
    run.say("end");
    run.expect("right");
    run.finish();
    mover.ends_well();
}

#[test]
fn who_stops_the_mover_in_time_stops_the_move() {
    let bench = Bench::new(Who::Nobody);
    let host = Host::new(&bench);
    let mut run = bench.run(bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    let mut mover = host.stops(&bench, run.pid(), "poised");
    let receiver = until("the other end", || host.receiver());
    await_stop(receiver);
    mover.signal(Signal::SIGINT);
    // Though the other host says nothing.
    until("the mover's end", || (!mover.lives()).then_some(()));
    run.check();
    resume(receiver);
    let ended = mover.end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("signal 2 came"), "{ended:?}");
    assert!(ended.stderr.contains("stays where it was"), "{ended:?}");
    until("the other end to go", || host.receiver().is_none().then_some(()));
    assert!(host.images().is_empty());
    run.go();
}

#[test]
fn a_host_that_is_silent_is_not_waited_for() {
    let bench = Bench::new(Who::Nobody);
    let host = Host::new(&bench);
    let mut run = bench.run(bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    let mover = host.stops(&bench, run.pid(), "poised");
    let receiver = until("the other end", || host.receiver());
    await_stop(receiver);
    let mut mover = mover;
    until("the mover's end", || (!mover.lives()).then_some(()));
    run.check();
    resume(receiver);
    let ended = mover.end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("stays where it was"), "{ended:?}");
    until("the other end to go", || host.receiver().is_none().then_some(()));
    assert!(host.images().is_empty());
    bench.alone(&[run.pid()]);
    run.go();
}

/// Who cannot write there says why, also to whoever still sends.
#[test]
fn why_it_cannot_be_written_there_is_said() {
    let bench = Bench::new(Who::Nobody);
    let mut host = Host::new(&bench);
    let rsh = "#!/bin/sh\nshift\ntrap '' XFSZ\nulimit -f 20000\nexec sh -c \"$*\"\n";
    let rsh = bench.file("small", rsh);
    fs::set_permissions(&rsh, PermissionsExt::from_mode(0o755)).expect("chmod");
    host.rsh = bench.name("small");
    let script = "import os, sys\nall = os.urandom(64 << 20)\nprint('ready', flush=True)\nsys.stdin.readline()\nprint(len(all))";
    let mut run = bench.run("python3", &["-c", script]);
    run.expect("ready");
    let ended = Run::start(host.order(&bench, run.pid())).end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("File too large"), "{ended:?}");
    run.say("go");
    run.expect(&(64 << 20).to_string());
    run.ends_well();
}

#[test]
fn a_signal_overtakes_input_that_is_not_read() {
    let bench = Bench::new(Who::Nobody);
    let host = Host::new(&bench);
    let script =
        "trap 'echo trapped; n=1' TERM; echo ready; while [ ! $n ]; do sleep 0.01; done; cksum";
    let mut run = bench.run("/bin/bash", &["-c", script]);
    run.expect("ready");
    let mover = host.moves(&bench, run.pid());
    // More than goes into the pipe there.
    let line = "x".repeat(999);
    for _ in 0..150 {
        run.say(&line);
    }
    mover.signal(Signal::SIGTERM);
    run.expect("trapped");
    let ended = run.finish();
    assert!(ended.stdout.iter().any(|line| line.ends_with(" 150000")), "{ended:?}");
    mover.ends_well();
}

/// Where the program is when somebody was killed.
#[derive(Debug, PartialEq)]
enum At {
    Here,
    There,
    Image,
}

/// kill -9 of either end at each step: the program is in one place.
#[test]
fn whoever_is_killed_it_is_in_one_place() {
    let steps = [
        ("greeted", At::Here),
        ("rounded", At::Here),
        ("thawed", At::Here),
        ("promised", At::Here),
        ("ended", At::Image),
        ("parted", At::Image),
        ("told", At::There),
        ("housed", At::Here),
        ("proved", At::Here),
        ("poised", At::Here),
        ("vowing", At::Here),
        ("ordered", At::Image),
        ("renamed", At::Image),
        ("began", At::There),
        ("filled", At::Here),
        ("planned", At::Image),
        ("installed", At::Image),
    ];
    let bench = Bench::new(Who::Nobody);
    let known =
        [harness::faults::steps(&bench, "mover"), harness::faults::steps(&bench, "receiver")];
    for step in known.concat() {
        assert!(steps.iter().any(|(name, _)| *name == step), "{step}");
    }
    for (step, at) in steps {
        let bench = Bench::new(Who::Nobody);
        let host = Host::new(&bench);
        // With who carries its streams their ends go, and who reads one would end.
        let waits = ["-c", "echo ready; exec sleep 1000"];
        let (mut run, comm) = match at {
            At::There => (bench.run("/bin/sh", &waits), "sleep"),
            _ => (bench.run(bench.subject("memory", Build::Pie), &[]), "memory.pie"),
        };
        run.expect("ready");
        let own = run.pid();
        until("its name", || called(&bench, comm).contains(&own).then_some(()));
        let mut order = host.order(&bench, own);
        order.env("CKPT_FAULT", step);
        let mut mover = Run::start(order);
        until("its end", || (!mover.lives()).then_some(()));
        println!("{step}: {}", mover.fate());
        match at {
            At::Here => {
                bench.alone(&[own]);
                run.check();
                run.go();
            }
            At::There => {
                until("its end here", || (!run.lives()).then_some(()));
                let pid = until("the program there", || called(&bench, comm).into_iter().next());
                kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("it runs there");
                assert_ne!(mover.end().code(), Some(0), "{step}");
            }
            At::Image => {
                until("its end here", || (!run.lives()).then_some(()));
                bench.alone(&[]);
                let [image] = &host.images()[..] else { panic!("{step}: {:?}", host.images()) };
                bench.must(&["verify", &image.to_string_lossy()]);
                let mut again = bench.run(image, &[]);
                again.check();
                again.go();
            }
        }
    }
}

#[test]
fn through_ssh() {
    let bench = Bench::new(Who::Me);
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = free.local_addr().expect("an address");
    drop(free);
    let (sshd, rsh) = ssh::start(&bench, at, |words| bench.run(words[0], &words[1..]));
    let mut run = bench.run(bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    run.check();
    let mut order = bench.command(bench.ckpt());
    order.args(["move", "--rsh", &rsh, &run.pid_text(), "127.0.0.1"]);
    let mover = Run::start(order);
    mover.complaint("has moved to 127.0.0.1");
    run.check();
    run.say("go");
    mover.ends_well();
    run.ends_well();
    drop(sshd);
}

#[test]
fn a_host_that_cannot_be_reached_is_said() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("memory", Build::Static), &[]);
    run.expect("ready");
    let ended = bench.order(&["move", "--rsh", "false", &run.pid_text(), "nowhere"]);
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("nowhere cannot be reached"), "{ended:?}");
    run.check();
    run.go();
}
