// SPDX-License-Identifier: LGPL-2.1-only
//! Stopping a program and letting it go: it does not notice, whatever it does meanwhile, and its end waits for nobody.

mod harness;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use harness::faults::armed;
use harness::{
    Bench, Build, Run, Way, Who, await_stop, rounds, saved_often, status_line, survive, until,
};
use nix::sys::signal::Signal;

/// A moment within `limit`, another one each time.
fn some_moment(limit: Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let part = u64::from(now.subsec_nanos()) * 7919 % limit.as_micros() as u64;
    std::thread::sleep(Duration::from_micros(part));
}

fn save(bench: &Bench, run: &Run, name: &str) -> Run {
    bench.run(bench.ckpt(), &["save", &run.pid_text(), "-n", &bench.name(name)])
}

#[track_caller]
fn killed_at_any_moment(who: Who) {
    let bench = Bench::new(who);
    let crowd = bench.subject("crowd", Build::Pie);
    for _ in rounds(40) {
        let mut run = bench.run(&crowd, &["8"]);
        run.expect("ready");
        let dumper = save(&bench, &run, "x.ckpt");
        some_moment(Duration::from_millis(25));
        run.signal(Signal::SIGKILL);
        assert_eq!(run.end().signal(), Some(9));
        dumper.end();
    }
}

/// A dead thread that nobody waits for holds up the end of the process.
#[test]
fn a_program_killed_in_the_middle_of_a_checkpoint_ends() {
    killed_at_any_moment(Who::Me);
}

#[test]
fn a_program_killed_in_the_middle_of_a_checkpoint_ends_unprivileged() {
    killed_at_any_moment(Who::Nobody);
}

/// The same holds up the execve of a thread, and the exit of a program.
#[track_caller]
fn executes_to_its_end(who: Who, build: Build) {
    let bench = Bench::new(who);
    let mut run = bench.run(bench.subject("execs", build), &["60"]);
    while run.lives() {
        save(&bench, &run, "x.ckpt").end();
    }
    run.ends_well();
}

#[test]
fn a_program_that_executes_itself_goes_on() {
    executes_to_its_end(Who::Me, Build::Pie);
}

#[test]
fn a_program_that_executes_itself_goes_on_unprivileged() {
    executes_to_its_end(Who::Nobody, Build::Musl);
}

/// Each thread lives for less time than the list of threads takes to read.
#[track_caller]
fn no_thread_is_missed(who: Who, build: Build, chains: &str, saves: usize) {
    let bench = Bench::new(who);
    let mut run = bench.run(bench.subject("chain", build), &[chains]);
    run.expect("ready");
    saved_often(&bench, run, saves, saves);
}

#[test]
fn a_chain_of_threads_is_whole() {
    no_thread_is_missed(Who::Me, Build::Pie, "1", 40);
}

#[test]
fn many_chains_of_threads_are_whole() {
    no_thread_is_missed(Who::Nobody, Build::Pie, "30", 5);
}

#[test]
fn a_chain_of_threads_is_whole_after_the_signal() {
    let bench = Bench::new(Who::Nobody);
    let chain = bench.subject("chain", Build::Pie);
    for _ in 0..15 {
        let mut run = Way::Launch.start(&bench, "x.ckpt", &chain, &["1"]);
        run.expect("ready");
        Way::Launch.save(&bench, "x.ckpt", run);
        let mut again = bench.run(bench.path("x.ckpt"), &[]);
        again.check();
        again.go();
    }
}

/// While one thread cannot be stopped, all others go on, and the checkpoint is taken when it can.
#[test]
fn others_go_on_while_one_thread_cannot_be_stopped() {
    let bench = Bench::new(Who::Nobody);
    let gate = bench.path("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("a FIFO");
    bench.give(&gate);
    let mut run = bench.run(bench.subject("vfork", Build::Pie), &["gate"]);
    run.expect("ready");
    until("the thread in vfork", || (status_line(run.pid(), "Threads")? == "3").then_some(()));
    let mut dumper = save(&bench, &run, "x.ckpt");
    until("ckpt to look", || {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", dumper.pid())).ok()?;
        (name.trim() == "ckpt").then_some(())
    });
    let mut checks = 0;
    while checks < 50 && dumper.lives() {
        run.check();
        checks += 1;
    }
    // Held as long as the dumper waits, they answer once, however slow the machine is.
    assert!(checks > 5, "{checks}: {}", dumper.fate());
    std::fs::write(&gate, "x").expect("the child reads");
    // On a slow machine its 10 seconds may be over.
    if dumper.end().code() != Some(0) {
        bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    }
    run.check();
    run.go();
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.check();
    drop(again);
}

/// A thread that runs children all the time is in vfork(2) whenever it is looked at, each time in another one.
#[track_caller]
fn between_two_children(who: Who, build: Build, way: Way) {
    let bench = Bench::new(who);
    let mut run = way.start(&bench, "x.ckpt", &bench.subject("runs", build), &["60"]);
    run.expect("ready");
    run.check();
    way.save(&bench, "x.ckpt", run);
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.check();
    bench.must(&["save", &again.pid_text(), "-n", &bench.name("y.ckpt")]);
    again.check();
    again.go();
}

#[test]
fn a_program_that_runs_others_all_the_time_is_saved() {
    between_two_children(Who::Me, Build::Pie, Way::Save);
    between_two_children(Who::Nobody, Build::Musl, Way::SaveStop);
    between_two_children(Who::Nobody, Build::Static, Way::Launch);
}

/// One gets the program and the other waits or says so; nobody holds a part of it.
#[test]
fn two_at_once_do_not_take_each_other_for_debuggers() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("crowd", Build::Pie), &["40"]);
    run.expect("ready");
    std::thread::scope(|scope| {
        for name in ["a.ckpt", "b.ckpt"] {
            let (bench, run) = (&bench, &run);
            let pid = run.pid_text();
            scope.spawn(move || {
                for _ in 0..25 {
                    let ended = bench.order(&["save", &pid, "-n", &bench.name(name)]);
                    let busy = ["is already being taken", "another ckpt"];
                    let waits = busy.iter().any(|words| ended.stderr.contains(words));
                    assert!(ended.code() == Some(0) || waits, "{ended:?}");
                }
            });
        }
    });
    run.check();
    run.go();
}

