// SPDX-License-Identifier: LGPL-2.1-only
//! The clocks that count from the boot (CLOCK_MONOTONIC, CLOCK_BOOTTIME), which are others by now: on another machine,
//! after a boot, and where time has passed.
//!
//! A moment that the program has computed lies days ahead here, or is long gone. With privilege the program gets a time
//! namespace in which the clocks go on from their saved values (time_namespaces(7)). Without, what ckpt itself gives
//! back is shifted: the notes about interrupted waits, and the moments until which the program waits. Moments that lie
//! elsewhere in the program's memory cannot be known.
//!
//! No namespace has a CLOCK_REALTIME of its own. A wait until a time of day is shifted always: that is the clock of
//! sem_timedwait(3), pthread_mutex_timedlock(3) and of condition variables unless a program asks for another, so it is
//! a time-out more often than an appointment, and has the time left that it had, as all others and as timers have.
//!
//! The clocks go on when everything is read and filled, so no time passes for the program before that.
//!
//! # Safety
//! The calls change namespaces of this process alone.
#![allow(unsafe_code)]

use super::machine::{CAP_SYS_ADMIN, capable};
use super::phase1_check::{Saved, Whole};
use super::phase7_leave::be_alone;
use super::placed::{Placed, read, write};
use crate::error::{Because, Result};
use crate::proc::Process;
use crate::ptrace::waits;
use crate::resource::threads;
use ckpt_abi::region::{WAIT_COUNT, WAITS, Wait};
use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use zerocopy::{FromZeros, IntoBytes};

const SECOND: i64 = 1_000_000_000;

/// Lets the clocks of the program go on from their saved values, or shifts what ckpt gives back itself to those that are
/// here. The processes of a tree have one namespace, which was made before them ([`ahead`]).
pub(crate) fn go_on(
    whole: &Whole<'_>,
    saved: &mut Saved<'_>,
    placed: &mut [Placed],
    alone: bool,
) -> Result<()> {
    // Only a process with one thread may enter a time namespace.
    be_alone()?;
    let here = Process::own()?.clocks()?;
    let later = |here: u64, there: u64| here.cast_signed().saturating_sub(there.cast_signed());
    let machine = &whole.machine;
    let monotonic = later(here.since_boot[0], machine.monotonic);
    let boottime = later(here.since_boot[1], machine.boottime);
    let realtime = later(here.realtime, machine.realtime);
    let gone_on = alone && enter_namespace([monotonic, boottime])?;
    let [monotonic, boottime] = if gone_on { [0, 0] } else { [monotonic, boottime] };
    shift(saved, placed, Later { monotonic, boottime, realtime })
}

/// By how many nanoseconds the clocks of a namespace have to be ahead of the first namespace's, so that they show what
/// they did when the program was saved.
pub(crate) fn ahead(whole: &Whole<'_>) -> Result<[i64; 2]> {
    let own = Process::own()?;
    let (here, offsets) = (own.clocks()?, own.clock_offsets());
    let there = [whole.machine.monotonic, whole.machine.boottime];
    let ahead = |i: usize| {
        let gone = here.since_boot[i].cast_signed().saturating_sub(there[i].cast_signed());
        offsets[i].saturating_sub(gone)
    };
    Ok([ahead(0), ahead(1)])
}

/// By how many nanoseconds the clocks that the program will see are ahead of what they were when it was saved.
struct Later {
    monotonic: i64,
    boottime: i64,
    realtime: i64,
}

impl Later {
    fn of(&self, clock: i32) -> i64 {
        match clock {
            libc::CLOCK_MONOTONIC => self.monotonic,
            libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => self.boottime,
            _ => self.realtime,
        }
    }
}

