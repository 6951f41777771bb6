// SPDX-License-Identifier: LGPL-2.1-only
//! The restarter, when the tree runs: to its own parent it is the program.
//!
//! It stops and ends as the root does, and hands on what it alone is sent. It blocks all signals and takes them one by
//! one. Those of the terminal come to the whole group, in which the root is, too ([`super::witness`]); those that
//! somebody sends to the restarter's id are for the root.
//!
//! # Safety
//! The process has one thread; its signal dispositions are its own.
#![allow(unsafe_code)]

use super::children::{Change, change};
use super::corefile;
use super::init::Init;
use super::make::end;
use super::nursery::Nursery;
use super::rendezvous::Rendezvous;
use super::witness::Witness;
use crate::error::FAILED;
use crate::proc::Pid;
use crate::proc::Process;
use crate::proc::stat::glance;
use crate::ptrace::forebear;
use crate::ptrace::raw::{await_signal, signal_set};
use crate::resource::descriptor::pty::screen::{Front, pass};
use nix::libc;
use nix::sys::prctl::get_child_subreaper;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{getpgid, getpgrp};
use std::time::Duration;

/// Signals that stop, and can wait.
const STOPS: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// A running tree.
pub(crate) struct Proxy {
    /// The root's id, as this process sees it.
    pub(crate) root: Pid,
    /// The first process of its namespace.
    pub(crate) init: Option<Init>,
    /// Who else is in our group.
    pub(crate) witness: Witness,
    /// Where we speak with init.
    pub(crate) rendezvous: Option<Rendezvous>,
    /// Whether the root has a group of its own, which has the terminal when ours is in the foreground.
    pub(crate) governs: bool,
}

impl Proxy {
    /// Stands for the root until that ends, and ends as it does.
    pub(crate) fn stand(mut self) -> ! {
        // If another group had the terminal, that has it by now.
        self.pass(true);
        loop {
            // What a dumper has let go of is looked at again.
            let patience = forebear::has_just_left().then_some(Duration::from_millis(20));
            match await_signal(u64::MAX, patience) {
                Some(signal) if signal.si_signo != libc::SIGCHLD => {
                    self.hand_on(signal.si_signo, Some(&signal));
                }
                _ => {
                    while let Some(change) = change_of(self.root) {
                        match change {
                            Change::Ended(status) => {
                                self.leave();
                                end(status)
                            }
                            Change::Killed(status) => {
                                self.leave();
                                die_by(status, true)
                            }
                            Change::Stopped(signal) => self.stop(signal),
                            Change::Continued => {}
                        }
                    }
                    self.bury_orphans();
                }
            }
        }
    }

    /// Buries the orphans of the tree that have come to this process, as init would.
    fn bury_orphans(&self) {
        if !get_child_subreaper().unwrap_or(false) && Pid::own() != Pid::INIT {
            return;
        }
        let ours = [self.root, self.witness.pid()];
        let all = Process::own().map(|own| own.children()).unwrap_or_default();
        for child in all.into_iter().filter(|child| !ours.contains(child)) {
            // Of one that lives and is traced here a wait would take a stop.
            if glance(child.main_thread()).is_some_and(|(state, _)| state == 'Z') {
                let _ = change(Some(child), libc::WEXITED | libc::WNOHANG);
            }
        }
    }

    /// Sends the root a signal that came, with the value and the sender that it has from who gave it one (sigqueue(3)).
    fn hand_on(&mut self, signal: i32, info: Option<&libc::siginfo_t>) {
        if !self.is_for_us_alone(signal) {
            return;
        }
        match info.filter(|info| info.si_code == libc::SI_QUEUE && self.root > Pid::NONE) {
            Some(info) => {
                let info: *const libc::siginfo_t = info;
                // SAFETY: the kernel reads the structure.
                unsafe { libc::syscall(libc::SYS_rt_sigqueueinfo, self.root.get(), signal, info) };
            }
            None => send(self.root, signal),
        }
    }

