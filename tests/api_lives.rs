// SPDX-License-Identifier: LGPL-2.1-only
//! The C API in programs that live longer: generations, threads, children, periods, and one payload
//! whichever ways lead to it.

mod desk;
mod harness;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ckpt_abi::region::MAGIC;
use desk::{ALL, Desk, Libc, With, everywhere};
use harness::{Run, Who, catches, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How many payloads a process has.
fn payloads(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process lives");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("we may");
    let starts = maps.lines().filter_map(|line| {
        let (start, _) = line.split_once('-')?;
        u64::from_str_radix(start, 16).ok()
    });
    let mut magic = [0; MAGIC.len()];
    starts.filter(|at| memory.read_exact_at(&mut magic, *at).is_ok() && magic == MAGIC).count()
}

/// The only child of a process, once it is this program and catches the signal.
fn equipped_child(pid: u32, name: &str) -> Pid {
    let children = format!("/proc/{pid}/task/{pid}/children");
    let child = until("the child", || {
        let mut pid: u32 = fs::read_to_string(&children).ok()?.trim().parse().ok()?;
        // system(3) and sh -c may have a shell between.
        loop {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            if comm.trim() == name {
                return catches(pid, Signal::SIGTSTP as i32).then_some(pid);
            }
            let below = format!("/proc/{pid}/task/{pid}/children");
            pid = fs::read_to_string(below).ok()?.trim().parse().ok()?;
        }
    });
    Pid::from_raw(child.cast_signed())
}

#[test]
fn a_program_written_for_the_original_compiles_and_runs() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/original.c");
    for libc in [Libc::Glibc, Libc::Musl] {
        let desk = Desk::new(Who::Nobody);
        let program = desk.compile(&source, "original", libc, With::Linked);
        let ended = desk.bench.run(&program, &[]).ends_well();
        assert_eq!(ended.stdout, ["pre /file 5", "post /file 5", "going on"]);
        let sentence = "ckpt: ckpt_config: '2' is neither 0";
        assert!(ended.stderr.contains(sentence), "{}", ended.stderr);
        let ended = desk.resume("original.ckpt").ends_well();
        assert_eq!(ended.stdout, ["restart /file 5", "going on"]);
    }
}

#[test]
fn four_generations_have_their_callbacks() {
    everywhere(|desk, libc, with| {
        desk.begin("lives", libc, with, "generations").ends_well();
        for generation in 1..=4 {
            let mut run = desk.resume("life.ckpt");
            run.expect(&format!("generation {generation}"));
            run.ends_well();
        }
    });
}

#[test]
fn the_placeholders_of_a_name_hold_in_every_call() {
    everywhere(|desk, libc, with| {
        let mut run = desk.begin("lives", libc, with, "templates");
        run.expect("the third");
        run.ends_well();
    });
}

#[test]
fn a_restart_that_would_fail_returns() {
    everywhere(|desk, libc, with| {
        let mut run = desk.begin("lives", libc, with, "refusals");
        run.expect("unharmed");
        let ended = run.ends_well();
        assert!(ended.stderr.contains("ckpt: ckpt_restart: "), "{ended:?}");
    });
}

#[test]
fn the_environment_is_read_once_and_the_command_line_wins() {
    for (libc, with) in ALL {
        let desk = Desk::new(Who::Nobody);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/lives.c");
        let program = desk.compile(&source, "lives", libc, with);
        let mut command = match with {
            With::Launched => {
                let mut command = desk.bench.command(desk.bench.ckpt());
                command.args(["-n", "early", "-c", "-a", "USR1", "--"]).arg(program);
                command.env("CKPT_NAME", "other").env("CKPT_ASYNCSIG", "SIGUSR2");
                command
            }
            With::Linked | With::Preloaded => {
                let mut command = desk.bench.command(program);
                command.env("CKPT_NAME", "file://early").env("CKPT_CONTINUE", "1");
                command.env("CKPT_ASYNCSIG", "10");
                command
            }
        };
        if with == With::Preloaded {
            command.env("LD_PRELOAD", desk.library());
        }
        let mut run = Run::start({
            command.arg("once");
            command
        });
        run.expect("early 10 1 0");
        run.expect("ok");
        run.ends_well();
    }
}

