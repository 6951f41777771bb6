// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 3: the program's memory, filled and checked, in this process.
//!
//! Whatever is free here is mapped where the program has it; the rest is filled elsewhere and
//! moved by the restorer with its page tables.
//!
//! # Safety
//! Mappings are written through slices that do not overlap, before their protection is final.
#![allow(unsafe_code)]

use super::Options;
use super::callers::{self, List};
use super::mapping::{self, Mapping};
use super::phase1_check::Saved;
use super::phase2_open::Opened;
use super::space::Space;
use super::{auxv, following, frames};
use crate::error::{Because, Error, Result};
use crate::image::read::Image;
use crate::image::{PAGE, stub};
use crate::proc;
use crate::resource::cpu::{self, Set};
use crate::resource::{memory, resolver, vdso};
use crate::settings::Settings;
use ckpt_abi::image::{Chunk, Guard, GuardKind, SignalAction, Vma, VmaKind, vma_flag};
use ckpt_abi::region::{Control, NAME_LEN, TURNS, Turns};
use ckpt_abi::turn::{Event, Seen, Turn, step};
use nix::libc;
use nix::sys::mman::MapFlags;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Longest vdso in bytes; those of all kernels so far are of a few pages.
const VDSO_MAX: u64 = 1 << 20;

/// A mapping of the program, where it is now.
pub struct Placed {
    /// Its record.
    pub record: Vma,
    /// What was mapped.
    pub mapping: Mapping,
    /// Offsets at which the kernel has another mapping by now, which has to be moved for itself.
    pub borders: Vec<u64>,
    /// It has its final protection and holds nothing.
    pub is_final: bool,
    /// It shows the file that it showed when it was saved.
    pub follows: bool,
}

/// Where the vdso will be.
pub struct Vdso {
    /// Address for ARCH_MAP_VDSO_64; None where one of the kernels has no vdso.
    pub map_at: Option<u64>,
}

/// The filled memory.
pub struct Filled {
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
}

/// Maps and fills.
pub fn fill(
    image: &Image,
    saved: &mut Saved,
    opened: &Opened,
    options: &Options,
) -> Result<Filled> {
    let own = proc::maps::read(std::process::id().cast_signed())?;
    let mut stub_space = Space::default();
    own.iter().for_each(|v| stub_space.take(v.start, v.end));
    let mut space = stub_space.clone();
    saved.vmas.iter().for_each(|v| space.take(v.start, v.end));
    let region_end = saved.process.region + saved.process.region_len;
    space.take(saved.process.region, region_end);
    space.take(saved.process.vvar, saved.process.vvar + saved.process.vvar_len);

    let mut placed = Vec::new();
    let (vdso, patched) = place_vdso(image, saved, &own, &mut space)?;
    for (i, record) in saved.vmas.iter().enumerate() {
        if record.kind == VmaKind::Vdso as u32 && patched.is_none() {
            continue;
        }
        let in_place = stub_space.is_free(record.start, record.end);
        if !in_place && record.flags & vma_flag::REGION != 0 {
            return Err(Error::new(format!(
                "the addresses at {:#x}, which ckpt has in the program, are taken in this process",
                record.start
            ))
            .hint("execute the checkpoint by itself (./foo.ckpt): not by way of ckpt, and without LD_PRELOAD"));
        }
        let len = record.end - record.start;
        let at = if in_place { record.start } else { space.find(len, record.start)? };
        let followed = following::map(image, saved, record, at);
        let (follows, is_final) = (followed.is_some(), is_final(saved, record));
        let mapping = match followed {
            Some(mapping) => mapping,
            None if is_final && record.kind == VmaKind::Private as u32 => {
                Mapping::reservation(at, len, record.prot)?
            }
            None => map(record, at, i, opened, is_final)?,
        };
        let is_final = is_final && !follows;
        placed.push(Placed { record: *record, mapping, borders: Vec::new(), is_final, follows });
    }
    if patched.is_some() {
        placed.extend(empty_vvar(saved, &stub_space, &mut space)?);
        placed.sort_by_key(|p| p.record.start);
    }
    read_pages(image, saved, &placed)?;
    placed.iter().filter(|home| home.follows).for_each(|home| following::clear(saved, home));
    narrow_resolver(saved, &mut placed);
    auxv::update(saved, &mut placed)?;
    frames::convert(saved, &mut placed, &mut space)?;
    if let Some(code) = patched {
        let record = placed.iter_mut().find(|p| p.record.kind == VmaKind::Vdso as u32);
        record.map(|p| p.mapping.write(0, &code)).transpose()?;
    }
    let missing = List::make(&opened.missing, &mut space)?;
    let (control, actions) = fill_region(saved, &mut placed, options, missing.as_ref())?;
    let region = saved.process.region;
    let turn = renew_turns(region, &mut placed)?;
    finish(&mut placed, &saved.guards)?;
    Ok(Filled { placed, control, turn, region, actions, vdso, space, missing })
}

