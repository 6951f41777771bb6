// SPDX-License-Identifier: LGPL-2.1-only
//! GHASH (NIST SP 800-38D, 6.4), of sixteen blocks abreast where the processor multiplies polynomials.
//!
//! The package of that name takes three times as long: four blocks abreast, whose bytes are turned one by one. Numbers are those of
//! POLYVAL (RFC 8452, appendix A), whose bits are in the order of the processor's: blocks are reversed, and the key is
//! multiplied by x.
//!
//! # Safety
//! What needs PCLMULQDQ and VPCLMULQDQ is called only where the processor has them.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m128i, __m256i, _mm_clmulepi64_si128, _mm_cvtsi128_si64, _mm_set_epi64x, _mm_shuffle_epi8,
    _mm_shuffle_epi32, _mm_slli_si128, _mm_srli_si128, _mm_xor_si128, _mm256_castsi256_si128,
    _mm256_clmulepi64_epi128, _mm256_extracti128_si256, _mm256_set_m128i, _mm256_shuffle_epi8,
    _mm256_xor_si256,
};

/// Bytes of a block.
const BLOCK: usize = 16;
/// How many are multiplied before their sum is made short again.
const ABREAST: usize = 16;

/// A key.
#[derive(Clone)]
pub(super) struct Key {
    /// Its powers, from the highest on.
    powers: [u128; ABREAST],
    width: Width,
}

/// How many blocks the processor multiplies at once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Width {
    None,
    One,
    Two,
}

impl Width {
    pub(super) fn most() -> Self {
        let has_one = is_x86_feature_detected!("pclmulqdq") && is_x86_feature_detected!("ssse3");
        let has_two = is_x86_feature_detected!("vpclmulqdq") && is_x86_feature_detected!("avx2");
        match (has_one, has_two) {
            (true, true) => Self::Two,
            (true, false) => Self::One,
            _ => Self::None,
        }
    }
}

impl Key {
    /// Of the encrypted block of zeros.
    pub(super) fn of(block: [u8; BLOCK], width: Width) -> Self {
        let reversed = u128::from_be_bytes(block);
        let mut power = (reversed << 1) ^ ((reversed >> 127) * ((0xc2 << 120) | 1));
        let mut powers = [power; ABREAST];
        for at in (0..ABREAST - 1).rev() {
            power = slow(power, powers[ABREAST - 1]);
            powers[at] = power;
        }
        Self { powers, width }
    }

    /// The hash of two texts, each as if it were filled up with zeros, and of their lengths.
    pub(super) fn hash(&self, known: &[u8], text: &[u8]) -> [u8; BLOCK] {
        let bits = |text: &[u8]| u128::from(text.len() as u64 * 8);
        let lengths = (bits(known) << 64 | bits(text)).to_be_bytes();
        let mut hash = 0;
        for text in [known, text, &lengths] {
            let (pieces, rest) = text.as_chunks();
            hash = pieces.iter().fold(hash, |hash, piece| self.step(hash, piece));
            if !rest.is_empty() {
                // What is not there stands in front, where it counts for nothing.
                let mut piece = [0; BLOCK * ABREAST];
                let place = &mut piece[BLOCK * ABREAST - rest.len().next_multiple_of(BLOCK)..];
                place[..rest.len()].copy_from_slice(rest);
                place.iter_mut().zip(hash.to_be_bytes()).for_each(|(byte, other)| *byte ^= other);
                hash = self.step(0, &piece);
            }
        }
        hash.to_be_bytes()
    }

    /// Goes on from a hash.
    fn step(&self, hash: u128, piece: &[u8; BLOCK * ABREAST]) -> u128 {
        match self.width {
            // SAFETY: the processor has what is needed.
            Width::Two => unsafe { wide(&self.powers, hash, piece) },
            // SAFETY: the same.
            Width::One => unsafe { narrow(&self.powers, hash, piece) },
            Width::None => piece.as_chunks().0.iter().fold(hash, |hash, block| {
                slow(hash ^ u128::from_be_bytes(*block), self.powers[ABREAST - 1])
            }),
        }
    }
}

