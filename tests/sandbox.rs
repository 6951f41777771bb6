// SPDX-License-Identifier: LGPL-2.1-only
//! Programs that have locked themselves in (seccomp(2)): saved by root and put back, refused where that cannot be.

mod harness;

use harness::faults::{armed, stands_at, steps};
use harness::{Bench, Build, Run, Way, Who, until};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL};
use nix::sys::signal::kill;

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn start(bench: &Bench, kind: &str) -> Run {
    let mut run = bench.run(bench.subject("sandbox", Build::Pie), &[kind]);
    run.expect("ready");
    run
}

/// Three generations, of which the first goes on for a while.
#[track_caller]
fn keeps(kind: &str, options: &[&str]) {
    let bench = Bench::new(Who::Me);
    let mut run = start(&bench, kind);
    let pid = run.pid_text();
    bench.must(&["save", &pid, "-n", &bench.name("0.ckpt")]);
    run.check();
    bench.three_generations(run, options);
}

#[test]
fn root_saves_filters_and_puts_them_back() {
    if is_root() {
        ["chain", "threads", "apart", "strict", "child", "sleeps", "waits"]
            .into_iter()
            .for_each(|kind| keeps(kind, &[]));
        keeps("chain", &["--ids", "keep"]);
    }
}

/// Threads that wait for each other in a restart do not keep each other from the processor.
#[test]
fn real_time_threads_are_locked_in_again() {
    if is_root() {
        keeps("fifo", &[]);
        keeps("unmeant", &[]);
    }
}

/// What filters say of the flags of seccomp(2) is heeded.
#[test]
fn a_filter_that_is_not_to_be_given_to_all_is_given_to_each() {
    if is_root() {
        keeps("untold", &[]);
    }
}

/// Root without CAP_SETPCAP has nothing effective behind the change to the program's user.
#[test]
fn who_may_not_change_the_bounding_set_restarts_a_service() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    Way::SaveStop.save(&bench, "x.ckpt", start(&bench, "dropped"));
    let image = bench.name("x.ckpt");
    let mut run = bench.run("setpriv", &["--bounding-set", "-setpcap", &image]);
    run.check();
    run.go();
}

/// Filters of who may install none any more.
#[test]
fn a_service_that_has_given_up_its_rights_keeps_its_filters() {
    if is_root() {
        keeps("dropped", &[]);
    }
}

/// Who has set no_new_privs may install filters, whoever restarts it.
#[test]
fn anybody_restarts_what_root_has_saved() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Who::Nobody);
    let run = start(&bench, "threads");
    let pid = run.pid_text();
    let ended = bench.order(&["save", &pid, "-n", &bench.name("x.ckpt")]);
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("save it as root"), "{ended:?}");
    let check = bench.order(&["check", &pid]);
    assert_eq!(check.code(), Some(2), "{check:?}");
    let name = bench.name("x.ckpt");
    let saved = std::process::Command::new(bench.ckpt())
        .args(["save", "--stop", &pid, "-n", &name])
        .output()
        .unwrap();
    assert!(saved.status.success(), "{saved:?}");
    run.ends_well();
    std::os::unix::fs::chown(&name, Some(65534), Some(65534)).unwrap();
    let mut again = bench.run(&name, &[]);
    again.check();
    again.go();
}

#[test]
fn filters_that_cannot_be_put_back_are_refused() {
    if !is_root() {
        return;
    }
    for (kind, sentence) in [
        ("notify", "leave calls to another process (SECCOMP_RET_USER_NOTIF)"),
        ("mute", "forbid rt_sigreturn(2)"),
    ] {
        let bench = Bench::new(Who::Me);
        let mut run = start(&bench, kind);
        let pid = run.pid_text();
        let name = format!("-n={}", bench.name("x.ckpt"));
        for args in [&["save", &pid, &name][..], &["save", &pid, &name, "--stop"]] {
            let ended = bench.order(args);
            assert_eq!(ended.code(), Some(125), "{ended:?}");
            let sentence = format!("process {pid} has seccomp filters that {sentence}");
            assert!(ended.stderr.contains(&sentence), "{ended:?}");
            run.check();
        }
        run.go();
    }
}

/// The executable that puts a failure into a sentence may not be executed any more.
#[test]
fn filters_that_the_kernel_refuses_are_named() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let run = start(&bench, "full");
    Way::SaveStop.save(&bench, "x.ckpt", run);
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.check();
    again.go();
    let image = bench.name("x.ckpt");
    let ended =
        bench.run(bench.subject("deny", Build::Pie), &["400", "-1", "0", "--", &image]).end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("refused one of the last steps with error 12 "), "{ended:?}");
}

/// The kernel's note of its own signal mask would be lost.
#[test]
fn a_thread_that_could_not_wait_on_is_not_touched() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let mut run = start(&bench, "forbidden");
    let pid = run.pid_text();
    let name = format!("-n={}", bench.name("x.ckpt"));
    for args in [&["save", &pid, &name][..], &["save", &pid, &name, "--stop"]] {
        let ended = bench.order(args);
        assert_eq!(ended.code(), Some(125), "{ended:?}");
        assert!(ended.stderr.contains("with the signal mask of its call"), "{ended:?}");
        run.check();
    }
    run.go();
}

/// Nobody would suspend its filter if this process, which it is too late to hide, were killed.
#[test]
fn who_locks_itself_in_as_its_checkpoint_begins_is_not_touched() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let mut run = start(&bench, "late");
    let args = ["save", &run.pid_text(), "-n", &bench.name("x.ckpt")];
    let save = stands_at(&bench, "begun", &args);
    run.say("lock");
    run.expect("locked");
    save.signal(SIGCONT);
    let ended = save.end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("while the checkpoint began"), "{ended:?}");
    run.check();
    bench.must(&args);
    run.check();
    run.go();
}

/// Strict mode would end it for each system call of ours, as soon as nobody suspends that.
#[test]
fn whoever_is_killed_as_a_thread_works_for_him_harms_nothing() {
    if !is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let mut tried = 0;
    for step in steps(&bench, "dumper") {
        let mut run = start(&bench, "strict");
        let args = ["save", &run.pid_text(), "-n", &bench.name("x.ckpt")];
        for _ in 0..2 {
            let step = format!("+{step}");
            let save = Run::start(armed(bench.command(bench.ckpt()), &step, &args));
            let own = save.pid_text();
            let state = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat"));
            let tracer = until("the step", || {
                let children = format!("/proc/{own}/task/{own}/children");
                let children = std::fs::read_to_string(children).unwrap_or_default();
                let all = children.split_whitespace().map(str::to_owned).chain([own.clone()]);
                let is = |pid: &str, what| state(pid).is_ok_and(|stat| stat.contains(what));
                match all.clone().find(|pid| is(pid, ") T ")) {
                    Some(stopped) => Some(Some(stopped)),
                    None => all.clone().all(|pid| is(&pid, ") Z ")).then_some(None),
                }
            });
            save.signal(SIGKILL);
            until("the kill", || state(&own).is_ok_and(|it| it.contains(") Z ")).then_some(()));
            if let Some(tracer) = tracer {
                let pid = nix::unistd::Pid::from_raw(tracer.parse().unwrap());
                let _ = kill(pid, SIGCONT);
                let ended =
                    |stat: std::io::Result<String>| stat.map_or(true, |it| it.contains(") Z "));
                until("its end", || ended(state(&tracer)).then_some(()));
                tried += 1;
            }
            save.end();
            run.check();
        }
        run.go();
    }
    assert!(tried > 20, "{tried}");
}
