// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt info FILE --maps|--fds|--threads|--env` and `ckpt cat FILE DESCRIPTOR`: what is in a checkpoint, one by one.

use super::core::memory;
use super::facts::{self, Facts};
use super::fetch;
use crate::cli::Rows;
use crate::error::{Because, Error, Result, printable};
use crate::image::read::Image;
use crate::resource::descriptor::regular::EMBEDDED;
use crate::restart::MapPath;
use crate::restart::phase1_check::{Saved, check_all};
use crate::settings::server::Transfer;
use crate::settings::{parse_number, quoted};
use ckpt_abi::image::{
    Chunk, Descriptor, DescriptorKind, VmaKind, VmaRecord, WHOLE_IMAGE, object_flag,
};
use std::ffi::{OsStr, OsString};
use std::io::Write;

/// Longest environment that is read.
const ENVIRONMENT: u64 = 64 << 20;
/// Where struct prctl_mm_map has the ends of the environment, in words.
const ENV: [usize; 2] = [9, 10];

/// Shows a table of each checkpoint.
#[inline(never)]
pub(super) fn run(words: &[OsString], table: Rows, json: bool, transfer: &Transfer) -> Result<u8> {
    for (index, word) in words.iter().enumerate() {
        let image = fetch::image(word, transfer)?;
        let (_, all) = check_all(&image, &MapPath::default())?;
        let chunks = image.chunks()?;
        let mut rows = Vec::new();
        for saved in &all {
            let first = rows.len();
            match table {
                Rows::Maps => rows.extend(saved.vmas.iter().map(|vma| map(saved, vma))),
                Rows::Fds => rows.extend(saved.descriptors.iter().map(|it| descriptor(&image, it))),
                Rows::Threads => threads(saved, &mut rows),
                Rows::Env => environment(saved, &chunks, &mut rows)?,
            }
            if all.len() > 1 {
                rows[first..].iter_mut().for_each(|row| row.first("pid", saved.process.pid.into()));
            }
        }
        let heading = if words.len() > 1 && !json {
            format!(
                "{}{}:\n",
                if index == 0 { "" } else { "\n" },
                printable(&word.to_string_lossy())
            )
        } else {
            String::new()
        };
        super::print(&format!("{heading}{}", facts::listed(&rows, json)))?;
    }
    Ok(0)
}

fn map(saved: &Saved<'_>, vma: &VmaRecord) -> Facts {
    let mut facts = Facts::default();
    facts.add("start", format!("{:x}", vma.start));
    facts.add("end", format!("{:x}", vma.end));
    let letter = |bit, letter| if vma.prot & bit != 0 { letter } else { '-' };
    let shared = [VmaKind::SharedFile, VmaKind::Shared].iter().any(|it| *it as u32 == vma.kind);
    let letters = [letter(1, 'r'), letter(2, 'w'), letter(4, 'x'), if shared { 's' } else { 'p' }];
    facts.add("mode", letters.iter().collect::<String>());
    facts.add_bytes("bytes", vma.end - vma.start);
    // Of memory that is shared through an object the image has the whole object.
    let inside = |chunk: &&Chunk| (vma.start..vma.end).contains(&chunk.address);
    facts.add_bytes("saved", saved.memory.iter().filter(inside).map(|c| u64::from(c.len)).sum());
    let kind = VmaKind::try_from(vma.kind);
    facts.add("kind", kind.map_or("unknown".to_owned(), |kind| format!("{kind:?}")));
    facts.add("name", saved.part.image().text(vma.name).to_string_lossy().into_owned());
    facts
}

fn descriptor(image: &Image, record: &Descriptor) -> Facts {
    let mut facts = Facts::default();
    facts.add("fd", u64::from(record.fd));
    let kind = DescriptorKind::try_from(record.kind);
    facts.add("kind", kind.map_or("unknown".to_owned(), |kind| format!("{kind:?}")));
    let access = ["read", "write", "both", "none"][record.flags as usize & 3];
    facts.add("access", access.to_owned());
    facts.add("position", record.position);
    facts.add_bytes("bytes", record.size);
    facts.add("embedded", object(record).is_some());
    facts.add("path", image.text(record.path).to_string_lossy().into_owned());
    facts
}

