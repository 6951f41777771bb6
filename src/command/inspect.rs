//! `ckpt verify FILE` and `ckpt info FILE`

use super::check;
use super::json::Facts;
use crate::error::Result;
use crate::image::read::Image;
use crate::resource::cpu::{Set, level_name};
use crate::resource::descriptors::EMBEDDED;
use crate::restart::{MapPath, phase1_check};
use ckpt_abi::image::{
    Descriptor, DescriptorKind, Loss, Machine, Process, SectionKind, Thread, Vma,
};
use std::collections::BTreeSet;
use std::path::Path;

/// Checks every byte of a checkpoint.
pub fn verify(file: &Path) -> Result<u8> {
    let image = Image::open(file)?;
    image.verify()?;
    super::print(&format!("{}: whole, {} bytes\n", file.display(), image.header().file_len))
}

/// Shows what a checkpoint holds.
pub fn info(file: &Path, json: bool) -> Result<u8> {
    let image = Image::open(file)?;
    let process: Process = image.record(SectionKind::Process)?;
    let machine: Machine = image.record(SectionKind::Machine)?;
    let threads: Vec<Thread> = image.records(SectionKind::Threads)?;
    let vmas: Vec<Vma> = image.records(SectionKind::Vmas)?;
    let descriptors: Vec<Descriptor> = image.records(SectionKind::Descriptors)?;
    let losses: Vec<Loss> = image.records(SectionKind::Losses)?;
    let text = |text| image.text(text).to_string_lossy().into_owned();
    let arguments: Vec<String> = text(process.arguments).split('\0').map(str::to_string).collect();
    let cpu = Set(machine.cpu);
    let mut facts = Facts::default();
    facts.add("program", text(process.program));
    if json {
        facts.add("arguments", arguments);
    } else {
        facts.add("arguments", arguments.join(" "));
    }
    facts.add("executable", text(process.exe));
    facts.add("directory", text(process.cwd));
    facts.add("process", u64::from(process.pid));
    facts.add("generation", process.generation);
    facts.add("host", text(machine.host));
    facts.add("kernel", text(machine.kernel));
    facts.add("time", time(machine.realtime));
    facts.add("processor", text(machine.processor));
    facts.add("cpu_level", level_name(cpu.level()));
    facts.add("cpu_features", cpu.names());
    facts.add("ckpt", text(machine.version));
    facts.add("threads", threads.len());
    facts.add("mappings", vmas.len());
    facts.add("memory", vmas.iter().map(|v| v.end - v.start).sum::<u64>());
    facts.add("descriptors", descriptors.len());
    let saved = phase1_check::check(&image)?;
    facts.add("files", check::shown(&check::files(&image, &saved, &MapPath::default())));
    let embedded =
        descriptors.iter().filter(|d| d.kind == DescriptorKind::Path as u32 && d.extra == EMBEDDED);
    let embedded: BTreeSet<_> = embedded.map(|d| text(d.path)).collect();
    facts.add("files_embedded", embedded.into_iter().collect::<Vec<_>>());
    facts.add("page_bytes", saved.memory.iter().map(|c| u64::from(c.len)).sum::<u64>());
    facts.add("bytes", image.header().file_len);
    facts.add("not_saved", losses.iter().map(|loss| text(loss.what)).collect::<Vec<_>>());
    facts.print(json)
}

/// Nanoseconds since 1970 as ISO 8601 in UTC.
fn time(nanoseconds: u64) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Days since 1 March of year 0, in eras of 400 years (H. Hinnant, chrono-compatible dates).
    let z = days + 719_468;
    let (era, day) = (z / 146_097, z % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696, "2000-02-29T12:34:56Z"),
            (1_795_305_600, "2026-11-22T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
        ] {
            assert_eq!(time(seconds * 1_000_000_000), text);
        }
    }
}
