// SPDX-License-Identifier: LGPL-2.1-only
//! Memory of a process, read and looked through by several threads abreast: most of the work of a checkpoint. What they
//! find is written in order by the one that asks for it.

use crate::abreast;
use crate::error::Result;
use crate::fault::{Point, reach};
use crate::image::blocks::{Known, Noted};
use crate::image::file::Abreast;
use crate::image::pieces::{Piece, keyed};
use crate::image::seal::Numbered;
use crate::image::zeros::nonzero;
use crate::image::{PAGE, content_hash};
use crate::proc::pagemap::Pagemap;
use crate::progress;
use crate::ptrace::memory::Memory;
use crate::resource::memory::{Area, Pages};
use crate::resource::runtime::{glibc, remembered};
use ckpt_abi::image::{CHUNK_MAX, Owner};
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many chunks are read before the first is written.
const AHEAD: usize = 8;
/// Fewer bytes get room of their own.
const SMALL: u64 = 64 << 10;
/// With fewer bytes to read, threads are not worth it.
const ENOUGH: u64 = 2 * CHUNK_MAX;

/// Where pages of a process are read from.
pub(super) struct From<'a> {
    pub(super) memory: &'a Memory,
    pub(super) pagemap: Pagemap,
    /// Others have the same pages until one of them writes.
    pub(super) shares: bool,
    /// The locks that may be held.
    pub(super) locks: glibc::Search,
    /// Its own ids, if it may remember any.
    pub(super) ids: Option<remembered::Search>,
    /// Whether pieces are to be known again.
    pub(super) keys: bool,
    /// Whether what is written is what was read, so that its checksum can be had at once.
    pub(super) sums: bool,
    /// Seals it while the cache still has it.
    pub(super) sealing: Option<Numbered>,
}

/// Room for one chunk.
enum Buffer<'s> {
    Own(Vec<u8>),
    /// Of a larger room.
    Part(&'s mut [u8]),
}

impl Deref for Buffer<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Part(bytes) => bytes,
        }
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Part(bytes) => bytes,
        }
    }
}

/// A chunk that was read.
pub(super) struct Read<'s> {
    at: u64,
    buffer: Buffer<'s>,
    stretches: Vec<Stretch>,
    /// Pages that cannot be read, and of which of the areas that were to be read.
    pub(super) untouchable: Vec<(usize, u64)>,
}

/// What of a chunk is no page of zeros.
struct Stretch {
    area: usize,
    place: Range<usize>,
    owners: Vec<Owner>,
    has_id: bool,
    pieces: Vec<Piece>,
    known: Known,
}

/// What was found in a [`Stretch`].
pub(super) struct Found<'a> {
    /// Of which of the areas that were to be read.
    pub(super) area: usize,
    pub(super) address: u64,
    pub(super) bytes: &'a [u8],
    /// The owners' words of locks in it.
    pub(super) owners: &'a [Owner],
    /// The first id that it remembers is in it.
    pub(super) has_id: bool,
    pub(super) pieces: &'a [Piece],
    /// What is known of the bytes.
    pub(super) known: Known,
}

impl Read<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    pub(super) fn found(&self) -> impl Iterator<Item = Found<'_>> {
        self.stretches.iter().map(|stretch| Found {
            area: stretch.area,
            address: self.at + stretch.place.start as u64,
            bytes: &self.buffer[stretch.place.clone()],
            owners: &stretch.owners,
            has_id: stretch.has_id,
            pieces: &stretch.pieces,
            known: stretch.known,
        })
    }
}

/// Buffers for what is read, which nobody needs at the moment.
#[derive(Default)]
pub(super) struct Room(Mutex<Vec<Vec<u8>>>);

impl Room {
    /// Reads areas of a process; `take` gets what is in them, in order, while more is read. With a `large` room it may keep
    /// that: what is missing of it then [`From::complete`] adds. Where `abreast` is, who has read something writes there what
    /// `take` notes of it.
    ///
    /// # Errors
    /// Those of `take`, or pagemap cannot be read.
    pub(super) fn read<'s>(
        &self,
        from: &From<'_>,
        areas: &[Area],
        (large, abreast): (Option<&Mutex<&'s mut [u8]>>, Option<&Abreast>),
        take: &mut (dyn FnMut(Read<'s>) -> Result<Option<(Read<'s>, Noted)>> + Send),
    ) -> Result<()> {
        let all = groups(areas).flat_map(|group| from.chunks(areas, group));
        let weigh = |chunk: &Result<Chunk>| chunk.as_ref().map_or(0, |(_, it)| it.end - it.start);
        let read = |chunk| {
            let chunk: Chunk = chunk?;
            let len = chunk.1.end - chunk.1.start;
            let buffer = match large {
                Some(large) => part(large, len as usize),
                None => Buffer::Own(self.free(len)),
            };
            let mut read = from.chunk(chunk, buffer, areas);
            if large.is_none() {
                from.complete(&mut read, areas);
            }
            Ok(read)
        };
        let finish = |taken: Option<(Read<'s>, Noted)>| {
            let Some((read, noted)) = taken else { return Ok(()) };
            for (offset, part) in noted {
                abreast.map_or(Ok(()), |file| file.write_at(offset, &read.buffer[part]))?;
            }
            self.reuse(read);
            Ok(())
        };
        let take = |read: Result<_>| take(read?);
        abreast::in_order(all, AHEAD, (ENOUGH, weigh), read, take, (abreast.is_some(), finish))
    }

