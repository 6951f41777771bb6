// SPDX-License-Identifier: LGPL-2.1-only
//! Sleeps that somebody else has stopped before us, who left no note: a batch system (SIGSTOP), a debugger, a dumper that
//! was killed. The thread goes on by restart_syscall(2), which shows neither the call nor the time that it had left.

use super::memory::Memory;
use super::waits::{place, until};
use nix::libc;

/// What is left of a sleep, which the kernel has just written where the program wants it (do_nanosleep,
/// kernel/time/hrtimer.c).
pub(super) fn rest_of_a_sleep(call: i64, args: &[u64; 6], memory: &Memory) -> Option<u64> {
    let at = match call {
        libc::SYS_nanosleep => args[1],
        libc::SYS_clock_nanosleep => args[3],
        _ => 0,
    };
    time_at(at, memory).filter(|_| at != 0)
}

/// Nanoseconds of a struct timespec that could be a time-out.
fn time_at(at: u64, memory: &Memory) -> Option<u64> {
    let [seconds, nanoseconds] = memory.get::<[u64; 2]>(at).ok()?;
    let valid = seconds <= i64::MAX.cast_unsigned() && nanoseconds < 1_000_000_000;
    valid.then(|| seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
}

/// The call that restart_syscall(2) stands for. Only four go on so, and all arguments but the call's number are there; None
/// where they would do for two.
pub(super) fn stands_for(args: &[u64; 6], memory: &Memory) -> Option<i64> {
    const CLOCKS: u64 = 16;
    const MOST_FILES: u64 = 1 << 20;
    let [first, second, third, fourth, ..] = *args;
    let is_there = |at: u64| memory.get::<u32>(at).is_ok();
    let is_time = |at: u64| time_at(at, memory).is_some();
    let millis = third as i32 > 0 || third as i32 == -1;
    if first < CLOCKS {
        return match second {
            0 if is_time(third) => Some(libc::SYS_clock_nanosleep),
            0 if first == 0 && millis => Some(libc::SYS_poll),
            _ => None,
        };
    }
    let waits = until(libc::SYS_futex, args).is_some() || place(libc::SYS_futex, args).is_some();
    let futex = waits && first.is_multiple_of(4) && is_time(fourth);
    // It slept because the word was that.
    if futex && memory.get::<u32>(first).is_ok_and(|word| word == third as u32) {
        return Some(libc::SYS_futex);
    }
    let sleeps = is_time(first) && (second == 0 || (second > MOST_FILES && is_time(second)));
    let polls = (1..MOST_FILES).contains(&second) && millis && is_there(first);
    match (futex, sleeps, polls) {
        (true, false, false) => Some(libc::SYS_futex),
        (false, true, false) => Some(libc::SYS_nanosleep),
        (false, false, true) => Some(libc::SYS_poll),
        _ => None,
    }
}
