// SPDX-License-Identifier: LGPL-2.1-only
//! The content of a file goes into the image a piece at a time, and its holes cost nothing.

use crate::error::{Because, Result};
use crate::image::write::Writer;
use crate::image::zeros::nonzero;
use crate::proc::sparse;
use crate::progress;
use crate::resource::sysv::calls::Attached;
use crate::resource::{Segment, Stream};
use ckpt_abi::image::CHUNK_MAX;
use nix::fcntl::OFlag;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const PAGE: usize = ckpt_abi::image::PAGE as usize;

/// Writes what a file of `size` bytes holds; `buffer` is room that is not needed meanwhile.
pub(super) fn write(
    writer: &mut Writer<'_>,
    stream: &Stream,
    size: u64,
    buffer: &mut Vec<u8>,
) -> Result<()> {
    if let Some(segment) = stream.segment {
        return attached(writer, stream.object, segment, size);
    }
    // Opening anew, also through /proc, leaves the target's offset alone.
    let file = open(&stream.path).because(|| "it cannot be opened again")?;
    for data in sparse::data(&file, size) {
        let mut at = data.start;
        while at < data.end {
            // Chunks end where those of the next checkpoint do.
            let border = (at + 1).next_multiple_of(CHUNK_MAX).min(data.end);
            buffer.resize((border - at) as usize, 0);
            let len = fill(&file, at, buffer).because(|| format!("at offset {at:#x}"))?;
            progress::add(len as u64);
            for (start, bytes) in nonzero(&buffer[..len]) {
                writer.content(stream.object, at + start as u64, bytes)?;
            }
            if len < buffer.len() {
                // Somebody else has cut it off.
                break;
            }
            at = border;
        }
    }
    buffer.resize(CHUNK_MAX as usize, 0);
    Ok(())
}

/// Writes what is in System V shared memory.
fn attached(writer: &mut Writer<'_>, object: u32, segment: Segment, size: u64) -> Result<()> {
    let memory = Attached::new(segment.id, size as usize, false)
        .because(|| format!("cannot map the System V shared memory {}", segment.id))?;
    let resident = if segment.whole { Vec::new() } else { memory.resident() };
    for (chunk, at) in
        memory.bytes().chunks(CHUNK_MAX as usize).zip((0u64..).step_by(CHUNK_MAX as usize))
    {
        progress::add(chunk.len() as u64);
        let there = |page: usize| resident.get(at as usize / PAGE + page).copied().unwrap_or(true);
        // To look at a page that is not there is to make it.
        let mut page = 0;
        while page * PAGE < chunk.len() {
            let from = page;
            let pages = chunk.len().div_ceil(PAGE);
            while page < pages && there(page) {
                page += 1;
            }
            let present = &chunk[from * PAGE..(page * PAGE).min(chunk.len())];
            for (start, bytes) in nonzero(present) {
                writer.content(object, at + (from * PAGE + start) as u64, bytes)?;
            }
            page += 1;
        }
    }
    Ok(())
}

/// Opens it so that its time of access stays, where it is ours (open(2), O_NOATIME).
fn open(path: &Path) -> std::io::Result<File> {
    let quietly = File::options().read(true).custom_flags(OFlag::O_NOATIME.bits()).open(path);
    quietly.or_else(|_| File::open(path))
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &File, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
