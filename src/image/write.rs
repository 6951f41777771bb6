// SPDX-License-Identifier: LGPL-2.1-only
//! Writing an image, front to back except for its header, or with that at its end.

use super::base::Base;
use super::blocks::{Blocks, Known, Noted, Out};
use super::file::Abreast;
use super::pieces::{Key, Piece, keyed};
use super::seal::{self, Seal};
use super::sink::Sink;
use super::{PAGE, content_hash, elf, front, hash, head, layout};
use crate::error::{Error, Result};
use crate::order;
use ckpt_abi::ABI_VERSION;
use ckpt_abi::image::{
    Chunk, FORMAT, HEADER_MAGIC, Header, NO_OBJECT, Section, SectionKind, Trailer, WHOLE_IMAGE,
    header_flag, needs,
};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsString;
use std::ops::Range;
use zerocopy::{FromZeros, Immutable, IntoBytes};

/// A place in a block: its number, and bytes from its start.
type Place = (usize, usize);

/// An image in the making.
pub struct Writer<'a> {
    out: Out<'a>,
    /// Of a stream, the checksum of the stub, which goes out first.
    streamed: Option<u64>,
    seal: Option<Seal>,
    /// Path of the first process's executable, which an encrypted image has in its header's page.
    pub(crate) executable: OsString,
    /// The digest of a stub that has gone out.
    stub_digest: [u8; seal::KEY],
    stub_len: u64,
    stub: Vec<u8>,
    start: u64,
    blocks: Blocks,
    /// Until the image is sealed, `offset` is the number of a block, and `hash` of a part of one that of its content.
    chunks: Vec<Chunk>,
    sections: Vec<Section>,
    runs: [[u64; 2]; 2],
    flags: u64,
    /// Where pieces of several processes' memory lie.
    shared: Option<HashMap<Key, Place>>,
    /// The older image in whose file this one is written.
    base: Option<Base>,
}

impl<'a> Writer<'a> {
    /// An image behind `stub`, which is as it begins an image.
    pub fn new(sink: &'a mut dyn Sink, mut stub: Vec<u8>) -> Self {
        let start = (stub.len() as u64).next_multiple_of(PAGE);
        let (chunks, sections) = (Vec::new(), Vec::new());
        let (runs, shared) = ([[0; 2]; 2], None);
        let stub_len = stub.len() as u64;
        let (blocks, base) = (Blocks::default(), None);
        let (within, noted) = (0..0, Vec::new());
        let mut out = Out { sink, at: start + PAGE, before: Vec::new(), within, noted };
        let streamed = out.sink.is_stream().then(|| {
            out.at = start;
            // Whether anything behind the stub was cut off the stub itself can see.
            elf::mark(&mut stub);
            front::set_length(&mut stub, start);
            stub.resize(start as usize, 0);
            out.before = std::mem::take(&mut stub);
            hash(&out.before)
        });
        Self {
            out,
            streamed,
            seal: None,
            executable: OsString::new(),
            stub_digest: [0; seal::KEY],
            stub_len,
            stub,
            start,
            blocks,
            chunks,
            sections,
            runs,
            flags: 0,
            shared,
            base,
        }
    }

    /// Compresses content ([`ckpt_abi::image::Codec`]) where that makes it smaller; records stay as they are.
    #[must_use]
    pub fn compressed(mut self) -> Self {
        self.blocks.compress();
        self
    }

    /// Encrypts content and records. Nothing may be in it yet.
    #[must_use]
    pub(crate) fn sealed(mut self, seal: Seal) -> Self {
        if self.streamed.is_some() {
            self.stub_digest = ckpt_cipher::digest(&[&self.out.before]);
        }
        self.blocks.seal(seal.clone());
        self.seal = Some(seal);
        self
    }

    /// Whose image it is ([`Header::run`]), and which one that run began with.
    pub fn of_run(self, run: [u64; 2], before: [u64; 2]) -> Self {
        Self { runs: [run, before], ..self }
    }

    /// An image whose processes end when it is whole.
    pub(crate) fn of_ended(self) -> Self {
        Self { flags: self.flags | header_flag::ENDED, ..self }
    }

    /// Lets memory that has the same content in several processes (pages that they share since a fork(2), libraries)
    /// lie in the image once.
    pub(crate) fn of_several(self) -> Self {
        Self { shared: Some(HashMap::new()), ..self }
    }

