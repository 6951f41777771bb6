// SPDX-License-Identifier: LGPL-2.1-only
//! Interval timers and POSIX timers, with the time that they had left.

use super::plan::{Arena, Orders, Step};
use super::runtime::clocks::{KIND, OF_THREAD, SCHED, id_of};
use super::{Gathered, Target};
use crate::error::{Error, Result};
use crate::order;
use crate::proc::{Process, timers::PosixTimer};
use crate::proc::{Tid, clocks};
use crate::ptrace::list::{List, Question, Replies};
use crate::ptrace::raw;
use ckpt_abi::image::Timer;
use ckpt_abi::op::{OpKind, flag};
use nix::libc;
use std::collections::HashMap;
use zerocopy::FromZeros;

/// [`Timer::kind`] of a POSIX timer; below it are the three of setitimer(2).
const POSIX: u32 = 3;
/// Before Linux 6.15 the kernel gives ids in turn only, so a timer with a high one needs others made and
/// deleted before it, a million a second. More than this is not tried.
const MOST: i32 = 10_000_000;
/// prctl(2), PR_TIMER_CREATE_RESTORE_IDS with ON and OFF (include/uapi/linux/prctl.h, Linux 6.15): a timer gets
/// the id that stands where its id will be written.
const RESTORE_IDS: u64 = 77;
const ON: u64 = 1;
const OFF: u64 = 0;

const SECOND: u64 = 1_000_000_000;

/// What is asked of timers.
pub(crate) struct TimerQuestions {
    known: Result<Vec<PosixTimer>>,
    interval: Vec<Question>,
    /// The time left, and overruns.
    posix: Vec<(Question, Question)>,
}

/// Asks for all timers.
pub(crate) fn ask(target: &Target<'_>, list: &mut List) -> TimerQuestions {
    let known = target.process().posix_timers();
    let interval = (0..u64::from(POSIX))
        .map(|kind| list.reading(libc::SYS_getitimer, &[kind, 0], 1, 32))
        .collect();
    let mut ask = |timer: &PosixTimer| {
        let id = u64::from(timer.id.cast_unsigned());
        let left = list.reading(libc::SYS_timer_gettime, &[id, 0], 1, 32);
        (left, list.call(libc::SYS_timer_getoverrun, &[id]))
    };
    let posix = known.iter().flatten().map(&mut ask).collect();
    TimerQuestions { known, interval, posix }
}

/// Saves what was answered.
#[inline(never)]
pub(crate) fn save(
    asked: TimerQuestions,
    answers: &Replies,
    target: &Target<'_>,
    gathered: &mut Gathered,
) -> Result<()> {
    let TimerQuestions { known, interval, posix } = asked;
    // What it has used to answer is ours.
    let (before, now) = (target.frozen.spent, clocks::spent(target.frozen.pid));
    let ours = |kind: usize| match target.frozen.threads.is_empty() {
        true => 0,
        false => (now[kind] - before[kind]).max(0).cast_unsigned(),
    };
    // ITIMER_VIRTUAL and ITIMER_PROF.
    let of_interval = [0, ours(1), ours(0)];
    for (kind, asked) in (0..POSIX).zip(interval) {
        answers.expect(asked, "cannot read an interval timer")?;
        let [period_s, period_us, left_s, left_us]: [u64; 4] = answers.get(asked);
        let (left, period) =
            (left_s * SECOND + left_us * 1000, period_s * SECOND + period_us * 1000);
        // ITIMER_REAL has no time left while its SIGALRM is pending, and goes on when that is taken
        // (kernel/signal.c, dequeue_signal); setitimer(2) with 0 would stop it for ever.
        let left = if kind == 0 && left == 0 { period } else { left };
        let more = if left == 0 { 0 } else { of_interval[kind as usize] };
        let left = left + more;
        if left != 0 {
            gathered.timers.push(Timer { kind, left, period, ..Timer::new_zeroed() });
        }
    }
    let timers = match known {
        Ok(timers) => timers,
        Err(e) => {
            gathered.losses.push(format!("POSIX timers, if there are any: {e}"));
            return Ok(());
        }
    };
    for (timer, (left, overruns)) in timers.into_iter().zip(posix) {
        if timer.id > MOST && !raw::chooses_timer_ids() {
            gathered.obstacles.push(format!(
                "a POSIX timer has the number {}, which a restart can only give from Linux 6.15 on",
                timer.id
            ));
        }
        answers.expect(left, "cannot read a POSIX timer")?;
        let [period_s, period_ns, left_s, left_ns]: [u64; 4] = answers.get(left);
        let overruns = answers.result(overruns);
        let clock = clock(&timer, target, gathered);
        let tells = timer.notify & libc::SIGEV_THREAD_ID != 0;
        let is_there = || {
            let is = |tid: &Tid| *tid == timer.target;
            is(&target.frozen.pid.main_thread()) || target.frozen.tids().iter().any(is)
        };
        // Of a thread that has ended nobody is told, and no timer can be made for it.
        let notify = if tells && !is_there() { libc::SIGEV_NONE } else { timer.notify };
        let left = left_s * SECOND + left_ns;
        let more = if left == 0 { 0 } else { used(clock, target, ours) };
        gathered.timers.push(Timer {
            kind: POSIX,
            id: timer.id,
            left: left + more,
            period: period_s * SECOND + period_ns,
            clock,
            signal: timer.signal.cast_unsigned(),
            notify: notify.cast_unsigned(),
            tid: timer.target.word(),
            value: timer.value,
            overruns: overruns.max(0).cast_unsigned(),
            ..Timer::new_zeroed()
        });
    }
    Ok(())
}

