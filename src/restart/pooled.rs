// SPDX-License-Identifier: LGPL-2.1-only
//! Memory that processes of a tree have in common, as workers have since they were forked: it is filled once, and
//! inherited by copy on write, as it was ([`super::shares`] decides who has what when).
//!
//! The restarter maps and fills it before any process is made: where it belongs if that is free there, else elsewhere, for
//! the restorer to move. Each process keeps of it what it had; what it had otherwise it writes over, page by page, and
//! what it did not have it gives up.
//!
//! # Safety
//! The mappings are at addresses that were free (MAP_FIXED_NOREPLACE) and belong to this value in the restarter, and to
//! its copy in each process that is made.
#![allow(unsafe_code)]

use super::mapping::Mapping;
use super::pages;
use super::phase1_check::Saved;
use super::phase7_leave::be_alone;
use super::placed::Placed;
use super::shares::{self, Birth, Holder, Now, cell_end, common};
use super::space::Space;
use crate::error::{Error, Result};
use crate::image::PAGE;
use crate::image::read::Image;
use crate::order;
use crate::resource::kinship::plan::Life;
use ckpt_abi::image::{Chunk, Member, VmaKind, VmaRecord, vma_flag};
use nix::libc;
use nix::sys::mman::MapFlags;
use std::collections::HashSet;
use std::iter;
use std::ops::Range;
use zerocopy::FromZeros;

/// To save less than so many bytes is not worth it.
const LEAST: u64 = 4 << 20;

/// What this process has of it.
#[derive(Default)]
pub(crate) struct Pool<'a> {
    orders: Vec<Range<usize>>,
    areas: Vec<Area<'a>>,
    /// What the only process has already ([`super::early`]).
    early: Kept,
}

/// Addresses at which several processes have mappings of one kind.
struct Area<'a> {
    image: &'a Image,
    range: Range<u64>,
    /// The flags of these mappings.
    flags: u64,
    /// Where it is mapped.
    at: u64,
    holders: Vec<Holder>,
    /// What is there, by address.
    now: Vec<Now>,
    /// Nobody who is made now has it.
    withheld: bool,
}

/// What a process keeps of it.
#[derive(Default)]
pub(crate) struct Kept {
    /// Its mappings that need not be made, and where they are.
    places: Vec<(Range<u64>, u64)>,
    /// The chunks that are there already, by their addresses.
    there: HashSet<u64>,
}

