// SPDX-License-Identifier: LGPL-2.1-only
//! What becomes of the processes that a process of a restart has made (waitid(2)).
//!
//! # Safety
//! waitid(2) fills in a siginfo_t of ours, which may be all zeros before.
#![allow(unsafe_code)]

use crate::proc::{self, Pid, Process};
use nix::errno::Errno;
use nix::libc;

/// The bit of a status that tells of a core file.
const CORE: i32 = 0x80;

/// How a child has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Ended(i32),
    /// By a signal: the status of wait(2), with its bit for a core file.
    Killed(i32),
    Stopped(i32),
    Continued,
}

/// What has become of a child, or of any (None), and is asked for in `options`; None where nothing has (WNOHANG). Who
/// has ended is reaped, unless WNOWAIT is among them.
///
/// # Errors
/// ECHILD: there is none.
pub(super) fn change(child: Option<Pid>, options: i32) -> nix::Result<Option<Change>> {
    let (kind, id) = child.map_or((libc::P_ALL, 0), |child| (libc::P_PID, child.word()));
    // SAFETY: zeros are a siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: the kernel writes into `info`.
        let waited = unsafe { libc::waitid(kind, id, &mut info, options | libc::__WALL) };
        match Errno::result(waited) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    // SAFETY: waitid(2) has filled it in, or it is zeros.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    Ok((pid != 0).then_some(match info.si_code {
        libc::CLD_EXITED => Change::Ended(status),
        libc::CLD_STOPPED => Change::Stopped(status),
        // It goes on, or its tracer in this process lets it ([`crate::ptrace::forebear`]).
        libc::CLD_CONTINUED | libc::CLD_TRAPPED => Change::Continued,
        libc::CLD_DUMPED => Change::Killed(status | CORE),
        _ => Change::Killed(status),
    }))
}

/// Whether all children live: before the last meeting none may end.
pub(crate) fn none_ended() -> bool {
    lives(None)
}

/// Whether a child lives, or all do (None).
pub(super) fn lives(child: Option<Pid>) -> bool {
    !matches!(change(child, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT), Ok(Some(_)))
}

/// Waits until a child has ended, and leaves it to be waited for; whether it has this status (wait(2)), and was not killed
/// meanwhile.
pub(crate) fn await_end(child: Pid, status: i32) -> bool {
    match change(Some(child), libc::WEXITED | libc::WNOWAIT) {
        Ok(Some(Change::Ended(code))) => {
            libc::WIFEXITED(status) && code == libc::WEXITSTATUS(status)
        }
        Ok(Some(Change::Killed(found))) => libc::WTERMSIG(found) == libc::WTERMSIG(status),
        _ => false,
    }
}

/// The ids of those that live, as this process sees them.
pub(crate) fn seen(wanted: &[Pid], near: Pid) -> Vec<Pid> {
    let theirs = Process::glimpse(near).ok().and_then(|near| near.namespace("pid"));
    let all = proc::tree::pids().unwrap_or_default().into_iter();
    let is_one = |it: &Process| it.namespace("pid") == theirs && wanted.contains(&it.inner_pid());
    all.filter(|pid| Process::glimpse(*pid).is_ok_and(|it| is_one(&it))).collect()
}
