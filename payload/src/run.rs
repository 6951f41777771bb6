// SPDX-License-Identifier: LGPL-2.1-only
//! The interpreter of orders.
//!
//! # Safety
//! Orders are trusted: the host computed every address in them for exactly this process, and
//! lists are only written before the task that runs them exists.
#![allow(unsafe_code)]

use crate::files::say_number;
use crate::sys;
use crate::trigger::say;
use ckpt_abi::errno;
use ckpt_abi::op::{ListHead, OWNER_DIED, Op, OpKind, REPORTS, Report, SPELLED, VAIN, flag, spell};
use core::sync::atomic::{AtomicU32, Ordering};

/// The exit status of a process that nobody can explain.
const LOST: u64 = 125;

/// Runs the list of `orders`; a list that comes to its end exits the task with status 0.
#[unsafe(no_mangle)]
extern "C" fn ckpt_run(orders: *const ListHead) -> ! {
    // SAFETY: the host wrote the orders for this task.
    let orders = unsafe { orders.read() };
    run_list(&orders, orders.ops as *const Op);
    sys::exit(0)
}

/// Entry of a thread that a list cloned: it has the same orders but a list of its own. The two
/// words it needs lie at the address in its argument.
extern "C" fn enter_child(words: u64) -> ! {
    let words = words as *const [u64; 2];
    // SAFETY: `args[1]` of the clone order points to the pair (address of ListHead, of the first op).
    let [orders, ops] = unsafe { words.read() };
    // SAFETY: as in `ckpt_run`.
    let orders = unsafe { (orders as *const ListHead).read() };
    run_list(&orders, ops as *const Op);
    sys::exit(0)
}

/// What an order leads to.
enum Then {
    /// The list is over.
    End,
    /// Another list goes on.
    Goto(*const Op),
    /// The next order, if this result is good.
    Next(i64),
}

fn run_list(orders: &ListHead, mut first: *const Op) {
    let mut index = 0u64;
    loop {
        // SAFETY: the list goes on until an order that ends it.
        let op = unsafe { first.wrapping_add(index as usize).read() };
        let op = resolve(op);
        let result = match obey(&op) {
            Then::End => return,
            Then::Goto(list) => {
                (first, index) = (list, 0);
                continue;
            }
            Then::Next(result) => result,
        };
        if op.flags & flag::OR_NEXT != 0 {
            let skipped = if sys::failed(result) { 1 } else { 2 };
            index = index.wrapping_add(skipped);
            continue;
        }
        let wrong = op.flags & flag::EXACT != 0 && result as u64 != op.args[5];
        if (sys::failed(result) || wrong) && op.flags & flag::MAY_FAIL == 0 {
            give_up(orders, &op, index, result);
        }
        index = index.wrapping_add(1);
    }
}

/// Fills in an argument that was not known when the list was written (a thread's id).
fn resolve(mut op: Op) -> Op {
    if op.flags & flag::INDIRECT != 0 {
        let word = op.args[1] as *const u32;
        // SAFETY: ordered by the host.
        op.args[1] = u64::from(unsafe { word.read_volatile() });
    }
    if op.flags & flag::CLOCK_OF != 0 {
        let word = op.args[0] as *const u32;
        // SAFETY: ordered by the host.
        let id = unsafe { word.read_volatile() };
        // MAKE_THREAD_CPUCLOCK (include/linux/posix-timers.h).
        op.args[0] = !u64::from(id) << 3 | op.args[3];
    }
    op
}

fn obey(op: &Op) -> Then {
    let [a, b, c, d, _, _] = op.args;
    // No host of this version writes another number.
    let Ok(kind) = OpKind::try_from(op.kind) else { sys::exit_group(LOST) };
    Then::Next(match kind {
        OpKind::End => return Then::End,
        OpKind::Goto => return Then::Goto(a as *const Op),
        // SAFETY: ordered by the host.
        OpKind::Syscall => unsafe { sys::call(op.nr, &op.args) },
        // SAFETY: ordered by the host.
        OpKind::Clone => unsafe { sys::clone(op.nr, a, [c, d], enter_child, b) },
        OpKind::Clone3 => clone3(a, op.nr, b, c),
        OpKind::Store => store(op.nr, a, b),
        OpKind::Copy => copy(a, b, c),
        OpKind::UseUpTimers => use_up_timers(a, b, c),
        OpKind::Barrier => barrier(a, b as u32, c),
        OpKind::Turn => turn(a, b as u32, c as u32),
        // SAFETY: the host built the frame.
        OpKind::Sigreturn => unsafe { sys::sigreturn(a) },
        OpKind::Exit => sys::exit_group(a),
    })
}

/// As [`OpKind::Clone3`] says.
fn clone3(args: u64, len: u64, list: u64, mut tries: u64) -> i64 {
    const MOMENT: u64 = 1_000_000;
    loop {
        // SAFETY: ordered by the host.
        let result = unsafe { sys::clone3(args, len, enter_child, list) };
        if tries == 0 || result != -errno::EEXIST {
            return result;
        }
        tries = tries.wrapping_sub(1);
        sys::futex_wait(&0, 0, MOMENT);
    }
}

