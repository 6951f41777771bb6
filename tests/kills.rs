// SPDX-License-Identifier: LGPL-2.1-only
//! kill -9 of everything of ours, at every step that CKPT_FAULT names: the program goes on unharmed, the next
//! checkpoint and its restart are right, what was there before is still whole, and nothing is left behind.

mod desk;
mod harness;
mod serving;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use desk::{Desk, Libc, With};
use harness::faults::{armed, is_killed, steps};
use harness::{Bench, Build, Run, Who, catches, until};
use nix::sys::signal::Signal::{SIGKILL, SIGTSTP, SIGUSR1};
use serving::{Server, insecure};

/// A checkpoint is whole, and its restart is right.
#[track_caller]
fn is_right(bench: &Bench, name: &str) {
    bench.must(&["verify", &bench.name(name)]);
    let mut again = bench.run(bench.path(name), &["-z", "0"]);
    again.check();
    again.go();
}

/// The files that checkpoints have left under names for a moment.
fn litter(bench: &Bench) -> Vec<String> {
    bench.names(".ckpt-")
}

/// After a kill: nobody else is there, and a checkpoint works at once, which also sweeps.
#[track_caller]
fn is_saved(bench: &Bench, run: &mut Run, step: &str) {
    println!("killed at {step}");
    assert!(run.lives(), "killed at {step}: {}", run.fate());
    run.check();
    bench.alone(&[run.pid()]);
    bench.must(&["save", &run.pid_text(), "-n", &bench.name("after.ckpt")]);
    run.check();
    assert_eq!(litter(bench), [""; 0], "killed at {step}");
}

/// And its restart is right.
#[track_caller]
fn goes_on(bench: &Bench, run: &mut Run, step: &str) {
    is_saved(bench, run, step);
    is_right(bench, "after.ckpt");
}

/// `ckpt save` with and without a payload in the program, and with `--stop`; the steps that were met.
#[track_caller]
fn savers(who: Who, subject: &str, build: Build) -> Vec<String> {
    let bench = Bench::new(who);
    let program = bench.subject(subject, build);
    let (x, mut met) = (bench.name("x.ckpt"), Vec::new());
    for (fresh, more) in [(true, None), (false, None), (false, Some("--stop"))] {
        let mut run = bench.run(&program, &[]);
        run.expect("ready");
        bench.must(&["save", &run.pid_text(), "-n", &x]);
        for step in steps(&bench, "dumper") {
            if fresh || !run.lives() {
                run = bench.run(&program, &[]);
                run.expect("ready");
            }
            let pid = run.pid_text();
            let line: Vec<_> = ["save", &pid, "-n", &x].into_iter().chain(more).collect();
            if is_killed(&bench, &step, &line) {
                bench.must(&["verify", &x]);
                let may_end = more.is_some() && ["ended", "ending"].contains(&&*step);
                if may_end {
                    until("the program's end", || (!run.lives()).then_some(()));
                    is_right(&bench, "x.ckpt");
                } else {
                    goes_on(&bench, &mut run, &step);
                }
                met.push(step);
            }
        }
        drop(run);
    }
    met
}

/// A program with callbacks, which the dumper sends its main thread to.
#[track_caller]
fn visitors(who: Who) -> Vec<String> {
    let desk = Desk::new(who);
    let mut run = desk.start(Libc::Glibc, With::Linked, "outside");
    run.expect("ready");
    let (bench, pid, mut met) = (&desk.bench, run.pid_text(), Vec::new());
    for step in steps(bench, "dumper") {
        if is_killed(bench, &step, &["save", &pid, "-n", &bench.name("x.ckpt")]) {
            println!("killed at {step}");
            run.say("");
            run.line();
            bench.must(&["save", &pid, "-n", &bench.name("after.ckpt")]);
            run.say("");
            let mut again = desk.resume("after.ckpt");
            again.say("");
            let (now, then) = (run.line(), again.line());
            assert!(now.ends_with(" 0") && then.ends_with(" 1"), "{step}: {now}, {then}");
            met.push(step);
        }
    }
    met
}

/// No step is forgotten: each is met in one of these ways, but for those which tests/ptys.rs, tests/tcp.rs,
/// tests/keep_tcp.rs, tests/incremental.rs and the tests of socket/minder.rs meet.
#[track_caller]
fn each_step_of_a_dumper(who: Who, build: Build) {
    let mut met = savers(who, "observer", build);
    met.extend(visitors(who));
    let bench = Bench::new(who);
    met.extend(["peeking", "roomy", "looking", "deafened"].map(str::to_owned));
    met.extend(["held", "tracked", "rearmed", "renewing", "exchanged"].map(str::to_owned));
    let missed: Vec<_> = steps(&bench, "dumper").into_iter().filter(|s| !met.contains(s)).collect();
    assert_eq!(missed, [""; 0]);
}

