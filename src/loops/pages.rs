// SPDX-License-Identifier: LGPL-2.1-only
//! Looks at memory.

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
    let half = |word: &[u8; 8]| u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
    let at = words.iter().position(|word| half(word).wrapping_sub(least) <= span)?;
    Some((from + 8 * (at + 1), half(&words[at])))
}

/// The first aligned word of 4 bytes at `from` or behind that is in one of the ranges (least and most): its offset. `from`
/// is a multiple of 4. (Of four ranges: what is generic is built where it is used, for size.)
#[inline(never)]
pub fn find_word(bytes: &[u8], from: usize, ranges: &[[u32; 2]; 4]) -> Option<usize> {
    let spans = ranges.map(|[least, most]| (least, most - least));
    let is_one = |word: &[u8; 4]| {
        let word = u32::from_le_bytes(*word);
        spans.iter().fold(false, |sum, (least, span)| sum | (word.wrapping_sub(*least) <= *span))
    };
    // Nearly all blocks hold none: what looks at one as a whole uses wide registers.
    let words = bytes.get(from..)?.as_chunks::<4>().0;
    let block = words
        .chunks(64)
        .position(|block| block.iter().fold(false, |sum, word| sum | is_one(word)))?;
    let at = 64 * block + words[64 * block..].iter().position(is_one)?;
    Some(from + 4 * at)
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