#[test]
fn what_a_linked_program_spawns_is_equipped_under_its_own_name() {
    for libc in [Libc::Glibc, Libc::Musl] {
        for inherited in [None, Some(""), Some("libm.so.6")] {
            let desk = Desk::new(Who::Nobody);
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/lives.c");
            let program = desk.compile(&source, "lives", libc, With::Linked);
            let mut command = desk.bench.command(program);
            command.arg("spawning");
            if let Some(inherited) = inherited.filter(|_| libc == Libc::Glibc) {
                command.env("LD_PRELOAD", inherited);
            }
            let mut run = Run::start(command);
            let line = run.line();
            let mut list = line.split(':');
            assert_eq!(list.next(), Some(desk.library().as_str()));
            if libc == Libc::Glibc {
                assert_eq!(list.next(), inherited.filter(|i| !i.is_empty()));
            }
            let child = equipped_child(run.pid(), "sleep");
            kill(child, Signal::SIGTSTP).expect("the child lives");
            run.expect("0");
            run.ends_well();
            assert!(desk.bench.path("sleep.ckpt").exists());
            assert!(!desk.bench.path("lives.ckpt").exists());
        }
    }
}

#[test]
fn what_a_launched_program_spawns_is_not_equipped_though_it_is_linked() {
    let desk = Desk::new(Who::Nobody);
    let mut run = desk.begin("lives", Libc::Glibc, With::Launched, "spawning");
    run.expect("-");
    let child = |pid: u32| -> Option<u32> {
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?.trim().parse().ok()
    };
    let is_sleep = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep")
    };
    // The shell of system(3) executes it, or is its parent.
    let sleeper = until("sleep", || {
        let shell = child(run.pid())?;
        Some(shell).filter(is_sleep).or_else(|| child(shell).filter(is_sleep))
    });
    assert!(!catches(sleeper, Signal::SIGTSTP as i32));
    assert_eq!(payloads(sleeper), 0);
    kill(Pid::from_raw(sleeper.cast_signed()), Signal::SIGKILL).expect("it lives");
    run.expect("137");
    run.ends_well();
}

#[test]
fn what_an_attached_program_spawns_is_not_equipped() {
    let desk = Desk::new(Who::Nobody);
    let script = "echo ready; read line; cat /proc/self/status | grep SigCgt";
    let mut run = desk.bench.run("/bin/sh", &["-c", script]);
    run.expect("ready");
    desk.bench.must(&["-p", &run.pid_text()]);
    assert_eq!(payloads(run.pid()), 1);
    run.say("");
    let line = run.line();
    let mask = line.split_whitespace().last().and_then(|m| u64::from_str_radix(m, 16).ok());
    assert_eq!(mask.map(|m| m >> (Signal::SIGTSTP as i32 - 1) & 1), Some(0), "{line}");
    run.ends_well();
}

#[test]
fn forked_children_have_their_pid_in_their_name() {
    for (libc, with) in ALL {
        let desk = Desk::new(Who::Nobody);
        let mut run = desk.start(libc, with, "forked");
        run.expect("parent");
        let name = run.line();
        run.ends_well();
        let mut run = desk.resume(&name);
        run.expect("child restarted");
        run.ends_well();
    }
}

#[test]
fn callbacks_are_called_though_all_signals_are_blocked() {
    everywhere(|desk, libc, with| {
        let mut run = desk.begin("lives", libc, with, "blocked");
        run.expect("ready");
        for round in 1..=3 {
            desk.bench.must(&["save", &run.pid_text(), "-n", &desk.bench.name("deaf.ckpt")]);
            run.say("");
            run.expect(&format!("{round} {round} 0"));
        }
        run.finish();
        let mut run = desk.resume("deaf.ckpt");
        run.say("");
        run.expect("3 2 1");
        run.finish();
    });
}

