// SPDX-License-Identifier: LGPL-2.1-only
//! Mappings: which of them the image holds, and how they come back.
//!
//! Private memory comes back as anonymous memory, also the text and data of ELF files, so that a
//! restart needs none of them. Mapping the image instead would be wrong: MADV_DONTNEED would bring
//! old bytes back where allocators expect zeros, and whoever deletes or rewrites a checkpoint would
//! crash what was restarted from it.

pub(crate) mod advice;
pub(crate) mod carried;
mod hidden;
pub(crate) mod hugetlb;
pub(crate) mod locked;
mod mapped;
pub(crate) mod open;
pub(crate) mod policy;
pub(crate) mod ring;
pub(crate) mod shown;

use super::descriptor::device;
use super::runtime::java;
use super::{Common, Gathered, Target};
use crate::error::Result;
use crate::image::PAGE;
use crate::proc::maps::Vma;
use crate::proc::pagemap::Pagemap;
use crate::ptrace::call::Caller;
use ckpt_abi::image::{
    Guard, GuardKind, NO_OBJECT, Object, ObjectKind, VmaKind, VmaRecord, vma_flag,
};
use ckpt_abi::region::{STACK_LEN, STACKS};
use nix::libc;
use std::ops::Range;
use zerocopy::FromZeros;

pub(crate) use mapped::Files;
use mapped::Mapped;

/// Private mappings of at most this many bytes are in the image whole, whatever file they map, so
/// that locale archives and other small data files need not be there at the restart.
const WHOLE_MAX: u64 = 16 << 20;

/// Which pages of a mapping go into the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// Those that exist: present or swapped out.
    Populated,
    /// Those that the process wrote in a mapping of a file.
    Written,
    /// All that the mapped file has.
    Whole,
    /// None: the file has them.
    None,
}

/// A mapping whose pages have to be written.
#[derive(Clone, Debug)]
pub(crate) struct Area {
    /// First address.
    pub start: u64,
    /// End address.
    pub end: u64,
    /// Which pages.
    pub pages: Pages,
    /// The process itself may not read it (PROT_NONE with content).
    pub unreadable: bool,
    /// The process may write to it.
    pub writable: bool,
    /// It is written while the target stands still: a snapshot by fork(2) does not hold it (shared,
    /// MADV_DONTFORK, or MADV_WIPEONFORK), or its pages are those of a file that may be changed.
    pub at_once: bool,
    /// The pages that exist, where the process's own page tables do not tell.
    pub known: Option<Vec<Range<u64>>>,
    /// Shared memory.
    pub shared: bool,
    /// A part of a mapping, of which the rest is left out.
    pub part: bool,
    /// Its content comes from the file that it shows ([`Common::streams`]): it is only looked at.
    pub streamed: bool,
}

/// What stands in the way of reading the memory at all. Asked first, for a page that a userfaultfd(2)
/// handler has to fill would let us wait for it, and it stands still.
pub(crate) fn obstacles(vmas: &[Vma]) -> Vec<String> {
    // A ring of io_uring(7) may be in use without a descriptor here (IORING_REGISTER_RING_FDS, IORING_SETUP_SQPOLL).
    vmas.iter().filter(|vma| !is_kernels(vma)).filter_map(obstacle).collect()
}

/// Whether the kernel maps it anew by itself.
fn is_kernels(vma: &Vma) -> bool {
    ["[vsyscall]", "[vvar]", "[vvar_vclock]"].iter().any(|name| vma.name == *name)
}

/// Sorts the mappings of a target into records and areas to write.
#[inline(never)]
pub(crate) fn save(
    target: &Target<'_>,
    gathered: &mut Gathered,
    common: &mut Common,
) -> Result<Vec<Area>> {
    let mut areas = Vec::new();
    let mut files = Files::of(target.process(), target.vmas);
    let region = target.region;
    let exe = region.base + region.control.exe_start;
    let leftover = region.control.leftover..region.control.leftover + region.control.leftover_len;
    for vma in target.vmas {
        if is_kernels(vma) || leftover.contains(&vma.start) {
            continue;
        }
        let mut vma = vma.clone();
        if region.contains(vma.start) {
            vma.end = vma.end.min(exe);
            if vma.start >= vma.end {
                continue;
            }
        }
        // Linux 6.13 and 6.14 have guards but do not tell; then they come back as ordinary pages.
        if vma.flags.has("gu") {
            let guards = Pagemap::of(target.process())?.guards(vma.start, vma.end)?;
            let kind = GuardKind::Installed as u32;
            let guard = |r: &Range<u64>| Guard { start: r.start, end: r.end, kind, reserved: 0 };
            gathered.guards.extend(guards.iter().map(guard));
        }
        let (record, area) = classify(target, &vma, gathered, common, &mut files);
        // Reservations of terabytes have page tables that take seconds to read.
        let empty = area.pages == Pages::Populated && vma.populated == 0 && !vma.shared;
        if area.pages != Pages::None && !empty {
            areas.push(area);
        }
        gathered.vmas.push(record);
    }
    gathered.files = Some(files);
    Ok(areas)
}

