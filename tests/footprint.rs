// SPDX-License-Identifier: LGPL-2.1-only
//! The memory of ckpt itself: bounded, whatever the program has that is saved.

mod harness;
mod serving;

use harness::faults::armed;
use harness::{Bench, Build, Run, Who, is_stopped, status_line, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serving::Server;

/// What dumps, uploads and the server may have at most, in kilobytes.
const MOST: u64 = 32 << 10;

/// Programs with much of something.
const PROGRAMS: [&[&str]; 6] = [
    &["256", "1"],
    &["items", "mappings", "50000"],
    &["items", "descriptors", "10000"],
    &["items", "threads", "1000"],
    &["items", "scattered", "256"],
    &["items", "deleted", "256"],
];

/// The most that was resident of a process, in kilobytes.
fn peak(pid: u32) -> u64 {
    let text = status_line(pid, "VmHWM").expect("status");
    text.trim_end_matches(" kB").parse().expect("a number")
}

/// Sends a signal.
fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).expect("it is there");
}

/// Saves a program; the most memory that this took until a step, from which on `then` is right.
#[track_caller]
fn save(bench: &Bench, run: &Run, options: &[&str], (step, then): (&str, impl Fn())) -> u64 {
    let pid = run.pid_text();
    let words: Vec<_> = ["save", &pid].into_iter().chain(options.iter().copied()).collect();
    let dumper = Run::start(armed(bench.command(bench.ckpt()), step, &words));
    // The one that works may be a child of the one that was started.
    let stopped = until("a whole checkpoint", || {
        let children =
            std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", dumper.pid()));
        let children = children.unwrap_or_default();
        let all = children.split_whitespace().filter_map(|word| word.parse().ok());
        all.chain([dumper.pid()]).find(|pid| is_stopped(*pid))
    });
    let most = peak(stopped);
    then();
    send(stopped, Signal::SIGCONT);
    dumper.ends_well();
    most
}

#[test]
fn what_dumps_and_uploads_take_is_bounded() {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &serving::insecure());
    let (name, there) = (bench.name("x.ckpt"), server.name("there"));
    for words in PROGRAMS {
        let mut run = bench.run(bench.subject("weigh", Build::Pie), words);
        run.expect("ready");
        let options =
            [&["-n", &name][..], &["--insecure", "-n", &there], &["--compress", "-n", &name]];
        // The others differ in what is known of the program, not in how it goes into the image.
        let differs = words.len() == 2 || words.contains(&"mappings");
        for options in options.iter().take(if differs { 3 } else { 1 }) {
            let most = save(&bench, &run, options, ("+sealed", || {}));
            assert!(most <= MOST, "{words:?} {options:?}: {most} kB");
        }
        let most = peak(server.run.pid());
        assert!(most <= MOST, "the server, {words:?}: {most} kB");
        run.go();
    }
}

/// What no picture holds is read while the program stands still, which waits for no network: a server that says nothing.
#[test]
fn what_a_server_does_not_take_yet_is_not_in_memory() {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &serving::insecure());
    let (pid, there) = (server.run.pid(), server.name("there"));
    let mut run = bench.run(bench.subject("weigh", Build::Pie), &["items", "deleted", "64"]);
    run.expect("ready");
    send(pid, Signal::SIGSTOP);
    let goes_on = ("+shared", || send(pid, Signal::SIGCONT));
    let most = save(&bench, &run, &["--insecure", "-n", &there], goes_on);
    assert!(most <= MOST, "{most} kB");
    run.go();
    bench.must(&["verify", "--insecure", &there]);
}
