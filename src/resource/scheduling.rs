//! How the kernel schedules a thread: policy, priority, nice value, CPUs.

use super::plan::{Arena, Orders, Step};
use crate::error::Result;
use crate::proc;
use ckpt_abi::image::Thread;
use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// Bytes of the first version of struct sched_attr (sched_setattr(2)).
const ATTR_SIZE: u32 = 48;
const SCHED_RESET_ON_FORK: u32 = 0x4000_0000;

/// Saves the scheduling of a thread into its record.
pub fn save(pid: i32, record: &mut Thread) -> Result<()> {
    let tid = record.tid.cast_signed();
    let stat = proc::stat(pid, tid)?;
    record.policy = stat.policy;
    record.priority = stat.rt_priority;
    record.nice = stat.nice;
    record.timer_slack = proc::timer_slack(pid, tid);
    let Ok(set) = sched_getaffinity(Pid::from_raw(tid)) else { return Ok(()) };
    let cpus = record.affinity.len() * 64;
    let has = |set: &CpuSet, cpu| set.is_set(cpu).unwrap_or(false);
    // A thread that may run everywhere here may run everywhere there.
    if (0..cpus).all(|cpu| has(&set, cpu) || !online(cpu)) {
        return Ok(());
    }
    for cpu in (0..cpus).filter(|cpu| has(&set, *cpu)) {
        record.affinity[cpu / 64] |= 1 << (cpu % 64);
    }
    Ok(())
}

fn online(cpu: usize) -> bool {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}");
    // A CPU that cannot be taken offline has no such file.
    match std::fs::read_to_string(format!("{path}/online")) {
        Ok(text) => text.trim() == "1",
        Err(_) => std::path::Path::new(&path).exists(),
    }
}

/// Orders for the running thread. What the restarter may not do (a lower nice value, a real-time
/// policy) or this machine does not have (a CPU) stays as it is.
pub fn restore(thread: &Thread, arena: &mut Arena, orders: &mut Orders) -> Result<()> {
    let mut attr = Vec::new();
    attr.extend_from_slice(&ATTR_SIZE.to_le_bytes());
    attr.extend_from_slice(&(thread.policy & !SCHED_RESET_ON_FORK).to_le_bytes());
    attr.extend_from_slice(&0u64.to_le_bytes());
    attr.extend_from_slice(&thread.nice.to_le_bytes());
    attr.extend_from_slice(&thread.priority.to_le_bytes());
    attr.resize(ATTR_SIZE as usize, 0);
    let at = arena.bytes(&attr)?;
    orders.try_call(Step::Thread, libc::SYS_sched_setattr, &[0, at, 0]);
    if thread.affinity != [0; 16] {
        let at = arena.value(&thread.affinity)?;
        let len = size_of_val(&thread.affinity) as u64;
        orders.try_call(Step::Thread, libc::SYS_sched_setaffinity, &[0, len, at]);
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
