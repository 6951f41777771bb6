// SPDX-License-Identifier: LGPL-2.1-only
//! Periodic checkpoints that bring the one before the last up to date: every byte after each restart is one of that moment,
//! whatever changes memory, whoever is killed, and nobody else's file is ever changed. `CKPT_SOAK_SECONDS=3600 cargo nextest
//! run --test incremental` goes on for longer.

mod desk;
mod harness;

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::{SIGCONT, SIGKILL};

use desk::{Desk, Libc, With};
use harness::periods::{no_monitor, renewed};
use harness::{Bench, Build, Run, Who, until};

/// Period, name; and all memory is tracked.
const TRACKED: [&str; 5] = ["-z", "60", "-n", "x.ckpt", "--incremental=2"];
/// The same without tracking, as it is when nothing is said.
const COMPARED: [&str; 4] = ["-z", "60", "-n", "x.ckpt"];

fn soak(share: u64) -> Instant {
    let seconds = std::env::var("CKPT_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Instant::now() + Duration::from_secs(seconds.unwrap_or(16u64)) / share as u32
}

fn is_up_to_date(bench: &Bench) -> bool {
    let said = bench.must(&["info", "--json", &bench.name("x.ckpt")]).stdout.concat();
    said.contains("\"brought_up_to_date\": true") || said.contains("\"brought_up_to_date\":true")
}

/// Waits for so many checkpoints.
fn checkpoints(bench: &Bench, count: usize) {
    let mut last = None;
    for _ in 0..count {
        last = Some(renewed(&bench.path("x.ckpt"), last));
    }
}

fn hidden(bench: &Bench) -> Vec<String> {
    bench.names(".ckpt-")
}

/// Ends a program, and goes on with its last checkpoint.
fn reborn(bench: &Bench, mut run: Run) -> Run {
    run.check();
    let pid = run.pid();
    run.signal(SIGKILL);
    run.end();
    no_monitor(pid);
    assert_eq!(hidden(bench), [""; 0], "left behind");
    bench.must(&["verify", &bench.name("x.ckpt")]);
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.check();
    again
}

fn goes_on_right(who: Who, options: &[&str], args: &[&str], share: u64) {
    let bench = Bench::new(who);
    let until = soak(share);
    let mut run = bench.launch(options, bench.subject("dirtied", Build::Pie), args);
    run.expect("ready");
    let (mut renewals, mut round) = (0, 0);
    // On a busy machine the first that is brought up to date comes late.
    while round < 2 || renewals == 0 && round < 8 || Instant::now() < until {
        // A different number of checkpoints each time, from the first whole ones on.
        checkpoints(&bench, 3 + 3 * (round % 4));
        renewals += usize::from(is_up_to_date(&bench));
        run = reborn(&bench, run);
        round += 1;
    }
    assert!(renewals > 0, "none of {round} was brought up to date");
    run.go();
}

#[test]
fn tracked_memory_is_that_of_the_moment() {
    goes_on_right(Who::Me, &TRACKED, &["1"], 4);
}

#[test]
fn tracked_memory_is_that_of_the_moment_for_users() {
    goes_on_right(Who::Nobody, &TRACKED, &["2"], 4);
}

/// What the program has told the kernel of its memory is confirmed when it has gone on.
#[test]
fn tracked_memory_that_is_not_locked_is_that_of_the_moment() {
    goes_on_right(Who::Nobody, &TRACKED, &["5", "loose"], 4);
}

#[test]
fn compared_memory_is_that_of_the_moment() {
    goes_on_right(Who::Me, &COMPARED, &["3", "pieces"], 4);
}

#[test]
fn compared_memory_is_that_of_the_moment_for_users() {
    goes_on_right(Who::Nobody, &COMPARED, &["4", "pieces"], 4);
}

/// A dumper that is killed with what was written to known to it alone, or with a half-changed file, leaves a whole
/// checkpoint; and what comes after it lacks nothing.
#[test]
fn a_killed_dumper_loses_nothing() {
    let steps = [
        "tracked:1",
        "rearmed:3",
        "held:6",
        "renewing:900",
        "written:5",
        "exchanged:3",
        "sealed:5",
    ];
    for step in steps {
        let bench = Bench::new(Who::Nobody);
        let mut command = bench.command(bench.ckpt());
        command
            .args(TRACKED)
            .arg(bench.subject("dirtied", Build::Pie))
            .arg("7")
            .env("CKPT_FAULT", step);
        let mut run = Run::start(command);
        run.expect("ready");
        checkpoints(&bench, 6);
        bench.must(&["verify", &bench.name("x.ckpt")]);
        run.check();
        let pid = run.pid();
        run.signal(SIGKILL);
        run.end();
        no_monitor(pid);
        assert_eq!(bench.names("x.ckpt"), ["x.ckpt"], "{step}");
        assert!(hidden(&bench).len() <= 1, "{step}");
        // One that is armed no more.
        let mut command = bench.command(bench.path("x.ckpt"));
        command.env_remove("CKPT_FAULT");
        let mut again = Run::start(command);
        again.check();
        again.signal(SIGKILL);
        again.end();
    }
}

/// A program that asks the kernel itself what it writes to, as its periodic checkpoints do: it is refused, and the answer is its.
#[test]
fn what_a_program_watches_is_its_own() {
    if !tracks() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let mut run = bench.launch(&TRACKED, bench.subject("watcher", Build::Pie), &[]);
    run.expect("ready");
    checkpoints(&bench, 4);
    run.check();
    run.complaint("by itself (userfaultfd(2))");
    run.check();
    run.go();
}

/// What was one mapping is one again, whatever a half of it was when it came to be tracked.
#[test]
fn halves_of_a_mapping_move_as_one() {
    if !tracks() {
        return;
    }
    let cases = [(&TRACKED[..], "empty"), (&COMPARED[..], "empty"), (&TRACKED[..], "advised")];
    for (options, kind) in cases {
        let bench = Bench::new(Who::Nobody);
        let mut run = bench.launch(options, bench.subject("halves", Build::Pie), &[kind]);
        run.expect("ready");
        until_tracked(&run);
        for _ in 0..3 {
            checkpoints(&bench, 3);
            run.check();
        }
        run = reborn(&bench, run);
        run.go();
    }
}

/// Where little has to be read there is no picture: the program stands still until that is read, and goes on.
#[test]
fn little_is_held_in_place_of_a_picture() {
    if !tracks() {
        return;
    }
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut command = bench.command(bench.ckpt());
        command.args(TRACKED).arg(bench.subject("memory", Build::Pie)).env("CKPT_FAULT", "+held:7");
        let mut run = Run::start(command);
        run.expect("ready");
        let monitor = harness::periods::one_monitor(run.pid());
        let stopped = until("a dumper that holds memory", || {
            let list = fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children"));
            let list = list.unwrap_or_default();
            list.split_whitespace().find_map(|pid| {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                status.contains("State:\tT (stopped)").then(|| pid.parse().ok()).flatten()
            })
        });
        // Nobody has a copy of the program's memory.
        let pictures = fs::read_dir("/proc").expect("/proc").flatten().filter(|entry| {
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let own = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            comm == "ckpt-snapshot\n" && own.contains(&bench.name("memory"))
        });
        assert_eq!(pictures.count(), 0);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(stopped), SIGCONT).expect("the dumper");
        checkpoints(&bench, 3);
        assert!(is_up_to_date(&bench));
        run = reborn(&bench, run);
        run.go();
    }
}

