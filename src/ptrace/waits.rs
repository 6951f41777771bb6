// SPDX-License-Identifier: LGPL-2.1-only
//! Waits with a time-out: how long a thread has been in one, and how long it still has.
//!
//! A thread asleep was last on a CPU when it fell asleep, which /proc/PID/sched says
//! (se.exec_start), in the clock of the CPU it ran on. That is looked at before the thread is
//! interrupted.

use super::memory::Memory;
use super::regs::Regs;
use super::resumed;
use super::sockets;
use crate::error::Result;
use crate::order;
use crate::proc::{Pid, Process, Tid};
use ckpt_abi::region::{Control, WAIT_COUNT, WAITS, Wait};
use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use std::cmp::Ordering;
use std::collections::HashSet;
use std::mem::offset_of;
use zerocopy::{FromZeros, IntoBytes};

/// io_pgetevents(2), which the libc package knows for musl alone.
pub(super) const IO_PGETEVENTS: i64 = 333;

/// What a look at a running thread has found, before it is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// It is in no system call.
    Runs,
    /// It is in no wait with a time-out.
    Awake,
    /// It fell asleep at this time, on CLOCK_MONOTONIC in nanoseconds, by this voluntary switch.
    Asleep(u64, u64),
}

impl Look {
    /// Since when the thread waits, if it does now that it is stopped. A wait that has begun after the look
    /// counts from now: it must not become shorter. The stop is one more voluntary switch.
    pub(crate) fn since(self, process: &Process, tid: Tid) -> u64 {
        match self {
            Self::Asleep(since, switches)
                if process.sched(tid).is_some_and(|now| now.switches == switches + 1) =>
            {
                since
            }
            _ => now(),
        }
    }
}

/// Where a system call has its time-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Milliseconds in the register of this argument (from 0); negative: for ever.
    Millis(usize),
    /// A pointer to a struct timespec in the register of this argument; null: for ever.
    Timespec(usize),
}

/// Nanoseconds on CLOCK_MONOTONIC.
pub(crate) fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// Where the relative time-out of a call is; None for calls without one.
pub(crate) fn place(call: i64, args: &[u64; 6]) -> Option<Place> {
    const TIMER_ABSTIME: u64 = 1;
    const FUTEX_COMMAND: u64 = 127;
    match call {
        libc::SYS_nanosleep => Some(Place::Timespec(0)),
        libc::SYS_clock_nanosleep if args[1] & TIMER_ABSTIME == 0 => Some(Place::Timespec(2)),
        // Only FUTEX_WAIT has a relative time-out (futex(2)).
        libc::SYS_futex if args[1] & FUTEX_COMMAND == 0 => Some(Place::Timespec(3)),
        libc::SYS_poll => Some(Place::Millis(2)),
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => Some(Place::Millis(3)),
        libc::SYS_epoll_pwait2 | libc::SYS_semtimedop => Some(Place::Timespec(3)),
        libc::SYS_rt_sigtimedwait => Some(Place::Timespec(2)),
        libc::SYS_io_getevents | IO_PGETEVENTS => Some(Place::Timespec(4)),
        _ => None,
    }
}

/// A wait until a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Until {
    /// Which argument (from 0) points to the struct timespec.
    pub argument: usize,
    /// Clock that it waits by.
    pub clock: i32,
}

/// Whether a call waits until a moment of a clock that goes on while the program is not there.
pub(crate) fn until(call: i64, args: &[u64; 6]) -> Option<Until> {
    const FUTEX_COMMAND: u64 = 127;
    const FUTEX_CLOCK_REALTIME: u64 = 256;
    const FUTEX_LOCK_PI: u64 = 6;
    const FUTEX_WAIT_BITSET: u64 = 9;
    const FUTEX_WAIT_REQUEUE_PI: u64 = 11;
    const FUTEX_LOCK_PI2: u64 = 13;
    const TIMER_ABSTIME: u64 = 1;
    let (argument, clock) = match call {
        libc::SYS_futex => match args[1] & FUTEX_COMMAND {
            FUTEX_LOCK_PI => (3, libc::CLOCK_REALTIME),
            FUTEX_WAIT_BITSET | FUTEX_WAIT_REQUEUE_PI | FUTEX_LOCK_PI2 => {
                let of_day = args[1] & FUTEX_CLOCK_REALTIME != 0;
                (3, if of_day { libc::CLOCK_REALTIME } else { libc::CLOCK_MONOTONIC })
            }
            _ => return None,
        },
        libc::SYS_futex_waitv => (3, args[4] as i32),
        libc::SYS_clock_nanosleep if args[1] & TIMER_ABSTIME != 0 => (2, args[0] as i32),
        libc::SYS_mq_timedsend | libc::SYS_mq_timedreceive => (4, libc::CLOCK_REALTIME),
        _ => return None,
    };
    let goes_on = [
        libc::CLOCK_REALTIME,
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_BOOTTIME,
        libc::CLOCK_REALTIME_ALARM,
        libc::CLOCK_BOOTTIME_ALARM,
        libc::CLOCK_TAI,
    ];
    (args[argument] != 0 && goes_on.contains(&clock)).then_some(Until { argument, clock })
}

