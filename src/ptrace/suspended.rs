// SPDX-License-Identifier: LGPL-2.1-only
//! Calls that wait with a signal mask of their own: sigsuspend(2), ppoll(2) and kin.
//!
//! The kernel keeps the thread's own mask aside (TIF_RESTORE_SIGMASK); PTRACE_GETSIGMASK shows that one, `SigBlk:` the
//! call's. PTRACE_SETSIGMASK drops it (kernel/ptrace.c), and so does every restart. With its own mask in place the
//! thread would take a pending signal that the call blocks, before it is in the call again, which would end with EINTR
//! or, rewound by hand, miss a later one. So where the call blocks more than the thread does, it is sent to
//! make the call in the payload (`payload/src/suspend_thunk.rs`) with all signals blocked.

use super::interrupted;
use super::memory::Memory;
use super::raw;
use super::regs::Regs;
use super::thread::StoppedThread;
use super::waits::{IO_PGETEVENTS, arguments};
use crate::error::{Because, Result};
use crate::proc::Process;
use ckpt_abi::api::{API, Api};
use ckpt_abi::region::Suspended;
use nix::libc;
use std::mem::offset_of;

/// What the x86-64 ABI lets a function use below its stack pointer.
const RED_ZONE: u64 = 128;

/// SIGKILL and SIGSTOP, which nobody blocks.
const NEVER: u64 = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);

/// Calls that take a mask.
const CALLS: [i64; 6] = [
    libc::SYS_rt_sigsuspend,
    libc::SYS_pselect6,
    libc::SYS_ppoll,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    IO_PGETEVENTS,
];

impl StoppedThread {
    /// Looks at the mask in force, which is the call's until something sets another.
    pub(super) fn look_at_mask(&mut self, process: &Process) {
        if interrupted::call_in_progress(&self.regs).is_some_and(|call| CALLS.contains(&call)) {
            self.blocked_by_call = process.status(self.tid).map_or(0, |status| status.blocked);
        }
    }

    /// Whether it has to make its call in the payload to go on as it would have: the call blocks a signal that it does not.
    fn is_suspended(&self) -> bool {
        self.blocked_by_call & !self.mask & !NEVER != 0
    }

    /// Whether it may do so, if it has to, where nobody suspends what it is locked in. What a stop
    /// alone does to one that may not, a SIGSTOP does, too: a signal that waits for the end of the call ends that.
    pub(super) fn may_stay_suspended(&self) -> bool {
        !self.is_suspended()
            || self.may(&[libc::SYS_rt_sigprocmask])
                && self.may_make(self.regs.orig_rax.cast_signed(), arguments(&self.regs))
    }

    /// Sends a thread that was stopped in such a call to make it in the payload, if the call blocks a signal that the
    /// thread does not. Its mask is full then, its registers are those of the payload's call.
    pub(super) fn stay_suspended(&mut self, memory: &Memory, region: u64) -> Result<()> {
        if !self.is_suspended() {
            return Ok(());
        }
        let entry = memory.get(region + API + offset_of!(Api, suspended) as u64)?;
        let [a, b, c, d, ..] = arguments(&self.regs);
        let at = (self.regs.rsp - RED_ZONE - size_of::<Suspended>() as u64) & !15;
        let suspended = Suspended {
            mask: self.mask,
            result: 0,
            arguments: [a, b, c, d],
            rip: self.regs.rip,
            rsp: self.regs.rsp,
        };
        // A stack without room: what is left is the thread's own mask.
        if memory.put(at, &suspended).is_err() {
            return Ok(());
        }
        let regs = Regs { rip: entry, rsp: at, ..self.regs };
        // The mask last: were we to die in between, the thread would get it back in the payload all the same.
        self.take_back()
            .and_then(|()| interrupted::undisturbed(&regs).set(self.tid))
            .and_then(|()| raw::set_mask(self.tid, u64::MAX))
            .because(|| format!("cannot redirect thread {}", self.tid))?;
        (self.regs, self.mask) = (regs, u64::MAX);
        Ok(())
    }
}
