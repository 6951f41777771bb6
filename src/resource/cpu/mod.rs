// SPDX-License-Identifier: LGPL-2.1-only
//! What a processor can do, what a program may use of it, and what another processor lacks of that.
//!
//! An image has the features that the program found where it began ([`Set`], kept in the payload's
//! configuration), or fewer when `ckpt --cpu` told it to use fewer ([`limit`]), and CPUID's raw
//! answers of the machine where it was saved.
//!
//! # Safety
//! The one instruction that needs it reads a register that the CPU was seen to have.
#![allow(unsafe_code)]

pub(crate) mod limit;
pub(crate) mod table;

use ckpt_abi::image::CpuLeaf;
use ckpt_abi::region::{Config, config_flag};
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;
use table::{FEATURES, Feature, Register};

/// A set of features: a bit for each in the order of [`FEATURES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set(pub [u64; 2]);

/// AVX and AVX-512 registers are of use only where the kernel saves them (XCR0).
const AVX: u64 = 0b110;
const AVX512: u64 = 0b1110_0110;
const AMX: u64 = 3 << 17;
const APX: u64 = 1 << 19;
const AT_HWCAP2: u64 = 26;
const HWCAP2_FSGSBASE: u64 = 2;

impl Set {
    /// Those of this machine that its kernel lets programs use.
    pub(crate) fn here() -> Self {
        let mut set = Self::of_leaves(leaves(), xcr0());
        // SAFETY: reads the auxiliary vector of this process.
        let hwcap2 = unsafe { nix::libc::getauxval(AT_HWCAP2) };
        if hwcap2 & HWCAP2_FSGSBASE == 0 {
            set.remove("fsgsbase");
        }
        set
    }

    /// Those that CPUID's answers have.
    fn of_leaves(leaves: &[CpuLeaf], xcr0: u64) -> Self {
        let mut set = Self::default();
        for (index, feature) in FEATURES.iter().enumerate() {
            if has(leaves, feature) {
                set.insert(index);
            }
        }
        let kinds = [("avx", AVX), ("avx512f", AVX512), ("amx_tile", AMX), ("apx", APX)];
        for (name, state) in kinds.into_iter().filter(|(_, state)| xcr0 & state != *state) {
            set.remove(name);
            let _ = state;
        }
        set
    }

    /// Those of a level of the psABI, 1 to 4.
    pub(crate) fn of_level(level: u8) -> Self {
        let mut set = Self::default();
        for (index, feature) in FEATURES.iter().enumerate() {
            if feature.level != 0 && feature.level <= level {
                set.insert(index);
            }
        }
        set
    }

    /// What a payload's configuration says; the whole of this machine where it says nothing.
    pub(crate) fn of_config(config: &Config) -> Self {
        if config.flags & config_flag::CPU_KNOWN != 0 { Self(config.cpu) } else { Self::here() }
    }

    /// Notes the set in a payload's configuration.
    pub(crate) fn note(&self, config: &mut Config) {
        config.cpu = self.0;
        config.flags |= config_flag::CPU_KNOWN;
    }

    fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    fn has_index(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 != 0
    }

    /// Takes a feature away, and all that need it.
    pub(crate) fn remove(&mut self, name: &str) {
        for (index, feature) in FEATURES.iter().enumerate() {
            if feature.name == name || feature.needs == Some(name) {
                let had = self.has_index(index);
                self.0[index / 64] &= !(1 << (index % 64));
                if feature.name != name && had {
                    self.remove(feature.name);
                }
            }
        }
    }

    /// Whether a feature is among them.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.features().any(|f| f.name == name)
    }

    /// The features.
    pub(crate) fn features(&self) -> impl Iterator<Item = &'static Feature> {
        let set = *self;
        FEATURES.iter().enumerate().filter(move |(i, _)| set.has_index(*i)).map(|(_, f)| f)
    }

    /// Those that `other` has not.
    pub(crate) fn without(&self, other: &Self) -> Self {
        Self([self.0[0] & !other.0[0], self.0[1] & !other.0[1]])
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0 == [0; 2]
    }

    /// Their names, separated by spaces.
    pub(crate) fn names(&self) -> String {
        self.features().map(|f| f.name).collect::<Vec<_>>().join(" ")
    }

    /// The highest level of the psABI all of whose features are among them, 1 to 4.
    pub(crate) fn level(&self) -> u8 {
        (1..=4).rev().find(|l| Self::of_level(*l).without(self).is_empty()).unwrap_or(1)
    }
}