/// Whether a mapping is one that the program cannot write to, and for which the image has nothing. Were it
/// writable for a while, it would count as memory (the kernel's accountable_mapping), and the kernel would
/// join it with its neighbours and put a huge page across the border.
fn is_final(saved: &Saved, record: &Vma) -> bool {
    let private = [VmaKind::Private as u32, VmaKind::PrivateFile as u32].contains(&record.kind);
    let special =
        record.flags & (vma_flag::REGION | vma_flag::GROWSDOWN | vma_flag::DROPPABLE) != 0;
    if !private || record.prot & libc::PROT_WRITE as u32 != 0 || special {
        return false;
    }
    let next = saved.memory.partition_point(|c| c.address + u64::from(c.len) <= record.start);
    saved.memory.get(next).is_none_or(|chunk| chunk.address >= record.end)
}

fn map(record: &Vma, at: u64, index: usize, opened: &Opened, is_final: bool) -> Result<Mapping> {
    let len = record.end - record.start;
    let writable = record.prot | libc::PROT_WRITE as u32 | libc::PROT_READ as u32;
    let kind = VmaKind::try_from(record.kind)
        .map_err(|number| Error::new(format!("a mapping is of an unknown kind ({number})")))?;
    match kind {
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
        VmaKind::Private | VmaKind::Vdso if record.flags & vma_flag::DROPPABLE != 0 => {
            Mapping::droppable(at, len)
        }
        VmaKind::Private | VmaKind::Vdso => {
            let mut flags = MapFlags::empty();
            if record.flags & vma_flag::NORESERVE != 0 || record.prot == 0 {
                flags |= MapFlags::MAP_NORESERVE;
            }
            if record.flags & vma_flag::GROWSDOWN != 0 {
                flags |= MapFlags::MAP_GROWSDOWN;
            }
            Mapping::anonymous(at, len, flags)
        }
    }
}

/// Reads filled memory that the program may read; false where there is none.
pub fn read(placed: &[Placed], addr: u64, bytes: &mut [u8]) -> bool {
    let inside = |p: &&Placed| {
        (p.record.start..p.record.end).contains(&addr) && p.record.prot != 0 && !p.is_final
    };
    let slice = placed.iter().find(inside).and_then(|home| {
        // SAFETY: what has a protection is readable until `finish`, and no other slice of it is alive.
        unsafe { home.mapping.slice(addr - home.record.start, bytes.len() as u64) }
    });
    slice.map(|slice| bytes.copy_from_slice(slice)).is_some()
}

/// Overwrites filled memory, where [`read`] has read.
pub fn write(placed: &mut [Placed], addr: u64, bytes: &[u8]) -> Result<()> {
    let inside = |p: &&mut Placed| (p.record.start..p.record.end).contains(&addr);
    let Some(home) = placed.iter_mut().find(inside) else { return Ok(()) };
    let offset = addr - home.record.start;
    home.mapping.write(offset, bytes)
}

/// Makes the dynamic linker save what it has room for ([`resolver`]).
fn narrow_resolver(saved: &Saved, placed: &mut [Placed]) {
    const EXEC: u32 = libc::PROT_EXEC as u32;
    let components = saved.machine.xcr0;
    if cpu::xcr0() & !components & resolver::SAVED == 0 {
        return;
    }
    for home in placed.iter_mut().filter(|p| p.record.prot & EXEC != 0) {
        let record = &home.record;
        let ours = record.flags & vma_flag::REGION != 0;
        if record.kind != VmaKind::Private as u32 || ours || home.is_final {
            continue;
        }
        // SAFETY: the mapping is readable and writable until `finish`; no other slice is alive.
        let code = unsafe { home.mapping.slice(0, record.end - record.start) };
        code.map(|code| resolver::narrow(code, components));
    }
}

/// Reads all chunks into their mappings, checking each, with a few threads.
fn read_pages(image: &Image, saved: &Saved, placed: &[Placed]) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let work = || {
        while let Some(chunk) = saved.memory.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = read_chunk(image, placed, chunk) {
                failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
                return;
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get()).min(8);
    std::thread::scope(|scope| {
        // Where no thread can be made, this one does it all.
        for _ in 1..cores {
            let _ = std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, work);
        }
        work();
    });
    failure.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
}

