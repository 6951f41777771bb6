// SPDX-License-Identifier: LGPL-2.1-only
//! System calls issued by a stopped thread, for us.
//!
//! The thread is pointed at a thunk (`payload/src/thunk.rs`) and driven by syscall stops. From the
//! first change of its registers on it can come home without us ([`super::lend`]), so that our death
//! at any moment gives the thread back to its program.

use super::dispatch;
use super::lend::{self, Desk, Lent};
use super::list::{List, Replies};
use super::memory::Memory;
use super::raw::{self, State};
use super::regs::Regs;
use super::sequence::leave_sequence;
use super::thread::{Homing, StoppedThread};
use crate::error::{Because, Error, Kind, Result};
use crate::fault::{Point, reach};
use crate::proc::Tid;
use ckpt_abi::region::{LIST_THUNK, SLOT_FRAME, SLOT_LIST};
use nix::errno::Errno;
use zerocopy::IntoBytes;

/// A stopped thread that works for us.
pub(crate) struct Caller<'a> {
    thread: &'a mut StoppedThread,
    thunk: u64,
    clone_thunk: u64,
    /// Where its frame is, for the thunks.
    frame: Option<u64>,
}

impl<'a> Caller<'a> {
    /// Borrows a stopped thread of a process with a payload.
    pub(crate) fn new(thread: &'a mut StoppedThread, memory: &Memory, desk: &Desk) -> Result<Self> {
        if let Lent::Slot(slot) = thread.lent {
            return Ok(Self::at(thread, desk, slot));
        }
        prepare(thread, memory)?;
        let slot = lend::lend(thread, memory, desk)?;
        thread.begin_work();
        reach(Point::Noted);
        thread.lent = Lent::Slot(slot);
        let caller = Self::at(thread, desk, slot);
        caller.block_signals()?;
        Ok(caller)
    }

    /// Borrows one of which its slot tells, or is about to ([`Caller::begin_noted`]).
    pub(super) fn at(thread: &'a mut StoppedThread, desk: &Desk, slot: u64) -> Self {
        let (thunk, clone_thunk) = (desk.thunk, desk.clone_thunk);
        Self { thread, thunk, clone_thunk, frame: Some(slot + SLOT_FRAME) }
    }

    /// Borrows a stopped thread of a process without a payload; a hole was made for it at `hole`.
    pub(crate) fn in_hole(
        thread: &'a mut StoppedThread,
        memory: &Memory,
        hole: u64,
    ) -> Result<Self> {
        if thread.lent == Lent::No {
            prepare(thread, memory)?;
            let area = lend::hole_area(thread);
            memory.write_forced(thread.tid, lend::hole_area_at(hole), area.as_bytes())?;
            thread.begin_work();
            thread.lent = Lent::Hole;
            let caller = Self { thread, thunk: hole, clone_thunk: 0, frame: None };
            caller.block_signals()?;
            return Ok(caller);
        }
        Ok(Self { thread, thunk: hole, clone_thunk: 0, frame: None })
    }

    /// The registers first: should we die before the mask changes, a signal meets the thread in the thunk, which can
    /// bear that; the other way round the thread would go on with all signals blocked.
    fn block_signals(&self) -> Result<()> {
        let tid = self.thread.tid;
        let what = || format!("cannot borrow thread {tid}");
        self.registers(self.thunk, nix::libc::SYS_getpid, &[], 0).set(tid).because(what)?;
        reach(Point::Lending);
        raw::set_mask(tid, self.thread.mask_at_work()).because(what)
    }

    /// Has a thread with a signal for the end make the list in its slot, where all is written down but that the thread works
    /// for us. [`Caller::await_bell`] has to follow, and the thread to be taken back, whatever fails.
    pub(super) fn begin_noted(&mut self, slot: u64) -> std::result::Result<(), Errno> {
        let (tid, bell) = (self.thread.tid, self.thread.bell());
        lend::say_lent(tid, slot)?;
        reach(Point::Noted);
        self.thread.begin_work();
        self.thread.lent = Lent::Slot(slot);
        let list = slot + SLOT_LIST;
        let regs = self.registers(self.thunk + LIST_THUNK, nix::libc::SYS_getpid, &[], list);
        Regs { r13: bell.unsigned_abs().into(), ..regs }.set(tid)?;
        reach(Point::Lending);
        raw::set_mask(tid, self.thread.mask_at_work())?;
        reach(Point::Working);
        raw::cont(tid, 0)
    }

