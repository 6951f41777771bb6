// SPDX-License-Identifier: LGPL-2.1-only
//! NUMA policies of threads (set_mempolicy(2)) and of memory (mbind(2)). Nobody can see a home node
//! (set_mempolicy_home_node(2)).
//!
//! # Safety
//! The system call reads a mask of ours.
#![allow(unsafe_code)]

use crate::error::Result;
use crate::proc::Process;
use crate::proc::numa::{self, Nodes, Placed};
use crate::ptrace::call::Caller;
use crate::ptrace::list::{List, Question, Replies};
use crate::ptrace::memory::Memory;
use crate::resource::Gathered;
use crate::resource::plan::{Arena, Orders, Step};
use ckpt_abi::image::{NumaPolicy, Thread, VmaRecord, thread_flag, vma_flag};
use nix::libc;

const PREFERRED: u32 = 1;
const LOCAL: u32 = 4;
/// The nodes count from those that are allowed.
const RELATIVE: u32 = 1 << 14;
/// One more than there are bits (mm/mempolicy.c, get_nodes).
const BITS: u64 = 1025;

/// What a thread is asked.
pub(crate) struct PolicyQuestions {
    mode: Question,
    nodes: Question,
}

pub(crate) fn ask(list: &mut List) -> PolicyQuestions {
    let call = libc::SYS_get_mempolicy;
    let mode = list.reading(call, &[0, 0, 0, 0, 0], 0, 4);
    let nodes = list.reading(call, &[0, 0, BITS, 0, 0], 1, size_of::<Nodes>());
    PolicyQuestions { mode, nodes }
}

impl PolicyQuestions {
    /// The policy of a thread; mode 0 of one that has none, and where the kernel knows of none.
    pub(crate) fn policy(&self, answers: &Replies) -> (u32, Nodes) {
        let answered = answers.result(self.mode) == 0 && answers.result(self.nodes) == 0;
        match answered {
            true => uniform((answers.get::<u32>(self.mode), answers.get(self.nodes))),
            false => (0, Nodes::default()),
        }
    }
}

/// Preferring no node is the older name of preferring the nearest.
fn uniform((mode, nodes): (u32, Nodes)) -> (u32, Nodes) {
    (if mode == PREFERRED && nodes == Nodes::default() { LOCAL } else { mode }, nodes)
}

/// Whether a snapshot has this memory (MADV_DONTFORK).
pub(crate) fn is_forked(vma: &VmaRecord) -> bool {
    vma.flags & vma_flag::DONTFORK == 0
}

/// Notes the policies of some of a process's memory, or of its snapshot's, which has the same ([`is_forked`]); what cannot
/// be had again is named.
pub(crate) fn save(process: &Process, gathered: &mut Gathered, of: fn(&VmaRecord) -> bool) {
    note(&mut process.policies(), gathered, of);
}

/// Whether no memory of a process that stands still has a policy, as a thread of it says: for what /proc says the kernel
/// walks all page tables. Not of many mappings, nor where a container's filter refuses to be asked.
///
/// # Errors
/// The thread cannot ask.
#[inline(never)]
pub(crate) fn has_none(
    mut caller: Caller<'_>,
    memory: &Memory,
    vmas: &[VmaRecord],
) -> Result<bool> {
    // MPOL_F_ADDR: of that memory, not of the thread.
    const OF_MEMORY: u64 = 2;
    const MOST: usize = 4096;
    if vmas.len() > MOST {
        return Ok(false);
    }
    let mut list = List::default();
    for vma in vmas {
        list.reading(libc::SYS_get_mempolicy, &[0, 0, 0, vma.start, OF_MEMORY], 0, 4);
    }
    caller.list(memory, &list).map(|replies| replies.are_zeros())
}

/// What there is to note of a process: most memory has no policy.
pub(crate) fn seen(process: &Process) -> Vec<Placed> {
    process.policies().filter(|(_, found)| !matches!(found, Ok((0, _)))).collect()
}