    /// Takes the buffer of what is written for another chunk.
    fn reuse(&self, read: Read<'_>) {
        if let Buffer::Own(buffer) = read.buffer
            && buffer.len() as u64 == CHUNK_MAX
        {
            self.buffers().push(buffer);
        }
    }

    fn buffers(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for so many bytes: of small chunks there are more at a time.
    fn free(&self, len: u64) -> Vec<u8> {
        if len < SMALL {
            return vec![0; len as usize];
        }
        self.buffers().pop().unwrap_or_else(|| vec![0; CHUNK_MAX as usize])
    }
}

/// The chunks of a range: they end where those of the next checkpoint do.
fn chunks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let Range { start: mut at, end } = range;
    std::iter::from_fn(move || {
        let chunk = at..end.min((at + 1).next_multiple_of(CHUNK_MAX));
        at = chunk.end;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// What is read as one: a part of one of some areas, and maybe of those that follow it without a gap.
type Chunk = (usize, Range<u64>);

/// Neighbours among some areas whose pages are looked for in the same way. There may be tens of thousands of small ones, for
/// each of which the kernel would be asked.
fn groups(areas: &[Area]) -> impl Iterator<Item = Range<usize>> + Send {
    let are_near = |one: &Area, next: &Area| {
        one.pages == next.pages
            && one.known.is_none()
            && next.known.is_none()
            && next.start.wrapping_sub(one.end) <= CHUNK_MAX
    };
    let mut end = 0;
    areas.chunk_by(are_near).map(move |group| {
        end += group.len();
        end - group.len()..end
    })
}

/// What of some ranges of pages lies in areas of a group: as one where areas follow each other that can be read as one.
fn within(areas: &[Area], group: Range<usize>, pages: Vec<Range<u64>>) -> Vec<Chunk> {
    let (mut found, mut index): (Vec<Chunk>, _) = (Vec::new(), group.start);
    for Range { start: mut at, end } in pages {
        while at < end && index < group.end {
            let area = &areas[index];
            let part = at.max(area.start)..end.min(area.end);
            match found.last_mut() {
                _ if part.is_empty() => {}
                Some((first, before))
                    if before.end == part.start
                        && !area.unreadable
                        && !areas[*first].unreadable =>
                {
                    before.end = part.end;
                }
                _ => found.push((index, part)),
            }
            at = at.max(area.end);
            index += usize::from(at < end);
        }
    }
    found
}

/// The next part of a large room, or room of its own.
fn part<'s>(large: &Mutex<&'s mut [u8]>, len: usize) -> Buffer<'s> {
    let mut rest = large.lock().unwrap_or_else(PoisonError::into_inner);
    match std::mem::take(&mut *rest).split_at_mut_checked(len) {
        Some((part, left)) => {
            *rest = left;
            Buffer::Part(part)
        }
        None => Buffer::Own(vec![0; len]),
    }
}

/// The pages of an area that are to be written.
///
/// # Errors
/// pagemap cannot be read.
pub(super) fn pages(pagemap: &Pagemap, area: &Area) -> Result<Vec<Range<u64>>> {
    match area.pages {
        _ if area.known.is_some() => Ok(area.known.clone().unwrap_or_default()),
        Pages::Populated => pagemap.populated(area.start, area.end, false),
        Pages::Written => pagemap.populated(area.start, area.end, true),
        Pages::Whole => Ok(std::iter::once(area.start..area.end).collect()),
        Pages::None => Ok(Vec::new()),
    }
}

impl From<'_> {
    /// The chunks of the pages of a group of areas that are to be written.
    fn chunks(
        &self,
        areas: &[Area],
        group: Range<usize>,
    ) -> Box<dyn Iterator<Item = Result<Chunk>> + Send> {
        reach(Point::Area);
        let (first, last) = (&areas[group.start], &areas[group.end - 1]);
        match pages(&self.pagemap, &Area { end: last.end, ..first.clone() }) {
            Ok(found) => {
                let all = within(areas, group, found).into_iter();
                let parts = |(index, range)| chunks(range).map(move |chunk| Ok((index, chunk)));
                Box::new(all.flat_map(parts))
            }
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }

    fn chunk<'s>(
        &self,
        (mut index, chunk): Chunk,
        mut buffer: Buffer<'s>,
        areas: &[Area],
    ) -> Read<'s> {
        let len = (chunk.end - chunk.start) as usize;
        let (mut stretches, mut untouchable) = (Vec::new(), Vec::new());
        let (mut at, mut read) = (0, 0);
        while at < len {
            let address = chunk.start + at as u64;
            index += areas[index..].partition_point(|area| area.end <= address);
            let area = &areas[index];
            if at == read {
                read += self.bytes(address, &mut buffer[at..len], area);
            }
            if at == read {
                untouchable.push((index, address));
                (at, read) = (at + PAGE as usize, read + PAGE as usize);
                continue;
            }
            let end = read.min((area.end - chunk.start) as usize);
            for (start, bytes) in nonzero(&buffer[at..end]) {
                let (place, address) = (at + start, address + start as u64);
                stretches.push(self.stretch(address, place, bytes, (index, area)));
            }
            at = end;
        }
        progress::add(chunk.end - chunk.start);
        Read { at: chunk.start, buffer, stretches, untouchable }
    }

    /// Adds what needs no look at the process.
    pub(super) fn complete(&self, read: &mut Read<'_>, areas: &[Area]) {
        for stretch in &mut read.stretches {
            let area = &areas[stretch.area];
            let ids = self.ids.as_ref().filter(|_| area.writable);
            let bytes = &mut read.buffer[stretch.place.clone()];
            let address = read.at + stretch.place.start as u64;
            stretch.has_id = ids.is_some_and(|ids| ids.is_in(address, bytes, &stretch.owners));
            let keys = self.keys && !area.streamed && stretch.owners.is_empty();
            if keys {
                stretch.pieces = keyed(address, bytes);
            }
            stretch.known = match &self.sealing {
                _ if keys || area.streamed => Known::Nothing,
                Some(sealing) => Known::Sealed(sealing.plain(bytes)),
                None if self.sums => Known::Sum(content_hash(bytes)),
                None => Known::Nothing,
            };
        }
    }

    fn stretch(
        &self,
        address: u64,
        start: usize,
        bytes: &[u8],
        (index, area): (usize, &Area),
    ) -> Stretch {
        let mut owners = Vec::new();
        if area.writable {
            self.locks.look(self.memory, address, bytes, &mut owners);
        }
        let place = start..start + bytes.len();
        let (has_id, pieces, known) = (false, Vec::new(), Known::Nothing);
        Stretch { area: index, place, owners, has_id, pieces, known }
    }

    /// Reads up to the first page that cannot be read.
    ///
    /// process_vm_readv(2) is the fastest way, and the worst where processes share pages until one writes: it pins what it
    /// reads, and so the kernel gives the process that is read a page of its own (mm/gup.c, gup_must_unshare). Forty
    /// workers would have forty copies of their common data after a checkpoint, and each snapshot the whole program.
    fn bytes(&self, addr: u64, buffer: &mut [u8], area: &Area) -> usize {
        let mut done = 0;
        while done < buffer.len() {
            let rest = &mut buffer[done..];
            let at = addr + done as u64;
            let forced = |rest: &mut [u8]| self.memory.read_forced(at, rest).unwrap_or(0);
            let readable = |rest: &mut [u8]| match area.unreadable {
                true => 0,
                false => self.memory.read_some(at, rest).unwrap_or(0),
            };
            // Memory without read permission is read by force, or there is no page.
            let read = match self.shares {
                true => {
                    Some(forced(rest)).filter(|read| *read > 0).unwrap_or_else(|| readable(rest))
                }
                false => {
                    Some(readable(rest)).filter(|read| *read > 0).unwrap_or_else(|| forced(rest))
                }
            };
            if read == 0 {
                break;
            }
            done += read;
        }
        done - done % PAGE as usize
    }
}