    /// Issues a system call; its result, negative for an error number.
    ///
    /// A call that could sleep or be interrupted must not be made: it would replace the thread's
    /// restart_block, and with it the rest of a nanosleep(2) that the program was in.
    pub(crate) fn call(&mut self, number: i64, args: &[u64]) -> Result<i64> {
        self.drive(self.registers(self.thunk, number, args, 0)).because(|| self.failed(number))
    }

    /// Begins to make clone(2) by its thunk, which a hole has not; the child's orders in `orders`. With CLONE_VFORK that
    /// may take a while, in which other threads can be driven. [`Caller::end_clone`] has to follow, whatever else fails.
    pub(crate) fn begin_clone(&mut self, args: &[u64], orders: u64) -> Result<()> {
        let regs = self.registers(self.clone_thunk, nix::libc::SYS_clone, args, orders);
        let begun = match self.thread.bell() {
            0 => self.enter(regs),
            bell => self.ring_at_the_end(regs, bell),
        };
        begun.because(|| self.failed(nix::libc::SYS_clone))
    }

    /// Waits until the thread has made clone(2), and has waited for the child, which has no exit signal.
    pub(crate) fn end_clone(&mut self) -> Result<()> {
        let what = |caller: &Self| caller.failed(nix::libc::SYS_clone);
        if self.thread.bell() != 0 {
            return self.await_bell().because(|| what(self));
        }
        let child = self.leave().because(|| what(self))?;
        if child > 0 {
            let wait = [child.cast_unsigned(), 0, nix::libc::__WCLONE as u32 as u64, 0];
            self.call(nix::libc::SYS_wait4, &wait)?;
        }
        Ok(())
    }

    fn failed(&self, number: i64) -> String {
        format!("thread {} cannot make system call {number} for us", self.thread.tid)
    }

    /// As [`Caller::call`], with an error number turned into an error about `what`.
    pub(crate) fn expect(&mut self, number: i64, args: &[u64], what: &str) -> Result<u64> {
        let result = self.call(number, args)?;
        if !(-4095..0).contains(&result) {
            return Ok(result.cast_unsigned());
        }
        let errno = Errno::from_raw(-result as i32);
        Err(Error::new(format!("{what} in thread {}: {}", self.thread.tid, errno.desc())))
    }

    /// Issues the calls of a list, in one go where the thread has a signal for its end ([`StoppedThread::bell`]).
    /// Of each what is said of [`Caller::call`] holds.
    pub(crate) fn list(&mut self, memory: &Memory, list: &List) -> Result<Replies> {
        let mut answers = Replies::default();
        let Some(at) = self.frame.map(|frame| frame - SLOT_FRAME + SLOT_LIST) else {
            return Err(Error::new("a thread in a hole makes no lists of calls"));
        };
        for piece in list.pieces() {
            let (mut bytes, end) = piece.bytes(at);
            memory.write(at, &bytes)?;
            let regs = self.registers(self.thunk + LIST_THUNK, nix::libc::SYS_getpid, &[], at);
            self.drive_list(regs, end).because(|| self.unable())?;
            memory.read(at, &mut bytes)?;
            answers.take(&piece, &bytes);
        }
        Ok(answers)
    }

    /// Begins to issue the calls of a list, so that several threads do so abreast; false where it has to be done at once
    /// ([`Caller::list`]). [`Caller::end_list`] has to follow, whatever else fails.
    pub(crate) fn begin_list(&mut self, memory: &Memory, list: &List) -> Result<bool> {
        let pieces = list.pieces();
        let ([piece], Some(frame), bell @ 1..) = (&pieces[..], self.frame, self.thread.bell())
        else {
            return Ok(false);
        };
        let at = frame - SLOT_FRAME + SLOT_LIST;
        memory.write(at, &piece.bytes(at).0)?;
        let regs = self.registers(self.thunk + LIST_THUNK, nix::libc::SYS_getpid, &[], at);
        self.ring_at_the_end(regs, bell).because(|| self.unable())?;
        Ok(true)
    }

