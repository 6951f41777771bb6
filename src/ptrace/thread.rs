// SPDX-License-Identifier: LGPL-2.1-only
//! A stopped thread, and how it is given back.

use super::freeze::PATIENCE;
use super::interrupted;
use super::lend::{self, Lent};
use super::memory::Memory;
use super::raw::{self, State};
use super::regs::{self, Regs};
use super::rest;
use super::sandbox::Sandbox;
use super::shield::Working;
use super::sockets;
use super::waits::{self, Interrupted};
use crate::error::{Because, Result};
use crate::fault::{Point, reach};
use crate::proc::{Pid, Tid};
use crate::proc::{Process, status::Status};
use ckpt_abi::api::{API, Api};
use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::mem::offset_of;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How far a thread that is lent is on its way to a signal stop, the only place from which the kernel restarts system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Homing {
    /// It works for us.
    No,
    /// It is to stop there ([`StoppedThread::start_home`]).
    Begun,
    /// It stands there: the end of a list of calls is one.
    Done,
}

/// A stopped thread.
pub(crate) struct StoppedThread {
    /// Thread id.
    pub tid: Tid,
    /// Registers as the stop found them.
    pub regs: Regs,
    /// Signal mask, the thread's own also inside sigsuspend(2).
    pub mask: u64,
    /// Signals blocked by the call in which the stop has found it, if that has a mask of its own ([`super::suspended`]).
    pub(super) blocked_by_call: u64,
    /// What the kernel said of it when all stood still; None of one that was adopted.
    pub(super) status: Option<Rc<Status>>,
    /// Where that is read.
    pub(super) opened: Option<File>,
    /// A signal that is nothing to the process, for the end of a list of calls; 0: there is none ([`Self::find_bell`]).
    bell: i32,
    /// Stop signal of a process that was already stopped (SIGSTOP and its kin), or 0.
    pub stopped_by: i32,
    /// Stop signal that has come to the process since, and that a way which the thread went for us has taken, or 0.
    pub halted_by: i32,
    /// What it has locked itself in, which is suspended ([`super::sandbox`]).
    pub(crate) sandbox: Sandbox,
    /// How the thread has left its first stop to work for us.
    pub(super) lent: Lent,
    /// As long as it is lent, if it could not bear our death.
    pub(super) working: Option<Working>,
    /// Whether it is at a signal stop or on its way to one, where it is lent.
    pub(super) homing: Homing,
    /// Its extended state, as it was when it was lent.
    pub(super) xstate: Option<Vec<u8>>,
    /// Since when it waits, if it does (CLOCK_MONOTONIC, nanoseconds); None when that is not known.
    pub(super) since: Option<u64>,
    /// The wait that the stop has interrupted, and the slot for its notes.
    pub wait: Option<(Interrupted, u64)>,
}

