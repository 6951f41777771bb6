// SPDX-License-Identifier: LGPL-2.1-only
//! The monitors that run on this machine, and what they are told.

use super::monitor;
use crate::proc::Pid;
use crate::proc::{self, pidfd::Pidfd};
use ckpt_abi::region::NAME_LEN;
use nix::sys::signal::Signal;
use std::ffi::CStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// The name of monitors, also before they are executed.
pub(crate) const NAME: &CStr = c"ckpt-monitor";

/// How their arguments begin.
const LINE: &[u8] = b"ckpt\0__monitor\0";

/// A monitor that somebody has started.
pub(crate) struct Found {
    /// The monitor.
    pub monitor: Pidfd,
    /// Its own id, and that of its program as it is seen from there.
    ids: [Pid; 2],
}

/// The monitors of this machine that we can see.
pub(crate) fn all() -> Vec<Found> {
    let ids = proc::tree::pids().unwrap_or_default().into_iter();
    ids.filter_map(|id| {
        let line = || std::fs::read(format!("/proc/{id}/cmdline")).ok();
        let found = line()?;
        let program = found.strip_prefix(LINE)?.strip_suffix(&[0])?;
        let program = std::str::from_utf8(program).ok()?.parse().ok()?;
        let monitor = Pidfd::open(id).ok()?;
        // The id may have been given to another process before it was opened.
        (line()? == found).then_some(Found { monitor, ids: [id, program] })
    })
    .collect()
}

/// Whether there may be a monitor that has yet to be executed: it cannot be found. In the middle of an execve(2) a process
/// has the name of the file (4, memfd:ckpt) and no command line yet, but an executable, unlike the dead and the kernel's threads.
pub(crate) fn is_one_on_its_way() -> bool {
    let all = proc::tree::pids().unwrap_or_default();
    all.into_iter().any(|id| {
        // In this order: who has lost the name has no command line, or the one by which it is found.
        let named =
            proc::comm(id, id.main_thread()).is_ok_and(|name| name.as_bytes() == NAME.to_bytes());
        let Ok(line) = std::fs::read(format!("/proc/{id}/cmdline")) else { return false };
        let is_alive =
            || proc::stat(id, id.main_thread()).is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'));
        match named {
            true => !line.starts_with(LINE) && is_alive(),
            false => line.is_empty() && std::fs::read_link(format!("/proc/{id}/exe")).is_ok(),
        }
    })
}

impl Found {
    /// Whether it is of this user and PID namespace, and its program, which had this name for its checkpoints, has
    /// ended, while it has not.
    pub(crate) fn is_finishing(&self, name: &[u8; NAME_LEN]) -> bool {
        let [id, program] = self.ids;
        let own = Pid::own();
        let user = std::fs::metadata(format!("/proc/{id}")).map(|meta| meta.uid());
        if user.ok() != Some(nix::unistd::geteuid().as_raw())
            || proc::namespace(id, "pid") != proc::namespace(own, "pid")
        {
            return false;
        }
        if monitor::given(id).is_some_and(|config| config.name != *name) {
            return false;
        }
        match (proc::stat(id, id.main_thread()), proc::stat(program, program.main_thread())) {
            // Its id is another's if that began after the monitor.
            (Ok(monitor), Ok(there)) => {
                matches!(there.state, 'Z' | 'X') || there.starttime > monitor.starttime
            }
            (Ok(_), Err(_)) => true,
            (Err(_), _) => false,
        }
    }

    /// Has it look at its program now.
    pub(crate) fn poke(&self) {
        self.monitor.signal(LOOK);
    }

    /// Whether it ends in time.
    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        self.monitor.ended_within(limit)
    }

    /// Whether it was started after the process `other`.
    pub(crate) fn is_younger_than(&self, other: Pid) -> bool {
        let begun = |id| proc::stat(id, id.main_thread()).map(|stat| (stat.starttime, id)).ok();
        self.ids[0] != other && begun(self.ids[0]) > begun(other)
    }

    /// Whether this is the program that it watches.
    pub(crate) fn watches(&self, pid: Pid) -> bool {
        let [id, program] = self.ids;
        let own = Pid::own();
        let (here, inside) = (proc::namespace(own, "pid"), proc::namespace(pid, "pid"));
        let there = proc::namespace(id, "pid");
        there.is_some()
            && ((there == here && program == pid)
                || (there == inside && program == proc::inner_pid(pid)))
    }
}

/// What tells a monitor that its program is ended by a checkpoint, whatever its exit status: a signal, which
/// it has blocked as all others. It is one that nobody else sends: a batch system's goes to all that is left of a job.
pub(crate) const SAVED: Signal = Signal::SIGSTKFLT;

/// What has a monitor look at once whether its program has executed another.
pub(crate) const LOOK: Signal = Signal::SIGURG;

/// Tells the monitors of a process that a checkpoint ends it.
pub(crate) fn tell_saved(pid: Pid) {
    for found in all().into_iter().filter(|found| found.watches(pid)) {
        found.monitor.signal(SAVED);
    }
}
