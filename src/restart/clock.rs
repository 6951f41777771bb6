//! CLOCK_MONOTONIC on another machine, or after a boot.
//!
//! It counts from the boot, so a deadline that the program has computed may lie days ahead here, or
//! be long gone. With privilege the program gets a time namespace in which the clock goes on from its
//! saved value (time_namespaces(7)). Without, what ckpt itself gives back is shifted: the notes about
//! interrupted waits, and the absolute deadlines of waits that are going on. Deadlines that lie
//! elsewhere in the program's memory cannot be known.
//!
//! # Safety
//! Memory is read and written through slices of mappings that nobody else uses meanwhile.
#![allow(unsafe_code)]

use super::machine::capable;
use super::phase1_check::Saved;
use super::phase3_fill::Placed;
use crate::error::{Because, Result};
use crate::proc;
use crate::ptrace::regs::Regs;
use crate::ptrace::waits;
use crate::resource::threads;
use ckpt_abi::region::{WAIT_COUNT, WAITS, Wait};
use nix::libc;
use nix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use zerocopy::{FromZeros, IntoBytes};

const CAP_SYS_ADMIN: u32 = 21;
const CLONE_NEWTIME: i32 = 0x80;
const SECOND: i64 = 1_000_000_000;

/// By how many nanoseconds the clocks of the program (CLOCK_MONOTONIC, CLOCK_BOOTTIME) are ahead of
/// this machine's; None where they are the same clocks.
fn ahead(saved: &Saved) -> Result<Option<[i64; 2]>> {
    let (there, here) = (saved.machine.boot, proc::boot(std::process::id().cast_signed()));
    if there == 0 || here == 0 || there == here {
        return Ok(None);
    }
    let now = |clock| -> Result<i64> {
        let time = clock_gettime(clock).because(|| "cannot read a clock")?;
        Ok(time.tv_sec() * SECOND + time.tv_nsec())
    };
    let ahead = |saved: u64, clock| Ok(saved.cast_signed().saturating_sub(now(clock)?));
    Ok(Some([
        ahead(saved.machine.monotonic, ClockId::CLOCK_MONOTONIC)?,
        ahead(saved.machine.boottime, ClockId::CLOCK_BOOTTIME)?,
    ]))
}

/// Lets the clocks go on from their saved values, where this process may; it must have one thread.
/// True when they do, or always did.
pub fn enter_namespace(saved: &Saved) -> Result<bool> {
    let Some(ahead) = ahead(saved)? else { return Ok(true) };
    if !capable(CAP_SYS_ADMIN) || !std::path::Path::new("/proc/self/ns/time").exists() {
        return Ok(false);
    }
    // The offsets are those from the first namespace's clocks.
    let own = proc::clock_offsets(std::process::id().cast_signed());
    // SAFETY: changes the namespace of children only.
    if unsafe { libc::unshare(CLONE_NEWTIME) } != 0 {
        return Ok(false);
    }
    let line = |name: &str, i: usize| {
        let offset = own[i].saturating_add(ahead[i]);
        format!("{name} {} {}\n", offset.div_euclid(SECOND), offset.rem_euclid(SECOND))
    };
    let text = line("monotonic", 0) + &line("boottime", 1);
    let written = File::options()
        .write(true)
        .open("/proc/self/timens_offsets")
        .and_then(|mut file| file.write_all(text.as_bytes()));
    if written.is_err() {
        return Ok(false);
    }
    let Ok(namespace) = File::open("/proc/self/ns/time_for_children") else { return Ok(false) };
    // SAFETY: enters the namespace that was just made; memory is as before but for the vdso's data.
    Ok(unsafe { libc::setns(namespace.as_raw_fd(), CLONE_NEWTIME) } == 0)
}

