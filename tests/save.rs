// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt save` and `ckpt -p`: programs that run already, whatever they are doing.

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP, SIGTSTP, SIGUSR1};

use harness::faults::is_killed;
use harness::{Bench, Build, Run, Way, Who, await_stop, catches, status_line, until};

const SIGTSTP_NUMBER: i32 = 20;

#[test]
fn save_says_what_it_did() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    let said = bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    let bytes = fs::metadata(bench.path("x.ckpt")).expect("the image").len();
    let text = said.stdout.join("\n");
    assert!(text.contains("x.ckpt"), "no name: {said:?}");
    assert!(text.contains(&bytes.to_string()), "not {bytes} bytes: {said:?}");
    assert!(text.contains(" ms"), "no pause: {said:?}");
    assert_eq!(said.complaints(), "");
    run.check();
    run.go();
}

#[test]
fn the_image_is_an_executable_of_its_owner() {
    let bench = Bench::new(Who::Nobody);
    let image = saved(&bench, "memory", &[]);
    let status = fs::metadata(&image).expect("the image");
    assert_eq!(status.permissions().mode() & 0o7777, 0o700);
    let bytes = fs::read(&image).expect("the image");
    let elf = goblin::elf::Elf::parse(&bytes).expect("an ELF file");
    assert_eq!(elf.interpreter, None);
    bench.must(&["verify", image.to_str().expect("utf-8")]);
}

/// Starts a subject and saves it from outside, ending it; the image's path.
#[track_caller]
fn saved(bench: &Bench, subject: &str, args: &[&str]) -> std::path::PathBuf {
    let mut run = bench.run(bench.subject(subject, Build::Pie), args);
    run.expect("ready");
    Way::SaveStop.save(bench, "x.ckpt", run);
    bench.path("x.ckpt")
}

#[test]
fn zeros_and_reservations_cost_nothing() {
    const MIB: u64 = 8;
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("sparse", Build::Musl), &[&MIB.to_string()]);
    run.expect("ready");
    let program = fs::metadata(bench.path("sparse.musl")).expect("the program").len();
    Way::SaveStop.save(&bench, "x.ckpt", run);
    let stub = fs::metadata(bench.ckpt()).expect("ckpt").len();
    let image = fs::metadata(bench.path("x.ckpt")).expect("the image").len();
    // The program's own pages are its file and as much again for bss, heap, stack and vdso.
    let pages = (MIB << 20) + 2 * program + (64 << 10);
    let limit = pages + stub + pages / 100 + (64 << 10);
    assert!(image <= limit, "{image} bytes are more than {limit}");
    assert!(image > MIB << 20, "{image} bytes cannot hold the random bytes");
    bench.run(bench.path("x.ckpt"), &[]).go();
}

#[test]
fn the_default_name_lies_in_the_targets_directory() {
    let bench = Bench::new(Who::Nobody);
    for order in ["save", "-p"] {
        let mut command = bench.command(bench.subject("observer", Build::Pie));
        let there = bench.subdirectory(&format!("of{order}"));
        command.current_dir(&there);
        let mut run = Run::start(command);
        run.expect("ready");
        if order == "save" {
            bench.must(&["save", "--stop", &run.pid_text()]);
        } else {
            bench.must(&["-p", &run.pid_text()]);
            run.signal(SIGTSTP);
        }
        run.ends_well();
        bench.run(there.join("observer.pie.ckpt"), &[]).go();
    }
}

#[test]
fn a_second_attach_changes_the_configuration_only() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("observer", Build::Pie), &[]);
    run.expect("ready");
    let pid = run.pid_text();
    bench.must(&["-p", &pid, "-n", &bench.name("first.ckpt")]);
    run.check();
    let areas = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps").lines().count();
    bench.must(&["-p", &pid, "-n", &bench.name("second.ckpt"), "-c", "-a", "USR1"]);
    run.check();
    let now = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps").lines().count();
    assert_eq!(now, areas, "the second call left mappings behind");
    assert!(!catches(run.pid(), SIGTSTP_NUMBER), "the old signal is still taken");
    run.signal(SIGUSR1);
    until("second.ckpt", || bench.path("second.ckpt").exists().then_some(()));
    run.check();
    run.go();
    assert!(!bench.path("first.ckpt").exists());
    bench.run(bench.path("second.ckpt"), &[]).go();
}

