// SPDX-License-Identifier: LGPL-2.1-only
//! GHASH (NIST SP 800-38D, 6.4), of sixteen blocks abreast where the processor multiplies in wide registers.
//!
//! Elsewhere it is the package's, which takes four in narrow ones, and turns their bytes one by one: three times as long.
//! Numbers are those of POLYVAL (RFC 8452, appendix A), whose bits are in the order of the processor's: blocks are reversed,
//! and the key is multiplied by x.
//!
//! # Safety
//! What needs AVX2, PCLMULQDQ and VPCLMULQDQ is called only where the processor has them. Vectors are read from arrays of
//! their size.
#![allow(unsafe_code)]

use ghash::GHash;
use ghash::universal_hash::UniversalHash;
use std::arch::x86_64::{
    __m128i, __m256i, _mm_clmulepi64_si128, _mm_cvtsi128_si64, _mm_set_epi64x, _mm_shuffle_epi32,
    _mm_slli_si128, _mm_srli_si128, _mm_xor_si128, _mm256_castsi256_si128,
    _mm256_clmulepi64_epi128, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_set_epi8,
    _mm256_shuffle_epi8, _mm256_xor_si256, _mm256_zextsi128_si256,
};

/// Bytes of a block.
const BLOCK: usize = 16;
/// How many are multiplied before their sum is made short again.
const ABREAST: usize = 16;

/// Powers of a key, from the highest on.
type Powers = [[u8; BLOCK]; ABREAST];

/// A key.
#[derive(Clone)]
pub(super) enum Key {
    Wide(Powers),
    Narrow(GHash),
}

impl Key {
    /// Of the encrypted block of zeros.
    pub(super) fn of(block: [u8; BLOCK]) -> Self {
        let can = is_x86_feature_detected!("vpclmulqdq") && is_x86_feature_detected!("avx2");
        match can && is_x86_feature_detected!("pclmulqdq") {
            // SAFETY: the processor has what is needed.
            true => Self::Wide(unsafe { powers(block) }),
            false => Self::narrow(block),
        }
    }

    /// The same, without wide registers.
    pub(super) fn narrow(block: [u8; BLOCK]) -> Self {
        Self::Narrow(GHash::new(&block.into()))
    }