impl<'a> Pool<'a> {
    /// Maps and fills what the processes have in common, as the root is to have it when it makes the first.
    ///
    /// # Errors
    /// A chunk is damaged, or a thread that reads does not end.
    pub(crate) fn make(
        image: &'a Image,
        all: &[Saved<'_>],
        members: &[Member],
        lives: &[Life],
        early: Kept,
    ) -> Result<Self> {
        let orders = shares::orders(lives);
        let mut pool = Self { areas: areas(image, all, members, &orders), orders, early };
        let birth = Birth { young: 0..lives.len(), end: lives.len(), maker: None };
        let (mut choices, mut saved) = (Vec::new(), 0);
        pool.areas.retain(|area| {
            let chosen = shares::choices(&area.holders, &area.now, &birth);
            saved += chosen.iter().map(|(.., gain)| gain).sum::<u64>();
            let some = !chosen.is_empty();
            choices.extend(some.then_some(chosen));
            some
        });
        if saved < LEAST {
            pool.areas.clear();
            return Ok(pool);
        }
        let (mut choices, mut filled) = (choices.into_iter(), Ok(()));
        pool.areas.retain_mut(|area| {
            let chosen = choices.next().unwrap_or_default();
            // What has no room here each process fills for itself.
            let settled = area.settle(all);
            if settled && filled.is_ok() {
                filled = area.fill(&chosen);
            }
            settled
        });
        match filled.and_then(|()| be_alone()) {
            Ok(()) => Ok(pool),
            Err(e) => {
                pool.give_up();
                Err(e)
            }
        }
    }

    /// Lets the root inherit it, and nobody who was made before: who only watches would keep it for ever.
    pub(crate) fn bequeath(&self) {
        for area in &self.areas {
            advise(area.here(&area.range), libc::MADV_DOFORK);
        }
        self.early.bequeath();
    }

    /// Gives all of it up: in the restarter, when the processes are made.
    pub(crate) fn give_up(&mut self) {
        self.areas.drain(..).for_each(|area| unmap(area.here(&area.range)));
        std::mem::take(&mut self.early).areas().for_each(unmap);
    }

    /// Has what members are to inherit that are made next, one after the other, by this process, which becomes `maker`.
    ///
    /// # Errors
    /// A chunk is damaged.
    pub(crate) fn before(&mut self, maker: Option<usize>, members: &[usize]) -> Result<()> {
        let (Some(first), Some(last)) = (members.first(), members.last()) else { return Ok(()) };
        if self.areas.is_empty() {
            return Ok(());
        }
        let young = self.orders[*first].start..self.orders[*last].end;
        let end = maker.map_or(young.end, |maker| self.orders[maker].end);
        let birth = Birth { young, end, maker: maker.map(|maker| self.orders[maker].start) };
        for area in &mut self.areas {
            area.withheld = !area.holders.iter().any(|h| birth.young.contains(&h.order));
            let advice = if area.withheld { libc::MADV_DONTFORK } else { libc::MADV_DOFORK };
            let advised = advise(area.here(&area.range), advice);
            area.withheld &= advised;
            for (cell, to, _) in shares::choices(&area.holders, &area.now, &birth) {
                area.turn(cell, to)?;
            }
            area.now.iter_mut().for_each(|now| now.given = true);
        }
        Ok(())
    }

    /// Forgets what this process, which was just made, has not inherited.
    pub(crate) fn born(&mut self) {
        self.areas.retain(|area| !area.withheld);
    }

    /// Keeps what a process had, in that process.
    ///
    /// # Errors
    /// A chunk is damaged.
    pub(crate) fn keep(mut self, saved: &Saved<'_>) -> Result<Kept> {
        let mut kept = std::mem::take(&mut self.early);
        for area in &mut self.areas {
            let own = area.holders.iter().position(|h| h.process == saved.part.number());
            let cells: Vec<u64> = area.now.iter().map(|now| now.cell).collect();
            for cell in cells.into_iter().filter(|_| own.is_some()) {
                area.turn(cell, own.unwrap_or(0))?;
                let own = own.map_or(&[][..], |own| area.holders[own].cell(cell));
                kept.there.extend(own.iter().map(|chunk| chunk.address));
            }
            let ranges = own.map_or(&[][..], |own| &area.holders[own].ranges);
            let mut at = area.range.start;
            for range in ranges {
                unmap(area.here(&(at..range.start)));
                at = range.end;
                let here = area.here(range);
                advise(here.clone(), libc::MADV_DOFORK);
                kept.places.push((range.clone(), here.start));
            }
            unmap(area.here(&(at..area.range.end)));
        }
        Ok(kept)
    }
}

impl Area<'_> {
    /// Where a part of it is in this process.
    fn here(&self, part: &Range<u64>) -> Range<u64> {
        let at = |address: u64| self.at + (address - self.range.start);
        at(part.start)..at(part.end)
    }