    /// What came of the calls of a list that was begun.
    pub(crate) fn end_list(&mut self, memory: &Memory, list: &List) -> Result<Replies> {
        let mut answers = Replies::default();
        self.await_bell().because(|| self.unable())?;
        if let ([piece], Some(frame)) = (&list.pieces()[..], self.frame) {
            let at = frame - SLOT_FRAME + SLOT_LIST;
            let (mut bytes, _) = piece.bytes(at);
            memory.read(at, &mut bytes)?;
            answers.take(piece, &bytes);
        }
        Ok(answers)
    }

    fn unable(&self) -> String {
        format!("thread {} cannot make system calls for us", self.thread.tid)
    }

    /// The end is where r15 points to `end`: all calls are made, and their results written.
    fn drive_list(&mut self, regs: Regs, end: u64) -> std::result::Result<(), Errno> {
        let (tid, bell) = (self.thread.tid, self.thread.bell());
        if bell != 0 {
            self.ring_at_the_end(regs, bell)?;
            return self.await_bell();
        }
        self.thread.homing = Homing::No;
        regs.set(tid)?;
        reach(Point::Working);
        raw::syscall(tid, 0)?;
        while self.next_stop()?.r15 != end {
            reach(Point::Entered);
            raw::syscall(tid, 0)?;
        }
        Ok(())
    }

    /// Lets the thread run, with a signal for its end.
    fn ring_at_the_end(&mut self, regs: Regs, bell: i32) -> std::result::Result<(), Errno> {
        let tid = self.thread.tid;
        self.thread.homing = Homing::No;
        Regs { r13: bell.unsigned_abs().into(), ..regs }.set(tid)?;
        reach(Point::Working);
        raw::cont(tid, 0)
    }

    /// Waits for the thread's own signal. The same from elsewhere comes in other calls, and is nothing to the program.
    pub(super) fn await_bell(&mut self) -> std::result::Result<(), Errno> {
        loop {
            self.await_any_bell()?;
            if Regs::get(self.thread.tid)?.orig_rax == ckpt_abi::nr::TGKILL {
                return Ok(());
            }
            self.go_on()?;
        }
    }

    /// Lets a thread go on that has met a signal from elsewhere.
    pub(super) fn go_on(&mut self) -> std::result::Result<(), Errno> {
        self.thread.homing = Homing::No;
        raw::cont(self.thread.tid, 0)
    }

    /// Waits for the thread's signal, from wherever it comes.
    pub(super) fn await_any_bell(&mut self) -> std::result::Result<(), Errno> {
        let (tid, bell) = (self.thread.tid, self.thread.bell());
        loop {
            match raw::wait(tid, true)? {
                State::Stopped { signal, event: 0 } if signal == bell => {
                    reach(Point::Entered);
                    // Where a signal is delivered, the kernel also restarts calls.
                    self.thread.homing = Homing::Done;
                    return Ok(());
                }
                State::Stopped { event: raw::EVENT_STOP, signal } => {
                    self.thread.meet_stop(signal);
                    raw::cont(tid, 0)?;
                }
                State::Stopped { signal: nix::libc::SIGSTOP, event: 0 } => {
                    raw::cont(tid, nix::libc::SIGSTOP)?;
                }
                State::Running => {}
                State::Ended => return Err(Errno::ESRCH),
                State::Stopped { signal, .. } => return Err(disturbed(signal)),
            }
        }
    }

    /// Detaches from the thread at the beginning of a system call; when that is done, the thunk
    /// gives the thread back to its program.
    pub(crate) fn leave_in_call(self, number: i64, args: &[u64]) -> Result<()> {
        let tid = self.thread.tid;
        let regs = self.registers(self.thunk, number, args, 0);
        regs.set(tid)
            .and_then(|()| raw::detach(tid))
            .because(|| format!("cannot let thread {tid} go"))
    }

