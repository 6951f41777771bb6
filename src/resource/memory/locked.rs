// SPDX-License-Identifier: LGPL-2.1-only
//! Memory that stays in memory: mlock(2), and mlockall(2) for mappings to come.

use crate::proc::{self, Process, pagemap::Pagemap};
use crate::ptrace::call::Caller;
use crate::resource::plan::{Orders, Step};
use ckpt_abi::image::{Vma, process_flag, vma_flag};
use nix::libc;

use crate::error::{Because, Result};
use crate::image::PAGE;

const LOCKED: u64 = vma_flag::LOCKED | vma_flag::LOCK_ON_FAULT;

/// Whether mappings to come are locked, as bits of [`process_flag`]. Only a new mapping tells: the count of locked pages
/// grows by it, and the page is there at once but for MCL_ONFAULT.
pub(crate) fn future(process: &Process, caller: &mut Caller<'_>) -> Result<u32> {
    let before = process.locked_memory();
    let (prot, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let args = [0, PAGE, prot as u64, flags as u64, u64::MAX, 0];
    // EAGAIN: it is locked, and no more may be (RLIMIT_MEMLOCK). ENOMEM: it has as many mappings as it may.
    let at = match caller.call(libc::SYS_mmap, &args)? {
        at if at > 0 => at.cast_unsigned(),
        error if error == -i64::from(libc::EAGAIN) => return Ok(process_flag::LOCK_FUTURE),
        _ => return Ok(0),
    };
    let locked = process.locked_memory() > before;
    let mut there = false;
    if locked {
        let map = Pagemap::open(process.pid())?;
        map.entries(at, at + PAGE, |_, entry| there |= entry.present() || entry.swapped())?;
    }
    caller.expect(libc::SYS_munmap, &[at, PAGE], "cannot unmap a page")?;
    Ok(match (locked, there) {
        (false, _) => 0,
        (true, true) => process_flag::LOCK_FUTURE,
        (true, false) => process_flag::LOCK_FUTURE | process_flag::LOCK_FUTURE_ON_FAULT,
    })
}

/// Orders that lock memory again.
pub(crate) fn restore(vmas: &[Vma], process: u32, orders: &mut Orders) {
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
pub(crate) fn denied(vmas: &[Vma]) -> Result<Option<String>> {
    const CAP_IPC_LOCK: u64 = 1 << 14;
    const LIMIT: usize = libc::RLIMIT_MEMLOCK as usize;
    let own = std::process::id().cast_signed();
    let locked = vmas.iter().filter(|vma| vma.flags & LOCKED != 0);
    let locked: u64 = locked.map(|vma| vma.end - vma.start).sum();
    let may = proc::status(own, own).is_ok_and(|status| status.capabilities & CAP_IPC_LOCK != 0);
    let (soft, hard) = proc::limits(own)?[LIMIT];
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
