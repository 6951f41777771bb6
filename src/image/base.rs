// SPDX-License-Identifier: LGPL-2.1-only
//! An older checkpoint file that is brought up to date in place: of memory only the pages that differ are written. What is
//! new goes where something was that is not needed any more, or behind the rest. From the first change on to its seal the
//! file is no checkpoint; nobody but the dump may know its name.

use super::blocks::Out;
use super::read::Image;
use super::sums::{Elsewhere, Old};
use super::{PAGE, content_hash, hash, numbered, page_hash};
use crate::error::{Because, Result};
use crate::fault::{Point, reach};
use crate::order;
use ckpt_abi::image::{
    CHUNK_MAX, Chunk, Codec, NO_OBJECT, ProcessRecord, SectionKind, process_flag,
};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// So much more than twice what lies in it a file may have gaps.
const SLACK: u64 = 16 << 20;

const SIZE: usize = PAGE as usize;

/// The file, and what becomes of the memory in it.
pub struct Base {
    old: Old,
    /// Which checkpoint it was ([`ckpt_abi::image::Header::run`]).
    run: [u64; 2],
    remembers: bool,
    /// The memory in it, by address.
    chunks: Vec<Chunk>,
    /// The pages of each, from the lowest bit on, that are in the new image as they lie there.
    seen: Vec<u64>,
    /// Where nothing lies that may be needed: bytes and offset, the shortest first.
    free: Vec<(u64, u64)>,
    end: u64,
    /// Memory that is new in it.
    made: Vec<Chunk>,
    room: Vec<u8>,
    /// Where mappings begin and end, by address: no chunk lies in two.
    borders: Vec<u64>,
}

impl Base {
    /// The base for an image of one process behind a stub of `start` bytes with its padding; None: the file is none, or has
    /// too many gaps.
    pub(crate) fn of(file: &File, path: &Path, start: u64) -> Option<Self> {
        let image = Image::from_file(file.try_clone().ok()?, path).ok()?;
        let header = *image.header();
        if header.needs != 0 || header.start != start {
            return None;
        }
        let mut chunks = image.chunks().ok()?;
        chunks.retain(|chunk| chunk.object == NO_OBJECT);
        if !chunks.iter().all(is_simple) {
            return None;
        }
        let process: ProcessRecord = image.process(0).record(SectionKind::Process).ok()?;
        let remembers = process.flags & process_flag::REMEMBERS_IDS != 0;
        let old = Old::File(file.try_clone().ok()?);
        let base = Self::laid(chunks, old, start)?;
        let gaps: u64 = base.free.iter().map(|(len, _)| len).sum();
        let whole = base.end - start - PAGE;
        (gaps <= (whole - gaps) + SLACK).then_some(Self { run: header.run, remembers, ..base })
    }

    /// The base for an image on another machine.
    pub(crate) fn elsewhere(mut image: Elsewhere, start: u64) -> Option<Self> {
        if !image.chunks.iter().all(is_simple) {
            return None;
        }
        let Elsewhere { sums, run, remembers, is_torn, .. } = image;
        for chunk in image.chunks.iter_mut().filter(|_| is_torn) {
            chunk.hash = sums.of(chunk.offset, chunk.len as usize / SIZE);
        }
        let base = Self::laid(image.chunks, Old::Known(sums), start)?;
        Some(Self { run, remembers, ..base })
    }

    fn laid(chunks: Vec<Chunk>, old: Old, start: u64) -> Option<Self> {
        let first = start + PAGE;
        let mut places: Vec<_> = chunks.iter().map(|c| (c.offset, u64::from(c.len))).collect();
        order::numbers(&mut places);
        let (mut free, mut at) = (Vec::new(), first);
        for (offset, len) in &places {
            if *offset < at {
                return None;
            }
            free.extend(Some((*offset - at, at)).filter(|(len, _)| *len > 0));
            at = offset + len;
        }
        order::numbers(&mut free);
        let seen = vec![0; chunks.len()];
        let (made, room, end, borders) = (Vec::new(), Vec::new(), at, Vec::new());
        let (run, remembers) = ([0; 2], false);
        Some(Self { old, run, remembers, chunks, seen, free, end, made, room, borders })
    }

    /// Where what is not memory may begin.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Whether it is a checkpoint of that run and number.
    pub(crate) fn is_of(&self, run: [u64; 2]) -> bool {
        self.run == run
    }

    /// Says whether the process of the new one does.
    pub(crate) fn remember(&mut self, remembers: bool) {
        self.remembers = remembers;
    }

    /// Whether its process remembers its own ids.
    pub(crate) fn remembers(&self) -> bool {
        self.remembers
    }

