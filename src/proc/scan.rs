// SPDX-License-Identifier: LGPL-2.1-only
//! The PAGEMAP_SCAN ioctl of /proc/PID/pagemap (PAGEMAP_SCAN(2const), Linux 6.7).
//!
//! # Safety
//! The one unsafe operation is the ioctl. Its argument is a [`ScanArg`], laid out as struct
//! pm_scan_arg of linux/fs.h, which names the address and the length of a buffer of
//! [`Region`]s that lives and is not otherwise used during the call. The kernel writes no more
//! than `vec_len` regions there, and `walk_end` in the argument. On a descriptor that is no
//! pagemap the number means nothing, since 'f' ioctls of file systems encode another size.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;

/// The page was written to since it was protected, or never was; in mappings alone that are tracked.
pub(super) const PAGE_IS_WRITTEN: u64 = 1 << 1;
/// The page is of a file or of shared memory, not an anonymous page of this process alone.
pub(super) const PAGE_IS_FILE: u64 = 1 << 2;
/// The page is in memory.
pub(super) const PAGE_IS_PRESENT: u64 = 1 << 3;
/// The page table names swap, or another thing that is not memory.
pub(super) const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// The page is the shared page of zeros.
pub(super) const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// The page is a guard (MADV_GUARD_INSTALL); known since Linux 6.15.
pub(super) const PAGE_IS_GUARD: u64 = 1 << 8;

/// _IOWR('f', 16, struct pm_scan_arg)
const PAGEMAP_SCAN: u32 = 3 << 30 | (size_of::<ScanArg>() as u32) << 16 | (b'f' as u32) << 8 | 16;

/// Protects the pages that are found; mappings that are not [tracked](super::tracking) are passed over.
pub(super) const PM_SCAN_WP_MATCHING: u64 = 1;
/// EPERM where a mapping is not tracked.
pub(super) const PM_SCAN_CHECK_WPASYNC: u64 = 2;

/// How many regions one call may find: 24 KiB.
const REGIONS: usize = 1024;

/// struct pm_scan_arg
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// struct page_region
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

const _: () = assert!(size_of::<ScanArg>() == 96 && size_of::<Region>() == 24);

/// Which pages to find.
#[derive(Clone, Copy, Default)]
pub(super) struct Want {
    /// All of these PAGE_IS_ bits.
    pub all: u64,
    /// At least one of these.
    pub any: u64,
    /// None of these.
    pub none: u64,
    /// With `any`: or that lack one of these.
    pub lacking: u64,
    /// Which bits are told of the pages that are found; neighbours that differ in them are apart.
    pub told: u64,
    /// PM_SCAN_ bits.
    pub flags: u64,
}

/// The ranges of wanted pages in `pages` of the process whose pagemap this is, in order.
///
/// # Errors
/// ENOTTY before Linux 6.7, EINVAL for bits that this kernel does not know and for a start that
/// does not begin a page, EFAULT outside user memory.
pub(super) fn scan(pagemap: &File, pages: Range<u64>, want: Want) -> nix::Result<Vec<Range<u64>>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    each(pagemap, pages, want, &mut |range, _| push(&mut found, range))?;
    Ok(found)
}

/// The same, with what is told of them.
///
/// # Errors
/// As [`scan`].
pub(super) fn each(
    pagemap: &File,
    pages: Range<u64>,
    want: Want,
    visit: &mut dyn FnMut(Range<u64>, u64),
) -> nix::Result<()> {
    let mut regions = vec![Region::default(); REGIONS];
    let mut start = pages.start;
    while start < pages.end {
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            flags: want.flags,
            start,
            end: pages.end,
            vec: regions.as_mut_ptr().expose_provenance() as u64,
            vec_len: regions.len() as u64,
            // A page is taken if it has all of the mask, after the inversion.
            category_inverted: want.none | want.lacking,
            category_mask: want.none | want.all,
            category_anyof_mask: want.any | want.lacking,
            // With no categories in the answer, neighbours become one region.
            return_mask: want.told,
            ..ScanArg::default()
        };
        let request = PAGEMAP_SCAN as libc::Ioctl;
        // SAFETY: `arg` and `regions` are as the module's Safety paragraph asks for.
        let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), request, &raw mut arg) };
        let count = usize::try_from(Errno::result(count)?).unwrap_or(0);
        for region in &regions[..count] {
            visit(region.start..region.end, region.categories);
        }
        // Less than a full list means that the kernel came to the end. `walk_end` does not tell:
        // do_pagemap_scan walks in pieces of 512 regions, and if the last piece ends by itself
        // leaves the end of the piece before there (seen on 6.18), which would find pages twice.
        match regions[..count].last() {
            Some(last) if count == REGIONS => start = last.end,
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// Adds a range at the end, into the last one if they touch.
pub(super) fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
