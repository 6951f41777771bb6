// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 7: the image gets its head and its name, and the program its end, if that was asked.

use super::Demand;
use super::phase2_equip::Equipped;
use super::phase6_write::Writing;
use crate::error::{Error, Kind, Result};
use crate::inject::{monitor, monitors};
use crate::proc::Process;
use crate::ptrace::freeze::Frozen;
use crate::resource::Gathered;
use std::time::{Duration, Instant};

/// Hears of the end of the program: before it, whether it may be, and then how long it stood still.
pub(crate) type Ended = Box<dyn Fn(Option<Duration>) -> Result<()>>;

/// Seals the image of these processes; its length in bytes, and what it goes without, which may be nothing if it is `strict`.
#[inline(never)]
pub(crate) fn seal(
    writing: Writing<'_>,
    processes: Vec<Gathered>,
    strict: bool,
) -> Result<(u64, Vec<String>)> {
    writing.finish(processes, strict)
}

/// Refuses a periodic checkpoint of a program that has ended while it was written: somebody may
/// have restarted an older one already, and this would take the place of that run's checkpoints.
pub(crate) fn still_wanted(process: &Process) -> Result<()> {
    let pid = process.pid();
    match process.stat(pid.main_thread()) {
        Ok(stat) if !stat.has_ended() => Ok(()),
        _ => Err(Error::new(format!("process {pid} has ended meanwhile")).of(Kind::Gone)),
    }
}

/// Ends a process that has stood still since then, with the status that was configured, as by _exit(2): the one that was
/// asked for as the last.
pub(crate) fn end(
    frozen: Frozen,
    equipped: &Equipped,
    request: &Demand,
    since: Instant,
) -> Result<()> {
    let ended = request.ended.as_deref().filter(|_| frozen.pid == request.pid());
    let told = || ended.iter().for_each(|ended| drop(ended(Some(since.elapsed()))));
    let last = ended.map(|_| &told as &dyn Fn());
    let control = &equipped.region.control;
    if monitor::sees_the_end(&control.config) {
        monitors::tell_saved(frozen.process());
    }
    frozen.end(control.thunk, u64::from(control.config.exit_status), last)
}
