// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 6: the orders for the restorer.

use super::failure::{Failure, close, original};
use super::phase1_check::Saved;
use super::phase3_open::Opened;
use super::phase4_fill::Filled;
use super::placed::Placed;
use super::skeleton::rendezvous::Stage;
use super::tree::{Membership, Who};
use crate::error::{FAILED, Result};
use crate::image::PAGE;
use crate::order;
use crate::resource::descriptor::{epoll, inotify, numbers, socket};
use crate::resource::memory::{advice, locked, policy};
use crate::resource::plan::{Arena, Orders, Step};
use crate::resource::runtime::Id;
use crate::resource::seccomp::{self, Lock};
use crate::resource::{headless, process, regained, signals, threads, timers};
use ckpt_abi::image::{SectionKind, Thread, process_flag};
use ckpt_abi::op::{ListHead, OpKind};
use ckpt_abi::region::{STACK_LEN, STACKS, TURNS, Turns};
use nix::libc;
use std::collections::HashMap;
use std::os::fd::AsRawFd;

/// End of user addresses with 4-level paging.
const TASK_END: u64 = (1 << 47) - 4096;
/// struct clone_args (clone3(2)) with set_tid, set_tid_size and cgroup.
const CLONE_ARGS_LEN: u64 = 88;
const ARCH_MAP_VDSO_64: u64 = 0x2003;
/// CAP_NET_ADMIN, in a set of capabilities.
const NET_ADMIN: u64 = 1 << 12;
/// Bytes of a restorer's stack.
const STACK: u64 = 16 << 10;
/// Bytes for a thread's orders and frame.
const THREAD_ROOM: u64 = 40 << 10;

/// All is ready.
pub(crate) struct Plan {
    /// Address of the restorer.
    pub run: u64,
    /// End of its stack.
    pub stack: u64,
    /// Address of its orders.
    pub orders: u64,
    /// Descriptors that the restorer uses and closes.
    pub kept: Vec<i32>,
    /// That of them which is our standard error.
    pub complaints: Option<i32>,
}

