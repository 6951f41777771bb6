// SPDX-License-Identifier: LGPL-2.1-only
//! Checkpoint files: writing, reading, checking. The format itself is in `ckpt_abi::image`.

mod blocks;
mod codec;
pub(crate) mod elf;
pub(crate) mod file;
mod front;
#[cfg(test)]
mod golden;
mod head;
mod layout;
pub mod read;
#[cfg(test)]
mod several;
pub(crate) mod source;
pub(crate) mod strings;
pub(crate) mod stub;
pub mod write;
pub(crate) mod zeros;

pub use ckpt_abi::image::PAGE;
use xxhash_rust::xxh3::xxh3_64;

/// The checksum of everything in an image.
pub fn hash(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}
