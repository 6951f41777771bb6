// SPDX-License-Identifier: LGPL-2.1-only
//! A child of the monitor: it takes one checkpoint, or equips the program, so that its death leaves the monitor alone.
//!
//! # Safety
//! The monitor has one thread, and waits for children of its own only.
#![allow(unsafe_code)]

use crate::error::{Because, Result};
use crate::fault;
use crate::proc::fork::end;
use crate::proc::{Pid, Process};
use crate::ptrace::shield;
use nix::errno::Errno;
use nix::libc;
use std::io::{PipeReader, Write};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

/// How often those are looked for whom a dumper has left.
const NAP: Duration = Duration::from_millis(5);
/// How long those whom a dumper leaves are waited for.
const REST: Duration = Duration::from_millis(200);

/// The child.
pub(super) struct Dumper {
    pid: Pid,
    /// What it says; ends with it.
    pub(super) line: PipeReader,
    /// Where it leaves what it knows for the next one ([`crate::dump::rolling`]).
    pub(super) known: UnixDatagram,
}

impl Dumper {
    /// Starts work, which gives an exit status and sentences.
    ///
    /// # Errors
    /// There can be no child.
    pub(super) fn start(
        target: &Process,
        work: impl FnOnce(&UnixDatagram) -> (u8, String),
    ) -> Result<Self> {
        let what = || "cannot start a dumper";
        let (line, tell) = std::io::pipe().because(what)?;
        let (known, give) = UnixDatagram::pair().because(what)?;
        // SAFETY: this process has one thread.
        match unsafe { nix::unistd::fork() }.because(what)? {
            nix::unistd::ForkResult::Parent { child } => {
                fault::leave_to_child();
                Ok(Self { pid: Pid::new(child.as_raw()), line, known })
            }
            nix::unistd::ForkResult::Child => {
                drop(line);
                let _ = nix::sys::prctl::set_name(c"ckpt-dump");
                let say = |sentences: String| (&tell).write_all(sentences.as_bytes());
                let worked = shield::shielded(std::slice::from_ref(target), || {
                    let (status, sentences) = work(&give);
                    let _ = say(sentences);
                    status
                });
                end(i32::from(worked.unwrap_or_else(|e| {
                    let _ = say(format!("{e}\n"));
                    0
                })))
            }
        }
    }

    /// Kills it.
    pub(super) fn kill(&self) {
        let pid = self.pid.nix();
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }

    /// Waits for its end, and for those it leaves, who end with it or soon after; the exit status, if it was no signal.
    pub(super) fn reap(&self) -> Option<u8> {
        let mut status = 0;
        // SAFETY: the kernel writes the one word.
        while unsafe { libc::waitpid(self.pid.get(), &mut status, 0) } < 0 && Errno::last_raw() == 4
        {
        }
        let deadline = Instant::now() + REST;
        while bury() && Instant::now() < deadline {
            std::thread::sleep(NAP);
        }
        libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status) as u8)
    }
}

/// Waits for one of those who have lost a dumper as their parent, if it has ended; whether there may be more.
fn bury() -> bool {
    // SAFETY: waits for children of this process, and writes nothing.
    let waited = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) };
    waited >= 0
}
