// SPDX-License-Identifier: LGPL-2.1-only
//! Putting the payload into a process, and finding it there.
//!
//! [`region`] finds and reads a payload that is there already; [`place`] finds room for a new one;
//! [`elf`] turns the embedded libckpt.so into the bytes for that room, [`library`] into a file for
//! linkers; [`launch`] starts a program with a payload in it; [`monitor`] starts the process that
//! takes periodic checkpoints, [`monitors`] finds those that run; [`turns`] says whose turn it is.

pub(crate) mod beforehand;
mod elf;
pub(crate) mod enter;
pub(crate) mod last;
pub(crate) mod launch;
pub(crate) mod library;
pub(crate) mod monitor;
pub(crate) mod monitors;
pub(crate) mod place;
pub(crate) mod region;
pub(crate) mod turns;

use crate::error::{Because, Error, Result};
use crate::fault::{Point, reach};
use crate::proc::Process;
use crate::proc::Tid;
use crate::proc::maps::Vma;
use crate::ptrace::call::Caller;
use crate::ptrace::memory::Memory;
use crate::ptrace::thread::StoppedThread;
use ckpt_abi::api::{API, Api};
use ckpt_abi::region::{
    Config, Control, HOLE_AREA, MAGIC, PAYLOAD, TURNS, Turns, UNFINISHED, VERSION, config_flag,
    is_base,
};

use nix::errno::Errno;
use nix::libc;
use region::Region;
use std::mem::offset_of;
use std::ops::Range;
use zerocopy::FromZeros;

/// Page size of x86-64.
pub(crate) const PAGE: u64 = 4096;

/// A configuration without a signal, which the next one to come may choose.
pub(crate) fn unsignalled(config: Config) -> Config {
    Config { asyncsig: 0, flags: config.flags | config_flag::SIGNAL_OPEN, ..config }
}

/// The code of a hole ([`place::Hole`]).
///
/// # Errors
/// This ckpt has no payload.
pub(crate) fn hole() -> Result<Vec<u8>> {
    let mut hole = elf::Payload::embedded()?.hole();
    hole.truncate(HOLE_AREA as usize);
    Ok(hole)
}

/// Size of the smallest huge page.
pub(crate) const HUGE_PAGE: u64 = 2 << 20;

/// Rounds up to whole pages.
pub(crate) fn pages(len: u64) -> u64 {
    len.next_multiple_of(PAGE)
}

/// Injects the payload through a stopped thread of the process that has the memory; `executable` is the file of this very
/// ckpt, which travels along.
///
/// # Errors
/// When the thread cannot map memory; what was mapped until then is unmapped again.
pub(crate) fn inject(
    thread: &mut StoppedThread,
    memory: &Memory,
    vmas: &[Vma],
    config: &Config,
    executable: &[u8],
) -> Result<Region> {
    let payload = elf::Payload::embedded()?;
    let [_, len] = places(payload, executable.len() as u64);
    let base = place::region(memory.process(), vmas, len)?;
    // Whoever dies before the signal is taken leaves a payload that says that it has none.
    let unsignalled = unsignalled(*config);
    let control = control(memory.process(), base, payload, executable.len() as u64, &unsignalled);
    let hole = place::Hole::make(thread.tid, memory, vmas)?;
    reach(Point::Borrowed);
    let region = Region { base, control };
    let injection = Injection { memory, payload, region, executable, config };
    let made = injection.make(thread, hole.addr, vmas);
    if made.is_err() {
        injection.undo(thread, hole.addr);
    }
    // Nobody may stand in the hole when it is filled.
    thread.take_back().because(|| format!("cannot give thread {} back", thread.tid))?;
    reach(Point::Injected);
    hole.fill(memory, thread.tid)?;
    made?;
    Region::read(memory, base)
}

/// How a region is mapped at first.
const WRITABLE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// A region that is being made.
struct Injection<'a> {
    memory: &'a Memory,
    payload: &'static elf::Payload,
    region: Region,
    executable: &'a [u8],
    config: &'a Config,
}

