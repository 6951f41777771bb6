// SPDX-License-Identifier: LGPL-2.1-only
//! Threads that work for a dumper: whatever becomes of it, they come home as they were, and what a stop has cut short goes
//! on.

mod harness;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::faults::{armed, steps};
use harness::{Bench, Build, Ended, Run, Way, Who, survive, until};
use nix::sys::signal::Signal::{SIGTSTP, SIGURG, SIGUSR2};
use nix::sys::signal::kill;
use nix::unistd::Pid;

fn save(bench: &Bench, run: &Run, name: &str) -> Ended {
    bench.order(&["save", &run.pid_text(), "-n", &bench.name(name)])
}

macro_rules! goes_on {
    ($($kind:ident)*) => {$(
        mod $kind {
            #[test]
            fn me() {
                super::super::goes_on(super::Who::Me, stringify!($kind), super::Build::Pie);
            }

            #[test]
            fn unprivileged() {
                super::super::goes_on(super::Who::Nobody, stringify!($kind), super::Build::Musl);
            }
        }
    )*};
}

mod cut {
    use super::{Build, Who};
    goes_on! {
        write writev write_socket writev_socket write_terminal send sendmsg sendmmsg sendfile
        recv recvmsg recvmmsg read_terminal zero getrandom fallocate
    }
}

/// A checkpoint stops a thread in the middle of a call, three times; the call gives what it was asked for all the same.
#[track_caller]
fn goes_on(who: Who, kind: &str, build: Build) {
    let bench = Bench::new(who);
    let mut run = bench.run(bench.subject("cut", build), &[kind]);
    run.expect("ready");
    for _ in 0..3 {
        save(&bench, &run, "x.ckpt");
        run.check();
    }
    run.go();
}

#[test]
fn a_call_cut_short_goes_on_after_a_restart() {
    for kind in ["write", "writev", "zero", "getrandom"] {
        survive(Who::Me, Way::SaveStop, "cut", Build::Pie, &[kind]);
        survive(Who::Nobody, Way::Save, "cut", Build::Static, &[kind]);
    }
}

/// Kills the dumper at each step, the n-th time it comes by, with signals all the time, and saves at once again.
#[track_caller]
fn comes_home(who: Who, build: Build) {
    let bench = Bench::new(who);
    let mut run = bench.run(bench.subject("lent", build), &[]);
    run.expect("ready");
    let over = AtomicBool::new(false);
    let pid = Pid::from_raw(run.pid().cast_signed());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _ = kill(pid, SIGUSR2);
                std::thread::sleep(std::time::Duration::from_micros(500));
            }
        });
        for step in steps(&bench, "dumper") {
            for time in ["1", "2", "5"] {
                let line = ["save", &run.pid_text(), "-n", &bench.name("x.ckpt")];
                let command = bench.command(bench.ckpt());
                Run::start(armed(command, &format!("{step}:{time}"), &line)).end();
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    run.check();
    assert_eq!(save(&bench, &run, "y.ckpt").code(), Some(0));
    run.check();
    let mut again = bench.run(bench.path("y.ckpt"), &[]);
    again.check();
    again.check();
    again.go();
    run.go();
}

#[test]
fn threads_come_home_from_a_dumper_that_was_killed() {
    comes_home(Who::Me, Build::Pie);
}

#[test]
fn threads_come_home_from_a_dumper_that_was_killed_unprivileged() {
    comes_home(Who::Nobody, Build::Musl);
}

/// prctl(2), PR_SET_MDWE with PR_MDWE_REFUSE_EXEC_GAIN; kernels before 6.3 do not know it.
const MDWE: &str = "$| = 1; syscall(157, 65, 1, 0, 0, 0); print \"ready\\n\"; \
                    while (<STDIN>) { print \"ok\\n\" }";

#[test]
fn a_program_that_may_make_no_memory_executable_is_saved() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run("perl", &["-e", MDWE]);
    run.expect("ready");
    let saved = save(&bench, &run, "x.ckpt");
    assert_eq!(saved.code(), Some(0), "{saved:?}");
    run.say("");
    run.expect("ok");
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.say("");
    again.expect("ok");
    drop(again);
    run.say("");
    run.expect("ok");
}

