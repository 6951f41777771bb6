// SPDX-License-Identifier: LGPL-2.1-only
//! Threads: registers, extended state, masks, and what the kernel keeps for a thread.

use super::memory::policy::{self, PolicyQuestions};
use super::plan::{Arena, Orders, Step};
use super::rseq::{self, feature_size, rseq_len};
use super::runtime::{self, Id, glibc, holding};
use super::{Gathered, Target, attributes, headless, scheduling, seccomp, vdso};
use crate::error::{Because, Error, Kind, Result};
use crate::proc;
use crate::proc::Tid;
use crate::proc::numa::Nodes;
use crate::ptrace::call::Caller;
use crate::ptrace::crew::{self, Told};
use crate::ptrace::frame::Frame;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::interrupted;
use crate::ptrace::lend::Desk;
use crate::ptrace::list::{List, Question, Replies};
use crate::ptrace::memory::Memory;
use crate::ptrace::raw;
use crate::ptrace::regs::{Regs, USER_CS};
use crate::ptrace::segments;
use crate::ptrace::sequence::leave_sequence;
use crate::ptrace::thread::StoppedThread;
use ckpt_abi::image::{NumaPolicy, Owner, Thread, thread_flag};
use ckpt_abi::op::OpKind;
use nix::errno::Errno;
use nix::libc;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use zerocopy::{FromZeros, IntoBytes};

const PR_GET_TID_ADDRESS: u64 = 40;
const ARCH_SET_GS: u64 = 0x1001;
const ARCH_SET_FS: u64 = 0x1002;
const SS_ONSTACK: u64 = 1;
/// What is in the way of a process that goes on, as its executable tells.
pub(crate) fn obstacles(frozen: &Frozen) -> Vec<String> {
    let goes_on = frozen.threads.is_empty() && proc::exec::is_of_32_bits(frozen.process());
    Vec::from_iter(goes_on.then(|| narrow(frozen.pid.main_thread())))
}

fn narrow(tid: Tid) -> String {
    format!("thread {tid} runs 32-bit code")
}

/// Lets threads run on that are where a restart could not go on, `ids` being those of all, and sees which it could not
/// make at all.
///
/// # Errors
/// One is gone.
#[inline(never)]
pub(crate) fn settle_all(
    target: &mut Target<'_>,
    ids: &[u32],
    gathered: &mut Gathered,
) -> Result<()> {
    // The vdso of another kernel does not go on in the middle of a function of this one's.
    let vdso = vdso::Place::find(target.vmas);
    let code = vdso.vdso..vdso.vdso + vdso.vdso_len;
    for index in 0..ids.len() {
        step_on(target, index, ids, &code)?;
    }
    let threads = target.frozen.threads.iter();
    let of_32_bits = threads.filter(|thread| thread.regs.cs != USER_CS);
    gathered.obstacles.extend(of_32_bits.map(|thread| narrow(thread.tid)));
    // Others than the main thread have some if they use them.
    let main = target.frozen.pid.main_thread();
    let uses = |regs: &Regs| regs.fs | regs.gs | regs.ds | regs.es != 0;
    let asked = target.frozen.threads.iter().filter(|it| it.tid == main || uses(&it.regs));
    let segmented = asked.filter(|thread| segments::any(thread.tid));
    gathered.obstacles.extend(segmented.map(|thread| {
        format!("thread {} has memory segments of its own (set_thread_area(2))", thread.tid)
    }));
    Ok(())
}

/// Saves what the main thread has answered, and asks the others.
///
/// # Errors
/// Their state cannot be read. That one may not work for us is in the way of the checkpoint, as other things are.
#[inline(never)]
pub(crate) fn save(
    target: &mut Target<'_>,
    ids: &[u32],
    main: Answers,
    gathered: &mut Gathered,
) -> Result<()> {
    let before = gathered.obstacles.len();
    record(target, 0, ids, main, gathered)?;
    let mut next = 1;
    while next < ids.len() && gathered.obstacles.len() == before {
        match ask_some(target, next) {
            Ok(some) => {
                let memory = target.memory;
                let _held = memory.hold();
                for answers in some {
                    record(target, next, ids, answers, gathered)?;
                    next += 1;
                }
            }
            Err(e) if e.kind() == Kind::Obstacles => gathered.obstacles.push(e.to_string()),
            Err(e) => return Err(e),
        }
    }
    let pid = target.frozen.pid;
    if let Some(first) = gathered.threads.first().filter(|first| first.tid != pid.word()) {
        let main = headless::record(first, pid, &target.frozen.process().main_stat()?);
        gathered.threads.insert(0, main);
    }
    Ok(())
}

