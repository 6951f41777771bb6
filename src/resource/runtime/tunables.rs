// SPDX-License-Identifier: LGPL-2.1-only
//! glibc's tunables for the features of a CPU: GLIBC_TUNABLES=glibc.cpu.hwcaps ("Hardware Capability Tunables" in its
//! manual). Names that it does not know are ignored, so those of all versions can stand in one list.

use crate::resource::cpu::Set;
use std::ffi::OsString;

/// Our list before the user's own, whose words win: glibc takes the last value of a tunable.
pub(crate) fn without(avoided: &Set, current: Option<OsString>) -> OsString {
    const NAME: &str = "glibc.cpu.hwcaps=";
    let current = current.map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
    let mut words = Vec::new();
    for feature in avoided.features().filter(|f| !f.glibc.is_empty()) {
        words.push(format!("-{}", feature.glibc));
        if feature.usable {
            words.push(format!("-{}_Usable", feature.glibc));
        }
    }
    // glibc decides this one before it reads the list, and its memcpy believes it.
    if avoided.has("avx2") {
        words.push("-AVX_Fast_Unaligned_Load".into());
    }
    let (own, others): (Vec<&str>, Vec<&str>) =
        current.split(':').filter(|t| !t.is_empty()).partition(|t| t.starts_with(NAME));
    words.extend(own.iter().map(|t| t[NAME.len()..].to_string()));
    let ours = format!("{NAME}{}", words.join(","));
    others.into_iter().map(str::to_string).chain([ours]).collect::<Vec<_>>().join(":").into()
}