/// Enters a time namespace whose CLOCK_MONOTONIC and CLOCK_BOOTTIME are `behind` nanoseconds behind those here; false
/// where that is not to be had.
fn enter_namespace(behind: [i64; 2]) -> Result<bool> {
    let Ok(present) = File::open("/proc/self/ns/time") else { return Ok(false) };
    if !capable(CAP_SYS_ADMIN) {
        return Ok(false);
    }
    // The offsets are those from the first namespace's clocks.
    let own = Process::own()?.clock_offsets();
    // SAFETY: changes the namespace of children only.
    if unsafe { libc::unshare(libc::CLONE_NEWTIME) } != 0 {
        return Ok(false);
    }
    if go_back(own, behind).is_some() {
        return Ok(true);
    }
    // With another namespace for its children than its own a process can make no threads.
    // SAFETY: the namespace of children is that of this process again.
    let result = unsafe { libc::setns(present.as_raw_fd(), libc::CLONE_NEWTIME) };
    Errno::result(result).because(|| "cannot go back to the clocks of this machine")?;
    Ok(false)
}

/// Sets the clocks of the namespace that is meant for children, and enters it.
fn go_back(own: [i64; 2], behind: [i64; 2]) -> Option<()> {
    let line = |name: &str, i: usize| {
        let offset = own[i].saturating_sub(behind[i]);
        format!("{name} {} {}\n", offset.div_euclid(SECOND), offset.rem_euclid(SECOND))
    };
    let text = line("monotonic", 0) + &line("boottime", 1);
    let mut offsets = File::options().write(true).open("/proc/self/timens_offsets").ok()?;
    // One write: the kernel takes no part of the text.
    offsets.write_all(text.as_bytes()).ok()?;
    let namespace = File::open("/proc/self/ns/time_for_children").ok()?;
    // SAFETY: enters the namespace that was just made; memory is as before but for the vdso's data.
    (unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWTIME) } == 0).then_some(())
}

/// Shifts what ckpt gives back itself.
fn shift(saved: &mut Saved<'_>, placed: &mut [Placed], later: Later) -> Result<()> {
    let region = saved.process.region;
    let base = region + WAITS;
    let mut notes = vec![Wait::new_zeroed(); WAIT_COUNT as usize];
    if !read(placed, base, notes.as_mut_bytes()) {
        return Ok(());
    }
    for (slot, note) in notes.iter_mut().enumerate().filter(|(_, note)| note.tid != 0) {
        if note.pointer == 0 {
            if note.deadline != u64::MAX {
                note.deadline = note.deadline.saturating_add_signed(later.monotonic);
            }
            continue;
        }
        let thread = saved.threads.iter_mut().find(|thread| thread.tid == note.tid);
        let Some(thread) = thread else { continue };
        let mut regs = threads::regs(thread);
        if regs.rax != u64::from(note.call) || regs.rsp != note.rsp {
            continue;
        }
        note.left = shifted(note.left, later.of(note.clock.cast_signed()));
        waits::set_argument(
            &mut regs,
            note.pointer as usize - 1,
            waits::slot_address(region, slot),
        );
        thread.regs.as_mut_bytes().copy_from_slice(regs.as_bytes());
    }
    write(placed, base, notes.as_bytes())
}

/// A moment, as struct timespec, so many nanoseconds later.
fn shifted(moment: [u64; 2], by: i64) -> [u64; 2] {
    const SECOND: u64 = 1_000_000_000;
    let moment = moment[0].saturating_mul(SECOND).saturating_add(moment[1]);
    let moment = moment.min(i64::MAX.cast_unsigned()).saturating_add_signed(by);
    [moment / SECOND, moment % SECOND]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_shifted() {
        assert_eq!(shifted([5, 900_000_000], 200_000_000), [6, 100_000_000]);
        assert_eq!(shifted([5, 100_000_000], -200_000_000), [4, 900_000_000]);
        assert_eq!(shifted([1, 0], -2_000_000_000), [0, 0]);
        // One that never comes still does not, nor does the kernel refuse it.
        let never = shifted([u64::MAX / 4, 0], 3_000_000_000);
        assert!(never[0] >= 9_000_000_000 && never[1] < 1_000_000_000, "{never:?}");
    }
}
