// SPDX-License-Identifier: LGPL-2.1-only
//! What tells contents apart: BLAKE2b (RFC 7693), of four pieces abreast where the processor can.
//!
//! A digest of each page is most of what an upload costs on both sides. One piece after the other, a processor waits for
//! each step of it; four independent ones take little longer than one.
//!
//! # Safety
//! What needs AVX2 is called only where the processor has it.
#![allow(unsafe_code)]

use snow::params::HashChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::Hash;
use std::arch::x86_64::{
    __m256i, _mm256_add_epi64, _mm256_extract_epi64, _mm256_or_si256, _mm256_set_epi64x,
    _mm256_set1_epi64x, _mm256_setr_epi8, _mm256_shuffle_epi8, _mm256_shuffle_epi32,
    _mm256_srli_epi64, _mm256_xor_si256,
};

/// Bytes of a [`Digest`].
pub const DIGEST: usize = 24;
/// Bytes of a block.
const BLOCK: usize = 128;
/// The initial state, which is that of SHA-512 (RFC 7693, 2.6).
const IV: [u64; 8] = [
    0x6a09_e667_f3bc_c908,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
    0x9b05_688c_2b3e_6c1f,
    0x1f83_d9ab_fb41_bd6b,
    0x5be0_cd19_137e_2179,
];
/// The order of a block's words in each round (RFC 7693, 2.7); the last two are the first two again.
const SIGMA: [[u8; 16]; 12] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
];
/// Tells contents apart: nobody finds two with the same digest, which is the first 192 bits of BLAKE2b-512.
pub struct Digest {
    one: Box<dyn Hash>,
    has_avx2: bool,
}

impl Default for Digest {
    fn default() -> Self {
        let hash = DefaultResolver.resolve_hash(&HashChoice::Blake2b);
        let one = hash.expect("snow has it, as it has BLAKE2s");
        Self { one, has_avx2: is_x86_feature_detected!("avx2") }
    }
}

impl Digest {
    /// That of these bytes.
    pub fn of(&mut self, bytes: &[u8]) -> [u8; DIGEST] {
        let mut whole = [0; 64];
        self.one.reset();
        self.one.input(bytes);
        self.one.result(&mut whole);
        *whole.first_chunk().expect("it is longer")
    }

    /// Gives that of each `unit` bytes to `each`; the last one may have less. Units are whole blocks of 128 bytes.
    pub fn each(&mut self, bytes: &[u8], unit: usize, each: &mut dyn FnMut([u8; DIGEST])) {
        let mut rest = bytes;
        while self.has_avx2 && unit.is_multiple_of(BLOCK) && rest.len() >= 4 * unit {
            let (now, later) = rest.split_at(4 * unit);
            // SAFETY: the processor has AVX2.
            unsafe { four(now, unit) }.into_iter().for_each(&mut *each);
            rest = later;
        }
        rest.chunks(unit).for_each(|unit| each(self.of(unit)));
    }
}

/// A quarter of half a round (RFC 7693, 3.1).
#[target_feature(enable = "avx2")]
#[inline]
fn mix(v: &mut [__m256i; 16], [a, b, c, d]: [usize; 4], [x, y]: [__m256i; 2]) {
    let by_24 = _mm256_setr_epi8(
        3, 4, 5, 6, 7, 0, 1, 2, 11, 12, 13, 14, 15, 8, 9, 10, 3, 4, 5, 6, 7, 0, 1, 2, 11, 12, 13,
        14, 15, 8, 9, 10,
    );
    let by_16 = _mm256_setr_epi8(
        2, 3, 4, 5, 6, 7, 0, 1, 10, 11, 12, 13, 14, 15, 8, 9, 2, 3, 4, 5, 6, 7, 0, 1, 10, 11, 12,
        13, 14, 15, 8, 9,
    );
    v[a] = _mm256_add_epi64(_mm256_add_epi64(v[a], v[b]), x);
    v[d] = _mm256_shuffle_epi32::<0xb1>(_mm256_xor_si256(v[d], v[a]));
    v[c] = _mm256_add_epi64(v[c], v[d]);
    v[b] = _mm256_shuffle_epi8(_mm256_xor_si256(v[b], v[c]), by_24);
    v[a] = _mm256_add_epi64(_mm256_add_epi64(v[a], v[b]), y);
    v[d] = _mm256_shuffle_epi8(_mm256_xor_si256(v[d], v[a]), by_16);
    v[c] = _mm256_add_epi64(v[c], v[d]);
    let turned = _mm256_xor_si256(v[b], v[c]);
    v[b] = _mm256_or_si256(_mm256_srli_epi64::<63>(turned), _mm256_add_epi64(turned, turned));
}

