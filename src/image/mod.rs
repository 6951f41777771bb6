// SPDX-License-Identifier: LGPL-2.1-only
//! Checkpoint files: writing, reading, checking. The format itself is in `ckpt_abi::image`.

mod attendant;
pub(crate) mod base;
pub(crate) mod blocks;
mod codec;
pub(crate) mod elf;
pub(crate) mod file;
#[cfg(test)]
mod forged;
mod front;
#[cfg(test)]
mod golden;
mod head;
pub mod key;
mod layout;
pub(crate) mod older;
pub(crate) mod pieces;
pub(crate) mod piped;
pub(crate) mod queued;
pub mod read;
pub(crate) mod seal;
#[cfg(test)]
mod several;
pub mod sink;
pub(crate) mod source;
pub(crate) mod strings;
pub(crate) mod stub;
pub(crate) mod sums;
pub mod write;
pub(crate) mod zeros;

pub use ckpt_abi::image::PAGE;
use xxhash_rust::xxh3::xxh3_64;

/// The checksum of everything in an image but content that is not compressed.
pub fn hash(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// The checksum of content that lies in the file as it is: the sum of those of its pages, so that a page can be changed
/// without a look at the others.
pub fn content_hash(bytes: &[u8]) -> u64 {
    let pages = bytes.chunks(PAGE as usize).enumerate();
    pages.fold(0, |sum, (index, page)| sum.wrapping_add(page_hash(index as u64, page)))
}

/// What a page of content adds to [`content_hash`], by its number there: pages that change places are seen.
pub(crate) fn page_hash(index: u64, page: &[u8]) -> u64 {
    numbered(index, hash(page))
}

/// The same of a page whose own checksum is known.
fn numbered(index: u64, sum: u64) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mixed = sum ^ (index + 1).wrapping_mul(ODD);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(ODD);
    mixed ^ mixed >> 29
}
