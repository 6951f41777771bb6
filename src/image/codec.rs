// SPDX-License-Identifier: LGPL-2.1-only
//! How content lies in the file: whatever is between a program's bytes and those of a
//! [`Sink`](super::sink::Sink) or [`Source`](super::source::Source), which both know nothing of it. A checksum is that
//! of the bytes in the file, so nothing comes here on its way back that was not checked.

use ckpt_abi::image::{CHUNK_MAX, Chunk, Codec, PAGE};
use ckpt_loops::lz4;
use std::borrow::Cow;

/// What goes into the file as it is, in whole pages.
pub(super) fn plain(content: &[u8]) -> Cow<'_, [u8]> {
    if content.len().is_multiple_of(PAGE as usize) {
        return content.into();
    }
    let mut padded = content.to_vec();
    padded.resize(content.len().next_multiple_of(PAGE as usize), 0);
    padded.into()
}

/// Compresses content into `room`; false where that saves less than an eighth, and reading it plainly is faster.
pub(super) fn compress(content: &[u8], room: &mut Vec<u8>) -> bool {
    lz4::compress(content, room);
    room.len() < content.len() - content.len() / 8
}

/// Makes the content of a chunk, which is as long as `content`, of what was in the file; None where it is not so long.
pub(super) fn restore(
    codec: Codec,
    chunk: &Chunk,
    stored: &[u8],
    content: &mut [u8],
) -> Option<()> {
    match codec {
        Codec::Plain => {
            content.copy_from_slice(stored.get(chunk.skip as usize..)?.get(..content.len())?);
        }
        Codec::Lz4 if chunk.whole == 0 => lz4::decompress(stored, content)?,
        Codec::Lz4 => {
            let mut whole = vec![0; (chunk.whole as usize).min(CHUNK_MAX as usize)];
            lz4::decompress(stored, &mut whole)?;
            let part = whole.get(chunk.skip as usize..)?.get(..content.len())?;
            content.copy_from_slice(part);
        }
        Codec::Sealed | Codec::SealedLz4 => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn what_is_stored_comes_back() {
        let chunk = Chunk::new_zeroed();
        for len in [1, 4095, 4096, 8192] {
            let content = vec![7; len];
            let stored = plain(&content);
            assert_eq!(stored.len(), len.next_multiple_of(PAGE as usize));
            let mut again = vec![0; len];
            assert_eq!(restore(Codec::Plain, &chunk, &stored, &mut again), Some(()));
            assert_eq!(again, content);
            assert_eq!(restore(Codec::Plain, &chunk, &stored[..len - 1], &mut again), None);
        }
    }

    #[test]
    fn what_is_compressed_comes_back() {
        let content: Vec<u8> = (0..8192u32).map(|n| (n / 100) as u8).collect();
        let mut room = Vec::new();
        assert!(compress(&content, &mut room));
        let mut again = vec![0; content.len()];
        let mut chunk = Chunk::new_zeroed();
        assert_eq!(restore(Codec::Lz4, &chunk, &room, &mut again), Some(()));
        assert_eq!(again, content);
        assert_eq!(restore(Codec::Lz4, &chunk, &room, &mut again[1..]), None);
        (chunk.whole, chunk.skip) = (8192, 4096);
        assert_eq!(restore(Codec::Lz4, &chunk, &room, &mut again[..4096]), Some(()));
        assert_eq!(again[..4096], content[4096..]);
        chunk.skip = 4097;
        assert_eq!(restore(Codec::Lz4, &chunk, &room, &mut again[..4096]), None);
        (chunk.whole, chunk.skip) = (4096, 0);
        assert_eq!(restore(Codec::Lz4, &chunk, &room, &mut again[..4096]), None);
    }

    #[test]
    fn what_does_not_get_smaller_stays_plain() {
        let noise: Vec<u8> =
            (0..512u64).flat_map(|n| super::super::hash(&n.to_le_bytes()).to_le_bytes()).collect();
        assert!(!compress(&noise, &mut Vec::new()));
        assert!(!compress(b"abc", &mut Vec::new()));
    }
}
