// SPDX-License-Identifier: LGPL-2.1-only
//! What is known of an image whose content is on another machine: enough to bring it up to date without reading it.

use super::{PAGE, content_hash, hash, numbered};
use crate::error::{Because, Error, Kind, Result};
use ckpt_abi::image::Chunk;
use std::fs::File;
use std::os::unix::fs::FileExt;

const SIZE: usize = PAGE as usize;

/// The checksum of each page of content, by where it lies in the file. Pages that do not overlap never have one place.
#[derive(Clone, Default)]
pub(crate) struct Sums(Vec<u64>);

impl Sums {
    /// Notes what is written at an offset: what of it are whole pages from there on.
    pub(crate) fn note(&mut self, offset: u64, bytes: &[u8]) {
        for (page, at) in bytes.chunks_exact(SIZE).zip((offset..).step_by(SIZE)) {
            self.set(at, hash(page));
        }
    }

    pub(super) fn set(&mut self, at: u64, sum: u64) {
        let place = at as usize / SIZE;
        if place >= self.0.len() {
            self.0.resize(place + 1, 0);
        }
        self.0[place] = sum;
    }

    /// That of the page at an offset.
    pub(super) fn get(&self, at: u64) -> u64 {
        self.0.get(at as usize / SIZE).copied().unwrap_or(0)
    }

    /// As [`super::content_hash`], of so many pages from an offset on.
    pub(crate) fn of(&self, at: u64, pages: usize) -> u64 {
        let sum = |page: usize| numbered(page as u64, self.get(at + (page * SIZE) as u64));
        (0..pages).fold(0, |all, page| all.wrapping_add(sum(page)))
    }
}

/// Such an image.
#[derive(Clone, Default)]
pub(crate) struct Elsewhere {
    /// Its memory.
    pub chunks: Vec<Chunk>,
    /// Which checkpoint it is ([`ckpt_abi::image::Header::run`]).
    pub run: [u64; 2],
    /// Whether its process remembers its own ids.
    pub remembers: bool,
    /// Of all that was written to the file, the newest.
    pub sums: Sums,
    /// What was begun upon it was given up, and may have changed pages.
    pub is_torn: bool,
}

/// The content of an older image.
pub(super) enum Old {
    File(File),
    /// On another machine.
    Known(Sums),
}

impl Old {
    /// That of a chunk, if it `is_read`; nothing, where it is known without.
    pub(super) fn content(&self, chunk: &Chunk, is_read: bool) -> Result<Vec<u8>> {
        let Self::File(file) = self else { return Ok(Vec::new()) };
        if !is_read {
            return Ok(Vec::new());
        }
        let mut content = vec![0; chunk.len as usize];
        file.read_exact_at(&mut content, chunk.offset)
            .because(|| "cannot read the older checkpoint")?;
        // What has rotted on its disk is not to have a new checksum.
        if content_hash(&content) != chunk.hash {
            return Err(
                Error::new("a damaged older checkpoint cannot be renewed").of(Kind::Damaged)
            );
        }
        Ok(content)
    }
}
