// SPDX-License-Identifier: LGPL-2.1-only
//! What lies in the file as one, in the order in which it was given: the content of a chunk, or more than that where
//! several chunks have parts of it. Where it is to be compressed or sealed, several are collected, and several threads do
//! that, unless whoever gives it has sealed it already ([`Known::Sealed`]).

use super::seal::{Numbered, Seal, Sealed};
use super::sink::Sink;
use super::{PAGE, codec, content_hash, hash};
use crate::abreast;
use crate::error::Result;
use ckpt_abi::image::{Chunk, Codec};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Most threads that do so; each has [`DEPTH`] blocks in memory, twice.
const THREADS: usize = 8;
const DEPTH: usize = 4;

/// The file, front to back.
pub(super) struct Out<'a> {
    pub sink: &'a mut dyn Sink,
    pub at: u64,
    /// What a stream has to get first.
    pub before: Vec<u8>,
    /// The addresses of bytes of which it is only noted what is to be written.
    pub within: Range<usize>,
    pub noted: Noted,
}

/// Offsets in the file, and which of some bytes belong there.
pub(crate) type Noted = Vec<(u64, Range<usize>)>;

impl Out<'_> {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if !self.before.is_empty() {
            self.sink.write_at(0, &std::mem::take(&mut self.before))?;
        }
        self.write_at(self.at, bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let start = bytes.as_ptr().addr();
        match start.checked_sub(self.within.start) {
            Some(skip) if start + bytes.len() <= self.within.end => {
                let end = skip + bytes.len();
                match self.noted.last_mut() {
                    // Small mappings follow each other in memory and in the file.
                    Some((at, part)) if part.end == skip && *at + part.len() as u64 == offset => {
                        part.end = end;
                    }
                    _ => self.noted.push((offset, skip..end)),
                }
                Ok(())
            }
            _ => self.sink.write_at(offset, bytes),
        }
    }
}

#[derive(Default)]
struct Block {
    /// Bytes of content.
    len: u32,
    /// As in a [`Chunk`], as the rest.
    offset: u64,
    hash: u64,
    stored: u32,
    codec: u32,
    block: u32,
    tag: u64,
}

/// What is known of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Nothing,
    /// Its checksum, as it lies in the file where nothing [changes](Blocks::change_content) it.
    Sum(u64),
    /// It has been sealed where it lies.
    Sealed(Sealed),
}

impl Known {
    pub(super) fn sum(self) -> Option<u64> {
        if let Self::Sum(sum) = self { Some(sum) } else { None }
    }
}

/// Room for one that waits to be compressed or sealed.
#[derive(Default)]
struct Waiting {
    number: usize,
    content: Vec<u8>,
    /// What becomes of it; of the one thread that has it.
    packed: Mutex<Packed>,
}

struct Packed {
    stored: Vec<u8>,
    codec: Codec,
    known: Known,
}

impl Default for Packed {
    fn default() -> Self {
        Self { stored: Vec::new(), codec: Codec::Plain, known: Known::Nothing }
    }
}

/// The blocks of an image.
#[derive(Default)]
pub(crate) struct Blocks {
    all: Vec<Block>,
    /// The last ones of these wait in the first `waits` of this room, which stays. There is none where nothing is
    /// compressed.
    room: Vec<Waiting>,
    waits: usize,
    compresses: bool,
    seal: Option<Numbered>,
}

impl Blocks {
    /// Compresses from now on.
    pub(super) fn compress(&mut self) {
        self.compresses = true;
        self.make_room();
    }

    /// Seals from now on.
    pub(super) fn seal(&mut self, seal: Seal) {
        self.seal = Some(Numbered::of(seal));
        self.make_room();
    }

    /// What content can be sealed by before it is given, where that is all that is done to it.
    pub(crate) fn sealing(&self) -> Option<&Numbered> {
        self.seal.as_ref().filter(|_| !self.compresses)
    }

    fn make_room(&mut self) {
        let cores = abreast::processors().min(THREADS);
        self.room.resize_with(cores * DEPTH, Waiting::default);
    }

    /// Whether content does not lie in the file as it is, but compressed or encrypted.
    pub(crate) fn change_content(&self) -> bool {
        !self.room.is_empty()
    }