/// Marks the areas whose content comes from a file that a descriptor shows.
pub(crate) fn leave_to_streams(areas: &mut [Area], gathered: &Gathered, common: &Common) {
    let streamed = |v: &&VmaRecord| {
        v.kind == VmaKind::Shared as u32 && common.streams.iter().any(|s| s.object == v.object)
    };
    for vma in gathered.vmas.iter().filter(streamed) {
        let inside = |a: &&mut Area| vma.start <= a.start && a.end <= vma.end;
        areas.iter_mut().filter(inside).for_each(|area| area.streamed = true);
    }
}

/// Asks which pages of shared memory exist: a page table has only those that this process has
/// touched itself, not what a parent or child put there (mincore(2)).
pub(crate) fn look_into_shared(
    target: &Target<'_>,
    caller: &mut Caller<'_>,
    areas: &mut [Area],
    gathered: &mut Gathered,
) -> Result<()> {
    for vma in gathered.vmas.iter_mut().filter(|vma| vma.kind == VmaKind::Ring as u32) {
        // A fork has the memory, and no ring there.
        if caller.call(libc::SYS_io_getevents, &[vma.start, 0, 0, 0, 0])? < 0 {
            vma.kind = VmaKind::Private as u32;
        }
    }
    let scratch = target.region.base + STACKS;
    for area in areas.iter_mut().filter(|a| a.shared && a.pages == Pages::Populated) {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for start in (area.start..area.end).step_by((STACK_LEN * PAGE) as usize) {
            let len = (area.end - start).min(STACK_LEN * PAGE);
            let what = "cannot see which pages of shared memory exist";
            caller.expect(libc::SYS_mincore, &[start, len, scratch], what)?;
            let mut resident = vec![0; (len / PAGE) as usize];
            target.memory.read(scratch, &mut resident)?;
            for (page, _) in (0u64..).zip(&resident).filter(|(_, r)| **r & 1 != 0) {
                let at = start + page * PAGE;
                match ranges.last_mut() {
                    Some(last) if last.end == at => last.end += PAGE,
                    _ => ranges.push(at..at + PAGE),
                }
            }
        }
        area.known = Some(ranges);
    }
    hidden::save(target.memory, caller, areas, gathered)
}

/// Whether a userfaultfd(2) handler fills this memory.
pub(crate) fn is_filled(vma: &Vma) -> bool {
    ["um", "uw", "ui"].iter().any(|flag| vma.flags.has(flag))
}

fn obstacle(vma: &Vma) -> Option<String> {
    let name = vma.name.to_string_lossy();
    let at = format!("at {:#x}", vma.start);
    if device::is_gpu(&vma.name) {
        return Some(format!("it uses a GPU ({name}, mapped {at})"));
    }
    if name == "[uprobes]" {
        return Some(format!("somebody probes it (uprobes), with code {at}"));
    }
    if vma.flags.has("io") || vma.flags.has("pf") {
        return Some(format!("it maps device memory ({name}) {at}"));
    }
    if name.starts_with("anon_inode:") || name.starts_with("socket:[") {
        return Some(format!("it maps a kernel object ({name}) {at}"));
    }
    if name == "/secretmem" {
        return Some(format!("it has memory that nobody else may read (memfd_secret(2)) {at}"));
    }
    if is_filled(vma) {
        return Some(format!("it fills the memory {at} by itself (userfaultfd(2))"));
    }
    vma.flags.has("ss").then(|| format!("it has a shadow stack {at}"))
}

/// A mapping's record, and what of it is to be written.
fn classify(
    target: &Target<'_>,
    vma: &Vma,
    gathered: &mut Gathered,
    common: &mut Common,
    files: &mut Files,
) -> (VmaRecord, Area) {
    let mut record = VmaRecord {
        start: vma.start,
        end: vma.end,
        prot: vma.prot() as u32,
        flags: advice::flags(vma),
        offset: vma.offset,
        object: NO_OBJECT,
        // Memory that can only be executed has a key of the kernel's own.
        pkey: if vma.prot() == libc::PROT_EXEC { 0 } else { vma.protection_key },
        name: common.strings.add(&vma.name),
        ..VmaRecord::new_zeroed()
    };
    let mut kind = VmaKind::Private;
    let mut area = Area {
        start: vma.start,
        end: vma.end,
        pages: Pages::Populated,
        unreadable: !vma.read,
        writable: vma.write,
        at_once: vma.shared || vma.flags.has("dc") || vma.flags.has("wf"),
        known: None,
        shared: vma.shared,
        part: false,
        streamed: false,
    };
    if target.region.contains(vma.start) {
        record.flags |= vma_flag::REGION;
    } else if vma.name == "[vdso]" {
        (kind, area.pages) = (VmaKind::Vdso, Pages::Whole);
    } else if vma.flags.has("dp") {
        // MAP_DROPPABLE memory may become zeros any moment: what is random there is not to repeat.
        area.pages = Pages::None;
    } else if ring::is_ring(vma) {
        (kind, area.pages) = (VmaKind::Ring, Pages::Whole);
        ring::save(target, vma, &common.quiet, gathered);
    } else if hugetlb::is_plain(vma) {
        record.flags |= vma_flag::HUGETLB;
        record.file_size = vma.page_size;
        // A copy of it would take as many again.
        area.at_once = true;
    } else if vma.shared {
        (kind, area.pages) = classify_shared(vma, &mut record, common, files);
    } else if vma.inode != 0 {
        kind = classify_file(vma, &mut record, &mut area, files);
    }
    declare(vma, kind, gathered);
    record.kind = kind as u32;
    (record, area)
}

