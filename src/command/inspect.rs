// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt verify FILE...` and `ckpt info FILE...`

use super::check::checkpoint;
use super::facts::{self, Facts, size};
use super::fetch;
use crate::error::Result;
use crate::image::read::Image;
use crate::resource::cpu::{Set, level_name};
use crate::resource::descriptor::regular::EMBEDDED;
use crate::restart::{MapPath, phase1_check};
use crate::serve::log::date;
use crate::settings::server::Transfer;
use ckpt_abi::image::{
    Descriptor, DescriptorKind, Loss, Machine, Process, SectionKind, Thread, Vma,
};
use std::collections::BTreeSet;
use std::ffi::OsString;

/// Checks every byte of checkpoints; the status is the worst.
pub(super) fn verify(words: &[OsString], transfer: &Transfer) -> Result<u8> {
    let mut worst = 0;
    for word in words {
        let whole = fetch::image(word, transfer)
            .and_then(|image| image.verify().map(|()| image.header().file_len));
        match whole {
            Ok(bytes) => {
                _ = super::print(&format!("{}: whole, {}\n", word.display(), size(bytes)))?
            }
            Err(e) => {
                worst = worst.max(e.status());
                eprintln!("ckpt: {e}");
            }
        }
    }
    Ok(worst)
}

/// Shows what checkpoints hold.
pub(super) fn info(words: &[OsString], json: bool, transfer: &Transfer) -> Result<u8> {
    facts::each(words, json, |word| Ok((describe(&fetch::image(word, transfer)?, json)?, 0)))
}

fn describe(image: &Image, json: bool) -> Result<Facts> {
    let first = image.process(0);
    let process: Process = first.record(SectionKind::Process)?;
    let machine: Machine = image.record(SectionKind::Machine)?;
    let threads: Vec<Thread> = first.records(SectionKind::Threads)?;
    let vmas: Vec<Vma> = first.records(SectionKind::Vmas)?;
    let descriptors: Vec<Descriptor> = first.records(SectionKind::Descriptors)?;
    let losses: Vec<Loss> = image.records(SectionKind::Losses)?;
    let text = |text| image.text(text).to_string_lossy().into_owned();
    let arguments: Vec<String> = text(process.arguments).split('\0').map(str::to_string).collect();
    let cpu = Set(process.cpu);
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
    facts.add("time", date(machine.realtime / 1_000_000_000));
    facts.add("processor", text(machine.processor));
    facts.add("cpu_level", level_name(cpu.level()));
    facts.add("cpu_features", cpu.names());
    facts.add("ckpt", text(machine.version));
    facts.add("threads", threads.len());
    facts.add("mappings", vmas.len());
    facts.add_bytes("memory", vmas.iter().map(|v| v.end - v.start).sum());
    facts.add("descriptors", descriptors.len());
    let (whole, saved) = phase1_check::check(image, &MapPath::default())?;
    facts.add("files", checkpoint::shown(&checkpoint::files(&whole, &saved)));
    let embedded =
        descriptors.iter().filter(|d| d.kind == DescriptorKind::Path as u32 && d.extra == EMBEDDED);
    let embedded: BTreeSet<_> = embedded.map(|d| text(d.path)).collect();
    facts.add("files_embedded", embedded.into_iter().collect::<Vec<_>>());
    facts.add_bytes("page_bytes", saved.memory.iter().map(|c| u64::from(c.len)).sum());
    facts.add_bytes("bytes", image.header().file_len);
    facts.add("not_saved", losses.iter().map(|loss| text(loss.what)).collect::<Vec<_>>());
    Ok(facts)
}
