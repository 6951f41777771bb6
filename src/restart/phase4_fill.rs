// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 4: the program's memory, filled and checked, in this process.
//!
//! Whatever is free here is mapped where the program has it; the rest is filled elsewhere and
//! moved by the restorer with its page tables.
//!
//! # Safety
//! Mappings are written through slices that do not overlap, before their protection is final.
#![allow(unsafe_code)]

use super::callers::List;
use super::lazy::{self, Awaited, Lazy};
use super::mapping::{self, Mapping};
use super::phase1_check::{Saved, Whole};
use super::phase3_open::Opened;
use super::placed::Placed;
use super::pooled::Kept;
use super::space::Space;
use super::vdso::Vdso;
use super::{auxv, following, frames, pages, placed, pooled, region, vdso};
use crate::error::{Error, Result};
use crate::order;
use crate::proc::Process;
use crate::resource::{cpu, memory, resolver};
use crate::settings::Settings;
use ckpt_abi::image::{SignalAction, VmaKind, VmaRecord, vma_flag};
use ckpt_abi::region::Control;
use ckpt_abi::state::process_flag;
use ckpt_abi::turn::{Task, Turn};
use nix::libc;
use nix::sys::mman::MapFlags;

/// The filled memory.
pub(crate) struct Filled {
    /// What the payload is told of missing files.
    pub missing: Option<List>,
    /// All mappings but the payload's copy of the executable.
    pub placed: Vec<Placed>,
    /// The payload's control page, as the program will have it.
    pub control: Control,
    /// Whose turn it is in the restarted program.
    pub turn: Turn,
    /// First address of the payload's region.
    pub region: u64,
    /// Dispositions, with the checkpoint signal's adapted.
    pub actions: Vec<SignalAction>,
    /// The vdso.
    pub vdso: Vdso,
    /// What is taken.
    pub space: Space,
    /// Bytes of huge pages of hugetlbfs for which there are ordinary ones.
    pub lacking: u64,
}

/// Maps and fills.
#[inline(never)]
pub(crate) fn fill(
    whole: &Whole<'_>,
    saved: &mut Saved<'_>,
    opened: &Opened,
    settings: &Settings,
    kept: &Kept,
    lazy: Option<Lazy>,
) -> Result<Filled> {
    let own = Process::own()?.maps()?;
    let mut stub_space = Space::default();
    let in_place = kept.in_place();
    own.iter().for_each(|v| stub_space.take_but(v.start, v.end, &in_place));
    let mut space = stub_space.clone();
    saved.vmas.iter().for_each(|v| space.take(v.start, v.end));
    space.take(saved.process.region, saved.process.region + saved.process.region_len);
    space.take(saved.process.vvar, saved.process.vvar + saved.process.vvar_len);

    let used = saved.vmas.iter().map(|vma| 1u32.checked_shl(vma.pkey).unwrap_or(0));
    mapping::allocate_keys(used.fold(saved.process.keys, |all, key| all | key))?;
    let (mut placed, mut lacking) = (Vec::new(), 0);
    let (vdso, patched) = vdso::place(saved, &own, &mut space)?;
    let joined = join(saved, kept, &stub_space);
    for (i, record) in saved.vmas.iter().enumerate() {
        if record.kind == VmaKind::Vdso as u32 && patched.is_none() {
            continue;
        }
        let len = record.end - record.start;
        let there = kept.place(record).map(|at| Mapping::of_another(at, len));
        if let Some(mapping) = there.or_else(|| part(&joined, record)) {
            placed.push(Placed::whole(record, mapping));
            continue;
        }
        let in_place = stub_space.is_free(record.start, record.end);
        let fixed = record.flags & vma_flag::REGION != 0;
        if !in_place && fixed {
            return Err(Error::new(format!(
                "the addresses at {:#x}, which ckpt has in the program, are taken in this process",
                record.start
            ))
            .hint("execute the checkpoint by itself (./foo.ckpt): not by way of ckpt, and without LD_PRELOAD"));
        }
        let is_final = is_final(saved, record);
        let mut lay = |at: u64| -> Result<Placed> {
            let (mapping, follows) = match following::map(whole, &opened.objects, record, at) {
                Some((mapping, shown)) => (mapping, Some(shown)),
                None if is_final && record.kind == VmaKind::Private as u32 => {
                    (Mapping::reservation(at, len, record.prot, unreserved(record))?, None)
                }
                None if record.kind == VmaKind::Ring as u32 => (ring(saved, record, at)?, None),
                None if record.flags & vma_flag::HUGETLB != 0 => {
                    (huge(record, at, &mut lacking)?, None)
                }
                None => (map(record, at, i, opened, is_final)?, None),
            };
            let is_final = is_final && follows.is_none();
            Ok(Placed { record: *record, mapping, borders: Vec::new(), is_final, follows })
        };
        let home = match in_place {
            true => lay(record.start),
            false => lay(space.find(len, record.start)?),
        };
        placed.push(match home {
            // What this process itself has taken since its mappings were read, by allocating.
            Err(e) if in_place && !fixed && e.errno() == libc::EEXIST => {
                lay(space.find(len, record.start)?)?
            }
            home => home?,
        });
    }
    if patched.is_some() {
        placed.extend(vdso::data(saved, &stub_space, &mut space)?);
        order::by_key(&mut placed, |p| (p.record.start, 0));
    }
    let pager = read(whole, saved, &placed, kept, lazy)?;
    placed.iter().for_each(|home| following::clear(saved, home));
    narrow_resolver(whole.machine.xcr0, &mut placed);
    auxv::update(saved, &mut placed)?;
    frames::convert(whole, saved, &mut placed, &mut space)?;
    if let Some(code) = patched {
        let record = placed.iter_mut().find(|p| p.record.kind == VmaKind::Vdso as u32);
        record.map(|p| p.mapping.write(0, &code)).transpose()?;
    }
    let missing = List::make(&opened.missing, &mut space)?;
    let told = (missing.as_ref(), whole.given.place(saved, &mut placed, &mut space)?);
    let (control, actions) = region::fill(saved, &mut placed, settings, told, pager)?;
    let base = saved.process.region;
    let turn = region::renew_turns(base, &mut placed)?;
    placed::finish(&mut placed, &saved.guards)?;
    Ok(Filled { placed, control, turn, region: base, actions, vdso, space, missing, lacking })
}