/// How much of what a checkpoint has used itself a CPU clock has counted: the main thread answers it.
fn used(clock: i32, target: &Target<'_>, ours: impl Fn(usize) -> u64) -> u64 {
    let thread = !(clock >> 3);
    let main = target.frozen.pid.get();
    let counts = clock & OF_THREAD == 0 || thread == main || thread == 0;
    match clock {
        libc::CLOCK_PROCESS_CPUTIME_ID | libc::CLOCK_THREAD_CPUTIME_ID => ours(SCHED as usize),
        0.. => 0,
        clock if counts && clock & DESCRIPTOR != DESCRIPTOR => ours((clock & DESCRIPTOR) as usize),
        _ => 0,
    }
}

/// Names what is to be told with signals that all threads let wait: nobody sees it before they are taken, and what a
/// restart queues again does not count on.
pub(crate) fn name_overruns(gathered: &mut Gathered) {
    let timers = gathered.timers.iter().filter(|t| t.kind == POSIX && t.left != 0 && t.period != 0);
    let waits = |timer: &&Timer| {
        let word = |info: &[u8; 128], at: usize| {
            info[at..].first_chunk().map_or(0, |bytes| i32::from_le_bytes(*bytes))
        };
        let is = |info: &[u8; 128]| (word(info, 8), word(info, 16)) == (libc::SI_TIMER, timer.id);
        gathered.pending.iter().any(|pending| is(&pending.siginfo))
            && gathered.threads.iter().all(|t| t.mask >> (timer.signal - 1) & 1 != 0)
    };
    let sentence = |timer: &Timer| {
        let id = timer.id;
        format!(
            "how often POSIX timer {id} has expired since its signal waits (timer_getoverrun(2))"
        )
    };
    let said: Vec<_> = timers.filter(waits).map(sentence).collect();
    gathered.losses.extend(said);
}

/// Orders that make and arm the timers, for the end of the main thread's list: the time of the
/// program begins to run again.
///
/// `ids` maps saved thread ids to the addresses of the words that hold the new ones.
pub(crate) fn restore(
    timers: &[Timer],
    ids: &HashMap<u32, u64>,
    arena: &mut Arena,
    orders: &mut Orders,
) -> Result<()> {
    for timer in timers.iter().filter(|t| t.kind < POSIX) {
        let micro = |ns: u64| [ns / SECOND, ns % SECOND / 1000];
        // The kernel adds a tick to what is left by CPU time (kernel/time/itimer.c, set_cpu_itimer).
        let tick = if timer.kind == 0 { 0 } else { clocks::tick() };
        let left = timer.left.saturating_sub(tick).max(1000);
        let ([p0, p1], [l0, l1]) = (micro(timer.period), micro(left));
        let at = arena.value(&[p0, p1, l0, l1])?;
        orders.call(Step::Timer, libc::SYS_setitimer, &[timer.kind.into(), at, 0]);
    }
    let mut posix: Vec<_> = timers.iter().filter(|t| t.kind == POSIX).collect();
    order::by_key(&mut posix, |t| (t.id.cast_unsigned().into(), 0));
    let chosen = raw::chooses_timer_ids();
    if let Some(timer) = posix.last().filter(|t| !chosen && t.id > MOST) {
        return Err(Error::new(format!("a POSIX timer has the number {}", timer.id))
            .hint("restart it under Linux 6.15 or later"));
    }
    if posix.is_empty() {
        return Ok(());
    }
    let mut next = 0;
    let dummy = arena.value(&event(None))?;
    let made = arena.room(8, 8)?;
    if chosen {
        orders.call(Step::Timer, libc::SYS_prctl, &[RESTORE_IDS, ON]);
    }
    for timer in posix {
        let id = u64::from(timer.id.cast_unsigned());
        if chosen {
            orders.push(OpKind::Store, 0, Step::Timer, 4, &[made, id]);
        } else if next < timer.id {
            orders.push(OpKind::UseUpTimers, 0, Step::Timer, 0, &[id, dummy, made]);
        }
        make(timer, ids, made, arena, orders)?;
        next = timer.id + 1;
    }
    if chosen {
        orders.call(Step::Timer, libc::SYS_prctl, &[RESTORE_IDS, OFF]);
    }
    Ok(())
}

