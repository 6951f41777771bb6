// SPDX-License-Identifier: LGPL-2.1-only
//! Images of several processes: what the writer numbers the reader finds by the same number.

use super::golden::opened;
use super::write::Writer;
use crate::error::Result;
use ckpt_abi::image::{Object, ProcessRecord, SectionKind, Thread, WHOLE_IMAGE, needs};
use zerocopy::FromZeros;

const PIDS: [u32; 2] = [100, 200];

/// An image of a process for each number; all have memory at the same address.
fn made(numbers: &[u32]) -> Result<Vec<u8>> {
    let mut sink = Vec::new();
    let mut writer = Writer::new(&mut sink, vec![0; 64]);
    for (number, pid) in numbers.iter().zip(PIDS) {
        writer.memory(*number, 0x7000, &[pid as u8; 4096], [0, 0])?;
    }
    writer.content(0, 0, b"of both")?;
    for (number, pid) in numbers.iter().zip(PIDS) {
        let process = ProcessRecord { pid, ..ProcessRecord::new_zeroed() };
        writer.records_of(*number, SectionKind::Process, &[process])?;
        let threads = [pid, pid + 1].map(|tid| Thread { tid, ..Thread::new_zeroed() });
        writer.records_of(*number, SectionKind::Threads, &threads)?;
        writer.bytes_of(*number, SectionKind::Content, 5, &pid.to_le_bytes())?;
    }
    writer.records(SectionKind::Objects, &[Object::new_zeroed()])?;
    writer.bytes(SectionKind::Strings, b"")?;
    writer.seal()?;
    Ok(sink)
}

#[test]
fn each_process_has_its_own() {
    let image = opened(&made(&[0, 1]).unwrap()).unwrap();
    image.verify().unwrap();
    assert_eq!(image.header().needs, needs::PROCESSES);
    let chunks = image.chunks().unwrap();
    assert_eq!(image.processes().count(), 2);
    for (part, pid) in image.processes().zip(PIDS) {
        let process: ProcessRecord = part.record(SectionKind::Process).unwrap();
        let threads: Vec<Thread> = part.records(SectionKind::Threads).unwrap();
        assert_eq!((process.pid, threads[1].tid), (pid, pid + 1));
        assert_eq!(part.bytes(SectionKind::Content, 5).unwrap(), pid.to_le_bytes());
        let memory = part.memory(&chunks);
        assert_eq!(memory.iter().map(|c| c.address).collect::<Vec<_>>(), [0x7000]);
        assert_eq!(image.read_chunk(&memory[0]).unwrap(), [pid as u8; 4096]);
    }
    let stranger = image.process(2);
    assert!(stranger.memory(&chunks).is_empty());
    assert!(stranger.records::<Thread>(SectionKind::Threads).is_err());
    let shared: Vec<_> = chunks.iter().filter(|c| c.process == WHOLE_IMAGE).collect();
    assert_eq!(image.read_chunk(shared[0]).unwrap(), b"of both");
}

#[test]
fn one_process_needs_nothing_new_of_a_reader() {
    assert_eq!(opened(&made(&[0]).unwrap()).unwrap().header().needs, 0);
}

#[test]
fn an_index_with_gaps_is_refused() {
    for numbers in [[0, 2], [1, 2], [1, 1]] {
        assert!(opened(&made(&numbers).unwrap()).is_err(), "{numbers:?}");
    }
}

#[test]
fn sections_have_the_owner_that_their_kind_has() {
    let mut sink = Vec::new();
    let mut writer = Writer::new(&mut sink, vec![0; 64]);
    assert!(writer.records(SectionKind::Threads, &[Thread::new_zeroed()]).is_err());
    assert!(writer.bytes_of(0, SectionKind::Strings, 0, b"").is_err());
    let image = opened(&made(&[0, 1]).unwrap()).unwrap();
    assert!(image.records::<Thread>(SectionKind::Threads).is_err());
    assert!(image.process(0).records::<Object>(SectionKind::Objects).is_err());
}