#[cfg(test)]
mod tests {
    use super::super::excluded::tests::area;
    use super::*;

    #[test]
    fn chunks_end_at_multiples_of_their_size() {
        let cut: Vec<_> = chunks(0x3f000..0xc1000).collect();
        assert_eq!(cut, [0x3f000..0x40000, 0x40000..0x80000, 0x80000..0xc0000, 0xc0000..0xc1000]);
        assert_eq!(chunks(5..5).count(), 0);
    }

    #[test]
    fn what_is_near_is_looked_for_at_once() {
        let far = 0x9000 + CHUNK_MAX + 1;
        let mut areas = [(0, 2), (2, 5), (6, 9), (far, far + 1), (far + 1, far + 2)]
            .map(|(start, end)| area(start, end, Pages::Populated));
        areas[4].known = Some(Vec::new());
        areas[2].end = 0x9000;
        assert_eq!(groups(&areas).collect::<Vec<_>>(), [0..3, 3..4, 4..5]);
        assert_eq!(groups(&[]).count(), 0);
    }

    #[test]
    fn pages_are_read_across_borders_that_do_not_matter() {
        let all =
            [(9, 10, false), (10, 20, false), (20, 30, false), (30, 40, true), (41, 50, false)];
        let areas = all.map(|(start, end, unreadable)| Area {
            unreadable,
            ..area(start, end, Pages::Populated)
        });
        let found = within(&areas, 1..5, vec![5..8, 12..13, 15..22, 25..45, 48..60, 70..71]);
        let expected =
            [(1, 12..13), (1, 15..22), (2, 25..30), (3, 30..40), (4, 41..45), (4, 48..50)];
        assert_eq!(found, expected);
        assert_eq!(within(&areas, 0..3, vec![5..7, 9..30]), [(0, 9..30)]);
    }
}