fn threads(saved: &Saved<'_>, rows: &mut Vec<Facts>) {
    for thread in &saved.threads {
        let mut facts = Facts::default();
        facts.add("tid", u64::from(thread.tid));
        let len = thread.name.iter().position(|byte| *byte == 0).unwrap_or(thread.name.len());
        facts.add("name", String::from_utf8_lossy(&thread.name[..len]).into_owned());
        let [rip, rsp] = [thread.regs[16], thread.regs[19]].map(|value| format!("{value:x}"));
        facts.add("rip", rip);
        facts.add("rsp", rsp);
        facts.add("blocked_signals", format!("{:x}", thread.mask));
        rows.push(facts);
    }
}

fn environment(saved: &Saved<'_>, chunks: &[Chunk], rows: &mut Vec<Facts>) -> Result<()> {
    let [start, end] = ENV.map(|at| saved.process.mm[at]);
    let len = end.saturating_sub(start).min(ENVIRONMENT);
    let bytes = memory(saved, start, len, chunks)?;
    for variable in bytes.split(|byte| *byte == 0).filter(|it| !it.is_empty()) {
        let text = String::from_utf8_lossy(variable);
        let (name, value) = text.split_once('=').unwrap_or((&text, ""));
        let mut facts = Facts::default();
        facts.add("name", name.to_owned());
        facts.add("value", value.to_owned());
        rows.push(facts);
    }
    Ok(())
}

/// The object that a descriptor shows, whose content is in the image.
fn object(record: &Descriptor) -> Option<u32> {
    let is = |kind: DescriptorKind| record.kind == kind as u32;
    let embedded = is(DescriptorKind::Path) && record.extra == EMBEDDED;
    (embedded || is(DescriptorKind::Deleted) || is(DescriptorKind::Memfd)).then_some(record.content)
}

/// Writes the content of a file that travels in a checkpoint to standard output. `which` is the number of a descriptor, or
/// PID:NUMBER.
#[inline(never)]
pub(super) fn cat(word: &OsStr, which: &OsStr, transfer: &Transfer) -> Result<u8> {
    let text = which.to_string_lossy();
    let (pid, number) = text.split_once(':').map_or((None, &*text), |(pid, fd)| (Some(pid), fd));
    let what = "the number of a descriptor, or PID:NUMBER";
    let pid: Option<u32> = pid.map(|pid| parse_number(OsStr::new(pid), what)).transpose()?;
    let number: u32 = parse_number(OsStr::new(number), what)?;
    let image = fetch::image(word, transfer)?;
    let (whole, all) = check_all(&image, &MapPath::default())?;
    let saved = all.iter().find(|saved| pid.is_none_or(|pid| saved.process.pid == pid));
    let found = saved.and_then(|saved| saved.descriptors.iter().find(|it| it.fd == number));
    let shown = word.display();
    let see = format!("ckpt info --fds {shown} shows those that there are");
    let record = found.ok_or_else(|| {
        Error::new(format!("{shown} has no descriptor {}", quoted(which))).hint(&see)
    })?;
    let object = object(record).and_then(|index| Some((index, whole.objects.get(index as usize)?)));
    let Some((index, object)) = object.filter(|(_, it)| it.flags & object_flag::WHOLE != 0) else {
        let text = format!("the content of descriptor {} is not in {shown}", quoted(which));
        return Err(Error::new(text).hint(format!("{see}; --embed-files has files travel along")));
    };
    let chunks = image.chunks()?;
    let mut out = std::io::stdout().lock();
    let what = || "cannot write to standard output";
    let mut write = |bytes: &[u8]| out.write_all(bytes).because(what);
    let mut at = 0;
    let zeros = |from: u64, to: u64, write: &mut dyn FnMut(&[u8]) -> Result<()>| {
        let piece = [0; 4096];
        let mut left = to.saturating_sub(from);
        while left > 0 {
            let len = left.min(piece.len() as u64);
            write(&piece[..len as usize])?;
            left -= len;
        }
        Ok::<(), Error>(())
    };
    for chunk in chunks.iter().filter(|it| (it.process, it.object) == (WHOLE_IMAGE, index)) {
        zeros(at, chunk.address.min(object.size), &mut write)?;
        let bytes = image.read_chunk(chunk)?;
        let len = object.size.saturating_sub(chunk.address).min(bytes.len() as u64);
        write(&bytes[..len as usize])?;
        at = chunk.address + len;
    }
    zeros(at, object.size, &mut write)?;
    out.flush().because(what)?;
    Ok(0)
}
