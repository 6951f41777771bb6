//! System calls issued by a stopped thread, for us.
//!
//! The thread is pointed at a thunk (`payload/src/thunk.rs`) and driven by syscall stops. From the
//! first change of its registers on, the thunk's area holds what they were, so that our death at
//! any moment gives the thread back to its program.

use super::interrupted;
use super::memory::Memory;
use super::raw::{self, State};
use super::regs::Regs;
use super::sequence::leave_sequence;
use super::thread::Thread;
use crate::error::{Because, Error, Result};
use ckpt_abi::region::{THUNK_AREA, ThunkArea};
use nix::errno::Errno;
use zerocopy::IntoBytes;

/// A stopped thread that works for us.
pub struct Caller<'a> {
    thread: &'a mut Thread,
    thunk: u64,
}

impl<'a> Caller<'a> {
    /// Borrows a stopped thread; `thunk` is the address of a thunk in its process.
    pub fn new(thread: &'a mut Thread, memory: &Memory, thunk: u64) -> Result<Self> {
        if !thread.lent
            && let Ok(rseq) = raw::rseq_configuration(thread.tid)
            && rseq.pointer != 0
        {
            leave_sequence(memory, rseq.pointer, &mut thread.regs);
        }
        let area = thunk_area(&interrupted::rewound(&thread.regs), thread.mask);
        memory.write_forced(thread.tid, thunk + THUNK_AREA, area.as_bytes())?;
        thread.lent = true;
        let caller = Self { thread, thunk };
        // Into the thunk before the mask changes: should we die in between, a getpid(2) and the
        // epilogue bring the mask back.
        caller.block_signals().because(|| "cannot block the signals of a thread")?;
        Ok(caller)
    }

    fn block_signals(&self) -> std::result::Result<(), Errno> {
        self.registers(self.thunk, nix::libc::SYS_getpid, &[], 0).set(self.thread.tid)?;
        raw::set_mask(self.thread.tid, u64::MAX)
    }

    /// Issues a system call; its result, negative for an error number.
    ///
    /// A call that could sleep or be interrupted must not be made: it would replace the thread's
    /// restart_block, and with it the rest of a nanosleep(2) that the program was in.
    pub fn call(&mut self, number: i64, args: &[u64]) -> Result<i64> {
        self.call_at(self.thunk, number, args, 0)
    }

    /// As [`Caller::call`] by the thunk for clone(2) at `thunk`; the child's orders in `orders`.
    pub fn clone(&mut self, thunk: u64, args: &[u64], orders: u64) -> Result<i64> {
        self.call_at(thunk, nix::libc::SYS_clone, args, orders)
    }

    /// As [`Caller::call`], with an error number turned into an error about `what`.
    pub fn expect(&mut self, number: i64, args: &[u64], what: &str) -> Result<u64> {
        let result = self.call(number, args)?;
        if !(-4095..0).contains(&result) {
            return Ok(result.cast_unsigned());
        }
        let errno = Errno::from_raw(-result as i32);
        Err(Error::new(format!("{what} in thread {}: {}", self.thread.tid, errno.desc())))
    }

    /// Detaches from the thread at the beginning of a system call; when that is done, the thunk
    /// gives the thread back to its program.
    pub fn leave_in_call(self, number: i64, args: &[u64]) -> Result<()> {
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
            r15,
            ..self.thread.regs
        }
    }

    fn drive(&mut self, regs: Regs) -> std::result::Result<i64, Errno> {
        let tid = self.thread.tid;
        regs.set(tid)?;
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
                }
                // A stop signal for the whole process, or an interrupt that came late.
                State::Stopped { event: raw::EVENT_STOP, .. } => {}
                State::Stopped { signal, .. } => {
                    return Err(if signal == 9 { Errno::ESRCH } else { Errno::EFAULT });
                }
                State::Running => {}
            }
        }
    }
}

fn thunk_area(regs: &Regs, mask: u64) -> ThunkArea {
    ThunkArea {
        rflags: regs.eflags,
        rsp: regs.rsp,
        rbx: regs.rbx,
        rbp: regs.rbp,
        r8: regs.r8,
        r9: regs.r9,
        r12: regs.r12,
        r13: regs.r13,
        r14: regs.r14,
        r15: regs.r15,
        mask,
        rdi: regs.rdi,
        rsi: regs.rsi,
        rdx: regs.rdx,
        r10: regs.r10,
        rax: regs.rax,
        rcx: regs.rcx,
        r11: regs.r11,
        rip: regs.rip,
    }
}
