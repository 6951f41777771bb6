// SPDX-License-Identifier: LGPL-2.1-only
//! Huge pages of hugetlbfs: a machine has so many as its administrator has set aside.

use crate::proc::maps::Vma;
use ckpt_abi::image::{VmaRecord, vma_flag};
use std::fs;

/// Whether it is private memory without a file in such pages (MAP_HUGETLB).
pub(super) fn is_plain(vma: &Vma) -> bool {
    vma.flags.has("ht") && !vma.shared && vma.deleted && vma.name == "/anon_hugepage"
}

/// How many bytes of each size of page there are to be had.
#[derive(Default)]
pub(crate) struct Free(Vec<(u64, u64)>);

impl Free {
    /// Lets memory be in ordinary pages for which there are not enough; a sentence about it.
    pub(crate) fn take(&mut self, vmas: &mut [VmaRecord]) -> Option<String> {
        let mut lacking = 0;
        for vma in vmas.iter_mut().filter(|vma| vma.flags & vma_flag::HUGETLB != 0) {
            let (size, len) = (vma.file_size, vma.end - vma.start);
            if !self.0.iter().any(|(known, _)| *known == size) {
                self.0.push((size, free(size).unwrap_or(0)));
            }
            let left = self.0.iter_mut().find(|(known, _)| *known == size);
            match left.filter(|(_, left)| *left >= len) {
                Some((_, left)) => *left -= len,
                None => {
                    lacking += len;
                    vma.flags &= !vma_flag::HUGETLB;
                }
            }
        }
        (lacking != 0).then(|| {
            let lacking = lacking >> 20;
            format!("{lacking} MiB of huge pages of hugetlbfs are not free here: it has ordinary ones in their place (vm.nr_hugepages)")
        })
    }
}

/// Bytes of huge pages of a size that nobody has, and to which nobody has a right.
fn free(size: u64) -> Option<u64> {
    let read = |what| {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/{what}", size >> 10);
        fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()
    };
    let more = read("nr_overcommit_hugepages")?.saturating_sub(read("surplus_hugepages")?);
    let free = read("free_hugepages")?.saturating_sub(read("resv_hugepages")?);
    (free + more).checked_mul(size)
}
