// SPDX-License-Identifier: LGPL-2.1-only
//! What a program has told the kernel about its mappings (madvise(2), mlock(2), mseal(2), flags of mmap(2)).
//!
//! # Safety
//! The system call here takes numbers.
#![allow(unsafe_code)]

use crate::proc::maps::Vma;
use crate::resource::plan::{Orders, Step};
use ckpt_abi::image::{VmaKind, VmaRecord, vma_flag};
use nix::errno::Errno;
use nix::libc;

/// The flags of a mapping as its record has them.
pub(super) fn flags(vma: &Vma) -> u64 {
    const NAMES: [(&str, u64); 14] = [
        ("gd", vma_flag::GROWSDOWN),
        ("nr", vma_flag::NORESERVE),
        ("hg", vma_flag::HUGEPAGE),
        ("nh", vma_flag::NOHUGEPAGE),
        ("dc", vma_flag::DONTFORK),
        ("wf", vma_flag::WIPEONFORK),
        ("dd", vma_flag::DONTDUMP),
        ("lo", vma_flag::LOCKED),
        ("lf", vma_flag::LOCK_ON_FAULT),
        ("dp", vma_flag::DROPPABLE),
        ("sr", vma_flag::SEQUENTIAL),
        ("rr", vma_flag::RANDOM),
        ("mg", vma_flag::MERGEABLE),
        ("sl", vma_flag::SEALED),
    ];
    NAMES.iter().filter(|(name, _)| vma.flags.has(name)).map(|(_, bit)| bit).sum()
}

/// The madvise(2) advice that a restored mapping gets.
pub(crate) fn advice(flags: u64) -> impl Iterator<Item = i32> {
    const ADVICE: [(u64, i32); 8] = [
        (vma_flag::HUGEPAGE, libc::MADV_HUGEPAGE),
        (vma_flag::NOHUGEPAGE, libc::MADV_NOHUGEPAGE),
        (vma_flag::DONTFORK, libc::MADV_DONTFORK),
        (vma_flag::WIPEONFORK, libc::MADV_WIPEONFORK),
        (vma_flag::DONTDUMP, libc::MADV_DONTDUMP),
        (vma_flag::SEQUENTIAL, libc::MADV_SEQUENTIAL),
        (vma_flag::RANDOM, libc::MADV_RANDOM),
        (vma_flag::MERGEABLE, libc::MADV_MERGEABLE),
    ];
    ADVICE.into_iter().filter(move |(bit, _)| flags & bit != 0).map(|(_, advice)| advice)
}

/// Whom the program has sealed. Kernels seal the mappings of their own, too (CONFIG_MSEAL_SYSTEM_MAPPINGS).
fn sealed(vmas: &[VmaRecord]) -> impl Iterator<Item = &VmaRecord> {
    let is =
        |vma: &&VmaRecord| vma.flags & vma_flag::SEALED != 0 && vma.kind != VmaKind::Vdso as u32;
    vmas.iter().filter(is)
}

/// Orders that seal mappings again: behind all that changes them.
pub(crate) fn seal(vmas: &[VmaRecord], orders: &mut Orders) {
    for vma in sealed(vmas) {
        let args = [vma.start, vma.end - vma.start, 0];
        orders.try_call(Step::Process, libc::SYS_mseal, &args);
    }
}

/// A sentence about seals that this kernel cannot give (before Linux 6.10).
pub(crate) fn unsealed(vmas: &[VmaRecord]) -> Option<String> {
    // SAFETY: nothing is sealed.
    let known = || Errno::result(unsafe { libc::syscall(libc::SYS_mseal, 0, 0, 0) }).is_ok();
    (sealed(vmas).next().is_some() && !known()).then(|| {
        "the program had sealed memory (mseal(2)), which this kernel does not know: it can be changed here".into()
    })
}