#[test]
fn a_dumper_is_killed_at_each_step() {
    each_step_of_a_dumper(Who::Me, Build::Pie);
}

#[test]
fn a_dumper_is_killed_at_each_step_unprivileged() {
    each_step_of_a_dumper(Who::Nobody, Build::Musl);
}

/// Threads that notice when a register or a wait of theirs is not as they left it. They are not restarted: when a sleep
/// that a dead dumper has interrupted is to end, only the kernel knows.
#[test]
fn a_dumper_of_threads_is_killed_at_each_step() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("lent", Build::Pie), &[]);
    run.expect("ready");
    let (pid, x) = (run.pid_text(), bench.name("x.ckpt"));
    for step in steps(&bench, "dumper") {
        if is_killed(&bench, &step, &["save", &pid, "-n", &x]) {
            is_saved(&bench, &mut run, &step);
        }
    }
    run.go();
}

/// Threads work for a dumper abreast; its death costs the payload room for one of them at most.
#[test]
fn many_that_die_while_threads_work_leave_room_for_the_next() {
    let bench = Bench::new(Who::Me);
    let mut run = bench.run(bench.subject("lent", Build::Pie), &[]);
    run.expect("ready");
    let (pid, x) = (run.pid_text(), bench.name("x.ckpt"));
    bench.must(&["save", &pid, "-n", &x]);
    for step in ["noted", "lending", "working", "entered", "returning", "returned"] {
        for count in [2, 3] {
            let step = format!("{step}:{count}");
            assert!(is_killed(&bench, &step, &["save", &pid, "-n", &x]), "{step}");
            run.check();
        }
    }
    is_saved(&bench, &mut run, "them");
    run.go();
}

/// What a dumper borrows of a program's text stays where it dies; there is room for some, also in a static program.
#[test]
fn some_that_die_while_they_inject_leave_room_for_the_next() {
    for build in [Build::Musl, Build::Pie] {
        let bench = Bench::new(Who::Nobody);
        let mut run = bench.run(bench.subject("observer", build), &[]);
        run.expect("ready");
        for step in ["borrowed", "working", "mapped", "borrowed", "entered"] {
            let line = ["save", &run.pid_text(), "-n", &bench.name("x.ckpt")];
            assert!(is_killed(&bench, step, &line), "{step}");
            run.check();
        }
        goes_on(&bench, &mut run, "them");
        run.go();
    }
}

/// A program that was started with CKPT_FAULT and put under ckpt without: only what it and its monitor start has it.
#[track_caller]
fn attached(bench: &Bench, step: &str, options: &[&str]) -> Run {
    let program = match bench.path("observer.pie") {
        program if program.exists() => program,
        _ => bench.subject("observer", Build::Pie),
    };
    let mut run = Run::start(armed(bench.command(program), step, &[""; 0]));
    run.expect("ready");
    bench.must(&[&["-p", &run.pid_text(), "-n", &bench.name("x.ckpt")], options].concat());
    run
}

#[track_caller]
fn handlers(who: Who) {
    let bench = Bench::new(who);
    for step in steps(&bench, "dumper") {
        let mut run = attached(&bench, &step, &["-c", "-a", "USR1"]);
        run.signal(SIGUSR1);
        // The handler has begun when this is answered.
        run.check();
        goes_on(&bench, &mut run, &step);
        if bench.path("x.ckpt").exists() {
            is_right(&bench, "x.ckpt");
        }
        run.go();
    }
}

#[test]
fn the_dumper_of_a_signal_is_killed_at_each_step() {
    handlers(Who::Me);
}

#[test]
fn the_dumper_of_a_signal_is_killed_at_each_step_unprivileged() {
    handlers(Who::Nobody);
}

/// A dumper's death leaves the monitor alone, which takes the next checkpoint.
#[track_caller]
fn dumpers_of_a_monitor(who: Who) {
    let bench = Bench::new(who);
    for step in steps(&bench, "dumper") {
        println!("killed at {step}");
        let _ = fs::remove_file(bench.path("x.ckpt"));
        let mut run = attached(&bench, &step, &["-z", "10"]);
        for what in ["a checkpoint", "the next"] {
            until(what, || bench.path("x.ckpt").exists().then_some(()));
            run.check();
            is_right(&bench, "x.ckpt");
            fs::remove_file(bench.path("x.ckpt")).expect("rm");
        }
        run.go();
        bench.alone(&[]);
    }
}

#[test]
fn a_monitor_survives_its_dumpers() {
    dumpers_of_a_monitor(Who::Nobody);
}