#[test]
fn a_program_that_dispatches_its_system_calls_is_refused() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = bench.run(bench.subject("dispatch", Build::Pie), &[]);
        if run.line() == "unknown" {
            return;
        }
        for _ in 0..3 {
            let saved = save(&bench, &run, "x.ckpt");
            assert_eq!(saved.code(), Some(125), "{saved:?}");
            assert!(saved.stderr.contains("dispatches its system calls"), "{saved:?}");
            run.check();
        }
        run.go();
    }
}

#[test]
fn the_signal_does_not_kill_a_program_that_dispatches_its_system_calls() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.launch(&["-c"], bench.subject("dispatch", Build::Pie), &[]);
    if run.line() == "unknown" {
        return;
    }
    for _ in 0..3 {
        run.signal_until(SIGTSTP, "a refusal", |run| run.stderr().contains("dispatches its"));
        run.check();
    }
    run.go();
}

/// Marks a program as one that gets rights when it is executed, or that nobody may read.
#[track_caller]
fn is_refused_at_the_start(bench: &Bench, mark: impl Fn(&Path), reason: &str) {
    let program = bench.subject("observer", Build::Pie);
    mark(&program);
    let mut run = bench.launch(&[], &program, &[]);
    until("the end", || (!run.lives()).then_some(()));
    let ended = run.end();
    assert_eq!(ended.code(), Some(126), "{ended:?}");
    assert!(ended.stderr.contains(reason), "{ended:?}");
}

#[test]
fn a_program_that_cannot_have_its_rights_under_ckpt_is_refused() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let bench = Bench::new(Who::Nobody);
    if !bench.drops_privileges() {
        return;
    }
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmod");
    };
    let owned = |path: &Path, mode_bits| {
        chown(path, Some(0), Some(12)).expect("chown");
        mode(path, mode_bits);
    };
    is_refused_at_the_start(&bench, |path| owned(path, 0o2755), "set-group-ID");
    is_refused_at_the_start(&bench, |path| owned(path, 0o4755), "set-user-ID");
    is_refused_at_the_start(&bench, |path| owned(path, 0o711), "read");
    let capable = |path: &Path| {
        owned(path, 0o755);
        let set = std::process::Command::new("setcap").arg("cap_net_raw+ep").arg(path).status();
        assert!(set.expect("setcap").success());
    };
    is_refused_at_the_start(&bench, capable, "capabilities");
}

/// Compiles a program with ThreadSanitizer; None where the compiler has none.
fn sanitized(bench: &Bench) -> Option<std::path::PathBuf> {
    let text = "#include <pthread.h>\n#include <stdio.h>\nstatic void *f(void *p) { return p; }\n\
                int main(void) { pthread_t t; char b[9]; pthread_create(&t, 0, f, 0); pthread_join(t, 0);\n\
                setbuf(stdout, 0); puts(\"ready\"); while (fgets(b, 9, stdin)) puts(\"ok\"); return 0; }\n";
    let (source, program) = (bench.file("sanitized.c", text), bench.path("sanitized"));
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-fsanitize=thread", "-pthread", "-o"]).arg(&program).arg(source);
    let made = compiler.output().is_ok_and(|output| output.status.success());
    made.then_some(program)
}

#[test]
fn a_program_with_a_sanitizer_starts_and_is_saved() {
    let bench = Bench::new(Who::Nobody);
    let Some(program) = sanitized(&bench) else { return };
    let mut run = bench.launch(&["-n", "x.ckpt"], &program, &[]);
    run.expect("ready");
    run.say("");
    run.expect("ok");
    run.signal(SIGTSTP);
    run.ends_well();
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.say("");
    again.expect("ok");
}

/// A signal that a program ignores is nothing to it, and so it is while its threads are let go one after the other.
#[test]
fn an_ignored_signal_ends_no_call_beside_a_checkpoint() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = bench.run(bench.subject("prone", Build::Pie), &["120", "15"]);
        run.expect("ready");
        let (pid, is_over) = (Pid::from_raw(run.pid() as i32), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) && kill(pid, SIGURG).is_ok() {
                    std::thread::sleep(std::time::Duration::from_micros(300));
                }
            });
            (0..20).for_each(|_| assert_eq!(save(&bench, &run, "x.ckpt").code(), Some(0)));
            is_over.store(true, Ordering::Relaxed);
        });
        run.go();
    }
}