#[test]
fn attach_refuses_at_once_what_cannot_work() {
    let bench = Bench::new(Who::Nobody);
    let here = bench.subdirectory("closed");
    let mut command = bench.command(bench.subject("observer", Build::Pie));
    command.current_dir(&here);
    let mut run = Run::start(command);
    run.expect("ready");
    for absent in ["save", "-p"] {
        let ended = bench.order(&[absent, "4194304"]);
        assert_eq!(ended.code(), Some(125), "{ended:?}");
        assert!(ended.stderr.contains("4194304"), "{ended:?}");
    }
    if bench.drops_privileges() {
        fs::set_permissions(&here, PermissionsExt::from_mode(0o555)).expect("chmod");
        let ended = bench.order(&["-p", &run.pid_text()]);
        assert_eq!(ended.code(), Some(125), "{ended:?}");
        assert!(ended.stderr.contains("closed") && ended.stderr.contains("Permission denied"));
        let other = bench.order(&["save", &std::process::id().to_string()]);
        assert_eq!(other.code(), Some(125), "another user's process: {other:?}");
    }
    run.check();
    run.go();
}

#[test]
fn a_program_that_ignores_or_handles_the_signal_is_saved() {
    for action in ["''", "'echo trapped'"] {
        let bench = Bench::new(Who::Nobody);
        let script = format!("trap {action} TSTP; echo ready; read x; echo $x; exit 5");
        let mut run = bench.run("bash", &["-c", &script]);
        run.expect("ready");
        bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
        for mut run in [run, bench.run(bench.path("x.ckpt"), &[])] {
            run.say("word");
            run.expect("word");
            assert_eq!(run.end().code(), Some(5), "trap {action}");
        }
    }
}

#[test]
fn more_signals_during_a_dump_are_harmless() {
    for options in [&[][..], &["-c"]] {
        let bench = Bench::new(Who::Nobody);
        let mut run = bench.launch(options, bench.subject("sparse", Build::Pie), &["64"]);
        run.expect("ready");
        let image = bench.path("sparse.pie.ckpt");
        until("the checkpoint", || {
            if run.lives() {
                run.signal(SIGTSTP);
            }
            image.exists().then_some(())
        });
        if options.is_empty() {
            run.ends_well();
        } else {
            // A save from outside is refused while a dump runs. A picture of the subject in the
            // middle of a line would not hear the next one.
            let pid = run.pid_text();
            until("the end of the dumps", || {
                let saved = bench.order(&["save", "-n", "quiet.ckpt", &pid]);
                (saved.code() == Some(0)).then_some(())
            });
            run.check();
            run.go();
        }
        until("the last dump", || (bench.names("sparse.pie.").len() == 1).then_some(()));
        bench.must(&["verify", image.to_str().expect("utf-8")]);
        bench.run(image, &[]).go();
    }
}

macro_rules! sleeps_on {
    ($($call:ident)*) => {$(
        mod $call {
            #[test]
            fn me() {
                super::sleeps_on(super::Who::Me, stringify!($call));
            }

            #[test]
            fn unprivileged() {
                super::sleeps_on(super::Who::Nobody, stringify!($call));
            }
        }
    )*};
}

mod blocked {
    use super::{Who, sleeps_on};
    sleeps_on! {
        nanosleep clock_nanosleep poll ppoll select epoll_wait sigtimedwait semtimedop recv read write futex
    }
}

/// Calls whose limit the kernel counts anew after an interruption and that no register holds: with
/// each save they sleep longer. All others end in time however often they are saved.
const COUNTED_ANEW: [&str; 5] = ["sigtimedwait", "semtimedop", "recv", "read", "write"];

/// Saves a sleeper again and again until it ends: a call that began anew each time would never end.
#[track_caller]
fn sleeps_on(who: Who, call: &str) {
    // On a busy machine a sleep may be over sooner.
    let is_enough = (0..10).any(|_| saved_in_a_sleep(who, call) >= 2);
    assert!(is_enough, "no two saves in any sleep");
}

/// How often a sleeper was saved.
#[track_caller]
fn saved_in_a_sleep(who: Who, call: &str) -> usize {
    let bench = Bench::new(who);
    let mut run = bench.run(bench.subject("blocked", Build::Pie), &[call]);
    run.expect("ready");
    let pid = run.pid_text();
    let most = if COUNTED_ANEW.contains(&call) { 5 } else { usize::MAX };
    let mut saves = 0;
    until(&format!("the end of {call}, saved all the time"), || {
        if saves < most {
            let saved = bench.order(&["save", &pid, "-n", &bench.name("x.ckpt")]);
            saves += usize::from(saved.code() == Some(0));
            assert!(saved.code() == Some(0) || saves > 0 || !run.lives(), "{saved:?}");
        }
        (!run.lives()).then_some(())
    });
    run.ends_well();
    saves
}

