// SPDX-License-Identifier: LGPL-2.1-only
//! How the processes of a job are related to each other, and to whoever starts the job: sessions and groups that the first
//! has begun itself, orphans, the dead and the order in which wait(2) finds them.

mod harness;

use harness::{Bench, Build, Run, Way, Who, survive, until};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;

const PYTHON: &str = "/usr/bin/python3";

fn launched(bench: &Bench, program: &str, args: &[&str]) -> Run {
    bench.file("job.py", program);
    let mut run = bench.launch(&["-n", "0.ckpt"], PYTHON, &[&["job.py"], args].concat());
    run.expect("ready");
    run
}

/// Restarts an image as a shell with job control does, in a group of its own.
fn as_a_job(bench: &Bench, image: &str) -> Run {
    let mut command = bench.command(bench.path(image));
    command.process_group(0);
    Run::start(command)
}

/// Has begun a session or a group itself, and tells at each gate where it is, and whom a signal to its group reaches.
const OWN: &str = r#"
import os, signal, sys, time
begin = {"session": os.setsid, "group": lambda: os.setpgid(0, 0)}[sys.argv[1]]
hits = []
signal.signal(signal.SIGUSR1, lambda *_: hits.append(1))
begin()
kid = os.fork() if sys.argv[2] == "child" else -1
def gate(name):
    while not os.path.exists(name): time.sleep(0.01)
if kid == 0:
    gate("3")
    os._exit(len(hits))
print("ready", flush=True)
for number in "123":
    gate(number)
    os.kill(0, signal.SIGUSR1)
    try: terminal = bool(os.open("/dev/tty", os.O_RDWR))
    except OSError: terminal = False
    print(os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid(), terminal and sys.argv[1] == "session", flush=True)
if kid > 0: print(os.WEXITSTATUS(os.wait()[1]) > 0, flush=True)
"#;

/// Below a script, as the tests are, a root that has begun its session or its group has that again; what it sends to its
/// group reaches nobody else.
#[test]
fn a_root_stays_in_what_it_has_begun() {
    for (who, how, child) in [
        (Who::Me, "session", "child"),
        (Who::Me, "group", "alone"),
        (Who::Nobody, "session", "alone"),
        (Who::Nobody, "group", "child"),
    ] {
        let bench = Bench::new(who);
        let mut run = launched(&bench, OWN, &[how, child]);
        for gate in ["1", "2", "3"] {
            run = bench.reborn(&format!("{gate}.ckpt"), run);
            bench.file(gate, "");
            run.expect(if how == "session" { "True True False" } else { "False True False" });
        }
        if child == "child" {
            run.expect("True");
        }
        run.ends_well();
    }
}

/// A daemon that is a fork of what ckpt has started leads the session that it has begun, also where the restarter leads one.
#[test]
fn a_daemon_leads_its_session_again() {
    const DAEMON: &str = r#"
import os, time
if os.fork(): os._exit(0)
os.setsid()
print("ready", os.getpid(), flush=True)
while not os.path.exists("go"): time.sleep(0.01)
print(os.getsid(0) == os.getpid() == os.getpgrp(), flush=True)
"#;
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("job.py", DAEMON);
        let mut run = bench.launch(&["-n", "0.ckpt"], PYTHON, &["job.py"]);
        let line = run.line();
        let pid = line.strip_prefix("ready ").unwrap();
        bench.must(&["save", "--stop", pid, "-n", "1.ckpt"]);
        bench.file("go", "");
        let mut command = bench.command("/usr/bin/setsid");
        command.arg("-w").arg(bench.path("1.ckpt"));
        let mut run = Run::start(command);
        run.expect("True");
        run.ends_well();
    }
}

/// In a shell with job control the restarter's group is the one that it has begun, and below a script it has one again; a
/// session is begun in any case.
#[test]
fn a_job_of_a_shell_has_one_group() {
    for (who, how) in [(Who::Me, "group"), (Who::Nobody, "session")] {
        let bench = Bench::new(who);
        let run = launched(&bench, OWN, &[how, "child"]);
        Way::SaveStop.save(&bench, "1.ckpt", run);
        let mut run = as_a_job(&bench, "1.ckpt");
        bench.file("1", "");
        run.expect(if how == "session" { "True True False" } else { "False False False" });
        for gate in ["2", "3"] {
            run = bench.reborn(&format!("{gate}.ckpt"), run);
            bench.file(gate, "");
            run.expect(if how == "session" { "True True False" } else { "False True False" });
        }
        run.expect("True");
        run.ends_well();
    }
}

/// Children of whom some have ended, one is stopped and one goes on until a gate; wait(2) finds them in the order in which
/// they were born, with the same words.
const FAMILY: &str = r#"
import os, resource, signal, sys, time
def gate(name):
    while not os.path.exists(name): time.sleep(0.01)
def child(act):
    pid = os.fork()
    if pid == 0:
        act()
        os._exit(0)
    return pid
limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
all = [child(lambda: os._exit(3)), child(lambda: gate("1")), child(lambda: os.kill(os.getpid(), signal.SIGKILL)),
       child(os.abort), child(lambda: os.kill(os.getpid(), signal.SIGSTOP)), child(lambda: None)]
look = os.WEXITED | os.WSTOPPED | os.WNOWAIT
words = [i != 1 and os.waitid(os.P_PID, pid, look).si_code for i, pid in enumerate(all)]
# Core files that a program gets are not left again.
if open("/proc/sys/kernel/core_pattern").read()[0] in "|@": words[3] = 2
print("ready", flush=True)
gate("1")
words[1] = os.waitid(os.P_PID, all[1], look).si_code
for i, pid in enumerate(all):
    found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED)
    if (found.si_pid, found.si_code) != (pid, words[i]): print(i, found, words, flush=True)