/// The digests of four units, which lie behind each other.
#[target_feature(enable = "avx2")]
fn four(bytes: &[u8], unit: usize) -> [[u8; DIGEST]; 4] {
    let all = |word: u64| _mm256_set1_epi64x(word.cast_signed());
    let mut h = IV.map(all);
    // A digest of 64 bytes, without a key.
    h[0] = all(IV[0] ^ 0x0101_0040);
    for at in (0..unit).step_by(BLOCK) {
        let word = |lane: usize, i: usize| {
            let word = bytes[lane * unit + at + i * 8..].first_chunk();
            i64::from_le_bytes(*word.unwrap_or(&[0; 8]))
        };
        let mut m = [all(0); 16];
        for (i, m) in m.iter_mut().enumerate() {
            *m = _mm256_set_epi64x(word(3, i), word(2, i), word(1, i), word(0, i));
        }
        let mut v = [all(0); 16];
        v[..8].copy_from_slice(&h);
        v[8..].copy_from_slice(&IV.map(all));
        let end = at + BLOCK;
        v[12] = all(IV[4] ^ end as u64);
        if end == unit {
            v[14] = all(!IV[6]);
        }
        for order in &SIGMA {
            let pair = |i: usize| [m[usize::from(order[i])], m[usize::from(order[i + 1])]];
            mix(&mut v, [0, 4, 8, 12], pair(0));
            mix(&mut v, [1, 5, 9, 13], pair(2));
            mix(&mut v, [2, 6, 10, 14], pair(4));
            mix(&mut v, [3, 7, 11, 15], pair(6));
            mix(&mut v, [0, 5, 10, 15], pair(8));
            mix(&mut v, [1, 6, 11, 12], pair(10));
            mix(&mut v, [2, 7, 8, 13], pair(12));
            mix(&mut v, [3, 4, 9, 14], pair(14));
        }
        for (i, h) in h.iter_mut().enumerate() {
            *h = _mm256_xor_si256(*h, _mm256_xor_si256(v[i], v[i + 8]));
        }
    }
    let mut digests = [[0; DIGEST]; 4];
    for (i, h) in h[..3].iter().enumerate() {
        let lanes = [
            _mm256_extract_epi64::<0>(*h),
            _mm256_extract_epi64::<1>(*h),
            _mm256_extract_epi64::<2>(*h),
            _mm256_extract_epi64::<3>(*h),
        ];
        for (digest, lane) in digests.iter_mut().zip(lanes) {
            digest[8 * i..8 * i + 8].copy_from_slice(&lane.to_le_bytes());
        }
    }
    digests
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7693, appendix A.
    #[test]
    fn the_digest_is_that_of_the_standard() {
        let mut digest = Digest::default();
        for _ in 0..2 {
            assert_eq!(digest.of(b"abc")[..8], [0xba, 0x80, 0xa5, 0x3f, 0x98, 0x1c, 0x4d, 0x0d]);
        }
    }

    #[test]
    fn four_abreast_are_as_one() {
        let mut digest = Digest::default();
        let bytes: Vec<u8> = (0..11 * 4096 + 77u64).map(|i| ((i * i * 31) >> 5) as u8).collect();
        for (unit, len) in
            [(4096, bytes.len()), (4096, 16384), (128, 5000), (256, 1024), (100, 999)]
        {
            let bytes = &bytes[3..len];
            let mut found = Vec::new();
            digest.each(bytes, unit, &mut |one| found.push(one));
            let expected: Vec<_> = bytes.chunks(unit).map(|bytes| digest.of(bytes)).collect();
            assert_eq!(found, expected, "{unit} {len}");
        }
    }
}
