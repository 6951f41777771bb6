// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 0: have the program's callbacks called, and wait until it may be interrupted.
//!
//! A program that has asked for its checkpoint itself (by the signal or ckpt_ckpt) has called its
//! callbacks before it started us. For a checkpoint from outside, the main thread is sent to call
//! them as a signal would send it: with a frame on its stack through which it comes back.

use super::Demand;
use super::phase2_equip::Seen;
use super::phase4_refuse::UNHARMED;
use super::{caller, phase1_freeze, phase2_equip};
use crate::error::{Because, Error, Kind, Result};
use crate::fault::{Point, reach};
use crate::inject::turns::own_task;
use crate::proc::{Pid, Process, gone};
use crate::ptrace::frame::{Frame, SAME_STACK};
use crate::ptrace::freeze::Frozen;
use crate::ptrace::sandbox::{self, Sandbox};
use crate::resource::kinds;
use ckpt_abi::api::{Answer, Api, Request, Visit, When};
use ckpt_abi::turn::{Denied, Event};
use nix::libc;
use std::mem::offset_of;
use std::time::{Duration, Instant};

/// How often to look whether the program is so far.
const LOOK: Duration = Duration::from_millis(1);

/// How long others may have their turn.
const TURN: Duration = Duration::from_secs(10);

/// Whether a process has called its callbacks before it started us.
fn called_itself(request: &Demand, pid: Pid) -> bool {
    request.triggered && pid == request.pid()
}

/// Sends the main thread of the process to the callbacks, if there are any, and waits for it.
#[inline(never)]
pub(crate) fn visit(request: &Demand) -> Result<()> {
    let (process, pid) = (&request.process, request.pid());
    if called_itself(request, pid) {
        return Ok(());
    }
    let deadline = Instant::now() + TURN;
    loop {
        let Some(found) = caller::Caller::find(process)? else { return Ok(()) };
        await_word(&found, |api| api.holds == 0)?;
        let visits = found.api.visit == Visit::Ready as u32 && is_ours(&found)?;
        if !has_any(&found.api) || found.api.visit_entry == 0 || visits {
            return Ok(());
        }
        if process.is_stopped() {
            let text = format!("process {pid} is stopped and cannot run its callbacks");
            let hint = format!("let it go on first (kill -CONT {pid})");
            return Err(Error::new(text).hint(hint));
        }
        if Instant::now() > deadline {
            return Err(turn_of_another(pid));
        }
        if send(request, &found)? {
            reach(Point::Sent);
            return await_word(&found, |api| api.visit == Visit::Ready as u32);
        }
        std::thread::sleep(LOOK);
    }
}

/// Gives a program that waits for us its answer when there will be no checkpoint, and its turn back.
pub(crate) fn leave(process: &Process, error: &Error) {
    let Ok(Some(found)) = caller::Caller::find(process) else { return };
    if is_ours(&found).unwrap_or(false) {
        let asks = found.api.request == Request::Call as u32;
        if asks && found.api.answer == Answer::None as u32 {
            found.answer(Some(error));
        }
        let _ = found.region.step(&found.memory, found.pid(), Event::End(own_task(found.pid())));
    }
}

/// Whether there are callbacks.
fn has_any(api: &Api) -> bool {
    let called = [When::Before, When::After, When::Restart];
    called.iter().any(|when| api.counts[*when as usize] != 0)
}

/// Why the main thread of a frozen process may not be sent to its callbacks, if there are any: nobody suspends what it is
/// locked in meanwhile. What the callbacks themselves call is the program's affair.
pub(super) fn closed(api: &Api, frozen: &Frozen) -> Option<String> {
    /// What the payload calls around them (`payload/src/trigger.rs`, ckpt_visited).
    const CALLS: [i64; 16] = [
        libc::SYS_futex,
        libc::SYS_getpid,
        libc::SYS_pidfd_open,
        libc::SYS_poll,
        libc::SYS_close,
        libc::SYS_readlinkat,
        libc::SYS_openat,
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_lseek,
        libc::SYS_fcntl,
        libc::SYS_dup3,
        libc::SYS_munmap,
        libc::SYS_wait4,
        libc::SYS_exit_group,
        libc::SYS_rt_sigreturn,
    ];
    let main = frozen.threads.first().filter(|main| main.tid == frozen.pid.main_thread())?;
    let tracer = [libc::PR_SET_PTRACER as u64, 1, 0, 0, 0, 0];
    if !has_any(api) || (main.may(&CALLS) && main.may_make(libc::SYS_prctl, tracer)) {
        return None;
    }
    let whose = sandbox::named(frozen.process(), main.tid);
    let how = match main.sandbox {
        Sandbox::Strict => "is in seccomp's strict mode, which forbids",
        _ => "has seccomp filters that forbid",
    };
    Some(format!("{whose} {how} system calls that it takes to call its callbacks (ckpt.h)"))
}

fn is_ours(found: &caller::Caller) -> Result<bool> {
    let turn = found.region.turn(&found.memory)?;
    let own = own_task(found.pid());
    Ok(turn.has_task() && turn.task.is(own.pid, own.start))
}

