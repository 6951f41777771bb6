// SPDX-License-Identifier: LGPL-2.1-only
//! What reads bytes that somebody else may have made: images, files of /proc, names.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ckpt::error::Result;
use ckpt::image::read::Image;
use ckpt::image::write::Writer;
use ckpt::restart::{MapPath, Options, phase1_check};
use ckpt::settings::server::ServerName;
use ckpt::settings::{Name, Template, Values};
use ckpt_abi::image::{SectionKind, WHOLE_IMAGE};

/// The kinds of sections that a writer writes as they are given to it: the chunks are its own.
fn kinds() -> Vec<SectionKind> {
    let all = SectionKind::ALL.iter().copied();
    all.filter(|kind| *kind != SectionKind::Chunks).collect()
}

/// An image whose checksums are right and whose records are the input's: (kind, form, length) and so
/// many bytes, again and again.
fn made_of(mut input: &[u8]) -> Result<Vec<u8>> {
    let mut sink = Vec::new();
    let mut writer = Writer::new(&mut sink, vec![0x7f; 64]);
    let kinds = kinds();
    let mut missing = kinds.clone();
    while let [kind, form, low, high, rest @ ..] = input {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (bytes, rest) = rest.split_at(len);
        input = rest;
        if *form == 255 {
            let (page, address) = ([*kind; 4096], u64::from(*low) << 12 | u64::from(*high) << 40);
            writer.memory(0, address, &page, [0, 0])?;
            continue;
        }
        let kind = kinds[usize::from(*kind) % kinds.len()];
        if kind == SectionKind::Process && !missing.contains(&kind) {
            // A second one of the same process ends every reading.
            continue;
        }
        missing.retain(|other| *other != kind);
        let owner = owner(kind);
        match form % 6 {
            0 => writer.bytes_of(owner, kind, u32::from(form / 6), bytes)?,
            1 => writer.records_of(owner, kind, bytes.as_chunks::<8>().0)?,
            2 => writer.records_of(owner, kind, bytes.as_chunks::<32>().0)?,
            3 => writer.records_of(owner, kind, bytes.as_chunks::<64>().0)?,
            4 => writer.records_of(owner, kind, bytes.as_chunks::<256>().0)?,
            _ => writer.records_of(owner, kind, bytes.as_chunks::<1024>().0)?,
        }
    }
    for kind in missing {
        // Without them a reader stops at the first that it looks for.
        writer.records_of(owner(kind), kind, &[[0; 1024]])?;
    }
    writer.seal()?;
    Ok(sink)
}

fn owner(kind: SectionKind) -> u32 {
    if kind.is_of_process() { 0 } else { WHOLE_IMAGE }
}

fn read(bytes: Vec<u8>) -> Result<()> {
    let image = Image::from_source(Box::new(bytes), Path::new("made up"))?;
    let whole = image.verify();
    let (of_all, saved) = phase1_check::check(&image, &MapPath::default())?;
    for object in &of_all.objects {
        let _ = image.text(object.name);
    }
    let _ = phase1_check::config(&saved, &Options::default());
    whole
}

/// An image that the input describes, and one that it is.
pub(crate) fn image(input: &[u8]) {
    if let Ok(made) = made_of(input) {
        let _ = read(made);
    }
    let _ = read(input.to_vec());
}

/// Every parser of files in /proc.
pub(crate) fn proc(input: &[u8]) {
    ckpt::proc::parse_anything(input);
}

/// Names of checkpoints and what their placeholders stand for.
pub(crate) fn names(input: &[u8]) {
    let text = OsStr::from_bytes(input);
    let _ = ServerName::parse(text);
    let _ = Name::from_bytes(input);
    let Ok(name) = Name::parse(text) else { return };
    assert_eq!(Name::parse(&name.written()), Ok(name.clone()));
    let Name::File(path) = name else { return };
    let escaped = Template::escape(path.as_os_str());
    let values = Values { pid: 7, host: "host".into() };
    let plain = Template::parse(Path::new(&escaped)).expect("nothing in it is a placeholder");
    assert_eq!(plain.expand(&values, 3), path);
    let template = Template::parse(&path).expect("the name was accepted");
    let expanded = template.expand(&values, 3);
    let number = template.number(&values, expanded.as_os_str().as_bytes());
    assert_eq!(number, Some(if template.is_counted() { 3 } else { 0 }), "{expanded:?}");
}
