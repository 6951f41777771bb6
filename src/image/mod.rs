// SPDX-License-Identifier: LGPL-2.1-only
//! Checkpoint files: writing, reading, checking. The format itself is in `ckpt_abi::image`.

mod codec;
pub mod elf;
pub mod file;
mod front;
#[cfg(test)]
mod golden;
mod head;
mod layout;
pub mod read;
#[cfg(test)]
mod several;
pub mod source;
pub mod strings;
pub mod stub;
pub mod write;
pub mod zeros;

pub use ckpt_abi::image::PAGE;
use xxhash_rust::xxh3::xxh3_64;

/// The checksum of everything in an image.
pub fn hash(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}
