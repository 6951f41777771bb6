// SPDX-License-Identifier: LGPL-2.1-only
//! How the kernel schedules a thread: policy, priority, nice value, CPUs.

use super::plan::{Arena, Orders, Step};
use crate::error::Result;
use crate::proc::{Process, Tid};
use crate::ptrace::list::{List, Question, Replies};
use crate::ptrace::raw::{self, SchedAttr};
use ckpt_abi::image::Thread;
use nix::libc;
use std::sync::OnceLock;

/// Bytes of the first version of struct sched_attr (sched_setattr(2)).
const ATTR_SIZE: u32 = 48;
const SCHED_RESET_ON_FORK: u32 = 0x4000_0000;
const SCHED_DEADLINE: u32 = 6;
/// SCHED_OTHER and SCHED_BATCH.
const NORMAL: [u32; 2] = [0, 3];
const FLAG_RESET_ON_FORK: u64 = 1;
/// SCHED_FLAG_RECLAIM and SCHED_FLAG_DL_OVERRUN.
const DEADLINE_FLAGS: u32 = 6;
const IOPRIO_WHO_PROCESS: u64 = 1;
const IOPRIO_CLASS_SHIFT: u32 = 13;

/// What a thread is asked.
pub(crate) struct SchedulingQuestions {
    attr: Question,
    nice: Question,
    io: Question,
    cpus: Question,
}

/// What it has answered, as far as the kernel knows of it.
pub(crate) struct Scheduling {
    attr: Option<SchedAttr>,
    nice: Option<i32>,
    io: u64,
    cpus: Option<[u64; 16]>,
}

/// Adds the questions to a thread's list.
pub(crate) fn ask(list: &mut List) -> SchedulingQuestions {
    let (attr, cpus) = (size_of::<SchedAttr>(), size_of::<[u64; 16]>());
    SchedulingQuestions {
        attr: list.reading(libc::SYS_sched_getattr, &[0, 0, attr as u64, 0], 1, attr),
        nice: list.call(libc::SYS_getpriority, &[libc::PRIO_PROCESS as u64, 0]),
        io: list.call(libc::SYS_ioprio_get, &[IOPRIO_WHO_PROCESS, 0]),
        cpus: list.reading(libc::SYS_sched_getaffinity, &[0, cpus as u64, 0], 2, cpus),
    }
}

impl SchedulingQuestions {
    pub(crate) fn answers(&self, replies: &Replies) -> Scheduling {
        /// The system call answers 20 minus the nice value (getpriority(2), "C library/kernel differences").
        const ABOVE: i64 = 20;
        let nice = Some(replies.result(self.nice)).filter(|nice| *nice > 0);
        Scheduling {
            attr: (replies.result(self.attr) == 0).then(|| replies.get(self.attr)),
            nice: nice.map(|nice| (ABOVE - nice) as i32),
            io: replies.result(self.io).max(0).cast_unsigned(),
            cpus: (replies.result(self.cpus) > 0).then(|| replies.get(self.cpus)),
        }
    }
}

/// Saves the scheduling of a thread of a process into its record.
///
/// # Errors
/// It is gone.
pub(crate) fn save(process: &Process, known: &Scheduling, record: &mut Thread) -> Result<()> {
    let tid = Tid::of_word(record.tid);
    record.io_priority = explicit(known.io);
    if let Some(SchedAttr { flags, policy, nice, priority, .. }) = known.attr {
        let resets = if flags & FLAG_RESET_ON_FORK != 0 { SCHED_RESET_ON_FORK } else { 0 };
        (record.policy, record.nice, record.priority) = (policy | resets, nice, priority);
    }
    match (known.attr, known.nice) {
        // Of one that is not of a normal policy that call does not tell the nice value.
        (Some(attr), Some(nice)) if !NORMAL.contains(&attr.policy) => record.nice = nice,
        (Some(_), Some(_)) => {}
        _ => {
            let stat = process.stat(tid)?;
            record.policy = raw::policy(tid).unwrap_or(stat.policy);
            (record.nice, record.priority) = (stat.nice, stat.rt_priority);
        }
    }
    match known.attr {
        Some(attr) if attr.policy == SCHED_DEADLINE => {
            record.deadline = attr.deadline;
            record.deadline_flags = attr.flags as u32 & DEADLINE_FLAGS;
        }
        // What the kernel gives everybody here is not the thread's own.
        Some(attr) if attr.deadline[0] != slice() => record.deadline[0] = attr.deadline[0],
        Some(_) | None => {}
    }
    let Some(set) = known.cpus else { return Ok(()) };
    let lacks = |cpu: &usize| set.get(cpu / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 0);
    // A thread that may run everywhere here may run everywhere there.
    if online().iter().any(lacks) {
        record.affinity = set;
    }
    Ok(())
}

/// The slice of this process, in nanoseconds; looked up once, as the CPUs.
fn slice() -> u64 {
    static SLICE: OnceLock<u64> = OnceLock::new();
    *SLICE.get_or_init(|| raw::scheduling(Tid::of_word(0)).map_or(0, |own| own.deadline[0]))
}

/// The CPUs of this machine that are online; looked up once, there are thousands of threads.
fn online() -> &'static Vec<usize> {
    static ONLINE: OnceLock<Vec<usize>> = OnceLock::new();
    ONLINE.get_or_init(|| {
        let text = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
        cpus(text.trim())
    })
}

