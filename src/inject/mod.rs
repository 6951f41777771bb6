//! Putting the payload into a process, and finding it there.
//!
//! [`region`] finds and reads a payload that is there already; [`place`] finds room for a new one;
//! [`elf`] turns the embedded libckpt.so into the bytes for that room, [`library`] into a file for
//! linkers; [`launch`] starts a program with a payload in it; [`monitor`] starts the process that
//! takes periodic checkpoints.

pub mod elf;
pub mod launch;
pub mod library;
pub mod monitor;
pub mod place;
pub mod region;

use crate::error::Result;
use crate::fault::{Point, reach};
use crate::proc::maps::Vma;
use crate::ptrace::call::Caller;
use crate::ptrace::memory::Memory;
use crate::ptrace::thread::Thread;
use ckpt_abi::ABI_VERSION;
use ckpt_abi::api::{API, Api};
use ckpt_abi::region::{Config, Control, MAGIC, PAYLOAD, SEARCH_END, SEARCH_START, UNFINISHED};

use nix::libc;
use region::Region;
use std::mem::offset_of;
use zerocopy::FromZeros;

/// Page size of x86-64.
pub const PAGE: u64 = 4096;

/// Rounds up to whole pages.
pub fn pages(len: u64) -> u64 {
    len.next_multiple_of(PAGE)
}

/// Injects the payload through a stopped thread of `pid`; `executable` is the file of this very
/// ckpt, which travels along.
///
/// # Errors
/// When the thread cannot map memory; what was mapped until then is unmapped with the process.
pub fn inject(
    pid: i32,
    thread: &mut Thread,
    memory: &Memory,
    vmas: &[Vma],
    config: &Config,
    executable: &[u8],
) -> Result<Region> {
    let payload = elf::Payload::embedded()?;
    let base =
        place::region(vmas, PAYLOAD + payload.memory_len() + pages(executable.len() as u64))?;
    let control = control(pid, base, &payload, executable.len() as u64, config);
    let hole = place::Hole::make(thread.tid, memory, vmas, pid)?;
    reach(Point::Borrowed);
    let mapped = unmap_unfinished(thread, memory, hole.addr, vmas)
        .and_then(|()| map(thread, memory, hole.addr, base, &control));
    if let Err(e) = mapped {
        hole.fill(memory, thread.tid)?;
        return Err(e);
    }
    reach(Point::Mapped);
    // Whoever finds the region must not take it for whole before it is.
    memory.put(base, &Control { magic: UNFINISHED, ..control })?;
    let entry = |at: usize, name| {
        memory.put(base + API + at as u64, &(base + PAYLOAD + payload.symbol(name)))
    };
    entry(offset_of!(Api, visit_entry), "ckpt_visit")?;
    entry(offset_of!(Api, socket_wait), "ckpt_socket_wait")?;
    entry(offset_of!(Api, suspended), "ckpt_suspended")?;
    memory.write(base + PAYLOAD, &payload.relocated(base + PAYLOAD))?;
    memory.write(base + control.exe_start, executable)?;
    let mut caller = protect(thread, memory, hole.addr, base, &payload, &control)?;
    memory.put(base, &control)?;
    let region = Region { base, control };
    region.take_signal(&mut caller, memory)?;
    reach(Point::Injected);
    hole.fill(memory, thread.tid)?;
    Region::read(memory, base)
}

fn control(pid: i32, base: u64, payload: &elf::Payload, exe_len: u64, config: &Config) -> Control {
    let exe_start = PAYLOAD + payload.memory_len();
    let at = |symbol| base + PAYLOAD + payload.symbol(symbol);
    Control {
        magic: MAGIC,
        abi_version: ABI_VERSION,
        owner: pid.cast_unsigned(),
        region_len: exe_start + pages(exe_len),
        payload_len: payload.memory_len(),
        exe_start,
        exe_len,
        thunk: at("ckpt_thunk"),
        clone_thunk: at("ckpt_clone_thunk"),
        handler: at("ckpt_handler"),
        restorer: at("ckpt_restorer"),
        run: at("ckpt_run"),
        standard: region::standard(pid),
        config: *config,
        ..Control::new_zeroed()
    }
}

/// Removes what an injector that died in the middle has left.
fn unmap_unfinished(thread: &mut Thread, memory: &Memory, thunk: u64, vmas: &[Vma]) -> Result<()> {
    for vma in vmas.iter().filter(|v| (SEARCH_START..SEARCH_END).contains(&v.start)) {
        let Ok(found) = memory.get::<Control>(vma.start) else { continue };
        if found.magic == UNFINISHED {
            let mut caller = Caller::new(thread, memory, thunk)?;
            caller.call(libc::SYS_munmap, &[vma.start, found.region_len])?;
        }
    }
    Ok(())
}

fn map(
    thread: &mut Thread,
    memory: &Memory,
    thunk: u64,
    base: u64,
    control: &Control,
) -> Result<()> {
    debug_assert!(base >= SEARCH_START);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let args = [base, control.region_len, prot as u64, flags as u64, u64::MAX, 0];
    let mut caller = Caller::new(thread, memory, thunk)?;
    caller.expect(libc::SYS_mmap, &args, "cannot map the payload")?;
    Ok(())
}

/// Gives each part of the region its protection and moves the thread from the hole to the
/// payload's own thunk.
fn protect<'a>(
    thread: &'a mut Thread,
    memory: &Memory,
    hole: u64,
    base: u64,
    payload: &elf::Payload,
    control: &Control,
) -> Result<Caller<'a>> {
    let what = "cannot protect the payload";
    let mut caller = Caller::new(thread, memory, hole)?;
    for (start, len, prot) in payload.protections() {
        let args = [base + PAYLOAD + start, len, prot];
        caller.expect(libc::SYS_mprotect, &args, what)?;
    }
    let exe = [base + control.exe_start, pages(control.exe_len), libc::PROT_READ as u64];
    caller.expect(libc::SYS_mprotect, &exe, what)?;
    Caller::new(thread, memory, control.thunk)
}
