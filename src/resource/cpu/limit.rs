// SPDX-License-Identifier: LGPL-2.1-only
//! Telling a program to use less than this machine has (`ckpt --cpu`).
//!
//! There is no way to hide a feature from a program that asks the processor itself; but nearly all
//! asking is done by few libraries, and they take orders from the environment:
//!
//! - glibc (GLIBC_TUNABLES, `runtime/tunables.rs`). Without XSAVE and XSAVEC its lazy resolver saves
//!   registers by FXSAVE, in 512 bytes on every machine. Where AVX is wanted it cannot; LD_BIND_NOW
//!   then leaves it nothing to do.
//! - OpenBLAS (OPENBLAS_CORETYPE), OpenSSL (OPENSSL_ia32cap, a mask of CPUID bits), the Intel MKL
//!   (MKL_ENABLE_INSTRUCTIONS), numpy (NPY_DISABLE_CPU_FEATURES), and the JVM (JAVA_TOOL_OPTIONS, `runtime/java.rs`).
//!
//! What the user has set himself stays.

use super::table::{FEATURES, Register};
use super::{Set, level_name};
use crate::error::{Error, Result};
use crate::resource::runtime::{java, tunables};
use std::ffi::{OsStr, OsString};

/// What `--cpu` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CpuLimit {
    /// All that this machine has.
    Native,
    /// At most a level of the psABI, and some features less.
    Level(u8, Vec<&'static str>),
    /// All but some features.
    Without(Vec<&'static str>),
}

/// Reads "x86-64-v2", "native", or features to avoid, separated by commas, a minus before them or
/// not; a level and features may stand together.
///
/// # Errors
/// A word that is neither a level nor a feature.
pub(crate) fn parse(text: &OsStr) -> Result<CpuLimit> {
    let text = text.to_string_lossy();
    if text == "native" {
        return Ok(CpuLimit::Native);
    }
    let mut level = None;
    let mut avoided = Vec::new();
    for word in text.split(',') {
        let named = (1..=4).find(|l| word == level_name(*l) || word == format!("v{l}"));
        let named = named.or((word == "x86-64").then_some(1));
        let name = word.strip_prefix('-').unwrap_or(word).to_ascii_lowercase();
        let feature = FEATURES.iter().find(|f| f.name == name || f.name == name.replace('.', "_"));
        match (named, feature) {
            (Some(found), _) if level.is_none() => level = Some(found),
            (_, Some(feature)) => avoided.push(feature.name),
            _ => {
                return Err(Error::new(format!("'{word}' is no level and no feature of a CPU"))
                    .hint("say native, x86-64-v1, -v2, -v3 or -v4, or features as /proc/cpuinfo names them: avx512f,avx2"));
            }
        }
    }
    Ok(level.map_or(CpuLimit::Without(avoided.clone()), |level| CpuLimit::Level(level, avoided)))
}

/// What the program may use of `here`.
///
/// # Errors
/// The level is above this machine's.
pub(crate) fn allowed(limit: &CpuLimit, here: &Set) -> Result<Set> {
    let (mut set, avoided) = match limit {
        CpuLimit::Native => (*here, [].as_slice()),
        CpuLimit::Without(avoided) => (*here, avoided.as_slice()),
        CpuLimit::Level(level, avoided) => {
            let wanted = Set::of_level(*level);
            let missing = wanted.without(here);
            if !missing.is_empty() {
                return Err(Error::new(format!(
                    "this CPU is below {}: it lacks {}",
                    level_name(*level),
                    missing.names()
                ))
                .hint(format!("the highest level here is {}", level_name(here.level()))));
            }
            (with_saving(wanted, *level, here), avoided.as_slice())
        }
    };
    avoided.iter().for_each(|name| set.remove(name));
    Ok(set)
}

/// Every machine of level 4 has XSAVEC, which glibc's lazy resolver may then use.
fn with_saving(mut set: Set, level: u8, here: &Set) -> Set {
    if level == 4
        && here.has("xsavec")
        && let Some(index) = FEATURES.iter().position(|f| f.name == "xsavec")
    {
        set.insert(index);
    }
    set
}

/// The variables that make libraries use only `allowed` of `here`; `current` looks up what the
/// environment has.
pub(crate) fn environment(
    allowed: &Set,
    here: &Set,
    current: impl Fn(&str) -> Option<OsString>,
) -> Vec<(&'static str, OsString)> {
    let avoided = here.without(allowed);
    if avoided.is_empty() {
        return Vec::new();
    }
    let mut variables =
        vec![("GLIBC_TUNABLES", tunables::without(&avoided, current("GLIBC_TUNABLES")))];
    let mut set = |name: &'static str, value: String| {
        if current(name).is_none() {
            variables.push((name, value.into()));
        }
    };
    if allowed.has("xsave") && avoided.has("xsavec") {
        set("LD_BIND_NOW", "1".into());
    }
    let level = allowed.level();
    set(
        "OPENBLAS_CORETYPE",
        ["Prescott", "Nehalem", "Haswell", "SkylakeX"][usize::from(level) - 1].into(),
    );
    let instructions = ["SSE4_2", "SSE4_2", "AVX2", "AVX512"][usize::from(level) - 1];
    set("MKL_ENABLE_INSTRUCTIONS", instructions.into());
    set("NPY_DISABLE_CPU_FEATURES", numpy(level).into());
    set("OPENSSL_ia32cap", openssl(&avoided));
    if let Some(options) = java::options(allowed, &avoided, current("JAVA_TOOL_OPTIONS")) {
        variables.push(("JAVA_TOOL_OPTIONS", options));
    }
    variables
}