fn read_chunk(image: &Image, placed: &[Placed], chunk: &Chunk) -> Result<()> {
    let index = placed.partition_point(|p| p.record.start <= chunk.address);
    let home = index.checked_sub(1).and_then(|i| placed.get(i));
    let shared = VmaKind::SharedFile as u32;
    let home = home.filter(|p| chunk.address < p.record.end && p.record.kind != shared);
    let Some(home) = home else {
        // The vdso's bytes, when the fresh one is used instead, or those of a file that is there.
        return image.read_chunk(chunk).map(drop);
    };
    if home.follows {
        return following::fill(image, home, chunk);
    }
    // SAFETY: the mapping is readable and writable until `finish`, and the chunks of an image, as was
    // checked, do not overlap.
    let slice = unsafe { home.mapping.slice(chunk.address - home.record.start, chunk.len.into()) };
    let slice = slice.ok_or_else(|| image.damaged("memory lies outside its mapping"))?;
    image.read_chunk_into(chunk, slice)
}

/// Decides where the vdso goes, and how the saved one's code has to look if it differs from this
/// kernel's.
fn place_vdso(
    image: &Image,
    saved: &Saved,
    own: &[proc::maps::Vma],
    space: &mut Space,
) -> Result<(Vdso, Option<Vec<u8>>)> {
    let here = vdso::Place::find(own);
    let Some(record) = saved.vdso() else { return Ok((Vdso { map_at: None }, None)) };
    let len = record.end - record.start;
    if len > VDSO_MAX {
        return Err(image.damaged("its vdso is too long"));
    }
    let mut old = vec![0; len as usize];
    saved.read(image, record.start, &mut old)?;
    if here.is_empty() {
        vdso::redirect(&mut old, &[], 0)?;
        return Ok((Vdso { map_at: None }, Some(old)));
    }
    let new = own_bytes(here.vdso, here.vdso_len)?;
    let process = &saved.process;
    if new == old && process.vvar_len == here.vvar_len && process.vvar_len != 0 {
        return Ok((Vdso { map_at: Some(process.vvar) }, None));
    }
    let at = space.find(here.len(), 0)?;
    vdso::redirect(&mut old, &new, at + (here.vdso - here.start()))?;
    Ok((Vdso { map_at: Some(at) }, Some(old)))
}

/// Zeros where the saved vdso has its data. Code that a signal interrupted inside of the saved vdso
/// finds a changed sequence count there and no clock that user space could read (VDSO_CLOCKMODE_NONE
/// is 0, include/vdso/clocksource.h), so it makes the system call.
fn empty_vvar(saved: &Saved, stub: &Space, space: &mut Space) -> Result<Option<Placed>> {
    let process = &saved.process;
    let (start, end) = (process.vvar, process.vvar + process.vvar_len);
    if start == end || saved.vmas.iter().any(|v| v.start < end && start < v.end) {
        return Ok(None);
    }
    let record = Vma {
        start,
        end,
        prot: libc::PROT_READ as u32,
        kind: VmaKind::Private as u32,
        ..Vma::new_zeroed()
    };
    let at = if stub.is_free(start, end) { start } else { space.find(end - start, start)? };
    let mapping = Mapping::anonymous(at, end - start, MapFlags::MAP_NORESERVE)?;
    Ok(Some(Placed { record, mapping, borders: Vec::new(), is_final: false, follows: false }))
}

fn own_bytes(addr: u64, len: u64) -> Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let memory = std::fs::File::open("/proc/self/mem").because(|| "cannot read our own memory")?;
    let mut bytes = vec![0; len as usize];
    memory.read_exact_at(&mut bytes, addr).because(|| "cannot read our own vdso")?;
    Ok(bytes)
}

/// Renews the payload: its control page, the checkpoint signal's disposition, and the copy of the
/// executable.
fn fill_region(
    saved: &Saved,
    placed: &mut [Placed],
    options: &Options,
    missing: Option<&List>,
) -> Result<(Control, Vec<SignalAction>)> {
    let base = saved.process.region;
    let home = placed.iter_mut().find(|p| p.record.start == base);
    let home = home.ok_or_else(|| Error::new("the image has no payload"))?;
    let mut control = Control::new_zeroed();
    // SAFETY: the mapping is readable and no other slice of it is alive.
    let page = unsafe { home.mapping.slice(0, callers::END as u64) };
    let page = page.ok_or_else(|| Error::new("the payload's region is too short"))?;
    callers::renew(page, saved, missing);
    let page = &mut page[..size_of::<Control>()];
    control.as_mut_bytes().copy_from_slice(page);
    let mut actions = saved.actions.clone();
    renew(&mut control, &mut actions, saved, &options.settings);
    page.copy_from_slice(control.as_bytes());

    let executable = stub::own()?;
    let len = (executable.len() as u64).next_multiple_of(PAGE);
    control.exe_len = executable.len() as u64;
    control.region_len = control.exe_start + len;
    let mut copy = Mapping::anonymous(base + control.exe_start, len, MapFlags::empty())?;
    copy.write(0, &executable)?;
    copy.protect(libc::PROT_READ as u32)?;
    page.copy_from_slice(control.as_bytes());
    Ok((control, actions))
}