os.kill(all[4], signal.SIGKILL)
print(os.waitpid(-1, 0)[0] == all[4], flush=True)
os.abort()
"#;

/// The job itself ends by a signal with a core file, and so does the restarter that stands for it: its own is nowhere.
#[test]
fn wait_finds_all_in_their_order() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = launched(&bench, FAMILY, &[]);
        for image in ["1.ckpt", "2.ckpt", "3.ckpt"] {
            run = bench.reborn(image, run);
        }
        bench.file("1", "");
        run.expect("True");
        let ended = run.end();
        assert_eq!(ended.signal(), Some(6), "{ended:?}");
        let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").expect("a pattern");
        if pattern.trim() == "core" {
            let left = bench.names("core").len() == 1;
            assert_eq!((ended.status.core_dumped(), left), (left, left), "{ended:?}");
        }
    }
}

/// An orphan in the process group that a job was restarted in, and a daemon: below a script nobody could tell whose they
/// are, but the restarter knows.
const ORPHANS: &str = r#"
import os, time
def gate(name):
    while not os.path.exists(name): time.sleep(0.01)
def orphan(name):
    if os.fork() == 0:
        if name == "daemon": os.setsid()
        if os.fork() == 0:
            gate("1")
            open(name, "w").write("there")
        os._exit(0)
    os.wait()
child = os.fork()
if child == 0:
    gate("0")
    os._exit(0)
print("ready", child, sep="\n", flush=True)
os.wait()
orphan("orphan")
orphan("daemon")
print("both", flush=True)
while not all(os.path.exists(name) and os.path.getsize(name) for name in ["orphan", "daemon"]): time.sleep(0.01)
print("done", flush=True)
"#;

#[test]
fn orphans_of_a_restarted_job_are_found() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = launched(&bench, ORPHANS, &[]);
        let child = nix::unistd::Pid::from_raw(run.line().parse().expect("an id"));
        Way::SaveStop.save(&bench, "1.ckpt", run);
        // Root's job has its ids beside everybody else's, when init has reaped.
        until("a free id", || nix::sys::signal::kill(child, None).is_err().then_some(()));
        run = bench.run(bench.path("1.ckpt"), &[]);
        bench.file("0", "");
        run.expect("both");
        for image in ["2.ckpt", "3.ckpt"] {
            let x = bench.name(image);
            let saved = bench.must(&["save", "--stop", &run.pid_text(), "-n", &x]);
            assert!(!saved.stderr.contains("what may belong"), "{saved:?}");
            run.ends_well();
            run = bench.run(&x, &[]);
        }
        bench.file("1", "");
        run.expect("done");
        run.ends_well();
    }
}

/// A daemon that is a fork of the program is found, wherever it has gone, and lives on after it.
#[test]
fn a_daemon_of_the_same_program_is_saved() {
    const DAEMON: &str = r#"
import os, time
def gate(name):
    while not os.path.exists(name): time.sleep(0.01)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        gate("1")
        print("daemon", flush=True)
        gate("2")
        print("lives on", flush=True)
    os._exit(0)
os.wait()
print("ready", flush=True)
gate("2")
"#;
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = launched(&bench, DAEMON, &[]);
        for image in ["1.ckpt", "2.ckpt", "3.ckpt"] {
            run = bench.reborn(image, run);
        }
        bench.file("1", "");
        run.expect("daemon");
        bench.file("2", "");
        run.expect("lives on");
        run.ends_well();
    }
}

/// In the process group that a root has left there may be orphans of it.
#[test]
fn orphans_in_a_group_that_was_left_are_named() {
    const LEAVES: &str = r#"
import os, sys
if os.fork() == 0:
    if os.fork() == 0:
        os.execlp("sh", "sh", "-c", "until [ -e 1 ]; do sleep 0.01; done")
    os._exit(0)
os.wait()
os.setsid()
print("ready", flush=True)
sys.stdin.readline()
"#;
    let bench = Bench::new(Who::Nobody);
    let mut run = launched(&bench, LEAVES, &[]);
    let saved = bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    assert!(saved.stderr.contains("what may belong to the job: sh ("), "{saved:?}");
    bench.file("1", "");
    run.say("go");
    run.ends_well();
}

/// Who restarts a job in a group of its own, as a shell with job control has it, may have begun in the same tick of the
/// clock as the job's root, and is none of the job. As root, where the job's ids are free again.
#[test]
fn a_restarter_is_none_of_the_job() {
    let bench = Bench::new(Who::Me);
    let script = "sleep 1000 & echo $!; read line; kill $!; echo done";
    let mut run = bench.launch(&["-n", "0.ckpt"], "/bin/sh", &["-c", script]);
    let child = format!("/proc/{}", run.line());
    for number in 0..4 {
        let name = bench.name(&format!("{number}.ckpt"));
        bench.must(&["save", "--stop", &run.pid_text(), "-n", &name]);
        run.end();
        until("the end of the child", || (!Path::new(&child).exists()).then_some(()));
        run = as_a_job(&bench, &format!("{number}.ckpt"));
    }
    run.say("");
    run.expect("done");
    run.ends_well();
}

/// Whoever of a job goes on first may look at all others, though they have not gone on yet.
#[test]
fn peers_look_into_each_others_memory() {
    survive(Who::Nobody, Way::Launch, "peers", Build::Pie, &[]);
}