/// Nobody suspends a filter while the callbacks are called.
#[test]
fn callbacks_are_called_where_filters_allow_it() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let desk = Desk::new(Who::Me);
    let mut run = desk.begin("lives", Libc::Glibc, With::Linked, "locked");
    run.expect("ready");
    let pid = run.pid_text();
    for args in [&["save", &pid, "-n", "x.ckpt"][..], &["save", "--stop", &pid, "-n", "x.ckpt"]] {
        let said = desk.bench.order(args);
        assert_eq!(said.code(), Some(125), "{said:?}");
        assert!(said.stderr.contains("takes to call its callbacks"), "{said:?}");
        run.say("");
        run.expect("0 0 0");
    }
    let said = desk.bench.order(&["check", &pid]);
    assert_eq!(said.code(), Some(2), "{said:?}");
    assert!(said.stdout.join("\n").contains("takes to call its callbacks"), "{said:?}");
    run.say("");
    run.expect("0 0 0");
    run.finish();
    let mut run = desk.begin("lives", Libc::Musl, With::Linked, "careful");
    run.expect("ready");
    desk.bench.must(&["save", &run.pid_text(), "-n", &desk.bench.name("y.ckpt")]);
    run.say("");
    run.expect("1 1 0");
    run.finish();
    let mut run = desk.resume("y.ckpt");
    run.say("");
    run.expect("1 0 1");
    run.finish();
}

#[test]
fn periodic_checkpoints_call_the_callbacks_and_wait_for_the_release() {
    for (libc, with) in ALL {
        let desk = Desk::new(Who::Nobody);
        let mut run = desk.begin("lives", libc, with, "periodic");
        run.expect("held");
        let monitored = || {
            let pid = run.pid_text();
            let found = fs::read_dir("/proc").expect("/proc").flatten().any(|entry| {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let words: Vec<_> = line.split(|b| *b == 0).collect();
                words.get(1) == Some(&&b"__monitor"[..]) && words.get(2) == Some(&pid.as_bytes())
            });
            found.then_some(())
        };
        until("the monitor", monitored);
        run.say("");
        // Waits for its turn, between or after the periodic ones.
        desk.bench.must(&["save", &run.pid_text(), "-n", &desk.bench.name("between.ckpt")]);
        run.expect("thrice");
        run.say("");
        let counts = run.line();
        let counts: Vec<u32> = counts.split(' ').map(|n| n.parse().expect("a number")).collect();
        assert!(counts[0] >= 3 && counts[1] >= 3 && counts[2] == 0, "{counts:?}");
        run.finish();
        let mut run = desk.resume("period.ckpt");
        // One that had begun when the period became 0 is of a program that waits for a line already.
        run.say("");
        let mut line = run.line();
        if line == "thrice" {
            line = run.line();
        }
        assert!(line.starts_with(|c: char| ('3'..='9').contains(&c)), "{line}");
        run.finish();
    }
}

#[test]
fn two_hundred_threads_call_everything_at_once() {
    for (libc, with) in ALL {
        let desk = Desk::new(Who::Nobody);
        let mut run = desk.begin("lives", libc, with, "many");
        run.expect("ready");
        desk.bench.must(&["save", &run.pid_text(), "-n", &desk.bench.name("crowd.ckpt")]);
        run.say("");
        run.expect("4 4 0");
        run.finish();
        let mut run = desk.resume("crowd.ckpt");
        run.say("");
        run.expect("4 3 1000");
        let ended = run.finish();
        assert_eq!(ended.stdout, ["joined"], "{ended:?}");
    }
}

#[test]
fn callbacks_use_ordinary_functions_while_others_allocate() {
    everywhere(|desk, libc, with| {
        let mut run = desk.begin("lives", libc, with, "ordinary");
        run.expect("saved");
        run.ends_well();
        let mut run = desk.resume("ordinary.ckpt");
        run.expect("restarted");
        run.ends_well();
    });
}