#[test]
fn a_sleeper_sleeps_on_after_the_restart() {
    for call in ["nanosleep", "clock_nanosleep", "sigtimedwait", "futex"] {
        let bench = Bench::new(Who::Nobody);
        let image = saved(&bench, "blocked", &[call]);
        bench.run(image, &[]).ends_well();
    }
}

#[test]
fn a_forked_child_saves_under_its_own_name() {
    let bench = Bench::new(Who::Nobody);
    let program = bench.subject("forked", Build::Pie);
    let mut run = bench.launch(&["-n", "x.ckpt"], program, &["gate"]);
    let line = run.line();
    let child: i32 = line.strip_prefix("child ").expect("a child").parse().expect("a pid");
    let alone = ["save", "--alone", &run.pid_text(), "-n", &bench.name("parent.ckpt")];
    let said = bench.must(&alone);
    assert!(said.stderr.contains("not saved: child processes: forked"), "{said:?}");
    let said = bench.must(&["save", &child.to_string(), "-n", &bench.name("parent.ckpt")]);
    assert!(!said.stderr.contains("not saved: child"), "{said:?}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), SIGTSTP).expect("the child");
    run.expect("ended 0");
    run.ends_well();
    let names = bench.names("x.ckpt");
    let [name] = &names[..] else { panic!("one image of the child, not {names:?}") };
    assert!(name.ends_with(&child.to_string()) && name != "x.ckpt", "{name}");
    let mut again = bench.run(bench.path(name), &[]);
    bench.file("gate", "");
    again.expect("child goes on");
    assert_eq!(again.end().code(), Some(33));
}

#[test]
fn a_signal_to_the_group_saves_all_at_once() {
    let bench = Bench::new(Who::Nobody);
    let program = bench.subject("forked", Build::Pie);
    let mut run = bench.launch(&["-c", "-n", "x.ckpt"], program, &["gate"]);
    let line = run.line();
    let child: i32 = line.strip_prefix("child ").expect("a child").parse().expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), SIGTSTP).expect("the child");
    run.signal(SIGTSTP);
    until("a whole image of both", || {
        let said = bench.order(&["verify", &bench.name("x.ckpt")]);
        (said.code() == Some(0)).then_some(())
    });
    bench.file("gate", "");
    run.expect("child goes on");
    run.expect("ended 33");
    run.ends_well();
}

#[test]
fn nothing_of_ours_is_left_when_the_program_is_killed() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.launch(&["-c"], bench.subject("sparse", Build::Pie), &["32"]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.signal(SIGKILL);
    assert_eq!(run.end().signal(), Some(9));
    // The bench fails when a process is left; a temporary file must be gone as well.
    until("the dumper's end", || {
        let names = bench.names("");
        names
            .iter()
            .all(|n| ["ckpt", "sparse.pie", "sparse.pie.ckpt"].contains(&&n[..]))
            .then_some(())
    });
}

/// A sleep that a batch system has stopped and let go on, or a dumper that was killed: it shows neither which it is nor how
/// long it has still to go, but it does not end with a signal that nobody has sent.
#[test]
fn a_sleep_that_somebody_else_has_stopped_goes_on_after_a_restart() {
    for call in ["nanosleep", "futex"] {
        for step in ["", "frozen"] {
            let bench = Bench::new(Who::Nobody);
            let mut run = bench.run(bench.subject("blocked", Build::Pie), &[call]);
            run.expect("ready");
            until("its sleep", || {
                (status_line(run.pid(), "State")?.starts_with('S')).then_some(())
            });
            let save = ["save", &run.pid_text(), "-n", &bench.name("x.ckpt")];
            if step.is_empty() {
                run.signal(SIGSTOP);
                await_stop(run.pid());
                run.signal(SIGCONT);
            } else {
                assert!(is_killed(&bench, step, &save));
            }
            until("its sleep", || {
                (status_line(run.pid(), "State")?.starts_with('S')).then_some(())
            });
            let said = bench.must(&save);
            assert!(said.stderr.contains("its time-out begins anew"), "{call}: {said:?}");
            bench.run(bench.path("x.ckpt"), &[]).ends_well();
            run.ends_well();
        }
    }
}
