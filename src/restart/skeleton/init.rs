// SPDX-License-Identifier: LGPL-2.1-only
//! The first process of a PID namespace: it buries orphans, and does nothing else.
//!
//! The kernel ends all processes of the namespace when it ends, and it ends when the restarter is killed
//! (PR_SET_PDEATHSIG; a signal from outside reaches even an init). When the program's root has ended well, the
//! restarter lets it go: what outlives the root lives on, and init ends with the last of them.
//!
//! # Safety
//! The process has one thread, and only calls that look at itself and its children.
#![allow(unsafe_code)]

use super::children;
use super::make::{clone, end, made_or};
use super::rendezvous::Rendezvous;
use crate::error::{Error, FAILED, Result};
use crate::proc::Pid;
use crate::ptrace::raw::{about, await_signal, signal_set};
use crate::resource::descriptor::numbers::close_others;
use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::setsid;
use std::time::Duration;

/// What is said between init and the restarter, in [`Rendezvous::tell_init`].
pub(crate) mod word {
    /// Nothing yet.
    pub(crate) const NONE: u32 = 0;
    /// It is there.
    pub(crate) const READY: u32 = 1;
    /// The restarter goes; init need not.
    pub(crate) const LEFT: u32 = 3;
}

/// How often it looks whether it is alone.
const WHILE: Duration = Duration::from_millis(20);

/// The signal by which the restarter says that it goes.
const LEAVE: Signal = Signal::SIGUSR1;

/// The first process of the namespace that the restarter has made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Init {
    pid: Pid,
    /// It is the root of the tree, which was a first process when it was saved.
    is_root: bool,
}

impl Init {
    /// Makes it.
    ///
    /// # Errors
    /// No process can be made.
    pub(crate) fn start(rendezvous: Rendezvous) -> Result<Self> {
        let what = || "cannot make the first process of a namespace";
        let Some(pid) = made_or(clone(None, libc::SIGCHLD), what)? else { live(rendezvous) };
        rendezvous.hear_init(word::NONE, || children::lives(Some(pid)))?;
        if rendezvous.has_failed() {
            return Err(Error::new(what()));
        }
        Ok(Self { pid, is_root: false })
    }

    /// The root of a tree, with which all ends.
    pub(crate) fn root(pid: Pid) -> Self {
        Self { pid, is_root: true }
    }

    /// Its id, as the restarter sees it.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Lets it outlive this process; returns when it will.
    pub(crate) fn leave(&self, rendezvous: Rendezvous) {
        if self.is_root {
            return;
        }
        let _ = kill(self.pid.nix(), LEAVE);
        let _ = rendezvous.hear_init(word::READY, || {
            // From outside even an init can be stopped.
            let _ = kill(self.pid.nix(), Signal::SIGCONT);
            children::lives(Some(self.pid))
        });
    }
}

fn live(rendezvous: Rendezvous) -> ! {
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let _ = prctl::set_name(c"ckpt-init");
    crate::restart::mapping::block_all_signals();
    let _ = setsid();
    close_others(Vec::new());
    let _ = std::env::set_current_dir("/");
    rendezvous.tell_init(word::READY);
    let mut alone = false;
    loop {
        let (children, buried) = bury();
        // An orphan of the tree that was killed on the way is seen by nobody else. The restarter may have ended before it
        // could be the cause of our death.
        if !alone && (rendezvous.is_vain() || buried && rendezvous.needs_all()) {
            end(FAILED.into());
        }
        if alone && !children && is_empty() {
            end(0);
        }
        // A dumper from outside, whose end nobody tells us, may have outlived the others.
        let patience = if alone && !children { Some(WHILE) } else { None };
        if hear(patience) == Some(LEAVE as i32) {
            let _ = prctl::set_pdeathsig(None);
            alone = true;
            rendezvous.tell_init(word::LEFT);
        }
    }
}

/// Buries all who are dead; whether any child is left, and whether any was dead.
fn bury() -> (bool, bool) {
    let mut buried = false;
    loop {
        match children::change(None, libc::WEXITED | libc::WNOHANG) {
            Ok(Some(_)) => buried = true,
            Ok(None) => return (true, buried),
            Err(_) => return (false, buried),
        }
    }
}

/// Whether nobody else is in the namespace (kill(2): -1 means all but init).
fn is_empty() -> bool {
    kill(nix::unistd::Pid::from_raw(-1), None) == Err(Errno::ESRCH)
}

/// Waits for a child's end, or for the word of the restarter: only that one comes from outside (its sender is 0).
fn hear(patience: Option<Duration>) -> Option<i32> {
    let set = signal_set(libc::SIGCHLD) | signal_set(LEAVE as i32);
    let heard = await_signal(set, patience);
    let is_meant = |it: &libc::siginfo_t| it.si_signo != LEAVE as i32 || about(it) == 0;
    heard.filter(is_meant).map(|it| it.si_signo)
}
