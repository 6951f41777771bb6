// SPDX-License-Identifier: LGPL-2.1-only
//! A checkpoint signal that went to a whole process group (^Z) has stopped those who have no handler for it.
//!
//! To the checkpoint they run. As soon as that is known they are told to go on (SIGCONT), while all are held, so that they
//! do so whatever becomes of this dumper, and what their parents could see of it by wait(2) is taken away.

use super::phase2_equip::Equipped;
use super::phase3_gather::Still;
use crate::error::Result;
use crate::inject::region::Region;
use crate::proc::Pid;
use crate::proc::{self, tree};
use crate::ptrace::call::Caller;
use crate::ptrace::freeze::Frozen;
use crate::resource::kinship::Found;
use ckpt_abi::image::process_flag;
use ckpt_abi::region::STACKS;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use std::collections::HashSet;

/// Signals that stop a process where they are not caught. SIGSTOP is none that saves.
const STOPS: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Offset of si_pid in siginfo_t (sigaction(2)).
const SI_PID: u64 = 16;

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
        let is_stopped = process.threads.iter().any(|thread| thread.stopped_by == signal);
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
        processes[index].goes_on();
    }
    Ok(())
}

/// The same where there will be no checkpoint, for the root's process group, as far as can be seen.
pub(crate) fn rescue(root: Pid) {
    let Ok(Some((_, region))) = Region::of(root) else { return };
    let signal = region.control.config.asyncsig.cast_signed();
    let (Ok(first), Ok(all)) = (tree::kin(root), tree::everybody()) else { return };
    let others = tree::below(root, &HashSet::new(), &all).into_iter().skip(1);
    let group =
        others.filter(|pid| all.iter().any(|kin| kin.pid == *pid && kin.group == first.group));
    for pid in group.filter(|_| STOPS.contains(&signal)) {
        let is_stopped = proc::stat(pid, pid.main_thread()).is_ok_and(|stat| stat.state == 'T');
        if let Some(frozen) = is_stopped.then(|| Frozen::freeze_one(pid).ok()).flatten()
            && frozen.threads.iter().any(|thread| thread.stopped_by == signal)
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

fn go_on(pid: Pid) {
    let _ = kill(pid.nix(), Signal::SIGCONT);
}

/// Whether the signal waits in a process and will stop it.
fn is_about_to_stop(process: &Equipped, signal: i32) -> Result<bool> {
    let status = process.process.status(process.process.main_thread())?;
    let bit = 1u64 << (signal - 1);
    Ok((status.pending | status.shared_pending) & !(status.caught | status.ignored) & bit != 0)
}

/// Whether wait(2) tells a parent of a child so; unless WNOWAIT is asked for, once.
fn tells(parent: &Equipped, frozen: &mut Frozen, child: Pid, what: i32) -> Result<bool> {
    let Equipped { memory, region, .. } = parent;
    let Some(thread) = frozen.threads.first_mut() else { return Ok(false) };
    let at = region.base + STACKS;
    memory.put(at + SI_PID, &0u32)?;
    let args = [libc::P_PID.into(), child.word().into(), at, (what | libc::WNOHANG) as u64, 0];
    let done = Caller::new(thread, memory, &region.desk())?.call(libc::SYS_waitid, &args)?;
    Ok(done == 0 && memory.get::<u32>(at + SI_PID)? != 0)
}
