// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt verify FILE...` and `ckpt info FILE...`

use super::check::checkpoint;
use super::facts::{self, Facts, size};
use super::fetch;
use crate::error::{Error, Result};
use crate::image::read::{Image, Part};
use crate::order;
use crate::resource::cpu::{Set, level_name};
use crate::resource::descriptor::regular::EMBEDDED;
use crate::resource::kinship;
use crate::restart::{MapPath, phase1_check};
use crate::serve::log::date;
use crate::settings::server::Transfer;
use ckpt_abi::image::{
    Descriptor, DescriptorKind, LossRecord, Machine, Member, ProcessRecord, SectionKind, Thread,
    VmaRecord, header_flag, member_flag, needs, process_flag,
};
use std::ffi::OsString;

/// Checks every byte of checkpoints; the status is the worst.
#[inline(never)]
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
#[inline(never)]
pub(super) fn info(words: &[OsString], json: bool, transfer: &Transfer) -> Result<u8> {
    facts::each(words, json, |word| Ok((describe(&fetch::image(word, transfer)?, json)?, 0)))
}

fn describe(image: &Image, json: bool) -> Result<Facts> {
    if let Some(why) = image.locked() {
        return Ok(closed(image, why));
    }
    let first = image.process(0);
    let process: ProcessRecord = first.record(SectionKind::Process)?;
    let machine: Machine = image.record(SectionKind::Machine)?;
    let parts = image.processes().map(|part| Sums::of(&part)).collect::<Result<Vec<_>>>()?;
    let sum = |of: fn(&Sums) -> u64| parts.iter().map(of).sum::<u64>();
    let losses: Vec<LossRecord> = image.records(SectionKind::Losses)?;
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
    facts.add("remembers_its_ids", process.flags & process_flag::REMEMBERS_IDS != 0);
    facts.add("generation", process.generation);
    facts.add("host", text(machine.host));
    facts.add("kernel", text(machine.kernel));
    facts.add("time", date(machine.realtime / 1_000_000_000));
    facts.add("processor", text(machine.processor));
    facts.add("cpu_level", level_name(cpu.level()));
    facts.add("cpu_features", cpu.names());
    facts.add("ckpt", text(machine.version));
    facts.add("processes", parts.len());
    facts.add("threads", sum(|part| part.threads));
    facts.add("mappings", sum(|part| part.mappings));
    facts.add_bytes("memory", sum(|part| part.memory));
    let descriptors: Vec<&Descriptor> = parts.iter().flat_map(|part| &part.descriptors).collect();
    facts.add("descriptors", descriptors.len());
    let members: Vec<Member> = image.records(SectionKind::Tree).unwrap_or_default();
    if !members.is_empty() {
        facts.add("tree", members.iter().map(|m| shown(m, &members, &parts)).collect::<Vec<_>>());
    }
    let (whole, all) = phase1_check::check_all(image, &MapPath::default())?;
    facts.add("files", checkpoint::shown(&checkpoint::files_of_all(&whole, &all)));
    let embedded =
        descriptors.iter().filter(|d| d.kind == DescriptorKind::Path as u32 && d.extra == EMBEDDED);
    let mut embedded: Vec<_> = embedded.map(|d| text(d.path)).collect();
    order::by(&mut embedded, Ord::cmp);
    embedded.dedup();
    facts.add("files_embedded", embedded);
    facts.add_bytes(
        "page_bytes",
        all.iter().flat_map(|saved| &saved.memory).map(|c| u64::from(c.len)).sum(),
    );
    facts.add_bytes("bytes", image.header().file_len);
    let compressed = image.header().needs & needs::CODEC != 0;
    facts.add("compression", if compressed { "LZ4" } else { "none" }.to_owned());
    facts.add("encrypted", image.is_sealed());
    facts.add("brought_up_to_date", image.header().flags & header_flag::RENEWED != 0);
    facts.add("not_saved", losses.iter().map(|loss| text(loss.what)).collect::<Vec<_>>());
    Ok(facts)
}

/// What there is to be said of an encrypted image without its key.
fn closed(image: &Image, why: &Error) -> Facts {
    let mut facts = Facts::default();
    facts.add("encrypted", true);
    facts.add("not_shown", why.to_string());
    facts.add("generation", image.header().run[1]);
    facts.add("processes", image.processes().count());
    facts.add_bytes("bytes", image.header().file_len);
    facts
}

/// What one process of an image has.
struct Sums {
    threads: u64,
    mappings: u64,
    memory: u64,
    descriptors: Vec<Descriptor>,
}

impl Sums {
    fn of(part: &Part<'_>) -> Result<Self> {
        let vmas: Vec<VmaRecord> = part.records(SectionKind::Vmas)?;
        Ok(Self {
            threads: part.records::<Thread>(SectionKind::Threads)?.len() as u64,
            mappings: vmas.len() as u64,
            memory: vmas.iter().map(|v| v.end - v.start).sum(),
            descriptors: part.records(SectionKind::Descriptors)?,
        })
    }
}

/// A process of a tree; the parent of the first and of orphans is outside, and 0.
fn shown(member: &Member, members: &[Member], parts: &[Sums]) -> Facts {
    let (pid, name) = kinship::named(member);
    let parent = members.get(member.parent as usize).map_or(0, |parent| parent.pid);
    let part = parts.get(member.process as usize);
    let ended = member.flags & member_flag::DEAD != 0;
    let mut facts = Facts::default();
    facts.add("pid", u64::from(pid));
    facts.add("parent", u64::from(parent));
    facts.add("name", name);
    facts.add("state", if ended { "ended" } else { "alive" }.to_owned());
    facts.add("threads", part.map_or(0, |part| part.threads));
    facts.add_bytes("memory", part.map_or(0, |part| part.memory));
    facts
}
