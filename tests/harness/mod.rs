// SPDX-License-Identifier: LGPL-2.1-only
//! What the tests with real processes share: a directory of their own, the subjects, and programs
//! that are watched over their standard streams.
//!
//! A [`Bench`] is a temporary directory with a copy of `ckpt` in it and somebody who works there; a
//! [`Run`] is one process with its streams. Whoever waits, waits for an event, at most [`PATIENCE`].
//! Both clean up when they are dropped, and a bench fails the test if a process was left behind.
#![allow(dead_code, unused_imports, unused_macros, reason = "each test file uses its part")]

mod bench;
pub(crate) mod faults;
pub(crate) mod host;
pub(crate) mod periods;
mod programs;
mod run;
pub(crate) mod ssh;
mod subjects;
mod ways;

use std::time::{Duration, Instant};

pub(crate) use bench::{Bench, Who};
pub(crate) use programs::Program;
pub(crate) use programs::each_program;
pub(crate) use run::{Ended, Run};
pub(crate) use subjects::Build;
pub(crate) use ways::{Way, saved_often, survive};

/// How long an event may take before a test gives up. Only a failing test waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Numbers from 0 on: so many, or for CKPT_SOAK_SECONDS where that is set (`scripts/test --soak`).
pub(crate) fn rounds(usual: usize) -> impl Iterator<Item = usize> {
    let seconds = std::env::var("CKPT_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let (begin, time) = (Instant::now(), seconds.map(Duration::from_secs));
    (0..).take_while(move |round| time.map_or(*round < usual, |time| begin.elapsed() < time))
}

/// Waits until `ready` gives something; `what` names it in the failure.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what} ({} MiB free)", free());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How much room there is for the files of whoever is not root, in MiB: without any nobody else's checkpoints come.
fn free() -> u64 {
    let room = nix::sys::statvfs::statvfs(&std::env::temp_dir());
    room.map_or(0, |room| (room.blocks_available() * room.fragment_size()) >> 20)
}

/// The value of a line of /proc/PID/status, or nothing when the process or the line is gone.
pub(crate) fn status_line(pid: u32, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// Whether the process is stopped.
pub(crate) fn is_stopped(pid: u32) -> bool {
    status_line(pid, "State").is_some_and(|state| state.starts_with('T'))
}

/// The process that tells a restarter what comes to its group.
#[track_caller]
pub(crate) fn witness(restarter: u32) -> u32 {
    let children = format!("/proc/{restarter}/task/{restarter}/children");
    let is = |pid: &u32| status_line(*pid, "Name").is_some_and(|name| name == "ckpt-witness");
    // A list misses some when a child ends as it is read (proc_pid_children(5)).
    until("a witness", || {
        let children = std::fs::read_to_string(&children).expect("children");
        let mut children = children.split_whitespace().map(|pid| pid.parse().expect("an id"));
        children.find(is)
    })
}

/// Waits until it is.
#[track_caller]
pub(crate) fn await_stop(pid: u32) {
    until("a stop", || is_stopped(pid).then_some(()));
}

/// Whether the process catches the signal.
pub(crate) fn catches(pid: u32, signal: i32) -> bool {
    let mask = status_line(pid, "SigCgt").expect("the process lives");
    u64::from_str_radix(&mask, 16).expect("a hexadecimal mask") >> (signal - 1) & 1 == 1
}