    /// Maps it; false where there is no room.
    fn settle(&mut self, all: &[Saved<'_>]) -> bool {
        let flags = match self.flags & vma_flag::NORESERVE != 0 {
            true => MapFlags::MAP_NORESERVE,
            false => MapFlags::empty(),
        };
        let len = self.range.end - self.range.start;
        self.at = self.range.start;
        if Mapping::anonymous(self.at, len, flags).is_ok() {
            return true;
        }
        let found = Space::of_all(all).and_then(|mut space| space.find(len, self.at));
        found.is_ok_and(|at| {
            self.at = at;
            Mapping::anonymous(at, len, flags).is_ok()
        })
    }

    /// Fills it for the first time.
    fn fill(&mut self, chosen: &[(u64, usize, u64)]) -> Result<()> {
        let whole = VmaRecord {
            start: self.range.start,
            end: self.range.end,
            kind: VmaKind::Private as u32,
            ..VmaRecord::new_zeroed()
        };
        let mapping = Mapping::of_another(self.at, whole.end - whole.start);
        mapping.advise(libc::MADV_DONTFORK);
        let content = |(cell, to, _): &(u64, usize, u64)| self.holders[*to].cell(*cell).to_vec();
        let chunks: Vec<Chunk> = chosen.iter().flat_map(content).collect();
        let now = |(cell, holder, _): &(u64, usize, u64)| Now {
            cell: *cell,
            holder: *holder,
            given: false,
        };
        self.now = chosen.iter().map(now).collect();
        pages::read(self.image, &chunks, &[Placed::whole(&whole, mapping)], false)
    }

    /// Makes the content of a cell that of another holder. A page that is the same is not written to, for then it would
    /// be another.
    fn turn(&mut self, cell: u64, to: usize) -> Result<()> {
        let known = self.now.binary_search_by_key(&cell, |now| now.cell);
        let old = known.map_or(&[][..], |at| self.holders[self.now[at].holder].cell(cell));
        let mut at = cell.max(self.range.start);
        for chunk in self.holders[to].cell(cell) {
            forget(self.here(&(at..chunk.address)), old);
            at = shares::end(chunk);
            let there = common(std::slice::from_ref(chunk), old);
            if there < u64::from(chunk.len) {
                self.write(chunk, old.is_empty())?;
            }
        }
        forget(self.here(&(at..cell_end(cell).min(self.range.end))), old);
        match known {
            Ok(at) => self.now[at].holder = to,
            Err(at) => self.now.insert(at, Now { cell, holder: to, given: false }),
        }
        Ok(())
    }

    /// Writes a chunk, over other content or where nothing is.
    fn write(&self, chunk: &Chunk, is_blank: bool) -> Result<()> {
        let here = self.here(&(chunk.address..shares::end(chunk)));
        let mapping = Mapping::of_another(here.start, here.end - here.start);
        // SAFETY: the memory is mapped here and may be written, and no other slice of it is alive.
        let slice = unsafe { mapping.slice(0, here.end - here.start) };
        let slice = slice.ok_or_else(|| Error::new("a write outside of a mapping"))?;
        if is_blank {
            return self.image.read_chunk_into(chunk, slice);
        }
        let bytes = self.image.read_chunk(chunk)?;
        let pages = slice.chunks_mut(PAGE as usize).zip(bytes.chunks(PAGE as usize));
        pages
            .filter(|(there, wanted)| there != wanted)
            .for_each(|(there, wanted)| there.copy_from_slice(wanted));
        Ok(())
    }
}

impl Kept {
    pub(super) fn of(places: Vec<(Range<u64>, u64)>, there: HashSet<u64>) -> Self {
        Self { places, there }
    }

    /// Where it is in this process.
    pub(super) fn areas(&self) -> impl Iterator<Item = Range<u64>> {
        self.places.iter().map(|(range, at)| *at..at + (range.end - range.start))
    }

    /// The chunks that are still to be read.
    pub(super) fn missing(&self, chunks: &[Chunk]) -> Vec<Chunk> {
        chunks.iter().filter(|chunk| !self.there.contains(&chunk.address)).copied().collect()
    }

    /// Where a mapping is already.
    pub(super) fn place(&self, record: &VmaRecord) -> Option<u64> {
        let place = self.places.iter().find(|(range, _)| *range == (record.start..record.end));
        place.map(|(_, at)| *at)
    }