    /// Memory that has to be read anew whatever is known of it: its locks are known by their chunk.
    pub(crate) fn with_locks(&self) -> Vec<Range<u64>> {
        self.chunks.iter().filter(|c| c.locks != 0).map(range).collect()
    }

    /// Adds memory, with its checksum if that is known; `known` is its chunk but for place and content.
    pub(super) fn put(
        &mut self,
        known: Chunk,
        address: u64,
        (bytes, sum): (&[u8], Option<u64>),
        out: &mut Out<'_>,
    ) -> Result<()> {
        if known.locks != 0 {
            return self.add(known, address, bytes, out);
        }
        let mut at = 0;
        let mut index = self.chunks.partition_point(|c| range(c).end <= address);
        while at < bytes.len() {
            let here = address + at as u64;
            let rest = &bytes[at..];
            match self.chunks.get(index).map(|c| (range(c), c.locks)) {
                Some((old, locks)) if old.start <= here => {
                    let piece = &rest[..rest.len().min((old.end - here) as usize)];
                    if locks == 0 {
                        let sum = sum.filter(|_| old == (address..address + bytes.len() as u64));
                        self.renew(index, (here - old.start) as usize, (piece, sum), out)?;
                    } else {
                        self.add(known, here, piece, out)?;
                    }
                    at += piece.len();
                    index += 1;
                }
                next => {
                    let len = next.map_or(rest.len(), |(next, _)| {
                        rest.len().min((next.start - here) as usize)
                    });
                    self.add(known, here, &rest[..len], out)?;
                    at += len;
                }
            }
        }
        Ok(())
    }

    /// Takes memory over as it is, as far as it is there.
    pub(super) fn keep(&mut self, memory: &Range<u64>) {
        let mut index = self.chunks.partition_point(|c| range(c).end <= memory.start);
        while let Some(chunk) = self.chunks.get(index).filter(|c| c.address < memory.end) {
            let old = range(chunk);
            if chunk.locks == 0 {
                let from = memory.start.max(old.start) - old.start;
                let to = memory.end.min(old.end) - old.start;
                self.seen[index] |= bits(from as usize / SIZE..to as usize / SIZE);
            }
            index += 1;
        }
    }

    /// Brings a part of an old chunk up to date.
    fn renew(
        &mut self,
        index: usize,
        offset: usize,
        (bytes, sum): (&[u8], Option<u64>),
        out: &mut Out<'_>,
    ) -> Result<()> {
        let first = offset / SIZE;
        self.seen[index] |= bits(first..first + bytes.len() / SIZE);
        let chunk = &mut self.chunks[index];
        if sum == Some(chunk.hash) {
            return Ok(());
        }
        let place = chunk.offset + offset as u64;
        reach(Point::Renewing);
        let mut differ: Vec<Range<usize>> = Vec::new();
        let mut change = |page: usize, [new, old]: [u64; 2]| {
            chunk.hash = chunk.hash.wrapping_add(new).wrapping_sub(old);
            match differ.last_mut() {
                Some(last) if last.end == page => last.end += 1,
                _ => differ.push(page..page + 1),
            }
        };
        match (&mut self.old, sum) {
            (Old::File(_), Some(sum)) => {
                // To read it would take longer.
                chunk.hash = sum;
                return out.write_at(place, bytes);
            }
            (Old::File(file), None) => {
                self.room.resize(bytes.len(), 0);
                file.read_exact_at(&mut self.room, place).because(unreadable)?;
                let pages = bytes.chunks(SIZE).zip(self.room.chunks(SIZE)).enumerate();
                for (page, (new, old)) in pages.filter(|(_, (new, old))| new != old) {
                    let number = (first + page) as u64;
                    change(page, [new, old].map(|content| page_hash(number, content)));
                }
            }
            (Old::Known(sums), _) => {
                for (page, new) in bytes.chunks(SIZE).map(hash).enumerate() {
                    let at = place + (page * SIZE) as u64;
                    let old = sums.get(at);
                    if new != old {
                        sums.set(at, new);
                        change(page, [new, old].map(|sum| numbered((first + page) as u64, sum)));
                    }
                }
            }
        }
        differ.iter().try_for_each(|pages| {
            let run = pages.start * SIZE..pages.end * SIZE;
            out.write_at(place + run.start as u64, &bytes[run])
        })
    }

    /// Adds memory that was not there.
    fn add(&mut self, known: Chunk, address: u64, bytes: &[u8], out: &mut Out<'_>) -> Result<()> {
        let len = bytes.len() as u64;
        let fits = self.free.partition_point(|(free, _)| *free < len);
        let offset = if fits < self.free.len() {
            let (free, offset) = self.free.remove(fits);
            if free > len {
                let rest = (free - len, offset + len);
                self.free.insert(self.free.partition_point(|other| *other < rest), rest);
            }
            out.write_at(offset, bytes)?;
            offset
        } else {
            let offset = out.at;
            out.write(bytes)?;
            offset
        };
        if let Old::Known(sums) = &mut self.old {
            sums.note(offset, bytes);
        }
        let (len, hash) = (len as u32, content_hash(bytes));
        self.made.push(Chunk { address, offset, len, stored: len, hash, ..known });
        Ok(())
    }