    /// Whether a signal came to this process and not to its group. Of stops and SIGCONT the later takes the earlier
    /// away unseen, also from the witness (signal(7); kernel/signal.c, prepare_signal): what it undoes is for nobody.
    fn is_for_us_alone(&mut self, signal: i32) -> bool {
        let undone_by = match signal {
            libc::SIGCONT => STOPS.into_iter().map(signal_set).sum(),
            _ if STOPS.contains(&signal) => signal_set(libc::SIGCONT),
            _ => 0,
        };
        !self.witness.has_seen(signal) && pending() & undone_by == 0
    }

    /// Stops as the root has, so that our parent sees a stopped job; then the root goes on, if it was not told already.
    fn stop(&mut self, signal: i32) {
        // Who goes on when nobody has stopped him would wait for ever.
        if pending() & signal_set(libc::SIGCONT) != 0 {
            return;
        }
        // Nothing stops the first process of a namespace, and whoever has stopped the root lets it go on.
        if Pid::own() == Pid::INIT {
            return;
        }
        default(signal);
        // Blocked, and to the process, it is one with the terminal's, which may wait already or be on its way: two would
        // stop twice, the second time when the job goes on.
        send(Pid::own(), signal);
        // That took a SIGCONT away that came meanwhile; later ones take away the stop. The root has it before us.
        let news = libc::WEXITED | libc::WCONTINUED | libc::WNOHANG | libc::WNOWAIT;
        let news = || change(Some(self.root), news).ok().flatten();
        if forebear::unless_traced(news).is_some() {
            take(signal);
            self.witness.has_seen(libc::SIGCONT);
            return;
        }
        unblocked(signal, || {});
        take(libc::SIGCONT);
        // SIGCONT to the group has reached the root, if that is in it; one that was for us alone has not.
        match getpgid(Some(self.root.nix())) == Ok(getpgrp()) {
            true => self.hand_on(libc::SIGCONT, None),
            false => {
                // The witness's goes with it, or it would be taken for a later one's.
                self.witness.has_seen(libc::SIGCONT);
                self.pass(true);
                send(self.root, libc::SIGCONT);
            }
        }
    }

    /// Lets the root's group have the terminal that ours has, or the other way round.
    fn pass(&self, to_root: bool) {
        let own = Pid::new(getpgrp().as_raw());
        match self.governs {
            true if to_root => pass(own, self.root),
            true => pass(self.root, own),
            false => {}
        }
    }

    /// Lets go of those who watch over the tree.
    fn leave(self) {
        self.pass(false);
        if let (Some(init), Some(rendezvous)) = (self.init, self.rendezvous) {
            init.leave(rendezvous);
        }
        self.witness.dismiss();
    }
}

impl Proxy {
    /// Ends all of a tree that could not be restarted, as far as they are `members`, and this process; somebody has
    /// said why. The terminal is as before then.
    pub(crate) fn give_up(
        self,
        members: impl Iterator<Item = Pid>,
        nursery: Nursery,
        front: Option<&Front>,
    ) -> ! {
        match &self.init {
            Some(init) => send(init.pid(), libc::SIGKILL),
            None => members.chain([self.root]).for_each(|pid| send(pid, libc::SIGKILL)),
        }
        let root = change(Some(self.root), libc::WEXITED);
        // Whoever sees this process end may write to the checkpoint, which they execute: with init all in its namespace
        // have ended.
        if let Some(init) = self.init.filter(|init| init.pid() != self.root) {
            let _ = change(Some(init.pid()), libc::WEXITED);
        }
        nursery.clear();
        self.witness.dismiss();
        front.into_iter().for_each(Front::give_back);
        let Ok(Some(Change::Ended(status))) = root else { end(FAILED.into()) };
        end(if status == 0 { FAILED.into() } else { status })
    }
}

