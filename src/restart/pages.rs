// SPDX-License-Identifier: LGPL-2.1-only
//! The pages of an image on their way into mappings, checked as they are read, by a few threads.
//!
//! # Safety
//! Mappings are written through slices that do not overlap, before their protection is final.
#![allow(unsafe_code)]

use super::following;
use super::huge::{self, Mover, Room};
use super::placed::{self, Placed};
use super::space::HUGE;
use crate::abreast;
use crate::error::Result;
use crate::image::read::Image;
use ckpt_abi::image::{Chunk, VmaKind};
use std::sync::{Mutex, PoisonError};

const MOST_THREADS: usize = 8;

/// Reads chunks into their mappings; through `huge` pages where that is faster ([`huge`]).
pub(super) fn read(image: &Image, chunks: &[Chunk], placed: &[Placed], huge: bool) -> Result<()> {
    let small = |some: &[Chunk]| -> Result<()> {
        let each = |chunk: &Chunk| read_chunk(image, placed, chunk);
        abreast::try_by_at_most(MOST_THREADS, some, each)
    };
    let Some(mover) = huge.then(Mover::new).flatten() else { return small(chunks) };
    let (windows, others) = windows(chunks, placed);
    // Each thread has one; where there is no memory for any (vm.overcommit_memory=2), nothing is registered.
    let rooms = (0..MOST_THREADS.min(windows.len())).map_while(|_| Room::new().ok());
    let rooms: Vec<_> = rooms.collect();
    let most = rooms.len();
    if most == 0 {
        return small(chunks);
    }
    // What is registered may not be filled otherwise.
    small(&others)?;
    let same = |one: &Window<'_>, other: &Window<'_>| std::ptr::eq(one.home, other.home);
    let homes = windows.chunk_by(same).map(|all| &all[0]);
    let refused: Vec<_> = homes.filter(|one| !mover.register(&one.home.mapping)).collect();
    let rooms = Mutex::new(rooms);
    let each = |window: &Window<'_>| {
        let is_registered = !refused.iter().any(|one| same(one, window));
        match is_registered && window.fill(image, &mover, &rooms)? {
            true => Ok(()),
            false => window.chunks.iter().try_for_each(|chunk| read_chunk(image, placed, chunk)),
        }
    };
    abreast::try_by_at_most(most, &windows, each)
}

/// The mapping that holds an address, if the image has its memory.
fn home(placed: &[Placed], address: u64) -> Option<&Placed> {
    // Those are as they have to be already.
    let done = [VmaKind::SharedFile, VmaKind::Ring].map(|kind| kind as u32);
    placed::home(placed, address).filter(|p| !done.contains(&p.record.kind))
}

/// As much memory as a huge page has, all of which the image has.
struct Window<'a> {
    home: &'a Placed,
    chunks: &'a [Chunk],
}

impl Window<'_> {
    /// False: it has memory, and has to be read into that.
    fn fill(&self, image: &Image, mover: &Mover, rooms: &Mutex<Vec<Room>>) -> Result<bool> {
        let rooms = || rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let room = rooms().pop();
        let mut room = room.map_or_else(Room::new, Ok)?;
        let mut rest = room.bytes();
        for chunk in self.chunks {
            let (bytes, behind) = rest.split_at_mut(chunk.len as usize);
            image.read_chunk_into(chunk, bytes)?;
            rest = behind;
        }
        let offset = self.chunks[0].address - self.home.record.start;
        let moved = mover.take(&room, self.home.mapping.at() + offset)?;
        rooms().push(room);
        Ok(moved)
    }
}

/// What of the chunks is such memory, in mappings that may have huge pages, and what is not.
fn windows<'a>(chunks: &'a [Chunk], placed: &'a [Placed]) -> (Vec<Window<'a>>, Vec<Chunk>) {
    let (mut windows, mut others, mut rest) = (Vec::new(), Vec::new(), chunks);
    while let Some(first) = rest.first() {
        let home = home(placed, first.address).filter(|home| {
            let record = &home.record;
            let lies_well = record.start % HUGE == home.mapping.at() % HUGE;
            lies_well && home.follows.is_none() && huge::is_for(record)
        });
        let count = home.filter(|_| first.address.is_multiple_of(HUGE)).and_then(|home| {
            let mut end = first.address;
            let joined = rest.iter().take_while(|chunk| {
                let joins = chunk.address == end && end < first.address + HUGE;
                end += if joins { u64::from(chunk.len) } else { 0 };
                joins
            });
            let count = joined.count();
            (end == first.address + HUGE && end <= home.record.end).then_some((home, count))
        });
        let (some, behind) = rest.split_at(count.map_or(1, |(_, count)| count));
        match count {
            Some((home, _)) => windows.push(Window { home, chunks: some }),
            None => others.extend_from_slice(some),
        }
        rest = behind;
    }
    (windows, others)
}

fn read_chunk(image: &Image, placed: &[Placed], chunk: &Chunk) -> Result<()> {
    let Some(home) = home(placed, chunk.address) else {
        // The vdso's bytes, when the fresh one is used instead, or those of a file that is there.
        return image.read_chunk(chunk).map(drop);
    };
    if home.follows.is_some() {
        return following::fill(image, home, chunk);
    }
    // SAFETY: the mapping is readable and writable until [`placed::finish`], and the chunks of an image, as was
    // checked, do not overlap.
    let slice = unsafe { home.mapping.slice(chunk.address - home.record.start, chunk.len.into()) };
    let slice = slice.ok_or_else(|| image.damaged("memory lies outside its mapping"))?;
    image.read_chunk_into(chunk, slice)
}
