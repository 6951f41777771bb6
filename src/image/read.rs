// SPDX-License-Identifier: LGPL-2.1-only
//! Reading and checking an image. Nothing in it is believed before its checksum was, and no memory is
//! taken for a length that the file only claims.

use super::seal::{self, Seal};
use super::source::Source;
use super::{codec, content_hash, elf, hash, head, layout, strings};
use crate::error::{Because, Error, Kind, Result};
use crate::order;
use crate::progress;
use ckpt_abi::image::{
    CHUNK_MAX, Chunk, Codec, Header, Section, SectionKind, Text, Trailer, WHOLE_IMAGE, needs,
};
use nix::fcntl::OFlag;
use std::cell::Cell;
use std::ffi::OsString;
use std::fs::File;
use std::mem::offset_of;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3Default;
use zerocopy::{FromBytes, IntoBytes};

/// Bytes that are read at a time where the length is the file's word.
const PIECE: u64 = 1 << 20;

/// Longest section in bytes: a sparse file can really have any length.
const SECTION_MAX: u64 = 4 << 30;

/// How many times larger a record may be than it was when it was written.
const GROWTH: usize = 4;

/// Opens what may be a checkpoint; a FIFO of that name makes nobody wait.
///
/// # Errors
/// Those of open(2).
pub fn open(path: &Path) -> std::io::Result<File> {
    File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
}

thread_local! {
    /// Room for what is stored of a chunk: to have it mapped anew for each takes longer than to open it.
    static STORED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// An image whose header and section table are sound.
pub struct Image {
    source: Box<dyn Source>,
    path: PathBuf,
    header: Header,
    trailer: Trailer,
    sections: Vec<Section>,
    processes: u32,
    strings: Vec<u8>,
    /// Of an encrypted one, what opens what is in it, or why there is nothing.
    seal: Option<Result<Seal>>,
}

/// What an image has of one of its processes.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    image: &'a Image,
    index: u32,
}

impl Image {
    /// The header of the image that rides on `source`, which is a file or more; None when none does.
    ///
    /// # Errors
    /// When a trailer is there but its checksum or the header's is wrong.
    pub fn find(source: &dyn Source) -> Result<Option<Header>> {
        match head::find_trailer(source)? {
            Some(trailer) => head::read_header(source, &trailer).map(Some),
            None => Ok(None),
        }
    }

