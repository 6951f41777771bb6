// SPDX-License-Identifier: LGPL-2.1-only
//! Chance that is the same in each run (splitmix64), for tests that make up input.

/// The generator; its first number follows from the seed.
pub(crate) struct Dice(pub u64);

#[allow(dead_code)]
impl Dice {
    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// At most so many bytes: zeros, or any.
    pub(crate) fn bytes(&mut self, most: u64) -> Vec<u8> {
        let (len, kind) = (self.below(most + 1), self.below(3));
        let mut byte = |_| if kind == 0 { 0 } else { self.next() as u8 };
        (0..len).map(&mut byte).collect()
    }

    /// Makes some mistakes.
    pub(crate) fn spoil(&mut self, said: &mut Vec<u8>, mistakes: u64) {
        for _ in 0..mistakes {
            if said.is_empty() {
                return;
            }
            let at = self.below(said.len() as u64) as usize;
            match self.below(4) {
                0 => said[at] = self.next() as u8,
                1 => said[at] ^= 1 << self.below(8),
                2 => said.truncate(at),
                _ => drop(said.splice(at..at, self.bytes(20))),
            }
        }
    }
}