#[test]
fn memory_of_no_process_is_refused() {
    let bytes = {
        let mut sink = Vec::new();
        let mut writer = Writer::new(&mut sink, vec![0; 64]);
        writer.memory(1, 0x7000, &[1; 4096], [0, 0]).unwrap();
        writer.records_of(0, SectionKind::Process, &[ProcessRecord::new_zeroed()]).unwrap();
        writer.bytes(SectionKind::Strings, b"").unwrap();
        writer.seal().unwrap();
        sink
    };
    assert!(opened(&bytes).and_then(|image| image.verify()).is_err());
}

#[test]
fn what_processes_have_in_common_lies_there_once() {
    let made = |common: bool, compressed: bool| {
        let mut sink = Vec::new();
        let writer = Writer::new(&mut sink, vec![0; 64]);
        let writer = if compressed { writer.compressed() } else { writer };
        let mut writer = if common { writer.of_several() } else { writer };
        for process in [0, 1] {
            let both = [[9; 4096], [8; 4096]].concat();
            writer.memory(process, 0x7000, &both, [0, 0]).unwrap();
            writer.memory(process, 0xa000, &[process as u8 + 1; 4096], [0, 0]).unwrap();
        }
        for process in [0, 1] {
            writer
                .records_of(process, SectionKind::Process, &[ProcessRecord::new_zeroed()])
                .unwrap();
        }
        writer.bytes(SectionKind::Strings, b"").unwrap();
        writer.seal().unwrap();
        sink
    };
    assert_eq!(made(false, false).len() - made(true, false).len(), 8192);
    for compressed in [false, true] {
        let image = opened(&made(true, compressed)).unwrap();
        image.verify().unwrap();
        let chunks = image.chunks().unwrap();
        for process in [0, 1] {
            let own = image.process(process).memory(&chunks);
            let all: Vec<u8> =
                own.iter().flat_map(|chunk| image.read_chunk(chunk).unwrap()).collect();
            assert_eq!(all, [[9; 4096], [8; 4096], [process as u8 + 1; 4096]].concat());
        }
    }
}

#[test]
fn a_part_of_what_was_compressed_is_found() {
    const PIECE: usize = 16 << 10;
    let page = |n: usize| [n as u8; 4096];
    let first: Vec<u8> = (0..16).flat_map(page).collect();
    let mut second = first.clone();
    second[PIECE + 100] = 99;
    for compressed in [false, true] {
        let mut sink = Vec::new();
        let writer = Writer::new(&mut sink, vec![0; 64]).of_several();
        let mut writer = if compressed { writer.compressed() } else { writer };
        for (process, memory) in [(0, &first), (1, &second)] {
            writer.memory(process, 0x40_0000, memory, [0, 0]).unwrap();
            writer.memory(process, 0x80_0000, &memory[2 * PIECE..], [0, 0]).unwrap();
        }
        for process in [0, 1] {
            writer
                .records_of(process, SectionKind::Process, &[ProcessRecord::new_zeroed()])
                .unwrap();
        }
        writer.bytes(SectionKind::Strings, b"").unwrap();
        writer.seal().unwrap();
        let image = opened(&sink).unwrap();
        image.verify().unwrap();
        let chunks = image.chunks().unwrap();
        for (process, memory) in [(0, &first), (1, &second)] {
            let own = image.process(process).memory(&chunks);
            let all: Vec<u8> =
                own.iter().flat_map(|chunk| image.read_chunk(chunk).unwrap()).collect();
            assert_eq!(all, [memory, &memory[2 * PIECE..]].concat());
        }
        let [zero, one] = [0, 1].map(|process| image.process(process).memory(&chunks));
        // What both have from the same place, and what only one has.
        let same: Vec<_> = one.iter().map(|c| c.origin() == zero[0].origin()).collect();
        assert_eq!(same, [true, false, true, false]);
        assert_eq!(one[3].origin(), zero[1].origin());
        assert_eq!(one[2].whole, if compressed { first.len() as u32 } else { 0 });
    }
}
