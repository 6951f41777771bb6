// SPDX-License-Identifier: LGPL-2.1-only
//! The monitors that run on this machine, and what they are told.

use super::monitor;
use crate::proc::{self, Pid, Process, forebear::own_namespace, pidfd::Pidfd};
use ckpt_abi::region::{Config, NAME_LEN};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::ffi::CStr;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;
use std::time::Duration;

/// The name of monitors, also before they are executed.
pub(crate) const NAME: &CStr = c"ckpt-monitor";

/// How their arguments begin.
const LINE: &[u8] = b"ckpt\0__monitor\0";

/// A monitor that somebody has started.
pub(crate) struct Found {
    /// The monitor, to be heard of and told something.
    pub monitor: Pidfd,
    /// The same, to be looked at.
    process: Process,
    /// The id of its program as it is seen from there.
    program: Pid,
}

/// The monitors of this machine that we can see.
pub(crate) fn all() -> Vec<Found> {
    let ids = proc::tree::pids().unwrap_or_default().into_iter();
    ids.filter_map(|id| {
        let process = Process::glimpse(id).ok()?;
        let line = process.command_line().ok()?;
        let program = line.strip_prefix(LINE)?.strip_suffix(&[0])?;
        let program = std::str::from_utf8(program).ok()?.parse().ok()?;
        let monitor = Pidfd::open(id).ok()?;
        // The id may have been given to another process before it was opened.
        (!process.is_reaped()).then_some(Found { monitor, process, program })
    })
    .collect()
}

/// Whether there may be a monitor of a program that has yet to be executed: it cannot be found. In the middle of an
/// execve(2) a process has the name of the file (4, memfd:ckpt) and no command line yet, but an executable, unlike the dead and the kernel's threads.
pub(crate) fn is_one_on_its_way(program: &Process) -> bool {
    let all = proc::tree::pids().unwrap_or_default();
    all.into_iter().any(|id| {
        let Ok(process) = Process::glimpse(id) else { return false };
        if !may_be_of(&process, program) {
            return false;
        }
        // In this order: who has lost the name has no command line, or the one by which it is found.
        let named = process.name().is_ok_and(|name| name.as_bytes() == NAME.to_bytes());
        let Ok(line) = process.command_line() else { return false };
        match named {
            true => !line.starts_with(LINE) && lives(&process),
            false => line.is_empty() && std::fs::read_link(process.path("exe")).is_ok(),
        }
    })
}

/// Whether one is root's, or of the same user as the other: a monitor's name and command line are anybody's to have.
fn may_be_of(process: &Process, program: &Process) -> bool {
    let user = process.user();
    user.is_some() && (user == Some(0) || user == program.user())
}

fn lives(process: &Process) -> bool {
    process.main_stat().is_ok_and(|stat| !stat.has_ended())
}

impl Found {
    /// Whether it is of this user and PID namespace, and its program, which had this name for its checkpoints, has
    /// ended, while it has not.
    pub(crate) fn is_finishing(&self, name: &[u8; NAME_LEN]) -> bool {
        let own = own_namespace();
        if self.process.user() != Some(nix::unistd::geteuid().as_raw())
            || self.process.namespace("pid") != own
            || monitor::given(&self.process).is_some_and(|config| config.name != *name)
        {
            return false;
        }
        let program = Process::glimpse(self.program).and_then(|program| program.main_stat());
        match (self.process.main_stat(), program) {
            // Its id is another's if that began after the monitor.
            (Ok(monitor), Ok(there)) => there.has_ended() || there.starttime > monitor.starttime,
            (Ok(_), Err(_)) => true,
            (Err(_), _) => false,
        }
    }

    /// The configuration that it was started with.
    pub(crate) fn given(&self) -> Option<Config> {
        monitor::given(&self.process)
    }

    /// Has it look at its program now.
    pub(crate) fn poke(&self) {
        self.monitor.signal(LOOK);
    }

