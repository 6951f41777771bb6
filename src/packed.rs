// SPDX-License-Identifier: LGPL-2.1-only
//! What build.rs embeds is compressed: the binary travels with every checkpoint.

use crate::error::{Error, Result};
use ckpt_loops::lz4;

/// A file that build.rs has packed.
pub(crate) struct Packed {
    /// What sentences call it.
    pub(crate) name: &'static str,
    /// Its length (little-endian, 4 bytes) and an LZ4 block.
    pub(crate) bytes: &'static [u8],
}

/// The file of a name that build.rs has packed.
macro_rules! packed {
    ($name:literal) => {
        $crate::packed::Packed {
            name: $name,
            bytes: include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".lz4")),
        }
    };
}
pub(crate) use packed;

impl Packed {
    /// The file as it was.
    pub(crate) fn unpacked(&self) -> Result<Vec<u8>> {
        let damaged = || format!("the {} inside this ckpt is damaged: no LZ4 block", self.name);
        self.whole().ok_or_else(|| Error::new(damaged()))
    }

    fn whole(&self) -> Option<Vec<u8>> {
        let (len, block) = self.bytes.split_first_chunk()?;
        let mut whole = vec![0; u32::from_le_bytes(*len) as usize];
        lz4::decompress(block, &mut whole)?;
        Some(whole)
    }
}
