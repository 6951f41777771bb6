// SPDX-License-Identifier: LGPL-2.1-only
//! Other processes that live in the program's memory (clone(2) with CLONE_VM): what a checkpoint does to it, and
//! what a restart makes of it, it would do to both.

use crate::proc::{self, Process};
use crate::ptrace::raw;
use std::time::{Duration, Instant};

/// How long a process of ours may still share the program's memory: the one that makes a snapshot.
const MOMENT: Duration = Duration::from_millis(100);

/// Those among its relatives, for a look while it stands still.
pub(super) fn near(process: &Process) -> Vec<i32> {
    let pid = process.pid();
    let parent = process.status(pid).map_or(0, |status| status.ppid);
    patiently(pid, || process.children().into_iter().chain([parent]).collect())
}

/// Those among all processes, for a look before anything is touched: relatives may be gone that made them. The child
/// of a thread in vfork(2) is not meant: that is waited for, as the thread cannot be stopped before.
pub(super) fn anywhere(pid: i32) -> Vec<i32> {
    let Ok(process) = Process::open(pid) else { return Vec::new() };
    patiently(pid, || {
        let waits = |tid: &i32| process.state(*tid) == Some('D');
        let vforked = process.tasks().is_ok_and(|tasks| tasks.iter().any(waits));
        let spared = if vforked { process.children() } else { Vec::new() };
        let all = proc::tree::pids().unwrap_or_default().into_iter();
        all.filter(|other| !spared.contains(other)).collect()
    })
}

fn patiently(pid: i32, candidates: impl Fn() -> Vec<i32>) -> Vec<i32> {
    let deadline = Instant::now() + MOMENT;
    loop {
        let all = candidates().into_iter().filter(|other| *other != pid && *other > 0);
        let sharers: Vec<_> = all
            .filter(|other| raw::same_memory(pid, *other).unwrap_or(false) && !is_ours(*other))
            .collect();
        if sharers.is_empty() || Instant::now() > deadline {
            return sharers;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The keeper of a dumper that the payload has started (`payload/src/spawn.rs`), and that dumper before it executes.
fn is_ours(pid: i32) -> bool {
    proc::comm(pid, pid).is_ok_and(|name| name == "ckpt-keeper")
}
