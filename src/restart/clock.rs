// SPDX-License-Identifier: LGPL-2.1-only
//! CLOCK_MONOTONIC on another machine, or after a boot.
//!
//! It counts from the boot, so a deadline that the program has computed may lie days ahead here, or
//! be long gone. With privilege the program gets a time namespace in which the clock goes on from its
//! saved value (time_namespaces(7)). Without, what ckpt itself gives back is shifted: the notes about
//! interrupted waits, and the absolute deadlines of waits that are going on. Deadlines that lie
//! elsewhere in the program's memory cannot be known.
//!
//! # Safety
//! The two calls change namespaces of this process alone.
#![allow(unsafe_code)]

use super::machine::capable;
use super::phase1_check::Saved;
use super::phase3_fill::{Placed, read, write};
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
    let Some(ahead) = ahead(saved)? else { return Ok(()) };
    let base = saved.process.region + WAITS;
    let mut notes = vec![Wait::new_zeroed(); WAIT_COUNT as usize];
    if !read(placed, base, notes.as_mut_bytes()) {
        return Ok(());
    }
    for note in notes.iter_mut().filter(|n| n.tid != 0 && n.deadline != u64::MAX) {
        note.deadline = note.deadline.saturating_add_signed(ahead[0].saturating_neg());
    }
    for thread in &mut saved.threads {
        let mut regs = threads::regs(thread);
        let Some((argument, clock)) = absolute(&regs) else { continue };
        let pointer = waits::arguments(&regs)[argument];
        let mut time = [0u64; 2];
        // A slot that no note needs holds the new deadline.
        let Some(free) = notes.iter().position(|n| n.tid == 0) else { continue };
        if pointer == 0 || !read(placed, pointer, time.as_mut_bytes()) {
            continue;
        }
        let deadline = time[0].saturating_mul(SECOND as u64).saturating_add(time[1]);
        let deadline = deadline.saturating_add_signed(ahead[clock].saturating_neg());
        notes[free].left = [deadline / SECOND as u64, deadline % SECOND as u64];
        (notes[free].tid, notes[free].deadline) = (thread.tid, u64::MAX);
        waits::set_argument(&mut regs, argument, base + (free * size_of::<Wait>()) as u64);
        thread.regs.as_mut_bytes().copy_from_slice(regs.as_bytes());
    }
    write(placed, base, notes.as_bytes())
}

/// Which argument points to the absolute deadline of a wait that is about to begin anew, and on which
/// of the two clocks of [`ahead`] it is.
fn absolute(regs: &Regs) -> Option<(usize, usize)> {
    const FUTEX_WAIT_BITSET: u64 = 9;
    const FUTEX_WAIT_REQUEUE_PI: u64 = 11;
    const FUTEX_LOCK_PI2: u64 = 13;
    const FUTEX_PRIVATE: u64 = 128;
    const TIMER_ABSTIME: u64 = 1;
    let clock = |id: u64| match id as i32 {
        libc::CLOCK_MONOTONIC => Some(0),
        libc::CLOCK_BOOTTIME => Some(1),
        _ => None,
    };
    match regs.rax.cast_signed() {
        // With FUTEX_CLOCK_REALTIME, which is another bit, the deadline is on the other clock.
        libc::SYS_futex => {
            let waits = [FUTEX_WAIT_BITSET, FUTEX_WAIT_REQUEUE_PI, FUTEX_LOCK_PI2];
            waits.contains(&(regs.rsi & !FUTEX_PRIVATE)).then_some((3, 0))
        }
        libc::SYS_futex_waitv => Some((3, clock(regs.r8)?)),
        libc::SYS_clock_nanosleep if regs.rsi & TIMER_ABSTIME != 0 => Some((2, clock(regs.rdi)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_waits_are_recognised() {
        let call =
            |rax: i64, rdi, rsi| Regs { rax: rax.cast_unsigned(), rdi, rsi, ..Regs::default() };
        assert_eq!(absolute(&call(libc::SYS_futex, 0, 137)), Some((3, 0)));
        assert_eq!(absolute(&call(libc::SYS_futex, 0, 137 | 256)), None);
        assert_eq!(absolute(&call(libc::SYS_futex, 0, 128)), None);
        assert_eq!(absolute(&call(libc::SYS_clock_nanosleep, 1, 1)), Some((2, 0)));
        assert_eq!(absolute(&call(libc::SYS_clock_nanosleep, 7, 1)), Some((2, 1)));
        let waits = Regs { r8: 1, ..call(libc::SYS_futex_waitv, 0, 0) };
        assert_eq!(absolute(&waits), Some((3, 0)));
        assert_eq!(absolute(&Regs { r8: 0, ..waits }), None);
        assert_eq!(absolute(&call(libc::SYS_clock_nanosleep, 0, 1)), None);
        assert_eq!(absolute(&call(libc::SYS_clock_nanosleep, 1, 0)), None);
        assert_eq!(absolute(&call(libc::SYS_read, 1, 1)), None);
    }
}
