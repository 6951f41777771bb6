// SPDX-License-Identifier: LGPL-2.1-only
//! A program that executes another stays with ckpt: by its signal, its period and `ckpt save`.

mod harness;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use nix::sys::signal::Signal::{self, SIGTSTP, SIGUSR1};

use harness::periods::{no_monitor, renewed};
use harness::{Bench, Build, Run, Who, until};

const BOTH: [Who; 2] = [Who::Me, Who::Nobody];

/// Waits until the process handles a signal.
#[track_caller]
fn catches(pid: u32, signal: Signal) {
    until("a handler of the checkpoint signal", || {
        harness::catches(pid, signal as i32).then_some(())
    });
}

/// Whether a process has become this program.
fn runs(pid: u32, program: &str) -> bool {
    let exe = fs::read_link(format!("/proc/{pid}/exe"));
    exe.is_ok_and(|exe| exe.file_name().is_some_and(|name| name == program))
}

/// Restarts an image, whose program goes on to its end.
#[track_caller]
fn goes_on(bench: &Bench, image: &str) {
    let mut again = bench.run(bench.path(image), &[]);
    again.check();
    again.go();
}

/// Valgrind would run our handler as a part of its program, and end by that. It is told by where its tools are and by what
/// its launcher leaves in the environment, which others only inherit.
#[test]
fn no_handler_is_there_before_an_instrumenter() {
    for who in BOTH {
        let bench = Bench::new(who);
        let program = bench.subject("waiter", Build::Pie);
        bench.subdirectory("valgrind");
        let tool = bench.path("valgrind/memcheck-amd64-linux");
        fs::copy(&program, &tool).expect("a copy");
        let of = |program: &std::path::Path| {
            let args = ["VALGRIND_LAUNCHER=/usr/bin/valgrind", program.to_str().expect("utf-8")];
            bench.launch(&["-n", "x.ckpt"], "env", &args)
        };
        let mut run = of(&program);
        run.expect("ready");
        catches(run.pid(), SIGTSTP);
        run.go();
        let mut run = of(&tool);
        run.expect("ready");
        run.complaint("no checkpoints by the signal: process");
        assert!(!harness::catches(run.pid(), SIGTSTP as i32));
        bench.must(&["save", &run.pid_text(), "--stop", "-n", &bench.name("x.ckpt")]);
        run.end();
        goes_on(&bench, "x.ckpt");
    }
}

#[test]
fn the_signal_saves_what_wrappers_execute() {
    for who in BOTH {
        let bench = Bench::new(who);
        let program = bench.subject("waiter", Build::Pie);
        let program = program.to_str().expect("utf-8");
        let wrappers: [&[&str]; 4] = [
            &["env", "A=1"],
            &["nice", "nohup", "env", "A=1"],
            &["sh", "-c", "read x; exec \"$0\" \"$@\""],
            &["stdbuf", "-o0", "taskset", "1"],
        ];
        for wrapper in wrappers {
            let args = [&wrapper[1..], &[program]].concat();
            let mut run = bench.launch(&["-n", "x.ckpt"], wrapper[0], &args);
            if wrapper[0] == "sh" {
                run.say("x");
            }
            run.expect("ready");
            until("the program", || runs(run.pid(), "waiter.pie").then_some(()));
            catches(run.pid(), SIGTSTP);
            run.signal(SIGTSTP);
            let pid = run.pid();
            run.ends_well();
            no_monitor(pid);
            goes_on(&bench, "x.ckpt");
        }
    }
}

#[test]
fn periodic_checkpoints_go_on() {
    for who in BOTH {
        for attach in [false, true] {
            let bench = Bench::new(who);
            bench.subject("waiter", Build::Static);
            let script = ["-c", "echo begun; read x; exec ./waiter.static"];
            let name = bench.name("x.ckpt");
            let options = ["-z", "50", "-n", &name];
            let mut run = if attach {
                let mut run = bench.run("/bin/sh", &script);
                run.expect("begun");
                bench.must(&[&options[..], &["-p", &run.pid_text()]].concat());
                run
            } else {
                let mut run = bench.launch(&options, "/bin/sh", &script);
                run.expect("begun");
                run
            };
            let image = bench.path("x.ckpt");
            let first = renewed(&image, None);
            run.say("x");
            run.expect("ready");
            catches(run.pid(), SIGTSTP);
            // What was begun before may come after it.
            let second = renewed(&image, Some(first));
            let third = renewed(&image, Some(second));
            renewed(&image, Some(third));
            // The last may be of the program's last moment.
            fs::copy(&image, bench.path("y.ckpt")).expect("a copy");
            bench.give(&bench.path("y.ckpt"));
            let pid = run.pid();
            run.check();
            run.go();
            no_monitor(pid);
            goes_on(&bench, "y.ckpt");
        }
    }
}

