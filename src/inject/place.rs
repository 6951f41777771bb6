// SPDX-License-Identifier: LGPL-2.1-only
//! Where things can lie in somebody else's address space.

use super::elf::Payload;
use crate::error::{Error, Result};
use crate::proc::maps::Vma;
use crate::ptrace::memory::Memory;
use ckpt_abi::region::{HOLE_LEN, RANGES, next_base};

/// A free base for a region of `len` bytes.
pub fn region(pid: i32, vmas: &[Vma], len: u64) -> Result<u64> {
    let places = std::iter::successors(Some(next_base(0, len)), |base| Some(next_base(*base, len)));
    let places = places.take_while(|base| *base != 0);
    let mut free =
        places.filter(|&base| !vmas.iter().any(|v| v.start < base + len && base < v.end));
    let [_, [low, low_end, _]] = RANGES;
    let found = match has_shadow(pid) {
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
fn has_shadow(pid: i32) -> bool {
    const MARKS: [&str; 2] = ["__tsan_init", "__msan_init"];
    const LARGEST: u64 = 64 << 20;
    let path = format!("/proc/{pid}/exe");
    if std::fs::metadata(&path).map_or(true, |meta| meta.len() > LARGEST) {
        return false;
    }
    let Ok(file) = std::fs::read(path) else { return false };
    let Ok(elf) = goblin::elf::Elf::parse(&file) else { return false };
    let named = |symbols: &goblin::elf::Symtab<'_>, names: &goblin::strtab::Strtab<'_>| {
        symbols.iter().any(|s| names.get_at(s.st_name).is_some_and(|n| MARKS.contains(&n)))
    };
    named(&elf.dynsyms, &elf.dynstrtab) || named(&elf.syms, &elf.strtab)
}

/// A place for a thread to work for us in a process that has no payload yet: the zeros between the end of an executable
/// mapping's content and the end of its page, which nobody executes or reads.
///
/// Should we die, they stay as they are then: a thread may still be there, or in a handler that comes back to it.
/// So a hole is only ever made of zeros, and each maker makes its own.
pub struct Hole {
    /// Its address.
    pub addr: u64,
}

impl Hole {
    /// Finds room for a hole and puts its code there.
    pub fn make(tid: i32, memory: &Memory, vmas: &[Vma], pid: i32) -> Result<Self> {
        let addr = padding(memory, vmas).ok_or_else(|| {
            Error::new(format!(
                "process {pid} has no executable memory in which ckpt could begin its work"
            ))
        })?;
        memory.write_forced(tid, addr, &Payload::embedded()?.hole())?;
        Ok(Self { addr })
    }

    /// Puts the zeros back; no thread may be in the hole any more.
    pub fn fill(self, memory: &Memory, tid: i32) -> Result<()> {
        memory.write_forced(tid, self.addr, &[0; HOLE_LEN as usize])
    }
}

/// The vdso first, which is the kernel's, then the ends of files. Not memory that a program has made
/// executable itself, where a compiler may be about to write.
fn padding(memory: &Memory, vmas: &[Vma]) -> Option<u64> {
    const ROOM: usize = HOLE_LEN as usize + 64;
    let executable = vmas
        .iter()
        .filter(|v| v.exec && v.read && !v.write && !v.shared)
        .filter(|v| v.name == "[vdso]" || v.inode != 0);
    executable.rev().find_map(|vma| {
        let mut tail = [0; ROOM];
        memory.read(vma.end - ROOM as u64, &mut tail).ok()?;
        tail.iter().all(|b| *b == 0).then_some((vma.end - HOLE_LEN) & !63)
    })
}
