// SPDX-License-Identifier: LGPL-2.1-only
//! Encrypted images, as somebody changes them who knows the format and makes every checksum right, but has no key.

use super::golden::{Stream, each_byte_counts_of, fill, opened, writer};
use super::key;
use super::seal::{Keys, Master, Seal};
use super::sink::Sink;
use crate::settings::server::Key;
use ckpt_abi::image::{Chunk, Codec, Header, SectionKind};
use std::mem::offset_of;

#[test]
fn without_the_key_nothing_can_be_changed() {
    let path = std::env::temp_dir().join(format!("ckpt-forged-{}", std::process::id()));
    key::make(&path).unwrap();
    Keys { file: Some(path.clone()), may_ask: false }.hold();
    let master = Master::of(&Key::Said(path.clone())).unwrap();
    let seal = |sink: &mut dyn Sink, compressed| {
        fill(writer(sink).sealed(Seal::begin(&master).unwrap()), compressed);
    };
    let (mut good, mut other, mut stream) = (Vec::new(), Vec::new(), Stream(Vec::new()));
    seal(&mut good, false);
    seal(&mut other, false);
    seal(&mut stream, true);
    for image in [&good, &stream.0] {
        assert!(!image.windows(17).any(|bytes| bytes == b"the end of a file"));
        assert!(!image.windows(6).any(|bytes| bytes == b"a loss"));
        each_byte_counts_of(image);
    }
    no_number_is_twice(&good, &other);
    forgeries_are_refused(&good, &other);
    // Whoever has another key.
    std::fs::remove_file(&path).unwrap();
    key::make(&path).unwrap();
    let image = opened(&good).unwrap();
    let why = image.locked().unwrap().to_string();
    assert!(why.contains("encrypted with another key"), "{why}");
    assert!(image.chunks().is_err() && image.verify().is_err());
    image.verify_sums().unwrap();
    std::fs::remove_file(path).unwrap();
}

fn stored<'a>(image: &'a [u8], chunk: &Chunk) -> &'a [u8] {
    &image[chunk.offset as usize..][..chunk.stored as usize]
}

fn no_number_is_twice(good: &[u8], other: &[u8]) {
    let images = [good, other].map(|bytes| opened(bytes).unwrap());
    let salts = images.each_ref().map(|image| image.header().seal_salt);
    assert_ne!(salts[0], salts[1]);
    let chunks = images[0].chunks().unwrap();
    let mut blocks: Vec<_> = chunks.iter().map(|chunk| chunk.block).collect();
    blocks.sort_unstable();
    assert_eq!(blocks, [0, 1, 2]);
    let [first, second] = [0, 1].map(|at| stored(good, &chunks[at]));
    assert_eq!(
        images[0].read_chunk(&chunks[0]).unwrap(),
        images[0].read_chunk(&chunks[1]).unwrap()
    );
    assert_ne!(first, second);
    assert_ne!(first, stored(other, &chunks[0]));
    // As it would be swapped, repeated, or taken from another image with the same key.
    let seal = images[0].opener().unwrap().unwrap();
    let opens = |chunk: &Chunk, stored: &[u8]| {
        let mut piece = stored.to_vec();
        let opened = seal.open_block(chunk, &mut piece).is_some();
        assert!(opened || piece == stored);
        opened
    };
    let [one, two] = [chunks[0], chunks[1]];
    assert!(opens(&one, first) && opens(&two, second));
    assert!(!opens(&two, first) && !opens(&one, second));
    assert!(!opens(&Chunk { block: two.block, ..one }, first));
    assert!(!opens(&one, stored(other, &one)));
    assert!(!opens(&images[1].chunks().unwrap()[0], first));
    assert!(!opens(&Chunk { codec: Codec::SealedLz4 as u32, ..one }, first));
    assert!(!opens(&Chunk { tag: one.tag ^ 1, ..one }, first));
    assert!(!opens(&Chunk { hash: one.hash ^ 1, ..one }, first));
    assert!(!opens(&one, &first[..first.len() - 1]));
}

/// What somebody does to a file.
type Change<'a> = dyn Fn(&mut [u8]) + 'a;

fn forgeries_are_refused(good: &[u8], other: &[u8]) {
    let image = opened(good).unwrap();
    let head = image.header().start as usize;
    let table = image.place(SectionKind::Chunks);
    let (at, len) = (table.offset as usize, table.len as usize + 16);
    let forged = |change: &Change<'_>| {
        let mut bytes = good.to_vec();
        change(&mut bytes);
        image.with_checksums(&mut bytes, SectionKind::Chunks);
        opened(&bytes).and_then(|image| image.verify())
    };
    forged(&|_| {}).unwrap();
    let changes: [&Change<'_>; 7] = [
        // The executable in front, the head, and the table of chunks.
        &|bytes| bytes[20] ^= 1,
        &|bytes| bytes[head + offset_of!(Header, run)] ^= 1,
        &|bytes| bytes[head + offset_of!(Header, seal_salt)] ^= 1,
        &|bytes| bytes[head + 3000] ^= 1,
        &|bytes| bytes[at] ^= 1,
        &|bytes| bytes[at..at + len].copy_from_slice(&other[at..at + len]),
        // All but the content.
        &|bytes| {
            bytes[head..head + 4096].copy_from_slice(&other[head..head + 4096]);
            bytes[at..].copy_from_slice(&other[at..]);
        },
    ];
    for (number, change) in changes.iter().enumerate() {
        assert!(forged(change).is_err(), "change {number}");
    }
}