#[track_caller]
fn monitors(who: Who) {
    let bench = Bench::new(who);
    for step in steps(&bench, "monitor") {
        let mut run = attached(&bench, &step, &["-z", "10"]);
        // Its number stands in the program's memory alone: it is dead when nobody else is here.
        bench.alone(&[run.pid()]);
        goes_on(&bench, &mut run, &step);
        run.go();
    }
}

#[test]
fn a_monitor_is_killed_at_each_step() {
    monitors(Who::Me);
    monitors(Who::Nobody);
}

/// `ckpt -p`, of a program that has no payload, and of one that is under ckpt: neither the signal that it has nor the one
/// that it was to have ends it afterwards.
#[track_caller]
fn attachers(who: Who) -> Vec<String> {
    let bench = Bench::new(who);
    let program = bench.subject("observer", Build::Pie);
    let line = |run: &Run| ["-p".into(), run.pid_text(), "-n".into(), bench.name("x.ckpt")];
    let mut met = Vec::new();
    for fresh in [true, false] {
        for step in steps(&bench, "dumper").into_iter().chain(steps(&bench, "attacher")) {
            let mut run = bench.run(&program, &[]);
            run.expect("ready");
            let line = line(&run);
            let line: Vec<_> = line.iter().map(String::as_str).collect();
            if !fresh {
                bench.must(&[&line[..], &["-c"]].concat());
            }
            let options = ["-c", "-a", "USR1", "-z", "100000"];
            if !is_killed(&bench, &step, &[&line[..], &options].concat()) {
                run.go();
                continue;
            }
            // One of them is taken at any time, and then does no harm.
            let taken =
                [SIGTSTP, SIGUSR1].into_iter().filter(|signal| catches(run.pid(), *signal as i32));
            for signal in taken.collect::<Vec<_>>() {
                run.signal(signal);
                run.check();
                met.push(format!("{signal} after {step}"));
            }
            assert!(fresh || met.last().is_some_and(|what| what.contains("after")), "{step}");
            bench.alone(&[run.pid()]);
            bench.must(&[&line[..], &options, &["-z", "0"]].concat());
            let _ = fs::remove_file(bench.path("x.ckpt"));
            run.signal(SIGUSR1);
            until("the checkpoint", || bench.path("x.ckpt").exists().then_some(()));
            goes_on(&bench, &mut run, &step);
            is_right(&bench, "x.ckpt");
            run.go();
            met.push(step);
        }
    }
    met
}

#[test]
fn ckpt_p_is_killed_at_each_step() {
    let met = attachers(Who::Nobody);
    let bench = Bench::new(Who::Nobody);
    assert!(steps(&bench, "attacher").iter().all(|step| met.contains(step)), "{met:?}");
}

/// The program is as it would be without ckpt, or has the payload, or has not begun; never anything else.
#[track_caller]
fn launchers(who: Who) {
    let bench = Bench::new(who);
    let program = bench.subject("observer", Build::Pie);
    let mut met = 0;
    for step in steps(&bench, "launcher").into_iter().chain(steps(&bench, "dumper")) {
        println!("{step}");
        let command = armed(bench.command(bench.ckpt()), &step, &["-z", "100000", "--"]);
        let mut run = Run::start({
            let mut command = command;
            command.arg(&program);
            command
        });
        let word = until("a word or the end", || {
            run.line_now().or_else(|| (!run.lives()).then(String::new))
        });
        if word == "ready" {
            run.check();
            let after = bench.name("after.ckpt");
            bench.must(&["save", &run.pid_text(), "-n", &after]);
            is_right(&bench, "after.ckpt");
            run.go();
        } else {
            met += 1;
            let ended = run.end();
            assert!(ended.stdout.is_empty(), "{step}: {ended:?}");
            let said = ended.code() == Some(125) && ended.stderr.contains("ckpt: ");
            assert!(said || ended.signal() == Some(SIGKILL as i32), "{step}: {ended:?}");
        }
        bench.alone(&[]);
    }
    println!("{met} have not begun");
}

#[test]
fn an_injector_is_killed_at_each_step() {
    launchers(Who::Me);
    launchers(Who::Nobody);
}

