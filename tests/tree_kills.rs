// SPDX-License-Identifier: LGPL-2.1-only
//! kill -9 of what saves and restarts a job of twenty processes, at every step that CKPT_FAULT names: the job goes on
//! unharmed or has ended as a whole, and of a restart nothing is left.

mod harness;

use std::fs;
use std::os::unix::process::CommandExt;

use harness::faults::{armed, is_killed, steps};
use harness::host::called;
use harness::{Bench, Build, Run, Who, until};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL};

fn clan(bench: &Bench, args: &[&str]) -> Run {
    let program = match bench.path("clan.pie") {
        program if program.exists() => program,
        _ => bench.subject("clan", Build::Pie),
    };
    let mut run = bench.run(program, args);
    run.expect("ready");
    run
}

#[track_caller]
fn is_right(bench: &Bench, name: &str) {
    let mut again = bench.run(bench.path(name), &[]);
    again.check();
    again.go();
}

fn dumpers(who: Who, turn: u32) {
    let bench = Bench::new(who);
    let mut run = clan(&bench, &["running"]);
    let (pid, x) = (run.pid_text(), bench.name("x.ckpt"));
    let mut met = 0;
    for step in steps(&bench, "dumper") {
        let step = format!("{step}:{turn}");
        if is_killed(&bench, &step, &["save", &pid, "-n", &x]) {
            println!("killed at {step}");
            run.check();
            met += 1;
        }
    }
    assert!(met >= 10, "{met} steps");
    bench.must(&["save", &pid, "-n", &bench.name("after.ckpt")]);
    run.go();
    assert_eq!(bench.names(".ckpt-"), [""; 0]);
    is_right(&bench, "x.ckpt");
    is_right(&bench, "after.ckpt");
}

#[test]
fn a_dumper_of_a_tree_is_killed_at_each_step() {
    dumpers(Who::Me, 1);
    // A process in the middle of the tree.
    dumpers(Who::Nobody, 7);
}

/// Some of its processes ended and others not would be neither the job nor its checkpoint.
#[test]
fn a_job_ends_as_a_whole() {
    let bench = Bench::new(Who::Nobody);
    for step in ["sealed", "ended", "ended:7", "ending"] {
        let mut run = clan(&bench, &[]);
        let pid = run.pid_text();
        assert!(is_killed(&bench, step, &["save", "--stop", &pid, "-n", &bench.name("x.ckpt")]));
        if step == "sealed" {
            run.check();
            run.go();
        } else {
            until("the root's end", || (!run.lives()).then_some(()));
            bench.alone(&[]);
        }
        is_right(&bench, "x.ckpt");
    }
}

fn restarts(who: Who) {
    let bench = Bench::new(who);
    let run = clan(&bench, &[]);
    let (pid, x) = (run.pid_text(), bench.name("x.ckpt"));
    bench.must(&["-p", &pid, "-z", "100000", "-n", &x]);
    bench.must(&["save", "--stop", &pid, "-n", &x]);
    run.ends_well();
    let before = (bench.names(""), fs::read(&x).expect("a checkpoint"));
    let stub = steps(&bench, "stub").into_iter().map(|step| (step, 1));
    let tree = steps(&bench, "restarter").into_iter().map(|step| (step, 1));
    // Of a member, each comes to a step in its turn.
    let members = ["born", "grouped", "filled", "planned", "installed"].map(|s| (s.to_owned(), 5));
    // One that has only to end with the status that its parent has yet to hear of.
    let first = (1..=4).map(|turn| ("planned".to_owned(), turn));
    for (step, turn) in stub.chain(tree).chain(members).chain(first) {
        let step = format!("{step}:{turn}");
        println!("killed at {step}");
        let ended = Run::start(armed(bench.command(&x), &step, &[""; 0])).end();
        let by_us = ended.signal() == Some(SIGKILL as i32);
        let said = ended.code() == Some(125) && ended.stderr.contains("a process of the tree");
        assert!(by_us || said, "{step}: {ended:?}");
        bench.alone(&[]);
    }
    assert!(before == (bench.names(""), fs::read(&x).expect("a checkpoint")), "other files");
    is_right(&bench, "x.ckpt");
}

