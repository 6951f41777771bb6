// SPDX-License-Identifier: LGPL-2.1-only
//! Images of this format that every later build has to read, in tests/golden, without a stub. Where the
//! format changes before it is released, `CKPT_GOLDEN=1 cargo test golden` writes the newest anew.

use super::read::Image;
use super::sink::Sink;
use super::strings::Strings;
use super::write::Writer;
use crate::error::Result;
use ckpt_abi::image::{
    CHUNK_MAX, Chunk, Codec, FORMAT, LossRecord, NO_OBJECT, Object, ObjectKind, ProcessRecord,
    SectionKind, Thread, WHOLE_IMAGE, needs,
};
use std::path::{Path, PathBuf};
use zerocopy::{FromZeros, IntoBytes};

/// A sink that takes an image front to back alone.
pub(super) struct Stream(pub(super) Vec<u8>);

impl Sink for Stream {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        assert_eq!(offset, self.0.len() as u64);
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn is_stream(&self) -> bool {
        true
    }

    fn seal(&mut self, len: u64) -> Result<()> {
        assert_eq!(len, self.0.len() as u64);
        Ok(())
    }
}

fn made(compressed: bool) -> Vec<u8> {
    let mut sink = Vec::new();
    make(&mut sink, compressed);
    sink
}

fn streamed(compressed: bool) -> Vec<u8> {
    let mut sink = Stream(Vec::new());
    make(&mut sink, compressed);
    sink.0
}

fn make(sink: &mut dyn Sink, compressed: bool) {
    fill(writer(sink), compressed);
}

pub(super) fn writer(sink: &mut dyn Sink) -> Writer<'_> {
    Writer::new(
        sink,
        b"\x7fELF and no stub, but as long as its header is.....................".to_vec(),
    )
}

pub(super) fn fill(writer: Writer<'_>, compressed: bool) {
    let mut writer = if compressed { writer.compressed() } else { writer };
    let mut strings = Strings::default();
    let page = [7u8; 4096];
    writer.memory(0, 0x7000, &page, [0, 0]).unwrap();
    writer.memory(0, 0x1000, &page, [2, 1]).unwrap();
    writer.content(0, 8192, b"the end of a file").unwrap();
    let process = ProcessRecord {
        pid: 4711,
        program: strings.add("golden"),
        generation: 3,
        ..ProcessRecord::new_zeroed()
    };
    let object = Object {
        kind: ObjectKind::Deleted as u32,
        mode: 0o100_644,
        size: 10_000,
        name: strings.add("/tmp/gone"),
        ..Object::new_zeroed()
    };
    writer.records_of(0, SectionKind::Process, &[process]).unwrap();
    let threads = [4711, 4712].map(|tid| Thread { tid, ..Thread::new_zeroed() });
    writer.records_of(0, SectionKind::Threads, &threads).unwrap();
    writer.records(SectionKind::Objects, &[object]).unwrap();
    writer.bytes_of(0, SectionKind::Content, 5, b"in a pipe").unwrap();
    writer.records(SectionKind::Losses, &[LossRecord { what: strings.add("a loss") }]).unwrap();
    writer.bytes(SectionKind::Strings, strings.bytes()).unwrap();
    writer.seal().unwrap();
}