/// The same as [`save`] of what was [`seen`].
pub(crate) fn note(
    all: &mut dyn Iterator<Item = Placed>,
    gathered: &mut Gathered,
    of: fn(&VmaRecord) -> bool,
) {
    // Memory without one is shown with that of the first thread that lives.
    let first = gathered.threads.iter().find(|thread| thread.flags & thread_flag::ENDED == 0);
    let first = first.map_or(0, |thread| thread.tid);
    let own = gathered.policies.iter().find(|policy| policy.thread == first);
    let own = own.map_or((0, Nodes::default()), |own| (own.mode, own.nodes));
    let mut strange: Vec<String> = Vec::new();
    for (start, found) in all {
        let vma = gathered.vmas.binary_search_by_key(&start, |vma| vma.start).ok();
        let vma = vma.map(|at| &gathered.vmas[at]).filter(|vma| of(vma));
        let Some(end) = vma.map(|vma| vma.end) else { continue };
        match found.map(uniform) {
            Ok((0, _)) => {}
            Ok(found) if found == own => {}
            Ok((mode, nodes)) => {
                gathered.policies.push(NumaPolicy { thread: 0, mode, start, end, nodes });
            }
            Err(text) if own.0 & RELATIVE != 0 || strange.contains(&text) => {}
            Err(text) => strange.push(text),
        }
    }
    if !strange.is_empty() {
        let what = format!("NUMA policies (mbind(2)): {}", strange.join(", "));
        gathered.losses.push(what);
    }
}

/// Orders that give a thread its policy, if any thread has one.
pub(crate) fn restore_thread(
    thread: &Thread,
    all: &[NumaPolicy],
    arena: &mut Arena,
    orders: &mut Orders,
) -> Result<()> {
    if all.iter().all(|policy| policy.thread == 0) {
        return Ok(());
    }
    let own = all.iter().find(|policy| policy.thread == thread.tid);
    let (mode, nodes) = own.map_or((0, Nodes::default()), |own| (own.mode, own.nodes));
    let args = [mode.into(), mask(&nodes, arena)?, BITS];
    orders.try_call(Step::Thread, libc::SYS_set_mempolicy, &args);
    Ok(())
}

/// How many bytes the orders take.
pub(crate) fn room(all: &[NumaPolicy], threads: &[Thread]) -> u64 {
    const EACH: usize = 64 + size_of::<Nodes>();
    let threads = if all.is_empty() { 0 } else { threads.len() };
    (EACH * (all.len() + threads)) as u64
}

/// Orders that give the main thread its policy, and memory: what is there already moves.
pub(crate) fn restore(
    main: &Thread,
    all: &[NumaPolicy],
    arena: &mut Arena,
    orders: &mut Orders,
) -> Result<()> {
    const MOVE: u64 = 2;
    restore_thread(main, all, arena, orders)?;
    for policy in all.iter().filter(|policy| policy.thread == 0) {
        let (len, mask) = (policy.end - policy.start, mask(&policy.nodes, arena)?);
        let args = [policy.start, len, policy.mode.into(), mask, BITS, MOVE];
        orders.try_call(Step::Process, libc::SYS_mbind, &args);
    }
    Ok(())
}

/// No nodes are no mask, as the kernel wants it of some modes.
fn mask(nodes: &Nodes, arena: &mut Arena) -> Result<u64> {
    if *nodes == Nodes::default() { Ok(0) } else { arena.value(nodes) }
}

/// Has the memory that is about to be filled be where the main thread's policy would have it. A sentence about nodes that
/// are not here.
pub(crate) fn adopt(all: &[NumaPolicy], main: u32) -> Option<String> {
    if all.is_empty() {
        return None;
    }
    if let Some(own) = all.iter().find(|policy| policy.thread == main) {
        let (mode, at) = (own.mode, own.nodes.as_ptr());
        // SAFETY: the kernel reads 1024 bits of the mask, which is so long.
        unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, at, BITS) };
    }
    let here = numa::allowed()?;
    let is_here =
        |policy: &NumaPolicy| policy.nodes.iter().zip(here).all(|(own, here)| own & !here == 0);
    let strange = all.iter().filter(|policy| !is_here(policy)).count();
    (strange != 0).then(|| {
        format!("{strange} of its NUMA policies name nodes that it may not use here, so they hold for the others or not at all")
    })
}

pub(crate) fn nonsense(all: &[NumaPolicy], vmas: &[VmaRecord]) -> Option<&'static str> {
    let inside = |policy: &NumaPolicy| {
        vmas.iter().any(|vma| vma.start <= policy.start && policy.end <= vma.end)
    };
    let sane =
        |policy: &NumaPolicy| policy.thread != 0 || policy.start < policy.end && inside(policy);
    (!all.iter().all(sane)).then_some("a NUMA policy is of no memory")
}
