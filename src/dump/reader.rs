// SPDX-License-Identifier: LGPL-2.1-only
//! Memory of a process, read and looked through by several threads abreast: most of the work of a checkpoint. What they
//! find is written in order by the one that asks for it.

use crate::abreast;
use crate::error::Result;
use crate::fault::{Point, reach};
use crate::image::write::{Piece, keyed};
use crate::image::zeros::nonzero;
use crate::image::{PAGE, content_hash};
use crate::proc::pagemap::Pagemap;
use crate::progress;
use crate::ptrace::memory::Memory;
use crate::resource::memory::{Area, Pages};
use crate::resource::runtime::{glibc, remembered};
use ckpt_abi::image::{CHUNK_MAX, Owner};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many chunks are read before the first is written.
const AHEAD: usize = 16;
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
}

/// A chunk that was read.
pub(super) struct Read {
    at: u64,
    buffer: Vec<u8>,
    stretches: Vec<Stretch>,
    /// Pages that cannot be read.
    pub(super) untouchable: Vec<u64>,
}

/// What of a chunk is no page of zeros.
struct Stretch {
    place: Range<usize>,
    owners: Vec<Owner>,
    has_id: bool,
    pieces: Vec<Piece>,
    sum: Option<u64>,
}

/// What was found in a [`Stretch`].
pub(super) struct Found<'a> {
    pub(super) address: u64,
    pub(super) bytes: &'a [u8],
    /// The owners' words of locks in it.
    pub(super) owners: &'a [Owner],
    /// The first id that it remembers is in it.
    pub(super) has_id: bool,
    pub(super) pieces: &'a [Piece],
    /// Their checksum.
    pub(super) sum: Option<u64>,
}

impl Read {
    pub(super) fn found(&self) -> impl Iterator<Item = Found<'_>> {
        self.stretches.iter().map(|stretch| Found {
            address: self.at + stretch.place.start as u64,
            bytes: &self.buffer[stretch.place.clone()],
            owners: &stretch.owners,
            has_id: stretch.has_id,
            pieces: &stretch.pieces,
            sum: stretch.sum,
        })
    }
}

/// Buffers for what is read, which nobody needs at the moment.
#[derive(Default)]
pub(super) struct Room(Mutex<Vec<Vec<u8>>>);

impl Room {
    /// Reads areas of a process; `take` gets what is in them, in order, while more is read.
    ///
    /// # Errors
    /// Those of `take`, or pagemap cannot be read.
    pub(super) fn read(
        &self,
        from: &From<'_>,
        areas: &[Area],
        mut take: impl FnMut(&Area, &Read) -> Result<()>,
    ) -> Result<()> {
        let all = areas.iter().flat_map(|area| from.chunks(area));
        let weigh =
            |chunk: &Result<Chunk<'_>>| chunk.as_ref().map_or(0, |(_, it)| it.end - it.start);
        let read = |chunk| {
            let (area, range): Chunk<'_> = chunk?;
            let len = range.end - range.start;
            Ok((area, from.chunk(&range, self.free(len), area)))
        };
        abreast::in_order(all, AHEAD, (ENOUGH, weigh), read, |read| {
            let (area, read) = read?;
            take(area, &read)?;
            if read.buffer.len() as u64 == CHUNK_MAX {
                self.buffers().push(read.buffer);
            }
            Ok(())
        })
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

/// A part of an area that is read as one.
type Chunk<'a> = (&'a Area, Range<u64>);

impl From<'_> {
    /// The chunks of the pages of an area that are to be written.
    fn chunks<'a>(
        &self,
        area: &'a Area,
    ) -> Box<dyn Iterator<Item = Result<Chunk<'a>>> + Send + 'a> {
        reach(Point::Area);
        let populated = |written| self.pagemap.populated(area.start, area.end, written);
        let ranges = match area.pages {
            _ if area.known.is_some() => Ok(area.known.clone().unwrap_or_default()),
            Pages::Populated => populated(false),
            Pages::Written => populated(true),
            Pages::Whole => Ok(std::iter::once(area.start..area.end).collect()),
            Pages::None => Ok(Vec::new()),
        };
        match ranges {
            Ok(all) => {
                Box::new(all.into_iter().flat_map(chunks).map(move |chunk| Ok((area, chunk))))
            }
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }

    fn chunk(&self, chunk: &Range<u64>, mut buffer: Vec<u8>, area: &Area) -> Read {
        let len = (chunk.end - chunk.start) as usize;
        let (mut stretches, mut untouchable, mut at) = (Vec::new(), Vec::new(), 0);
        while at < len {
            let read = self.bytes(chunk.start + at as u64, &mut buffer[at..len], area);
            for (start, bytes) in nonzero(&buffer[at..at + read]) {
                let address = chunk.start + (at + start) as u64;
                stretches.push(self.stretch(address, at + start, bytes, area));
            }
            at += read;
            if at < len {
                untouchable.push(chunk.start + at as u64);
                at += PAGE as usize;
            }
        }
        progress::add(chunk.end - chunk.start);
        Read { at: chunk.start, buffer, stretches, untouchable }
    }

    fn stretch(&self, address: u64, start: usize, bytes: &[u8], area: &Area) -> Stretch {
        let mut owners = Vec::new();
        if area.writable {
            self.locks.look(self.memory, address, bytes, &mut owners);
        }
        let ids = self.ids.as_ref().filter(|_| area.writable);
        let has_id = ids.is_some_and(|ids| ids.is_in(address, bytes, &owners));
        let keys = self.keys && !area.streamed && owners.is_empty();
        Stretch {
            place: start..start + bytes.len(),
            owners,
            has_id,
            pieces: if keys { keyed(address, bytes) } else { Vec::new() },
            sum: (self.sums && !keys && !area.streamed).then(|| content_hash(bytes)),
        }
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
    use super::*;

    #[test]
    fn chunks_end_at_multiples_of_their_size() {
        let cut: Vec<_> = chunks(0x3f000..0xc1000).collect();
        assert_eq!(cut, [0x3f000..0x40000, 0x40000..0x80000, 0x80000..0xc0000, 0xc0000..0xc1000]);
        assert_eq!(chunks(5..5).count(), 0);
    }
}
