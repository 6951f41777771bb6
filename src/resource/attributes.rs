// SPDX-License-Identifier: LGPL-2.1-only
//! What prctl(2) and personality(2) have set for a thread alone; its children inherit it.

use super::plan::{Orders, Step};
use crate::error::Result;
use crate::proc::Pid;
use crate::proc::status::Mitigation;
use crate::ptrace::list::{List, Question, Replies};
use crate::ptrace::thread::StoppedThread;
use ckpt_abi::image::{Thread, thread_flag};
use nix::libc;
use std::sync::atomic::{AtomicBool, Ordering};

const ARCH_GET_CPUID: u64 = 0x1011;
const ARCH_SET_CPUID: u64 = 0x1012;
const PR_GET_SPECULATION_CTRL: u64 = 52;
const PR_SET_SPECULATION_CTRL: u64 = 53;
const STORE_BYPASS: u64 = 0;
const INDIRECT_BRANCH: u64 = 1;
const L1D_FLUSH: u64 = 2;
/// PR_SPEC_PRCTL and PR_SPEC_ENABLE.
const BY_PRCTL: i64 = 1;
const ENABLED: i64 = 2;

/// What only the thread itself can say.
pub(crate) struct ThreadQuestions {
    tsc: Question,
    mce: Question,
    cpuid: Question,
    flush: Option<Question>,
}

/// Where the machine does not empty caches for one thread, it does for none, and only the first is asked.
static NO_FLUSH: AtomicBool = AtomicBool::new(false);

/// Adds the questions to a thread's list.
pub(crate) fn ask(list: &mut List) -> ThreadQuestions {
    let prctl = libc::SYS_prctl;
    // Of an emptied cache /proc/PID/status does not tell.
    let flush = [PR_GET_SPECULATION_CTRL, L1D_FLUSH, 0, 0, 0];
    ThreadQuestions {
        tsc: list.reading(prctl, &[libc::PR_GET_TSC as u64, 0], 1, 4),
        mce: list.call(prctl, &[libc::PR_MCE_KILL_GET as u64, 0, 0, 0, 0]),
        cpuid: list.call(libc::SYS_arch_prctl, &[ARCH_GET_CPUID, 0]),
        flush: (!NO_FLUSH.load(Ordering::Relaxed)).then(|| list.call(prctl, &flush)),
    }
}

impl ThreadQuestions {
    /// The answers as bits of [`thread_flag`].
    pub(crate) fn flags(&self, answers: &Replies) -> u32 {
        let mut flags = 0;
        if answers.get::<i32>(self.tsc) == libc::PR_TSC_SIGSEGV {
            flags |= thread_flag::NO_TSC;
        }
        flags |= match answers.result(self.mce) {
            policy if policy == i64::from(libc::PR_MCE_KILL_EARLY) => thread_flag::MCE_EARLY,
            policy if policy == i64::from(libc::PR_MCE_KILL_LATE) => thread_flag::MCE_LATE,
            _ => 0,
        };
        if answers.result(self.cpuid) == 0 {
            flags |= thread_flag::NO_CPUID;
        }
        if let Some(flush) = self.flush {
            let answer = answers.result(flush);
            NO_FLUSH.store(answer < 0 || answer & BY_PRCTL == 0, Ordering::Relaxed);
            if answer == BY_PRCTL | ENABLED {
                flags |= thread_flag::L1D_FLUSH;
            }
        }
        flags
    }
}

/// Adds what can be seen from outside.
pub(crate) fn save(stopped: &StoppedThread, pid: Pid, record: &mut Thread) -> Result<()> {
    let status = stopped.look(pid)?;
    let mut set = |holds, flag| record.flags |= if holds { flag } else { 0 };
    set(status.no_new_privs, thread_flag::NO_NEW_PRIVS);
    set(status.store_bypass == Mitigation::Asked, thread_flag::STORE_BYPASS);
    set(status.store_bypass == Mitigation::Forced, thread_flag::STORE_BYPASS_FORCED);
    set(status.indirect_branch == Mitigation::Asked, thread_flag::INDIRECT_BRANCH);
    set(status.indirect_branch == Mitigation::Forced, thread_flag::INDIRECT_BRANCH_FORCED);
    Ok(())
}

/// Orders for the running thread. The main thread's come after those that make the others, which would inherit them.
pub(crate) fn restore(thread: &Thread, orders: &mut Orders) {
    const SET: u64 = libc::PR_MCE_KILL_SET as u64;
    const DISABLE: u64 = 4;
    const FORCE_DISABLE: u64 = 8;
    let step = Step::Thread;
    orders.try_call(step, libc::SYS_personality, &[thread.personality.into()]);
    let mut set = |flag: u32, call: i64, args: &[u64]| {
        if thread.flags & flag != 0 {
            orders.try_call(step, call, args);
        }
    };
    let prctl = libc::SYS_prctl;
    let killed = |policy: i32| [libc::PR_MCE_KILL as u64, SET, policy as u64, 0, 0];
    set(thread_flag::MCE_EARLY, prctl, &killed(libc::PR_MCE_KILL_EARLY));
    set(thread_flag::MCE_LATE, prctl, &killed(libc::PR_MCE_KILL_LATE));
    let mitigated = |which, how| [PR_SET_SPECULATION_CTRL, which, how, 0, 0];
    set(thread_flag::STORE_BYPASS, prctl, &mitigated(STORE_BYPASS, DISABLE));
    set(thread_flag::STORE_BYPASS_FORCED, prctl, &mitigated(STORE_BYPASS, FORCE_DISABLE));
    set(thread_flag::INDIRECT_BRANCH, prctl, &mitigated(INDIRECT_BRANCH, DISABLE));
    set(thread_flag::INDIRECT_BRANCH_FORCED, prctl, &mitigated(INDIRECT_BRANCH, FORCE_DISABLE));
    set(thread_flag::L1D_FLUSH, prctl, &mitigated(L1D_FLUSH, ENABLED.cast_unsigned()));
    let trapped = libc::PR_TSC_SIGSEGV as u64;
    set(thread_flag::NO_TSC, prctl, &[libc::PR_SET_TSC as u64, trapped]);
    set(thread_flag::NO_CPUID, libc::SYS_arch_prctl, &[ARCH_SET_CPUID, 0]);
    set(thread_flag::NO_NEW_PRIVS, prctl, &[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0]);
}