    fn registers(&self, thunk: u64, number: i64, args: &[u64], r15: u64) -> Regs {
        let arg = |i: usize| args.get(i).copied().unwrap_or(0);
        let own = &self.thread.regs;
        let (r14, r15) = self.frame.map_or((own.r14, own.r15), |frame| (frame, r15));
        Regs {
            rip: thunk,
            rax: number.cast_unsigned(),
            orig_rax: u64::MAX,
            rdi: arg(0),
            rsi: arg(1),
            rdx: arg(2),
            r10: arg(3),
            r8: arg(4),
            r9: arg(5),
            r14,
            r15,
            ..*own
        }
    }

    fn drive(&mut self, regs: Regs) -> std::result::Result<i64, Errno> {
        self.enter(regs)?;
        self.leave()
    }

    /// Brings the thread to the entry of a call and lets it make that.
    fn enter(&mut self, regs: Regs) -> std::result::Result<(), Errno> {
        let tid = self.thread.tid;
        self.thread.homing = Homing::No;
        regs.set(tid)?;
        reach(Point::Working);
        raw::syscall(tid, 0)?;
        // A thread that was stopped at its execve passes the exit of that first.
        while self.next_stop()?.rip == regs.rip {
            regs.set(tid)?;
            raw::syscall(tid, 0)?;
        }
        reach(Point::Entered);
        raw::syscall(tid, 0)
    }

    /// The result of the call that a thread has entered, when it comes out of it.
    fn leave(&mut self) -> std::result::Result<i64, Errno> {
        Ok(self.next_stop()?.rax.cast_signed())
    }

    /// The registers at the next entry or exit of a call, of a thread that runs.
    fn next_stop(&mut self) -> std::result::Result<Regs, Errno> {
        let tid = self.thread.tid;
        loop {
            match raw::wait(tid, true)? {
                State::Ended => return Err(Errno::ESRCH),
                State::Stopped { signal, event: 0 } if signal & 0x80 != 0 => return Regs::get(tid),
                // A stop signal for the whole process, an interrupt that came late, or what is nothing to the program.
                State::Stopped { event: raw::EVENT_STOP, signal } => {
                    self.thread.meet_stop(signal);
                    raw::syscall(tid, 0)?;
                }
                // Nobody can block it. The process is stopped by it, unless it is already; the thread goes on for us.
                State::Stopped { signal: signal @ nix::libc::SIGSTOP, event: 0 } => {
                    raw::syscall(tid, signal)?;
                }
                State::Stopped { signal, event: 0 } if signal == self.thread.bell() => {
                    raw::syscall(tid, 0)?;
                }
                State::Stopped { signal, .. } => return Err(disturbed(signal)),
                State::Running => {}
            }
        }
    }
}

/// What a signal means that stops a thread which blocks all others.
fn disturbed(signal: i32) -> Errno {
    match signal {
        nix::libc::SIGKILL => Errno::ESRCH,
        // Dispatched (see block_signals); it goes no further.
        nix::libc::SIGSYS => Errno::ENOSYS,
        _ => Errno::EFAULT,
    }
}

/// Sends a thread that is inside a restartable sequence to its abort handler, for the kernel forgets the sequence.
fn prepare(thread: &mut StoppedThread, memory: &Memory) -> Result<()> {
    refuse_dispatch(thread.tid)?;
    if let Ok(rseq) = raw::rseq_configuration(thread.tid)
        && rseq.pointer != 0
    {
        leave_sequence(memory, rseq.pointer, &mut thread.regs);
    }
    Ok(())
}

/// Refuses a thread whose system calls somebody dispatches: the program's SIGSYS handler would get ours.
pub(crate) fn refuse_dispatch(tid: Tid) -> Result<()> {
    if dispatch::is_on(tid) {
        let text = format!(
            "thread {tid} dispatches its system calls (PR_SET_SYSCALL_USER_DISPATCH, prctl(2))"
        );
        return Err(Error::new(text).of(Kind::Obstacles).hint("such a program cannot be saved"));
    }
    Ok(())
}