/// OPENSSL_ia32cap(3): "~" clears the bits of a mask; the first word is CPUID 1 (EDX, then ECX), the
/// second CPUID 7 (EBX, then ECX).
fn openssl(avoided: &Set) -> String {
    const OSXSAVE: u64 = 1 << (32 + 27);
    let mut masks = [0u64; 2];
    for feature in avoided.features() {
        match (feature.leaf, feature.register) {
            ((1, 0), Register::C) => masks[0] |= 1 << (32 + feature.bit),
            ((7, 0), Register::B) => masks[1] |= 1 << feature.bit,
            ((7, 0), Register::C) => masks[1] |= 1 << (32 + feature.bit),
            // AMD's XOP stands where Intel's first word has a bit of its own.
            ((0x8000_0001, 0), Register::C) if feature.name == "xop" => masks[0] |= 1 << 43,
            _ => {}
        }
    }
    debug_assert!(!avoided.has("xsave") || masks[0] & OSXSAVE != 0);
    format!("~{:#x}:~{:#x}", masks[0], masks[1])
}

/// numpy's own kernels, by the names of all its versions; it passes over those that it does not have.
/// Those of the second level it may have been built for, and then it refuses to start.
fn numpy(level: u8) -> &'static str {
    const NAMES: &str = "AVX F16C XOP FMA4 FMA3 AVX2 X86_V3 \
         AVX512F AVX512CD AVX512_SKX X86_V4 \
         AVX512_KNL AVX512_KNM AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR";
    match level {
        1 | 2 => NAMES,
        3 => NAMES.find("AVX512F").map_or("", |at| &NAMES[at..]),
        _ => NAMES.find("AVX512_KNL").map_or("", |at| &NAMES[at..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> CpuLimit {
        parse(OsStr::new(text)).unwrap()
    }

    #[test]
    fn levels_and_features() {
        assert_eq!(parsed("native"), CpuLimit::Native);
        assert_eq!(parsed("x86-64-v2"), CpuLimit::Level(2, vec![]));
        assert_eq!(parsed("v3,-aes"), CpuLimit::Level(3, vec!["aes"]));
        assert_eq!(parsed("AVX2,-avx512f"), CpuLimit::Without(vec!["avx2", "avx512f"]));
        for bad in ["", "v5", "x86-64-v", "avx3", "v2,v3", "avx2,"] {
            assert!(parse(OsStr::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_level_above_the_machine_is_refused() {
        let here = Set::of_level(2);
        let error = allowed(&CpuLimit::Level(3, vec![]), &here).unwrap_err().to_string();
        assert!(error.contains("avx2") && error.contains("x86-64-v2"), "{error}");
        assert_eq!(allowed(&CpuLimit::Level(2, vec![]), &here).unwrap(), here);
    }

    #[test]
    fn the_environment_of_a_level() {
        let here = Set::of_level(4);
        let of = |name: &str, level| {
            let allowed = Set::of_level(level);
            let all = environment(&allowed, &here, |n| {
                (n == "GLIBC_TUNABLES").then(|| "glibc.malloc.check=1:glibc.cpu.hwcaps=-X".into())
            });
            let found = all.into_iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| value.into_string().unwrap())
        };
        let tunables = of("GLIBC_TUNABLES", 2).unwrap();
        assert!(
            tunables.starts_with("glibc.malloc.check=1:glibc.cpu.hwcaps=-XSAVE,"),
            "{tunables}"
        );
        assert!(tunables.contains("-AVX2,-AVX2_Usable,"), "{tunables}");
        assert!(tunables.contains(",-AVX_Fast_Unaligned_Load,"), "{tunables}");
        assert!(!of("GLIBC_TUNABLES", 3).unwrap().contains("Unaligned"));
        assert!(tunables.ends_with(",-X") && !tunables.contains("SSE4"), "{tunables}");
        assert_eq!(of("OPENBLAS_CORETYPE", 3).unwrap(), "Haswell");
        assert_eq!(of("JAVA_TOOL_OPTIONS", 3).unwrap(), "-XX:UseAVX=2");
        let java = of("JAVA_TOOL_OPTIONS", 2).unwrap();
        assert!(java.starts_with("-XX:UseSSE=3 -XX:UseAVX=0 -XX:TieredStopAtLevel=1 "), "{java}");
        assert!(java.ends_with("-XX:-UseBMI1Instructions -XX:-UseBMI2Instructions"), "{java}");
        let numpy = |level| of("NPY_DISABLE_CPU_FEATURES", level).unwrap();
        assert!(numpy(2).starts_with("AVX F16C") && numpy(2).contains("X86_V3 AVX512F"));
        assert!(numpy(3).starts_with("AVX512F ") && numpy(3).contains(" X86_V4 "));
        assert_eq!(of("OPENSSL_ia32cap", 3).unwrap(), "~0x0:~0xd0030000");
        assert!(environment(&here, &here, |_| None).is_empty());
    }

    #[test]
    fn what_the_user_has_set_stays() {
        let all = environment(&Set::of_level(1), &Set::of_level(4), |_| Some("mine".into()));
        assert!(all.iter().all(|(_, value)| value.to_string_lossy().contains("mine")), "{all:?}");
    }
}
