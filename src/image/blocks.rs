// SPDX-License-Identifier: LGPL-2.1-only
//! What lies in the file as one, in the order in which it was given: the content of a chunk, or more than that where
//! several chunks have parts of it. Where it is to be compressed, several are collected and compressed by several threads.

use super::write::Sink;
use super::{codec, content_hash, hash};
use crate::abreast;
use crate::error::Result;
use ckpt_abi::image::{Chunk, Codec};
use std::sync::{Mutex, PoisonError};

/// Most threads that compress; each has [`DEPTH`] blocks in memory, twice.
const THREADS: usize = 8;
const DEPTH: usize = 4;

/// The file, front to back.
pub(super) struct Out<'a> {
    pub sink: &'a mut dyn Sink,
    pub at: u64,
    /// What a stream has to get first.
    pub before: Vec<u8>,
}

impl Out<'_> {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if !self.before.is_empty() {
            self.sink.write_at(0, &std::mem::take(&mut self.before))?;
        }
        self.sink.write_at(self.at, bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
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
}

/// Room for one that waits to be compressed.
#[derive(Default)]
struct Waiting {
    content: Vec<u8>,
    /// What becomes of it, and whether that is smaller; of the one thread that has it.
    packed: Mutex<(Vec<u8>, bool)>,
}

/// The blocks of an image.
#[derive(Default)]
pub(super) struct Blocks {
    all: Vec<Block>,
    /// The last ones of these wait in the first `waits` of this room, which stays. There is none where nothing is
    /// compressed.
    room: Vec<Waiting>,
    waits: usize,
}

impl Blocks {
    /// Compresses from now on.
    pub(super) fn compress(&mut self) {
        let cores = abreast::processors().min(THREADS);
        self.room.resize_with(cores * DEPTH, Waiting::default);
    }

    /// Whether it does.
    pub(super) fn compresses(&self) -> bool {
        !self.room.is_empty()
    }

    /// Adds one, whose checksum may be known where nothing is compressed; its number. Where it lies is known when nothing
    /// waits ([`Blocks::settle`]).
    pub(super) fn add(
        &mut self,
        content: &[u8],
        sum: Option<u64>,
        out: &mut Out<'_>,
    ) -> Result<usize> {
        let number = self.all.len();
        self.all.push(Block { len: content.len() as u32, ..Block::default() });
        match self.room.get_mut(self.waits) {
            None => {
                let stored = codec::plain(content);
                let sum = sum.unwrap_or_else(|| content_hash(&stored));
                self.write(number, Codec::Plain, (&stored, sum), out)?;
            }
            Some(free) => {
                free.content.clear();
                free.content.extend_from_slice(content);
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
        abreast::by_at_most(THREADS, waiting, DEPTH, |one| {
            let (packed, is_smaller) =
                &mut *one.packed.lock().unwrap_or_else(PoisonError::into_inner);
            *is_smaller = codec::compress(&one.content, packed);
        });
        let first = self.all.len() - waiting.len();
        for (number, one) in (first..).zip(waiting) {
            match one.packed.get_mut().unwrap_or_else(PoisonError::into_inner) {
                (packed, true) => self.write(number, Codec::Lz4, (packed, hash(packed)), out)?,
                _ => {
                    let stored = codec::plain(&one.content);
                    self.write(number, Codec::Plain, (&stored, content_hash(&stored)), out)?;
                }
            }
        }
        self.room = room;
        Ok(())
    }

    fn write(
        &mut self,
        number: usize,
        codec: Codec,
        (stored, sum): (&[u8], u64),
        out: &mut Out<'_>,
    ) -> Result<()> {
        let block = &mut self.all[number];
        (block.offset, block.hash) = (out.at, sum);
        (block.stored, block.codec) = (stored.len() as u32, codec as u32);
        out.write(stored)
    }

    /// Makes the record of a chunk that has `chunk.len` bytes of a block from `chunk.skip` on; `content` is the checksum
    /// of these.
    pub(super) fn locate(&self, number: usize, content: u64, chunk: &mut Chunk) {
        let block = &self.all[number];
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
        self.all.iter().any(|block| block.codec != Codec::Plain as u32)
    }
}