/// The kernel gives the numbers in turn.
fn use_up_timers(end: u64, event: u64, made: u64) -> i64 {
    loop {
        // SAFETY: the host has set the event and the word aside.
        let result = unsafe { sys::timer_create(event, made) };
        if sys::failed(result) {
            return result;
        }
        let word = made as *const u32;
        // SAFETY: the kernel has just written it.
        let id = unsafe { word.read_volatile() };
        sys::timer_delete(id);
        if u64::from(id).wrapping_add(1) >= end {
            return 0;
        }
    }
}

fn store(width: u64, addr: u64, value: u64) -> i64 {
    if width == 4 {
        // SAFETY: ordered by the host.
        unsafe { (addr as *mut u32).write_volatile(value as u32) };
    } else {
        // SAFETY: ordered by the host.
        unsafe { (addr as *mut u64).write_volatile(value) };
    }
    0
}

fn copy(to: u64, from: u64, len: u64) -> i64 {
    // SAFETY: ordered by the host; the ranges do not overlap.
    unsafe { core::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, len as usize) };
    0
}

/// How long a wait lasts before the waiter looks whether the owner still lives, in nanoseconds.
const LOOK: u64 = 20_000_000;

fn barrier(word: u64, all: u32, owner: u64) -> i64 {
    let word = word as *const u32;
    // SAFETY: the host set a word aside for this.
    let count = unsafe { AtomicU32::from_ptr(word.cast_mut()) };
    let is_abandoned = || {
        // SAFETY: as above.
        owner != 0 && unsafe { (owner as *const u32).read_volatile() } & OWNER_DIED != 0
    };
    let patience = if owner == 0 { 0 } else { LOOK };
    let mut here = count.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
    if here >= all {
        sys::futex_wake(word);
    }
    loop {
        if here & VAIN != 0 {
            return errno::ECANCELED.wrapping_neg();
        }
        // Whoever waits for nobody is awaited by all others.
        let is_over = here >= all;
        if (!is_over || all == 0) && is_abandoned() {
            // The last to come, or the first to give up: one of them is seen by all.
            let _ = count.compare_exchange(here, here | VAIN, Ordering::AcqRel, Ordering::Acquire);
            sys::futex_wake(word);
        } else if is_over {
            return 0;
        } else {
            sys::futex_wait(word, here, patience);
        }
        here = count.load(Ordering::Acquire);
    }
}

/// A barrier for threads that may make no system call any more.
fn turn(word: u64, all: u32, own: u32) -> i64 {
    // SAFETY: the host set a word aside for this.
    let count = unsafe { AtomicU32::from_ptr(word as *mut u32) };
    count.fetch_add(own, Ordering::AcqRel);
    while count.load(Ordering::Acquire) < all {
        core::hint::spin_loop();
    }
    0
}

/// Says which order failed and makes way for the executable that puts it into a sentence.
fn give_up(orders: &ListHead, op: &Op, index: u64, result: i64) -> ! {
    let errno = if sys::failed(result) { result.wrapping_neg() as u32 } else { 0 };
    let [addr, len, ..] = op.args;
    let report = Report { step: op.step, errno, index, nr: op.nr, addr, len };
    if orders.report != 0 {
        spell_out(orders.report, &report);
    }
    if orders.exec_fd >= 0 && is_first(orders.told) {
        sys::execute(orders.exec_fd, orders.empty, orders.argv, orders.envp);
        // Some of the program's filters are there already.
        say(b"ckpt: cannot restart: the kernel has refused one of the last steps with error ");
        say_number(errno.into());
        say(b" (12: no memory, as for seccomp filters where some are in force already), and the program's own filters, \
              perhaps, to say which\n");
    }
    sys::exit_group(LOST)
}

/// How long the first to fail may take to say so, in nanoseconds: nobody else ends before, since the restarter ends all
/// of them when it sees that.
const SPEECH: u64 = 999_999_999;

/// Whether no other process of this restart has failed before. Who is not the first returns when that one has spoken.
fn is_first(told: u64) -> bool {
    // SAFETY: the host set a word aside for this.
    let word = if told == 0 { 0 } else { unsafe { (told as *const u64).read_volatile() } };
    if word == 0 {
        return true;
    }
    let word = word as *const u32;
    // SAFETY: it lies in the page that all share, which is mapped while its address is told.
    let state = unsafe { AtomicU32::from_ptr(word.cast_mut()) };
    let first = state.compare_exchange(0, REPORTS, Ordering::AcqRel, Ordering::Acquire).is_ok();
    if !first {
        sys::futex_wait(word, REPORTS, SPEECH);
    }
    first
}

/// Writes the report where the host expects it. The first thread to fail is heard: it will execute, which
/// ends the others, so they wait.
fn spell_out(at: u64, report: &Report) {
    let word = at as *const u32;
    // SAFETY: the host set a word aside for this.
    let taken = unsafe { AtomicU32::from_ptr(word.cast_mut()) };
    while taken.swap(1, Ordering::AcqRel) != 0 {
        sys::futex_wait(word, 1, 0);
    }
    let bytes: *const Report = report;
    // SAFETY: a record without padding, of this length.
    let bytes = unsafe { core::slice::from_raw_parts(bytes.cast::<u8>(), size_of::<Report>()) };
    let letters = at.wrapping_add(size_of::<u64>() as u64) as *mut [u8; SPELLED];
    // SAFETY: room for them lies there, which nobody else writes.
    spell(bytes, unsafe { &mut *letters });
}
