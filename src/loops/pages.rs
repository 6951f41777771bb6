// SPDX-License-Identifier: LGPL-2.1-only
//! Looks at memory.
//!
//! # Safety
//! A function for a processor's feature is called where that was found.
#![allow(unsafe_code)]

/// Whether all bytes are zero.
#[inline(never)]
pub fn is_zero(page: &[u8]) -> bool {
    // Most pages show early that they are not; what adds up 64 bytes at a time uses wide registers.
    page.chunks(64).all(|piece| piece.iter().fold(0, |sum, byte| sum | byte) == 0)
}

/// The first aligned word of 8 bytes at `from` or behind whose lower half is not below `least` and at most `span`
/// above: the offset behind it, and that half. `from` is a multiple of 8.
#[inline(never)]
pub fn find_half(bytes: &[u8], from: usize, least: u32, span: u32) -> Option<(usize, u32)> {
    let words = bytes.get(from..)?.as_chunks::<8>().0;
    let half = |word: &[u8; 8]| u64::from_le_bytes(*word) as u32;
    let is_one = |word: &[u8; 8]| half(word).wrapping_sub(least) <= span;
    // SAFETY: this processor is one of x86-64, which have SSE2.
    let before = unsafe { without_half(words, least, span) };
    let at = before + words.get(before..)?.iter().position(is_one)?;
    Some((from + 8 * (at + 1), half(words.get(at)?)))
}

/// How many words at the begin have no such half, at least. The registers are named as in [`without`]: of a loop over
/// words the linker makes calls of functions of three instructions.
#[target_feature(enable = "sse2")]
fn without_half(words: &[[u8; 8]], least: u32, span: u32) -> usize {
    use core::arch::x86_64::{
        _mm_add_epi32, _mm_and_si128, _mm_cmpgt_epi32, _mm_movemask_epi8, _mm_set_epi64x,
        _mm_set1_epi32,
    };
    /// Words that are looked at as one: nearly all blocks hold none that is looked for.
    const BLOCK: usize = 8;
    /// Of the lower halves of two words.
    const LOWER: i32 = 0x0f0f;
    let wide = |number: u32| _mm_set1_epi32(number.cast_signed());
    let (least, span) = (wide(BIAS.wrapping_sub(least)), wide(BIAS.wrapping_add(span)));
    // All ones in what is beyond.
    let beyond = |[low, high]: &[[u8; 8]; 2]| {
        let some = _mm_set_epi64x(i64::from_le_bytes(*high), i64::from_le_bytes(*low));
        _mm_cmpgt_epi32(_mm_add_epi32(some, least), span)
    };
    let has_one = |block: &[[u8; 8]; BLOCK]| {
        let [a, b, c, d] = block.as_chunks().0 else { return true };
        let first = _mm_and_si128(beyond(a), beyond(b));
        let all = _mm_and_si128(first, _mm_and_si128(beyond(c), beyond(d)));
        _mm_movemask_epi8(all) & LOWER != LOWER
    };
    let blocks = words.as_chunks::<BLOCK>().0;
    blocks.iter().position(has_one).unwrap_or(blocks.len()) * BLOCK
}

/// What makes of the comparison of signed numbers one of unsigned.
const BIAS: u32 = 1 << 31;

/// Four ranges of words: what is generic is built where it is used, for size.
type Ranges = [[u32; 2]; 4];

/// The first aligned word of 4 bytes at `from` or behind that is in one of the ranges (least and most): its offset. `from`
/// is a multiple of 4.
#[inline(never)]
pub fn find_word(bytes: &[u8], from: usize, ranges: &Ranges) -> Option<usize> {
    let words = bytes.get(from..)?;
    let before = match std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: it has AVX2.
        true => unsafe { without(words, ranges) },
        false => 0,
    };
    let is_one = |word: &[u8; 4]| {
        let word = u32::from_le_bytes(*word);
        ranges.iter().any(|[least, most]| (*least..=*most).contains(&word))
    };
    let at = before + words.as_chunks::<4>().0[before..].iter().position(is_one)?;
    Some(from + 4 * at)
}

