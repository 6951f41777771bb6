// SPDX-License-Identifier: LGPL-2.1-only
//! The features of x86-64 processors that programs look for before they use them.
//!
//! Names are those of /proc/cpuinfo (arch/x86/include/asm/cpufeatures.h). Left out are features that
//! every x86-64 processor has, hints that others take for no operation (prefetchw, cldemote), mere
//! promises of speed (erms, fsrm), and what only the kernel can use. Protection keys are not in the
//! table either: whether a program uses them is seen in its mappings.

/// The register of CPUID's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Register {
    /// EAX.
    A,
    /// EBX.
    B,
    /// ECX.
    C,
    /// EDX.
    D,
}

/// One feature.
pub(crate) struct Feature {
    /// As in /proc/cpuinfo.
    pub name: &'static str,
    /// Leaf and subleaf of CPUID.
    pub leaf: (u32, u32),
    /// Where in the answer.
    pub register: Register,
    /// Which bit of it.
    pub bit: u32,
    /// The lowest level of the x86-64 psABI that has it; 0: none.
    pub level: u8,
    /// The feature without which it cannot be used.
    pub needs: Option<&'static str>,
    /// Its name in glibc.cpu.hwcaps, "" where glibc does not look at it.
    pub glibc: &'static str,
    /// Whether glibc before 2.33 has it under that name with "_Usable".
    pub usable: bool,
}

const fn f(
    name: &'static str,
    leaf: (u32, u32),
    register: Register,
    bit: u32,
    level: u8,
    needs: &'static str,
    glibc: &'static str,
) -> Feature {
    let needs = if needs.is_empty() { None } else { Some(needs) };
    Feature { name, leaf, register, bit, level, needs, glibc, usable: false }
}

/// As [`f`], with the older name in glibc too.
const fn u(feature: Feature) -> Feature {
    Feature { usable: true, ..feature }
}

use Register::{A, B, C, D};

const ONE: (u32, u32) = (1, 0);
const SEVEN: (u32, u32) = (7, 0);
const SEVEN1: (u32, u32) = (7, 1);
const STATE: (u32, u32) = (0xd, 1);
const AMD: (u32, u32) = (0x8000_0001, 0);
const AMD8: (u32, u32) = (0x8000_0008, 0);

