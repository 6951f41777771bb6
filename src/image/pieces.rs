// SPDX-License-Identifier: LGPL-2.1-only
//! What of memory is looked for in what an image has already.

use std::ops::Range;
use xxhash_rust::xxh3::xxh3_128;

/// Bytes of memory that are looked for as one; pieces begin at multiples of it, so that those of two processes match.
const PIECE: usize = 16 << 10;

/// A piece by its 128-bit xxh3 and its length.
pub(super) type Key = (u128, usize);

/// A piece of some memory, as a range of that, with its key.
pub(crate) type Piece = (Range<usize>, Key);

/// The pieces of memory at `address`.
pub(crate) fn keyed(address: u64, bytes: &[u8]) -> Vec<Piece> {
    let key = |piece: &Range<usize>| (xxh3_128(&bytes[piece.clone()]), piece.len());
    pieces(address, bytes.len()).map(|piece| (piece.clone(), key(&piece))).collect()
}

/// The pieces of `len` bytes at `address`.
fn pieces(address: u64, len: usize) -> impl Iterator<Item = Range<usize>> {
    let first = PIECE - address as usize % PIECE;
    let mut at = 0;
    std::iter::from_fn(move || {
        let end = if at == 0 { first } else { at + PIECE }.min(len);
        let piece = at..end;
        at = end;
        (!piece.is_empty()).then_some(piece)
    })
}
