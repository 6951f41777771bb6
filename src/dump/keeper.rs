// SPDX-License-Identifier: LGPL-2.1-only
//! Whose child a dumper and a snapshot may be.
//!
//! They are children of children of the program that end, and so come to init, which the program never notices;
//! unless it adopts orphans itself, or its init reaps nothing and would keep a zombie of each.

use crate::error::Result;
use crate::inject::region::Region;
use crate::proc::{Pid, Process, pidfd::Pidfd};
use crate::ptrace::call::Caller;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use ckpt_abi::region::STACKS;
use nix::libc;
use std::sync::OnceLock;
use std::time::Duration;

/// How long a process that was killed may take to end.
const END: Duration = Duration::from_secs(1);

/// Whether orphans of the frozen program come to somebody who reaps them, as far as is known before it was asked
/// whether it adopts them itself. If so, the keeper of this dumper is sent away: nobody but a stopped thread that we drive
/// can meet its end.
pub(super) fn dismiss(frozen: &mut Frozen, memory: &Memory, region: &Region) -> Result<bool> {
    let (pid, keeper) = (frozen.pid, region.turns(memory)?.keeper);
    let asks = keeper != 0;
    let adopts = is_apart(frozen)? || (asks && adopts(frozen, memory, region)?);
    let elsewhere = !adopts && init_reaps(pid);
    let ours = keeper != 0 && nix::unistd::getppid().as_raw() == keeper.cast_signed();
    if keeper == 0 || (ours && !elsewhere) {
        return Ok(elsewhere);
    }
    if let Some(process) = Pidfd::open(Pid::of_word(keeper)).ok().filter(|_| ours) {
        process.kill();
        process.ended_within(END);
    }
    let Some(first) = frozen.threads.first_mut() else { return Ok(elsewhere) };
    let mut caller = Caller::new(first, memory, &region.desk())?;
    let options = libc::__WCLONE as u32 as u64 | libc::WNOHANG as u64;
    // One that another dumper has left may still end; then the next reaps it.
    if caller.call(libc::SYS_wait4, &[keeper.into(), 0, options, 0])? != 0 {
        region.forget_keeper(memory)?;
    }
    Ok(elsewhere)
}

/// Whether orphans come to the program as the first process of its PID namespace. One of another namespace than ours would
/// get them under numbers that mean nothing here. Where its children come into another (unshare(2)), orphans go to the first
/// of them, and are that themselves if there was none yet: it ends, and the program can never fork again.
fn is_apart(frozen: &Frozen) -> Result<bool> {
    let process = frozen.process();
    let inner = match frozen.threads.first() {
        Some(first) => first.look(frozen.pid)?.inner_id,
        None => process.inner_pid(),
    };
    let ours = std::fs::read_link("/proc/self/ns/pid").ok();
    let elsewhere = |kind: &&str| process.namespace(kind) != ours;
    Ok(inner == Pid::INIT || ["pid", "pid_for_children"].iter().any(elsewhere))
}

/// Whether the program has asked for orphans (PR_SET_CHILD_SUBREAPER in prctl(2)). Of one without a keeper that is asked
/// with all else, before there is a snapshot.
fn adopts(frozen: &mut Frozen, memory: &Memory, region: &Region) -> Result<bool> {
    let Some(first) = frozen.threads.first_mut() else { return Ok(true) };
    let mut caller = Caller::new(first, memory, &region.desk())?;
    let at = region.base + STACKS;
    let what = "cannot ask who reaps orphans";
    caller.expect(libc::SYS_prctl, &[libc::PR_GET_CHILD_SUBREAPER as u64, at], what)?;
    Ok(memory.get::<u32>(at)? != 0)
}

/// Whether the first process of the namespace reaps what comes to it, as far as can be seen: it catches, ignores or
/// awaits SIGCHLD, or stands in wait(2). A program that was never meant to be an init, as many containers have, may
/// do none of that.
///
/// It is looked at once: a job has many processes, and one init.
pub(super) fn init_reaps(pid: Pid) -> bool {
    static REAPS: OnceLock<bool> = OnceLock::new();
    pid == Pid::INIT || *REAPS.get_or_init(looks_like_a_reaper)
}

fn looks_like_a_reaper() -> bool {
    const CHILD: u64 = 1 << (libc::SIGCHLD - 1);
    let Ok(init) = Process::glimpse(Pid::INIT) else { return true };
    let Ok(status) = init.main_status() else { return true };
    if (status.caught | status.ignored | status.blocked) & CHILD != 0 {
        return true;
    }
    let waits = |call: u64| {
        matches!(call.cast_signed(), libc::SYS_wait4 | libc::SYS_waitid | libc::SYS_rt_sigtimedwait)
    };
    match init.syscall(init.main_thread()) {
        Ok(Some((call, _))) => waits(call),
        // Running, or not to be looked at.
        _ => !has_zombies(&init),
    }
}

/// Whether a process of ours that came to init has ended and lies there since long: a slow init may leave it there
/// for some seconds. When it ended nobody can see, but when it began: so those count that live for a moment only, and
/// no monitor or init of a job that was there for hours.
fn has_zombies(init: &Process) -> bool {
    const BRIEF: [&[u8]; 3] = [b"ckpt-snapshot", b"ckpt-dump", b"ckpt-keeper"];
    /// In clock ticks.
    const LONG: u64 = 60 * 100;
    let now = Process::own().and_then(|own| own.main_stat());
    let Ok(now) = now.map(|own| own.starttime) else { return false };
    let dead = |child: &Pid| {
        Process::glimpse(*child).and_then(|it| it.main_stat()).is_ok_and(|stat| {
            let is_brief = BRIEF.contains(&stat.comm.as_encoded_bytes());
            is_brief && stat.state == 'Z' && stat.starttime.saturating_add(LONG) < now
        })
    };
    init.children().iter().any(dead)
}