/// All features. The place of one is its bit in an image's mask, so the table grows only at its end.
pub(crate) static FEATURES: &[Feature] = &[
    f("pni", ONE, C, 0, 2, "", "SSE3"),
    f("ssse3", ONE, C, 9, 2, "", "SSSE3"),
    f("cx16", ONE, C, 13, 2, "", "CMPXCHG16B"),
    f("sse4_1", ONE, C, 19, 2, "ssse3", "SSE4_1"),
    f("sse4_2", ONE, C, 20, 2, "sse4_1", "SSE4_2"),
    f("popcnt", ONE, C, 23, 2, "", "POPCNT"),
    f("lahf_lm", AMD, C, 0, 2, "", "LAHF64_SAHF64"),
    f("xsave", ONE, C, 27, 3, "", "XSAVE"),
    u(f("avx", ONE, C, 28, 3, "xsave", "AVX")),
    u(f("avx2", SEVEN, B, 5, 3, "avx", "AVX2")),
    f("bmi1", SEVEN, B, 3, 3, "", "BMI1"),
    f("bmi2", SEVEN, B, 8, 3, "", "BMI2"),
    f("f16c", ONE, C, 29, 3, "avx", "F16C"),
    u(f("fma", ONE, C, 12, 3, "avx", "FMA")),
    f("abm", AMD, C, 5, 3, "", "LZCNT"),
    f("movbe", ONE, C, 22, 3, "", "MOVBE"),
    u(f("avx512f", SEVEN, B, 16, 4, "avx2", "AVX512F")),
    f("avx512bw", SEVEN, B, 30, 4, "avx512f", "AVX512BW"),
    f("avx512cd", SEVEN, B, 28, 4, "avx512f", "AVX512CD"),
    u(f("avx512dq", SEVEN, B, 17, 4, "avx512f", "AVX512DQ")),
    f("avx512vl", SEVEN, B, 31, 4, "avx512f", "AVX512VL"),
    f("aes", ONE, C, 25, 0, "", "AES"),
    f("pclmulqdq", ONE, C, 1, 0, "", "PCLMULQDQ"),
    f("rdrand", ONE, C, 30, 0, "", "RDRAND"),
    f("rdseed", SEVEN, B, 18, 0, "", "RDSEED"),
    f("adx", SEVEN, B, 19, 0, "", "ADX"),
    f("sha_ni", SEVEN, B, 29, 0, "", "SHA"),
    f("clflushopt", SEVEN, B, 23, 0, "", "CLFLUSHOPT"),
    f("clwb", SEVEN, B, 24, 0, "", "CLWB"),
    f("rtm", SEVEN, B, 11, 0, "", "RTM"),
    f("gfni", SEVEN, C, 8, 0, "", "GFNI"),
    f("vaes", SEVEN, C, 9, 0, "avx", "VAES"),
    f("vpclmulqdq", SEVEN, C, 10, 0, "avx", "VPCLMULQDQ"),
    f("avx512vbmi", SEVEN, C, 1, 0, "avx512f", "AVX512_VBMI"),
    f("avx512_vbmi2", SEVEN, C, 6, 0, "avx512f", "AVX512_VBMI2"),
    f("avx512_vnni", SEVEN, C, 11, 0, "avx512f", "AVX512_VNNI"),
    f("avx512_bitalg", SEVEN, C, 12, 0, "avx512f", "AVX512_BITALG"),
    f("avx512_vpopcntdq", SEVEN, C, 14, 0, "avx512f", "AVX512_VPOPCNTDQ"),
    f("avx512ifma", SEVEN, B, 21, 0, "avx512f", "AVX512_IFMA"),
    f("avx512_bf16", SEVEN1, A, 5, 0, "avx512f", "AVX512_BF16"),
    f("avx512_fp16", SEVEN, D, 23, 0, "avx512f", "AVX512_FP16"),
    f("avx512_vp2intersect", SEVEN, D, 8, 0, "avx512f", "AVX512_VP2INTERSECT"),
    f("avx_vnni", SEVEN1, A, 4, 0, "avx2", "AVX_VNNI"),
    f("avx_ifma", SEVEN1, A, 23, 0, "avx2", "AVX_IFMA"),
    f("avx_vnni_int8", SEVEN1, D, 4, 0, "avx2", "AVX_VNNI_INT8"),
    f("avx_ne_convert", SEVEN1, D, 5, 0, "avx2", "AVX_NE_CONVERT"),
    f("cmpccxadd", SEVEN1, A, 7, 0, "", "CMPCCXADD"),
    f("sha512", SEVEN1, A, 0, 0, "avx2", ""),
    f("sm3", SEVEN1, A, 1, 0, "avx", ""),
    f("sm4", SEVEN1, A, 2, 0, "avx", ""),
    f("amx_tile", SEVEN, D, 24, 0, "xsave", "AMX_TILE"),
    f("amx_int8", SEVEN, D, 25, 0, "amx_tile", "AMX_INT8"),
    f("amx_bf16", SEVEN, D, 22, 0, "amx_tile", "AMX_BF16"),
    f("movdiri", SEVEN, C, 27, 0, "", "MOVDIRI"),
    f("movdir64b", SEVEN, C, 28, 0, "", "MOVDIR64B"),
    f("waitpkg", SEVEN, C, 5, 0, "", "WAITPKG"),
    f("serialize", SEVEN, D, 14, 0, "", "SERIALIZE"),
    f("rdpid", SEVEN, C, 22, 0, "", "RDPID"),
    f("rdtscp", AMD, D, 27, 0, "", "RDTSCP"),
    f("sse4a", AMD, C, 6, 0, "", "SSE4A"),
    f("xop", AMD, C, 11, 0, "avx", "XOP"),
    u(f("fma4", AMD, C, 16, 0, "avx", "FMA4")),
    f("tbm", AMD, C, 21, 0, "", "TBM"),
    f("xsaveopt", STATE, A, 0, 0, "xsave", "XSAVEOPT"),
    u(f("xsavec", STATE, A, 1, 0, "xsave", "XSAVEC")),
    f("xgetbv1", STATE, A, 2, 0, "xsave", "XGETBV_ECX_1"),
    f("clzero", AMD8, B, 0, 0, "", ""),
    f("rdpru", AMD8, B, 4, 0, "", ""),
    f("fsgsbase", SEVEN, B, 0, 0, "", "FSGSBASE"),
    f("avx10", SEVEN1, D, 19, 0, "avx512f", ""),
    f("apx", SEVEN1, D, 21, 0, "xsave", ""),
];