    /// Brings an older image, in whose file the sink writes, up to date. It is neither [compressed](Self::compressed) nor
    /// [of several](Self::of_several).
    pub(crate) fn over(mut self, base: Option<Base>) -> Self {
        if let Some(base) = base {
            self.out.at = base.end();
            self.flags |= header_flag::RENEWED;
            self.base = Some(base);
        }
        self
    }

    /// That older image.
    pub(crate) fn base(&mut self) -> Option<&mut Base> {
        self.base.as_mut()
    }

    /// Says where mappings begin and end: no chunk lies in two.
    pub(crate) fn divide(&mut self, borders: Vec<u64>) {
        self.base.iter_mut().for_each(|base| base.divide(borders.clone()));
    }

    /// Takes memory over as it is in the older image, as far as it is there.
    pub(crate) fn keep(&mut self, memory: &Range<u64>) {
        self.base.iter_mut().for_each(|base| base.keep(memory));
    }

    /// Adds a piece of memory of a process: whole pages, at most [`ckpt_abi::image::CHUNK_MAX`] bytes. All
    /// content comes before the first section. `locks` are the first of the owners' words in it, and how many.
    pub fn memory(&mut self, process: u32, addr: u64, bytes: &[u8], locks: [u32; 2]) -> Result<()> {
        let pieces = if self.shared.is_some() { keyed(addr, bytes) } else { Vec::new() };
        self.pieces(process, addr, (bytes, Known::Nothing), locks, &pieces)
    }

    /// The same of memory whose pieces are [`keyed`] already; there are none where [`Self::is_of_several`] is not so.
    pub(crate) fn pieces(
        &mut self,
        process: u32,
        addr: u64,
        content: (&[u8], Known),
        [first_lock, locks]: [u32; 2],
        pieces: &[Piece],
    ) -> Result<()> {
        let known = Chunk { process, object: NO_OBJECT, locks, first_lock, ..Chunk::new_zeroed() };
        if let Some(base) = &mut self.base {
            return base.put(known, addr, (content.0, content.1.sum()), &mut self.out);
        }
        self.chunk(known, addr, content, pieces)
    }

    /// As [`Sink::abreast`].
    pub(crate) fn abreast(&self) -> Option<Abreast> {
        self.out.sink.abreast()
    }