    /// Opens a checkpoint file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open(path).because(|| format!("cannot open {}", path.display()))?;
        Self::from_file(file, path)
    }

    /// Reads the head of a checkpoint file; `path` is its name in sentences.
    pub fn from_file(file: File, path: &Path) -> Result<Self> {
        Self::from_source(Box::new(file), path)
    }

    /// Reads the head of an image; `path` is its name in sentences.
    pub fn from_source(source: Box<dyn Source>, path: &Path) -> Result<Self> {
        let named = || path.display().to_string();
        let trailer = head::find_trailer(&*source).because(named)?.ok_or_else(|| {
            let shown = path.display();
            match elf::is_marked(&*source) {
                true => head::damage(&format!("{shown} was cut off: its end is missing")),
                false => Error::new(format!("{shown} is not a checkpoint")),
            }
        })?;
        let header = head::read_header(&*source, &trailer).because(named)?;
        let table = head::read_sections(&*source, &header).because(named)?;
        let sections = head::sections(&header, &table);
        let (path, processes, strings, seal) = (path.into(), 0, Vec::new(), None);
        let mut image = Self { source, path, header, trailer, sections, processes, strings, seal };
        image.check_index()?;
        if header.needs & needs::SEALED != 0 {
            image.seal = Some(image.unlock(&table));
        }
        if image.locked().is_none() {
            image.strings = image.bytes(SectionKind::Strings)?;
        }
        Ok(image)
    }

    /// Finds what opens it, and checks its head with that.
    fn unlock(&self, table: &[u8]) -> Result<Seal> {
        let shown = self.path.display();
        let why = || format!("{shown} is encrypted");
        let seal = Seal::of_header(&self.header).because(why)?;
        let stub = head::read_stub(&*self.source, &self.header).because(why)?;
        let mut page = head::read_page(&*self.source, &self.trailer).because(why)?;
        for (at, len) in [(offset_of!(Header, hash), 8), (offset_of!(Header, seal_proof), 16)] {
            page[at..at + len].fill(0);
        }
        let proof = seal.proof(&page, &ckpt_cipher::digest(&[&stub]), table);
        match proof == self.header.seal_proof {
            true => Ok(seal),
            false => Err(Error::new(format!(
                "{shown} is encrypted with another key, or somebody has changed its head"
            ))
            .hint("name the key file with --key FILE or CKPT_KEY, or say the right passphrase")),
        }
    }

    /// Why nothing in it can be read, if that is so.
    pub fn locked(&self) -> Option<&Error> {
        self.seal.as_ref().and_then(|seal| seal.as_ref().err())
    }

    /// Whether it is encrypted.
    pub fn is_sealed(&self) -> bool {
        self.seal.is_some()
    }

    /// Whether that is by a passphrase.
    pub fn is_of_passphrase(&self) -> bool {
        self.header.passphrase_cost != [0; 2]
    }

    /// As [`head::executable`].
    pub(crate) fn executable(&self) -> Result<OsString> {
        head::executable(&*self.source, &self.trailer)
    }

    /// The file that it is in, if it is in one.
    pub fn file(&self) -> Option<&File> {
        self.source.file()
    }

    /// The file's name, for sentences.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// A string of the image.
    pub fn text(&self, text: Text) -> OsString {
        strings::get(&self.strings, text)
    }

    /// The processes, in the order of the index.
    pub fn processes(&self) -> impl Iterator<Item = Part<'_>> {
        (0..self.processes).map(|index| self.process(index))
    }

    /// One of them, the first is 0. Of a number that the index has not there are no sections.
    pub fn process(&self, index: u32) -> Part<'_> {
        Part { image: self, index }
    }

    /// The bytes of a section of the image as a whole, checked.
    pub fn bytes(&self, kind: SectionKind) -> Result<Vec<u8>> {
        self.padded(self.section(WHOLE_IMAGE, kind, 0)?)
    }

    /// The records of a section of the image as a whole, checked; fields that the writer did not know are
    /// zero.
    pub fn records<T: FromBytes + IntoBytes>(&self, kind: SectionKind) -> Result<Vec<T>> {
        self.records_of(WHOLE_IMAGE, kind)
    }

    fn records_of<T: FromBytes + IntoBytes>(
        &self,
        owner: u32,
        kind: SectionKind,
    ) -> Result<Vec<T>> {
        let section = self.section(owner, kind, 0)?;
        let written = section.record_len as usize;
        if written == 0 || written.saturating_mul(GROWTH) < size_of::<T>() {
            return Err(self.damaged(&format!("the records of its section {kind:?} are too short")));
        }
        let bytes = self.padded(section)?;
        let records = bytes.chunks_exact(written).map(|record| {
            let mut value = T::new_zeroed();
            let known = written.min(size_of::<T>());
            value.as_mut_bytes()[..known].copy_from_slice(&record[..known]);
            value
        });
        Ok(records.collect())
    }

    /// The single record of a section.
    pub fn record<T: FromBytes + IntoBytes>(&self, kind: SectionKind) -> Result<T> {
        self.single(kind, self.records(kind)?)
    }

    fn single<T>(&self, kind: SectionKind, mut records: Vec<T>) -> Result<T> {
        records.pop().ok_or_else(|| self.damaged(&format!("its section {kind:?} is empty")))
    }

    /// Checks every byte of the file.
    pub fn verify(&self) -> Result<()> {
        self.verify_frame()?;
        for chunk in &self.chunks()? {
            self.read_chunk(chunk)?;
        }
        Ok(())
    }

    /// Checks every byte but those of the chunks, which are checked when they are read, and that the
    /// parts of the file follow each other without gaps.
    pub fn verify_frame(&self) -> Result<()> {
        self.verify_sums()?;
        let chunks = self.chunks()?;
        layout::check(&self.header, &self.trailer, &self.sections, &chunks)
            .map_err(|what| self.damaged(&what))
    }

    /// Checks what can be checked without a key.
    pub(crate) fn verify_sums(&self) -> Result<()> {
        if self.sum(0, self.header.start)? != self.header.stub_hash {
            return Err(self.damaged("the checksum of its stub is wrong"));
        }
        let (start, end) = (self.trailer.elf_table, layout::end(&self.trailer));
        if self.sum(start, end - start)? != self.trailer.elf_hash {
            return Err(self.damaged("the checksum of its ELF table is wrong"));
        }
        for section in &self.sections {
            let (len, sum) = (self.length(section)?, section.hash);
            if self.sum(section.offset, len)? != sum {
                return Err(self.wrong(section));
            }
        }
        Ok(())
    }

    /// All chunks, of memory by process and address, then of objects by object and offset; each makes
    /// sense for itself and none overlaps another.
    pub fn chunks(&self) -> Result<Vec<Chunk>> {
        let chunks: Vec<Chunk> = self.records(SectionKind::Chunks)?;
        layout::order(&chunks, self.processes).map_err(|what| self.damaged(&what))?;
        Ok(chunks)
    }

    /// Reads the content of a chunk, checked.
    pub fn read_chunk(&self, chunk: &Chunk) -> Result<Vec<u8>> {
        if u64::from(chunk.len) > CHUNK_MAX {
            return Err(self.damaged("a chunk is too long"));
        }
        let mut bytes = vec![0; chunk.len as usize];
        self.read_chunk_into(chunk, &mut bytes)?;
        Ok(bytes)
    }

    /// As [`Image::read_chunk`] into memory of [`Chunk::len`] bytes.
    pub fn read_chunk_into(&self, chunk: &Chunk, bytes: &mut [u8]) -> Result<()> {
        progress::add(chunk.stored.into());
        let place = match (chunk.process, chunk.object) {
            (WHOLE_IMAGE, object) => format!("file {object} at {:#x}", chunk.address),
            _ => format!("the memory at {:#x}", chunk.address),
        };
        let Ok(codec) = Codec::try_from(chunk.codec) else {
            return Err(Error::new(format!(
                "{}: this ckpt cannot read {place}",
                self.path.display()
            )));
        };
        let lies_so = [Codec::Plain, Codec::Sealed].contains(&codec) && chunk.whole == 0;
        if lies_so && chunk.stored == chunk.len && bytes.len() == chunk.len as usize {
            return self.checked(chunk, codec, bytes, &place);
        }
        let mut stored = STORED.take();
        stored.resize(u64::from(chunk.stored).min(CHUNK_MAX) as usize, 0);
        let restored = self.checked(chunk, codec, &mut stored, &place).and_then(|()| {
            let inner = seal::inner(codec).unwrap_or(codec);
            codec::restore(inner, chunk, &stored, bytes).ok_or_else(|| self.wrong_sum(&place))
        });
        STORED.set(stored);
        restored
    }

    /// Reads what is stored of a chunk, and checks it: by its seal, if it has one, which is open then.
    fn checked(&self, chunk: &Chunk, codec: Codec, stored: &mut [u8], place: &str) -> Result<()> {
        self.read(chunk.offset, stored)?;
        let sum = match codec {
            Codec::Plain => content_hash(stored),
            Codec::Lz4 => hash(stored),
            Codec::Sealed | Codec::SealedLz4 => {
                let opened = self.opener()?.and_then(|seal| seal.open_block(chunk, stored));
                let changed = || self.damaged(&format!("{place} is not as it was sealed"));
                return opened.ok_or_else(changed);
            }
        };
        if sum == chunk.hash { Ok(()) } else { Err(self.wrong_sum(place)) }
    }

    fn wrong_sum(&self, place: &str) -> Error {
        self.damaged(&format!("the checksum of {place} is wrong"))
    }

    /// What opens an encrypted one.
    pub(super) fn opener(&self) -> Result<Option<&Seal>> {
        self.seal.as_ref().map(|seal| seal.as_ref().map_err(Clone::clone)).transpose()
    }

    /// An error about this file.
    pub fn damaged(&self, what: &str) -> Error {
        Error::new(format!("{} is damaged: {what}", self.path.display()))
            .of(Kind::Damaged)
            .hint("restart an older checkpoint or another copy")
    }

    /// Counts the processes.
    fn check_index(&mut self) -> Result<()> {
        let index = self.sections.iter().filter(|s| s.kind == SectionKind::Process as u32);
        let mut numbers: Vec<u32> = index.map(|s| s.process).collect();
        order::numbers(&mut numbers);
        self.processes = numbers.len() as u32;
        let counted = numbers.iter().copied().eq(0..self.processes);
        let owners = self.sections.iter().map(|s| s.process);
        let known = owners.filter(|n| *n != WHOLE_IMAGE).all(|n| n < self.processes);
        match counted && known {
            true => Ok(()),
            false => Err(self.damaged("its index of processes has gaps")),
        }
    }

    fn section(&self, owner: u32, kind: SectionKind, index: u32) -> Result<&Section> {
        let key = (kind as u32, owner, index);
        let mut named = self.sections.iter();
        named
            .find(|s| (s.kind, s.process, s.index) == key)
            .ok_or_else(|| self.damaged(&format!("it has no section {kind:?}")))
    }

    /// Bytes of a section with its padding, which the file has.
    fn length(&self, section: &Section) -> Result<u64> {
        let longer = layout::longer(&self.header);
        let len = section.len.checked_next_multiple_of(8).and_then(|len| len.checked_add(longer));
        let len = len.filter(|len| {
            let end = section.offset.checked_add(*len);
            *len <= SECTION_MAX && end.is_some_and(|end| end <= self.header.file_len)
        });
        len.ok_or_else(|| self.damaged("a section lies outside the file, or is too long"))
    }

    fn padded(&self, section: &Section) -> Result<Vec<u8>> {
        let len = self.length(section)?;
        let mut bytes = Vec::new();
        self.pieces(section.offset, len, |piece| bytes.extend_from_slice(piece))?;
        if hash(&bytes) != section.hash {
            return Err(self.wrong(section));
        }
        if let Some(seal) = self.opener()? {
            let what =
                || self.damaged(&format!("section {} is not as it was sealed", section.kind));
            seal.open_section(section, &mut bytes).ok_or_else(what)?;
        }
        bytes.truncate(section.len as usize);
        Ok(bytes)
    }

    fn wrong(&self, section: &Section) -> Error {
        self.damaged(&format!("the checksum of section {} is wrong", section.kind))
    }

    /// The checksum of a part of the file.
    fn sum(&self, offset: u64, len: u64) -> Result<u64> {
        let mut sum = Xxh3Default::new();
        self.pieces(offset, len, |piece| sum.update(piece))?;
        Ok(sum.digest())
    }

    fn pieces(&self, offset: u64, len: u64, mut take: impl FnMut(&[u8])) -> Result<()> {
        let mut buffer = vec![0; len.min(PIECE) as usize];
        for at in (0..len).step_by(PIECE as usize) {
            let piece = &mut buffer[..(len - at).min(PIECE) as usize];
            self.read(offset + at, piece)?;
            take(piece);
        }
        Ok(())
    }

    /// Reads a part of the file, which is not checked.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.source
            .read_at(offset, bytes)
            .because(|| format!("cannot read {}", self.path.display()))
    }
}

