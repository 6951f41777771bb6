// SPDX-License-Identifier: LGPL-2.1-only
//! Signals: dispositions and queues. Masks and alternate stacks belong to [`super::threads`].

use super::plan::{Arena, Orders, Step};
use super::{Gathered, Target};
use crate::error::{Because, Result};
use crate::proc::Pid;
use crate::ptrace::list::{List, Question, Replies};
use crate::ptrace::raw;
use crate::settings::signal_name;
use ckpt_abi::image::{PendingSignal, SignalAction, process_flag};
use ckpt_abi::op::{OpKind, flag};
use nix::libc;
use std::collections::HashSet;

/// Number of signals.
pub(crate) const COUNT: u64 = 64;
/// Bytes of a disposition, the kernel's struct sigaction.
const ACTION: usize = size_of::<SignalAction>();
const UNCATCHABLE: [u64; 2] = [libc::SIGKILL as u64, libc::SIGSTOP as u64];

/// Asks for the dispositions of all signals.
pub(crate) fn ask(list: &mut List) -> Vec<Question> {
    let ask = |signal| list.reading(libc::SYS_rt_sigaction, &[signal, 0, 0, 8], 2, ACTION);
    (1..=COUNT).map(ask).collect()
}

/// Saves what was answered.
#[inline(never)]
pub(crate) fn save_actions(
    asked: &[Question],
    answers: &Replies,
    gathered: &mut Gathered,
) -> Result<()> {
    for asked in asked {
        answers.expect(*asked, "cannot read a signal's disposition")?;
        gathered.actions.push(answers.get(*asked));
    }
    Ok(())
}

/// Reads the queues of the process and of every thread.
#[inline(never)]
pub(crate) fn save_pending(target: &Target<'_>, gathered: &mut Gathered) -> Result<()> {
    let trigger = target.region.control.config.asyncsig.cast_signed();
    for (i, thread) in target.frozen.threads.iter().enumerate() {
        let mut add = |shared: bool| -> Result<()> {
            let queue = raw::peek_siginfo(thread.tid, shared)
                .because(|| format!("cannot read the pending signals of thread {}", thread.tid))?;
            for siginfo in queue {
                let signal = i32::from_le_bytes([siginfo[0], siginfo[1], siginfo[2], siginfo[3]]);
                // A checkpoint signal that came while another was served must not end the
                // program again as soon as it is restarted.
                if signal != trigger {
                    let tid = if shared { 0 } else { thread.tid.word() };
                    gathered.pending.push(PendingSignal { tid, reserved: 0, siginfo });
                }
            }
            Ok(())
        };
        if i == 0 {
            add(true)?;
        }
        add(false)?;
    }
    Ok(())
}

/// Marks a program that is stopped, or about to be by a SIGSTOP that waits: queued again, that would stop the restorer in
/// the middle, for nobody can block it. A remote call may have taken one that came while all stood still; SIGCONT, if it
/// waits, has come after it, for the kernel forgets the one when the other comes.
pub(crate) fn save_stop(target: &Target<'_>, gathered: &mut Gathered) {
    let before = gathered.pending.len();
    gathered.pending.retain(|p| p.siginfo[..4] != libc::SIGSTOP.to_le_bytes());
    let stops = gathered.pending.len() < before;
    let goes_on = gathered.pending.iter().any(|p| p.siginfo[..4] == libc::SIGCONT.to_le_bytes());
    if target.frozen.was_told {
        gathered.pending.retain(|p| p.siginfo[..4] != libc::SIGCONT.to_le_bytes());
    }
    let stopped_by = target.frozen.threads.iter().map(|thread| thread.stopped_by).max();
    let halted_by = target.frozen.threads.iter().map(|thread| thread.halted_by).max();
    let halted_by = halted_by.filter(|_| !goes_on);
    let stopped_by = stopped_by.filter(|by| *by != 0).or(halted_by).unwrap_or(0).unsigned_abs();
    if let Some(process) = &mut gathered.process
        && (stopped_by != 0 || stops)
    {
        process.flags |= process_flag::STOPPED;
        process.stopped_by = stopped_by;
    }
}

/// Leaves out a SIGTERM that waits in a program which its checkpoint ends. Schedulers send it
/// together with the checkpoint signal; it meant this run, and would end the restarted one at once. What one of `members`
/// has sent to another means that.
pub(crate) fn forget_termination(gathered: &mut Gathered, members: &HashSet<Pid>) {
    let before = gathered.pending.len();
    gathered.pending.retain(|p| {
        // si_signo, si_code and si_pid (sigaction(2)).
        let [signal, code, sender] = [0, 8, 16].map(|at| i32_at(&p.siginfo, at));
        signal != libc::SIGTERM || code <= 0 && members.contains(&Pid::new(sender))
    });
    if gathered.pending.len() < before {
        gathered.losses.push("a SIGTERM that came while the program was saved and ended".into());
    }
}

