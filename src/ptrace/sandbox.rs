// SPDX-License-Identifier: LGPL-2.1-only
//! Threads that may not make every system call (seccomp(2)). A remote call obeys the filters of the thread that makes
//! it, which may kill the process for it, and strict mode does. Each thread has filters of its own.

use crate::error::{Error, Kind, Result};
use crate::proc::Process;
use crate::proc::Tid;
use crate::proc::status::Status;
use std::sync::OnceLock;

/// Refuses a process with such a thread, before one is touched.
///
/// # Errors
/// Of [`Kind::Obstacles`]: there is one; or the process is gone.
pub(crate) fn refuse(process: &Process) -> Result<()> {
    let own = own()?;
    for tid in process.tasks()? {
        // One that is gone makes no calls.
        if let Ok(status) = process.status(tid) {
            refuse_thread(process, tid, &status, own)?;
        }
    }
    Ok(())
}

/// What keeps remote calls and the handler of the checkpoint signal from a process: a sentence; None: nothing. Of a process
/// with many threads only the main one is looked at, which takes signals first.
pub(crate) fn obstacle(process: &Process) -> Option<String> {
    const FEW: u32 = 16;
    let (main, own) = (process.status(process.main_thread()).ok()?, own().ok()?);
    let looked = match main.threads {
        0..=FEW => refuse(process),
        _ => refuse_thread(process, process.main_thread(), &main, own),
    };
    looked.err().filter(|e| e.kind() == Kind::Obstacles).map(|e| e.to_string())
}

/// How many filters we obey ourselves, which stays so. Those of a container are the program's and ours, and allow what
/// ckpt needs or would not let us begin.
pub(super) fn own() -> Result<u32> {
    static FILTERS: OnceLock<u32> = OnceLock::new();
    if let Some(known) = FILTERS.get() {
        return Ok(*known);
    }
    let own = Process::own()?;
    let own = filters(&own.status(own.main_thread())?);
    Ok(*FILTERS.get_or_init(|| own))
}

fn filters(status: &Status) -> u32 {
    status.seccomp_filters.unwrap_or(u32::from(status.seccomp == 2))
}

/// Refuses one thread.
pub(super) fn refuse_thread(process: &Process, tid: Tid, status: &Status, own: u32) -> Result<()> {
    let pid = process.pid();
    let whose = if tid == pid.main_thread() {
        format!("process {pid}")
    } else {
        format!("thread {tid} of process {pid}")
    };
    if status.seccomp == 1 {
        return Err(Error::new(format!("{whose} is in seccomp's strict mode"))
            .of(Kind::Obstacles)
            .hint("it cannot be saved from outside"));
    }
    if filters(status) > own {
        return Err(Error::new(format!(
            "{whose} has installed seccomp filters, which could kill it for the system calls that a checkpoint needs"
        ))
        .of(Kind::Obstacles)
        .hint("start it without its sandbox, if it has an option for that"));
    }
    Ok(())
}