impl<'a> Part<'a> {
    /// Which process of the image it is, from 0.
    pub fn number(self) -> u32 {
        self.index
    }

    /// Whether it is the one that the others descend from.
    pub fn is_first(self) -> bool {
        self.index == 0
    }

    /// The image.
    pub fn image(self) -> &'a Image {
        self.image
    }

    /// The records of a section, as [`Image::records`].
    pub fn records<T: FromBytes + IntoBytes>(self, kind: SectionKind) -> Result<Vec<T>> {
        self.image.records_of(self.index, kind)
    }

    /// The single record of a section.
    pub fn record<T: FromBytes + IntoBytes>(self, kind: SectionKind) -> Result<T> {
        self.image.single(kind, self.records(kind)?)
    }

    /// The bytes of a section, checked; `index` tells those of one kind apart.
    pub fn bytes(self, kind: SectionKind, index: u32) -> Result<Vec<u8>> {
        self.image.padded(self.image.section(self.index, kind, index)?)
    }

    /// Its memory by address, of all chunks of the image ([`Image::chunks`]).
    pub fn memory(self, chunks: &[Chunk]) -> &[Chunk] {
        let first = chunks.partition_point(|c| c.process < self.index);
        let len = chunks[first..].partition_point(|c| c.process == self.index);
        &chunks[first..first + len]
    }
}

