// SPDX-License-Identifier: LGPL-2.1-only
//! Memory that the processes of a tree have in common with the root, as workers have since they were forked: it is
//! filled once, before any process is made, and all inherit it by copy on write.
//!
//! Only plain private memory whose mapping begins at the same address in both is considered. Each process keeps of it
//! what it had, to the chunk; what it had otherwise it fills itself, and what it did not have it gives up.
//!
//! # Safety
//! The mappings are at addresses that were free (MAP_FIXED_NOREPLACE) and belong to this value in the restarter, and to
//! its copy in each process that is made.
#![allow(unsafe_code)]

use super::mapping::Mapping;
use super::phase1_check::Saved;
use super::phase4_fill::read_pages;
use super::phase7_leave::be_alone;
use super::placed::Placed;
use crate::error::Result;
use crate::image::read::Image;
use ckpt_abi::image::{Chunk, Vma, VmaKind, vma_flag};
use nix::libc;
use nix::sys::mman::MapFlags;
use std::collections::HashSet;

/// Less than so many bytes are not worth it.
const LEAST: u64 = 4 << 20;

/// What was filled.
pub(crate) struct Pooled {
    areas: Vec<Vma>,
    /// The root's chunks in them, by address.
    chunks: Vec<Chunk>,
}

/// What a process keeps of it.
#[derive(Default)]
pub(crate) struct Kept {
    /// Where mappings of the process are that need not be made.
    pub(super) places: Vec<(u64, u64)>,
    /// The chunks that are there already, by their addresses.
    there: HashSet<u64>,
}

impl Pooled {
    /// Maps and fills what the root and any other process have in common.
    ///
    /// # Errors
    /// A chunk is damaged, or a thread that reads does not end.
    pub(crate) fn make(image: &Image, all: &[Saved<'_>]) -> Result<Option<Self>> {
        let Some((root, others)) = all.split_first() else { return Ok(None) };
        let wanted = root.vmas.iter().filter(|vma| is_plain(vma));
        let areas: Vec<_> =
            wanted.filter(|vma| others.iter().any(|o| shares(root, o, vma))).collect();
        let inside = |chunk: &&Chunk| areas.iter().any(|vma| contains(vma, chunk));
        let chunks: Vec<Chunk> = root.memory.iter().filter(inside).copied().collect();
        if chunks.iter().map(|chunk| u64::from(chunk.len)).sum::<u64>() < LEAST {
            return Ok(None);
        }
        let mut placed = Vec::new();
        for vma in areas {
            let flags = if vma.flags & vma_flag::NORESERVE != 0 {
                MapFlags::MAP_NORESERVE
            } else {
                MapFlags::empty()
            };
            // What is taken here by the stub each process fills for itself.
            let Ok(mapping) = Mapping::anonymous(vma.start, vma.end - vma.start, flags) else {
                continue;
            };
            placed.push(Placed::whole(vma, mapping));
        }
        let areas: Vec<Vma> = placed.iter().map(|home| home.record).collect();
        let chunks: Vec<Chunk> = chunks
            .into_iter()
            .filter(|chunk| areas.iter().any(|vma| contains(vma, chunk)))
            .collect();
        let read = read_pages(image, &chunks, &placed).and_then(|()| be_alone());
        let pooled = Self { areas, chunks };
        match read {
            Ok(()) => Ok(Some(pooled)),
            Err(e) => {
                pooled.give_up();
                Err(e)
            }
        }
    }

    /// Gives all of it up: in the restarter, when the processes are made.
    pub(crate) fn give_up(&self) {
        self.areas.iter().for_each(|vma| unmap(vma.start, vma.end));
    }

    /// Keeps what a process had, in that process.
    pub(crate) fn keep(&self, saved: &Saved<'_>) -> Kept {
        let mut kept = Kept::default();
        for area in &self.areas {
            let own = saved.vmas.iter().find(|vma| vma.start == area.start && is_plain(vma));
            let Some(own) = own.filter(|own| own.flags == area.flags) else {
                unmap(area.start, area.end);
                continue;
            };
            if own.end < area.end {
                unmap(own.end, area.end);
            }
            let grown = own.end.saturating_sub(area.end);
            // Where the rest is taken here, it lies elsewhere until the restorer moves it, as a whole.
            if grown != 0 && Mapping::anonymous(area.end, grown, MapFlags::empty()).is_err() {
                unmap(area.start, area.end);
                continue;
            }
            kept.places.push((own.start, own.end));
            let inherited = self.chunks.iter().filter(|chunk| contains(area, chunk));
            for chunk in inherited.filter(|chunk| chunk.address < own.end) {
                let mut at = chunk.address;
                for same in same(saved, chunk) {
                    forget(at, same.address);
                    at = same.address + u64::from(same.len);
                    kept.there.insert(same.address);
                }
                forget(at, end(chunk).min(own.end));
            }
        }
        kept
    }
}

impl Kept {
    /// The chunks that are still to be read.
    pub(super) fn missing(&self, chunks: &[Chunk]) -> Vec<Chunk> {
        chunks.iter().filter(|chunk| !self.there.contains(&chunk.address)).copied().collect()
    }

    /// Whether a mapping is there already.
    pub(super) fn has(&self, record: &Vma) -> bool {
        self.places.contains(&(record.start, record.end))
    }
}

/// Memory without a file that may be read and written and has nothing special.
fn is_plain(vma: &Vma) -> bool {
    const SPECIAL: u64 = vma_flag::REGION | vma_flag::GROWSDOWN | vma_flag::DROPPABLE;
    let read_write = (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned();
    vma.kind == VmaKind::Private as u32
        && vma.prot == read_write
        && vma.pkey == 0
        && vma.flags & SPECIAL == 0
}

/// Whether another process has a mapping that begins where the root's does, with some of its chunks.
fn shares(root: &Saved<'_>, other: &Saved<'_>, vma: &Vma) -> bool {
    let twin =
        other.vmas.iter().any(|o| o.start == vma.start && is_plain(o) && o.flags == vma.flags);
    twin && root
        .memory
        .iter()
        .filter(|chunk| contains(vma, chunk))
        .any(|chunk| same(other, chunk).next().is_some())
}

/// The chunks of a process with content that the root has at the same addresses, in this chunk of the root's.
fn same<'a>(saved: &'a Saved<'_>, chunk: &'a Chunk) -> impl Iterator<Item = &'a Chunk> {
    let first = saved.memory.partition_point(|own| own.address < chunk.address);
    let inside = saved.memory[first..].iter().take_while(|own| own.address < end(chunk));
    inside.filter(|own| {
        let there = chunk.offset + (own.address - chunk.address);
        own.offset == there && own.stored == own.len && end(own) <= end(chunk)
    })
}

fn end(chunk: &Chunk) -> u64 {
    chunk.address + u64::from(chunk.len)
}

fn contains(vma: &Vma, chunk: &Chunk) -> bool {
    (vma.start..vma.end).contains(&chunk.address)
}

fn unmap(start: u64, end: u64) {
    let at: *mut libc::c_void = std::ptr::with_exposed_provenance_mut(start as usize);
    // SAFETY: a part of a mapping that was made here, or inherited from who made it, and of which no slice is alive.
    unsafe { libc::munmap(at, (end - start) as usize) };
}

/// Makes private memory zeros again.
fn forget(start: u64, end: u64) {
    if start >= end {
        return;
    }
    let at: *mut libc::c_void = std::ptr::with_exposed_provenance_mut(start as usize);
    // SAFETY: as above; the memory stays mapped.
    unsafe { libc::madvise(at, (end - start) as usize, libc::MADV_DONTNEED) };
}