/// The six arguments of a system call.
pub(crate) fn arguments(regs: &Regs) -> [u64; 6] {
    [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9]
}

/// Changes one argument.
pub(crate) fn set_argument(regs: &mut Regs, index: usize, value: u64) {
    match index {
        0 => regs.rdi = value,
        1 => regs.rsi = value,
        2 => regs.rdx = value,
        3 => regs.r10 = value,
        4 => regs.r8 = value,
        _ => regs.r9 = value,
    }
}

/// Looks whether a running process's thread is in a wait with a time-out; None when that cannot be known.
pub(crate) fn observe(process: &Process, tid: Tid) -> Option<Look> {
    let Some((call, args)) = process.syscall(tid).ok()? else { return Some(Look::Runs) };
    let call = call.cast_signed();
    let timed = match place(call, &args) {
        Some(Place::Millis(i)) => args[i] as i32 >= 0,
        Some(Place::Timespec(i)) => args[i] != 0,
        None => call == libc::SYS_restart_syscall || sockets::concerns(process, call, &args),
    };
    if !timed {
        return Some(Look::Awake);
    }
    // A thread that was moved to another CPU in its sleep has 0 there (kernel/sched/fair.c,
    // migrate_task_rq_fair).
    let asleep = process.sched(tid).filter(|sched| sched.ran != 0)?;
    let cpu = process.last_cpu(tid)?;
    let slept = clock_of(cpu)?.saturating_sub(asleep.ran);
    Some(Look::Asleep(now().saturating_sub(slept), asleep.switches))
}

/// The scheduler's clock of a CPU: ours, when we have just run there.
fn clock_of(cpu: usize) -> Option<u64> {
    let own = nix::unistd::Pid::from_raw(0);
    let before = sched_getaffinity(own).ok()?;
    let mut there = CpuSet::new();
    there.set(cpu).ok()?;
    let moved = sched_setaffinity(own, &there).is_ok();
    // Falling asleep and being chosen again brings se.exec_start up to date; sched_yield(2) does
    // not on a CPU with nothing else to run.
    std::thread::sleep(std::time::Duration::from_nanos(1));
    let tid = Tid::own();
    let clock =
        Process::glimpse(Pid::own()).ok().and_then(|own| own.sched(tid)).map(|sched| sched.ran);
    if moved {
        let _ = sched_setaffinity(own, &before);
    }
    clock
}

/// What is known of the wait that a stop has interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interrupted {
    /// The system call; restart_syscall(2) is resolved to the call it stands for.
    pub call: i64,
    /// Where its time-out is and when that ends, on CLOCK_MONOTONIC in nanoseconds; None: never.
    pub timeout: Option<(Place, u64)>,
    /// The moment until which it waits, as the program gave it.
    pub until: Option<(Until, [u64; 2])>,
    /// Nobody knows how long it has waited already: the time-out is as if it began now.
    pub begins_anew: bool,
}

/// [`Wait::deadline`] of a wait without a time-out.
const NEVER: u64 = u64::MAX;