    /// Says where mappings begin and end.
    pub(super) fn divide(&mut self, mut borders: Vec<u64>) {
        order::numbers(&mut borders);
        self.borders = borders;
    }

    /// All memory as it lies in the file.
    pub(super) fn finish(&mut self) -> Result<Vec<Chunk>> {
        let mut all = std::mem::take(&mut self.made);
        for (chunk, seen) in std::mem::take(&mut self.chunks).into_iter().zip(&self.seen) {
            let pages = chunk.len as usize / SIZE;
            let crossed = self.borders.partition_point(|border| *border <= chunk.address);
            let is_whole = self.borders.get(crossed).is_none_or(|it| *it >= range(&chunk).end);
            if is_whole && *seen == bits(0..pages) {
                all.push(Chunk { block: 0, ..chunk });
                continue;
            }
            let content = self.old.content(&chunk, *seen != 0)?;
            let mut page = 0;
            while page < pages {
                let from = page;
                let is_border = |page: usize| {
                    let address = chunk.address + (page * SIZE) as u64;
                    page > from && self.borders.binary_search(&address).is_ok()
                };
                while page < pages && seen >> page & 1 == 1 && !is_border(page) {
                    page += 1;
                }
                if page > from {
                    let skip = (from * SIZE) as u64;
                    let (address, offset) = (chunk.address + skip, chunk.offset + skip);
                    let (pages, len) = (page - from, ((page - from) * SIZE) as u32);
                    let hash = match &self.old {
                        Old::Known(sums) => sums.of(offset, pages),
                        Old::File(_) => content_hash(&content[from * SIZE..page * SIZE]),
                    };
                    all.push(Chunk { address, offset, len, stored: len, hash, ..chunk });
                } else {
                    page += 1;
                }
            }
        }
        Ok(all)
    }

    /// Which ranges of the first bytes of the file have to be written for it to begin with these.
    pub(super) fn differing(&self, stub: &[u8]) -> Result<Vec<Range<usize>>> {
        let mut differ = Vec::new();
        let mut room = vec![0; CHUNK_MAX as usize];
        for (new, at) in stub.chunks(room.len()).zip((0..).step_by(CHUNK_MAX as usize)) {
            let old = &mut room[..new.len()];
            if let Old::File(file) = &self.old {
                file.read_exact_at(old, at as u64).because(unreadable)?;
            }
            let is_other = |(page, (new, old)): &(usize, (&[u8], &[u8]))| match &self.old {
                Old::File(_) => new != old,
                Old::Known(sums) => sums.get((at + page * SIZE) as u64) != hash(new),
            };
            let pages = new.chunks(SIZE).zip(old.chunks(SIZE)).enumerate();
            differ.extend(pages.filter(is_other).map(|(page, (new, _))| {
                let from = at + page * SIZE;
                from..from + new.len()
            }));
        }
        Ok(differ)
    }
}

fn unreadable() -> &'static str {
    "cannot read the older checkpoint"
}

/// Whether a chunk holds its pages as they are, of the first process.
fn is_simple(chunk: &Chunk) -> bool {
    chunk.codec == Codec::Plain as u32 && chunk.stored == chunk.len && chunk.process == 0
}

/// The memory that a chunk holds.
fn range(chunk: &Chunk) -> Range<u64> {
    chunk.address..chunk.address + u64::from(chunk.len)
}

/// A bit for each of these numbers, which are at most 64.
fn bits(numbers: Range<usize>) -> u64 {
    let below = |number: usize| 1u64.checked_shl(number as u32).map_or(u64::MAX, |bit| bit - 1);
    below(numbers.end) & !below(numbers.start)
}

#[cfg(test)]
mod tests {
    use super::super::blocks::Known;
    use super::super::hash;
    use super::super::sink::Sink;
    use super::super::write::Writer;
    use super::*;
    use std::collections::BTreeMap;
    use zerocopy::FromZeros;

    /// A file that a checkpoint is written to in place.
    struct InPlace(File, Option<Base>, u64);

    impl Sink for InPlace {
        fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
            self.2 += bytes.len() as u64;
            self.0.write_all_at(bytes, offset).because(unreadable)
        }

        fn base(&mut self) -> Option<Base> {
            self.1.take()
        }