pub(super) fn opened(bytes: &[u8]) -> Result<Image> {
    Image::from_source(Box::new(bytes.to_vec()), Path::new("golden"))
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

#[test]
fn images_of_all_times_are_read() {
    for (image, kind) in
        [(made(false), ""), (made(true), "-lz4"), (streamed(true), "-lz4-streamed")]
    {
        let newest = folder().join(format!("format-{FORMAT}{kind}.ckpt"));
        if std::env::var_os("CKPT_GOLDEN").is_some() {
            std::fs::write(&newest, image).unwrap();
        }
        assert!(newest.exists());
    }
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let image = Image::open(&path).unwrap();
        image.verify().unwrap();
        let compressed = path.to_str().unwrap().contains("lz4");
        let streamed = path.to_str().unwrap().contains("streamed");
        let needed = if compressed { needs::CODEC } else { 0 };
        let needed = needed | if streamed { needs::STREAMED } else { 0 };
        assert_eq!(image.header().needs, needed);
        let part = image.process(0);
        let process: ProcessRecord = part.record(SectionKind::Process).unwrap();
        assert_eq!((process.pid, process.generation), (4711, 3));
        assert_eq!(image.text(process.program), "golden");
        let threads: Vec<Thread> = part.records(SectionKind::Threads).unwrap();
        assert_eq!(threads.iter().map(|t| t.tid).collect::<Vec<_>>(), [4711, 4712]);
        let object: Object = image.record(SectionKind::Objects).unwrap();
        assert_eq!((object.size, object.mode), (10_000, 0o100_644));
        assert_eq!(part.bytes(SectionKind::Content, 5).unwrap(), b"in a pipe");
        let chunks = image.chunks().unwrap();
        let places: Vec<_> = chunks.iter().map(|c| (c.process, c.object, c.address)).collect();
        assert_eq!(
            places,
            [(0, NO_OBJECT, 0x1000), (0, NO_OBJECT, 0x7000), (WHOLE_IMAGE, 0, 8192)]
        );
        assert_eq!((chunks[0].first_lock, chunks[0].locks), (2, 1));
        let codecs =
            if compressed { [Codec::Lz4, Codec::Lz4, Codec::Plain] } else { [Codec::Plain; 3] };
        assert_eq!(chunks.iter().map(|c| c.codec).collect::<Vec<_>>(), codecs.map(|c| c as u32));
        assert_eq!(image.read_chunk(&chunks[1]).unwrap(), [7; 4096]);
        assert_eq!(image.read_chunk(&chunks[2]).unwrap(), b"the end of a file");
    }
}

#[test]
fn each_byte_counts() {
    [false, true].map(made).iter().for_each(|good| each_byte_counts_of(good));
    [false, true].map(streamed).iter().for_each(|good| each_byte_counts_of(good));
}

pub(super) fn each_byte_counts_of(good: &[u8]) {
    opened(good).unwrap().verify().unwrap();
    let pages_ends = |at: &usize| at % 4096 < 300 || at.is_multiple_of(13);
    for at in (0..good.len()).filter(pages_ends) {
        let mut bad = good.to_vec();
        bad[at] ^= 0x10;
        let verdict = opened(&bad).and_then(|image| image.verify());
        assert!(verdict.is_err(), "byte {at:#x} does not count");
    }
    for len in (0..good.len()).rev().step_by(61) {
        let verdict = opened(&good[..len]).and_then(|image| image.verify());
        assert!(verdict.is_err(), "cut off at {len}");
    }
}

/// The image with one of its chunks changed, and every checksum right.
fn forged(compressed: bool, change: impl Fn(&mut [Chunk])) -> Vec<u8> {
    let mut bytes = made(compressed);
    let image = opened(&bytes).unwrap();
    let mut chunks = image.chunks().unwrap();
    change(&mut chunks);
    let section = image.place(SectionKind::Chunks);
    let at = section.offset as usize;
    let records = chunks.as_bytes();
    bytes[at..at + records.len()].copy_from_slice(records);
    image.with_checksums(&mut bytes, SectionKind::Chunks);
    bytes
}

#[test]
fn forged_chunks_are_refused() {
    let verdict = |compressed, change: fn(&mut [Chunk])| {
        opened(&forged(compressed, change)).and_then(|image| image.verify())
    };
    for compressed in [false, true] {
        verdict(compressed, |_| {}).unwrap();
    }
    let changes: [fn(&mut [Chunk]); 7] = [
        |c| c[1].address = c[0].address,
        |c| c[0].address += 1,
        |c| c[0].len = u32::MAX,
        |c| c[2].stored = CHUNK_MAX as u32,
        |c| c[1].offset = c[0].offset,
        |c| c[0].offset = u64::MAX - 100,
        |c| c[0].codec = 9,
    ];
    for (number, change) in changes.iter().enumerate() {
        assert!(verdict(false, *change).is_err(), "change {number}");
        assert!(verdict(true, *change).is_err(), "change {number} of a compressed one");
    }
    let changes: [fn(&mut [Chunk]); 6] = [
        |c| c[0].codec = 0,
        |c| c[0].whole = 8192,
        |c| (c[0].whole, c[0].skip) = (8192, 4097),
        |c| (c[0].whole, c[0].skip) = (u32::MAX, u32::MAX - 4095),
        |c| c[0].skip = 4096,
        |c| c[0].len = 8192,
    ];
    for (number, change) in changes.iter().enumerate() {
        assert!(verdict(true, *change).is_err(), "change {number} of a block");
    }
}