/// Works out the wait of a stopped thread; None when that cannot be known. `notes` are what an
/// earlier dump has left: a call that goes on by restart_syscall(2) shows neither its number nor the
/// time it had left. `since`: [`Look::since`].
pub(crate) fn interrupted(
    tid: Tid,
    regs: &Regs,
    since: Option<u64>,
    memory: &Memory,
    notes: &[Wait],
) -> Option<Interrupted> {
    let call = regs.orig_rax.cast_signed();
    let args = arguments(regs);
    if call == libc::SYS_restart_syscall {
        let same = |n: &&Wait| n.tid == tid.word() && n.rsp == regs.rsp;
        let Some(note) = notes.iter().find(same) else {
            let regs =
                Regs { orig_rax: resumed::stands_for(&args, memory)?.cast_unsigned(), ..*regs };
            return interrupted(tid, &regs, None, memory, &[]);
        };
        let call = i64::from(note.call);
        let timeout = place(call, &args).filter(|_| note.deadline != NEVER);
        let (timeout, until) = (timeout.map(|p| (p, note.deadline)), moment(call, &args, memory));
        return Some(Interrupted { call, timeout, until, begins_anew: false });
    }
    let until = moment(call, &args, memory);
    let mut begins_anew = false;
    let Some(place) = place(call, &args) else {
        return Some(Interrupted { call, timeout: None, until, begins_anew: false });
    };
    let timeout = match place {
        Place::Millis(i) if (args[i] as i32) < 0 => None,
        Place::Millis(i) => Some(u64::from(args[i] as u32) * 1_000_000),
        Place::Timespec(i) if args[i] == 0 => None,
        Place::Timespec(i) => {
            let [seconds, nanoseconds] = memory.get::<[u64; 2]>(args[i]).ok()?;
            Some(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
        }
    };
    let deadline = match (timeout, since) {
        (None, _) => return Some(Interrupted { call, timeout: None, until, begins_anew }),
        (Some(timeout), Some(since)) => since.saturating_add(timeout).min(NEVER - 1),
        // Not known from the scheduler: it may be a wait that the last dump has made to begin anew.
        (Some(timeout), None) => {
            let same =
                |n: &&Wait| n.tid == tid.word() && n.rsp == regs.rsp && i64::from(n.call) == call;
            let left = |note: &Wait| note.left[0] * 1_000_000_000 + note.left[1];
            let note = notes.iter().find(same);
            let noted = note.filter(|note| left(note).abs_diff(timeout) < 1_000_000);
            let rest =
                || resumed::rest_of_a_sleep(call, &args, memory).filter(|rest| *rest <= timeout);
            match (noted, rest) {
                (Some(note), _) => note.deadline,
                (None, rest) => {
                    let rest = rest();
                    begins_anew = rest.is_none();
                    now().saturating_add(rest.unwrap_or(timeout)).min(NEVER - 1)
                }
            }
        }
    };
    Some(Interrupted { call, timeout: Some((place, deadline)), until, begins_anew })
}

/// The moment until which a call waits.
fn moment(call: i64, args: &[u64; 6], memory: &Memory) -> Option<(Until, [u64; 2])> {
    let until = until(call, args)?;
    Some((until, memory.get(args[until.argument]).ok()?))
}

impl Interrupted {
    /// Which argument points to a struct timespec.
    pub(crate) fn pointer(&self) -> Option<usize> {
        match (self.timeout, self.until) {
            (_, Some((until, _))) => Some(until.argument),
            (Some((Place::Timespec(argument), _)), None) => Some(argument),
            _ => None,
        }
    }

    /// Nanoseconds until the end.
    pub(crate) fn left(&self) -> u64 {
        self.timeout.map_or(0, |(_, deadline)| deadline.saturating_sub(now()))
    }

    /// Notes for the next dump, and the time left for a call that begins anew; `skew` as in [`notes`].
    pub(crate) fn slot(&self, tid: Tid, rsp: u64, skew: i64) -> Wait {
        let left = self.left();
        let relative = [left / 1_000_000_000, left % 1_000_000_000];
        Wait {
            left: self.until.map_or(relative, |(_, moment)| moment),
            pointer: self.until.map_or(0, |(until, _)| until.argument as u32 + 1),
            clock: self.until.map_or(0, |(until, _)| until.clock.cast_unsigned()),
            tid: tid.word(),
            call: self.call as u32,
            rsp,
            deadline: self.timeout.map_or(NEVER, |(_, at)| at.saturating_add_signed(skew)),
            ..Wait::new_zeroed()
        }
    }
}

/// Reads the notes of the last dump. Their deadlines are on the program's clock, which is `skew`
/// nanoseconds ahead of ours; here they become deadlines on ours.
pub(crate) fn notes(memory: &Memory, region: u64, skew: i64) -> Vec<Wait> {
    // All of them would be many pages that nobody has touched.
    let used = memory.get(region + offset_of!(Control, waits) as u64).unwrap_or(WAIT_COUNT);
    let mut notes = vec![Wait::new_zeroed(); used.min(WAIT_COUNT) as usize];
    if memory.read(region + WAITS, notes.as_mut_bytes()).is_err() {
        notes.clear();
    }
    for note in notes.iter_mut().filter(|note| note.deadline != NEVER) {
        note.deadline = note.deadline.saturating_add_signed(skew.saturating_neg());
    }
    notes
}

/// Notes in the order of their threads.
pub(super) fn by_thread(notes: &[Wait]) -> Vec<Wait> {
    let mut notes = notes.to_vec();
    order::by_key(&mut notes, |note| (note.tid.into(), 0));
    notes
}

/// Those about one thread, of some in this order.
pub(super) fn of_thread(notes: &[Wait], tid: Tid) -> &[Wait] {
    let from = notes.partition_point(|note| note.tid < tid.word());
    let to = notes.partition_point(|note| note.tid <= tid.word());
    &notes[from..to]
}

/// Says how many slots may hold notes, as far as they are more than `before`: they are about to be written; or fewer, when
/// those behind them are empty.
pub(crate) fn count(
    memory: &Memory,
    region: u64,
    before: usize,
    used: &[usize],
    order: Ordering,
) -> Result<()> {
    let last = used.iter().max();
    let count = last.map_or(0, |slot| slot + 1);
    match count.cmp(&before) == order {
        true => memory.put(region + offset_of!(Control, waits) as u64, &(count as u64)),
        false => Ok(()),
    }
}

/// Empties the slots of old notes but for those that are used anew: one of an earlier wait would be taken for that of a
/// later one, which has the same stack pointer.
pub(crate) fn forget(memory: &Memory, region: u64, notes: &[Wait], used: &[usize]) -> Result<()> {
    let used: HashSet<usize> = used.iter().copied().collect();
    let old = notes.iter().enumerate().filter(|(slot, note)| note.tid != 0 && !used.contains(slot));
    old.into_iter().try_for_each(|(slot, _)| {
        memory.put(slot_address(region, slot) + offset_of!(Wait, tid) as u64, &0u32)
    })
}

/// Changes the registers so that the call, when it begins anew, waits `left` nanoseconds; a struct
/// timespec for it lies at `slot`.
pub(crate) fn shorten(regs: &mut Regs, place: Place, left: u64, slot: u64) {
    match place {
        Place::Millis(i) => {
            set_argument(regs, i, left.div_ceil(1_000_000).min(i32::MAX as u64));
        }
        Place::Timespec(i) => set_argument(regs, i, slot),
    }
}

/// As [`shorten`], of a thread that waits since `since`, where no memory is at hand: only a time-out in a register.
pub(crate) fn shorten_in_place(regs: &mut Regs, since: Option<u64>) {
    let args = arguments(regs);
    if let Some(Place::Millis(i)) = place(regs.orig_rax.cast_signed(), &args)
        && let Some(since) = since
        && args[i] as i32 > 0
    {
        let end = since.saturating_add(u64::from(args[i] as u32) * 1_000_000);
        shorten(regs, Place::Millis(i), end.saturating_sub(now()), 0);
    }
}

/// Address of a slot.
pub(crate) fn slot_address(region: u64, index: usize) -> u64 {
    region + WAITS + (index * size_of::<Wait>()) as u64
}

/// The slot that lies at an address.
fn slot_at(region: u64, address: u64) -> Option<usize> {
    let offset = address.checked_sub(region + WAITS)?;
    let (index, rest) = (offset / size_of::<Wait>() as u64, offset % size_of::<Wait>() as u64);
    (rest == 0 && index < WAIT_COUNT).then_some(index as usize)
}

/// The slots of notes about threads of which `wanted` says so.
pub(crate) fn of_threads(notes: &[Wait], wanted: impl Fn(u32) -> bool) -> Vec<usize> {
    let all = notes.iter().enumerate();
    all.filter(|(_, note)| note.tid != 0 && wanted(note.tid)).map(|(slot, _)| slot).collect()
}

/// Gives each of some waits, with the registers of its thread, a slot; None where there are not so many. One to which
/// the registers point, for a call that begins anew reads its time there, stays the thread's own; nobody gets those in
/// `kept`.
pub(crate) fn slots(
    region: u64,
    waits: &[(Regs, Interrupted)],
    kept: &[usize],
) -> Vec<Option<usize>> {
    let own =
        |(regs, wait): &(Regs, Interrupted)| slot_at(region, arguments(regs)[wait.pointer()?]);
    let mut slots: Vec<Option<usize>> = waits.iter().map(own).collect();
    let taken: HashSet<usize> = slots.iter().flatten().chain(kept).copied().collect();
    let mut free = (0..WAIT_COUNT as usize).filter(|slot| !taken.contains(slot));
    slots.iter_mut().filter(|slot| slot.is_none()).for_each(|slot| *slot = free.next());
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_waits_have_no_relative_time_out() {
        assert_eq!(place(libc::SYS_clock_nanosleep, &[1, 1, 0, 0, 0, 0]), None);
        assert_eq!(place(libc::SYS_futex, &[0, 137, 0, 0, 0, 0]), None);
        assert_eq!(place(libc::SYS_futex, &[0, 128, 0, 0, 0, 0]), Some(Place::Timespec(3)));
    }

    #[test]
    fn waits_until_a_moment_are_known() {
        let at = |call, args| until(call, &args).map(|until| (until.argument, until.clock));
        let (monotonic, of_day) =
            (Some((3, libc::CLOCK_MONOTONIC)), Some((3, libc::CLOCK_REALTIME)));
        assert_eq!(at(libc::SYS_futex, [0, 137, 0, 8, 0, 0]), monotonic);
        assert_eq!(at(libc::SYS_futex, [0, 137 | 256, 0, 8, 0, 0]), of_day);
        assert_eq!(at(libc::SYS_futex, [0, 134, 0, 8, 0, 0]), of_day);
        assert_eq!(at(libc::SYS_futex, [0, 137, 0, 0, 0, 0]), None);
        assert_eq!(at(libc::SYS_futex, [0, 128, 0, 8, 0, 0]), None);
        assert_eq!(at(libc::SYS_clock_nanosleep, [9, 1, 8, 0, 0, 0]), Some((2, 9)));
        assert_eq!(at(libc::SYS_clock_nanosleep, [1, 0, 8, 0, 0, 0]), None);
        assert_eq!(at(libc::SYS_clock_nanosleep, [2, 1, 8, 0, 0, 0]), None);
        assert_eq!(at(libc::SYS_futex_waitv, [0, 0, 0, 8, 1, 0]), monotonic);
        assert_eq!(at(libc::SYS_mq_timedreceive, [0, 0, 0, 0, 8, 0]), Some((4, 0)));
        assert_eq!(at(libc::SYS_read, [1; 6]), None);
    }

    #[test]
    fn a_slot_that_registers_point_to_stays_the_threads_own() {
        let place = Until { argument: 2, clock: libc::CLOCK_MONOTONIC };
        let wait = Interrupted {
            begins_anew: false,
            call: libc::SYS_clock_nanosleep,
            timeout: None,
            until: Some((place, [1, 0])),
        };
        let at = |rdx| (Regs { rdx, ..Regs::default() }, wait);
        let region = 0x4100_0000_0000;
        let waits = [at(0x1000), at(slot_address(region, 0)), at(slot_address(region, 7)), at(8)];
        assert_eq!(slots(region, &waits, &[]), [Some(1), Some(0), Some(7), Some(2)]);
        assert_eq!(slots(region, &waits, &[2]), [Some(1), Some(0), Some(7), Some(3)]);
    }

    #[test]
    fn milliseconds_are_rounded_up() {
        let mut regs = Regs::default();
        shorten(&mut regs, Place::Millis(3), 1_500_000, 0);
        assert_eq!(regs.r10, 2);
        shorten(&mut regs, Place::Timespec(2), 1, 0x4100);
        assert_eq!(regs.rdx, 0x4100);
    }
}
