// SPDX-License-Identifier: LGPL-2.1-only
//! The ids of CPU clocks (clock_getcpuclockid(3), pthread_getcpuclockid(3)), which are made of the id of a process or
//! thread.

/// The id of a CPU clock: its kind in the lowest bits, the complement of an id above (include/linux/posix-timers.h).
pub(crate) const KIND: i32 = 7;
pub(crate) const OF_THREAD: i32 = 4;
/// CPUCLOCK_SCHED, of which CLOCK_PROCESS_CPUTIME_ID and CLOCK_THREAD_CPUTIME_ID are short forms.
pub(crate) const SCHED: i32 = 2;

/// The clock of this kind of a process or thread; 0 is the caller's.
pub(crate) fn id_of(id: i32, kind: i32) -> i32 {
    !id << 3 | kind
}