/// Makes the record of a thread.
fn record(
    target: &mut Target<'_>,
    index: usize,
    ids: &[u32],
    answers: Answers,
    gathered: &mut Gathered,
) -> Result<()> {
    let (pid, memory) = (target.frozen.pid, target.memory);
    let thread = &target.frozen.threads[index];
    let tid = thread.tid;
    let Answers { xstate, rseq, robust: [robust_list, robust_list_len], .. } = answers;
    if let (mode @ 1.., nodes) = answers.policy {
        gathered.policies.push(NumaPolicy { thread: tid.word(), mode, start: 0, end: 0, nodes });
    }
    let (wait, slot) = thread.wait.map_or((None, 0), |(wait, slot)| (Some(wait), slot));
    if wait.is_some_and(|wait| wait.begins_anew) {
        gathered.losses.push(format!(
            "how long thread {tid} has slept or waited already (after a restart its time-out begins anew)"
        ));
    }
    let (mut next, interrupted) = interrupted::revived(&thread.regs, wait.as_ref(), slot);
    if rseq.pointer != 0 {
        leave_sequence(memory, rseq.pointer, &mut next);
    }
    let mut record = Thread {
        tid: tid.word(),
        flags: answers.flags | if interrupted { thread_flag::INTERRUPTED } else { 0 },
        mask: thread.mask,
        altstack: answers.altstack,
        robust_list,
        robust_list_len,
        tid_address: answers.tid_address,
        rseq: rseq.pointer,
        rseq_len: rseq.size,
        rseq_signature: rseq.signature,
        name: headless::padded(thread.look(pid)?.name.as_bytes()),
        xstate: gathered.xstate.len() as u64,
        xstate_len: xstate.len() as u64,
        death_signal: answers.death_signal,
        timer_slack: answers.timer_slack,
        ..Thread::new_zeroed()
    };
    record.regs.as_mut_bytes().copy_from_slice(next.as_bytes());
    runtime::save(memory, pid, next.fs_base, &mut record);
    gathered.owners.extend(runtime::listed(memory, robust_list, next.fs_base, &record));
    let own = tid.word();
    let places = holding::find(target, &next, ids, own);
    if places.in_doubt {
        gathered.losses.push(format!(
            "the right of thread {tid} to a mutex that it is just taking (it may fail to unlock it after a restart; another checkpoint does not have this)"
        ));
    }
    gathered.owners.extend(places.owners(own));
    record.id_registers = places.bits();
    gathered.owners.extend(match glibc::timer_helper(target, &next, record.mask, own) {
        Ok(word) => word.map(|address| Owner { tid: own, reserved: 0, address }),
        Err(in_doubt) => {
            gathered.losses.push(in_doubt.into());
            None
        }
    });
    scheduling::save(target.process(), &answers.scheduling, &mut record)?;
    record.personality = answers.personality;
    attributes::save(&target.frozen.threads[index], pid, &mut record)?;
    seccomp::save(target, index, &mut record, gathered);
    gathered.xstate.extend_from_slice(&xstate);
    gathered.threads.push(record);
    Ok(())
}

/// Lets a thread run on that is where a restart could not go on.
fn step_on(target: &mut Target<'_>, index: usize, ids: &[u32], vdso: &Range<u64>) -> Result<()> {
    let thread = &mut target.frozen.threads[index];
    let tid = thread.tid;
    thread.leave(vdso.clone()).because(|| format!("cannot step thread {tid} out of the vdso"))?;
    settle(target, index, ids).because(|| format!("cannot let thread {tid} take a lock"))
}

/// Lets a thread run on that is in the middle of taking a lock.
fn settle(target: &mut Target<'_>, index: usize, ids: &[u32]) -> std::result::Result<(), Errno> {
    /// How many instructions the functions that take and give a lock have.
    const LOCKING: usize = 400;
    let stopped = &target.frozen.threads[index];
    // It takes none now, and is not let run on.
    if interrupted::call_in_progress(&stopped.regs).is_some() {
        return Ok(());
    }
    if !holding::is_on_its_way(target, &stopped.regs, ids, stopped.tid.word()) {
        return Ok(());
    }
    // The thread is borrowed, the looks take the rest of the target.
    let mut thread = target.frozen.threads.remove(index);
    let tid = thread.tid.word();
    let unsettled = |regs: &Regs| holding::is_on_its_way(target, regs, ids, tid);
    let result = thread.run_while(unsettled, LOCKING);
    target.frozen.threads.insert(index, thread);
    result
}

/// What only the thread itself can say, or its tracer.
pub(crate) struct Answers {
    xstate: Vec<u8>,
    rseq: raw::RseqConfiguration,
    altstack: [u64; 3],
    tid_address: u64,
    death_signal: u32,
    timer_slack: u64,
    personality: u32,
    /// The list of the robust mutexes that it holds, and the length of its head (get_robust_list(2)).
    robust: [u64; 2],
    scheduling: scheduling::Scheduling,
    /// Bits of [`thread_flag`].
    flags: u32,
    /// NUMA: its mode, and nodes.
    policy: (u32, Nodes),
}