impl StoppedThread {
    /// What the kernel says of it.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn look(&self, pid: Pid) -> Result<Rc<Status>> {
        match &self.status {
            Some(status) => Ok(Rc::clone(status)),
            None => Process::glimpse(pid).and_then(|it| it.status(self.tid)).map(Rc::new),
        }
    }

    /// Looks for a signal that this thread may get at any moment without a consequence: nobody catches it, it ends and
    /// stops nobody, and the thread does not block it, so it waits for no other. Only while all threads stand still does
    /// that stay so.
    pub(super) fn find_bell(&mut self) {
        let Some(status) = &self.status else { return };
        let taken = self.mask | status.blocked | status.caught | status.waiting();
        let free = |signal: &i32| taken & raw::signal_set(*signal) == 0;
        self.bell = [libc::SIGURG, libc::SIGWINCH].into_iter().find(free).unwrap_or(0);
    }

    /// Takes over what an earlier stop has found, if this one has interrupted what the kernel went on with after that.
    pub(super) fn recall(&mut self, earlier: Option<&(Regs, Option<u64>)>) {
        let Some((regs, since)) = earlier else { return };
        let restarted = libc::SYS_restart_syscall.cast_unsigned();
        if self.regs.orig_rax == restarted && self.regs == (Regs { orig_rax: restarted, ..*regs }) {
            (self.regs, self.since) = (*regs, *since);
        }
    }

    /// The signal for the end of a list of calls; 0: there is none, also where the thread has got another mask since.
    pub(super) fn bell(&self) -> i32 {
        let blocked = self.bell != 0 && self.mask & raw::signal_set(self.bell) != 0;
        if blocked { 0 } else { self.bell }
    }

    /// [`Self::bell`] as a set of signals.
    pub(super) fn bell_set(&self) -> u64 {
        match self.bell() {
            0 => 0,
            bell => raw::signal_set(bell),
        }
    }

    /// The signals that it blocks while it works for us.
    ///
    /// SIGSYS stays as it is: a call that somebody dispatches (prctl(2), PR_SET_SYSCALL_USER_DISPATCH) would reset
    /// its disposition if it were blocked (kernel/signal.c, force_sig_info_to_task).
    pub(super) fn mask_at_work(&self) -> u64 {
        !(raw::signal_set(libc::SIGSYS) | self.bell_set()) | self.mask
    }

    pub(super) fn read(tid: Tid, stopped_by: i32) -> std::result::Result<Self, Errno> {
        let regs = Regs::get(tid)?;
        // At once: should we die, the kernel sees to a call that has answered EINTR to the stop.
        let undisturbed = interrupted::undisturbed(&regs);
        if undisturbed != regs {
            undisturbed.set(tid)?;
        }
        Ok(Self {
            tid,
            regs,
            mask: raw::get_mask(tid)?,
            blocked_by_call: 0,
            status: None,
            opened: None,
            bell: 0,
            stopped_by,
            halted_by: 0,
            sandbox: Sandbox::None,
            lent: Lent::No,
            working: None,
            homing: Homing::No,
            xstate: None,
            since: None,
            wait: None,
        })
    }

    /// Whether the stop has interrupted a call on a socket with a time-out: then the thread is sent to wait
    /// for the rest of that.
    pub(super) fn waits_on_a_socket(
        &mut self,
        pid: Pid,
        memory: &Memory,
        region: u64,
    ) -> Result<bool> {
        let may = self.may_go_on_elsewhere() && interrupted::answered_eintr(&self.regs);
        let Some(since) = self.since.filter(|_| may) else {
            return Ok(false);
        };
        let entry = memory.get(region + API + offset_of!(Api, socket_wait) as u64)?;
        let Some(regs) = sockets::wait_on(pid, &self.regs, since, memory, entry) else {
            return Ok(false);
        };
        self.take_back()
            .and_then(|()| regs.set(self.tid))
            .because(|| format!("cannot redirect thread {}", self.tid))?;
        self.regs = regs;
        Ok(true)
    }

    /// Sends a thread whose call the stop has cut short to make the rest of it.
    pub(super) fn makes_the_rest(&mut self, pid: Pid, memory: &Memory, region: u64) -> Result<()> {
        if !rest::may_be_cut(&self.regs) || !self.may_go_on_elsewhere() {
            return Ok(());
        }
        let entry = memory.get(region + API + offset_of!(Api, rest) as u64)?;
        let Some(regs) = rest::of(pid, &self.regs, self.since, memory, entry) else {
            return Ok(());
        };
        self.take_back()
            .and_then(|()| regs.set(self.tid))
            .because(|| format!("cannot redirect thread {}", self.tid))?;
        self.regs = regs;
        Ok(())
    }

    /// Makes the thread go on at `entry` with all signals blocked, on the stack below `stack`, as a
    /// signal handler begins.
    pub(crate) fn enter(&mut self, entry: u64, stack: u64) -> Result<()> {
        /// Trap, direction, resume and nested-task flags (x64_setup_rt_frame clears the first three).
        const FLAGS: u64 = 1 << 8 | 1 << 10 | 1 << 16 | 1 << 14;
        let flags = self.regs.eflags & !FLAGS;
        let regs =
            Regs { rip: entry, rsp: stack, orig_rax: u64::MAX, rax: 0, eflags: flags, ..self.regs };
        // The registers first: should we die in between, no mask is left without its end.
        regs.set(self.tid)
            .and_then(|()| raw::set_mask(self.tid, u64::MAX))
            .because(|| format!("cannot redirect thread {}", self.tid))?;
        (self.regs, self.mask, self.wait) = (regs, u64::MAX, None);
        Ok(())
    }

    /// Lets the thread run on, an instruction at a time, until it is outside of `code`, whose
    /// instructions never wait. A thread in a system call or in a stop of its own stays.
    pub(crate) fn leave(&mut self, code: std::ops::Range<u64>) -> std::result::Result<(), Errno> {
        const STEPS: usize = 100_000;
        self.run_while(|regs| code.contains(&regs.rip), STEPS)
    }

    /// Lets the thread run on, an instruction at a time and at most `steps`, while `goes_on` says so of its
    /// registers, which it does not where the next instruction could wait. A thread in a system call or in a
    /// stop of its own stays.
    pub(crate) fn run_while(
        &mut self,
        goes_on: impl Fn(&Regs) -> bool,
        steps: usize,
    ) -> std::result::Result<(), Errno> {
        let inside = |regs: &Regs| interrupted::call_in_progress(regs).is_none() && goes_on(regs);
        if !inside(&self.regs) || self.stopped_by != 0 {
            return Ok(());
        }
        // What steps must be the thread's own registers, and its own mask is what is read after.
        self.take_back()?;
        // A step ends in SIGTRAP, and where that is blocked the kernel opens it for good and forgets its handler
        // (kernel/signal.c, force_sig_info_to_task).
        let blocked = self.mask & raw::signal_set(libc::SIGTRAP);
        if blocked != 0 {
            raw::set_mask(self.tid, self.mask & !blocked)?;
        }
        let mut signal = 0;
        for _ in 0..steps {
            if !inside(&self.regs) {
                break;
            }
            raw::step(self.tid, signal)?;
            signal = match raw::wait(self.tid, true)? {
                State::Stopped { signal: libc::SIGTRAP, .. } => 0,
                State::Stopped { signal, event: 0 } => signal & 0x7f,
                State::Stopped { signal, event: raw::EVENT_STOP } => {
                    self.meet_stop(signal);
                    0
                }
                State::Stopped { .. } | State::Running => 0,
                State::Ended => return Err(Errno::ESRCH),
            };
            self.regs = Regs::get(self.tid)?;
        }
        if signal != 0 {
            // A signal that came on the way has to be delivered: the thread enters its handler.
            raw::step(self.tid, signal)?;
            if let State::Stopped { signal, event: raw::EVENT_STOP } = raw::wait(self.tid, true)? {
                self.meet_stop(signal);
            }
            self.regs = Regs::get(self.tid)?;
        }
        self.mask = raw::get_mask(self.tid)? | blocked;
        if blocked != 0 {
            raw::set_mask(self.tid, self.mask)?;
        }
        Ok(())
    }

    /// Its extended state.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn xstate(&self) -> std::result::Result<Vec<u8>, Errno> {
        self.xstate.clone().map_or_else(|| regs::xstate(self.tid), Ok)
    }

    /// Notes the signal of a stop of the thread: SIGTRAP is ours, any other has stopped the whole process (ptrace(2)).
    pub(super) fn meet_stop(&mut self, signal: i32) {
        if signal != libc::SIGTRAP {
            self.halted_by = signal;
        }
    }

    /// Begins what [`Self::take_back`] ends, so that several threads do it abreast. Nothing else may be done with it in
    /// between. What fails here fails there.
    pub(crate) fn start_home(&mut self) {
        if self.lent != Lent::No
            && self.homing == Homing::No
            && leave_for_signal_stop(self.tid).is_ok()
        {
            self.homing = Homing::Begun;
        }
    }

    /// Gives a thread that has worked for us its mask and registers back; it stays stopped.
    pub(crate) fn take_back(&mut self) -> std::result::Result<(), Errno> {
        if self.lent == Lent::No {
            return Ok(());
        }
        let homing = std::mem::replace(&mut self.homing, Homing::No);
        if homing == Homing::No {
            leave_for_signal_stop(self.tid)?;
        }
        if homing != Homing::Done {
            let signal = arrive_at_signal_stop(self.tid)?;
            self.meet_stop(signal);
        }
        self.xstate = None;
        // The mask first: should we die in between, the thunk brings the thread home.
        raw::set_mask(self.tid, self.mask)?;
        reach(Point::Returning);
        interrupted::undisturbed(&self.regs).set(self.tid)?;
        reach(Point::Returned);
        if let Lent::Slot(slot) = self.lent {
            lend::give_back(self.tid, slot)?;
        }
        (self.lent, self.working) = (Lent::No, None);
        Ok(())
    }

    /// Reads again a thread that is not lent and stands elsewhere than it did.
    pub(super) fn read_again(&mut self) -> std::result::Result<(), Errno> {
        (self.regs, self.mask) = (Regs::get(self.tid)?, raw::get_mask(self.tid)?);
        (self.status, self.since, self.wait) = (None, None, None);
        Ok(())
    }

    /// Whether it may have locks for the kernel to hand on when it ends (struct robust_list_head in
    /// include/uapi/linux/futex.h: the first of them, or the head itself, and one that it is just about to take or leave).
    pub(super) fn may_leave_locks(&self, memory: &Memory) -> bool {
        let is_empty = |head: u64| {
            let found = memory.get::<[u64; 3]>(head);
            head == 0 || found.is_ok_and(|[first, _, pending]| first == head && pending == 0)
        };
        !raw::robust_list(self.tid).is_ok_and(is_empty)
    }

    /// Errors mean that the thread is gone, which is no matter here.
    pub(super) fn release(mut self) {
        if self.take_back().is_err() {
            return;
        }
        let mut regs = interrupted::undisturbed(&self.regs);
        if interrupted::answered_eintr(&self.regs) {
            if let Some((wait, slot)) = &self.wait
                && let Some((place, _)) = wait.timeout
            {
                waits::shorten(&mut regs, place, wait.left(), *slot);
            } else if self.wait.is_none() {
                waits::shorten_in_place(&mut regs, self.since);
            }
        }
        if regs != self.regs {
            let _ = regs.set(self.tid);
        }
        let _ = raw::detach(self.tid);
        reach(Point::Released);
    }

    /// Lets go of a thread that has stopped and of which nothing else is known, delivering `signal` (0: none).
    pub(super) fn dismiss(tid: Tid, signal: i32) {
        if let Ok(regs) = Regs::get(tid) {
            let undisturbed = interrupted::undisturbed(&regs);
            if undisturbed != regs {
                let _ = undisturbed.set(tid);
            }
        }
        let _ = raw::detach_with(tid, signal);
    }
}

