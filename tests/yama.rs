// SPDX-License-Identifier: LGPL-2.1-only
//! ckpt stays as the parent of a program, as it does under Yama, and its dumpers have it trace the job. (That Yama lets
//! them is shown by scripts/test-guest.)

mod harness;

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use harness::faults::{is_killed, steps};
use harness::{Bench, Build, Run, Who, until};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM, SIGTSTP, SIGUSR1};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

fn bench() -> Bench {
    let mut bench = Bench::new(Who::Nobody);
    bench.stays = true;
    bench
}

/// A shell whose children wait for files; one of them is an orphan in a session of its own.
const JOB: &str = r#"
    gate() { until [ -e "$1" ]; do sleep 0.02; done; }
    (gate a; echo "a in a pipe"; exit 4) | (read line; echo "got $line"; exit 3) & pipe=$!
    (setsid sh -c 'until [ -e b ]; do sleep 0.02; done; echo orphan' &)
    (exit 6) & dead=$!
    echo ready $$
    wait $pipe; echo "pipe $?"
    wait $dead; echo "dead $?"
    echo "end $$"
"#;

/// What the job says when its gates are open.
fn ends(bench: &Bench, mut run: Run, id: &str) {
    bench.file("b", "");
    run.expect("orphan");
    bench.file("a", "");
    run.expect("got a in a pipe");
    run.expect("pipe 3");
    run.expect("dead 6");
    run.expect(&format!("end {id}"));
    run.ends_well();
}

#[test]
fn a_job_goes_on_for_three_generations() {
    let bench = bench();
    let mut run = bench.launch(&["-n", "a.ckpt"], "/bin/sh", &["-c", JOB]);
    let ready = run.line();
    let id = ready.strip_prefix("ready ").expect("an id").to_owned();
    assert_ne!(id, run.pid_text());
    bench.must(&["save", &run.pid_text(), "-n", &bench.name("first.ckpt")]);
    run.signal(SIGTSTP);
    run.ends_well();
    let run = bench.run(bench.path("a.ckpt"), &[]);
    bench.must(&["save", "--stop", &run.pid_text(), "-n", &bench.name("b.ckpt")]);
    run.ends_well();
    let run = bench.run(bench.path("b.ckpt"), &[]);
    // It is there when that has an answer.
    bench.must(&["save", &run.pid_text(), "-n", &bench.name("c.ckpt")]);
    // A dumper inside of the job's namespaces asks for what it sees there.
    let before = fs::metadata(bench.path("a.ckpt")).expect("a.ckpt").modified().expect("a time");
    run.signal(SIGTSTP);
    run.ends_well();
    let after = fs::metadata(bench.path("a.ckpt")).expect("a.ckpt").modified().expect("a time");
    assert!(after > before);
    ends(&bench, bench.run(bench.path("a.ckpt"), &[]), &id);
}

#[test]
fn periods_and_new_programs_are_followed() {
    let bench = bench();
    let script = "echo begun; exec sh -c \"$0\"";
    let mut run = bench.launch(&["-z", "100", "-n", "x.ckpt"], "/bin/sh", &["-c", script, JOB]);
    run.expect("begun");
    let ready = run.line();
    let id = ready.strip_prefix("ready ").expect("an id").to_owned();
    until("a checkpoint of all", || {
        let info =
            bench.path("x.ckpt").exists().then(|| bench.must(&["info", &bench.name("x.ckpt")]));
        info.filter(|info| info.stdout.iter().any(|line| line.contains("sleep"))).map(drop)
    });
    // The orphan is nobody's any more when ckpt is killed.
    bench.file("b", "");
    run.expect("orphan");
    run.signal(SIGKILL);
    assert_eq!(run.end().signal(), Some(9));
    let again = bench.run(bench.path("x.ckpt"), &[]);
    ends(&bench, again, &id);
}

/// ckpt ends and stops as the program does, and passes on what it alone is sent.
#[test]
fn it_stands_for_the_program() {
    let bench = bench();
    let script = "trap 'echo usr1' USR1; echo ready; while :; do read x && exit $x; done";
    let mut run = bench.launch(&[], "/bin/bash", &["-c", script]);
    run.expect("ready");
    run.signal(SIGUSR1);
    run.expect("usr1");
    run.say("7");
    assert_eq!(run.end().code(), Some(7));
    let mut run = bench.launch(&[], "/bin/sh", &["-c", "echo ready; read x"]);
    run.expect("ready");
    run.signal(SIGTERM);
    assert_eq!(run.end().signal(), Some(SIGTERM as i32));
    let ended = bench.launch(&[], "no-such-program", &[]).end();
    assert_eq!(ended.code(), Some(127), "{ended:?}");
}