/// The product of two numbers, bit by bit, and in the same time for all.
fn slow(one: u128, other: u128) -> u128 {
    (0..u128::BITS).fold(0, |sum, bit| {
        let sum = sum ^ (other & (one >> bit & 1).wrapping_neg());
        (sum >> 1) ^ ((0xe1 << 120) & (sum & 1).wrapping_neg())
    })
}

#[target_feature(enable = "sse2")]
#[inline]
fn vector(number: u128) -> __m128i {
    _mm_set_epi64x(((number >> 64) as u64).cast_signed(), (number as u64).cast_signed())
}

#[target_feature(enable = "avx2")]
#[inline]
fn two(numbers: [u128; 2]) -> __m256i {
    _mm256_set_m128i(vector(numbers[1]), vector(numbers[0]))
}

/// The order of a block's bytes.
const TURNED: u128 = 0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f;

/// Goes on from a hash with as many blocks as there are powers.
#[target_feature(enable = "pclmulqdq,ssse3")]
#[inline(never)]
fn narrow(powers: &[u128; ABREAST], hash: u128, piece: &[u8; BLOCK * ABREAST]) -> u128 {
    let mut sum = [vector(0); 3];
    let mut before = vector(hash);
    for (block, power) in piece.as_chunks().0.iter().zip(powers) {
        let block = _mm_shuffle_epi8(vector(u128::from_le_bytes(*block)), vector(TURNED));
        let (one, other) = (_mm_xor_si128(block, before), vector(*power));
        sum[0] = _mm_xor_si128(sum[0], _mm_clmulepi64_si128::<0x00>(one, other));
        sum[1] = _mm_xor_si128(sum[1], _mm_clmulepi64_si128::<0x01>(one, other));
        sum[1] = _mm_xor_si128(sum[1], _mm_clmulepi64_si128::<0x10>(one, other));
        sum[2] = _mm_xor_si128(sum[2], _mm_clmulepi64_si128::<0x11>(one, other));
        before = vector(0);
    }
    short(sum)
}

/// The same, twice as fast.
#[target_feature(enable = "avx2,pclmulqdq,vpclmulqdq")]
#[inline(never)]
fn wide(powers: &[u128; ABREAST], hash: u128, piece: &[u8; BLOCK * ABREAST]) -> u128 {
    let mut sum = [two([0; 2]); 3];
    let mut before = two([hash, 0]);
    let blocks = piece.as_chunks().0.as_chunks::<2>().0;
    for (blocks, powers) in blocks.iter().zip(powers.as_chunks().0) {
        let blocks = _mm256_shuffle_epi8(two(blocks.map(u128::from_le_bytes)), two([TURNED; 2]));
        let (one, other) = (_mm256_xor_si256(blocks, before), two(*powers));
        sum[0] = _mm256_xor_si256(sum[0], _mm256_clmulepi64_epi128::<0x00>(one, other));
        sum[1] = _mm256_xor_si256(sum[1], _mm256_clmulepi64_epi128::<0x01>(one, other));
        sum[1] = _mm256_xor_si256(sum[1], _mm256_clmulepi64_epi128::<0x10>(one, other));
        sum[2] = _mm256_xor_si256(sum[2], _mm256_clmulepi64_epi128::<0x11>(one, other));
        before = two([0; 2]);
    }
    let half = |of| _mm256_extracti128_si256::<1>(of);
    short(sum.map(|of| _mm_xor_si128(_mm256_castsi256_si128(of), half(of))))
}

/// The rest of a sum of products (their lower, middle and upper parts), divided by the polynomial of POLYVAL (Montgomery's
/// way).
#[target_feature(enable = "pclmulqdq,ssse3")]
fn short([low, middle, high]: [__m128i; 3]) -> u128 {
    let mut low = _mm_xor_si128(low, _mm_slli_si128::<8>(middle));
    for _ in 0..2 {
        let part = _mm_clmulepi64_si128::<0x00>(low, vector(0xc2 << 56));
        low = _mm_xor_si128(_mm_shuffle_epi32::<0x4e>(low), part);
    }
    let sum = _mm_xor_si128(_mm_xor_si128(high, _mm_srli_si128::<8>(middle)), low);
    let half = |of| u128::from(_mm_cvtsi128_si64(of).cast_unsigned());
    half(_mm_srli_si128::<8>(sum)) << 64 | half(sum)
}