/// The CPUs of a list such as "0-3,8" (cpuset(7), "List format").
fn cpus(list: &str) -> Vec<usize> {
    let range = |item: &str| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

/// An I/O priority that was set; without one the kernel answers what follows from the nice value
/// (ioprio_set(2), IOPRIO_CLASS_NONE), class 0 before Linux 5.18 and "best effort" since.
fn explicit(priority: u64) -> u64 {
    if priority >> IOPRIO_CLASS_SHIFT == 0 { 0 } else { priority }
}

/// Whether a thread runs before all ordinary ones, for as long as it wants to.
pub(crate) fn is_real_time(thread: &Thread) -> bool {
    matches!(thread.policy & !SCHED_RESET_ON_FORK, 1 | 2 | SCHED_DEADLINE)
}

/// A sentence about real-time scheduling that a restart by this process goes without (sched(7), "Privileges and
/// resource limits").
pub(crate) fn denied(threads: &[Thread]) -> Option<String> {
    const CAP_SYS_NICE: u64 = 1 << 23;
    let own = Process::own();
    let nice = own.as_ref().is_ok_and(|own| {
        own.main_status().is_ok_and(|status| status.capabilities & CAP_SYS_NICE != 0)
    });
    let limit =
        own.and_then(|own| own.limits()).map_or(0, |limits| limits[libc::RLIMIT_RTPRIO as usize].0);
    let policy = |thread: &Thread| thread.policy & !SCHED_RESET_ON_FORK;
    let denied = threads.iter().find(|thread| match policy(thread) {
        SCHED_DEADLINE => !nice,
        1 | 2 => !nice && u64::from(thread.priority) > limit,
        _ => false,
    })?;
    let policy = match policy(denied) {
        SCHED_DEADLINE => "SCHED_DEADLINE",
        1 => "SCHED_FIFO",
        _ => "SCHED_RR",
    };
    Some(format!(
        "the program had real-time scheduling ({policy}), which it does not get here: that takes root or a higher limit (ulimit -r)"
    ))
}

/// Orders for the running thread. What the restarter may not do (a lower nice value, a real-time
/// policy) or this machine does not have (a CPU) stays as it is.
pub(crate) fn restore(thread: &Thread, arena: &mut Arena, orders: &mut Orders) -> Result<()> {
    // sched_setattr(2) takes the nice value of the normal policies only.
    let nice = i64::from(thread.nice).cast_unsigned();
    let own = [libc::PRIO_PROCESS as u64, 0, nice];
    orders.try_call(Step::Thread, libc::SYS_setpriority, &own);
    let mut attr = Vec::new();
    attr.extend_from_slice(&ATTR_SIZE.to_le_bytes());
    attr.extend_from_slice(&(thread.policy & !SCHED_RESET_ON_FORK).to_le_bytes());
    let resets = thread.policy & SCHED_RESET_ON_FORK != 0;
    let flags = u64::from(resets) | u64::from(thread.deadline_flags);
    attr.extend_from_slice(&flags.to_le_bytes());
    attr.extend_from_slice(&thread.nice.to_le_bytes());
    attr.extend_from_slice(&thread.priority.to_le_bytes());
    // A slice of 0 is the kernel's own (kernel/sched/syscalls.c, __setparam_fair).
    attr.extend(thread.deadline.iter().flat_map(|time| time.to_le_bytes()));
    let at = arena.bytes(&attr)?;
    orders.try_call(Step::Thread, libc::SYS_sched_setattr, &[0, at, 0]);
    if thread.affinity != [0; 16] {
        let at = arena.value(&thread.affinity)?;
        let len = size_of_val(&thread.affinity) as u64;
        orders.try_call(Step::Thread, libc::SYS_sched_setaffinity, &[0, len, at]);
    }
    if thread.io_priority != 0 {
        let args = [IOPRIO_WHO_PROCESS, 0, thread.io_priority];
        orders.try_call(Step::Thread, libc::SYS_ioprio_set, &args);
    }
    if thread.timer_slack != 0 {
        let args = [libc::PR_SET_TIMERSLACK as u64, thread.timer_slack];
        orders.try_call(Step::Thread, libc::SYS_prctl, &args);
    }
    if thread.death_signal != 0 {
        let args = [libc::PR_SET_PDEATHSIG as u64, thread.death_signal.into()];
        orders.try_call(Step::Thread, libc::SYS_prctl, &args);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn the_kernels_slice_is_not_a_threads_own() {
        let own = Process::own().unwrap();
        let tid = own.main_thread();
        let mut record = Thread { tid: tid.word(), ..Thread::new_zeroed() };
        let attr = raw::scheduling(tid).ok();
        let mut known = Scheduling { attr, nice: Some(7), io: 0, cpus: Some([u64::MAX; 16]) };
        save(&own, &known, &mut record).unwrap();
        assert_eq!((record.deadline, record.affinity), ([0; 3], [0; 16]));
        let stat = own.stat(tid).unwrap();
        assert_eq!((record.policy, record.nice), (stat.policy, stat.nice));
        // The first CPU is missing, and it is of another policy.
        known.cpus = Some([!1; 16]);
        known.attr = attr.map(|attr| SchedAttr { policy: 1, priority: 3, ..attr });
        save(&own, &known, &mut record).unwrap();
        assert_eq!((record.policy, record.nice, record.priority), (1, 7, 3));
        assert_eq!(record.affinity, [!1; 16]);
    }

    #[test]
    fn lists_of_cpus() {
        assert_eq!(cpus("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(cpus("3"), [3]);
        assert_eq!(cpus(""), [0_usize; 0]);
    }
}