        fn seal(&mut self, len: u64) -> Result<()> {
            self.0.set_len(len).because(unreadable)
        }
    }

    fn dice(state: &mut u64, below: u64) -> u64 {
        *state = hash(&state.to_le_bytes());
        *state % below
    }

    type Memory = BTreeMap<u64, u64>;

    /// Runs of pages within the windows of [`CHUNK_MAX`] bytes.
    fn runs(memory: &Memory) -> Vec<Vec<(u64, u64)>> {
        let mut all: Vec<Vec<(u64, u64)>> = Vec::new();
        for (page, content) in memory {
            match all.last_mut() {
                Some(run) if run[0].0 + run.len() as u64 == *page && page % 64 != 0 => {
                    run.push((*page, *content));
                }
                _ => all.push(vec![(*page, *content)]),
            }
        }
        all
    }

    fn page(content: u64) -> Vec<u8> {
        content.to_le_bytes().repeat(SIZE / 8)
    }

    /// Writes memory over a file, as who knows which pages differ, or not; bytes that were written.
    fn save(
        file: &File,
        path: &Path,
        memory: &Memory,
        differ: Option<&dyn Fn(u64) -> bool>,
    ) -> u64 {
        let base = Base::of(file, path, PAGE);
        let mut sink = InPlace(file.try_clone().unwrap(), base, 0);
        let base = sink.base();
        let known = base.is_some() && differ.is_some();
        let locked = base.as_ref().map(Base::with_locks).unwrap_or_default();
        let mut writer = Writer::new(&mut sink, vec![7; 100]).over(base);
        for run in runs(memory) {
            let is_same = |(page, _): &(u64, u64)| {
                known
                    && !differ.unwrap()(*page)
                    && !locked.iter().any(|it| it.contains(&(page * PAGE)))
            };
            for part in run.chunk_by(|one, other| is_same(one) == is_same(other)) {
                let address = part[0].0 * PAGE;
                if is_same(&part[0]) {
                    writer.keep(&(address..address + part.len() as u64 * PAGE));
                } else {
                    let bytes: Vec<u8> =
                        part.iter().flat_map(|(_, content)| page(*content)).collect();
                    let locks = u32::from(part[0].1 % 50 == 1);
                    let known = match address.is_multiple_of(3) {
                        true => Known::Sum(content_hash(&bytes)),
                        false => Known::Nothing,
                    };
                    writer.pieces(0, address, (&bytes, known), [0, locks], &[]).unwrap();
                }
            }
        }
        let borders = [300, 333, 520].map(|page| page * PAGE);
        writer.divide(if memory.len().is_multiple_of(2) { Vec::new() } else { borders.to_vec() });
        writer.content(0, 0, b"a file").unwrap();
        writer.records_of(0, SectionKind::Process, &[ProcessRecord::new_zeroed()]).unwrap();
        writer.bytes(SectionKind::Strings, &vec![9; memory.len() % 5000]).unwrap();
        writer.seal().unwrap();
        sink.2
    }

    #[test]
    fn a_file_that_is_brought_up_to_date_is_as_one_that_is_new() {
        let path = std::env::temp_dir().join(format!("ckpt-base-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.unwrap();
        std::fs::remove_file(&path).unwrap();
        let (mut memory, mut state) = (Memory::new(), 5);
        memory.extend((0..600).map(|page| (page, 1000 + page)));
        let mut renewed = 0;
        for round in 0..30 {
            let before = memory.clone();
            for _ in 0..dice(&mut state, 12) {
                let (first, len) = (dice(&mut state, 700), 1 + dice(&mut state, 30));
                let kind = dice(&mut state, 4);
                for page in first..first + if kind == 3 { 4 * len } else { len } {
                    match kind {
                        0 | 1 => _ = memory.insert(page, 1 + dice(&mut state, 1 << 40)),
                        2 => _ = memory.remove(&page),
                        _ => {}
                    }
                }
            }
            let differ =
                |page: u64| before.get(&page) != memory.get(&page) || page.is_multiple_of(17);
            let written = save(&file, &path, &memory, (round % 3 != 0).then_some(&differ));
            let image = Image::from_file(file.try_clone().unwrap(), &path).unwrap();
            image.verify().unwrap();
            let mut seen = Memory::new();
            for chunk in image.chunks().unwrap().iter().filter(|c| c.object == NO_OBJECT) {
                for (index, bytes) in image.read_chunk(chunk).unwrap().chunks(SIZE).enumerate() {
                    let content = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                    assert_eq!(bytes, page(content));
                    seen.insert(chunk.address / PAGE + index as u64, content);
                }
            }
            assert!(seen == memory, "round {round}");
            renewed += u64::from(written < memory.len() as u64 * PAGE / 2);
            assert!(image.header().file_len < 3 * memory.len() as u64 * PAGE + SLACK);
        }
        assert!(renewed > 10, "{renewed}");
    }
}
