// SPDX-License-Identifier: LGPL-2.1-only
//! Threads that are lent to us, and how each gets home should we die.
//!
//! From the first change of a thread's registers on, a slot of the payload's region holds all that it was, as the
//! frame through which the thunk brings it home (`payload/src/thunk.rs`), and as the registers that the next
//! host gives back if it finds the thread still on its way ([`recover`]).
//!
//! A slot is used again when nobody can still read it: its thread was taken back, is gone, or is out of the thunk
//! with the slot's state LEAVING. A thread that is out of the thunk without that is in a handler which began
//! between two steps of a host that died there, and may come back: the slot is given up for this process.

use super::frame::{Frame, SAME_STACK};
use super::homing;
use super::interrupted;
use super::memory::Memory;
use super::raw;
use super::regs::{self, Regs};
use super::thread::StoppedThread;
use crate::error::{Because, Error, Kind, Result};
use crate::proc::Tid;
use ckpt_abi::nr;
use ckpt_abi::region::{
    BURNT, HOLE_AREA, HoleArea, LENT, SLOT_COUNT, SLOT_FRAME, SLOT_LEN, SLOT_LIST, SLOTS, Slot,
    THUNK_LEN,
};
use nix::errno::Errno;
use zerocopy::{FromZeros, IntoBytes};

/// What a process has for threads that work for us.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Desk {
    /// The thunk for one system call.
    pub thunk: u64,
    /// That for clone(2).
    pub clone_thunk: u64,
    /// The slots.
    pub slots: u64,
}

impl Desk {
    /// That of a region.
    pub(crate) fn of(region: u64, thunk: u64, clone_thunk: u64) -> Self {
        Self { thunk, clone_thunk, slots: region + SLOTS }
    }

    fn slot(&self, index: u64) -> u64 {
        self.slots + index * SLOT_LEN
    }

    fn has(&self, rip: u64) -> bool {
        (self.thunk..self.thunk + THUNK_LEN).contains(&rip)
    }
}

/// How a thread has left its first stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lent {
    /// Not at all.
    No,
    /// By a hole in somebody's text.
    Hole,
    /// With its slot at this address.
    Slot(u64),
}

/// Writes what the thread is into a free slot; its address.
pub(super) fn lend(thread: &mut StoppedThread, memory: &Memory, desk: &Desk) -> Result<u64> {
    let at = free_slot(memory, desk, thread.tid)?;
    let note = written(thread, at, memory)?;
    memory.write(at, &note)?;
    memory.put(at, &[LENT, thread.tid.word()])?;
    Ok(at)
}

/// What is written into the slot at `at` of what the thread is, which is said to be nobody's.
pub(super) fn written(thread: &mut StoppedThread, at: u64, memory: &Memory) -> Result<Vec<u8>> {
    let tid = thread.tid;
    let what = || format!("cannot write down the state of thread {tid}");
    let xstate = regs::xstate(thread.tid).because(what)?;
    let home = home(thread);
    let frame = Frame { regs: &home, xstate: &xstate, mask: thread.mask, altstack: SAME_STACK };
    let bytes = frame.bytes(at + SLOT_FRAME);
    if bytes.len() as u64 > SLOT_LIST - SLOT_FRAME {
        return Err(Error::new(format!("{}: too many registers", what())));
    }
    let mut slot = Slot::new_zeroed();
    slot.regs.as_mut_bytes().copy_from_slice(thread.regs.as_bytes());
    (slot.mask, slot.began) = (thread.mask, memory.began()?);
    let mut whole = slot.as_bytes().to_vec();
    whole.resize(SLOT_FRAME as usize, 0);
    whole.extend(bytes);
    thread.xstate = Some(xstate);
    Ok(whole)
}

/// Says of a slot that its thread works for us.
pub(super) fn say_lent(tid: Tid, slot: u64) -> std::result::Result<(), Errno> {
    raw::poke(tid, slot, u64::from(LENT) | u64::from(tid.word()) << 32)
}

/// The registers with which a thread goes home by itself. rt_sigreturn(2) ends what the kernel knows of an interrupted
/// sleep (restart_block), so that begins anew with the rest of its time, as after a restart.
fn home(thread: &StoppedThread) -> Regs {
    if interrupted::has_restart_block(&thread.regs) {
        let (wait, slot) = thread.wait.map_or((None, 0), |(wait, slot)| (Some(wait), slot));
        interrupted::revived(&thread.regs, wait.as_ref(), slot).0
    } else {
        interrupted::rewound(&thread.regs)
    }
}

