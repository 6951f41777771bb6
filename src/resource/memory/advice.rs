// SPDX-License-Identifier: LGPL-2.1-only
//! What a program has told the kernel about its mappings (madvise(2), mlock(2), flags of mmap(2)).

use crate::proc::maps::Vma;
use ckpt_abi::image::vma_flag;
use nix::libc;

/// The flags of a mapping as its record has them.
pub(super) fn flags(vma: &Vma) -> u64 {
    const NAMES: [(&str, u64); 13] = [
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