/// The kind of a clock that a descriptor of a device stands for (CLOCKFD).
const DESCRIPTOR: i32 = 3;

/// The clock of a timer, a thread's CPU clock with that thread's id. Clocks of others are lost.
fn clock(timer: &PosixTimer, target: &Target<'_>, gathered: &mut Gathered) -> i32 {
    let lost = |whose: &str| format!("the clock of POSIX timer {}: {whose}", timer.id);
    // The main one answers meanwhile, and is not among those that stand still.
    let is_other = |tid: &Tid| *tid != target.first;
    let has = |owner: Tid| target.frozen.tids().iter().any(|tid| is_other(tid) && *tid == owner);
    let has_others = || target.frozen.tids().iter().any(is_other);
    let (id, kind) = match timer.clock {
        libc::CLOCK_THREAD_CPUTIME_ID => (0, OF_THREAD | SCHED),
        clock if clock >= 0 => return clock,
        clock => (!(clock >> 3), clock & KIND),
    };
    if kind & DESCRIPTOR == DESCRIPTOR {
        gathered.losses.push(lost("a device's; it goes on with CLOCK_MONOTONIC"));
        return libc::CLOCK_MONOTONIC;
    }
    if kind & OF_THREAD == 0 {
        if id != 0 && id != target.frozen.pid.get() {
            gathered.losses.push(lost("the CPU time of another process; it counts its own"));
        }
        return id_of(0, kind);
    }
    if id == 0 && has_others() && timer.notify & libc::SIGEV_THREAD_ID == 0 {
        gathered.losses.push(lost("the CPU time of the thread that made it, which is not known; it counts that of the main thread"));
    }
    let owner = match id {
        0 if timer.notify & libc::SIGEV_THREAD_ID != 0 => timer.target,
        0 => target.frozen.pid.main_thread(),
        id => Tid::new(id),
    };
    if owner != target.frozen.pid.main_thread() && !has(owner) {
        gathered.losses.push(lost(
            "the CPU time of a thread that has ended; it counts that of the main thread",
        ));
        return id_of(target.frozen.pid.get(), kind);
    }
    id_of(owner.get(), kind)
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
        orders.push(OpKind::Copy, 0, Step::Timer, 0, &[event_at + 16, *word, 4]);
    }
    let thread = !(timer.clock >> 3);
    let word = ids.get(&thread.cast_unsigned()).filter(|_| timer.clock < 0 && thread != 0);
    let create = libc::SYS_timer_create.cast_unsigned();
    if let Some(word) = word {
        let kind = i64::from(timer.clock & KIND).cast_unsigned();
        let args = [*word, event_at, made, kind];
        orders.push(OpKind::Syscall, flag::CLOCK_OF, Step::Timer, create, &args);
    } else {
        let clock = i64::from(permitted(timer.clock)?).cast_unsigned();
        orders.push(OpKind::Syscall, 0, Step::Timer, create, &[clock, event_at, made]);
    }
    if timer.left != 0 {
        let split = |ns: u64| [ns / SECOND, ns % SECOND];
        let ([p0, p1], [l0, l1]) = (split(timer.period), split(timer.left));
        let times = arena.value(&[p0, p1, l0, l1])?;
        let id = u64::from(timer.id.cast_unsigned());
        orders.call(Step::Timer, libc::SYS_timer_settime, &[id, 0, times, 0]);
    }
    Ok(())
}

/// The clock, or the same without the right to wake the machine, where we do not have that
/// (timer_create(2), CAP_WAKE_ALARM).
fn permitted(clock: i32) -> Result<i32> {
    const CAP_WAKE_ALARM: u32 = 35;
    let plain = match clock {
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
        other => return Ok(other),
    };
    let may = Process::own()?.main_status()?.may(CAP_WAKE_ALARM);
    Ok(if may { clock } else { plain })
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
