// SPDX-License-Identifier: LGPL-2.1-only
//! The Java virtual machine.

use crate::proc::maps::Vma;
use crate::resource::cpu::Set;
use std::ffi::OsString;
use std::path::Path;

/// Whether a mapping is /tmp/hsperfdata_USER/PID: the counters of a Java virtual machine, a file only so
/// that jstat(1) finds them. A virtual machine removes its own when it ends, and those of all that
/// do not live any more when it begins, so the file is hardly ever there at a restart.
pub(crate) fn is_counters(vma: &Vma) -> bool {
    let directory = Path::new(&vma.name).parent().and_then(Path::file_name);
    directory.is_some_and(|name| name.as_encoded_bytes().starts_with(b"hsperfdata_"))
}

/// Its options for the instructions of `allowed`, before the user's own (JAVA_TOOL_OPTIONS, which it reports on standard
/// error).
///
/// The JVM's levels leave its other instructions alone. LZCNT and TZCNT do not even fault on an older
/// processor, which takes them for BSR and BSF: wrong results. No option keeps the second compiler from
/// BZHI (x86_64.ad, convI2LAndL_reg_immIbitmask), so below the third level the first one does it all; and
/// none that all versions have keeps CRC32C from PCLMULQDQ, but that there is no SSE4. These options
/// exist since JDK 8.
pub(crate) fn options(allowed: &Set, avoided: &Set, current: Option<OsString>) -> Option<OsString> {
    // Its multiplication of long numbers takes MULX and ADX together.
    const OPTIONS: [(&str, &str); 9] = [
        ("popcnt", "PopCountInstruction"),
        ("abm", "CountLeadingZerosInstruction"),
        ("bmi1", "CountTrailingZerosInstruction"),
        ("bmi1", "BMI1Instructions"),
        ("bmi2", "BMI2Instructions"),
        ("adx", "BMI2Instructions"),
        ("aes", "AES"),
        ("sha_ni", "SHA"),
        ("pclmulqdq", "CLMUL"),
    ];
    let mut options = match allowed.level() {
        1 => "-XX:UseSSE=2 -XX:UseAVX=0 -XX:TieredStopAtLevel=1",
        2 => "-XX:UseSSE=3 -XX:UseAVX=0 -XX:TieredStopAtLevel=1",
        3 => "-XX:UseAVX=2",
        _ => "",
    }
    .to_string();
    for (_, option) in OPTIONS.into_iter().filter(|(feature, _)| avoided.has(feature)) {
        if !options.contains(option) {
            options += " -XX:-Use";
            options += option;
        }
    }
    let mut options = OsString::from(options.trim_start());
    if options.is_empty() {
        return None;
    }
    if let Some(current) = current.filter(|c| !c.is_empty()) {
        options.push(" ");
        options.push(current);
    }
    Some(options)
}