    /// The mappings that are where they belong.
    pub(super) fn in_place(&self) -> Vec<(u64, u64)> {
        let right = self.places.iter().filter(|(range, at)| range.start == *at);
        right.map(|(range, _)| (range.start, range.end)).collect()
    }
}

/// Memory without a file that has nothing special. What it may be used for is set at the end.
pub(super) fn is_plain(vma: &VmaRecord) -> bool {
    const SPECIAL: u64 = vma_flag::REGION
        | vma_flag::GROWSDOWN
        | vma_flag::DROPPABLE
        | vma_flag::FOLLOWS
        | vma_flag::HUGETLB;
    vma.kind == VmaKind::Private as u32 && vma.pkey == 0 && vma.flags & SPECIAL == 0
}

/// The mappings of a process with content that may be others', too.
fn mappings<'a>(saved: &'a Saved<'_>) -> impl Iterator<Item = (&'a VmaRecord, Vec<Chunk>)> {
    saved.vmas.iter().filter(|vma| is_plain(vma)).filter_map(|vma| {
        let first = saved.memory.partition_point(|chunk| chunk.address < vma.start);
        let len = saved.memory[first..].partition_point(|chunk| chunk.address < vma.end);
        let chunks = saved.memory[first..first + len].iter();
        let chunks: Vec<Chunk> = chunks.filter(|c| shares::is_sharable(c)).copied().collect();
        (!chunks.is_empty()).then_some((vma, chunks))
    })
}

/// The areas in which two processes or more have mappings.
fn areas<'a>(
    image: &'a Image,
    all: &[Saved<'_>],
    members: &[Member],
    orders: &[Range<usize>],
) -> Vec<Area<'a>> {
    // By flags and address, each with its process.
    let mut found: Vec<(u64, u64, u64, usize)> = Vec::new();
    for (number, saved) in all.iter().enumerate() {
        found.extend(mappings(saved).map(|(vma, _)| (vma.flags, vma.start, vma.end, number)));
    }
    order::by_key(&mut found, |(_, _, end, _)| (*end, 0));
    order::by_key(&mut found, |(flags, start, ..)| (*flags, *start));
    let mut areas: Vec<Area<'_>> = Vec::new();
    for (flags, start, end, _) in &found {
        match areas.last_mut() {
            Some(last) if last.flags == *flags && *start < last.range.end => {
                last.range.end = last.range.end.max(*end);
            }
            _ => areas.push(Area {
                image,
                range: *start..*end,
                flags: *flags,
                at: *start,
                holders: Vec::new(),
                now: Vec::new(),
                withheld: false,
            }),
        }
    }
    let order = |number: u32| {
        let member = members.iter().position(|member| member.process == number);
        member.and_then(|member| orders.get(member)).map_or(0, |order| order.start)
    };
    for (number, saved) in (0..).zip(all) {
        for (vma, chunks) in mappings(saved) {
            let inside = |a: &&mut Area| a.flags == vma.flags && a.range.contains(&vma.start);
            let Some(area) = areas.iter_mut().find(inside) else { continue };
            match area.holders.last_mut() {
                Some(last) if last.process == number => {
                    last.ranges.push(vma.start..vma.end);
                    last.chunks.extend(chunks);
                }
                _ => area.holders.push(Holder {
                    order: order(number),
                    process: number,
                    ranges: iter::once(vma.start..vma.end).collect(),
                    chunks,
                }),
            }
        }
    }
    areas.retain(|area| area.holders.len() > 1);
    areas
}

fn pointer(part: &Range<u64>) -> *mut libc::c_void {
    std::ptr::with_exposed_provenance_mut(part.start as usize)
}

fn unmap(part: Range<u64>) {
    if !part.is_empty() {
        // SAFETY: a part of a mapping that was made here, or inherited from who made it, and of which no slice is alive.
        unsafe { libc::munmap(pointer(&part), (part.end - part.start) as usize) };
    }
}

/// Gives advice that changes no content; whether it was taken.
pub(super) fn advise(part: Range<u64>, advice: i32) -> bool {
    // SAFETY: as above; what a fork(2) inherits is all that changes.
    unsafe { libc::madvise(pointer(&part), (part.end - part.start) as usize, advice) == 0 }
}

/// Makes private memory zeros again, if anything is there.
pub(super) fn forget(part: Range<u64>, old: &[Chunk]) {
    if part.is_empty() || old.is_empty() {
        return;
    }
    // SAFETY: as above; the memory stays mapped.
    unsafe { libc::madvise(pointer(&part), (part.end - part.start) as usize, libc::MADV_DONTNEED) };
}
