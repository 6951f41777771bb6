// SPDX-License-Identifier: LGPL-2.1-only
//! Memory of a program that still runs elsewhere: filled from an image that is there already, and brought up to date with
//! each newer one by the pages that have changed, so that the last has little to fill, whatever its size. What is mapped
//! here the restart takes over as it takes what a tree has in common ([`Kept`]).
//!
//! # Safety
//! Mappings are made at addresses that were free, belong to this process alone, and are written through slices of which
//! no other is alive.
#![allow(unsafe_code)]

use super::mapping::Mapping;
use super::pages;
use super::phase1_check::Saved;
use super::phase4_fill::unreserved;
use super::phase7_leave::be_alone;
use super::placed::Placed;
use super::pooled::{Kept, advise, forget, is_plain};
use super::shares::end;
use super::space::Space;
use crate::error::Result;
use crate::image::read::Image;
use crate::resource::memory;
use ckpt_abi::image::{Chunk, Codec, VmaRecord, vma_flag};
use ckpt_abi::state::process_flag;
use nix::libc;

/// Mappings with less content are filled at the end, in bytes.
const LEAST: u64 = 1 << 20;

/// What is mapped, and which chunks are in it, by address.
#[derive(Default)]
pub(super) struct Early {
    placed: Vec<Placed>,
    chunks: Vec<Chunk>,
}

impl Early {
    /// Makes it as `all` of an image have it; `changed` are the parts of its file that have changed since the last one: where they
    /// begin and end, in ascending order, none in another.
    ///
    /// # Errors
    /// The image is damaged, or there is no memory.
    pub(super) fn bring(
        &mut self,
        image: &Image,
        all: &[Saved<'_>],
        changed: &[(u64, u64)],
    ) -> Result<()> {
        // What several have is theirs alone to fill: none of it is known to be as it was.
        let [saved] = all else {
            self.placed.drain(..).for_each(|home| home.mapping.leave());
            self.chunks.clear();
            return Ok(());
        };
        let huge = self.placed.is_empty() && saved.process.flags & process_flag::THP_DISABLE == 0;
        self.map(saved, all)?;
        let (mut fresh, mut now) = (Vec::new(), Vec::new());
        for home in &self.placed {
            let [old, new] = [&self.chunks, &saved.memory].map(|all| within(all, &home.record));
            let mut at = home.record.start;
            for chunk in new {
                clear(home, at..chunk.address, old);
                at = end(chunk);
                let before = old.binary_search_by_key(&chunk.address, |old| old.address);
                match before.ok().map(|index| &old[index]).filter(|old| lies_as(old, chunk)) {
                    Some(before) if before.hash == chunk.hash => {}
                    Some(_) => renew(image, home, chunk, changed)?,
                    None => fresh.push(*chunk),
                }
            }
            clear(home, at..home.record.end, old);
            now.extend_from_slice(new);
        }
        pages::read(image, &fresh, &self.placed, huge)?;
        self.chunks = now;
        // Children are made next, without threads.
        be_alone()
    }

    /// Has the mappings that are worth it, and no others.
    fn map(&mut self, saved: &Saved<'_>, all: &[Saved<'_>]) -> Result<()> {
        const MADE: u64 = vma_flag::NORESERVE | vma_flag::HUGEPAGE | vma_flag::NOHUGEPAGE;
        // What it may be used for is set at the end.
        let same = |one: &VmaRecord, other: &VmaRecord| {
            (one.start, one.end, one.flags & MADE, one.kind)
                == (other.start, other.end, other.flags & MADE, other.kind)
        };
        let (placed, chunks) = (&mut self.placed, &mut self.chunks);
        placed.retain(|home| {
            let stays = saved.vmas.iter().any(|vma| is_plain(vma) && same(vma, &home.record));
            if !stays {
                home.mapping.leave();
                // What was in it is nowhere now: a mapping that has grown begins as zeros.
                let home = &home.record;
                chunks.retain(|chunk| chunk.address < home.start || chunk.address >= home.end);
            }
            stays
        });
        let content = |vma: &VmaRecord| -> u64 {
            within(&saved.memory, vma).iter().map(|chunk| u64::from(chunk.len)).sum()
        };
        let mut space = Space::of_all(all)?;
        let here = Space::of_all(&[])?;
        for vma in saved.vmas.iter().filter(|vma| is_plain(vma) && content(vma) >= LEAST) {
            let place = self.placed.partition_point(|home| home.record.start < vma.start);
            if self.placed.get(place).is_some_and(|home| home.record.start == vma.start) {
                continue;
            }
            let len = vma.end - vma.start;
            let is_free = here.is_free(vma.start, vma.end);
            let at = if is_free { vma.start } else { space.find(len, vma.start)? };
            let mapping = Mapping::anonymous(at, len, unreserved(vma))?;
            memory::advice::advice(vma.flags & (vma_flag::HUGEPAGE | vma_flag::NOHUGEPAGE))
                .for_each(|advice| mapping.advise(advice));
            // Who is made on the way to the program does not have it.
            mapping.advise(libc::MADV_DONTFORK);
            self.placed.insert(place, Placed::whole(vma, mapping));
        }
        Ok(())
    }

    /// Leaves it to the restart.
    pub(super) fn keep(self) -> Kept {
        let place = |home: Placed| (home.record.start..home.record.end, home.mapping.at());
        let there = self.chunks.iter().map(|chunk| chunk.address).collect();
        Kept::of(self.placed.into_iter().map(place).collect(), there)
    }
}

/// The chunks in a mapping.
fn within<'a>(all: &'a [Chunk], vma: &VmaRecord) -> &'a [Chunk] {
    let first = all.partition_point(|chunk| chunk.address < vma.start);
    let len = all[first..].partition_point(|chunk| chunk.address < vma.end);
    &all[first..first + len]
}

/// Whether two chunks are the same but for their content.
fn lies_as(one: &Chunk, other: &Chunk) -> bool {
    let place = |c: &Chunk| (c.offset, c.len, c.stored, c.skip, c.codec);
    place(one) == place(other) && one.codec == Codec::Plain as u32 && one.stored == one.len
}

/// Reads the parts of a chunk that have changed.
fn renew(image: &Image, home: &Placed, chunk: &Chunk, changed: &[(u64, u64)]) -> Result<()> {
    let last = chunk.offset + u64::from(chunk.len);
    let first = changed.partition_point(|(_, end)| *end <= chunk.offset);
    for (from, to) in changed[first..].iter().take_while(|(from, _)| *from < last) {
        let (from, to) = (chunk.offset.max(*from), last.min(*to));
        let at = chunk.address - home.record.start + (from - chunk.offset);
        // SAFETY: it is mapped here and may be written, and no other slice of it is alive.
        let slice = unsafe { home.mapping.slice(at, to - from) };
        let slice = slice.ok_or_else(|| image.damaged("memory lies outside its mapping"))?;
        image.read(from, slice)?;
    }
    Ok(())
}

/// Makes zeros where the new image has nothing, if the old one had anything.
fn clear(home: &Placed, part: std::ops::Range<u64>, old: &[Chunk]) {
    let first = old.partition_point(|chunk| end(chunk) <= part.start);
    let some = old[first..].iter().take_while(|chunk| chunk.address < part.end).count();
    let at = |address: u64| home.mapping.at() + (address - home.record.start);
    forget(at(part.start)..at(part.end), &old[first..first + some]);
}

impl Kept {
    /// Lets children have it, or not have it any more.
    pub(super) fn bequeath(&self) {
        self.areas().for_each(|area| _ = advise(area, libc::MADV_DOFORK));
    }
}