/// The questions to a thread.
struct Questions {
    altstack: Question,
    tid_address: Question,
    death_signal: Question,
    slack: Question,
    personality: Question,
    robust: Question,
    scheduling: scheduling::SchedulingQuestions,
    attributes: attributes::ThreadQuestions,
    policy: PolicyQuestions,
}

impl Questions {
    fn ask(list: &mut List) -> Self {
        /// What changes nothing (personality(2)).
        const SAME: u64 = 0xffff_ffff;
        let prctl = libc::SYS_prctl;
        Self {
            altstack: list.reading(libc::SYS_sigaltstack, &[0, 0], 1, 24),
            // EINVAL where the kernel lacks CONFIG_CHECKPOINT_RESTORE: the word stays unknown.
            tid_address: list.reading(prctl, &[PR_GET_TID_ADDRESS, 0], 1, 8),
            death_signal: list.reading(prctl, &[libc::PR_GET_PDEATHSIG as u64, 0], 1, 4),
            // 0 for real-time threads, which have none.
            slack: list.call(prctl, &[libc::PR_GET_TIMERSLACK as u64]),
            personality: list.call(libc::SYS_personality, &[SAME]),
            robust: list.reading_two(libc::SYS_get_robust_list, &[0, 0, 0], 1),
            scheduling: scheduling::ask(list),
            attributes: attributes::ask(list),
            policy: policy::ask(list),
        }
    }

    fn answers(
        &self,
        replies: &Replies,
        xstate: Vec<u8>,
        rseq: raw::RseqConfiguration,
    ) -> Result<Answers> {
        replies.expect(self.altstack, "cannot read a thread's alternate stack")?;
        let personality = replies.expect(self.personality, "cannot read a thread's personality")?;
        const LOCKS: &str =
            "cannot read which locks a thread would leave behind (get_robust_list(2))";
        replies.expect(self.robust, LOCKS).map_err(|e| {
            e.hint(
                "a sandbox (seccomp) that it was started in forbids it: start it outside of that",
            )
        })?;
        Ok(Answers {
            xstate,
            rseq,
            altstack: replies.get(self.altstack),
            tid_address: replies.get(self.tid_address),
            death_signal: replies.get(self.death_signal),
            timer_slack: replies.result(self.slack).max(0).cast_unsigned(),
            personality: personality as u32,
            robust: replies.get(self.robust),
            scheduling: self.scheduling.answers(replies),
            flags: self.attributes.flags(replies),
            policy: self.policy.policy(replies),
        })
    }
}

/// Asks as many threads, from the one at `first` on, as there are slots to lend them to us beside the main one; what they
/// have answered. They make their calls abreast, and are as they were then.
fn ask_some(target: &mut Target<'_>, first: usize) -> Result<Vec<Answers>> {
    let (memory, desk) = (target.memory, target.region.desk());
    let mut list = List::default();
    let questions = Questions::ask(&mut list);
    let threads = &mut target.frozen.threads[first..];
    let told = crew::ask(threads, &list, memory, &desk)?;
    if !told.is_empty() {
        let answer = |told: Told| questions.answers(&told.replies, told.xstate, told.rseq);
        return told.into_iter().map(answer).collect();
    }
    let thread = &mut threads[0];
    let asking = Asking::of(thread, List::default(), memory, &desk)?;
    let answer = asking.answers(thread, memory, &desk);
    let (tid, back) = (thread.tid, thread.take_back());
    back.because(|| format!("cannot give thread {tid} its registers back"))?;
    Ok(vec![answer?.0])
}

/// One thread that is asked by itself.
pub(crate) struct Asking {
    list: List,
    questions: Questions,
    /// The thread makes the calls already.
    runs: bool,
    xstate: Vec<u8>,
    rseq: raw::RseqConfiguration,
}

