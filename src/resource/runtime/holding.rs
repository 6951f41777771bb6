// SPDX-License-Identifier: LGPL-2.1-only
//! Ids on their way into a lock.
//!
//! Who takes a mutex that names its owner reads its own id first and writes it when it has the mutex. In between
//! the id stands in a register, or where a function has put that on the stack. A thread that runs there is let
//! run on for some instructions ([`is_on_its_way`]). One that sleeps until it gets the mutex cannot, nor one in
//! the handler of a signal, so the place is found and rewritten after the restart.

use super::glibc::{self, Use};
use super::loaded::Loaded;
use super::{DISTINCT, musl};
use crate::ptrace::frame::{offset, registers};
use crate::ptrace::memory::Memory;
use crate::ptrace::regs::Regs;
use crate::resource::{Target, frame};
use ckpt_abi::image::Owner;
use nix::libc;
use std::mem::offset_of;
use std::ops::Range;
use zerocopy::IntoBytes;

/// The registers that hold what a program computes with, by their offset in [`Regs`].
const GENERAL: [usize; 14] = [
    offset_of!(Regs, rax),
    offset_of!(Regs, rbx),
    offset_of!(Regs, rcx),
    offset_of!(Regs, rdx),
    offset_of!(Regs, rsi),
    offset_of!(Regs, rdi),
    offset_of!(Regs, rbp),
    offset_of!(Regs, r8),
    offset_of!(Regs, r9),
    offset_of!(Regs, r10),
    offset_of!(Regs, r12),
    offset_of!(Regs, r13),
    offset_of!(Regs, r14),
    offset_of!(Regs, r15),
];
/// Those of them that outlive a call (System V ABI, AMD64 supplement, "Registers").
const PRESERVED: [usize; 6] = [
    offset_of!(Regs, rbx),
    offset_of!(Regs, rbp),
    offset_of!(Regs, r12),
    offset_of!(Regs, r13),
    offset_of!(Regs, r14),
    offset_of!(Regs, r15),
];
/// How much of the stack the functions have that wait for a mutex: some 300 bytes in glibc 2.36.
const FRAMES: usize = 448;
/// How far above the stack pointer of a handler its signal frame begins at most; extended state, up to 12 KiB,
/// lies between them.
const HANDLER: usize = 32 << 10;
/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Where a thread has its own id.
#[derive(Default, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    /// Offsets in [`Regs`].
    pub registers: Vec<usize>,
    /// Addresses of words.
    pub words: Vec<u64>,
    /// Several places hold the id's value, and a number as small as it could be something else.
    pub in_doubt: bool,
}

impl Places {
    fn settled(self, tid: u32) -> Self {
        match tid < DISTINCT && self.registers.len() + self.words.len() > 1 {
            true => Self { in_doubt: true, ..Self::default() },
            false => self,
        }
    }

    /// The registers as bits of [`ckpt_abi::image::Thread::id_registers`].
    pub(crate) fn bits(&self) -> u64 {
        self.registers.iter().fold(0, |bits, offset| bits | 1 << (offset / 8))
    }

    /// The words as records.
    pub(crate) fn owners(&self, tid: u32) -> impl Iterator<Item = Owner> + '_ {
        self.words.iter().map(move |&address| Owner { tid, reserved: 0, address })
    }
}

/// The offsets in a signal frame of the registers in such bits.
pub(crate) fn in_frame(bits: u64) -> impl Iterator<Item = usize> {
    GENERAL.into_iter().filter(move |offset| bits >> (offset / 8) & 1 != 0).filter_map(offset)
}