/// Names what a mapping is not any more after a restart.
fn declare(vma: &Vma, kind: VmaKind, gathered: &mut Gathered) {
    let at = format!("{:#x}", vma.start);
    let kept = [VmaKind::Shared, VmaKind::SharedFile].contains(&kind) || hugetlb::is_plain(vma);
    if vma.flags.has("ht") && !kept {
        gathered.losses.push(format!(
            "huge pages of hugetlbfs at {at} become ordinary ones, which do not show what is written to their file from then on"
        ));
    }
}

fn classify_shared(
    vma: &Vma,
    record: &mut VmaRecord,
    common: &mut Common,
    files: &mut Files,
) -> (VmaKind, Pages) {
    let file = if java::is_counters(vma) { None } else { files.get(vma) };
    if let Some(file) = file {
        describe(&file, record);
        record.name = common.strings.add(&file.path);
        if vma.flags.has("mw") {
            record.flags |= vma_flag::MAY_WRITE;
        }
        // The file was opened for reading only (VM_MAYWRITE is missing).
        if vma.flags.has("mr") && !vma.flags.has("mw") && vma.len() <= WHOLE_MAX {
            record.flags |= vma_flag::CARRIED;
            return (VmaKind::SharedFile, Pages::Whole);
        }
        return (VmaKind::SharedFile, Pages::None);
    }
    // Without a better word it is memory of the processes alone (`resource::sysv`).
    let segment = vma.name.as_encoded_bytes().starts_with(b"/SYSV");
    if segment && vma.flags.has("mw") {
        record.flags |= vma_flag::MAY_WRITE;
    }
    let end = vma.offset + vma.len();
    let known = common.objects.iter().position(|o| (o.inode, o.device) == (vma.inode, vma.device));
    let index = known.unwrap_or_else(|| {
        common.objects.push(Object {
            kind: if segment { ObjectKind::Segment } else { ObjectKind::Memory } as u32,
            inode: vma.inode,
            device: vma.device,
            name: common.strings.add(&vma.name),
            ..Object::new_zeroed()
        });
        common.objects.len() - 1
    });
    let object = &mut common.objects[index];
    (object.size, object.page) = (object.size.max(end), object.page.max(hugetlb::page(vma)));
    record.object = index as u32;
    // Of huge pages mincore(2) tells only those that the process has touched.
    if object.page != 0 && !vma.flags.has("nr") {
        return (VmaKind::Shared, Pages::Whole);
    }
    // Pages of shared memory that are swapped out cannot be told from absent ones.
    (VmaKind::Shared, if vma.swapped == 0 { Pages::Populated } else { Pages::Whole })
}

fn classify_file(vma: &Vma, record: &mut VmaRecord, area: &mut Area, files: &mut Files) -> VmaKind {
    let file = files.get(vma);
    if let Some(file) = &file {
        describe(file, record);
        if !vma.exec && !file.elf && vma.len() > WHOLE_MAX {
            area.pages = Pages::Written;
            return VmaKind::PrivateFile;
        }
    }
    // Programs and libraries stay as they were: nobody would protect them from being written (ETXTBSY).
    let plain = !vma.exec && !vma.flags.has("ht");
    if plain && file.as_ref().is_some_and(|file| !file.elf) {
        record.flags |= vma_flag::FOLLOWS;
    }
    // Its clean pages are the file's, of which a snapshot is no picture.
    area.at_once |= !file.is_some_and(|file| files.trust(&file));
    area.pages = Pages::Whole;
    VmaKind::Private
}

/// What mappings and guards of an image cannot be.
pub(crate) fn nonsense(vmas: &[VmaRecord], guards: &[Guard]) -> Option<&'static str> {
    let ordered = vmas.windows(2).all(|pair| pair[0].end <= pair[1].start);
    let sane = vmas.iter().all(|v| v.start < v.end && v.end <= 1 << 56);
    let apart = guards.windows(2).all(|pair| pair[0].end <= pair[1].start);
    let whole = guards.iter().all(|g| g.start < g.end && g.start.is_multiple_of(PAGE));
    match () {
        () if !ordered || !sane => Some("its mappings overlap"),
        () if !apart || !whole => Some("its guard pages overlap"),
        () => None,
    }
}

fn describe(file: &Mapped, record: &mut VmaRecord) {
    (record.file_size, record.file_mtime) = (file.size, file.mtime);
    (record.file_device, record.file_inode) = file.id;
}
