// SPDX-License-Identifier: LGPL-2.1-only
//! A checkpoint signal that went to a whole process group (^Z) has stopped those who have no handler for it.
//!
//! To the checkpoint they run. As soon as that is known they are told to go on (SIGCONT), while all are held, so that they
//! do so whatever becomes of this dumper, and what their parents could see of it by wait(2) is taken away. So are those who
//! have a handler of their own that stops them itself, by SIGSTOP (pv, top).

use super::caller;
use super::phase2_equip::Equipped;
use super::phase3_gather::Still;
use crate::error::Result;
use crate::inject::region::Region;
use crate::proc::{Pid, Process, status::Status, tree};
use crate::ptrace::call::Caller;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::raw::signal_set;
use crate::ptrace::regs::Regs;
use crate::resource::kinship::Found;
use ckpt_abi::image::process_flag;
use ckpt_abi::region::{Control, STACKS};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use std::collections::HashSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Signals that stop a process where they are not caught. SIGSTOP is none that saves.
const STOPS: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// How long the few instructions may take that lie between a signal's handler and its first mark.
const ENTRY: Duration = Duration::from_millis(500);

/// How often to look for it.
const LOOK: Duration = Duration::from_millis(1);

/// Offset of si_pid in siginfo_t (sigaction(2)).
const SI_PID: u64 = 16;
const SI_CODE: u64 = 8;
const SI_STATUS: u64 = 24;

/// Whether the payload's owner, from which the process was forked, just takes a checkpoint of them both, or is about to: a
/// signal to a whole group comes to each, in no order.
pub(super) fn is_forebears(process: &Process) -> bool {
    let Ok(Some(found)) = caller::Caller::find(process) else { return false };
    let control = found.region.control;
    let owner = Pid::of_word(control.owner);
    let called = found.api.request == ckpt_abi::api::Request::Call as u32;
    if called || found.region.is_for(process) {
        return false;
    }
    let Ok(owner) = Process::open(owner) else { return false };
    // Who has the owner's id by now has not its payload.
    let theirs = Region::of(&owner).ok().flatten().map(|(_, region)| region);
    let is_its = |region: &Region| {
        let Control { config, owner, .. } = region.control;
        (owner, region.base, config.run) == (control.owner, found.region.base, control.config.run)
    };
    theirs.is_some_and(|region| is_its(&region))
        && serves(&owner, control.config.asyncsig.cast_signed())
}

/// Whether a process takes a checkpoint, has the signal before it, or is between the two: in the handler, where all
/// signals are blocked, but not yet so far that its page tells. Some programs block all for other reasons.
fn serves(process: &Process, signal: i32) -> bool {
    const ALL: u64 = !(signal_set(libc::SIGKILL) | signal_set(libc::SIGSTOP));
    let deadline = Instant::now() + ENTRY;
    loop {
        let Ok(tids) = process.tasks() else { return false };
        let all: Vec<_> = tids.into_iter().filter_map(|tid| process.status(tid).ok()).collect();
        let waits = |one: &Status| one.waiting() & signal_set(signal) != 0;
        if all.iter().any(waits) || super::phase2_equip::is_busy(process) {
            return true;
        }
        let is_inside = |one: &Status| one.blocked & ALL == ALL;
        if !all.iter().any(is_inside) || Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(LOOK);
    }
}

/// Whether the signal waits in a descendant whose handler has yet to run, which it does as soon as it is let go.
pub(super) fn has_yet_to_come(equipped: &[Equipped], processes: &[Frozen]) -> bool {
    let signal = equipped.first().map_or(0, |root| root.region.control.config.asyncsig);
    let signal = signal.cast_signed();
    let comes = |(process, frozen): (&Equipped, &Frozen)| {
        let waits = process.process.main_status();
        let waits = waits.map(|status| status.waiting() & status.caught & !status.blocked);
        !frozen.is_halted() && waits.is_ok_and(|set| set & signal_set(signal) != 0)
    };
    signal != 0 && equipped.iter().zip(processes).skip(1).any(comes)
}

/// Lets those go on that the checkpoint signal has stopped, or is about to: in the root's process group, as the shell's fg
/// would; in others, if their parents have not heard of it yet, for whom it may mean something else.
///
/// # Errors
/// One is gone.
pub(super) fn release(equipped: &[Equipped], processes: &mut [Frozen]) -> Result<()> {
    let Some(root) = equipped.first() else { return Ok(()) };
    let signal = root.region.control.config.asyncsig.cast_signed();
    if !STOPS.contains(&signal) {
        return Ok(());
    }
    let group = tree::kin(root.process.pid())?.group;
    for index in 1..processes.len() {
        let process = &processes[index];
        let stops_itself = has_stopped_itself(process, signal);
        let is_stopped = stops_itself || is_stopped_by(process, signal);
        // Of who is stopped by another signal, this one waits, and SIGCONT takes it away some day.
        if !is_stopped && (process.is_halted() || !is_about_to_stop(&equipped[index], signal)?) {
            continue;
        }
        let kin = tree::kin(process.pid)?;
        let parent = equipped.iter().position(|process| process.process.pid() == kin.parent);
        let mut tells = |what: i32| {
            parent.map_or(Ok(false), |parent| {
                tells(&equipped[parent], &mut processes[parent], kin.pid, what)
            })
        };
        if is_stopped && kin.group != group && !tells(libc::WSTOPPED | libc::WNOWAIT)? {
            continue;
        }
        go_on(kin.pid);
        tells(libc::WCONTINUED)?;
        // Who has stopped itself is told that it goes on.
        processes[index].goes_on(!stops_itself);
    }
    Ok(())
}