/// How many words at the begin are in none of the ranges, at least. The registers are named: the linker optimizes for size,
/// and makes no vectors.
#[target_feature(enable = "avx2")]
fn without(words: &[u8], ranges: &Ranges) -> usize {
    use core::arch::x86_64::{
        __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_cmpgt_epi32, _mm256_movemask_epi8,
        _mm256_set_epi64x, _mm256_set1_epi32,
    };
    /// Bytes that are looked at as one.
    const BLOCK: usize = 64;
    let wide = |number: u32| _mm256_set1_epi32(number.cast_signed());
    let [a, b, c, d] = ranges.map(|[least, most]| {
        (wide(BIAS.wrapping_sub(least)), wide((most - least).wrapping_add(BIAS)))
    });
    let is_beyond = |some: __m256i, (least, span): (__m256i, __m256i)| {
        _mm256_cmpgt_epi32(_mm256_add_epi32(some, least), span)
    };
    // All ones in the words that are in none of the ranges.
    let outside = |bytes: &[u8; BLOCK / 2]| {
        let part =
            |at: usize| bytes[8 * at..].first_chunk().map_or(0, |it| i64::from_le_bytes(*it));
        let some = _mm256_set_epi64x(part(3), part(2), part(1), part(0));
        let first = _mm256_and_si256(is_beyond(some, a), is_beyond(some, b));
        _mm256_and_si256(first, _mm256_and_si256(is_beyond(some, c), is_beyond(some, d)))
    };
    let blocks = words.as_chunks::<BLOCK>().0;
    let has_one = |block: &[u8; BLOCK]| {
        let [first, second] = block.as_chunks().0 else { return true };
        _mm256_movemask_epi8(_mm256_and_si256(outside(first), outside(second))) != -1
    };
    blocks.iter().position(has_one).unwrap_or(blocks.len()) * (BLOCK / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_is_seen_wherever_it_stands() {
        let mut page = [0; 200];
        assert!(is_zero(&page) && is_zero(&[]));
        for at in 0..page.len() {
            page[at] = 1;
            assert!(!is_zero(&page));
            page[at] = 0;
        }
    }

    #[test]
    fn lower_halves_are_found_in_turn() {
        let mut bytes = [0; 43];
        for (at, half) in [(0, 7u32), (4, 8), (16, 9), (24, 12), (32, 6), (39, 8)] {
            bytes[at..at + 4].copy_from_slice(&half.to_le_bytes());
        }
        assert_eq!(find_half(&bytes, 0, 7, 2), Some((8, 7)));
        assert_eq!(find_half(&bytes, 8, 7, 2), Some((24, 9)));
        assert_eq!(find_half(&bytes, 24, 7, 2), None);
        assert_eq!(find_half(&bytes, 24, 7, u32::MAX), Some((32, 12)));
        assert_eq!(find_half(&bytes, 48, 7, 2), None);
    }

    /// Wherever they stand among blocks.
    #[test]
    fn one_word_is_seen_wherever_it_stands() {
        const BLOCK: usize = 8;
        for at in (0..8 * (4 * BLOCK + 3)).step_by(4) {
            let mut bytes = [0xff; 8 * (4 * BLOCK + 3)];
            bytes[at..at + 4].copy_from_slice(&7u32.to_le_bytes());
            let ranges = [[1, 2], [7, 7], [20, 20], [20, 20]];
            assert_eq!(find_word(&bytes, 0, &ranges), Some(at));
            assert_eq!(find_word(&bytes, at + 4, &ranges), None);
            let half = (at % 8 == 0).then_some((at + 8, 7));
            assert_eq!(find_half(&bytes, 0, 7, 0), half);
        }
    }

    #[test]
    fn words_are_found_in_turn() {
        let mut bytes = [0; 1003];
        for (at, word) in [(4, 7u32), (8, 6), (400, 9), (404, 20), (996, 8), (999, 7)] {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let ranges = [[7, 9], [20, 20], [20, 20], [20, 20]];
        let next = |from| find_word(&bytes, from, &ranges);
        assert_eq!(
            [next(0), next(4), next(8), next(404)],
            [Some(4), Some(4), Some(400), Some(404)]
        );
        assert_eq!([next(408), next(1000), next(2000)], [None; 3]);
    }
}
