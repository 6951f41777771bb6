//! Where things can lie in somebody else's address space.

use super::elf::Payload;
use crate::error::{Error, Result};
use crate::proc::maps::Vma;
use crate::ptrace::memory::Memory;
use ckpt_abi::region::{HOLE_LEN, SEARCH_END, SEARCH_START, SEARCH_STEP};

/// A free base for a region of `len` bytes.
pub fn region(vmas: &[Vma], len: u64) -> Result<u64> {
    let mut base = SEARCH_START;
    while base + len <= SEARCH_END {
        if !vmas.iter().any(|v| v.start < base + len && base < v.end) {
            return Ok(base);
        }
        base += SEARCH_STEP;
    }
    Err(Error::new(
        "the process has no free addresses at any of the places where ckpt's part of it could be",
    ))
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