#[test]
fn a_restart_of_a_tree_is_killed_at_each_step() {
    restarts(Who::Me);
    restarts(Who::Nobody);
}

/// Whoever ends with the restarter: the witness and the root are in its group, others in groups of their own.
fn groups(who: Who, ids: &str) {
    let bench = Bench::new(who);
    let mut command = bench.command(bench.subject("scattered", Build::Pie));
    command.arg("stopped").process_group(0);
    let mut run = Run::start(command);
    run.expect("ready");
    let (pid, x) = (run.pid_text(), bench.name("x.ckpt"));
    bench.must(&["-p", &pid, "-z", "100000", "-n", &x]);
    bench.must(&["save", "--stop", &pid, "-n", &x]);
    run.ends_well();
    let ids = format!("--ids={ids}");
    let both = ["stub", "restarter"].into_iter().flat_map(|who| steps(&bench, who));
    let members = ["born", "grouped", "filled", "planned", "installed"];
    let members = members.iter().flat_map(|step| (2..5).map(move |turn| format!("{step}:{turn}")));
    for step in both.chain(members) {
        println!("killed at {step}");
        let mut command = armed(bench.command(&x), &format!("-{step}"), &[&ids]);
        command.process_group(0);
        let mut restarter = Run::start(command);
        until("its end", || (!restarter.lives()).then_some(()));
        // Where init is in the same session, the kernel lets no stopped one go on that has lost all above it.
        let_go_on(&bench);
        let ended = restarter.end();
        let said = ended.code() == Some(125);
        assert!(ended.signal() == Some(SIGKILL as i32) || said, "{step}: {ended:?}");
        bench.alone(&[]);
    }
    let mut again = bench.run(&x, &[&ids]);
    again.check();
    again.say("go");
    until("its end", || (!again.lives()).then_some(()));
    let_go_on(&bench);
    again.ends_well();
}

/// Whoever is stopped, and has lost all above it, does not go on by itself.
fn let_go_on(bench: &Bench) {
    for left in called(bench, "scattered.pie") {
        let left = nix::unistd::Pid::from_raw(left.cast_signed());
        let _ = nix::sys::signal::kill(left, SIGCONT);
    }
}

#[test]
fn a_restart_whose_group_is_killed_leaves_nothing() {
    for who in [Who::Me, Who::Nobody] {
        groups(who, "new");
        groups(who, "keep");
    }
}

/// An orphan of the job that has begun after the restart has nobody above it but the restarter.
#[test]
fn a_killed_restarter_takes_orphans_along() {
    const SCRIPT: &str = "sleep 600 & echo ready; read x; (sleep 600 &); \
                          (sleep 600 &); echo done; read x";
    for ids in ["--ids=new", "--ids=keep"] {
        let bench = Bench::new(Who::Me);
        let mut run = bench.run("/bin/bash", &["-c", SCRIPT]);
        run.expect("ready");
        let x = bench.name("x.ckpt");
        bench.must(&["save", "--stop", &run.pid_text(), "-n", &x]);
        run.ends_well();
        let mut command = bench.command(&x);
        command.arg(ids).process_group(0);
        let mut again = Run::start(command);
        again.say("");
        again.expect("done");
        again.signal(SIGKILL);
        again.end();
        bench.alone(&[]);
    }
}

