// SPDX-License-Identifier: LGPL-2.1-only
//! What must be true of the places of an image's parts.

use super::{PAGE, hash};
use crate::order;
use ckpt_abi::image::{
    CHUNK_MAX, Chunk, Codec, Header, NO_OBJECT, SEAL, Section, TRAILER_MAGIC, Trailer, WHOLE_IMAGE,
    header_flag, needs,
};
use zerocopy::{FromZeros, IntoBytes};

type Verdict = Result<(), String>;

/// Where the trailer begins.
pub(super) fn end(trailer: &Trailer) -> u64 {
    trailer.file_len - size_of::<Trailer>() as u64
}

/// By how much a section is longer than its records.
pub(super) fn longer(header: &Header) -> u64 {
    if header.needs & needs::SEALED == 0 { 0 } else { SEAL }
}

/// Where content begins.
pub(super) fn first(header: &Header) -> u64 {
    header.start + if header.needs & needs::STREAMED == 0 { PAGE } else { 0 }
}

/// Chunks are sorted and do not overlap, and each has a possible place and length and is of one of `processes`.
pub(super) fn order(chunks: &[Chunk], processes: u32) -> Verdict {
    for chunk in chunks {
        let len = u64::from(chunk.len);
        let memory = chunk.object == NO_OBJECT && chunk.process < processes;
        let object = chunk.object != NO_OBJECT && chunk.process == WHOLE_IMAGE;
        let pages = object || len.is_multiple_of(PAGE);
        let stored = u64::from(chunk.stored);
        let whole = u64::from(chunk.whole);
        let encoded = match Codec::try_from(chunk.codec) {
            Ok(Codec::Plain) => whole == 0 && stored == len.next_multiple_of(PAGE),
            codec => {
                let end = u64::from(chunk.skip) + len;
                // What is only sealed is as long as it was.
                let sealed = codec == Ok(Codec::Sealed);
                stored < CHUNK_MAX + u64::from(sealed)
                    && whole <= CHUNK_MAX
                    && end <= if whole == 0 { len } else { whole }
            }
        };
        let sane = chunk.address.is_multiple_of(PAGE)
            && chunk.address.checked_add(len).is_some_and(|end| end <= 1 << 63)
            && (1..=CHUNK_MAX).contains(&len);
        if !(sane && pages && encoded && (memory || object)) {
            return Err(format!(
                "a chunk at {:#x} has an impossible place or length",
                chunk.address
            ));
        }
    }
    let key = |c: &Chunk| (c.process, c.object, c.address);
    let next = |c: &Chunk| (c.process, c.object, c.address + u64::from(c.len));
    match chunks.windows(2).find(|pair| next(&pair[0]) > key(&pair[1])) {
        Some(pair) => Err(format!("its chunks at {:#x} overlap", pair[1].address)),
        None => Ok(()),
    }
}

/// Stub, header, chunks, sections, their table, the ELF table and the trailer follow each other.
pub(super) fn check(
    header: &Header,
    trailer: &Trailer,
    sections: &[Section],
    chunks: &[Chunk],
) -> Verdict {
    let first = first(header);
    let gaps = header.flags & header_flag::RENEWED != 0;
    let mut at = first;
    // What processes have in common lies there once: chunks may overlap.
    let mut content: Vec<_> = chunks.iter().map(|c| (c.offset, u64::from(c.stored))).collect();
    order::numbers(&mut content);
    for (offset, len) in content {
        if offset < first || (offset > at && !gaps) {
            return Err(format!("there is a gap at {at:#x}"));
        }
        at = at.max(offset.saturating_add(len));
    }
    let mut records: Vec<_> =
        sections.iter().map(|s| (s.offset, s.len.next_multiple_of(8) + longer(header))).collect();
    order::numbers(&mut records);
    if gaps {
        at = records.first().map_or(at, |(offset, _)| at.max(*offset));
    }
    for (offset, len) in records {
        if offset != at {
            return Err(format!("there is a gap at {at:#x}"));
        }
        at = at.saturating_add(len);
    }
    let table = u64::from(header.section_count) * u64::from(header.section_len);
    if at != header.sections || at.saturating_add(table) != trailer.elf_table {
        return Err(format!("there is a gap at {at:#x}"));
    }
    if header.stub_len > header.start {
        return Err("its stub is too long".into());
    }
    Ok(())
}

/// The trailer behind the ELF table and what else lies there.
pub(super) fn trailer(header: u64, file_len: u64, elf_table: u64, table: &[u8]) -> Trailer {
    let mut trailer = Trailer {
        magic: TRAILER_MAGIC,
        header,
        file_len,
        elf_hash: hash(table),
        elf_table,
        ..Trailer::new_zeroed()
    };
    trailer.hash = hash(trailer.as_bytes());
    trailer
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn memory(address: u64, len: u32) -> Chunk {
        Chunk { object: NO_OBJECT, address, len, stored: len, ..Chunk::new_zeroed() }
    }

    #[test]
    fn chunks_follow_each_other() {
        let good = [memory(0x1000, 0x2000), memory(0x3000, 0x40000)];
        assert_eq!(order(&good, 1), Ok(()));
        assert!(order(&[good[1], good[0]], 1).is_err());
        assert!(order(&[memory(0x1000, 0x3000), memory(0x3000, 0x1000)], 1).is_err());
        let other = Chunk { process: 1, ..memory(0x1000, 0x1000) };
        assert_eq!(order(&[good[0], good[1], other], 2), Ok(()));
        assert!(order(&[good[0], good[1], other], 1).is_err());
    }

    #[test]
    fn impossible_chunks_are_refused() {
        for wrong in [
            memory(0x1000, 0),
            memory(0x1001, 0x1000),
            memory(0x1000, 0x800),
            memory(0x1000, 0x41000),
            memory(!0xfff, 0x2000),
            Chunk { stored: 0x2000, ..memory(0x1000, 0x1000) },
            Chunk { object: 0, ..memory(0x1000, 0x1000) },
            Chunk { process: WHOLE_IMAGE, ..memory(0x1000, 0x1000) },
        ] {
            assert!(order(&[wrong], 1).is_err(), "{wrong:?}");
        }
        let file = Chunk { process: WHOLE_IMAGE, object: 3, stored: 0x1000, ..memory(0, 100) };
        assert_eq!(order(&[file], 1), Ok(()));
    }
}
