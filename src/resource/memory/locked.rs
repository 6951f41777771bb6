// SPDX-License-Identifier: LGPL-2.1-only
//! Memory that stays in memory: mlock(2), and mlockall(2) for mappings to come.

use crate::proc;
use crate::proc::Process;
use crate::ptrace::list::{List, Question, Replies};
use crate::resource::plan::{Orders, Step};
use ckpt_abi::image::{VmaRecord, process_flag, vma_flag};
use nix::libc;

use crate::error::{Because, Result};
use crate::image::PAGE;

const LOCKED: u64 = vma_flag::LOCKED | vma_flag::LOCK_ON_FAULT;

/// What is asked of mappings to come.
pub(crate) struct LockQuestions {
    mapped: Question,
    there: Question,
    emptied: Question,
}

/// Asks whether they are locked. Only a new mapping tells: the page of one that is locked cannot be given back (madvise(2),
/// MADV_DONTNEED), and is there at once but for MCL_ONFAULT.
///
/// What is at that address is gone afterwards: nothing may be there.
pub(crate) fn ask(list: &mut List, free: u64) -> LockQuestions {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let args = [free, PAGE, prot as u64, flags as u64, u64::MAX, 0];
    let mapped = list.call(libc::SYS_mmap, &args);
    let there = list.reading(libc::SYS_mincore, &[free, PAGE, 0], 2, 1);
    let emptied = list.call(libc::SYS_madvise, &[free, PAGE, libc::MADV_DONTNEED as u64]);
    list.call(libc::SYS_munmap, &[free, PAGE]);
    LockQuestions { mapped, there, emptied }
}

impl LockQuestions {
    /// The answers as bits of [`process_flag`].
    pub(crate) fn flags(&self, answers: &Replies) -> u32 {
        let is = |asked, errno: i32| answers.result(asked) == -i64::from(errno);
        // EAGAIN: it is locked, and no more may be (RLIMIT_MEMLOCK). ENOMEM: it has as many mappings as it may.
        if is(self.mapped, libc::EAGAIN) {
            return process_flag::LOCK_FUTURE;
        }
        match (is(self.emptied, libc::EINVAL), answers.get::<u8>(self.there) & 1) {
            (true, 1) => process_flag::LOCK_FUTURE,
            (true, _) => process_flag::LOCK_FUTURE | process_flag::LOCK_FUTURE_ON_FAULT,
            _ => 0,
        }
    }
}

/// Orders that lock memory again.
pub(crate) fn restore(vmas: &[VmaRecord], process: u32, orders: &mut Orders) {
    const ON_FAULT: u64 = 1;
    for vma in vmas.iter().filter(|vma| vma.flags & LOCKED != 0) {
        let flags = if vma.flags & vma_flag::LOCK_ON_FAULT != 0 { ON_FAULT } else { 0 };
        let args = [vma.start, vma.end - vma.start, flags];
        orders.try_call(Step::Process, libc::SYS_mlock2, &args);
    }
    if process & process_flag::LOCK_FUTURE != 0 {
        let on_fault = process & process_flag::LOCK_FUTURE_ON_FAULT != 0;
        let on_fault = if on_fault { libc::MCL_ONFAULT } else { 0 };
        let flags = (libc::MCL_FUTURE | on_fault) as u64;
        orders.try_call(Step::Process, libc::SYS_mlockall, &[flags]);
    }
}

/// Raises our limit on locked memory as far as we may; the program gets its own in the end. A sentence about memory
/// that cannot be locked here.
pub(crate) fn denied(vmas: &[VmaRecord]) -> Result<Option<String>> {
    const CAP_IPC_LOCK: u64 = 1 << 14;
    const LIMIT: usize = libc::RLIMIT_MEMLOCK as usize;
    let own = Process::own()?;
    let locked = vmas.iter().filter(|vma| vma.flags & LOCKED != 0);
    let locked: u64 = locked.map(|vma| vma.end - vma.start).sum();
    let may = own.main_status().is_ok_and(|status| status.capabilities & CAP_IPC_LOCK != 0);
    let (soft, hard) = own.limits()?[LIMIT];
    if !may && locked != 0 && soft < hard {
        proc::limits::set(LIMIT, (hard, hard)).because(|| "cannot raise RLIMIT_MEMLOCK")?;
    }
    Ok((!may && locked > hard).then(|| {
        format!(
            "the program had locked {locked} bytes in memory (mlock(2)), more than it may here, so some of it can be \
             swapped out: that takes root or a higher limit (ulimit -l)"
        )
    }))
}