fn value(regs: &Regs, offset: usize) -> u64 {
    regs.as_bytes()[offset..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn holding<'a>(regs: &'a Regs, tid: u32, among: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
    among.iter().copied().filter(move |offset| value(regs, *offset) == u64::from(tid))
}

/// Whether a register has this id that is not among those of `bits`. That of results is not looked at.
pub(super) fn remembers(regs: &Regs, bits: u64, id: u32) -> bool {
    let is_other = |at: &usize| bits >> (at / 8) & 1 == 0 && *at != offset_of!(Regs, rax);
    holding(regs, id, &GENERAL).any(|at| is_other(&at))
}

/// Whether a thread may be about to write its id into a lock, or to compare it with the owner: it is in the C
/// library, with the id in one register and the address of such a lock in another. The next instruction is not
/// the system call that waits for it.
pub(crate) fn is_on_its_way(target: &Target<'_>, regs: &Regs, ids: &[u32], tid: u32) -> bool {
    let memory = target.memory;
    holding(regs, tid, &GENERAL).next().is_some()
        && memory.get::<[u8; 2]>(regs.rip).is_ok_and(|code| code != SYSCALL)
        && is_c_library(target.loaded, regs.rip)
        && has_a_lock(memory, regs, ids)
}

fn has_a_lock(memory: &Memory, regs: &Regs, ids: &[u32]) -> bool {
    let pointers = GENERAL.iter().map(|offset| value(regs, *offset));
    let aligned = pointers.filter(|at| at % 4 == 0 && *at >= 4096);
    aligned.into_iter().any(|at| is_lock(memory, at, ids))
}

fn is_lock(memory: &Memory, at: u64, ids: &[u32]) -> bool {
    let mutex = || memory.get(at).is_ok_and(|m| glibc::taken_by(&m, ids).is_some());
    let read_write = || memory.get(at).is_ok_and(|l| glibc::is_written(&l, ids));
    let of_musl = || memory.get(at).is_ok_and(|[k, l]: [u32; 2]| musl::names_its_owner(k, l, ids));
    mutex() || read_write() || of_musl()
}

/// The places of the id of a thread that goes on with `regs`, or in the frame of the payload's handler from which
/// it will return to what it did.
pub(crate) fn find(target: &Target<'_>, regs: &Regs, ids: &[u32], tid: u32) -> Places {
    let (memory, base) = (target.memory, target.region.base);
    if !(base..base + target.region.control.region_len).contains(&regs.rip) {
        return of(target, regs, ids, tid);
    }
    let Some((base, before)) = interrupted(memory, regs.rsp) else { return Places::default() };
    let mut places = of(target, &before, ids, tid);
    let saved = places.registers.drain(..).filter_map(offset);
    places.words.extend(saved.map(|offset| base + offset as u64));
    places
}

fn of(target: &Target<'_>, regs: &Regs, ids: &[u32], tid: u32) -> Places {
    match asleep(target.memory, regs, tid, ids) {
        Some(places) => places,
        // Left over or needed, nobody knows: an instruction after the lock is taken they are of no use.
        None if is_on_its_way(target, regs, ids, tid) => {
            let registers = holding(regs, tid, &GENERAL).collect();
            let mut places = Places { registers, ..Places::default() }.settled(tid);
            places.words.extend(just_taken(target.memory, regs, tid));
            places
        }
        None => Places::default(),
    }
}

/// The lock words with the id of mutexes of musl that are not in the list yet of those that the thread holds.
fn just_taken(memory: &Memory, regs: &Regs, tid: u32) -> Vec<u64> {
    let taken = |at: &u64| {
        let held = |[kind, lock]: [u32; 2]| lock != 0 && musl::names_its_owner(kind, lock, &[tid]);
        at.is_multiple_of(4) && memory.get(*at).is_ok_and(held)
    };
    let mut all: Vec<u64> =
        GENERAL.iter().map(|offset| value(regs, *offset)).filter(taken).collect();
    all.dedup();
    all.into_iter().map(|at| at + 4).collect()
}

/// Whether code belongs to the C library: to its file, or to a program that has none.
fn is_c_library(loaded: &[Loaded], code: u64) -> bool {
    let home = loaded.iter().find(|it| it.code.iter().any(|range| range.contains(&code)));
    home.is_some_and(Loaded::is_c_library) || !loaded.iter().any(Loaded::is_c_library)
}

/// The data of the C library, or of a program that has none of its own.
pub(crate) fn library_data(loaded: &[Loaded]) -> impl Iterator<Item = &Range<u64>> {
    let linked = loaded.iter().any(Loaded::is_c_library);
    let homes = loaded.iter().filter(move |it| !linked || it.is_c_library());
    homes.flat_map(|it| &it.data)
}

/// The places where a thread that sleeps for a mutex has its id; None if it does not.
fn asleep(memory: &Memory, regs: &Regs, tid: u32, ids: &[u32]) -> Option<Places> {
    if waits_for(memory, regs, ids)? == (Use::ReadAgain, false) {
        return None;
    }
    // A register that no function below has put on the stack, or the nearest word that one of them has.
    let registers: Vec<usize> = holding(regs, tid, &PRESERVED).collect();
    if !registers.is_empty() {
        return Some(Places { registers, ..Places::default() }.settled(tid));
    }
    let mut stack = [0u32; FRAMES / 4];
    memory.read_some(regs.rsp, stack.as_mut_bytes()).ok()?;
    let words = (regs.rsp..).step_by(4).zip(stack).filter(|(_, word)| *word == tid);
    let mut places = Places { words: words.map(|(at, _)| at).collect(), ..Places::default() };
    places = places.settled(tid);
    places.words.truncate(1);
    Some(places)
}

/// What the thread will do when it has the mutex for which it sleeps, and whether it sleeps for a time.
fn waits_for(memory: &Memory, regs: &Regs, ids: &[u32]) -> Option<(Use, bool)> {
    const OPERATION: u64 = 127;
    const WAIT: u64 = 0;
    const LOCK_PI: u64 = 6;
    const WAIT_BITSET: u64 = 9;
    const LOCK_PI2: u64 = 13;
    let is_call = |at: u64| memory.get::<[u8; 2]>(at).is_ok_and(|code| code == SYSCALL);
    let again = regs.rax.cast_signed() == libc::SYS_futex && is_call(regs.rip);
    let cut = regs.rax.cast_signed() == -i64::from(libc::EINTR) && is_call(regs.rip - 2);
    let operation = regs.rsi & OPERATION;
    if !(again || cut) || ![WAIT, LOCK_PI, WAIT_BITSET, LOCK_PI2].contains(&operation) {
        return None;
    }
    let use_ = glibc::taken_by(&memory.get(regs.rdi).ok()?, ids)?;
    Some((use_, regs.r10 != 0))
}

/// The registers of what the nearest handler interrupted, and the address of its frame.
fn interrupted(memory: &Memory, stack: u64) -> Option<(u64, Regs)> {
    const ALIGN: usize = 64;
    let start = stack & !(ALIGN as u64 - 1);
    let mut bytes = vec![0; HANDLER];
    let len = memory.read_some(start, &mut bytes).ok()?;
    let bytes = bytes.get(..len)?;
    (0..len).step_by(ALIGN).find_map(|offset| {
        let found = frame::find(bytes, offset, start + offset as u64)?;
        let base = offset - found.head;
        Some((start + base as u64, registers(bytes.get(base..)?)?))
    })
}
