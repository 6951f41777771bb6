// SPDX-License-Identifier: LGPL-2.1-only
//! Huge pages of hugetlbfs: a machine has so many as its administrator has set aside. Who maps or makes memory of them has
//! a right to all of its pages from then on, so it is known at once if they are there; else it gets ordinary pages.
//!
//! # Safety
//! The mapping is a new one, of a file that nobody else has.
#![allow(unsafe_code)]

use crate::proc::Process;
use crate::proc::maps::Vma;
use crate::resource::sysv::calls::Attached;
use memmap2::MmapMut;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statfs::{HUGETLBFS_MAGIC, statfs};
use nix::sys::utsname::uname;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Larger ones are not made again: where they lie before the restorer moves them would have to be a multiple of their size.
const SIZE: u64 = 2 << 20;

/// Whether it is private memory without a file in such pages (MAP_HUGETLB).
pub(super) fn is_plain(vma: &Vma) -> bool {
    vma.flags.has("ht") && !vma.shared && vma.deleted && vma.name == "/anon_hugepage"
}

/// The size of such pages of a mapping, or 0.
pub(super) fn page(vma: &Vma) -> u64 {
    if vma.flags.has("ht") { vma.page_size } else { 0 }
}

/// The same of a file.
pub(crate) fn page_of(path: impl AsRef<Path>) -> u64 {
    let system = statfs(path.as_ref()).ok().filter(|it| it.filesystem_type() == HUGETLBFS_MAGIC);
    system.map_or(0, |it| it.block_size())
}

/// The same of System V shared memory, which only its mapping tells.
pub(crate) fn page_of_segment(id: i32) -> u64 {
    let Ok(memory) = Attached::new(id, 0, false) else { return 0 };
    let all = Process::own().and_then(|own| own.maps_with_flags()).unwrap_or_default();
    all.iter().find(|vma| vma.start == memory.address()).map_or(0, page)
}

/// Whether shared memory of such pages can be made again here: it has to be moved (Linux 5.16).
pub(crate) fn is_possible(page: u64) -> bool {
    let names = uname().ok();
    let release = names.as_ref().map_or("".into(), |names| names.release().to_string_lossy());
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    page == SIZE && version >= (5, 16)
}

/// What memfd_create(2) and shmget(2) are told of the size.
pub(crate) fn flag(page: u64) -> u32 {
    const SHIFT: u32 = 26;
    page.ilog2() << SHIFT
}

/// Shared memory of zeros, and a mapping of it; None where not so many pages are free.
pub(crate) fn make(name: &str, size: u64, page: u64) -> Option<(OwnedFd, MmapMut)> {
    if !is_possible(page) {
        return None;
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_HUGETLB;
    let flags = flags | MFdFlags::from_bits_retain(flag(page));
    let file = memfd_create(CString::new(name).ok()?.as_c_str(), flags).ok()?;
    let file = File::from(file);
    file.set_len(size.next_multiple_of(page)).ok()?;
    // SAFETY: nobody else has the file.
    let memory = unsafe { MmapMut::map_mut(&file) }.ok()?;
    Some((file.into(), memory))
}

/// A sentence about so many bytes of ordinary pages.
pub(crate) fn lacking(bytes: u64) -> Option<String> {
    let lacking = bytes.div_ceil(1 << 20);
    (lacking != 0).then(|| {
        format!("{lacking} MiB of huge pages of hugetlbfs are not free here: it has ordinary ones in their place (vm.nr_hugepages)")
    })
}