    /// The hash of two texts, each as if it were filled up with zeros, and of their lengths.
    pub(super) fn hash(&self, known: &[u8], text: &[u8]) -> [u8; BLOCK] {
        let bits = |text: &[u8]| u128::from(text.len() as u64 * 8);
        let lengths = (bits(known) << 64 | bits(text)).to_be_bytes();
        match self {
            Self::Wide(powers) => {
                let texts = [known, text, &lengths];
                // SAFETY: the processor has what is needed.
                let sum = texts.iter().fold(0, |sum, text| unsafe { wide(powers, sum, text) });
                sum.to_be_bytes()
            }
            Self::Narrow(hash) => {
                let mut hash = hash.clone();
                [known, text, &lengths].iter().for_each(|text| hash.update_padded(text));
                hash.finalize().into()
            }
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(bytes: &[u8; 2 * BLOCK]) -> __m256i {
    // SAFETY: there are as many bytes.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "sse2")]
#[inline]
fn number(of: __m128i) -> u128 {
    let [low, high] = [_mm_cvtsi128_si64(of), _mm_cvtsi128_si64(_mm_srli_si128::<8>(of))];
    u128::from(high.cast_unsigned()) << 64 | u128::from(low.cast_unsigned())
}

#[target_feature(enable = "avx2,pclmulqdq,vpclmulqdq")]
fn powers(block: [u8; BLOCK]) -> Powers {
    let reversed = u128::from_be_bytes(block);
    let first = (reversed << 1) ^ ((reversed >> 127) * ((0xc2 << 120) | 1));
    let mut powers = [[0; BLOCK]; ABREAST];
    let (mut power, mut piece) = (first, [0; BLOCK * ABREAST]);
    powers[ABREAST - 1] = first.to_le_bytes();
    for at in (0..ABREAST - 1).rev() {
        piece[BLOCK * (ABREAST - 1)..].copy_from_slice(&power.to_be_bytes());
        // The higher ones count for nothing yet: their blocks are zeros.
        power = step(&powers, 0, &piece);
        powers[at] = power.to_le_bytes();
    }
    powers
}

/// Goes on from a hash with a text.
#[target_feature(enable = "avx2,pclmulqdq,vpclmulqdq")]
fn wide(powers: &Powers, mut hash: u128, text: &[u8]) -> u128 {
    let (pieces, rest) = text.as_chunks();
    for piece in pieces {
        hash = step(powers, hash, piece);
    }
    if !rest.is_empty() {
        // What is not there stands in front, where it counts for nothing.
        let mut piece = [0; BLOCK * ABREAST];
        let place = &mut piece[BLOCK * ABREAST - rest.len().next_multiple_of(BLOCK)..];
        place[..rest.len()].copy_from_slice(rest);
        place.iter_mut().zip(hash.to_be_bytes()).for_each(|(byte, other)| *byte ^= other);
        hash = step(powers, 0, &piece);
    }
    hash
}

/// Goes on from a hash with as many blocks as there are powers.
#[target_feature(enable = "avx2,pclmulqdq,vpclmulqdq")]
#[inline(never)]
fn step(powers: &Powers, hash: u128, piece: &[u8; BLOCK * ABREAST]) -> u128 {
    let turned = _mm256_set_epi8(
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,
        12, 13, 14, 15,
    );
    let zero = _mm256_zextsi128_si256(_mm_set_epi64x(0, 0));
    let mut sum = [zero; 3];
    let half = |at: u32| ((hash >> at) as u64).cast_signed();
    let mut before = _mm256_zextsi128_si256(_mm_set_epi64x(half(64), half(0)));
    let keys = powers.as_flattened().as_chunks().0;
    for (blocks, key) in piece.as_chunks().0.iter().zip(keys) {
        let blocks = _mm256_shuffle_epi8(load(blocks), turned);
        add_product(&mut sum, _mm256_xor_si256(blocks, before), load(key));
        before = zero;
    }
    number(short(&sum))
}

/// Adds the products of two pairs: their lower, middle and upper parts.
#[target_feature(enable = "avx2,vpclmulqdq")]
#[inline]
fn add_product(sum: &mut [__m256i; 3], one: __m256i, other: __m256i) {
    let middle = _mm256_xor_si256(
        _mm256_clmulepi64_epi128::<0x01>(one, other),
        _mm256_clmulepi64_epi128::<0x10>(one, other),
    );
    sum[0] = _mm256_xor_si256(sum[0], _mm256_clmulepi64_epi128::<0x00>(one, other));
    sum[1] = _mm256_xor_si256(sum[1], middle);
    sum[2] = _mm256_xor_si256(sum[2], _mm256_clmulepi64_epi128::<0x11>(one, other));
}

/// The rest of a sum of products, divided by the polynomial of POLYVAL (Montgomery's way).
#[target_feature(enable = "avx2,pclmulqdq")]
#[inline]
fn short(sum: &[__m256i; 3]) -> __m128i {
    let [low, middle, high] = sum.map(|part| {
        _mm_xor_si128(_mm256_castsi256_si128(part), _mm256_extracti128_si256::<1>(part))
    });
    let polynomial = _mm_set_epi64x(0, (0xc2_u64 << 56).cast_signed());
    let mut low = _mm_xor_si128(low, _mm_slli_si128::<8>(middle));
    let high = _mm_xor_si128(high, _mm_srli_si128::<8>(middle));
    for _ in 0..2 {
        let part = _mm_clmulepi64_si128::<0x00>(low, polynomial);
        low = _mm_xor_si128(_mm_shuffle_epi32::<0x4e>(low), part);
    }
    _mm_xor_si128(high, low)
}