fn i32_at(siginfo: &[u8; 128], at: usize) -> i32 {
    siginfo[at..].first_chunk().map_or(0, |word| i32::from_le_bytes(*word))
}

/// Orders that install the dispositions.
pub(crate) fn restore_actions(
    actions: &[SignalAction],
    arena: &mut Arena,
    orders: &mut Orders,
) -> Result<()> {
    for (signal, action) in (1..=COUNT).zip(actions) {
        if !UNCATCHABLE.contains(&signal) {
            let at = arena.value(action)?;
            orders.call(Step::SignalAction, libc::SYS_rt_sigaction, &[signal, at, 0, 8]);
        }
    }
    Ok(())
}

/// Orders that queue the signals of the thread `saved` (0: of the process) again; they run in the
/// restored thread, whose id lies at the address `tid`, with all signals blocked. The kernel lets
/// only a thread itself say who sent a signal.
pub(crate) fn restore_pending(
    pending: &[PendingSignal],
    saved: u32,
    pid: u64,
    tid: u64,
    arena: &mut Arena,
    orders: &mut Orders,
) -> Result<()> {
    for queued in pending.iter().filter(|p| p.tid == saved) {
        let at = arena.bytes(&queued.siginfo)?;
        let info = &queued.siginfo;
        let signal = u64::from(u32::from_le_bytes([info[0], info[1], info[2], info[3]]));
        if saved == 0 {
            orders.call(Step::PendingSignal, libc::SYS_rt_sigqueueinfo, &[pid, signal, at]);
        } else {
            let args = [pid, tid, signal, at];
            let call = libc::SYS_rt_tgsigqueueinfo.cast_unsigned();
            orders.push(OpKind::Syscall, flag::INDIRECT, Step::PendingSignal, call, &args);
        }
    }
    Ok(())
}

/// What tells a process that a child has ended well (sigaction(2), SIGCHLD).
pub(crate) fn end_of_child(child: Pid) -> PendingSignal {
    let mut siginfo = [0; 128];
    let user = nix::unistd::getuid().as_raw().cast_signed();
    for (at, word) in [(0, libc::SIGCHLD), (8, libc::CLD_EXITED), (16, child.get()), (20, user)] {
        siginfo[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    PendingSignal { tid: 0, reserved: 0, siginfo }
}

/// Orders of a parent that wait until its children have stopped that were (and whether it has yet to hear of that), so
/// that the program is told of no stop that it knows.
pub(crate) fn await_stops(
    children: &[(Pid, bool)],
    actions: &[SignalAction],
    pending: &[PendingSignal],
    arena: &mut Arena,
    orders: &mut Orders,
) -> Result<()> {
    /// The kernel tells of a stop a moment after it can be seen.
    const MOMENT: [i64; 2] = [0, 50_000_000];
    if children.is_empty() {
        return Ok(());
    }
    let told = |p: &PendingSignal| p.siginfo[..4] == libc::SIGCHLD.to_le_bytes();
    let is_news = pending.iter().any(told) || children.iter().any(|(_, untold)| *untold);
    for (child, untold) in children {
        let mut wait = |how: i32| {
            let args = [libc::P_PID.into(), u64::from(child.word()), 0, how as u64, 0];
            orders.try_call(Step::Leave, libc::SYS_waitid, &args);
        };
        // Somebody else may let it go on, or end it, before it is seen here.
        wait(libc::WSTOPPED | libc::WCONTINUED | libc::WEXITED | libc::WNOWAIT);
        if !untold {
            wait(libc::WSTOPPED | libc::WNOHANG);
        }
    }
    let quiet = actions.get(libc::SIGCHLD as usize - 1).is_some_and(|action| {
        action.handler == libc::SIG_IGN as u64 || action.flags & libc::SA_NOCLDSTOP as u64 != 0
    });
    if !is_news && !quiet {
        let set = arena.value(&(1u64 << (libc::SIGCHLD - 1)))?;
        let time = arena.value(&MOMENT)?;
        orders.try_call(Step::Leave, libc::SYS_rt_sigtimedwait, &[set, 0, time, 8]);
    }
    Ok(())
}

/// What comes of the checkpoint signal in a process where it has this handler, which is the payload's (`ours`) or not.
pub(crate) fn verdict(pid: Pid, signal: u32, handler: u64, ours: bool) -> String {
    let name = signal_name(signal);
    let does = match handler as usize {
        _ if ours => return format!("{name} makes a checkpoint"),
        libc::SIG_DFL => "has given it back to the kernel, which stops or ends it then",
        libc::SIG_IGN => "ignores it",
        _ => "takes it for itself",
    };
    format!(
        "{name} makes no checkpoint: the program {does}; choose another with ckpt -p {pid} -a \
         SIGNAL, or use ckpt save {pid}"
    )
}