/// "x86-64-v2"; the first level has no number in GCC's and glibc's names.
pub(crate) fn level_name(level: u8) -> String {
    format!("x86-64-v{level}")
}

fn has(leaves: &[CpuLeaf], feature: &Feature) -> bool {
    let leaf = leaves.iter().find(|l| (l.leaf, l.subleaf) == feature.leaf);
    leaf.is_some_and(|l| {
        let word = match feature.register {
            Register::A => l.eax,
            Register::B => l.ebx,
            Register::C => l.ecx,
            Register::D => l.edx,
        };
        word >> feature.bit & 1 != 0
    })
}

/// The answers of CPUID that matter to programs, the sizes of the XSAVE components among them. They are asked for once:
/// in a virtual machine each is an exit to its host, and all of them take a millisecond.
pub(crate) fn leaves() -> &'static [CpuLeaf] {
    static LEAVES: OnceLock<Vec<CpuLeaf>> = OnceLock::new();
    LEAVES.get_or_init(ask)
}

fn ask() -> Vec<CpuLeaf> {
    let basic = __cpuid(0).eax;
    let extended = __cpuid(0x8000_0000).eax;
    let mut wanted: Vec<(u32, u32)> =
        vec![(0, 0), (1, 0), (7, 0), (7, 1), (0xd, 0), (0xd, 1), (0x14, 0), (0x19, 0), (0x24, 0)];
    wanted.extend((2..20).map(|i| (0xd, i)));
    wanted.extend([1, 2, 3, 4, 7, 8].map(|i| (0x8000_0000 + i, 0)));
    wanted.retain(|(leaf, _)| *leaf <= if *leaf < 0x8000_0000 { basic } else { extended });
    let ask = |(leaf, subleaf)| {
        let a = __cpuid_count(leaf, subleaf);
        CpuLeaf { leaf, subleaf, eax: a.eax, ebx: a.ebx, ecx: a.ecx, edx: a.edx }
    };
    wanted.into_iter().map(ask).collect()
}

/// The processor's own name.
pub(crate) fn name(leaves: &[CpuLeaf]) -> String {
    let mut bytes = Vec::new();
    for leaf in leaves.iter().filter(|l| (0x8000_0002..=0x8000_0004).contains(&l.leaf)) {
        for word in [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx] {
            bytes.extend(word.to_le_bytes().into_iter().filter(|b| *b != 0));
        }
    }
    String::from_utf8_lossy(&bytes).trim().to_string()
}

/// XCR0: the state components that the operating system has enabled; 0 without XSAVE.
pub(crate) fn xcr0() -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return 0;
    }
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE says that the instruction exists; it only reads.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
                        options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_fits_and_its_needs_exist() {
        assert!(FEATURES.len() <= 128);
        for feature in FEATURES {
            let named = FEATURES.iter().filter(|f| f.name == feature.name).count();
            assert_eq!(named, 1, "{}", feature.name);
            if let Some(needs) = feature.needs {
                assert!(FEATURES.iter().any(|f| f.name == needs), "{needs}");
            }
        }
    }

    #[test]
    fn levels_contain_each_other() {
        for level in 1..=4 {
            assert_eq!(Set::of_level(level).level(), level);
            assert!(Set::of_level(level).without(&Set::of_level(4)).is_empty());
        }
        assert!(Set::of_level(1).is_empty());
    }

    #[test]
    fn what_needs_a_feature_goes_with_it() {
        let mut set = Set::of_level(4);
        set.remove("avx2");
        assert!(!set.has("avx512vl") && set.has("avx") && set.has("fma") && set.has("bmi2"));
        set.remove("xsave");
        assert!(!set.has("avx") && !set.has("f16c") && set.has("popcnt"));
    }

    #[test]
    fn registers_that_the_kernel_does_not_save_are_of_no_use() {
        let ones = |leaf, subleaf| CpuLeaf {
            leaf,
            subleaf,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
        };
        let leaves = [ones(1, 0), ones(7, 0), ones(0x8000_0001, 0)];
        assert_eq!(Set::of_leaves(&leaves, 0xe7).level(), 4);
        assert_eq!(Set::of_leaves(&leaves, 0x7).level(), 3);
        assert_eq!(Set::of_leaves(&leaves, 0x3).level(), 2);
        assert!(!Set::of_leaves(&leaves, 0xe7).has("amx_int8"));
    }
}