/// Helpers of a restart that may yet fail: they execute the file, and are gone before its end is seen.
pub(crate) struct Begun {
    witness: Pid,
    pub(crate) init: Option<Pid>,
}

impl Begun {
    pub(crate) fn with(witness: &Witness) -> Self {
        Self { witness: witness.pid(), init: None }
    }

    pub(crate) fn all(&self) -> Vec<Pid> {
        self.init.into_iter().chain([self.witness]).collect()
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        for helper in self.all() {
            send(helper, libc::SIGKILL);
            let _ = change(Some(helper), libc::WEXITED);
        }
    }
}

/// Ends as a process of the tree had ended (wait(2)'s status).
pub(crate) fn die(status: i32) -> ! {
    if libc::WIFSIGNALED(status) { die_by(status, false) } else { end(libc::WEXITSTATUS(status)) }
}

/// Lets children be waited for, whatever was inherited; that.
pub(crate) fn expect_children() -> Option<SigAction> {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler runs.
    unsafe { sigaction(Signal::SIGCHLD, &action) }.ok()
}

/// Gives SIGCHLD back what it had.
pub(super) fn tell_of_children(before: Option<SigAction>) {
    if let Some(action) = before {
        // SAFETY: what execve(2) has left is no handler.
        let _ = unsafe { sigaction(Signal::SIGCHLD, &action) };
    }
}

/// Takes the signals that children have sent.
pub(crate) fn forget_children() {
    while take(libc::SIGCHLD) {}
}

/// Ends by a signal, as another did; without a core file in the place of its own. A program that collects them is told
/// of the root's end (`tells`) by its restarter, as by a wrapper, and of nobody's who had ended before.
fn die_by(status: i32, tells: bool) -> ! {
    let signal = libc::WTERMSIG(status);
    match libc::WCOREDUMP(status) {
        true if tells && corefile::are_handed() => {}
        true => corefile::leave_one(),
        false => corefile::leave_none(),
    }
    default(signal);
    unblocked(signal, || {
        send(Pid::own(), signal);
    });
    end(128 + signal)
}

fn send(pid: Pid, signal: i32) {
    // Others than ids mean groups, and everybody (kill(2)).
    if pid > Pid::NONE {
        // SAFETY: sends a signal; real-time ones have no name in the library.
        unsafe { libc::kill(pid.get(), signal) };
    }
}

fn default(signal: i32) {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    if let Ok(signal) = Signal::try_from(signal) {
        // SAFETY: no handler runs.
        let _ = unsafe { sigaction(signal, &action) };
    }
}

fn unblocked(signal: i32, act: impl FnOnce()) {
    let change = |how: i32| {
        let set = signal_set(signal);
        let (set, none): (*const u64, *mut u64) = (&set, std::ptr::null_mut());
        // SAFETY: the kernel reads one word.
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, set, none, 8) };
    };
    change(libc::SIG_UNBLOCK);
    act();
    change(libc::SIG_BLOCK);
}

/// Takes a signal that is pending.
fn take(signal: i32) -> bool {
    await_signal(signal_set(signal), Some(Duration::ZERO)).is_some()
}

/// The signals that are pending.
fn pending() -> u64 {
    let mut set = 0u64;
    let pending: *mut u64 = &mut set;
    // SAFETY: the kernel writes one word.
    unsafe { libc::syscall(libc::SYS_rt_sigpending, pending, 8) };
    set
}

/// What has become of a child, if anything; who has ended is reaped.
fn change_of(child: Pid) -> Option<Change> {
    let options = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED | libc::WNOHANG;
    if let Some(status) = forebear::ended() {
        return Some(match libc::WIFSIGNALED(status) {
            true => Change::Killed(status & 0xff),
            false => Change::Ended(libc::WEXITSTATUS(status)),
        });
    }
    forebear::unless_traced(|| change(Some(child), options).ok().flatten())
}
