// SPDX-License-Identifier: LGPL-2.1-only
//! The dead among the threads that we trace.
//!
//! A traced thread that has ended stays until its tracer has waited for it. Meanwhile the end of its process is reported
//! to nobody, and an execve(2) of another thread does not go on (kernel/exit.c, delay_group_leader; fs/exec.c,
//! de_thread). A tracer that waits for one thread, a disk or a network is no excuse for that, so a thread of its own
//! waits for the dead as soon as they are dead, whatever the dumper does.
//!
//! The end of a traced thread sends SIGCHLD to the process that traces it. Its stops need not (SA_NOCLDSTOP,
//! sigaction(2)), so the reaper sleeps through a dump that nobody disturbs. A signal that is pending swallows others of
//! its kind, so all threads of the process are looked at then. Rejected: waitid(2) for anybody's end, which takes the
//! stops of traced threads, too.

use super::raw;
use crate::error::{Because, Error, Result};
use crate::proc::{self, forebear};
use crate::proc::{Pid, Process, Tid};
use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The process that has a reaper: a child made by fork(2) has none.
static OWNER: Mutex<u32> = Mutex::new(0);

/// The processes whose threads are traced.
static TARGETS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// A leader without an exit signal whose last thread was traced by nobody ends without a SIGCHLD to us.
const LOOK: Duration = Duration::from_secs(1);
/// How long after a SIGCHLD all threads are looked at, if there is no other meanwhile, and in any case.
const SOON: Duration = Duration::from_millis(1);
const LATEST: Duration = Duration::from_millis(10);

/// Makes sure that there is a reaper.
///
/// # Errors
/// No thread can be made (RLIMIT_NPROC): then nothing may be seized.
pub(super) fn start() -> Result<()> {
    let mut owner = OWNER.lock().unwrap_or_else(PoisonError::into_inner);
    if *owner == std::process::id() {
        return Ok(());
    }
    let mut deaths = SigSet::empty();
    deaths.add(Signal::SIGCHLD);
    // Blocked before the thread begins, which inherits that: a signal that is blocked everywhere stays pending,
    // also one that is ignored by default.
    deaths.thread_block().because(|| "cannot block SIGCHLD")?;
    raw::deaths_alone().because(|| "cannot change what SIGCHLD tells")?;
    let begun = Arc::new(Barrier::new(2));
    let theirs = Arc::clone(&begun);
    std::thread::Builder::new()
        .name("ckpt-reaper".into())
        .stack_size(64 << 10)
        .spawn(move || {
            // None of ours is for it.
            let _ = SigSet::all().thread_block();
            theirs.wait();
            drop(theirs);
            attend()
        })
        .because(|| "cannot start a thread of our own")
        .map_err(Error::of_making)?;
    begun.wait();
    *owner = std::process::id();
    Ok(())
}

/// Names a process all of whose threads are about to be traced. Without that only the threads are buried of which
/// SIGCHLD tells, without allocating memory: a fork(2) of the caller then finds its heap whole.
pub(super) fn watch(pid: Pid) {
    let mut targets = TARGETS.lock().unwrap_or_else(PoisonError::into_inner);
    if !targets.contains(&pid) {
        targets.push(pid);
    }
}

fn attend() -> ! {
    let mut news: Option<Instant> = None;
    loop {
        // Nobody tells us of what a forebear traces.
        let rest = match (news, forebear::is_engaged()) {
            (Some(_), _) => SOON,
            (None, true) => LATEST,
            (None, false) => LOOK,
        };
        let dead = raw::await_signal(raw::signal_set(libc::SIGCHLD), Some(rest));
        if let Some(dead) = &dead {
            bury(Tid::new(raw::about(dead)));
            news.get_or_insert_with(Instant::now);
        }
        if dead.is_none() || news.is_some_and(|since| since.elapsed() > LATEST) {
            sweep();
            news = None;
        }
    }
}

/// Buries all dead threads of the processes, and again, as the end of a thread may let its leader end. A process that is
/// gone is forgotten.
fn sweep() {
    let dead = |tids: Vec<Tid>| tids.into_iter().filter(|tid| bury(*tid)).count();
    let targets: Vec<_> = TARGETS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for pid in targets {
        while Process::glimpse(pid).and_then(|it| it.tasks()).is_ok_and(|tids| dead(tids) != 0) {}
    }
    let mut targets = TARGETS.lock().unwrap_or_else(PoisonError::into_inner);
    targets.retain(|pid| proc::stat::glance(pid.main_thread()).is_some());
}

/// Waits for a thread if it is dead and no child of ours, for which somebody else waits.
fn bury(tid: Tid) -> bool {
    let own = Pid::own();
    let traced =
        proc::stat::glance(tid).is_some_and(|(state, parent)| state == 'Z' && parent != own);
    traced && raw::bury(tid)
}