/// The mask that a call puts in place of the thread's own while it waits.
#[track_caller]
fn stays_suspended(who: Who, build: Build, way: Way) {
    for call in ["sigsuspend", "ppoll", "pselect", "epoll_pwait"] {
        survive(who, way, "suspended", build, &[call]);
    }
}

#[test]
fn the_mask_of_a_wait_stays() {
    stays_suspended(Who::Me, Build::Pie, Way::Save);
    stays_suspended(Who::Nobody, Build::Musl, Way::Launch);
}

/// A program that is stopped stays so: when it is saved and goes on, and after a restart.
#[track_caller]
fn stays_stopped(who: Who, build: Build, threads: &str) {
    let bench = Bench::new(who);
    let mut run = bench.run(bench.subject("crowd", build), &[threads]);
    run.expect("ready");
    run.signal(Signal::SIGSTOP);
    await_stop(run.pid());
    bench.must(&["save", &run.pid_text(), "-n", &bench.name("a.ckpt")]);
    await_stop(run.pid());
    bench.must(&["save", &run.pid_text(), "--stop", "-n", &bench.name("b.ckpt")]);
    run.ends_well();
    for name in ["a.ckpt", "b.ckpt"] {
        let mut again = bench.run(bench.path(name), &[]);
        again.say("check");
        await_stop(again.pid());
        bench.must(&["save", &again.pid_text(), "-n", &bench.name("c.ckpt")]);
        await_stop(again.pid());
        assert_eq!(again.line_now(), None);
        again.signal(Signal::SIGCONT);
        again.expect("ok");
        bench.must(&["save", &again.pid_text(), "--stop", "-n", &bench.name("c.ckpt")]);
        again.ends_well();
        let mut third = bench.run(bench.path("c.ckpt"), &[]);
        third.check();
        third.go();
    }
}

#[test]
fn a_stopped_program_is_stopped_again() {
    stays_stopped(Who::Me, Build::Pie, "1");
    stays_stopped(Who::Nobody, Build::Musl, "20");
}

/// The snapshot of a dumper: its one descriptor shows that.
fn snapshot_of(dumper: u32) -> Option<u32> {
    std::fs::read_dir("/proc").expect("/proc").flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        let shown = std::fs::read_to_string(entry.path().join("fdinfo/0")).ok()?;
        let is_its = shown.lines().any(|line| line == format!("Pid:\t{dumper}"));
        (name == "ckpt-snapshot\n" && is_its).then_some(pid)
    })
}

/// Whoever is killed while areas are written has no memory any more, which reads as memory without pages: `ckpt save` in
/// that moment, with and without the kernel's own search for pages (deny 16 1 PAGEMAP_SCAN).
#[track_caller]
fn loses_its_memory(who: Who, more: Option<&str>, hides: bool) {
    let bench = Bench::new(who);
    let deny = bench.subject("deny", Build::Pie);
    for area in [2, 4, 8] {
        let mut run = bench.run(bench.subject("memory", Build::Pie), &[]);
        run.expect("ready");
        let (pid, x) = (run.pid_text(), bench.name("x.ckpt"));
        bench.must(&["save", &pid, "-n", &x]);
        let ckpt = bench.ckpt();
        let scan: &[&str] = if hides { &["16", "1", "0xc0606610"] } else { &[] };
        let mut command = bench.command(&deny);
        command.args(scan).arg("--").arg(&ckpt);
        let args: Vec<_> = ["save", &pid, "-n", &x].into_iter().chain(more).collect();
        let dumper = Run::start(armed(command, &format!("+area:{area}"), &args));
        await_stop(dumper.pid());
        let victim = match more {
            Some(_) => run.pid(),
            // It is the process itself as long as that stands still.
            None if status_line(run.pid(), "TracerPid").as_deref() != Some("0") => run.pid(),
            None => until("the snapshot", || snapshot_of(dumper.pid())),
        };
        let kill = nix::sys::signal::kill;
        kill(nix::unistd::Pid::from_raw(victim as i32), Signal::SIGKILL).expect("a kill");
        until("the end of its memory", || status_line(victim, "VmSize").is_none().then_some(()));
        dumper.signal(Signal::SIGCONT);
        let ended = dumper.end();
        assert!(ended.code().is_some_and(|code| code != 0), "area {area}: {ended:?}");
        bench.must(&["verify", &x]);
        let mut again = bench.run(bench.path("x.ckpt"), &["-z", "0"]);
        again.check();
        if victim != run.pid() {
            run.check();
        }
    }
}

#[test]
fn what_is_killed_while_it_is_written_is_no_checkpoint() {
    for hides in [false, true] {
        loses_its_memory(Who::Nobody, None, hides);
        loses_its_memory(Who::Me, Some("--stop"), hides);
    }
}