    /// Has what `add` writes of some bytes only noted: offsets, and which of the bytes belong there. Whoever asks has to
    /// write them before anything else is added that may be read back from there.
    pub(crate) fn note(
        &mut self,
        bytes: &[u8],
        add: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Noted> {
        let start = bytes.as_ptr().addr();
        self.out.within = start..start + bytes.len();
        let added = add(self);
        self.out.within = 0..0;
        let noted = std::mem::take(&mut self.out.noted);
        added.map(|()| noted)
    }

    /// As [`Sink::may_wait`].
    pub(crate) fn may_wait(&mut self) {
        self.out.sink.may_wait();
    }

    /// As [`Sink::settle`].
    pub(crate) fn settle(&mut self) {
        self.out.sink.settle();
    }

    /// Whether memory is looked for in what is written already.
    pub(crate) fn is_of_several(&self) -> bool {
        self.shared.is_some()
    }

    /// What becomes of content on its way into the file.
    pub(crate) fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Adds a piece of an object, at most [`ckpt_abi::image::CHUNK_MAX`] bytes at a multiple of the page size.
    pub fn content(&mut self, object: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        let known = Chunk { process: WHOLE_IMAGE, object, ..Chunk::new_zeroed() };
        self.add(known, offset, bytes, Known::Nothing).map(drop)
    }

    fn chunk(
        &mut self,
        known: Chunk,
        address: u64,
        (bytes, content): (&[u8], Known),
        pieces: &[Piece],
    ) -> Result<()> {
        // Whose locks lie in it has to be known of a whole piece.
        if known.locks != 0 || self.shared.is_none() || pieces.is_empty() {
            return self.add(known, address, bytes, content).map(drop);
        }
        // Which of the pieces are new, and which bytes are known.
        let mut news = 0..0;
        let mut old: Option<(Place, Range<usize>)> = None;
        for (index, (piece, key)) in pieces.iter().enumerate() {
            match self.shared.as_ref().and_then(|shared| shared.get(key).copied()) {
                Some(place) => {
                    self.write_new(known, address, bytes, &pieces[std::mem::take(&mut news)])?;
                    match &mut old {
                        Some(((block, start), run)) if (*block, *start + run.len()) == place => {
                            run.end = piece.end;
                        }
                        _ => {
                            self.refer(known, address, bytes, old.take());
                            old = Some((place, piece.clone()));
                        }
                    }
                }
                None => {
                    self.refer(known, address, bytes, old.take());
                    news = if news.is_empty() { index } else { news.start }..index + 1;
                }
            }
        }
        self.refer(known, address, bytes, old);
        self.write_new(known, address, bytes, &pieces[news])
    }

    /// Adds a chunk of content that lies in the image already, within a block.
    fn refer(
        &mut self,
        known: Chunk,
        address: u64,
        bytes: &[u8],
        old: Option<(Place, Range<usize>)>,
    ) {
        let Some(((block, skip), run)) = old else { return };
        let content = &bytes[run.clone()];
        self.chunks.push(Chunk {
            address: address + run.start as u64,
            offset: block as u64,
            skip: skip as u32,
            len: content.len() as u32,
            hash: content_hash(content),
            ..known
        });
    }

    /// Adds content that is new, and notes where its pieces lie.
    fn write_new(
        &mut self,
        known: Chunk,
        address: u64,
        bytes: &[u8],
        news: &[Piece],
    ) -> Result<()> {
        let (Some((first, _)), Some((last, _))) = (news.first(), news.last()) else {
            return Ok(());
        };
        let content = &bytes[first.start..last.end];
        let block = self.add(known, address + first.start as u64, content, Known::Nothing)?;
        let shared = self.shared.get_or_insert_default();
        for (piece, key) in news {
            shared.entry(*key).or_insert((block, piece.start - first.start));
        }
        Ok(())
    }

    /// Adds a chunk that is a block of its own; the block's number.
    fn add(&mut self, known: Chunk, address: u64, bytes: &[u8], content: Known) -> Result<usize> {
        let block = self.blocks.add(bytes, content, &mut self.out)?;
        let len = bytes.len() as u32;
        self.chunks.push(Chunk { address, offset: block as u64, len, ..known });
        Ok(block)
    }

    /// The chunks as they lie in the file.
    fn settled(&mut self) -> Result<Vec<Chunk>> {
        self.blocks.settle(&mut self.out)?;
        let mut chunks = std::mem::take(&mut self.chunks);
        for chunk in &mut chunks {
            self.blocks.locate(chunk.offset as usize, chunk.hash, chunk);
        }
        if let Some(base) = &mut self.base {
            chunks.extend(base.finish()?);
        }
        let of = |chunk: &Chunk| u64::from(chunk.process) << 32 | u64::from(chunk.object);
        order::by_key(&mut chunks, |chunk| (of(chunk), chunk.address));
        if self.base.is_some() {
            layout::order(&chunks, 1).map_err(Error::new)?;
        }
        Ok(chunks)
    }

    /// Adds a section of records of the image as a whole.
    pub fn records<T: IntoBytes + Immutable>(
        &mut self,
        kind: SectionKind,
        records: &[T],
    ) -> Result<()> {
        self.records_of(WHOLE_IMAGE, kind, records)
    }

    /// Adds a section of records of one process.
    pub fn records_of<T: IntoBytes + Immutable>(
        &mut self,
        process: u32,
        kind: SectionKind,
        records: &[T],
    ) -> Result<()> {
        self.section(process, kind, 0, size_of::<T>() as u32, records.as_bytes())
    }

    /// Adds a section of plain bytes of the image as a whole.
    pub fn bytes(&mut self, kind: SectionKind, bytes: &[u8]) -> Result<()> {
        self.bytes_of(WHOLE_IMAGE, kind, 0, bytes)
    }

    /// Adds a section of plain bytes of one process.
    pub fn bytes_of(
        &mut self,
        process: u32,
        kind: SectionKind,
        index: u32,
        bytes: &[u8],
    ) -> Result<()> {
        self.section(process, kind, index, 0, bytes)
    }

    fn section(
        &mut self,
        process: u32,
        kind: SectionKind,
        index: u32,
        record_len: u32,
        bytes: &[u8],
    ) -> Result<()> {
        if kind.is_of_process() == (process == WHOLE_IMAGE) {
            return Err(Error::new(format!("the section {kind:?} has the wrong owner")));
        }
        self.blocks.settle(&mut self.out)?;
        let mut padded = Cow::from(bytes);
        if !bytes.len().is_multiple_of(8) {
            padded.to_mut().resize(bytes.len().next_multiple_of(8), 0);
        }
        let mut section = Section {
            kind: kind as u32,
            process,
            offset: self.out.at,
            len: bytes.len() as u64,
            record_len,
            index,
            hash: 0,
            reserved: 0,
        };
        if let Some(seal) = &self.seal {
            seal.section(&section, padded.to_mut());
        }
        section.hash = hash(&padded);
        self.sections.push(section);
        self.out.write(&padded)
    }

    /// Writes what remains and seals the image; its length in bytes.
    pub fn seal(mut self) -> Result<u64> {
        let chunks = self.settled()?;
        self.records(SectionKind::Chunks, &chunks)?;
        let sections_at = self.out.at;
        let sections = self.sections.as_bytes().to_vec();
        self.out.write(&sections)?;
        let table_at = sections_at + sections.len() as u64;
        let mut table = elf::table(self.start, table_at, table_at);
        if let Some(stub_hash) = self.streamed {
            let header_at = (table_at + elf::LEN).next_multiple_of(PAGE);
            let file_len = header_at + PAGE + size_of::<Trailer>() as u64;
            table.resize((header_at - table_at) as usize, 0);
            table.extend(self.header(stub_hash, file_len, sections_at, hash(&sections)));
            self.out.write(&table)?;
            let trailer = layout::trailer(header_at, file_len, table_at, &table);
            self.out.write(trailer.as_bytes())?;
            self.out.sink.seal(file_len)?;
            return Ok(file_len);
        }
        let file_len = table_at + elf::LEN + size_of::<Trailer>() as u64;
        self.out.write(&table)?;
        let trailer = layout::trailer(self.start, file_len, table_at, &table);
        self.out.write(trailer.as_bytes())?;
        elf::refer_to_table(&mut self.stub, table_at);
        front::set_length(&mut self.stub, file_len);
        self.stub.resize(self.start as usize, 0);
        match self.base.as_ref().map(|base| base.differing(&self.stub)).transpose()? {
            Some(pieces) => pieces.into_iter().try_for_each(|piece| {
                self.out.sink.write_at(piece.start as u64, &self.stub[piece])
            })?,
            None => self.out.sink.write_at(0, &self.stub)?,
        }
        let header = self.header(hash(&self.stub), file_len, sections_at, hash(&sections));
        self.out.sink.write_at(self.start, &header)?;
        let remembers = self.base.as_ref().is_some_and(Base::remembers);
        self.out.sink.laid_out(chunks, self.runs[0], remembers);
        self.out.sink.seal(file_len)?;
        Ok(file_len)
    }

    fn header(&self, stub_hash: u64, file_len: u64, sections: u64, sections_hash: u64) -> Vec<u8> {
        let processes = self.sections.iter().filter(|s| s.kind == SectionKind::Process as u32);
        let mut header = Header {
            magic: HEADER_MAGIC,
            needs: if processes.count() > 1 { needs::PROCESSES } else { 0 }
                | if self.blocks.are_compressed() { needs::CODEC } else { 0 }
                | if self.seal.is_some() { needs::SEALED } else { 0 }
                | if self.streamed.is_some() { needs::STREAMED } else { 0 },
            format: FORMAT,
            abi_version: ABI_VERSION,
            start: self.start,
            stub_len: self.stub_len,
            file_len,
            sections,
            section_count: self.sections.len() as u32,
            section_len: size_of::<Section>() as u32,
            sections_hash,
            stub_hash,
            run: self.runs[0],
            before: self.runs[1],
            flags: self.flags,
            ..Header::new_zeroed()
        };
        if let Some(seal) = &self.seal {
            header.seal_salt = seal.salt;
            (header.passphrase_salt, header.passphrase_cost) = seal.passphrase;
        }
        let mut page = header.as_bytes().to_vec();
        page.resize(PAGE as usize, 0);
        if let Some(seal) = &self.seal {
            head::put_executable(&mut page, &self.executable);
            let stub = match self.streamed {
                Some(_) => self.stub_digest,
                None => ckpt_cipher::digest(&[&self.stub]),
            };
            let at = std::mem::offset_of!(Header, seal_proof);
            let proof = seal.proof(&page, &stub, self.sections.as_bytes());
            page[at..at + proof.len()].copy_from_slice(&proof);
        }
        let sum = hash(&page).to_le_bytes();
        let at = std::mem::offset_of!(Header, hash);
        page[at..at + 8].copy_from_slice(&sum);
        page
    }
}