/// At once, and under the name that it was given.
#[test]
fn a_save_finds_the_configuration() {
    for who in BOTH {
        let bench = Bench::new(who);
        bench.subject("waiter", Build::Pie);
        let script = ["-c", "echo begun; read x; exec ./waiter.pie"];
        let mut run = bench.launch(&["-n", "mine.ckpt"], "/bin/sh", &script);
        run.expect("begun");
        run.say("x");
        run.expect("ready");
        bench.must(&["save", "--stop", &run.pid_text()]);
        run.ends_well();
        goes_on(&bench, "mine.ckpt");
    }
}

#[test]
fn a_signal_that_it_ignores_stays_ignored() {
    let bench = Bench::new(Who::Nobody);
    bench.subject("waiter", Build::Pie);
    let script = ["-c", "trap '' USR1; exec ./waiter.pie"];
    let mut run = bench.launch(&["-a", "USR1", "-n", "x.ckpt"], "/bin/sh", &script);
    run.expect("ready");
    run.complaint("the program ignores it");
    run.signal(SIGUSR1);
    run.check();
    bench.must(&["save", "--stop", &run.pid_text()]);
    run.ends_well();
    goes_on(&bench, "x.ckpt");
}

#[test]
fn a_set_user_id_program_is_told() {
    let bench = Bench::new(Who::Nobody);
    if !bench.drops_privileges() {
        return;
    }
    let program = bench.subject("waiter", Build::Pie);
    fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).expect("chmod");
    let said = bench.file("said", "");
    let mut command = bench.command(bench.ckpt());
    command.args(["-n", "x.ckpt", "--", "env", "./waiter.pie"]);
    // Run has pipes, which only their owner can write to.
    let stderr = File::options().append(true).open(&said).expect("a file");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
    let mut child = command.spawn().expect("ckpt");
    until("a sentence", || {
        let text = fs::read_to_string(&said).expect("the file");
        text.contains("no checkpoints of waiter.pie").then_some(())
    });
    drop(child.stdin.take());
    child.wait().expect("a child of ours");
}

/// A restarted program is followed as well, and so is the root of a restarted tree.
#[test]
fn what_a_restarted_program_executes_is_followed() {
    let scripts = [
        "echo begun; read x; exec ./waiter.pie",
        // The subject is to have no child.
        "sleep 1000 & echo begun; read x; kill $!; wait $! 2>&-; exec ./waiter.pie",
    ];
    for (who, script) in BOTH.into_iter().flat_map(|who| scripts.map(|script| (who, script))) {
        let bench = Bench::new(who);
        bench.subject("waiter", Build::Pie);
        let mut run = bench.launch(&["-n", "x.ckpt"], "/bin/sh", &["-c", script]);
        run.expect("begun");
        bench.must(&["save", "--stop", &run.pid_text()]);
        run.ends_well();
        let mut run = bench.run(bench.path("x.ckpt"), &[]);
        run.say("x");
        run.expect("ready");
        let saved = bench.must(&["save", "--stop", &run.pid_text()]);
        assert!(saved.stdout.concat().contains("/x.ckpt: "), "{script}: {saved:?}");
        run.ends_well();
        let mut run: Run = bench.run(bench.path("x.ckpt"), &[]);
        run.check();
        bench.must(&["save", "--stop", &run.pid_text()]);
        run.ends_well();
        goes_on(&bench, "x.ckpt");
    }
}

/// A monitor is known by its command line, which anybody may have.
#[test]
fn what_somebody_else_calls_a_monitor_is_none() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let program = bench.subject("waiter", Build::Pie);
    fs::set_permissions(bench.path("."), fs::Permissions::from_mode(0o777)).expect("for all");
    let script = "echo begun; read x; exec ./waiter.pie";
    let mut run = bench.launch(&["-z", "50", "-n", "x.ckpt"], "/bin/bash", &["-c", script]);
    run.expect("begun");
    renewed(&bench.path("x.ckpt"), None);
    let mut other = bench.command(program);
    other.arg0("ckpt").args(["__monitor", &run.pid_text()]).uid(65534);
    let mut other = Run::start(other);
    other.expect("ready");
    run.say("");
    run.expect("ready");
    let before = harness::periods::inode(&bench.path("x.ckpt"));
    renewed(&bench.path("x.ckpt"), before);
    run.go();
    other.go();
}
