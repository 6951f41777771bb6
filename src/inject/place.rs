//! Where things can lie in somebody else's address space.

use super::elf::Payload;
use crate::error::{Error, Result};
use crate::proc;
use crate::proc::maps::Vma;
use crate::ptrace::memory::Memory;
use ckpt_abi::region::{SEARCH_END, SEARCH_START, SEARCH_STEP, THUNK_LEN};

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

/// A place for a thunk in a process that has no payload yet: bytes of an executable mapping that
/// nothing executes, mostly the zeros between the end of a text segment and the end of its page.
pub struct Hole {
    /// Address of the thunk.
    pub addr: u64,
    before: Vec<u8>,
}

impl Hole {
    /// Finds a hole and puts the thunk into it.
    pub fn make(tid: i32, memory: &Memory, vmas: &[Vma], pid: i32) -> Result<Self> {
        let addr = padding(memory, vmas).or_else(|| entry(pid)).ok_or_else(|| {
            Error::new(format!(
                "process {pid} has no executable memory in which ckpt could begin its work"
            ))
        })?;
        let mut before = vec![0; THUNK_LEN as usize];
        memory.read(addr, &mut before)?;
        memory.write_forced(tid, addr, &Payload::embedded()?.thunk())?;
        Ok(Self { addr, before })
    }

    /// Puts back what was there; no thread may be in the thunk any more.
    pub fn fill(self, memory: &Memory, tid: i32) -> Result<()> {
        memory.write_forced(tid, self.addr, &self.before)
    }
}

fn padding(memory: &Memory, vmas: &[Vma]) -> Option<u64> {
    const ROOM: usize = THUNK_LEN as usize + 64;
    let executable =
        vmas.iter().filter(|v| v.exec && v.read && !v.shared && v.name != "[vsyscall]");
    executable.rev().find_map(|vma| {
        let mut tail = [0; ROOM];
        memory.read(vma.end - ROOM as u64, &mut tail).ok()?;
        tail.iter().all(|b| *b == 0).then_some((vma.end - THUNK_LEN) & !63)
    })
}

/// The program's entry point, whose code has run and does not run again. The pages around it may
/// hold code that other threads run, so this is the second choice.
fn entry(pid: i32) -> Option<u64> {
    const AT_ENTRY: u64 = 9;
    proc::auxv_value(&proc::auxv(pid).ok()?, AT_ENTRY)
}