impl Injection<'_> {
    /// Maps and fills the region; all that the thread does for it, it does in the hole.
    fn make(&self, thread: &mut StoppedThread, hole: u64, vmas: &[Vma]) -> Result<()> {
        let (memory, Region { base, control }) = (self.memory, &self.region);
        let tid = thread.tid;
        let mut caller = Caller::in_hole(thread, memory, hole)?;
        unmap_unfinished(&mut caller, memory, vmas)?;
        map(&mut caller, *base, control.region_len, WRITABLE)?;
        reach(Point::Mapped);
        // Whoever finds the region must not take it for whole before it is.
        memory.put(*base, &Control { magic: UNFINISHED, ..*control })?;
        let entry = |at: usize, name| {
            memory.put(base + API + at as u64, &(base + PAYLOAD + self.payload.symbol(name)))
        };
        entry(offset_of!(Api, visit_entry), "ckpt_visit")?;
        entry(offset_of!(Api, socket_wait), "ckpt_socket_wait")?;
        entry(offset_of!(Api, suspended), "ckpt_suspended")?;
        entry(offset_of!(Api, rest), "ckpt_rest")?;
        self.lay_out(&mut caller, tid)?;
        self.copy_executable(&mut caller)?;
        let turns = [base + TURNS, PAGE, libc::MADV_WIPEONFORK as u64];
        caller.expect(
            libc::SYS_madvise,
            &turns,
            "cannot keep the payload's state from children",
        )?;
        let owner = memory.process().inner_pid().word();
        memory.put(base + TURNS + offset_of!(Turns, owner) as u64, &owner)?;
        memory.put(*base, &Control { owner, ..*control })?;
        reach(Point::Whole);
        let mut region = Region { base: *base, control: *control };
        region.configure(&mut caller, memory, self.config)
    }

    /// Copies the executable; into one huge page, if the kernel has one, which takes a tenth of the time.
    fn copy_executable(&self, caller: &mut Caller<'_>) -> Result<()> {
        let Region { base, control } = &self.region;
        let (at, len) = (base + control.exe_start, control.region_len - control.exe_start);
        if len == 0 {
            return Ok(());
        }
        // Of a kernel without them it is an error.
        caller.call(libc::SYS_madvise, &[at, len, libc::MADV_HUGEPAGE as u64])?;
        self.memory.write(at, self.executable)?;
        let protection = [at, len, libc::PROT_READ as u64];
        caller.expect(libc::SYS_mprotect, &protection, "cannot protect the payload").map(drop)
    }

    /// Lays the payload's segments out, what nobody writes to in one mapping: each call of the thread takes two stops. It is
    /// mapped executable and then written by its tracer: memory that is made executable later is refused in many a process
    /// (PR_SET_MDWE, prctl(2)).
    fn lay_out(&self, caller: &mut Caller<'_>, tid: Tid) -> Result<()> {
        let start = self.region.base + PAYLOAD;
        let image = self.payload.relocated(start);
        let all = self.payload.protections();
        let is_fixed = |(_, _, prot): &&(u64, u64, u64)| prot & libc::PROT_WRITE as u64 == 0;
        let mut fixed = all.iter().filter(is_fixed).map(|(at, len, _)| *at..at + len);
        let Some(first) = fixed.next() else { return Ok(()) };
        let Range { start: at, end } = fixed.fold(first, |all, next| all.start..next.end);
        debug_assert!(
            all.iter().filter(|it| !is_fixed(it)).all(|it| it.0 >= end || it.0 + it.1 <= at)
        );
        let prot = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let over = [start + at, end - at, prot, flags as u64, u64::MAX, 0];
        caller.expect(libc::SYS_mmap, &over, "cannot place the payload's code")?;
        let bytes = |at: u64, end: u64| &image[at as usize..end as usize];
        self.memory.write_forced(tid, start + at, bytes(at, end))?;
        let others = all.iter().filter(|it| !is_fixed(it));
        others
            .map(|(at, len, _)| (*at, at + len))
            .try_for_each(|(at, end)| self.memory.write(start + at, bytes(at, end)))
    }

    /// Removes what was mapped. Where that fails too it is UNFINISHED, and goes the next time.
    fn undo(&self, thread: &mut StoppedThread, hole: u64) {
        let Region { base, control } = self.region;
        let magic = self.memory.get::<[u8; 8]>(base);
        let there = magic.is_ok_and(|magic| [MAGIC, UNFINISHED].contains(&magic));
        if there && let Ok(mut caller) = Caller::in_hole(thread, self.memory, hole) {
            let _ = caller.call(libc::SYS_munmap, &[base, control.region_len]);
        }
    }
}

/// Where in a region the executable begins, and how long the region is. The executable has whole huge pages.
fn places(payload: &elf::Payload, exe_len: u64) -> [u64; 2] {
    let end = PAYLOAD + payload.memory_len();
    let exe_start = if exe_len == 0 { end } else { end.next_multiple_of(HUGE_PAGE) };
    [exe_start, exe_start + exe_len.next_multiple_of(HUGE_PAGE)]
}

fn control(
    process: &Process,
    base: u64,
    payload: &elf::Payload,
    exe_len: u64,
    config: &Config,
) -> Control {
    let [exe_start, region_len] = places(payload, exe_len);
    let at = |symbol| base + PAYLOAD + payload.symbol(symbol);
    Control {
        magic: MAGIC,
        version: VERSION,
        owner: process.pid().word(),
        region_len,
        payload_len: payload.memory_len(),
        exe_start,
        exe_len,
        thunk: at("ckpt_thunk"),
        clone_thunk: at("ckpt_clone_thunk"),
        handler: at("ckpt_handler"),
        restorer: at("ckpt_restorer"),
        run: at("ckpt_run"),
        standard: region::standard(process),
        config: *config,
        ..Control::new_zeroed()
    }
}

/// Removes what an injector that died in the middle has left.
fn unmap_unfinished(caller: &mut Caller<'_>, memory: &Memory, vmas: &[Vma]) -> Result<()> {
    for vma in vmas.iter().filter(|v| is_base(v.start)) {
        let Ok(found) = memory.get::<Control>(vma.start) else { continue };
        if found.magic == UNFINISHED {
            caller.call(libc::SYS_munmap, &[vma.start, found.region_len])?;
        }
    }
    Ok(())
}

/// Maps anonymous memory where nothing is. Before Linux 4.17 the address is only a hint.
fn map(caller: &mut Caller<'_>, at: u64, len: u64, prot: i32) -> Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let args = [at, len, prot as u64, flags as u64, u64::MAX, 0];
    let mapped = match caller.call(libc::SYS_mmap, &args)? {
        result if result >= 0 => result.cast_unsigned(),
        result => {
            let errno = Errno::from_raw(-result as i32);
            let error = Error::new(format!("cannot map what ckpt needs in it: {}", errno.desc()));
            // Its limit of all memory, of data, and, where all of it is locked (mlockall(2)), of that.
            return Err(match errno {
                Errno::ENOMEM | Errno::EAGAIN => error.hint(
                    "its limits of memory (ulimit -v, -d, -l) leave no room: raise them (prlimit(1)), or start it with `ckpt PROGRAM`; it goes on unharmed",
                ),
                _ => error,
            });
        }
    };
    if mapped != at {
        caller.call(libc::SYS_munmap, &[mapped, len])?;
        return Err(Error::new("cannot map the payload: its address is taken"));
    }
    Ok(())
}
