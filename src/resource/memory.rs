//! Mappings: which of them the image holds, and how they come back.
//!
//! Private memory comes back as anonymous memory, also the text and data of ELF files, so that a
//! restart needs none of them. Mapping the image instead would be wrong: MADV_DONTNEED would bring
//! old bytes back where allocators expect zeros, and whoever deletes or rewrites a checkpoint would
//! crash what was restarted from it.

use super::{Gathered, Target};
use crate::error::{Because, Error, Result};
use crate::image::PAGE;
use crate::proc::maps::Vma;
use crate::proc::pagemap::Pagemap;
use crate::ptrace::call::Caller;
use ckpt_abi::image::{Guard, NO_OBJECT, Object, ObjectKind, Vma as VmaRecord, VmaKind, vma_flag};
use ckpt_abi::region::{STACK_LEN, STACKS};
use nix::libc;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use zerocopy::FromZeros;

/// Private mappings of at most this many bytes are in the image whole, whatever file they map, so
/// that locale archives and other small data files need not be there at the restart.
const WHOLE_MAX: u64 = 16 << 20;

/// Which pages of a mapping go into the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
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
pub struct Area {
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
    /// A snapshot by fork(2) does not hold it: shared, or MADV_DONTFORK.
    pub unforked: bool,
    /// The pages that exist, where the process's own page tables do not tell.
    pub known: Option<Vec<Range<u64>>>,
}

/// Sorts the mappings of a target into records and areas to write.
pub fn save(target: &Target<'_>, gathered: &mut Gathered) -> Result<Vec<Area>> {
    let mut areas = Vec::new();
    let region = target.region;
    let exe = region.base + region.control.exe_start;
    let leftover = region.control.leftover..region.control.leftover + region.control.leftover_len;
    for vma in target.vmas {
        let special = ["[vsyscall]", "[vvar]", "[vvar_vclock]"].iter().any(|n| vma.name == *n);
        if special || leftover.contains(&vma.start) {
            continue;
        }
        let mut vma = vma.clone();
        if region.contains(vma.start) {
            vma.end = vma.end.min(exe);
            if vma.start >= vma.end {
                continue;
            }
        }
        if let Some(obstacle) = obstacle(&vma) {
            gathered.obstacles.push(obstacle);
            continue;
        }
        // Linux 6.13 and 6.14 have guards but do not tell; then they come back as ordinary pages.
        if vma.flags.has("gu") {
            let guards = Pagemap::open(target.frozen.pid)?.guards(vma.start, vma.end)?;
            gathered.guards.extend(guards.iter().map(|r| Guard { start: r.start, end: r.end }));
        }
        let (record, pages) = classify(target, &vma, gathered);
        // Reservations of terabytes have page tables that take seconds to read.
        let empty = pages == Pages::Populated && vma.populated == 0 && !vma.shared;
        if pages != Pages::None && !empty {
            areas.push(area(&vma, pages));
        }
        gathered.vmas.push(record);
    }
    Ok(areas)
}

