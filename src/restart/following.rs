// SPDX-License-Identifier: LGPL-2.1-only
//! Private mappings of data files: a page that is in the file as it was at the checkpoint goes on to show the file, the
//! others get what the image has.
//!
//! # Safety
//! As in `phase4_fill`: slices of a mapping do not overlap, and it may be written until `finish`.
#![allow(unsafe_code)]

use super::mapping::Mapping;
use super::phase1_check::{Saved, Whole};
use super::placed::Placed;
use crate::error::Result;
use crate::image::PAGE;
use crate::image::read::Image;
use crate::order;
use crate::resource::descriptor::objects::Objects;
use crate::resource::memory;
use ckpt_abi::image::{Chunk, NO_OBJECT, VmaRecord, vma_flag};
use nix::libc;
use std::fs::File;
use std::ops::Range;

/// What a mapping that shows its file shows data of, by the addresses that the program has for it.
pub(crate) struct Shown(Vec<Range<u64>>);

/// Maps the file at `at`, if it is still there and lets itself be mapped; or the one that the image has brought along.
pub(super) fn map(
    whole: &Whole<'_>,
    objects: &Objects,
    record: &VmaRecord,
    at: u64,
) -> Option<(Mapping, Shown)> {
    if record.flags & vma_flag::FOLLOWS == 0 {
        return None;
    }
    let file = match record.object {
        NO_OBJECT => memory::open::same(&whole.path(record.name), record)?,
        object => File::from(objects.to_map(object).ok()?.0),
    };
    let prot = (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned();
    let mapping =
        Mapping::file(at, record.end - record.start, prot, false, &file, record.offset).ok()?;
    let size = file.metadata().ok()?.len();
    let data = memory::shown::data(&file, size, record.start..record.end, record.offset).collect();
    Some((mapping, Shown(data)))
}

/// Puts the content of a chunk into a mapping, page by page where they differ.
pub(super) fn fill(image: &Image, home: &Placed, chunk: &Chunk) -> Result<()> {
    let content = image.read_chunk(chunk)?;
    let offset = chunk.address - home.record.start;
    // SAFETY: the mapping may be written, and chunks do not overlap.
    let slice = unsafe { home.mapping.slice(offset, chunk.len.into()) };
    let slice = slice.ok_or_else(|| image.damaged("memory lies outside its mapping"))?;
    let page = PAGE as usize;
    for (here, saved) in slice.chunks_exact_mut(page).zip(content.chunks_exact(page)) {
        if here != saved {
            here.copy_from_slice(saved);
        }
    }
    Ok(())
}

/// Makes the pages zeros that were zeros: those of which the image has nothing, up to the end that the file
/// had, but for guards. Holes are zeros, and are not touched: that would fill those of a memfd.
pub(super) fn clear(saved: &Saved<'_>, home: &Placed) {
    let Some(Shown(data)) = &home.follows else { return };
    let record = &home.record;
    let had = record.file_size.saturating_sub(record.offset).next_multiple_of(PAGE);
    let end = record.end.min(record.start.saturating_add(had));
    let first = saved.memory.partition_point(|c| c.address < record.start);
    let chunks = saved.memory[first..].iter().map(|c| (c.address, c.address + u64::from(c.len)));
    let mut known: Vec<(u64, u64)> = chunks.take_while(|(start, _)| *start < end).collect();
    known.extend(saved.guards.iter().map(|g| (g.start, g.end)));
    order::numbers(&mut known);
    let is_data = |at: u64| {
        let next = data.partition_point(|range| range.end <= at);
        data.get(next).is_some_and(|range| range.start <= at)
    };
    let mut at = record.start;
    for (start, next) in known.into_iter().chain([(end, end)]) {
        while at < start.min(end) {
            if !is_data(at) {
                at += PAGE;
                continue;
            }
            // SAFETY: the mapping may be written, and no other slice of it is alive.
            let page = unsafe { home.mapping.slice(at - record.start, PAGE) };
            if let Some(page) = page.filter(|page| page.iter().any(|byte| *byte != 0)) {
                page.fill(0);
            }
            at += PAGE;
        }
        at = at.max(next);
    }
}
