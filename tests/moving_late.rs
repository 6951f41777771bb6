// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt move`: what its two ends believe of each other when one of them was stopped, or the program does something at once.

mod harness;

use std::fs;
use std::time::{Duration, Instant};

use harness::host::{Host, resume};
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
