// SPDX-License-Identifier: LGPL-2.1-only
//! What a program is locked in is suspended only as long as its tracer lives ([`super::sandbox`]): whose tracer is killed
//! while one of its threads works for us may be ended by its own filter. So a child of ours is its tracer, which nobody
//! knows; when we are killed it goes on until no thread works for it, and ends.
//!
//! Rejected: only calls that the filter allows. Strict mode allows none, and a list of those of one C library not even rt_sigprocmask(2).

use super::sandbox;
use crate::error::{Because, Error, Result};
use crate::fault;
use crate::proc::fork::{end, fork};
use crate::proc::pidfd::Pidfd;
use crate::proc::{Pid, Process};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::wait::{WaitStatus, waitpid};
use std::sync::{Mutex, MutexGuard, PoisonError};

struct State {
    /// This is the process that nobody knows.
    shields: bool,
    /// How many threads of the program work for us.
    working: usize,
    /// Whoever wanted the checkpoint, until he is waited for: entering namespaces takes a process of one thread (setns(2)).
    maker: Option<Pidfd>,
    /// He is gone.
    forsaken: bool,
}

impl State {
    fn leave(&self) {
        if self.forsaken && self.working == 0 {
            end(1);
        }
    }
}

static STATE: Mutex<State> =
    Mutex::new(State { shields: false, working: 0, maker: None, forsaken: false });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this process may be the tracer of a program that has locked itself in.
pub(super) fn is_up() -> bool {
    state().shields
}

/// A thread works for us that would be ended without its tracer.
pub(super) struct Working(());

impl Working {
    pub(super) fn begin() -> Self {
        let mut state = state();
        state.working += 1;
        let maker = state.maker.take();
        drop(state);
        let _ = maker.map(watch);
        Self(())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let mut state = state();
        state.working -= 1;
        state.leave();
    }
}

/// Does work that makes threads of processes, and of those that descend from them, work for us: in a child, where one of them
/// has locked itself in and we may suspend that. The exit status that work has, and that is said there.
///
/// The caller has one thread.
///
/// # Errors
/// There can be no child, or it was killed.
pub(crate) fn shielded(processes: &[Process], work: impl FnOnce() -> u8) -> Result<u8> {
    if !sandbox::is_opener() || !processes.iter().any(sandbox::is_any_locked_in) {
        return Ok(work());
    }
    let what = || "cannot start the process that takes the checkpoint";
    let maker = Pidfd::open(Pid::own()).because(what)?;
    let Some(child) = fork(libc::SIGCHLD).because(what)? else {
        // Not in the group or the session of whoever is ended by a signal to all.
        let _ = nix::unistd::setsid();
        let mut own = state();
        (own.shields, own.maker) = (true, Some(maker));
        drop(own);
        end(i32::from(work()))
    };
    fault::leave_to_child();
    loop {
        match waitpid(child.nix(), None) {
            Ok(WaitStatus::Exited(_, status)) => return Ok(status as u8),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                let text =
                    format!("no checkpoint: the process that takes it was ended by {signal}");
                return Err(Error::new(text));
            }
            Err(nix::errno::Errno::EINTR) | Ok(_) => {}
            Err(e) => return Err(e).because(what),
        }
    }
}

/// Ends this process some time after another has ended.
fn watch(maker: Pidfd) -> std::io::Result<()> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let watcher = std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
        let mut ended = [PollFd::new(std::os::fd::AsFd::as_fd(&maker), PollFlags::POLLIN)];
        while poll(&mut ended, PollTimeout::NONE) != Ok(1) {}
        let mut state = state();
        state.forsaken = true;
        state.leave();
    });
    before.thread_set_mask()?;
    watcher.map(drop)
}