/// Reads what the image has of it, but for what may be missing; who brings that.
fn read(
    whole: &Whole<'_>,
    saved: &Saved<'_>,
    placed: &[Placed],
    kept: &Kept,
    lazy: Option<Lazy>,
) -> Result<Option<Task>> {
    let huge = saved.process.flags & process_flag::THP_DISABLE == 0;
    let mut memory = kept.missing(&saved.memory);
    if let Some(lazy) = &lazy {
        memory = lazy.others(&memory);
    }
    let awaited = lazy.map(|lazy| lazy.start(whole, placed)).transpose()?;
    pages::read(whole.image, &memory, placed, huge)?;
    // From here on whoever touches it waits for it.
    let pager = awaited.map(Awaited::register).transpose()?;
    if pager.is_some() {
        lazy::touch(saved, placed);
    }
    Ok(pager)
}

/// Whether a mapping is one that the program cannot write to, and for which the image has nothing. Were it
/// writable for a while, it would count as memory (the kernel's accountable_mapping), and the kernel would
/// join it with its neighbours and put a huge page across the border.
fn is_final(saved: &Saved<'_>, record: &VmaRecord) -> bool {
    let private = [VmaKind::Private as u32, VmaKind::PrivateFile as u32].contains(&record.kind);
    const SPECIAL: u64 =
        vma_flag::REGION | vma_flag::GROWSDOWN | vma_flag::DROPPABLE | vma_flag::HUGETLB;
    let special = record.flags & SPECIAL != 0;
    if !private || record.prot & libc::PROT_WRITE as u32 != 0 || special {
        return false;
    }
    let next = saved.memory.partition_point(|c| c.address + u64::from(c.len) <= record.start);
    saved.memory.get(next).is_none_or(|chunk| chunk.address >= record.end)
}

/// Maps as one what private memory follows each other without a gap and is to be mapped in the same way: there may be tens of
/// thousands. Where something has come to lie meanwhile each is mapped by itself.
fn join(saved: &Saved<'_>, kept: &Kept, space: &Space) -> Vec<Mapping> {
    let can = |record: &VmaRecord| {
        pooled::is_plain(record)
            && !is_final(saved, record)
            && kept.place(record).is_none()
            && space.is_free(record.start, record.end)
    };
    let joins = |one: &VmaRecord, next: &VmaRecord| {
        one.end == next.start && one.flags == next.flags && can(one) && can(next)
    };
    let runs = saved.vmas.chunk_by(joins).filter(|run| run.len() > 1);
    let len = |run: &[VmaRecord]| run[run.len() - 1].end - run[0].start;
    runs.filter_map(|run| plain(&run[0], run[0].start, len(run)).ok()).collect()
}

