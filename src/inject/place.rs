// SPDX-License-Identifier: LGPL-2.1-only
//! Where things can lie in somebody else's address space.

use super::PAGE;
use super::elf::Payload;
use crate::error::{Error, Result};
use crate::proc::maps::Vma;
use crate::proc::{Process, Tid};
use crate::ptrace::memory::Memory;
use ckpt_abi::region::{HOLE_AREA, HOLE_LEN, RANGES, next_base};
use ckpt_loops::text::has_string;
use goblin::elf64::header::{ELFMAG, Header, SIZEOF_EHDR};
use goblin::elf64::section_header::{SHT_STRTAB, SectionHeader};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// A free base for a region of `len` bytes.
pub(crate) fn region(process: &Process, vmas: &[Vma], len: u64) -> Result<u64> {
    let places = std::iter::successors(Some(next_base(0, len)), |base| Some(next_base(*base, len)));
    let places = places.take_while(|base| *base != 0);
    let mut free =
        places.filter(|&base| !vmas.iter().any(|v| v.start < base + len && base < v.end));
    let [_, [low, low_end, _]] = RANGES;
    let found = match has_shadow(process) {
        true => free.find(|base| (low..low_end).contains(base)),
        false => free.next(),
    };
    found.ok_or_else(|| {
        Error::new(
            "the process has no free addresses at any of the places where ckpt's part of it could be",
        )
    })
}

/// Whether the program has a sanitizer with its own mind about addresses; a program that cannot be read has none.
fn has_shadow(process: &Process) -> bool {
    const MARKS: [&[u8]; 2] = [b"__tsan_init", b"__msan_init"];
    let Ok(file) = process.executable() else { return false };
    let tables = string_tables(&file).unwrap_or_default();
    tables.iter().any(|table| MARKS.iter().any(|mark| has_string(table, mark)))
}

/// The names of an executable's symbols: the string tables that its sections refer to.
fn string_tables(file: &File) -> Option<Vec<Vec<u8>>> {
    const LARGEST: u64 = 64 << 20;
    let read = |offset: u64, len: u64| {
        let mut bytes = vec![0; usize::try_from(len).ok().filter(|_| len <= LARGEST)?];
        file.read_exact_at(&mut bytes, offset).ok().map(|()| bytes)
    };
    let header = *Header::from_bytes(read(0, SIZEOF_EHDR as u64)?.first_chunk()?);
    let (size, count) = (size_of::<SectionHeader>(), usize::from(header.e_shnum));
    if !header.e_ident.starts_with(ELFMAG) || usize::from(header.e_shentsize) != size {
        return None;
    }
    let headers = read(header.e_shoff, (size * count) as u64)?;
    let headers = SectionHeader::from_bytes(&headers, count);
    let tables = headers.iter().filter(|section| section.sh_type == SHT_STRTAB);
    Some(tables.filter_map(|table| read(table.sh_offset, table.sh_size)).collect())
}

/// A place for a thread to work for us in a process that has no payload yet: the zeros between the end of an executable
/// mapping's content and the end of its page, which nobody executes or reads.
///
/// Should we die, they stay as they are then: a thread may still be there, or in a handler that comes back to it.
/// So a hole is only ever made of zeros, and each maker makes its own.
pub(crate) struct Hole {
    /// Its address.
    pub addr: u64,
}

impl Hole {
    /// Finds room for a hole and puts its code there.
    pub(crate) fn make(tid: Tid, memory: &Memory, vmas: &[Vma]) -> Result<Self> {
        let hole = Payload::embedded()?.hole();
        let code = &hole[..HOLE_AREA as usize];
        let addr = padding(memory, vmas, code).ok_or_else(|| {
            Error::new(format!(
                "process {} has no executable memory in which ckpt could begin its work",
                memory.pid()
            ))
        })?;
        memory.write_forced(tid, addr, &hole)?;
        Ok(Self { addr })
    }

    /// Puts the zeros back; no thread may be in the hole any more.
    pub(crate) fn fill(self, memory: &Memory, tid: Tid) -> Result<()> {
        memory.write_forced(tid, self.addr, &[0; HOLE_LEN as usize])
    }
}

/// The vdso first, which is the kernel's, then the ends of files. Not memory that a program has made
/// executable itself, where a compiler may be about to write. In front of the holes of those that have died is room, too.
fn padding(memory: &Memory, vmas: &[Vma], code: &[u8]) -> Option<u64> {
    let executable = vmas
        .iter()
        .filter(|v| v.exec && v.read && !v.write && !v.shared)
        .filter(|v| v.name == "[vdso]" || v.inode != 0);
    executable.rev().find_map(|vma| {
        let mut tail = [0; PAGE as usize];
        memory.read(vma.end - PAGE, &mut tail).ok()?;
        room(&tail, code).map(|at| vma.end - PAGE + at as u64)
    })
}

/// Where a hole may begin in the last page of a mapping, behind as many zeros as no text's end has by chance.
fn room(tail: &[u8], code: &[u8]) -> Option<usize> {
    const APART: usize = 64;
    let mut at = (tail.len() - HOLE_LEN as usize) & !(APART - 1);
    loop {
        let before = at.checked_sub(APART)?;
        if tail[before..at + HOLE_LEN as usize].iter().all(|byte| *byte == 0) {
            return Some(at);
        }
        if !tail[at..].starts_with(code) {
            return None;
        }
        at = at.checked_sub(HOLE_LEN as usize)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_lie_in_front_of_each_other_in_zeros() {
        let code = Payload::embedded().unwrap().hole();
        let code = &code[..HOLE_AREA as usize];
        let mut tail = vec![0; PAGE as usize];
        tail[..2500].fill(0x90);
        let mut holes = Vec::new();
        while let Some(at) = room(&tail, code) {
            assert!(at >= 2500 + 64 && at.is_multiple_of(64), "{at}");
            assert!(tail[at..at + HOLE_LEN as usize].iter().all(|byte| *byte == 0));
            tail[at..at + code.len()].copy_from_slice(code);
            holes.push(at);
        }
        assert_eq!(holes.len(), (4096 - 2500 - 64) / HOLE_LEN as usize);
        assert_eq!(room(&[0x90; 4096], code), None);
    }
}
