// SPDX-License-Identifier: LGPL-2.1-only
//! Beginning to trace a thread, and the sentences about one that is not let or does not stop.

use super::freeze::PATIENCE;
use super::raw;
use super::thread::wait_event_stop;
use crate::error::{Error, Kind, Result};
use crate::proc::{self, Process, forebear};
use crate::proc::{Pid, Tid};
use nix::errno::Errno;
use nix::libc;
use std::time::{Duration, Instant};

/// What came of [`seize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seized {
    /// It is traced from now on.
    Now,
    /// We traced it already: it was born of a traced thread, or an earlier attempt could not let it go.
    Before,
    /// It has ended.
    Dead,
}

/// Seizes one thread, with `options`.
///
/// # Errors
/// Somebody else traces it ([`Kind::Busy`]), or it is not permitted.
pub(super) fn seize(process: &Process, tid: Tid, options: i32) -> Result<Seized> {
    /// A tracer that is gone when it is looked for left us in between; as many of them in a row are none.
    const TRIES: usize = 3;
    for again in 1..=TRIES {
        let error = match raw::seize(tid, options) {
            Ok(()) if process.has(tid) => return Ok(Seized::Now),
            Ok(()) => {
                give_up(tid);
                break;
            }
            Err(error) => error,
        };
        let status = process.status(tid);
        match status {
            _ if error == Errno::ESRCH => break,
            Err(_) => break,
            Ok(status) if matches!(status.state, 'Z' | 'X') => break,
            Ok(status) if status.tracer == forebear::tracer() => {
                return Ok(Seized::Before);
            }
            Ok(status) if status.tracer == Tid::NONE && error == Errno::EPERM && again < TRIES => {}
            Ok(status) => {
                return Err(refused(process, error, status.tracer));
            }
        }
    }
    Ok(Seized::Dead)
}

/// Lets go of a thread that got the id of one of the process's, which has ended since it was listed.
fn give_up(tid: Tid) {
    let deadline = Instant::now() + Duration::from_millis(100);
    let stopped = raw::interrupt(tid).and_then(|()| wait_event_stop(tid, deadline));
    if let Ok(Some(_)) = stopped {
        let _ = raw::detach(tid);
    }
}

fn refused(process: &Process, error: Errno, tracer: Tid) -> Error {
    let pid = process.pid();
    let refusal =
        Error::new(format!("cannot trace process {pid}: {}", error.desc())).of(Kind::NotPermitted);
    if tracer != Tid::NONE {
        return traced(pid, tracer);
    }
    hinted(process, refusal)
}

/// What may help against a refusal to look at a process.
pub(super) fn hinted(process: &Process, refusal: Error) -> Error {
    let own = nix::unistd::geteuid();
    let users = process.main_status().map(|status| status.uid).unwrap_or_default();
    // Of a process that may not be looked at /proc is root's.
    let owner = process.owner().unwrap_or(own.as_raw());
    let other = users.iter().find(|user| **user != own.as_raw()).filter(|_| !own.is_root());
    if let Some(other) = other {
        return refusal.hint(format!(
            "it is of user {other}, and only that user or root may (run this as root)"
        ));
    }
    match proc::setting("kernel/yama/ptrace_scope") {
        _ if owner != users[1] && !own.is_root() => refusal.hint(
            "it has forbidden that (PR_SET_DUMPABLE in prctl(2)), or has rights of its file (set-user-ID, capabilities), or \
             that may not be read: root can",
        ),
        Some(1) if !own.is_root() => refusal.hint(
            "kernel.yama.ptrace_scope is 1: start the program with `ckpt PROGRAM`, run this as root, or set it to 0 (sysctl)",
        ),
        Some(2) => refusal.hint(
            "kernel.yama.ptrace_scope is 2: only root may (with CAP_SYS_PTRACE); sysctl kernel.yama.ptrace_scope=1 changes it",
        ),
        Some(3) => refusal
            .hint("kernel.yama.ptrace_scope is 3: nobody may until the machine is started with another value"),
        _ => refusal.hint(
            "a container's rules, or those of SELinux or AppArmor, forbid ptrace(2), or it has rights that we lack (docker run \
             --cap-add SYS_PTRACE; `ckpt check` shows more)",
        ),
    }
}

/// Why a process cannot be traced that somebody traces already.
pub(crate) fn traced(pid: Pid, tracer: Tid) -> Error {
    let Ok(name) = Process::glimpse(tracer.as_pid()).and_then(|it| it.comm(tracer)) else {
        let text = format!("process {tracer}, which has just ended, has traced process {pid}");
        return Error::new(text).of(Kind::Busy).hint("try again");
    };
    // Another ckpt is done in a while, a debugger is not.
    if name.as_encoded_bytes().starts_with(b"ckpt") {
        let text =
            format!("process {tracer}, another ckpt, has process {pid} stopped for a checkpoint");
        return Error::new(text).of(Kind::Busy).hint("wait for it");
    }
    let text = format!(
        "cannot trace process {pid}: process {tracer} ({}) traces it already",
        name.display()
    );
    Error::new(text).of(Kind::NotPermitted).hint("a debugger or strace has to let it go before")
}

/// The sentence about a thread that did not stop in time.
pub(super) fn stubborn(process: &Process, tid: Tid) -> Error {
    let pid = process.pid();
    let call = match process.syscall(tid) {
        Ok(Some((number, _))) => match number.cast_signed() {
            libc::SYS_vfork => "in vfork(2)".to_string(),
            libc::SYS_clone => "in clone(2)".to_string(),
            libc::SYS_clone3 => "in clone3(2)".to_string(),
            _ => format!("in system call {number}"),
        },
        _ => "in the kernel".to_string(),
    };
    let name = process.comm(tid).unwrap_or_default();
    let name = name.display();
    if proc::stat::glance(tid).is_some_and(|(state, _)| state == 'R') {
        let text = format!(
            "thread {tid} ({name}) of process {pid} has not come to a stop within {} seconds: it waits for a processor, or works in the kernel",
            PATIENCE.as_secs()
        );
        return Error::new(text).hint("try again when the machine is less busy");
    }
    Error::new(format!(
        "thread {tid} ({name}) of process {pid} cannot be stopped within {} seconds: it waits {call}",
        PATIENCE.as_secs()
    ))
    .hint("a parent in vfork(2) or a thread in state D becomes free when its child or its disk does")
}

/// One wait of a thread that cannot be stopped meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deaf {
    /// The thread.
    pub tid: Tid,
    /// How often it had given up its processor by itself: another number is another wait.
    switches: Option<u64>,
}

/// A thread that cannot be stopped now, as far as can be seen without touching it: it sleeps where no stop wakes it (for
/// its child of vfork(2), for a disk).
pub(super) fn deaf(process: &Process) -> Result<Option<Deaf>> {
    let tid = process.tasks()?.into_iter().find(|tid| process.state(*tid) == Some('D'));
    Ok(tid.map(|tid| Deaf { tid, switches: process.voluntary_switches(tid) }))
}

/// Whether a thread is still in that wait.
pub(super) fn is_deaf_still(process: &Process, deaf: Deaf) -> bool {
    process.state(deaf.tid) == Some('D') && process.voluntary_switches(deaf.tid) == deaf.switches
}