/// What of memory that was mapped so is a record's.
fn part(joined: &[Mapping], record: &VmaRecord) -> Option<Mapping> {
    let index = joined.partition_point(|all| all.at() <= record.start).checked_sub(1)?;
    joined[index].part(record.start, record.end)
}

/// Maps private memory with the flags of a record.
fn plain(record: &VmaRecord, at: u64, len: u64) -> Result<Mapping> {
    let mut flags = unreserved(record);
    if record.flags & vma_flag::GROWSDOWN != 0 {
        flags |= MapFlags::MAP_GROWSDOWN;
    }
    let mut mapping = Mapping::anonymous(at, len, flags)?;
    // It is for the pages that come now.
    mapping.tell(record.flags & (vma_flag::HUGEPAGE | vma_flag::NOHUGEPAGE));
    Ok(mapping)
}

/// As it was: what is otherwise than what lies beside it would stay a mapping of its own when the program protects both
/// alike again, and mremap(2) moves nothing that consists of two (EFAULT).
pub(super) fn unreserved(record: &VmaRecord) -> MapFlags {
    match record.flags & vma_flag::NORESERVE {
        0 => MapFlags::empty(),
        _ => MapFlags::MAP_NORESERVE,
    }
}

fn map(
    record: &VmaRecord,
    at: u64,
    index: usize,
    opened: &Opened,
    is_final: bool,
) -> Result<Mapping> {
    let len = record.end - record.start;
    let writable = record.prot | libc::PROT_WRITE as u32 | libc::PROT_READ as u32;
    let kind = VmaKind::try_from(record.kind)
        .map_err(|number| Error::new(format!("a mapping is of an unknown kind ({number})")))?;
    match kind {
        VmaKind::Shared if let Some(id) = opened.objects.segment(record.object) => {
            let writable = record.flags & vma_flag::MAY_WRITE != 0;
            Mapping::segment(at, len, writable, id, record.offset)
        }
        VmaKind::Shared => {
            let (object, permitted) = opened.objects.to_map(record.object)?;
            Mapping::file(at, len, writable & permitted, true, object, record.offset)
        }
        VmaKind::SharedFile | VmaKind::PrivateFile => {
            let shared = kind == VmaKind::SharedFile;
            let file = opened.mapped.get(index).and_then(Option::as_ref);
            let file = file.ok_or_else(|| Error::new("a mapping has no file"))?;
            let prot = if shared || is_final { record.prot } else { writable };
            Mapping::file(at, len, prot, shared, file, record.offset)
        }
        VmaKind::Ring => Err(Error::new("a ring is made otherwise")),
        VmaKind::Private | VmaKind::Vdso if record.flags & vma_flag::DROPPABLE != 0 => {
            Mapping::droppable(at, len)
        }
        VmaKind::Private | VmaKind::Vdso => plain(record, at, len),
    }
}

/// Private memory in huge pages of hugetlbfs where there are so many, and it need not be moved: before Linux 5.16 it cannot be.
fn huge(record: &VmaRecord, at: u64, lacking: &mut u64) -> Result<Mapping> {
    let len = record.end - record.start;
    let made = (at == record.start).then(|| Mapping::huge(at, len, record.file_size));
    made.and_then(Result::ok).map_or_else(
        || {
            let mapping = Mapping::anonymous(at, len, MapFlags::empty())?;
            *lacking += len;
            Ok(mapping)
        },
        Ok,
    )
}

/// A ring of asynchronous I/O.
fn ring(saved: &Saved<'_>, record: &VmaRecord, at: u64) -> Result<Mapping> {
    let len = record.end - record.start;
    let mut bytes = vec![0; len as usize];
    saved.read(record.start, &mut bytes)?;
    // The kernel puts it where nothing is.
    let home = Mapping::anonymous(at, len, MapFlags::MAP_NORESERVE)?;
    home.replaced_by(memory::ring::make(&bytes)?)
}

/// Makes the dynamic linker save what it has room for ([`resolver`]): the state components of the first machine.
fn narrow_resolver(components: u64, placed: &mut [Placed]) {
    const EXEC: u32 = libc::PROT_EXEC as u32;
    if cpu::xcr0() & !components & resolver::SAVED == 0 {
        return;
    }
    for home in placed.iter_mut().filter(|p| p.record.prot & EXEC != 0) {
        let record = &home.record;
        let ours = record.flags & vma_flag::REGION != 0;
        if record.kind != VmaKind::Private as u32 || ours || home.is_final {
            continue;
        }
        // SAFETY: the mapping is readable and writable until [`placed::finish`]; no other slice is alive.
        let code = unsafe { home.mapping.slice(0, record.end - record.start) };
        code.map(|code| resolver::narrow(code, components));
    }
}
