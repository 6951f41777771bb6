// SPDX-License-Identifier: LGPL-2.1-only
//! What is known of runtimes: where C libraries and Go keep the ids of threads, and what they and the Java virtual
//! machine take orders by.
//!
//! The kernel gives a restored thread its old id only where we may ask for it (clone3(2), set_tid). Where the
//! id changes, the words are rewritten that held the saved one: caches in the runtime's struct of a thread, the
//! owners of locks that are held, and what a thread in the middle of taking a lock has in its registers and on
//! its stack. A word is only rewritten if it held the id and stands where the runtime puts it: ids are
//! small numbers, in a container a dozen, and others must stay what they are.

pub(crate) mod clocks;
pub(crate) mod glibc;
mod go;
pub(crate) mod holding;
pub(crate) mod java;
pub(crate) mod loaded;
mod musl;
pub(crate) mod remembered;
pub(crate) mod tunables;

use super::plan::{Orders, Step};
use crate::order;
use crate::proc::Pid;
use crate::ptrace::memory::Memory;
use ckpt_abi::image::{Owner, Thread, thread_flag};
use ckpt_abi::op::OpKind;

/// Ids below are so common as values that two words with one are more likely different things. Above the
/// first 300 the kernel gives ids in turn (kernel/pid.c, RESERVED_PIDS), and a machine is soon past a thousand.
const DISTINCT: u32 = 1000;

/// Ids of threads as they are looked for ([`among`]), in the order that this takes.
pub(crate) fn sorted(ids: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut ids: Vec<u32> = ids.collect();
    order::numbers(&mut ids);
    ids
}

/// Whether an id is one of these: of a program with thousands of threads as many words of its memory could be one.
fn among(ids: &[u32], id: u32) -> bool {
    ids.binary_search(&id).is_ok()
}

/// The id of a restored thread.
#[derive(Clone, Copy)]
pub(crate) enum Id {
    /// Known before the restart.
    Known(u64),
    /// Written by the kernel at this address when the thread is made.
    At(u64),
}

/// Finds the cached ids of a thread.
pub(crate) fn save(memory: &Memory, pid: Pid, fs_base: u64, thread: &mut Thread) {
    thread.flags |= glibc::cached(memory, pid, thread);
    thread.flags |= musl::cached(memory, fs_base, thread);
    thread.go_id = go::id(memory, fs_base, thread.tid).unwrap_or(0);
}

/// The owners' words of the mutexes in a thread's list: the futex, whose lower bits are the owner's id
/// (get_robust_list(2), Documentation/locking/robust-futexes.rst), and glibc's own copy of it two words further.
/// `head` is what the kernel knows: nothing in musl, until a mutex is shared between processes.
pub(crate) fn listed(memory: &Memory, head: u64, fs_base: u64, thread: &Thread) -> Vec<Owner> {
    // struct robust_list_head: first entry, offset of the futex from its entry, pending entry.
    let known = memory.get::<[u64; 3]>(head).ok().filter(|_| head != 0);
    let (mut entries, offset) = if let Some([first, offset, pending]) = known {
        let mut entries = entries(memory, first, head).0;
        entries.push(pending);
        (entries, offset.cast_signed())
    } else if thread.flags & thread_flag::MUSL != 0 {
        (musl::listed(memory, fs_base), musl::FUTEX)
    } else {
        return Vec::new();
    };
    entries.retain(|entry| *entry != 0);
    let mut owners = Vec::new();
    for entry in entries {
        let futex = entry.wrapping_add_signed(offset);
        let mut holds = |address: u64, mask: u32| {
            let held = memory.get::<u32>(address).is_ok_and(|word| word & mask == thread.tid);
            if held {
                owners.push(Owner { tid: thread.tid, reserved: 0, address });
            }
            held
        };
        if holds(futex, glibc::ID) {
            holds(futex.wrapping_add(glibc::OWNER), u32::MAX);
        }
    }
    owners
}

/// The entries of a list, and whether it led back to its head.
fn entries(memory: &Memory, first: u64, head: u64) -> (Vec<u64>, bool) {
    const PRIORITY_INHERITING: u64 = 1;
    /// ROBUST_LIST_LIMIT of include/linux/futex.h: a list may be damaged.
    const LIMIT: usize = 2048;
    let (mut entries, mut entry) = (Vec::new(), first);
    while entries.len() < LIMIT {
        let address = entry & !PRIORITY_INHERITING;
        if address == 0 || address == head {
            return (entries, address == head);
        }
        entries.push(address);
        entry = memory.get(address).unwrap_or(0);
    }
    (entries, false)
}

/// Orders that rewrite the ids, in the thread itself; `frame` is the address of the frame through which it
/// enters the program.
///
/// A futex loses FUTEX_WAITERS with its old id: its waiters ask anew after a restart, find another
/// value than they expect, and set the bit again.
pub(crate) fn restore(
    thread: &Thread,
    owners: &[Owner],
    pid: u64,
    id: Id,
    frame: u64,
    orders: &mut Orders,
) {
    let fs_base = super::threads::regs(thread).fs_base;
    let step = Step::Thread;
    let mut store = |at: u64| match id {
        Id::Known(tid) => orders.push(OpKind::Store, 0, step, 4, &[at, tid]),
        Id::At(word) => orders.push(OpKind::Copy, 0, step, 0, &[at, word, 4]),
    };
    if thread.flags & thread_flag::TID_CACHED != 0 {
        store(thread.tid_address);
    }
    if thread.flags & thread_flag::MUSL != 0 {
        store(fs_base + musl::TID);
    }
    if thread.go_id != 0 {
        store(thread.go_id);
    }
    owners.iter().filter(|owner| owner.tid == thread.tid).for_each(|owner| store(owner.address));
    holding::in_frame(thread.id_registers).for_each(|offset| store(frame + offset as u64));
    if thread.flags & thread_flag::PID_CACHED != 0 {
        orders.push(OpKind::Store, 0, step, 4, &[thread.tid_address + glibc::PID_BEHIND, pid]);
    }
}
