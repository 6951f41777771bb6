// SPDX-License-Identifier: LGPL-2.1-only
//! LZ4 blocks.

use lz4_flex::block;

/// Compresses content into `room`, which then is as long as the block.
#[inline(never)]
pub fn compress(content: &[u8], room: &mut Vec<u8>) {
    room.resize(block::get_maximum_output_size(content.len()), 0);
    // The room is never too small.
    let len = block::compress_into(content, room).unwrap_or(0);
    room.truncate(len);
}

/// Undoes it; None where the content is not exactly as long as `content`.
#[inline(never)]
pub fn decompress(packed: &[u8], content: &mut [u8]) -> Option<()> {
    let len = block::decompress_into(packed, content).ok()?;
    (len == content.len()).then_some(())
}
