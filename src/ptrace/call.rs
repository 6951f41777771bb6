// SPDX-License-Identifier: LGPL-2.1-only
//! System calls issued by a stopped thread, for us.
//!
//! The thread is pointed at a thunk (`payload/src/thunk.rs`) and driven by syscall stops. From the
//! first change of its registers on it can come home without us ([`super::lend`]), so that our death
//! at any moment gives the thread back to its program.

use super::lend::{self, Desk, Lent};
use super::memory::Memory;
use super::raw::{self, State};
use super::regs::Regs;
use super::sequence::leave_sequence;
use super::thread::StoppedThread;
use crate::error::{Because, Error, Kind, Result};
use crate::fault::{Point, reach};
use ckpt_abi::region::SLOT_FRAME;
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
        reach(Point::Noted);
        thread.lent = Lent::Slot(slot);
        let caller = Self::at(thread, desk, slot);
        caller.block_signals()?;
        Ok(caller)
    }

    fn at(thread: &'a mut StoppedThread, desk: &Desk, slot: u64) -> Self {
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
            thread.lent = Lent::Hole;
            let caller = Self { thread, thunk: hole, clone_thunk: 0, frame: None };
            caller.block_signals()?;
            return Ok(caller);
        }
        Ok(Self { thread, thunk: hole, clone_thunk: 0, frame: None })
    }

    /// The registers first: should we die before the mask changes, a signal meets the thread in the thunk, which can
    /// bear that; the other way round the thread would go on with all signals blocked.
    ///
    /// SIGSYS stays as it is: a call that somebody dispatches (prctl(2), PR_SET_SYSCALL_USER_DISPATCH) would reset
    /// its disposition if it were blocked (kernel/signal.c, force_sig_info_to_task).
    fn block_signals(&self) -> Result<()> {
        const SIGSYS: u64 = 1 << (nix::libc::SIGSYS - 1);
        let tid = self.thread.tid;
        let mask = !SIGSYS | self.thread.mask;
        let what = || format!("cannot borrow thread {tid}");
        self.registers(self.thunk, nix::libc::SYS_getpid, &[], 0).set(tid).because(what)?;
        reach(Point::Lending);
        raw::set_mask(tid, mask).because(what)
    }

    /// Issues a system call; its result, negative for an error number.
    ///
    /// A call that could sleep or be interrupted must not be made: it would replace the thread's
    /// restart_block, and with it the rest of a nanosleep(2) that the program was in.
    pub(crate) fn call(&mut self, number: i64, args: &[u64]) -> Result<i64> {
        self.call_at(self.thunk, number, args, 0)
    }

    /// As [`Caller::call`] by the thunk for clone(2), which a hole has not; the child's orders in `orders`.
    pub(crate) fn clone(&mut self, args: &[u64], orders: u64) -> Result<i64> {
        self.call_at(self.clone_thunk, nix::libc::SYS_clone, args, orders)
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

    /// Detaches from the thread at the beginning of a system call; when that is done, the thunk
    /// gives the thread back to its program.
    pub(crate) fn leave_in_call(self, number: i64, args: &[u64]) -> Result<()> {
        let tid = self.thread.tid;
        let regs = self.registers(self.thunk, number, args, 0);
        regs.set(tid)
            .and_then(|()| raw::detach(tid))
            .because(|| format!("cannot let thread {tid} go"))
    }

    fn call_at(&mut self, thunk: u64, number: i64, args: &[u64], r15: u64) -> Result<i64> {
        let regs = self.registers(thunk, number, args, r15);
        let tid = self.thread.tid;
        self.drive(regs).because(|| format!("thread {tid} cannot make system call {number} for us"))
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
        let tid = self.thread.tid;
        regs.set(tid)?;
        reach(Point::Working);
        // The first stop is at the entry of the call, the second at its exit. A thread that was
        // stopped at its execve passes the exit of that first.
        let mut entered = false;
        loop {
            raw::syscall(tid, 0)?;
            match raw::wait(tid, true)? {
                State::Ended => return Err(Errno::ESRCH),
                State::Stopped { signal, event: 0 } if signal & 0x80 != 0 => {
                    let now = Regs::get(tid)?;
                    if now.rip == regs.rip {
                        regs.set(tid)?;
                        continue;
                    }
                    if entered {
                        return Ok(now.rax.cast_signed());
                    }
                    entered = true;
                    reach(Point::Entered);
                }
                // A stop signal for the whole process, or an interrupt that came late.
                State::Stopped { event: raw::EVENT_STOP, .. } => {}
                State::Stopped { signal, .. } => {
                    return Err(match signal {
                        nix::libc::SIGKILL => Errno::ESRCH,
                        // Dispatched (see block_signals); it goes no further.
                        nix::libc::SIGSYS => Errno::ENOSYS,
                        _ => Errno::EFAULT,
                    });
                }
                State::Running => {}
            }
        }
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
pub(crate) fn refuse_dispatch(tid: i32) -> Result<()> {
    if raw::dispatches_calls(tid) {
        let text = format!(
            "thread {tid} dispatches its system calls (PR_SET_SYSCALL_USER_DISPATCH, prctl(2))"
        );
        return Err(Error::new(text).of(Kind::Obstacles).hint("such a program cannot be saved"));
    }
    Ok(())
}