/// A program that restarts alone has ckpt as its parent, too: it may have children when it is saved next.
#[test]
fn one_process_goes_on() {
    let bench = bench();
    let mut run = bench.launch(&["-n", "x.ckpt"], bench.subject("process", Build::Pie), &[]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
    for _ in 0..2 {
        let mut again = bench.run(bench.path("x.ckpt"), &[]);
        again.check();
        bench.must(&["save", "--stop", &again.pid_text(), "-n", &bench.name("x.ckpt")]);
        again.ends_well();
    }
    bench.run(bench.path("x.ckpt"), &[]).go();
}

/// A dumper that is killed lets go of all that is traced for it.
#[test]
fn a_dumper_is_killed_at_each_step() {
    let bench = bench();
    let mut run = bench.launch(&["-n", "x.ckpt"], bench.subject("clan", Build::Pie), &["running"]);
    run.expect("ready");
    let (pid, x) = (run.pid_text(), bench.name("x.ckpt"));
    let mut met = 0;
    for step in steps(&bench, "dumper") {
        if is_killed(&bench, &format!("{step}:2"), &["save", &pid, "-n", &x]) {
            run.check();
            met += 1;
        }
    }
    assert!(met >= 10, "{met} steps");
    bench.must(&["save", &pid, "-n", &x]);
    run.go();
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.check();
    again.go();
}

/// The socket of those who serve is anybody's to connect to, and to have.
#[test]
fn a_crowd_at_the_door_keeps_nobody_out() {
    let bench = bench();
    let limited = "ulimit -n 24; exec ./ckpt -n x.ckpt /bin/sh -c 'echo ready; read x; echo works'";
    let mut run = bench.run("/bin/bash", &["-c", limited]);
    run.expect("ready");
    let door = door(run.pid());
    let crowd: Vec<_> = (0..200).map(|_| knock(&door, SockFlag::SOCK_NONBLOCK)).collect();
    let open = || fs::read_dir(format!("/proc/{}/fd", run.pid())).expect("descriptors").count();
    until("a full house", || (open() >= 24).then_some(()));
    drop(crowd);
    knock(&door, SockFlag::empty()).1.expect("the door is open");
    // While the last of them are sent away it has no descriptor for a dumper.
    until("a checkpoint", || {
        let saved = bench.order(&["save", &run.pid_text(), "-n", &bench.name("y.ckpt")]);
        (saved.code() == Some(0)).then_some(())
    });
    run.say("");
    run.expect("works");
    run.ends_well();
}

/// Whoever else comes and goes at the door takes nothing from a dumper.
#[test]
fn visitors_disturb_no_dumper() {
    let bench = bench();
    let script = "echo ready; read x; echo works";
    let mut run = bench.launch(&["-n", "x.ckpt"], "/bin/sh", &["-c", script]);
    run.expect("ready");
    let door = door(run.pid());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let _ = knock(&door, SockFlag::empty());
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
        });
        for _ in 0..10 {
            let saved = bench.order(&["save", &run.pid_text(), "-n", &bench.name("y.ckpt")]);
            is_over.store(saved.code() != Some(0), Ordering::Relaxed);
            assert_eq!(saved.code(), Some(0), "{saved:?}");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    run.say("");
    run.expect("works");
    run.ends_well();
}

/// Connects to it: the line, and whether somebody was there.
fn knock(door: &UnixAddr, flags: SockFlag) -> (OwnedFd, nix::Result<()>) {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    let line = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
    let connected = connect(line.as_raw_fd(), door);
    (line, connected)
}

/// The address of the socket at which the dumpers of a program are served.
#[track_caller]
fn door(restarter: u32) -> UnixAddr {
    let children = fs::read_to_string(format!("/proc/{restarter}/task/{restarter}/children"));
    let children = children.expect("children");
    let is_door =
        |name: &str| children.split_whitespace().any(|pid| name.contains(&format!("-{pid}-pid:")));
    let all = fs::read_to_string("/proc/net/unix").expect("sockets");
    let names = all.lines().filter_map(|line| line.split_once("@ckpt-forebear-"));
    let door = names.map(|(_, name)| format!("ckpt-forebear-{name}")).find(|name| is_door(name));
    UnixAddr::new_abstract(door.expect("a door").as_bytes()).expect("an address")
}