/// The same where there will be no checkpoint, for the root's process group, as far as can be seen.
pub(crate) fn rescue(root: &Process) {
    let Ok(Some((_, region))) = Region::of(root) else { return };
    let signal = region.control.config.asyncsig.cast_signed();
    let (Ok(first), Ok(all)) = (tree::kin(root.pid()), tree::everybody()) else { return };
    let others =
        tree::below(root.pid(), region.begun(root), &HashSet::new(), &all).into_iter().skip(1);
    let group =
        others.filter(|pid| all.iter().any(|kin| kin.pid == *pid && kin.group == first.group));
    for pid in group.filter(|_| STOPS.contains(&signal)) {
        let stopped = Process::open(pid).ok().filter(Process::is_stopped);
        // Who has the id of one that has ended since it was listed is in no group of the job.
        let is_its = |it: &Process| it.main_stat().is_ok_and(|stat| stat.pgrp == first.group);
        if let Some(process) = stopped.filter(is_its)
            && let Ok(frozen) = Frozen::freeze_one(&process)
            && (is_stopped_by(&frozen, signal) || has_stopped_itself(&frozen, signal))
        {
            go_on(pid);
        }
    }
}

/// Finds out of whose stop the parent has not been told; a restart lets it know.
///
/// # Errors
/// One is gone.
pub(super) fn find_untold(processes: &mut [Still<'_>], found: &mut [Found]) -> Result<()> {
    for (index, own) in found.iter_mut().enumerate() {
        let process = &processes[index];
        let flags = process.gathered.process.map_or(0, |process| process.flags);
        if flags & process_flag::STOPPED == 0 {
            continue;
        }
        let is_halted = process.frozen.is_halted();
        let mut all = processes.iter_mut();
        let parent = all.find(|process| process.equipped.process.pid() == own.kin.parent);
        own.untold = match parent {
            Some(Still { equipped, frozen, .. }) if is_halted => {
                tells(equipped, frozen, own.kin.pid, libc::WSTOPPED | libc::WNOWAIT)?
            }
            _ => true,
        };
    }
    Ok(())
}

fn is_stopped_by(process: &Frozen, signal: i32) -> bool {
    process.threads.iter().any(|thread| thread.stopped_by == signal)
}

/// Whether a process that has a handler of its own for the signal stands in the call by which it has stopped itself.
fn has_stopped_itself(process: &Frozen, signal: i32) -> bool {
    const STOP: u64 = libc::SIGSTOP as u64;
    let catches = |status: Rc<Status>| status.caught & signal_set(signal) != 0;
    process.threads.iter().any(|thread| {
        let Regs { orig_rax, rdi, rsi, rdx, .. } = thread.regs;
        let (own, tid) = (process.pid.word().into(), thread.tid.word().into());
        let calls = match orig_rax.cast_signed() {
            libc::SYS_kill => rdi == own && rsi == STOP,
            libc::SYS_tkill => rdi == tid && rsi == STOP,
            libc::SYS_tgkill => rdi == own && rsi == tid && rdx == STOP,
            _ => false,
        };
        calls && thread.stopped_by == libc::SIGSTOP && thread.look(process.pid).is_ok_and(catches)
    })
}

fn go_on(pid: Pid) {
    let _ = kill(pid.nix(), Signal::SIGCONT);
}

/// Whether the signal waits in a process and will stop it.
fn is_about_to_stop(process: &Equipped, signal: i32) -> Result<bool> {
    let status = process.process.main_status()?;
    Ok(status.waiting() & !(status.caught | status.ignored) & signal_set(signal) != 0)
}

/// Whether wait(2) tells a parent of a child so; unless WNOWAIT is asked for, once.
fn tells(parent: &Equipped, frozen: &mut Frozen, child: Pid, what: i32) -> Result<bool> {
    Ok(told(parent, frozen, child, what)?.is_some())
}

/// What waitid(2) tells a parent of a child: its si_code and its si_status.
fn told(parent: &Equipped, frozen: &mut Frozen, child: Pid, what: i32) -> Result<Option<[i32; 2]>> {
    let Equipped { memory, region, .. } = parent;
    let Some(thread) = frozen.threads.first_mut() else { return Ok(None) };
    let at = region.base + STACKS;
    memory.put(at + SI_PID, &0u32)?;
    let args = [libc::P_PID.into(), child.word().into(), at, (what | libc::WNOHANG) as u64, 0];
    let done = Caller::new(thread, memory, &region.desk())?.call(libc::SYS_waitid, &args)?;
    if done != 0 || memory.get::<u32>(at + SI_PID)? == 0 {
        return Ok(None);
    }
    Ok(Some([memory.get(at + SI_CODE)?, memory.get(at + SI_STATUS)?]))
}

/// Asks the parents how those have ended of whom /proc does not say so: to whom it hides their rights it shows 0
/// (proc_pid_stat(5), exit_code).
///
/// # Errors
/// A parent is gone.
pub(super) fn find_ends(processes: &mut [Still<'_>], dead: &mut [Found]) -> Result<()> {
    let hidden = |own: &&mut Found| own.stat.as_ref().is_some_and(|stat| stat.wait_status == 0);
    for own in dead.iter_mut().filter(hidden) {
        let parent = processes.iter_mut().find(|p| p.equipped.process.pid() == own.kin.parent);
        let Some(Still { equipped, frozen, .. }) = parent else { continue };
        let how = libc::WEXITED | libc::WNOWAIT | libc::__WALL;
        if let Some([code, status]) = told(equipped, frozen, own.kin.pid, how)?
            && let Some(stat) = &mut own.stat
        {
            stat.wait_status = match code {
                libc::CLD_EXITED => status << 8,
                libc::CLD_DUMPED => status | 0x80,
                _ => status,
            };
        }
    }
    Ok(())
}