    /// Adds one, its number. Where it lies is known when nothing waits ([`Blocks::settle`]).
    pub(super) fn add(&mut self, content: &[u8], known: Known, out: &mut Out<'_>) -> Result<usize> {
        let number = self.all.len();
        self.all.push(Block { len: content.len() as u32, ..Block::default() });
        if let Known::Sealed(_) = known {
            self.write(number, Codec::Sealed, (content, known), out)?;
            return Ok(number);
        }
        match self.room.get_mut(self.waits) {
            None => {
                let stored = codec::plain(content);
                let known = match known {
                    Known::Nothing => Known::Sum(content_hash(&stored)),
                    known => known,
                };
                self.write(number, Codec::Plain, (&stored, known), out)?;
            }
            Some(free) => {
                free.number = number;
                // What is only sealed becomes so in place.
                let packed = free.packed.get_mut().unwrap_or_else(PoisonError::into_inner);
                let room = if self.compresses { &mut free.content } else { &mut packed.stored };
                room.clear();
                room.extend_from_slice(content);
                self.waits += 1;
            }
        }
        if self.waits > 0 && self.waits == self.room.len() {
            self.settle(out)?;
        }
        Ok(number)
    }

    /// Writes what waits.
    pub(super) fn settle(&mut self, out: &mut Out<'_>) -> Result<()> {
        let mut room = std::mem::take(&mut self.room);
        let waiting = &mut room[..std::mem::take(&mut self.waits)];
        let (compresses, seal) = (self.compresses, &self.seal);
        abreast::by_at_most(THREADS, waiting, DEPTH, |one| {
            let mut packed = one.packed.lock().unwrap_or_else(PoisonError::into_inner);
            pack(&one.content, compresses, seal.as_ref(), &mut packed);
        });
        for one in waiting {
            let packed = one.packed.get_mut().unwrap_or_else(PoisonError::into_inner);
            self.write(one.number, packed.codec, (&packed.stored, packed.known), out)?;
        }
        self.room = room;
        Ok(())
    }

    fn write(
        &mut self,
        number: usize,
        codec: Codec,
        (stored, known): (&[u8], Known),
        out: &mut Out<'_>,
    ) -> Result<()> {
        let block = &mut self.all[number];
        match known {
            Known::Nothing => {}
            Known::Sum(sum) => block.hash = sum,
            Known::Sealed(Sealed { number, tag }) => {
                (block.block, [block.hash, block.tag]) = (number, tag);
            }
        }
        block.offset = out.at;
        (block.stored, block.codec) = (stored.len() as u32, codec as u32);
        out.write(stored)
    }

    /// Makes the record of a chunk that has `chunk.len` bytes of a block from `chunk.skip` on; `content` is the checksum
    /// of these.
    pub(super) fn locate(&self, number: usize, content: u64, chunk: &mut Chunk) {
        let block = &self.all[number];
        (chunk.block, chunk.tag) = (block.block, block.tag);
        (chunk.offset, chunk.codec) = (block.offset, block.codec);
        let is_part = chunk.len != block.len;
        match is_part && block.codec == Codec::Plain as u32 {
            true => {
                chunk.offset += u64::from(std::mem::take(&mut chunk.skip));
                (chunk.hash, chunk.stored) = (content, chunk.len);
            }
            false => {
                (chunk.hash, chunk.stored) = (block.hash, block.stored);
                chunk.whole = if is_part { block.len } else { 0 };
            }
        }
    }

    /// Whether some are compressed.
    pub(super) fn are_compressed(&self) -> bool {
        let compressed = [Codec::Lz4, Codec::SealedLz4].map(|codec| codec as u32);
        self.all.iter().any(|block| compressed.contains(&block.codec))
    }
}

/// Makes of a block what lies in the file, where it stands already if it is not to be compressed.
fn pack(content: &[u8], compress: bool, seal: Option<&Numbered>, packed: &mut Packed) {
    let Packed { stored, codec, known } = packed;
    *codec = Codec::Plain;
    if compress && codec::compress(content, stored) {
        *codec = Codec::Lz4;
    } else {
        if compress {
            stored.clear();
            stored.extend_from_slice(content);
        }
        stored.resize(stored.len().next_multiple_of(PAGE as usize), 0);
    }
    *known = match (seal, &codec) {
        (Some(seal), inner) => {
            *codec = if *inner == &Codec::Lz4 { Codec::SealedLz4 } else { Codec::Sealed };
            Known::Sealed(seal.block(*codec, stored))
        }
        (None, Codec::Plain) => Known::Sum(content_hash(stored)),
        (None, _) => Known::Sum(hash(stored)),
    };
}
