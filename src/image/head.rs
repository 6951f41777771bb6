// SPDX-License-Identifier: LGPL-2.1-only
//! Trailer, header and section table: what leads to everything else in an image.

use super::source::Source;
use super::{PAGE, hash};
use crate::error::{Because, Error, Kind, Result};
use ckpt_abi::image::{
    EXECUTABLE, FORMAT, HEADER_MAGIC, Header, KNOWN_NEEDS, Section, TRAILER_MAGIC, Trailer, needs,
};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Most sections that an image can have.
const SECTIONS_MAX: u32 = 1 << 20;

/// Longest stub of an encrypted image, in bytes.
const STUB_MAX: u64 = 64 << 20;

pub(super) fn find_trailer(source: &dyn Source) -> Result<Option<Trailer>> {
    let len = source.length().because(|| "cannot stat")?;
    let mut trailer = Trailer::new_zeroed();
    let Some(at) = len.checked_sub(size_of::<Trailer>() as u64) else { return Ok(None) };
    source.read_at(at, trailer.as_mut_bytes()).because(|| "cannot read the trailer")?;
    if trailer.magic != TRAILER_MAGIC {
        return Ok(None);
    }
    let sum = std::mem::replace(&mut trailer.hash, 0);
    let fits = trailer.file_len == len
        && trailer.header.is_multiple_of(PAGE)
        && trailer.header.checked_add(PAGE).is_some_and(|end| end <= at)
        && trailer.elf_table <= at;
    if hash(trailer.as_bytes()) != sum || !fits {
        return Err(damage("damaged: its trailer is wrong, or the file was cut off or grew"));
    }
    trailer.hash = sum;
    Ok(Some(trailer))
}

pub(super) fn read_header(source: &dyn Source, trailer: &Trailer) -> Result<Header> {
    let mut page = read_page(source, trailer)?;
    let mut header = Header::new_zeroed();
    header.as_mut_bytes().copy_from_slice(&page[..size_of::<Header>()]);
    let at = std::mem::offset_of!(Header, hash);
    page[at..at + 8].fill(0);
    if header.magic == HEADER_MAGIC && header.format != FORMAT {
        let age = if header.format < FORMAT { "older" } else { "newer" };
        return Err(Error::new(format!(
            "its format {} is {age} than this ckpt's {FORMAT}",
            header.format
        ))
        .hint("execute the file itself, it carries its own ckpt"));
    }
    if header.magic != HEADER_MAGIC || hash(&page) != header.hash {
        return Err(damage("damaged: the checksum of its header is wrong"));
    }
    understood(header.needs)?;
    let place = match header.needs & needs::STREAMED {
        0 => header.start == trailer.header,
        _ => header.start <= trailer.elf_table && trailer.elf_table <= trailer.header,
    };
    if header.file_len != trailer.file_len || !place {
        return Err(damage("damaged: header and trailer disagree"));
    }
    Ok(header)
}

/// The header's page.
pub(super) fn read_page(source: &dyn Source, trailer: &Trailer) -> Result<Vec<u8>> {
    let mut page = vec![0; PAGE as usize];
    source.read_at(trailer.header, &mut page).because(|| "cannot read the header")?;
    Ok(page)
}

/// Puts the path of the first process's executable into the page, where it fits.
pub(super) fn put_executable(page: &mut [u8], path: &OsStr) {
    let path = path.as_bytes();
    if let Some(field) = page.get_mut(EXECUTABLE..EXECUTABLE + path.len() + 1) {
        field[..path.len()].copy_from_slice(path);
    }
}

/// That path, of an encrypted image, which takes no key.
///
/// # Errors
/// It is not known.
pub(super) fn executable(source: &dyn Source, trailer: &Trailer) -> Result<OsString> {
    let page = read_page(source, trailer)?;
    let path = page[EXECUTABLE..].split(|byte| *byte == 0).next().unwrap_or_default();
    match path.is_empty() {
        true => Err(Error::new("the path of the program's executable was too long to be kept")),
        false => Ok(OsStr::from_bytes(path).to_owned()),
    }
}

/// What is in front of an encrypted image, before anything of it is proved.
pub(super) fn read_stub(source: &dyn Source, header: &Header) -> Result<Vec<u8>> {
    if header.start > STUB_MAX {
        return Err(damage("damaged: its stub is too long"));
    }
    let mut stub = vec![0; header.start as usize];
    source.read_at(0, &mut stub).because(|| "cannot read the stub")?;
    Ok(stub)
}

/// Whether this build can read an image that needs all of this.
fn understood(needed: u64) -> Result<()> {
    const NAMES: [(u64, &str); 5] = [
        (needs::PROCESSES, "it holds several processes"),
        (needs::PARENT, "a part of it is in an earlier checkpoint"),
        (needs::CODEC, "it is compressed"),
        (needs::SEALED, "it is encrypted"),
        (needs::STREAMED, "its header is at its end"),
    ];
    let unknown = needed & !KNOWN_NEEDS;
    if unknown == 0 {
        return Ok(());
    }
    let mut why: Vec<&str> =
        NAMES.iter().filter(|(bit, _)| unknown & bit != 0).map(|(_, why)| *why).collect();
    let other = format!("it needs {unknown:#x}");
    if why.is_empty() {
        why.push(&other);
    }
    Err(Error::new(format!("made by a newer ckpt: {}, which this one cannot read", why.join(", ")))
        .hint("execute the file itself, it carries its own ckpt"))
}

/// The section table.
pub(super) fn read_sections(source: &dyn Source, header: &Header) -> Result<Vec<u8>> {
    let (count, len) = (header.section_count, header.section_len);
    let total = u64::from(count) * u64::from(len);
    let end = header.sections.checked_add(total);
    let known = size_of::<Section>() as u32;
    let sane = count <= SECTIONS_MAX && (known..=8 * known).contains(&len);
    if !sane || end.is_none_or(|end| end > header.file_len) {
        return Err(damage("damaged: its section table lies outside the file"));
    }
    let mut bytes = vec![0; total as usize];
    source.read_at(header.sections, &mut bytes).because(|| "cannot read the section table")?;
    if hash(&bytes) != header.sections_hash {
        return Err(damage("damaged: the checksum of its section table is wrong"));
    }
    Ok(bytes)
}

/// The records in it.
pub(super) fn sections(header: &Header, bytes: &[u8]) -> Vec<Section> {
    let sections = bytes
        .chunks_exact(header.section_len as usize)
        .filter_map(|record| Section::read_from_prefix(record).ok().map(|(section, _)| section));
    sections.collect()
}

pub(super) fn damage(what: &str) -> Error {
    Error::new(what).hint("restart an older checkpoint or another copy").of(Kind::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_named() {
        assert!(understood(0).is_ok());
        let sentence = understood(needs::PARENT).unwrap_err().to_string();
        assert!(sentence.contains("earlier"), "{sentence}");
        assert!(understood(1 << 40).unwrap_err().to_string().contains("0x10000000000"));
    }
}