#[cfg(test)]
impl Image {
    /// Where a section of the image lies.
    pub(super) fn place(&self, kind: SectionKind) -> Section {
        *self.section(WHOLE_IMAGE, kind, 0).unwrap()
    }

    /// Makes the checksums that depend on a section of `bytes`, a copy of the image, right again.
    pub(super) fn with_checksums(&self, bytes: &mut [u8], kind: SectionKind) {
        let put = |bytes: &mut [u8], at: usize, sum: u64| {
            bytes[at..at + 8].copy_from_slice(&sum.to_le_bytes());
        };
        let number = self.sections.iter().position(|s| s.kind == kind as u32).unwrap();
        let section = self.sections[number];
        let table = self.header.sections as usize;
        let entry = table + number * size_of::<Section>() + std::mem::offset_of!(Section, hash);
        let from = section.offset as usize;
        let sum = hash(
            &bytes[from..from
                + (section.len.next_multiple_of(8) + layout::longer(&self.header)) as usize],
        );
        put(bytes, entry, sum);
        let head = self.trailer.header as usize;
        let sum = hash(&bytes[table..table + self.sections.len() * size_of::<Section>()]);
        put(bytes, head + std::mem::offset_of!(Header, sections_hash), sum);
        let sum = hash(&bytes[..self.header.start as usize]);
        put(bytes, head + std::mem::offset_of!(Header, stub_hash), sum);
        let at = head + std::mem::offset_of!(Header, hash);
        put(bytes, at, 0);
        let sum = hash(&bytes[head..head + super::PAGE as usize]);
        put(bytes, at, sum);
    }
}