/// Shifts what ckpt gives back itself to this machine's clock, where [`enter_namespace`] could not.
pub fn shift(saved: &mut Saved, placed: &mut [Placed]) -> Result<()> {
    let Some([ahead, _]) = ahead(saved)? else { return Ok(()) };
    let base = saved.process.region + WAITS;
    let mut notes = vec![Wait::new_zeroed(); WAIT_COUNT as usize];
    if !read(placed, base, notes.as_mut_bytes()) {
        return Ok(());
    }
    for note in notes.iter_mut().filter(|n| n.tid != 0 && n.deadline != u64::MAX) {
        note.deadline = note.deadline.saturating_add_signed(ahead.saturating_neg());
    }
    for thread in &mut saved.threads {
        let mut regs = threads::regs(thread);
        let Some(argument) = absolute(&regs) else { continue };
        let pointer = waits::arguments(&regs)[argument];
        let mut time = [0u64; 2];
        // A slot that no note needs holds the new deadline.
        let Some(free) = notes.iter().position(|n| n.tid == 0) else { continue };
        if pointer == 0 || !read(placed, pointer, time.as_mut_bytes()) {
            continue;
        }
        let deadline = time[0].saturating_mul(SECOND as u64).saturating_add(time[1]);
        let deadline = deadline.saturating_add_signed(ahead.saturating_neg());
        notes[free].left = [deadline / SECOND as u64, deadline % SECOND as u64];
        (notes[free].tid, notes[free].deadline) = (thread.tid, u64::MAX);
        waits::set_argument(&mut regs, argument, base + (free * size_of::<Wait>()) as u64);
        thread.regs.as_mut_bytes().copy_from_slice(regs.as_bytes());
    }
    if let Some(home) = placed.iter_mut().find(|p| p.record.start == saved.process.region) {
        home.mapping.write(WAITS, notes.as_bytes())?;
    }
    Ok(())
}

/// Which argument points to the absolute deadline, on CLOCK_MONOTONIC, of a wait that is about to
/// begin anew.
fn absolute(regs: &Regs) -> Option<usize> {
    const FUTEX_WAIT_BITSET: u64 = 9;
    const FUTEX_LOCK_PI2: u64 = 13;
    const FUTEX_PRIVATE: u64 = 128;
    const TIMER_ABSTIME: u64 = 1;
    const MONOTONIC: u64 = libc::CLOCK_MONOTONIC as u64;
    match regs.rax.cast_signed() {
        // With FUTEX_CLOCK_REALTIME, which is another bit, the deadline is on the other clock.
        libc::SYS_futex => {
            let command = regs.rsi & !FUTEX_PRIVATE;
            matches!(command, FUTEX_WAIT_BITSET | FUTEX_LOCK_PI2).then_some(3)
        }
        libc::SYS_clock_nanosleep if regs.rdi == MONOTONIC => {
            (regs.rsi & TIMER_ABSTIME != 0).then_some(3 - 1)
        }
        _ => None,
    }
}

fn read(placed: &[Placed], addr: u64, bytes: &mut [u8]) -> bool {
    let home = placed.iter().find(|p| (p.record.start..p.record.end).contains(&addr));
    let slice = home.and_then(|home| {
        // SAFETY: the mapping is readable until `finish`, and no other slice of it is alive.
        unsafe { home.mapping.slice(addr - home.record.start, bytes.len() as u64) }
    });
    slice.map(|slice| bytes.copy_from_slice(slice)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_waits_are_recognised() {
        let call =
            |rax: i64, rdi, rsi| Regs { rax: rax.cast_unsigned(), rdi, rsi, ..Regs::default() };
        assert_eq!(absolute(&call(libc::SYS_futex, 0, 137)), Some(3));
        assert_eq!(absolute(&call(libc::SYS_futex, 0, 137 | 256)), None);
        assert_eq!(absolute(&call(libc::SYS_futex, 0, 128)), None);
        assert_eq!(absolute(&call(libc::SYS_clock_nanosleep, 1, 1)), Some(2));
        assert_eq!(absolute(&call(libc::SYS_clock_nanosleep, 0, 1)), None);
        assert_eq!(absolute(&call(libc::SYS_clock_nanosleep, 1, 0)), None);
        assert_eq!(absolute(&call(libc::SYS_read, 1, 1)), None);
    }
}