impl Asking {
    /// Begins to ask the main thread, behind what is in the list already; None where it may not work for us, which is in
    /// the way then. [`Asking::end`] has to follow.
    ///
    /// # Errors
    /// Its state cannot be read.
    pub(crate) fn begin(
        target: &mut Target<'_>,
        list: List,
        gathered: &mut Gathered,
    ) -> Result<Option<Self>> {
        let desk = target.region.desk();
        match Self::of(&mut target.frozen.threads[0], list, target.memory, &desk) {
            Ok(asking) => Ok(Some(asking)),
            Err(e) if e.kind() == Kind::Obstacles => {
                gathered.obstacles.push(e.to_string());
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// What the main thread has answered, and all that was in the list.
    ///
    /// # Errors
    /// It has not.
    pub(crate) fn end(self, target: &mut Target<'_>) -> Result<(Answers, Replies)> {
        let desk = target.region.desk();
        self.answers(&mut target.frozen.threads[0], target.memory, &desk)
    }

    fn of(
        thread: &mut StoppedThread,
        mut list: List,
        memory: &Memory,
        desk: &Desk,
    ) -> Result<Self> {
        let tid = thread.tid;
        let rseq = rseq::registered(thread, memory, desk)?;
        let questions = Questions::ask(&mut list);
        Caller::new(thread, memory, desk)?;
        let what = || format!("cannot read the extended state of thread {tid}");
        let xstate = thread.xstate().because(what)?;
        let runs = Caller::new(thread, memory, desk)?.begin_list(memory, &list)?;
        Ok(Self { list, questions, runs, xstate, rseq })
    }

    fn answers(
        self,
        thread: &mut StoppedThread,
        memory: &Memory,
        desk: &Desk,
    ) -> Result<(Answers, Replies)> {
        let mut caller = Caller::new(thread, memory, desk)?;
        let replies = match self.runs {
            true => caller.end_list(memory, &self.list)?,
            false => caller.list(memory, &self.list)?,
        };
        let own = self.questions.answers(&replies, self.xstate, self.rseq)?;
        Ok((own, replies))
    }
}

/// The saved registers of a thread.
pub(crate) fn regs(thread: &Thread) -> Regs {
    let mut regs = Regs::default();
    regs.as_mut_bytes().copy_from_slice(thread.regs.as_bytes());
    regs
}

/// The frame through which a thread enters the program, for the address `at`.
pub(crate) fn frame(thread: &Thread, xstate: &[u8], at: u64) -> Result<Vec<u8>> {
    let start = thread.xstate as usize;
    let xstate = xstate.get(start..start.saturating_add(thread.xstate_len as usize));
    let xstate = xstate.ok_or_else(|| {
        Error::new(format!("the extended state of thread {} is missing", thread.tid))
    })?;
    let mut altstack = thread.altstack;
    altstack[1] &= !SS_ONSTACK & 0xffff_ffff;
    Ok(Frame { regs: &regs(thread), xstate, mask: thread.mask, altstack }.bytes(at))
}

/// Orders that give the running thread what the kernel kept for the saved one.
pub(crate) fn restore(
    thread: &Thread,
    owners: &[Owner],
    pid: u64,
    id: Id,
    frame: u64,
    arena: &mut Arena,
    orders: &mut Orders,
) -> Result<()> {
    let step = Step::Thread;
    let regs = regs(thread);
    runtime::restore(thread, owners, pid, id, frame, orders);
    if thread.tid_address != 0 {
        orders.call(step, libc::SYS_set_tid_address, &[thread.tid_address]);
    }
    if thread.robust_list != 0 {
        let args = [thread.robust_list, thread.robust_list_len];
        orders.call(step, libc::SYS_set_robust_list, &args);
    }
    let name = arena.bytes(&thread.name)?;
    orders.call(step, libc::SYS_prctl, &[libc::PR_SET_NAME as u64, name]);
    scheduling::restore(thread, arena, orders)?;
    let mut altstack = thread.altstack;
    altstack[1] &= !SS_ONSTACK & 0xffff_ffff;
    let altstack = arena.value(&altstack)?;
    orders.call(step, libc::SYS_sigaltstack, &[altstack, 0]);
    orders.call(step, libc::SYS_arch_prctl, &[ARCH_SET_FS, regs.fs_base]);
    orders.call(step, libc::SYS_arch_prctl, &[ARCH_SET_GS, regs.gs_base]);
    if thread.rseq != 0 {
        // cpu_id_start, and cpu_id for a kernel without rseq(2): registration failed, ask by
        // system call (include/uapi/linux/rseq.h). Others overwrite both.
        orders.push(OpKind::Store, 0, step, 8, &[thread.rseq, 0xffff_fffe << 32]);
        let len = rseq_len(thread.rseq_len.into(), feature_size());
        let signature = u64::from(thread.rseq_signature);
        orders.try_call(step, libc::SYS_rseq, &[thread.rseq, len, 0, signature]);
    }
    attributes::restore(thread, orders);
    Ok(())
}

/// What threads of an image, and their extended states, cannot be.
pub(crate) fn nonsense(threads: &[Thread], xstate: &[u8]) -> Option<&'static str> {
    let inside = |thread: &Thread| {
        let end = thread.xstate.checked_add(thread.xstate_len);
        end.is_some_and(|end| end <= xstate.len() as u64)
    };
    match () {
        () if threads.is_empty() => Some("it has no threads"),
        () if !threads.iter().all(inside) => Some("a thread has no extended state"),
        () => None,
    }
}