/// Whoever stands in one pipeline with a restarter, whose shell is gone, is none of the tree's orphans.
#[test]
fn a_killed_restarter_takes_nobody_else_along() {
    // A shell may be that slow that the job runs before the other is there: nobody can tell that from an orphan.
    const PIPELINE: &str = "set -m; mkfifo there; \
        (read x <there; echo $BASHPID; exec ./x.ckpt $0 <&4) | (echo >there; read pid; \
        echo $pid $BASHPID >&3; read x; (sleep 600 & echo $! >&3); exec sleep 600) &";
    for ids in ["--ids=new", "--ids=keep"] {
        let bench = Bench::new(Who::Me);
        let script = "sleep 600 & echo ready; read x; echo works; read x";
        let mut run = bench.run("/bin/bash", &["-c", script]);
        run.expect("ready");
        bench.must(&["save", "--stop", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
        run.ends_well();
        let mut shell =
            bench.run("/bin/bash", &["-c", &format!("exec 3>&1 4<&0; {PIPELINE}"), ids]);
        let line = shell.line();
        let mut both = line.split(' ').map(|pid| pid.parse::<i32>().expect("an id"));
        let mut next = || nix::unistd::Pid::from_raw(both.next().expect("two ids"));
        let (restarter, beside) = (next(), next());
        shell.say("");
        let child = shell.line().parse().map(nix::unistd::Pid::from_raw).expect("an id");
        nix::sys::signal::kill(restarter, SIGKILL).expect("the restarter");
        bench.alone(&[beside, child].map(|pid| pid.as_raw().unsigned_abs()));
        for pid in [beside, child] {
            let state = harness::status_line(pid.as_raw().unsigned_abs(), "State");
            assert!(state.as_ref().is_some_and(|it| !it.contains("zombie")), "{ids}: {state:?}");
            nix::sys::signal::kill(pid, SIGKILL).expect("it was left alone");
        }
        shell.end();
        bench.alone(&[]);
    }
}

/// A child has stayed in the session in which its parent began, whose leader is gone; whoever else is in that is none of the
/// job's.
#[test]
fn a_checkpoint_takes_nobody_else_along() {
    const PROGRAM: &str = "import os, sys\nif os.fork() == 0: os.execvp('sleep', ['sleep', '600'])\n\
        os.setsid()\nprint(os.getpid(), file=os.fdopen(3, 'w'), flush=True)\n\
        sys.stdin.readline()";
    // The other begins later than the job, and nobody leads their session and their group any more.
    const SESSION: &str = "$1 /usr/bin/python3 -c \"$0\" <&4 & read pid <there; \
        (sleep 600 & echo $pid $! >&5)";
    const SCRIPT: &str = "exec 4<&0 5>&1; mkfifo there; \
        setsid /bin/bash -c \"$0\" \"$1\" \"$2\" 3<>there; read x";
    for who in [Who::Me, Who::Nobody] {
        for launcher in ["", "./ckpt"] {
            let bench = Bench::new(who);
            let mut shell = bench.run("/bin/bash", &["-c", SCRIPT, SESSION, PROGRAM, launcher]);
            let line = shell.line();
            let (pid, other) = line.split_once(' ').expect("two ids");
            let x = bench.name("x.ckpt");
            let said = bench.must(&["save", "--stop", pid, "-n", &x]).stderr;
            let other: u32 = other.parse().expect("an id");
            let state = harness::status_line(other, "State");
            assert!(state.as_ref().is_some_and(|it| !it.contains("zombie")), "{state:?}");
            assert!(said.contains("what may belong to the job: "), "{said}");
            let info = bench.must(&["info", &x]).stdout.join("\n");
            assert!(
                info.lines().any(|it| it.starts_with("processes ") && it.ends_with(" 2")),
                "{info}"
            );
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(other.cast_signed()), SIGKILL)
                .expect("it was left alone");
            shell.say("");
            shell.end();
            bench.alone(&[]);
        }
    }
}

/// Who is beside the restarter is none of the job's: without it signals are handed on, and nothing else.
#[test]
fn a_killed_witness_takes_nobody_along() {
    let bench = Bench::new(Who::Me);
    let script = "trap 'echo urgent' URG; sleep 600 & echo ready; read x; echo works; read x; \
                  kill $!; exit 3";
    let mut run = bench.run("/bin/bash", &["-c", script]);
    run.expect("ready");
    let x = bench.name("x.ckpt");
    bench.must(&["save", "--stop", &run.pid_text(), "-n", &x]);
    run.ends_well();
    let mut again = bench.run(&x, &[]);
    again.say("");
    again.expect("works");
    let witness = nix::unistd::Pid::from_raw(harness::witness(again.pid()).cast_signed());
    nix::sys::signal::kill(witness, SIGKILL).expect("the witness");
    let state = || harness::status_line(witness.as_raw().cast_unsigned(), "State");
    until("its end", || state().is_none_or(|it| it.contains("zombie")).then_some(()));
    again.signal(nix::sys::signal::Signal::SIGURG);
    again.say("");
    let ended = again.end();
    assert!(ended.code() == Some(3), "{ended:?}");
    bench.alone(&[]);
}

/// What a script has left that became the restarter is none of the job, dead or alive: that is restarted, and who outlives its
/// root does so.
#[test]
fn children_of_a_script_are_not_of_the_job() {
    const SCRIPT: &str = "import os, sys\n\
                          child = os.fork() or os._exit(0)\n\
                          os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)\n\
                          os.execv(sys.argv[1], sys.argv[1:])";
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let script = "sleep 600 & echo ready; read x; echo works; read x";
        let mut run = bench.run("/bin/bash", &["-c", script]);
        run.expect("ready");
        let x = bench.name("x.ckpt");
        bench.must(&["save", "--stop", &run.pid_text(), "-n", &x]);
        run.ends_well();
        for _ in 0..3 {
            let mut again = bench.run("/usr/bin/python3", &["-c", SCRIPT, &x]);
            again.say("");
            again.expect("works");
            let sleeper = until("one that sleeps", || match called(&bench, "sleep")[..] {
                [sleeper] => Some(sleeper),
                _ => None,
            });
            again.say("");
            until("its end", || (!again.lives()).then_some(()));
            let sleeper = nix::unistd::Pid::from_raw(sleeper.cast_signed());
            nix::sys::signal::kill(sleeper, SIGKILL).expect("it outlives the root");
            again.end();
            bench.alone(&[]);
        }
    }
}