/// Why not now, when a thread of the program has its turn.
pub(crate) fn turn_of_another(pid: Pid) -> Error {
    Error::new(format!("a thread of process {pid} takes a checkpoint"))
        .of(Kind::Busy)
        .hint("wait for it")
}

/// Whether one of the frozen processes is in a critical section after all (ckpt_hold).
#[inline(never)]
pub(crate) fn held(
    request: &Demand,
    processes: &mut [Frozen],
    seen: &[Result<Seen>],
) -> Result<bool> {
    let mut held = false;
    for (frozen, seen) in processes.iter_mut().zip(seen) {
        // Of one that is gone others say so.
        let Ok(seen) = seen else { continue };
        let region = seen.region.filter(|_| !called_itself(request, frozen.pid));
        let Some(region) = region else { continue };
        if caller::read(&seen.memory, &region)?.holds != 0 {
            frozen.attend(&seen.memory, &region.desk(), region.base)?;
            held = true;
        }
    }
    Ok(held)
}

fn await_word(found: &caller::Caller, so_far: impl Fn(&Api) -> bool) -> Result<()> {
    loop {
        if so_far(&caller::read(&found.memory, &found.region)?) {
            return Ok(());
        }
        if found.memory.process().main_stat().map_or(true, |stat| stat.state == 'Z') {
            return Err(Error::new(format!("process {} is gone", found.pid())).of(Kind::Gone));
        }
        std::thread::sleep(LOOK);
    }
}

/// Makes the payload ours until the main thread has read our answer, which was free while all stood still. The turn comes
/// last, behind the thread that gives it back: should we die before, it is nobody's.
fn claim(request: &Demand, found: &caller::Caller) -> Result<()> {
    let (memory, region, pid) = (&found.memory, &found.region, found.pid());
    let put = |offset, value: u32| caller::put(memory, region, offset, &value);
    put(offset_of!(Api, answer), Answer::None as u32)?;
    put(offset_of!(Api, request), Request::Call as u32)?;
    put(offset_of!(Api, name), 0)?;
    put(offset_of!(Api, visit), Visit::Sent as u32)?;
    reach(Point::Summoning);
    let _ = region.step(memory, pid, our_claim(request, pid))?;
    Ok(())
}

fn our_claim(request: &Demand, pid: Pid) -> Event {
    Event::Claim { by: request.by(), task: own_task(pid), kept: true }
}

/// Whether the payload can be made ours; false while the monitor's dumper works, whose callbacks are to be called to the
/// end, and while a thread has its turn.
fn is_free(request: &Demand, found: &caller::Caller) -> Result<bool> {
    let pid = found.pid();
    match found.region.would_step(&found.memory, pid, our_claim(request, pid))? {
        Ok(_) => Ok(true),
        Err(Denied::Restoring) => Err(phase2_equip::restarting(pid)),
        Err(Denied::Busy(task)) => Err(phase2_equip::busy(pid, task)),
        Err(Denied::Soon | Denied::After(..) | Denied::NotYours) => Ok(false),
    }
}

/// Makes the main thread enter the payload with a frame as the kernel builds it for a handler
/// (arch/x86/kernel/signal_64.c, x64_setup_rt_frame): below the red zone, aligned so that the
/// extended state behind it is.
///
/// False when the program is in a critical section by now, or another thread's turn begins or ends.
fn send(request: &Demand, found: &caller::Caller) -> Result<bool> {
    const RED_ZONE: u64 = 128;
    let (pid, memory) = (found.pid(), &found.memory);
    let what = || format!("cannot call the callbacks of process {pid}");
    phase1_freeze::untouchable(memory.process())?;
    // No other thread may just be taking its turn.
    let mut frozen = phase1_freeze::patiently(false, || Frozen::freeze(memory.process()))?;
    frozen.attend(memory, &found.region.desk(), found.region.base)?;
    let Some(thread) = frozen.threads.first() else {
        return Err(gone(pid));
    };
    if thread.tid != pid.main_thread() {
        return Err(Error::new(format!("{}: its main thread has ended", what())));
    }
    let api = caller::read(memory, &found.region)?;
    if let Some(why) = closed(&api, &frozen) {
        return Err(Error::new(kinds::advised(&why)).of(Kind::Obstacles).hint(UNHARMED));
    }
    if api.holds != 0 {
        return Ok(false);
    }
    let Some(thread) = frozen.threads.first_mut() else {
        return Err(gone(pid));
    };
    let xstate = crate::ptrace::regs::xstate(pid.main_thread()).because(what)?;
    thread.take_back().because(what)?;
    let regs = crate::ptrace::interrupted::after_a_handler(&thread.regs);
    let frame = Frame { regs: &regs, xstate: &xstate, mask: thread.mask, altstack: SAME_STACK };
    let len = frame.bytes(0).len() as u64;
    let at = (thread.regs.rsp - RED_ZONE - len) & !63;
    if !is_free(request, found)? {
        return Ok(false);
    }
    memory.write(at, &frame.bytes(at))?;
    thread.enter(found.api.visit_entry, at)?;
    claim(request, found).map(|()| true)
}