/// A monitor that is killed leaves the program as it was, and a new one begins anew.
#[test]
fn a_killed_monitor_loses_nothing() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.launch(&TRACKED, bench.subject("dirtied", Build::Pie), &["8"]);
    run.expect("ready");
    for _ in 0..3 {
        checkpoints(&bench, 6);
        let monitor = harness::periods::one_monitor(run.pid());
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor), SIGKILL).expect("the monitor");
        no_monitor(run.pid());
        run.check();
        bench.must(&["-p", &run.pid_text(), "-z", "50"]);
    }
    checkpoints(&bench, 6);
    run = reborn(&bench, run);
    run.go();
}

/// What had the name of a checkpoint and has another by now, or is read or executed, stays as it was.
#[test]
fn files_of_others_stay_as_they_were() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.launch(&TRACKED, bench.subject("dirtied", Build::Pie), &["9"]);
    run.expect("ready");
    checkpoints(&bench, 5);
    let image = bench.path("x.ckpt");
    let at = |name: &str| bench.path(name);
    for _ in 0..3 {
        let (link, moved, copy) = (at("link"), at("moved"), at("copy"));
        fs::hard_link(&image, &link).expect("a link");
        let mut reader = File::open(&image).expect("the image");
        let mut begin = vec![0; 3 << 20];
        reader.read_exact(&mut begin).expect("its begin");
        checkpoints(&bench, 4);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).expect("its rest");
        begin.extend(rest);
        fs::write(&copy, &begin).expect("a copy");
        checkpoints(&bench, 3);
        fs::rename(&image, &moved).expect("another name");
        checkpoints(&bench, 5);
        for path in [&link, &copy, &moved] {
            bench.must(&["verify", &path.display().to_string()]);
        }
        until("one that is brought up to date", || {
            (hidden(&bench).len() == 1 && is_up_to_date(&bench)).then_some(())
        });
        run = restarted(&bench, run, &link);
        [link, moved, copy].iter().for_each(|path| fs::remove_file(path).expect("the file"));
    }
    run.go();
}