/// A restart of several processes that cannot be says so once, and leaves nothing.
#[test]
fn a_restart_of_a_tree_that_fails_leaves_nothing() {
    let bench = Bench::new(Who::Nobody);
    bench.file("data", "text");
    let script = "(read x; :) 3<data & (read x; :) 3<data & echo ready; read x <&4; wait";
    let mut run = bench.run("/bin/bash", &["-c", &format!("exec 4<&0; {script}")]);
    run.expect("ready");
    let x = bench.name("x.ckpt");
    bench.must(&["save", "--stop", &run.pid_text(), "-n", &x]);
    run.ends_well();
    let before = fs::read(&x).expect("a checkpoint");
    let limited = format!("ulimit -u 1; exec {x}");
    let ended = bench.run("/bin/bash", &["-c", &limited]).end();
    assert!(ended.code() == Some(125) && ended.stderr.contains("ulimit -u"), "{ended:?}");
    bench.alone(&[]);
    let lower = format!("ulimit -f 1000000; exec {x}");
    let run = bench.run("/bin/bash", &["-c", &lower]);
    run.complaint("lower limits");
    // It waits until the restart is over.
    bench.must(&["save", &run.pid_text(), "-n", &bench.name("y.ckpt")]);
    run.signal(SIGKILL);
    let ended = run.end();
    assert!(ended.stderr.matches("lower limits").count() == 1, "{ended:?}");
    fs::remove_file(bench.path("data")).expect("a file");
    let ended = bench.run(&x, &[]).end();
    let said = ended.stderr.matches("/data: No such file").count();
    let named = ended.stderr.contains("of bash (");
    assert!(ended.code() == Some(125) && said == 1 && named, "{ended:?}");
    bench.alone(&[]);
    assert!(before == fs::read(&x).expect("a checkpoint"));
    assert_eq!(bench.names(".ckpt-"), [""; 0]);
}

/// A script that saves itself waits for the ckpt that does it: after the restart that has ended well.
#[test]
fn a_script_may_save_itself() {
    const SCRIPT: &str = "trap 'chld=1' CHLD; ./ckpt save $$ -n x.ckpt >/dev/null; echo \"a $?\"
        (./ckpt save $$ -n y.ckpt >/dev/null; echo \"b $?\"; exit 7); echo \"c $?\"
        out=$(./ckpt save $$ -n z.ckpt); echo \"d $?\"";
    for shell in ["/bin/dash", "/bin/bash"] {
        let bench = Bench::new(Who::Nobody);
        let run = bench.launch(&["-n", "w.ckpt"], shell, &["-c", SCRIPT]);
        let said = run.ends_well().stdout;
        assert_eq!(said, ["a 0", "b 0", "c 7", "d 0"]);
        for (name, said) in [("x.ckpt", &said[..]), ("y.ckpt", &said[1..]), ("z.ckpt", &said[3..])]
        {
            assert_eq!(
                bench.run(bench.path(name), &[]).ends_well().stdout,
                said,
                "{shell}: {name}"
            );
        }
    }
}
