//! Interval timers and POSIX timers, with the time that they had left.

use super::plan::{Arena, Orders, Step};
use super::{Gathered, Target};
use crate::error::Result;
use crate::proc;
use crate::ptrace::call::Caller;
use ckpt_abi::image::Timer;
use ckpt_abi::op::Kind;
use ckpt_abi::region::STACKS;
use nix::libc;
use std::collections::HashMap;
use zerocopy::FromZeros;

/// [`Timer::kind`] of a POSIX timer; below it are the three of setitimer(2).
const POSIX: u32 = 3;
/// The kernel gives ids in turn, so a timer with a high one needs others made and deleted before
/// it. More than this is not tried.
const MOST_DUMMIES: i32 = 20_000;

const SECOND: u64 = 1_000_000_000;

/// Asks for all timers, through the thread of `caller`.
pub fn save(target: &Target<'_>, caller: &mut Caller<'_>, gathered: &mut Gathered) -> Result<()> {
    let scratch = target.region.base + STACKS;
    for kind in 0..POSIX {
        caller.expect(
            libc::SYS_getitimer,
            &[u64::from(kind), scratch],
            "cannot read an interval timer",
        )?;
        let [period_s, period_us, left_s, left_us]: [u64; 4] = target.memory.get(scratch)?;
        let (left, period) =
            (left_s * SECOND + left_us * 1000, period_s * SECOND + period_us * 1000);
        // ITIMER_REAL has no time left while its SIGALRM is pending, and goes on when that is taken
        // (kernel/signal.c, dequeue_signal); setitimer(2) with 0 would stop it for ever.
        let left = if kind == 0 && left == 0 { period } else { left };
        if left != 0 {
            gathered.timers.push(Timer { kind, left, period, ..Timer::new_zeroed() });
        }
    }
    let timers = match proc::posix_timers(target.frozen.pid) {
        Ok(timers) => timers,
        Err(e) => {
            gathered.losses.push(format!("POSIX timers, if there are any: {e}"));
            return Ok(());
        }
    };
    for timer in timers {
        let id = u64::from(timer.id.cast_unsigned());
        caller.expect(libc::SYS_timer_gettime, &[id, scratch], "cannot read a POSIX timer")?;
        let [period_s, period_ns, left_s, left_ns]: [u64; 4] = target.memory.get(scratch)?;
        let overruns = caller.call(libc::SYS_timer_getoverrun, &[id])?;
        gathered.timers.push(Timer {
            kind: POSIX,
            id: timer.id,
            left: left_s * SECOND + left_ns,
            period: period_s * SECOND + period_ns,
            clock: timer.clock,
            signal: timer.signal.cast_unsigned(),
            notify: timer.notify.cast_unsigned(),
            tid: timer.target.cast_unsigned(),
            value: timer.value,
            overruns: overruns.max(0).cast_unsigned(),
            ..Timer::new_zeroed()
        });
    }
    Ok(())
}

/// Orders that make and arm the timers, for the end of the main thread's list: the time of the
/// program begins to run again.
///
/// `ids` maps saved thread ids to the addresses of the words that hold the new ones.
pub fn restore(
    timers: &[Timer],
    ids: &HashMap<u32, u64>,
    arena: &mut Arena,
    orders: &mut Orders,
) -> Result<()> {
    for timer in timers.iter().filter(|t| t.kind < POSIX) {
        let micro = |ns: u64| [ns / SECOND, ns % SECOND / 1000];
        let ([p0, p1], [l0, l1]) = (micro(timer.period), micro(timer.left.max(1000)));
        let at = arena.value(&[p0, p1, l0, l1])?;
        orders.call(Step::Timer, libc::SYS_setitimer, &[timer.kind.into(), at, 0]);
    }
    let mut posix: Vec<_> = timers.iter().filter(|t| t.kind == POSIX).collect();
    posix.sort_by_key(|t| t.id);
    let mut next = 0;
    let dummy = arena.value(&event(None))?;
    let made = arena.room(8, 8)?;
    for timer in posix {
        while next < timer.id && next < MOST_DUMMIES {
            let clock = libc::CLOCK_MONOTONIC.cast_unsigned().into();
            orders.call(Step::Timer, libc::SYS_timer_create, &[clock, dummy, made]);
            orders.call(Step::Timer, libc::SYS_timer_delete, &[next.cast_unsigned().into()]);
            next += 1;
        }
        make(timer, ids, made, arena, orders)?;
        next = timer.id + 1;
    }
    Ok(())
}

fn make(
    timer: &Timer,
    ids: &HashMap<u32, u64>,
    made: u64,
    arena: &mut Arena,
    orders: &mut Orders,
) -> Result<()> {
    let event_at = arena.value(&event(Some(timer)))?;
    if timer.notify & libc::SIGEV_THREAD_ID.cast_unsigned() != 0
        && let Some(word) = ids.get(&timer.tid)
    {
        orders.push(Kind::Copy, 0, Step::Timer, 0, &[event_at + 16, *word, 4]);
    }
    let clock = i64::from(timer.clock).cast_unsigned();
    orders.call(Step::Timer, libc::SYS_timer_create, &[clock, event_at, made]);
    if timer.left != 0 {
        let split = |ns: u64| [ns / SECOND, ns % SECOND];
        let ([p0, p1], [l0, l1]) = (split(timer.period), split(timer.left));
        let times = arena.value(&[p0, p1, l0, l1])?;
        let id = u64::from(timer.id.cast_unsigned());
        orders.call(Step::Timer, libc::SYS_timer_settime, &[id, 0, times, 0]);
    }
    Ok(())
}

/// struct sigevent: value, signal, notification, thread id.
fn event(timer: Option<&Timer>) -> [u64; 8] {
    let mut event = [0; 8];
    match timer {
        Some(t) => {
            // What proc(5) calls SIGEV_THREAD alone is done by C libraries with a thread.
            event[0] = t.value;
            event[1] = u64::from(t.signal) | u64::from(t.notify) << 32;
            event[2] = t.tid.into();
        }
        None => event[1] = u64::from(libc::SIGEV_NONE.cast_unsigned()) << 32,
    }
    event
}