/// Writes the orders; on the line, if there is one, is said that the program goes on.
#[inline(never)]
pub(super) fn plan(
    saved: &Saved<'_>,
    opened: &Opened,
    mut filled: Filled,
    (who, line): (Who<'_>, Option<i32>),
) -> Result<Plan> {
    let (member, len) = (who.member(), arena_len(saved, opened));
    let mut arena = Arena::map(filled.space.find(len, 0)?, len)?;
    let region = filled.region;
    let stack = |index: u64| region + STACKS + STACK_LEN * index;
    let tails = Tails { orders: stack(1), frame: stack(2) };
    // Whoever shares a table needs no number of it when all have planned.
    let failure = if who.follows() { Failure::none() } else { Failure::prepare(saved)? };
    let exe = if who.follows() { None } else { original(saved)? };

    let mut main = Orders::default();
    unmap(&mut main, &arena, &filled, member);
    move_mappings(&mut main, &filled.placed);
    if let Some(at) = filled.vdso.map_at {
        main.call(Step::Vdso, libc::SYS_arch_prctl, &[ARCH_MAP_VDSO_64, at]);
    }
    let exe_fd = exe.as_ref().map(AsRawFd::as_raw_fd);
    process::restore_mm(&saved.process, &saved.auxv, exe_fd, &mut arena, &mut main)?;
    process::restore(&saved.process, &mut main);
    process::restore_permissions(saved.process.permitted, &mut main);
    signals::restore_actions(&filled.actions, &mut arena, &mut main)?;
    let words = words(&mut arena)?;
    let head = words[0];
    let rights = rights(saved, member, &mut arena)?;
    let lock = Lock::prepare(&saved.threads, &saved.filters, &saved.filter_code, &mut arena)?;
    let with = (member, &rights, lock.as_ref());
    let mut ids = clone_all(saved, with, &mut arena, &mut main, words)?;
    let (pid, first) = (u64::from(std::process::id()), &saved.threads[0]);
    let word = arena.value(&std::process::id())?;
    ids.insert(first.tid, word);
    threads::restore(
        first,
        &saved.owners,
        pid,
        Id::Known(pid),
        tails.frame,
        &mut arena,
        &mut main,
    )?;
    signals::restore_pending(&saved.pending, 0, pid, word, &mut arena, &mut main)?;
    signals::restore_pending(&saved.pending, first.tid, pid, word, &mut arena, &mut main)?;
    let ours: Vec<_> = failure.numbers().chain(exe_fd).chain(line).collect();
    let spare = numbers::free(&saved.descriptors, &ours);
    epoll::restore_watches(&opened.watches, spare, &mut arena, &mut main)?;
    policy::restore(first, &saved.policies, &mut arena, &mut main)?;
    locked::restore(&saved.vmas, saved.process.flags, &mut main);
    advice::seal(&saved.vmas, &mut main);
    timers::restore(&saved.timers, &ids, &mut arena, &mut main)?;
    process::restore_limits(&saved.limits, &mut arena, &mut main)?;
    change_root(saved, member, &mut arena, &mut main)?;
    let head_value = failure.head(&mut arena, member)?;
    if let Some(member) = member {
        await_others(saved, member, &filled, &mut arena, &mut main)?;
    }
    let [early, late] = connections(saved, opened, member, &mut arena)?;
    main.extend(&early);
    // Nobody enters the program while another still has the restarter's.
    let last = give_privileges(&rights, first, (saved, member), &mut arena, &mut main)?;
    meet_threads(saved, &words[1..2], &mut main);
    let [mut kept, complaints] = close(&mut main, failure, exe, opened, &mut arena)?;
    process::restore_dumpable(&saved.process, &mut main);
    if let Some(member) = member {
        leave_together(saved, (member, &late), &head_value, &mut arena, &mut main)?;
    }
    say_begun(line, &mut kept, &mut arena, &mut main)?;
    let turn = filled.region + TURNS + std::mem::offset_of!(Turns, turn) as u64;
    main.push(OpKind::Store, 0, Step::Leave, 8, &[turn, filled.turn.word()]);
    stop(saved, member, &filled, &mut arena, &mut main)?;
    meet_threads(saved, &words[2..], &mut main);
    if let Some(lock) = &lock {
        lock.close(first, true, &last, &mut main);
    }
    main.push(OpKind::Goto, 0, Step::Leave, 0, &[tails.orders]);
    tails.write(saved, &mut filled, &arena)?;

    let head_value = ListHead { ops: main.store(&mut arena)?, ..head_value };
    arena.write(head, zerocopy::IntoBytes::as_bytes(&head_value))?;
    Ok(Plan {
        run: filled.control.run,
        stack: stack(1) - 64,
        orders: head,
        kept,
        complaints: complaints.first().copied(),
    })
}

/// How often threads are tried to be made whose ids others have, all together, in as many milliseconds.
const TRIES: u64 = 3000;

/// Orders that make all threads but the first; by their ids, where each of them has its own.
#[inline(never)]
fn clone_all(
    saved: &Saved<'_>,
    with: (Option<&Membership>, &Orders, Option<&Lock<'_>>),
    arena: &mut Arena,
    main: &mut Orders,
    words: [u64; 3],
) -> Result<HashMap<u32, u64>> {
    let mut ids = HashMap::new();
    for thread in &saved.threads[1..] {
        ids.insert(thread.tid, clone(saved, thread, with, arena, main, words)?);
    }
    Ok(ids)
}

/// Orders that wait for the others: what only a process without its own rights may do is done when none fails any more.
fn await_others(
    saved: &Saved<'_>,
    member: &Membership,
    filled: &Filled,
    arena: &mut Arena,
    main: &mut Orders,
) -> Result<()> {
    meet(Stage::Threaded, member.living, member, arena, main)?;
    signals::await_stops(&member.stopped, &filled.actions, &saved.pending, arena, main)
}

/// Orders that say on a line that the program goes on, and close it.
fn say_begun(
    line: Option<i32>,
    kept: &mut Vec<i32>,
    arena: &mut Arena,
    main: &mut Orders,
) -> Result<()> {
    let Some(line) = line else { return Ok(()) };
    kept.push(line);
    // Who hears it may be gone: SIGPIPE would be the program's.
    let args = [line as u64, arena.value(&1u8)?, 1, libc::MSG_NOSIGNAL as u64, 0, 0];
    main.try_call(Step::Leave, libc::SYS_sendto, &args);
    main.call(Step::Descriptor, libc::SYS_close, &args[..1]);
    Ok(())
}

/// Where the head of the orders of all threads is, and the words of their meetings: where all have their privileges, as a
/// change of users, which every thread makes for itself, takes away that others may look at the process; and where they leave.
fn words(arena: &mut Arena) -> Result<[u64; 3]> {
    Ok([arena.room(size_of::<ListHead>() as u64, 64)?, arena.value(&0u32)?, arena.value(&0u32)?])
}

/// Orders of a thread that come to the meetings of all.
fn meet_threads(saved: &Saved<'_>, words: &[u64], orders: &mut Orders) {
    for word in words {
        let args = [*word, saved.threads.len() as u64];
        orders.push(OpKind::Barrier, 0, Step::Leave, 0, &args);
    }
}

/// Orders that stop a process that stood still when it was saved.
fn stop(
    saved: &Saved<'_>,
    member: Option<&Membership>,
    filled: &Filled,
    arena: &mut Arena,
    main: &mut Orders,
) -> Result<()> {
    let signal = member.map_or(libc::SIGSTOP, |member| member.stop_signal);
    process::restore_stop(&saved.process, signal, &filled.actions, arena, main)
}

/// Orders that let the connections go on that were kept, which until then are closed without a word: before a process has
/// its own rights, or behind the last meeting if it may still.
#[inline(never)]
fn connections(
    saved: &Saved<'_>,
    opened: &Opened,
    member: Option<&Membership>,
    arena: &mut Arena,
) -> Result<[Orders; 2]> {
    let content = |index| saved.part.bytes(SectionKind::Content, index);
    let all = socket::let_go(&opened.descriptors, &opened.led, content, arena)?;
    let late = member.is_some() && saved.process.capabilities[0] & NET_ADMIN != 0;
    Ok(if late { [Orders::default(), all] } else { [all, Orders::default()] })
}

/// Orders by which a process of several lets the others know that it is there, and waits for them; `connections` are let go
/// behind that.
fn leave_together(
    saved: &Saved<'_>,
    (member, connections): (&Membership, &Orders),
    head_value: &ListHead,
    arena: &mut Arena,
    main: &mut Orders,
) -> Result<()> {
    // Who stops lets its parent see that before the parent enters the program, and so waits for nobody.
    let stops = saved.stands_still() && member.has_parent;
    let living = if stops { 0 } else { member.living };
    meet(Stage::Restored, living, member, arena, main)?;
    main.push(OpKind::Store, 0, Step::Leave, 8, &[head_value.told, 0]);
    main.call(Step::Unmap, libc::SYS_munmap, &[member.page()[0], PAGE]);
    main.extend(connections);
    Ok(())
}

/// Orders that come to a meeting of the restorers, and wait there for so many.
fn meet(
    stage: Stage,
    living: u32,
    member: &Membership,
    arena: &mut Arena,
    main: &mut Orders,
) -> Result<()> {
    let barrier = [member.word(stage), u64::from(living), member.page()[1]];
    main.call_or_next(OpKind::Barrier, Step::Leave, 0, &barrier);
    main.push(OpKind::Goto, 0, Step::Leave, 0, &[in_vain(member, arena)?]);
    Ok(())
}

fn arena_len(saved: &Saved<'_>, opened: &Opened) -> u64 {
    let per_mapping = 3 * 64 * saved.vmas.len() as u64 + 2 * 64 * saved.guards.len() as u64;
    let per_thread = (STACK + THREAD_ROOM) * saved.threads.len() as u64;
    let per_signal = 512 * saved.pending.len() as u64;
    let per_timer = 1024 * saved.timers.len() as u64;
    let per_watch = epoll::ROOM * opened.watches.len() as u64;
    let per_descriptor = (socket::ROOM + inotify::ROOM) * opened.descriptors.len() as u64;
    let policies = policy::room(&saved.policies, &saved.threads)
        + seccomp::room(&saved.threads, &saved.filters, &saved.filter_code);
    (per_mapping
        + per_thread
        + per_signal
        + per_timer
        + per_watch
        + per_descriptor
        + policies
        + (1 << 20))
        .next_multiple_of(4096)
}

/// Orders that unmap all but the region, the arena and the program's memory.
fn unmap(orders: &mut Orders, arena: &Arena, filled: &Filled, member: Option<&Membership>) {
    let mut kept = vec![
        (arena.base(), arena.base() + arena.len()),
        (filled.region, filled.region + filled.control.region_len),
    ];
    kept.extend(filled.placed.iter().map(|p| (p.mapping.at(), p.mapping.at() + p.mapping.len())));
    let list = filled.missing.as_ref().map(|list| &list.mapping);
    kept.extend(list.map(|m| (m.at(), m.at() + m.len())));
    kept.extend(member.map(Membership::page).map(|[page, ..]| (page, page + PAGE)));
    order::numbers(&mut kept);
    let mut free = 0;
    for (start, end) in kept {
        if start > free {
            orders.call(Step::Unmap, libc::SYS_munmap, &[free, start - free]);
        }
        free = free.max(end);
    }
    if free < TASK_END {
        orders.call(Step::Unmap, libc::SYS_munmap, &[free, TASK_END - free]);
    }
}

fn move_mappings(orders: &mut Orders, placed: &[Placed]) {
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    for Placed { record, mapping, borders, .. } in placed {
        if mapping.at() == record.start {
            continue;
        }
        // Before Linux 6.17 mremap(2) moves no more than one mapping at a time.
        let mut borders: Vec<u64> = [&[0, mapping.len()], borders.as_slice()].concat();
        order::numbers(&mut borders);
        borders.dedup();
        for part in borders.windows(2) {
            let (from, to, len) =
                (mapping.at() + part[0], record.start + part[0], part[1] - part[0]);
            orders.exact_call(Step::Move, libc::SYS_mremap, [from, len, len, flags, to], to);
        }
    }
}

/// Orders that make another thread, which waits for all others before it enters the program; the
/// address of the word that will hold its id.
///
/// It gets its old id where we may choose it (CAP_CHECKPOINT_RESTORE) and it is free, else any. Where a program that remembers
/// its ids has that of its process again, all were free a moment ago, and who has one since then is likely to end soon.
#[inline(never)]
fn clone(
    saved: &Saved<'_>,
    thread: &Thread,
    (member, rights, lock): (Option<&Membership>, &Orders, Option<&Lock<'_>>),
    arena: &mut Arena,
    main: &mut Orders,
    [head, meetings @ ..]: [u64; 3],
) -> Result<u64> {
    const FLAGS: i32 = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_SETTID;
    let pid = u64::from(std::process::id());
    let word = arena.value(&0u32)?;
    let mut list = Orders::default();
    let frame = arena.room(THREAD_ROOM / 2, 64)?;
    threads::restore(thread, &saved.owners, pid, Id::At(word), frame, arena, &mut list)?;
    policy::restore_thread(thread, &saved.policies, arena, &mut list)?;
    signals::restore_pending(&saved.pending, thread.tid, pid, word, arena, &mut list)?;
    let bytes = threads::frame(thread, &saved.xstate, frame)?;
    arena.write(frame, &bytes)?;
    let last = give_privileges(rights, thread, (saved, member), arena, &mut list)?;
    meet_threads(saved, &meetings, &mut list);
    if let Some(lock) = lock {
        lock.close(thread, false, &last, &mut list);
    }
    list.push(OpKind::Sigreturn, 0, Step::Leave, 0, &[frame]);
    let list = list.store(arena)?;
    let words = arena.value(&[head, list])?;
    let stack = arena.room(STACK, 64)? + STACK;
    let id = arena.value(&thread.tid)?;
    let args: [u64; 11] = [FLAGS as u64, 0, word, word, 0, stack - STACK, STACK, 0, id, 1, 0];
    let args = arena.value(&args)?;
    let remembers = saved.process.flags & process_flag::REMEMBERS_IDS != 0;
    let remembers = remembers && u64::from(saved.threads[0].tid) == pid;
    let tries = if remembers { TRIES / saved.threads.len() as u64 } else { 0 };
    main.call_or_next(OpKind::Clone3, Step::Clone, CLONE_ARGS_LEN, &[args, words, tries]);
    main.push(OpKind::Clone, 0, Step::Clone, FLAGS as u64, &[stack, words, word, word]);
    Ok(word)
}

/// Orders for who comes to a meeting when the restarter is gone: whom it has stopped nobody else ends.
fn in_vain(member: &Membership, arena: &mut Arena) -> Result<u64> {
    let mut list = Orders::default();
    for (child, _) in &member.stopped {
        let args = [u64::from(child.word()), libc::SIGKILL as u64];
        list.try_call(Step::Leave, libc::SYS_kill, &args);
    }
    list.push(OpKind::Exit, 0, Step::Leave, 0, &[FAILED.into()]);
    list.store(arena)
}

/// The order that changes to the root directory, if nobody else does it for this process.
fn change_root(
    saved: &Saved<'_>,
    member: Option<&Membership>,
    arena: &mut Arena,
    orders: &mut Orders,
) -> Result<()> {
    match member.is_some_and(|member| member.led[1] || member.is_privileged) {
        true => Ok(()),
        false => regained::restore_root(&saved.root, arena, orders),
    }
}

/// Orders by which every thread gets its privileges.
fn rights(saved: &Saved<'_>, member: Option<&Membership>, arena: &mut Arena) -> Result<Orders> {
    match member.is_some_and(|member| member.is_privileged) {
        true => Ok(Orders::default()),
        false => regained::restore(&saved.process, &saved.supplementary, arena),
    }
}

/// Orders that give a thread its privileges, and no more: who has less might not look at it (process_vm_readv(2) of MPI's
/// ranks); what of them comes behind its filters. A change of users takes away the signal of its parent's end.
#[inline(never)]
fn give_privileges(
    rights: &Orders,
    thread: &Thread,
    (saved, member): (&Saved<'_>, Option<&Membership>),
    arena: &mut Arena,
    orders: &mut Orders,
) -> Result<Orders> {
    let (first, last) = match seccomp::is_late(thread, &saved.process) {
        true => rights.split_last(),
        false => (rights.clone(), Orders::default()),
    };
    orders.extend(&first);
    let signal = thread.death_signal;
    if !rights.is_empty() && signal != 0 {
        let args = [libc::PR_SET_PDEATHSIG as u64, signal.into()];
        orders.call(Step::Thread, libc::SYS_prctl, &args);
    }
    // What it was allowed for its restart: all that its user namespace has.
    if member.is_some_and(|member| member.is_privileged) {
        regained::give_up(&saved.process, arena, orders)?;
    }
    Ok(last)
}

/// Where the last orders and the main thread's frame lie: in the region, because the arena is
/// unmapped before they are done.
struct Tails {
    orders: u64,
    frame: u64,
}

impl Tails {
    fn write(&self, saved: &Saved<'_>, filled: &mut Filled, arena: &Arena) -> Result<()> {
        let mut last = Orders::default();
        if saved.threads.len() == 1 && saved.threads[0].filter == 0 {
            last.call(Step::Leave, libc::SYS_munmap, &[arena.base(), arena.len()]);
        } else {
            // The other threads' frames lie there, and nobody can say when they are read; or no call is allowed any more.
            filled.control.leftover = arena.base();
            filled.control.leftover_len = arena.len();
        }
        headless::end(&saved.threads[0], &mut last);
        last.push(OpKind::Sigreturn, 0, Step::Leave, 0, &[self.frame]);
        let frame = threads::frame(&saved.threads[0], &saved.xstate, self.frame)?;
        let region = filled.region;
        let control = filled.control;
        let mut put = |at: u64, bytes: &[u8]| -> Result<()> {
            let home = filled.placed.iter_mut().find(|p| p.record.start == region);
            home.map_or(Ok(()), |home| home.mapping.write(at - region, bytes))
        };
        put(self.orders, last.bytes())?;
        put(self.frame, &frame)?;
        put(region, zerocopy::IntoBytes::as_bytes(&control))
    }
}
