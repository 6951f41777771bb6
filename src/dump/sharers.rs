// SPDX-License-Identifier: LGPL-2.1-only
//! Other processes that live in the program's memory (clone(2) with CLONE_VM): what a checkpoint does to it, and
//! what a restart makes of it, it would do to both.

use crate::proc::{self, Process};
use crate::proc::{Pid, Tid};
use crate::ptrace::raw;
use std::time::{Duration, Instant};

/// How long a process of ours may still share the program's memory, the one that makes a snapshot: while the program
/// stands still, and while it runs. On a machine with too much to do it is long in ending.
const MOMENT: Duration = Duration::from_millis(100);
const WHILE: Duration = Duration::from_secs(2);

/// Those among its relatives, for a look while it stands still; its parent and its children as they were seen.
pub(super) fn near(process: &Process, parent: Pid, children: &[Pid]) -> Vec<Pid> {
    let pid = process.pid();
    let shares = |other: &Pid| raw::same_memory(pid, *other).unwrap_or(false);
    match children.iter().chain([&parent]).any(shares) {
        true => patiently(pid, MOMENT, || process.children().into_iter().chain([parent]).collect()),
        false => Vec::new(),
    }
}

/// Those among all processes, for a look before anything is touched: relatives may be gone that made them. The child
/// of a thread in vfork(2) is not meant: that is waited for, as the thread cannot be stopped before.
pub(super) fn anywhere(process: &Process) -> Vec<Pid> {
    patiently(process.pid(), WHILE, || {
        let waits = |tid: &Tid| process.state(*tid) == Some('D');
        let vforked = process.tasks().is_ok_and(|tasks| tasks.iter().any(waits));
        let spared = if vforked { process.children() } else { Vec::new() };
        let all = proc::tree::pids().unwrap_or_default().into_iter();
        all.filter(|other| !spared.contains(other)).collect()
    })
}

fn patiently(pid: Pid, patience: Duration, candidates: impl Fn() -> Vec<Pid>) -> Vec<Pid> {
    let deadline = Instant::now() + patience;
    loop {
        let all = candidates().into_iter().filter(|other| *other != pid && *other > Pid::NONE);
        let sharers: Vec<_> = all
            .filter(|other| raw::same_memory(pid, *other).unwrap_or(false))
            .filter(|other| has_memory(*other) && !is_ours(*other))
            .collect();
        if sharers.is_empty() || Instant::now() > deadline {
            return sharers;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Of two that have none of it, as zombies and a process whose main thread ends just now, kcmp(2) says that they share it.
fn has_memory(pid: Pid) -> bool {
    Process::open(pid).is_ok_and(|process| process.maps().is_ok_and(|vmas| !vmas.is_empty()))
}

/// The keeper of a dumper that the payload has started (`payload/src/spawn.rs`), and that dumper before it executes.
fn is_ours(pid: Pid) -> bool {
    proc::tree::is_named(pid, "ckpt-keeper")
}