/// What a thread in a hole gets back.
pub(super) fn hole_area(thread: &StoppedThread) -> HoleArea {
    let regs = interrupted::rewound(&thread.regs);
    HoleArea {
        mask: thread.mask,
        r8: regs.r8,
        r9: regs.r9,
        rdi: regs.rdi,
        rsi: regs.rsi,
        rdx: regs.rdx,
        r10: regs.r10,
        rax: regs.rax,
        rcx: regs.rcx,
        r11: regs.r11,
        rip: regs.rip,
    }
}

/// The same again.
pub(super) fn out_of_a_hole(regs: &Regs, area: &HoleArea) -> Regs {
    let HoleArea { r8, r9, rdi, rsi, rdx, r10, rax, rcx, r11, rip, .. } = *area;
    Regs { r8, r9, rdi, rsi, rdx, r10, rax, rcx, r11, rip, orig_rax: u64::MAX, ..*regs }
}

/// Address of the area of the hole at `hole`.
pub(super) fn hole_area_at(hole: u64) -> u64 {
    hole + HOLE_AREA
}

/// Says that the thread of a slot is home.
pub(super) fn give_back(tid: Tid, slot: u64) -> std::result::Result<(), Errno> {
    raw::poke(tid, slot, 0)
}

/// The slots that nobody has.
pub(super) fn unused(memory: &Memory, desk: &Desk) -> Result<Vec<u64>> {
    let slots: [Slot; SLOT_COUNT as usize] = memory.get_each(desk.slot(0), SLOT_LEN)?;
    let all = (0..).zip(slots).filter(|(_, slot)| slot.state == 0);
    Ok(all.map(|(index, _)| desk.slot(index)).collect())
}

fn free_slot(memory: &Memory, desk: &Desk, tid: Tid) -> Result<u64> {
    let began = memory.began()?;
    let slots: [Slot; SLOT_COUNT as usize] = memory.get_each(desk.slot(0), SLOT_LEN)?;
    // Mostly there is one that nobody has, and who has the others need not be looked for.
    let is_theirs = |slot: &Slot| {
        slot.began == began
            && slot.tid != tid.word()
            && memory.process().has(Tid::of_word(slot.tid))
    };
    let unused = slots.iter().position(|slot| slot.state == 0);
    let given_up = || slots.iter().position(|slot| slot.state != BURNT && !is_theirs(slot));
    if let Some(index) = unused.or_else(given_up) {
        return Ok(desk.slot(index as u64));
    }
    let text =
        format!("process {} was left by too many checkpoints that were killed", memory.pid());
    Err(Error::new(text).of(Kind::Busy).hint("try again in a moment"))
}

/// Brings home the stopped threads that a host has left in the payload's thunks.
///
/// # Errors
/// [`Kind::Busy`]: the program is just being started.
pub(super) fn recover(threads: &mut [StoppedThread], memory: &Memory, desk: &Desk) -> Result<()> {
    let began = memory.began()?;
    let slots: [Slot; SLOT_COUNT as usize] = memory.get_each(desk.slot(0), SLOT_LEN)?;
    for (index, slot) in (0..).zip(slots) {
        let at = desk.slot(index);
        if slot.state == 0 || slot.state == BURNT {
            continue;
        }
        let thread = threads.iter_mut().find(|t| t.tid.word() == slot.tid);
        let Some(thread) = thread.filter(|_| slot.began == began) else { continue };
        if desk.has(thread.regs.rip) {
            come_home(thread, desk, at, &slot)?;
        } else if slot.state == LENT {
            memory.put(at, &BURNT)?;
        } else {
            memory.put(at, &0u32)?;
        }
    }
    Ok(())
}

/// A thread that waits for a child, or made one, does so to the end: nobody else would reap it. Any other gets back what
/// the slot holds, as if we had lent it.
fn come_home(thread: &mut StoppedThread, desk: &Desk, at: u64, slot: &Slot) -> Result<()> {
    let tid = thread.tid;
    let what = || format!("cannot bring thread {tid} home");
    let waits = thread.regs.orig_rax == nr::WAIT4 || thread.regs.rax == nr::WAIT4;
    if !waits && thread.regs.rip < desk.clone_thunk {
        thread.regs.as_mut_bytes().copy_from_slice(slot.regs.as_bytes());
        (thread.mask, thread.lent) = (slot.mask, Lent::Slot(at));
        thread.since = None;
        // It may block others than those that it has to from now on, and one of them may wait.
        return raw::set_mask(tid, thread.mask_at_work()).because(what);
    }
    if homing::bring_home(&mut [thread]).because(what)? {
        return raw::poke(tid, at, 0).because(what);
    }
    Err(Error::new(format!("process {tid} is just being started")).of(Kind::Busy))
}