/// Ends a program and goes on with an older checkpoint of it.
fn restarted(bench: &Bench, run: Run, image: &Path) -> Run {
    let pid = run.pid();
    run.signal(SIGKILL);
    run.end();
    no_monitor(pid);
    let mut again = bench.run(image, &[]);
    again.check();
    again
}

/// The kernel's word stays with the program: `ckpt save` finds nothing in its way, nor does its own restart.
#[test]
fn others_save_what_is_tracked() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.launch(&TRACKED, bench.subject("dirtied", Build::Pie), &["10"]);
    run.expect("ready");
    until_tracked(&run);
    checkpoints(&bench, 4);
    let other = bench.name("y.ckpt");
    // An obstacle is 2.
    let seen = bench.order(&["check", &run.pid_text()]);
    assert_eq!(seen.code(), Some(1), "{seen:?}");
    bench.must(&["save", &run.pid_text(), "-n", &other]);
    checkpoints(&bench, 3);
    run = reborn(&bench, run);
    run = restarted(&bench, run, Path::new(&other));
    run.go();
}

/// What one checkpoint was without (ckpt_exclude) is in the next again, though nobody has written to it since.
#[test]
fn what_was_left_out_is_there_again() {
    let desk = Desk::new(Who::Nobody);
    let bench = &desk.bench;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/left.c");
    let program = desk.compile(&source, "left", Libc::Glibc, With::Linked);
    let mut run = bench.launch(&COMPARED, program, &[]);
    run.expect("ready");
    until_tracked(&run);
    checkpoints(bench, 5);
    for word in ["exclude", "include"] {
        run.say(word);
        run.expect("ok");
        // One may have been under way.
        checkpoints(bench, 4);
    }
    run = reborn(bench, run);
    run.go();
}

fn until_tracked(run: &Run) {
    until("tracking", || {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", run.pid())).expect("smaps");
        (smaps.contains(" uw") || !tracks()).then_some(())
    });
}

/// Whether this kernel tracks (Linux 6.7).
fn tracks() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split(['.', '-']).map(|number| number.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (6, 7)
}