/// Makes the state that no child inherits this process's; whose turn it will be then.
fn renew_turns(base: u64, placed: &mut [Placed]) -> Result<Turn> {
    let home = placed.iter_mut().find(|p| p.record.start == base + TURNS);
    let home = home.ok_or_else(|| Error::new("the image has no turns"))?;
    let mut turns = Turns::new_zeroed();
    // SAFETY: the mapping is readable and no other slice of it is alive.
    let page = unsafe { home.mapping.slice(0, size_of::<Turns>() as u64) };
    let page = page.ok_or_else(|| Error::new("the payload's turns are too short"))?;
    turns.as_mut_bytes().copy_from_slice(page);
    let seen = Seen { lives: false, ends: false };
    let next = |turn, event| step(turn, event, seen).unwrap_or(Turn::IDLE);
    let restoring = next(Turn::of(turns.turn), Event::Restore);
    (turns.turn, turns.owner, turns.keeper) = (restoring.word(), std::process::id(), 0);
    page.copy_from_slice(turns.as_bytes());
    Ok(next(restoring, Event::Resume))
}

fn renew(control: &mut Control, actions: &mut [SignalAction], saved: &Saved, settings: &Settings) {
    let before = control.config.asyncsig;
    if control.owner != saved.process.pid {
        // A forked child keeps the name that its id had given it.
        let end = control.config.name.iter().position(|b| *b == 0).unwrap_or(0);
        let suffix = format!(".{}", saved.process.pid);
        let room = control.config.name.get_mut(end..end + suffix.len());
        if let Some(room) = room.filter(|_| end + suffix.len() < NAME_LEN) {
            room.copy_from_slice(suffix.as_bytes());
        }
    }
    control.config = settings.apply(control.config);
    Set(saved.process.cpu).note(&mut control.config);
    control.owner = std::process::id();
    control.standard = crate::inject::region::standard(std::process::id().cast_signed());
    control.generation = saved.process.generation;
    (control.leftover, control.leftover_len) = (0, 0);
    let after = control.config.asyncsig;
    if before == after {
        return;
    }
    let slot = |signal: u32| (signal as usize).checked_sub(1);
    let mut ours = SignalAction::new_zeroed();
    if let Some(action) = slot(before).and_then(|i| actions.get_mut(i)) {
        // What the program has installed itself in the meantime stays.
        if action.handler == control.handler {
            ours = *action;
            *action = zerocopy::transmute!(control.old_action);
        }
    }
    if ours.handler == 0 {
        ours = handler_action(control);
    }
    if let Some(action) = slot(after).and_then(|i| actions.get_mut(i)) {
        control.old_action = zerocopy::transmute!(*action);
        *action = ours;
    }
}

fn handler_action(control: &Control) -> SignalAction {
    let region = crate::inject::region::Region { base: 0, control: *control };
    SignalAction::read_from_bytes(region.action().as_bytes())
        .unwrap_or_else(|_| SignalAction::new_zeroed())
}

/// Final protection and advice.
fn finish(placed: &mut [Placed], guards: &[Guard]) -> Result<()> {
    mapping::allocate_keys(placed.iter().map(|p| p.record.pkey).max().unwrap_or(0))?;
    for Placed { record, mapping, borders, follows, .. } in placed {
        memory::advice::advice(record.flags).for_each(|advice| mapping.advise(advice));
        if record.kind != VmaKind::SharedFile as u32 {
            mapping.protect(record.prot)?;
        }
        if record.pkey != 0 {
            mapping.protect_by(record.prot, record.pkey)?;
        }
        let first = guards.partition_point(|guard| guard.end <= record.start);
        for guard in guards[first..].iter().take_while(|guard| guard.start < record.end) {
            let (start, end) = (guard.start.max(record.start), guard.end.min(record.end));
            let (offset, len) = (start - record.start, end - start);
            let split = match guard.kind == GuardKind::Installed as u32 {
                true => mapping.guard(offset, len)?,
                // A file that is there has its own end.
                false if record.kind != VmaKind::Private as u32 || *follows => false,
                false => mapping.make_absent(offset, len, record.prot).map(|()| true)?,
            };
            if split {
                borders.extend([offset, offset + len]);
            }
        }
    }
    Ok(())
}