/// Asks which pages of shared memory exist: a page table has only those that this process has
/// touched itself, not what a parent or child put there (mincore(2)).
pub fn look_into_shared(
    target: &Target<'_>,
    caller: &mut Caller<'_>,
    areas: &mut [Area],
) -> Result<()> {
    let scratch = target.region.base + STACKS;
    let shared = |a: &Area| target.vmas.iter().any(|v| v.shared && v.start == a.start);
    for area in areas.iter_mut().filter(|a| a.pages == Pages::Populated && shared(a)) {
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
    Ok(())
}

fn obstacle(vma: &Vma) -> Option<String> {
    let name = vma.name.to_string_lossy();
    let at = format!("at {:#x}", vma.start);
    if vma.flags.has("io") || vma.flags.has("pf") {
        return Some(format!("it maps device memory ({name}) {at}"));
    }
    if name.starts_with("anon_inode:") {
        return Some(format!("it maps a kernel object ({name}) {at}"));
    }
    if name == "/[aio]" {
        return Some(format!("it uses asynchronous I/O (io_setup(2)), whose ring is {at}"));
    }
    vma.flags.has("ss").then(|| format!("it has a shadow stack {at}"))
}

fn area(vma: &Vma, pages: Pages) -> Area {
    Area {
        start: vma.start,
        end: vma.end,
        pages,
        unreadable: !vma.read,
        writable: vma.write,
        unforked: vma.shared || vma.flags.has("dc"),
        known: None,
    }
}

fn classify(target: &Target<'_>, vma: &Vma, gathered: &mut Gathered) -> (VmaRecord, Pages) {
    let mut record = VmaRecord {
        start: vma.start,
        end: vma.end,
        prot: vma.prot() as u32,
        flags: flags(vma),
        offset: vma.offset,
        object: NO_OBJECT,
        // Memory that can only be executed has a key of the kernel's own.
        pkey: if vma.prot() == libc::PROT_EXEC { 0 } else { vma.protection_key },
        name: gathered.strings.add(&vma.name),
        ..VmaRecord::new_zeroed()
    };
    let mut kind = VmaKind::Private;
    let mut pages = Pages::Populated;
    if target.region.contains(vma.start) {
        record.flags |= vma_flag::REGION;
    } else if vma.name == "[vdso]" {
        (kind, pages) = (VmaKind::Vdso, Pages::Whole);
    } else if vma.flags.has("wf") {
        // MADV_WIPEONFORK memory is random state that must not repeat: it comes back as zeros.
        pages = Pages::None;
    } else if vma.shared {
        (kind, pages) = classify_shared(vma, &mut record, gathered);
    } else if vma.inode != 0 {
        (kind, pages) = classify_file(vma, &mut record);
    }
    if vma.flags.has("ht") {
        gathered
            .losses
            .push(format!("huge pages of hugetlbfs at {:#x} become ordinary ones", vma.start));
    }
    record.kind = kind as u32;
    (record, pages)
}

fn classify_shared(vma: &Vma, record: &mut VmaRecord, gathered: &mut Gathered) -> (VmaKind, Pages) {
    if !vma.deleted && !is_counters_of_java(vma) && describe_file(vma, record) {
        // The file was opened for reading only (VM_MAYWRITE is missing).
        if vma.flags.has("mr") && !vma.flags.has("mw") && vma.len() <= WHOLE_MAX {
            record.flags |= vma_flag::CARRIED;
            return (VmaKind::SharedFile, Pages::Whole);
        }
        return (VmaKind::SharedFile, Pages::None);
    }
    if vma.name.to_string_lossy().starts_with("/SYSV") {
        gathered.losses.push(format!(
            "System V shared memory at {:#x} becomes memory of this program alone",
            vma.start
        ));
    }
    let end = vma.offset + vma.len();
    let known =
        gathered.objects.iter().position(|o| (o.inode, o.device) == (vma.inode, vma.device));
    let index = known.unwrap_or_else(|| {
        gathered.objects.push(Object {
            kind: ObjectKind::Memory as u32,
            inode: vma.inode,
            device: vma.device,
            name: gathered.strings.add(&vma.name),
            ..Object::new_zeroed()
        });
        gathered.objects.len() - 1
    });
    gathered.objects[index].size = gathered.objects[index].size.max(end);
    record.object = index as u32;
    // Pages of shared memory that are swapped out cannot be told from absent ones.
    (VmaKind::Shared, if vma.swapped == 0 { Pages::Populated } else { Pages::Whole })
}

/// Whether a mapping is /tmp/hsperfdata_USER/PID: the counters of a Java virtual machine, a file only so
/// that jstat(1) finds them. A virtual machine removes its own when it ends, and those of all that
/// do not live any more when it begins, so the file is hardly ever there at a restart.
fn is_counters_of_java(vma: &Vma) -> bool {
    let directory = Path::new(&vma.name).parent().and_then(Path::file_name);
    directory.is_some_and(|name| name.as_encoded_bytes().starts_with(b"hsperfdata_"))
}

fn classify_file(vma: &Vma, record: &mut VmaRecord) -> (VmaKind, Pages) {
    let there = !vma.deleted && describe_file(vma, record);
    if !there || vma.exec || vma.len() <= WHOLE_MAX || is_elf(Path::new(&vma.name)) {
        return (VmaKind::Private, Pages::Whole);
    }
    (VmaKind::PrivateFile, Pages::Written)
}

/// Notes size and time of the mapped file; false when its path leads elsewhere by now.
fn describe_file(vma: &Vma, record: &mut VmaRecord) -> bool {
    match std::fs::metadata(&vma.name) {
        Ok(m) if m.ino() == vma.inode => {
            record.file_size = m.len();
            record.file_mtime = m.mtime() * 1_000_000_000 + m.mtime_nsec();
            true
        }
        _ => false,
    }
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut f| f.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

fn flags(vma: &Vma) -> u64 {
    const NAMES: [(&str, u64); 11] = [
        ("gd", vma_flag::GROWSDOWN),
        ("nr", vma_flag::NORESERVE),
        ("hg", vma_flag::HUGEPAGE),
        ("nh", vma_flag::NOHUGEPAGE),
        ("dc", vma_flag::DONTFORK),
        ("wf", vma_flag::WIPEONFORK),
        ("dd", vma_flag::DONTDUMP),
        ("lo", vma_flag::LOCKED),
        ("sr", vma_flag::SEQUENTIAL),
        ("rr", vma_flag::RANDOM),
        ("mg", vma_flag::MERGEABLE),
    ];
    NAMES.iter().filter(|(name, _)| vma.flags.has(name)).map(|(_, bit)| bit).sum()
}

/// Opens the file that a restored mapping shows.
///
/// # Errors
/// It cannot be opened, is shorter than it was, or (under a private mapping) has changed.
pub fn open_file(path: &Path, vma: &VmaRecord) -> Result<File> {
    let shared = vma.kind == VmaKind::SharedFile as u32;
    let write = shared && vma.prot & libc::PROT_WRITE as u32 != 0;
    let file = File::options()
        .read(true)
        .write(write)
        .open(path)
        .because(|| format!("cannot open the mapped file {}", path.display()))?;
    let meta = file.metadata().because(|| format!("cannot stat {}", path.display()))?;
    let mtime = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
    if !shared && (meta.len(), mtime) != (vma.file_size, vma.file_mtime) {
        return Err(Error::new(format!(
            "the mapped file {} has changed since the checkpoint",
            path.display()
        )));
    }
    if meta.len() < vma.file_size {
        return Err(Error::new(format!(
            "the mapped file {} is shorter than at the checkpoint",
            path.display()
        )));
    }
    Ok(file)
}

/// The madvise(2) advice that a restored mapping gets.
pub fn advice(flags: u64) -> impl Iterator<Item = i32> {
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

/// Whole pages of a file's part that a mapping can show.
pub fn file_pages(vma: &VmaRecord) -> u64 {
    vma.file_size.saturating_sub(vma.offset).next_multiple_of(PAGE).min(vma.end - vma.start)
}