/// Brings a thread from a syscall stop to a signal stop, the only place from which the kernel
/// restarts interrupted system calls; it runs no user code on the way.
pub(super) fn back_to_signal_stop(tid: Tid) -> std::result::Result<(), Errno> {
    leave_for_signal_stop(tid)?;
    arrive_at_signal_stop(tid).map(drop)
}

fn leave_for_signal_stop(tid: Tid) -> std::result::Result<(), Errno> {
    raw::interrupt(tid)?;
    raw::cont(tid, 0)
}

fn arrive_at_signal_stop(tid: Tid) -> std::result::Result<i32, Errno> {
    wait_event_stop(tid, Instant::now() + PATIENCE)?.ok_or(Errno::ESRCH)
}

/// Waits for PTRACE_EVENT_STOP; its signal, or None when the thread ended.
pub(super) fn wait_event_stop(
    tid: Tid,
    deadline: Instant,
) -> std::result::Result<Option<i32>, Errno> {
    let mut nap = Duration::from_micros(20);
    // Mostly it stops within microseconds, and the shortest sleep takes a hundred.
    let mut turns = 64;
    loop {
        match raw::wait(tid, false)? {
            State::Ended => return Ok(None),
            State::Stopped { signal, event: raw::EVENT_STOP } => return Ok(Some(signal)),
            State::Stopped { signal, .. } if signal & 0x80 != 0 => raw::cont(tid, 0)?,
            State::Stopped { signal, event: 0 } => raw::cont(tid, signal)?,
            State::Stopped { .. } => raw::cont(tid, 0)?,
            State::Running if turns > 0 => {
                turns -= 1;
                std::thread::yield_now();
            }
            State::Running if Instant::now() > deadline => return Err(Errno::ETIMEDOUT),
            State::Running => {
                std::thread::sleep(nap);
                nap = (nap * 2).min(Duration::from_millis(5));
            }
        }
    }
}