#[test]
fn there_is_one_payload_whichever_ways_lead_to_it() {
    for libc in [Libc::Glibc, Libc::Musl] {
        for with in [With::Linked, With::Launched] {
            let desk = Desk::new(Who::Nobody);
            let mut run = desk.start(libc, with, "outside");
            run.expect("ready");
            assert_eq!(payloads(run.pid()), 1);
            let name = desk.bench.name("attached.ckpt");
            desk.bench.must(&["-p", &run.pid_text(), "-n", &name, "-c", "-a", "USR1"]);
            assert_eq!(payloads(run.pid()), 1);
            assert!(!catches(run.pid(), Signal::SIGTSTP as i32));
            run.signal(Signal::SIGUSR1);
            until("the checkpoint", || Path::new(&name).exists().then_some(()));
            run.say("");
            run.expect("1 1 0");
            run.finish();
            let mut run = desk.bench.run(desk.bench.path("attached.ckpt"), &["--ids=new"]);
            run.say("");
            run.expect("1 0 1");
            assert_eq!(payloads(run.pid()), 1);
            run.finish();
        }
    }
}

/// Starts a Python script of tests/api, by ckpt or with the library preloaded.
fn python(desk: &Desk, with: With, script: &str, args: &[&str]) -> Run {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api").join(script);
    let script = desk.bench.file(script, fs::read(source).expect("the script"));
    let mut command = match with {
        With::Launched => {
            let mut command = desk.bench.command(desk.bench.ckpt());
            command.args(["--", "/usr/bin/python3"]);
            command
        }
        With::Preloaded | With::Linked => desk.bench.command("/usr/bin/python3"),
    };
    if with == With::Preloaded {
        command.env("LD_PRELOAD", desk.library());
    }
    command.arg(script).args(args).env("PYTHONPATH", desk.bench.path("sdk/lib/python"));
    Run::start(command)
}

#[test]
fn python_programs_redirect_files_and_leave_memory_out_for_three_generations() {
    for with in [With::Launched, With::Preloaded, With::Linked] {
        let desk = Desk::new(Who::Nobody);
        python(&desk, with, "files.py", &[]).ends_well();
        for generation in 1..=3 {
            let mut run = desk.resume("files.ckpt");
            // The first page is in the image; what is behind it comes back as zeros.
            run.expect("120 0");
            run.ends_well();
            assert_eq!(desk.read("new.txt"), format!("generation {generation}\n"));
        }
        assert_eq!(desk.read("out.txt"), "before\n");

        let desk = Desk::new(Who::Nobody);
        let ended = python(&desk, with, "files.py", &["restart"]).ends_well();
        assert_eq!(ended.stdout, ["120 0"; 3]);
    }
}

#[test]
fn without_the_library_the_python_module_says_so() {
    let desk = Desk::new(Who::Nobody);
    fs::remove_file(desk.library()).expect("it was there");
    let ended = python(&desk, With::Linked, "module.py", &[]).end();
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("libckpt.so"), "{ended:?}");
}

#[test]
fn pkg_config_names_what_a_compiler_needs() {
    let desk = Desk::new(Who::Nobody);
    let found = std::process::Command::new("pkg-config")
        .args(["--cflags", "--libs", "ckpt"])
        .env("PKG_CONFIG_PATH", desk.bench.path("sdk/lib/pkgconfig"))
        .output();
    let found = found.expect("pkg-config runs");
    let words = String::from_utf8(found.stdout).expect("words");
    let source =
        desk.bench.file("hold.c", "#include <ckpt.h>\nint main() { return ckpt_hold(); }\n");
    let program = desk.bench.path("hold");
    let mut compiler = std::process::Command::new("gcc");
    compiler.arg(source).arg("-o").arg(&program).args(words.split_whitespace());
    assert!(compiler.status().expect("gcc runs").success(), "{words}");
    let mut command = desk.bench.command(program);
    command.env("LD_LIBRARY_PATH", desk.bench.path("sdk/lib"));
    Run::start(command).ends_well();
}