    /// Whether it ends in time.
    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        self.monitor.ended_within(limit)
    }

    /// Whether it was started after the process `other`; false if that cannot be known.
    pub(crate) fn is_younger_than(&self, other: &Process) -> bool {
        let begun = |of: &Process| of.main_stat().map(|stat| (stat.starttime, of.pid())).ok();
        let both = begun(&self.process).zip(begun(other));
        self.process.pid() != other.pid() && both.is_some_and(|(its, others)| its > others)
    }

    /// Whether this is the program that it watches.
    pub(crate) fn watches(&self, program: &Process) -> bool {
        let there = self.process.namespace("pid");
        let is_it = (self.program == program.pid() && there == own_namespace())
            || (self.program == program.inner_pid() && there == program.namespace("pid"));
        there.is_some() && is_it && may_be_of(&self.process, program) && !program.is_reaped()
    }
}

/// Those that watch a process, or the restarter that stands for it.
fn watching(process: &Process) -> Vec<Found> {
    let above = process.main_stat().and_then(|stat| Process::glimpse(stat.ppid));
    let above = above.ok().filter(super::enter::stands);
    let watches = |it: &Found| it.watches(process) || above.iter().any(|at| it.watches(at));
    all().into_iter().filter(watches).collect()
}

/// What tells a monitor that its program is ended by a checkpoint, whatever its exit status: a signal, which
/// it has blocked as all others. It is one that nobody else sends: a batch system's goes to all that is left of a job.
pub(crate) const SAVED: Signal = Signal::SIGSTKFLT;

/// What has a monitor look at once whether its program has executed another.
pub(crate) const LOOK: Signal = Signal::SIGURG;

/// Tells the monitors of a process that a checkpoint ends it.
pub(crate) fn tell_saved(process: &Process) {
    watching(process).iter().for_each(|found| found.monitor.signal(SAVED));
    if let Some((mut asks, mut answers)) = OUTSIDE.get().map(|(asks, answers)| (asks, answers)) {
        // Whose maker is gone hears its end.
        let _ = asks.write_all(&[0]).and_then(|()| answers.read(&mut [0]));
    }
}

/// The way to one who tells monitors outside of the PID namespace that this process has entered: nobody in there may signal
/// them (pidfd_send_signal(2), access_pidfd_pidns in kernel/signal.c).
static OUTSIDE: OnceLock<(PipeWriter, PipeReader)> = OnceLock::new();

/// Who tells them.
pub(super) struct Teller {
    monitors: Vec<Found>,
    asked: PipeReader,
    answers: PipeWriter,
    ways: (PipeWriter, PipeReader),
}

impl Teller {
    /// For the monitors of a process.
    ///
    /// # Errors
    /// There can be no pipe.
    pub(super) fn of(process: &Process) -> std::io::Result<Self> {
        let monitors = watching(process);
        let ((asked, asks), (answered, answers)) = (std::io::pipe()?, std::io::pipe()?);
        Ok(Self { monitors, asked, answers, ways: (asks, answered) })
    }

    /// In the child that works.
    pub(super) fn ask(self) {
        let _ = OUTSIDE.set(self.ways);
    }

    /// In its maker, until the child has ended.
    pub(super) fn tell(self, child: Pid) {
        let Self { monitors, mut asked, mut answers, ways } = self;
        drop(ways);
        let Ok(child) = Pidfd::open(child) else { return };
        let is_in = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        loop {
            let mut both =
                [asked.as_fd(), child.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            let _ = poll(&mut both, PollTimeout::NONE);
            // What it has asked goes first.
            match both.each_ref().map(is_in) {
                [true, _] if asked.read(&mut [0]).is_ok_and(|len| len != 0) => {
                    monitors.iter().for_each(|found| found.monitor.signal(SAVED));
                    let _ = answers.write_all(&[0]);
                }
                [false, false] => {}
                _ => return,
            }
        }
    }
}