/// A restart that is killed has changed nothing and leaves nobody: neither its monitor nor who fills its pipes.
#[track_caller]
fn stubs(who: Who, subject: &str) {
    let bench = Bench::new(who);
    let mut run = bench.run(bench.subject(subject, Build::Pie), &[]);
    run.expect("ready");
    let (pid, x) = (run.pid_text(), bench.name("x.ckpt"));
    bench.must(&["-p", &pid, "-z", "100000", "-n", &x]);
    // What it has not read yet travels.
    run.say("check");
    bench.must(&["save", &pid, "--stop", "-n", &x]);
    run.ends_well();
    let there = |bench: &Bench| -> Vec<_> {
        let names = bench.names("");
        names.into_iter().map(|name| (fs::read(bench.path(&name)).ok(), name)).collect()
    };
    let before = there(&bench);
    for step in steps(&bench, "stub") {
        println!("killed at {step}");
        let ended = Run::start(armed(bench.command(&x), &step, &[""; 0])).end();
        assert_eq!(ended.signal(), Some(SIGKILL as i32), "{step}: {ended:?}");
        bench.alone(&[]);
        assert!(there(&bench) == before, "{step}: the files are others: {:?}", bench.names(""));
    }
    is_right(&bench, "x.ckpt");
}

#[test]
fn a_restart_is_killed_at_each_step() {
    for subject in ["observer", "files"] {
        stubs(Who::Me, subject);
        stubs(Who::Nobody, subject);
    }
}

/// The checkpoint that is on the server stays whole, the client says that it was not saved, or it is stored; and the
/// next server has no litter.
#[track_caller]
fn servers(who: Who) -> Vec<String> {
    let bench = Bench::new(who);
    let mut run = bench.run(bench.subject("observer", Build::Pie), &[]);
    run.expect("ready");
    let pid = run.pid_text();
    let mut met = Vec::new();
    for step in steps(&bench, "server") {
        let first = Server::start(&bench, &insecure());
        for name in ["old/x", "gone/x"] {
            bench.must(&["save", &pid, "--insecure", "-n", &first.name(name)]);
        }
        first.stop();
        let mut server = armed_server(&bench, &step);
        let (old, new) = (server.name("old/x"), server.name("new/x"));
        let orders: [&[&str]; 4] = [
            &["save", &pid, "--insecure", "-n", &old],
            &["save", &pid, "--insecure", "-n", &new],
            &["get", "--insecure", &old, "got.ckpt"],
            &["rm", "--insecure", &server.name("gone/x")],
        ];
        for order in orders {
            let said = bench.order(order);
            if said.code() == Some(0) {
                continue;
            }
            assert_eq!(said.code(), Some(125), "{step}: {said:?}");
            assert!(said.stderr.contains("127.0.0.1"), "{step}: {said:?}");
            until("the server's end", || (!server.run.lives()).then_some(()));
            met.push(step.clone());
            break;
        }
        println!("{step}: {}", if server.run.lives() { "not met" } else { "killed" });
        if server.run.lives() {
            server.stop();
            continue;
        }
        run.check();
        let next = server.again(&bench);
        assert_eq!(next.partial(), 0, "{step}: litter");
        bench.must(&["verify", "--insecure", &old]);
        assert!(
            !bench.path("got.ckpt").exists()
                || bench.must(&["verify", &bench.name("got.ckpt")]).code() == Some(0)
        );
        bench.must(&["save", &pid, "--insecure", "-n", &new]);
        let mut again = bench.run(bench.ckpt(), &["restart", "--insecure", &new]);
        again.check();
        again.go();
        next.stop();
        bench.must(&["serve", "--check", "-d", "store"]);
        let _ = fs::remove_file(bench.path("got.ckpt"));
    }
    assert_eq!(litter(&bench), [""; 0]);
    met
}

fn armed_server(bench: &Bench, step: &str) -> Server {
    let store = bench.path("store");
    let line = ["serve", "-p", "0", "--listen", "127.0.0.1", "--insecure", "-d"];
    let mut command = armed(bench.command(bench.ckpt()), step, &line);
    command.arg(&store);
    Server::watch(Run::start(command), store)
}

#[test]
fn a_server_is_killed_at_each_step() {
    for who in [Who::Me, Who::Nobody] {
        let met = servers(who);
        let bench = Bench::new(who);
        let missed: Vec<_> =
            steps(&bench, "server").into_iter().filter(|s| !met.contains(s)).collect();
        assert_eq!(missed, [""; 0]);
    }
}

/// A program with more rights than its caller does not let the caller's environment kill it.
#[test]
fn a_privileged_ckpt_does_not_look() {
    let bench = Bench::new(Who::Nobody);
    if !bench.drops_privileges() || is_nosuid(&bench.dir) {
        return;
    }
    let version = || Run::start(armed(bench.command(bench.ckpt()), "?", &["--version"])).end();
    assert_eq!(version().code(), Some(125));
    fs::set_permissions(bench.ckpt(), PermissionsExt::from_mode(0o4755)).expect("chmod");
    assert_eq!(version().code(), Some(0));
}

fn is_nosuid(dir: &Path) -> bool {
    let flags = nix::sys::statvfs::statvfs(dir).expect("statvfs").flags();
    flags.contains(nix::sys::statvfs::FsFlags::ST_NOSUID)
}
