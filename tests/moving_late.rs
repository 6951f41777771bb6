// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt move`: what its two ends believe of each other when one of them was stopped, or the program does something at once;
//! and memory that is read while the program runs.

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use harness::host::{Host, changes_meanwhile, resume};
use harness::{Bench, Build, Who, await_stop, status_line, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A mover that was stopped hears an answer that holds no more: whoever gave it has ended, or may be about to.
#[test]
fn an_old_answer_ends_nothing() {
    for is_gone in [true, false] {
        let bench = Bench::new(Who::Nobody);
        let host = Host::new(&bench);
        let mut run = bench.run(bench.subject("memory", Build::Pie), &[]);
        run.expect("ready");
        let mut mover = host.stops(&bench, run.pid(), "promised");
        await_stop(mover.pid());
        let receiver = until("the other end", || host.receiver());
        if is_gone {
            kill(Pid::from_raw(receiver.cast_signed()), Signal::SIGKILL).expect("it is there");
            // Not before that of the shell that has made it.
            let mover = mover.pid();
            let shell = fs::read_to_string(format!("/proc/{mover}/task/{mover}/children"));
            let shell = shell.expect("its children").trim().parse().expect("one");
            let state = || status_line(shell, "State").unwrap_or_default();
            until("its end", || state().starts_with('Z').then_some(()));
        } else {
            kill(Pid::from_raw(receiver.cast_signed()), Signal::SIGSTOP).expect("it is there");
            let since = Instant::now();
            until("half a minute", || (since.elapsed() > Duration::from_secs(31)).then_some(()));
        }
        resume(mover.pid());
        until("the mover's end", || (!mover.lives()).then_some(()));
        run.check();
        if !is_gone {
            resume(receiver);
            until("the other end to go", || host.receiver().is_none().then_some(()));
        }
        let ended = mover.end();
        assert_eq!(ended.code(), Some(125), "{ended:?}");
        assert!(ended.stderr.contains("stays where it was"), "{ended:?}");
        run.go();
    }
}

/// What the program does first there tells nobody that it has not begun.
#[test]
fn whatever_it_does_first_it_has_begun() {
    let acts = [
        ("exec sh -c 'echo first; exit 7'", 7),
        ("echo first; exit 125", 125),
        ("echo first; kill -9 $$", 0),
    ];
    for (act, code) in acts {
        let bench = Bench::new(Who::Nobody);
        let host = Host::new(&bench);
        let script = format!("echo ready; until [ -e flag ]; do :; done; {act}");
        let mut run = bench.run("/bin/sh", &["-c", &script]);
        run.expect("ready");
        let mover = host.stops(&bench, run.pid(), "parted");
        await_stop(mover.pid());
        bench.file("flag", "");
        resume(mover.pid());
        run.expect("first");
        let ended = mover.end();
        assert!(ended.stderr.contains("has moved to there"), "{act}: {ended:?}");
        assert_eq!(
            (ended.code(), ended.signal()),
            if code == 0 { (None, Some(9)) } else { (Some(code), None) },
            "{ended:?}"
        );
        assert!(host.images().is_empty(), "{act}");
    }
}

/// Whether this kernel tells what was written to (Linux 6.7).
fn tracks() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split(['.', '-']).map(|number| number.parse().unwrap_or(0u32));
    [numbers.next(), numbers.next()] >= [Some(6), Some(7)]
}

/// It runs while it is read: what it maps and unmaps then, and writes to, is in the last image as it is at the end.
#[test]
fn who_is_read_runs() {
    if !tracks() {
        return;
    }
    for (step, seed) in [("rearmed", "4"), ("thawed:2", "5"), ("rearmed:2", "6")] {
        changes_meanwhile(step, seed);
    }
}

/// Behind that nobody else writes to what he has pinned: until then all that was written to before is read again.
fn await_late() {
    let since = Instant::now();
    until("a second", || (since.elapsed() > Duration::from_millis(1100)).then_some(()));
}

/// Numbers pages, and writes to those that it is told.
const WRITES: &str = "
import mmap, sys
pages = 20480
memory = mmap.mmap(-1, pages << 12, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
known = [0] * pages
def write(first, end, value):
    for page in range(first, end):
        memory[page << 12:(page << 12) + 8] = value.to_bytes(8, 'little')
        known[page] = value
def right():
    return all(memory[p << 12:(p << 12) + 8] == known[p].to_bytes(8, 'little') for p in range(pages))
write(0, pages, 1)
print('ready', flush=True)
for line in sys.stdin:
    write(*map(int, line.split()))
    print('right' if right() else 'wrong', flush=True)
";

/// A host whose ckpt stops when it has looked at what has come, each time.
fn that_stops(bench: &Bench) -> Host {
    let mut host = Host::new(bench);
    let rsh = bench.file("stops", "#!/bin/sh\nshift\nCKPT_FAULT=+proved exec sh -c \"$*\"\n");
    fs::set_permissions(&rsh, PermissionsExt::from_mode(0o755)).expect("chmod");
    host.rsh = bench.name("stops");
    host
}

/// What is mapped anew where it was, between the stop in which it came to be tracked and the look at it, is there as it is at
/// the end; and of all else it is still known what was written to.
#[test]
fn what_is_mapped_anew_costs_nothing_else() {
    if !tracks() {
        return;
    }
    let bench = Bench::new(Who::Nobody);
    let host = that_stops(&bench);
    let mut run = bench.run(bench.subject("anew", Build::Pie), &[]);
    run.expect("ready");
    let mover = host.stops(&bench, run.pid(), "thawed");
    await_stop(mover.pid());
    run.check();
    resume(mover.pid());
    let receiver = until("the other end", || host.receiver());
    await_stop(receiver);
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", run.pid())).expect("smaps");
    assert!(smaps.contains(" uw"), "nothing is tracked any more");
    run.check();
    resume(receiver);
    mover.complaint("has moved to there");
    run.check();
    run.go();
    mover.ends_well();
}

/// What is written to once, when what was written to had been asked and nothing of that was read, is not left behind.
#[test]
fn what_is_written_to_once_is_told_of() {
    if !tracks() {
        return;
    }
    let bench = Bench::new(Who::Nobody);
    let host = that_stops(&bench);
    let mut run = bench.run("/usr/bin/python3", &["-c", WRITES]);
    run.expect("ready");
    let mover = host.stops(&bench, run.pid(), "rearmed:3");
    let receiver = until("the other end", || host.receiver());
    await_stop(receiver);
    // So much that there is a third round.
    run.say("0 2560 2");
    run.expect("right");
    await_late();
    resume(receiver);
    await_stop(mover.pid());
    run.say("5000 6000 3");
    run.expect("right");
    resume(mover.pid());
    mover.complaint("has moved to there");
    run.say("0 1 4");
    run.expect("right");
    run.finish();
    mover.ends_well();
}
