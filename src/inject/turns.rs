// SPDX-License-Identifier: LGPL-2.1-only
//! The word that says whose turn it is ([`ckpt_abi::turn`]), read and changed from outside.

use super::region::Region;
use crate::error::Result;
use crate::proc::{self, Pid, Process, pidfd::Pidfd};
use crate::ptrace::memory::Memory;
use ckpt_abi::region::{TURNS, Turns};
use ckpt_abi::turn::{Denied, Event, Seen, Task, Turn, step};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::mem::offset_of;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// This process, as the program `pid` names it.
pub(crate) fn own_task(pid: Pid) -> Task {
    /// By this process's id, which a child has not, and the program's.
    static KNOWN: Mutex<BTreeMap<(u32, Pid), Task>> = Mutex::new(BTreeMap::new());
    let own = std::process::id();
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(task) = known().get(&(own, pid)) {
        return *task;
    }
    // Several threads may look for several programs.
    let task = Task { pid: own, start: start_of(Pid::of_word(own), pid).unwrap_or(0) };
    *known().entry((own, pid)).or_insert(task)
}

/// A process that has not ended, as the program `pid` names it.
pub(crate) fn task(of: Pid, pid: Pid) -> Option<Task> {
    Some(Task { pid: of.word(), start: start_of(of, pid)? })
}

/// When a process was started that has not ended, on the clock of the program `pid`.
fn start_of(of: Pid, pid: Pid) -> Option<u32> {
    let stat = Process::glimpse(of).and_then(|it| it.main_stat()).ok();
    let stat = stat.filter(|stat| !matches!(stat.state, 'Z' | 'X'))?;
    let skew = Process::glimpse(pid).map_or(0, |program| proc::boot_skew(&program)) / proc::TICK;
    Some(stat.starttime.wrapping_add_signed(skew) as u32)
}

/// Whether a task that the program `pid` names is there.
pub(crate) fn lives(pid: Pid, task: Task) -> bool {
    if task.pid == std::process::id() {
        let own = own_task(pid);
        return task.is(own.pid, own.start);
    }
    let start = start_of(Pid::of_word(task.pid), pid);
    start.is_some_and(|start| task.is(task.pid, start))
}

impl Region {
    /// What the process has that its children have not.
    pub(crate) fn turns(&self, memory: &Memory) -> Result<Turns> {
        memory.get(self.base + TURNS)
    }

    /// Whose turn it is.
    pub(crate) fn turn(&self, memory: &Memory) -> Result<Turn> {
        self.turns(memory).map(|turns| Turn::of(turns.turn))
    }

    /// Makes a step in the program `pid`; what it leads to. [`ckpt_abi::turn`] says when a dumper may.
    ///
    /// # Errors
    /// The memory cannot be read or written. The inner ones are the protocol's.
    pub(crate) fn step(
        &self,
        memory: &Memory,
        pid: Pid,
        event: Event,
    ) -> Result<std::result::Result<Turn, Denied>> {
        let next = self.would_step(memory, pid, event)?;
        if let Ok(next) = next {
            memory.put(self.base + TURNS + offset_of!(Turns, turn) as u64, &next.word())?;
        }
        Ok(next)
    }

    /// What a step would lead to.
    ///
    /// # Errors
    /// As [`Region::step`].
    pub(crate) fn would_step(
        &self,
        memory: &Memory,
        pid: Pid,
        event: Event,
    ) -> Result<std::result::Result<Turn, Denied>> {
        let turn = self.turn(memory)?;
        let seen = Seen {
            lives: turn.has_task() && lives(pid, turn.task),
            ends: self.control.config.continues == 0,
        };
        Ok(step(turn, event, seen))
    }

    /// Says that no child is kept any more.
    pub(crate) fn forget_keeper(&self, memory: &Memory) -> Result<()> {
        memory.put(self.base + TURNS + offset_of!(Turns, keeper) as u64, &0u32)
    }
}

/// Waits until a task has ended that the program `pid` names; whether it has in time.
///
/// # Errors
/// Those of pidfd_open(2), but for one that is gone.
pub(crate) fn outlast(pid: Pid, task: Task, limit: Duration) -> nix::Result<bool> {
    const LOOK: Duration = Duration::from_secs(1);
    let deadline = Instant::now() + limit;
    let process = match Pidfd::open(Pid::of_word(task.pid)) {
        Err(Errno::ESRCH) => return Ok(true),
        process => process?,
    };
    // By now the descriptor stands for it, or it is gone.
    while lives(pid, task) {
        let left = deadline.saturating_duration_since(Instant::now());
        if !process.ended_within(left.min(LOOK)) && left.is_zero() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Ends a task that the program `pid` names, and waits until it is gone: what it had begun to write into the program
/// must not come after what others write.
pub(crate) fn end(pid: Pid, task: Task) {
    const PATIENCE: Duration = Duration::from_secs(5);
    let Ok(process) = Pidfd::open(Pid::of_word(task.pid)) else { return };
    // By now the descriptor stands for it, or it is gone.
    if lives(pid, task) {
        process.kill();
        process.ended_within(PATIENCE);
    }
}
