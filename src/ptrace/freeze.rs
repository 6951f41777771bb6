// SPDX-License-Identifier: LGPL-2.1-only
//! Freezing and thawing a process.
//!
//! Every thread is seized and interrupted. The freeze is final when a list of the threads, made while all that were
//! seized stand still, holds no other, and the kernel counts as many (`Threads:`): a list of a running process may
//! be short (fs/proc/base.c, next_tid). Threads born of seized ones are seized by the kernel (PTRACE_O_TRACECLONE).
//!
//! A program must not notice us more than by a moment. So a thread that does not stop soon lets all others go on
//! until it has; and an end or an execve(2) of the process lets go of all, while [`super::reaper`] takes care that
//! neither waits for us.
//!
//! The first thread of the list is the lock among tracers: it is seized first, so who meets it traced has disturbed nobody.
//! It is let go first, too ([`super::letting`]): who can trace it may meet others who are on their way, and gives it back.

use super::call::Caller;
use super::lend::{self, Desk};
use super::memory::Memory;
use super::raw::{self, State};
use super::reaper;
use super::regs::Regs;
use super::row::Row;
use super::seize::{Seized, seize, stubborn};
use super::stopping::{Moving, Round, await_hearing};
use super::thread::StoppedThread;
use super::undelayed::Undelayed;
use crate::abreast;
use crate::error::{Because, Error, Kind, Result};
use crate::fault::{Point, reach};
use crate::order;
use crate::proc::status::Status;
use crate::proc::{Clocks, Process, clocks, forebear, gone};
use crate::proc::{Pid, Tid};
use nix::errno::Errno;
use nix::libc;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the threads may take to stop, all attempts together.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What to do about io_uring(7), by the names of those who use it unasked: libuv, MariaDB, PostgreSQL, QEMU.
pub(crate) const WITHOUT_RINGS: &str = "start it without io_uring(7) and the like (UV_USE_IO_URING=0, \
     innodb_use_native_aio=0, io_method=worker, aio=threads)";

/// How long those that stand still wait for the next one in a first attempt; each attempt doubles it, up to
/// [`LAST_ATTEMPT`], for on a busy machine a thread may only be waiting for a processor.
pub(super) const FIRST_ATTEMPT: Duration = Duration::from_millis(20);
pub(super) const LAST_ATTEMPT: Duration = Duration::from_millis(320);

/// Attempts may hold the program for one part of so many of the time that they take, but for what a first one or two
/// need.
const SHARE: u32 = 4;
const AT_FIRST: Duration = Duration::from_millis(200);
/// So many bytes of memory take the kernel longer to free than one more stop of their process.
const LARGE: u64 = 16 << 20;

/// A process all of whose threads are stopped. Dropping it lets them go on.
pub(crate) struct Frozen {
    /// Process id.
    pub pid: Pid,
    /// Its threads, the main one first if it lives.
    pub threads: Vec<StoppedThread>,
    /// All that we trace: these, and those on their way.
    pub(super) seized: Row,
    pub(super) moving: Vec<Moving>,
    /// Calls that the kernel goes on with by itself, in which an earlier attempt has found threads, and since when they
    /// waited: the next stop finds only restart_syscall(2).
    pub(super) earlier: HashMap<Tid, (Regs, Option<u64>)>,
    pub(super) process: Process,
    attended: bool,
    /// Whether only one thread was to be stopped.
    pub(super) one: bool,
    /// It was stopped, and we have told it to go on.
    pub was_told: bool,
    /// The CPU time that it had used when all stood still ([`clocks::spent`]).
    pub(crate) spent: [i64; 3],
    /// By how much our clocks and its are shifted, once that was looked at ([`Process::shifts`]).
    pub(super) shifts: Option<[[i64; 2]; 2]>,
    pub(super) since: Instant,
    /// Dropped last.
    _undelayed: Undelayed,
}

impl Frozen {
    fn new(process: &Process) -> Self {
        Self::of(process.clone())
    }

    /// None of the threads of a process.
    pub(super) fn of(process: Process) -> Self {
        let (threads, moving) = (Vec::new(), Vec::new());
        let (seized, _undelayed) = (Row::default(), Undelayed::new());
        let pid = process.pid();
        let since = Instant::now();
        Self {
            pid,
            threads,
            seized,
            moving,
            earlier: HashMap::new(),
            process,
            attended: false,
            one: false,
            was_told: false,
            spent: [0; 3],
            shifts: None,
            since,
            _undelayed,
        }
    }

    /// Stops every thread of a process, also those that appear meanwhile.
    ///
    /// # Errors
    /// With everything running again: the process may not be traced, or another does ([`Kind::Busy`] if that is a
    /// ckpt); it has ended or executed another program ([`Kind::Gone`]); a thread does not stop within
    /// [`PATIENCE`], and the sentence names it and its system call; one has seccomp filters of its own
    /// that we may not suspend ([`Kind::Obstacles`]). A thread that does not stop stays ours until this process
    /// ends, as a running thread cannot be let go (ptrace(2)), and is taken over by the next attempt.
    pub(crate) fn freeze(process: &Process) -> Result<Self> {
        let pid = process.pid();
        forebear::engage(pid);
        reaper::start()?;
        reaper::watch(pid);
        let begun = Instant::now();
        let deadline = begun + PATIENCE;
        let mut patience = FIRST_ATTEMPT;
        let mut held = Duration::ZERO;
        let mut frozen = Self::new(process);
        loop {
            // One for whom the last attempt waited in vain may stand still; nobody else does.
            if frozen.threads.is_empty() {
                await_hearing(&frozen.process, deadline)?;
            }
            frozen.since = Instant::now();
            let round = frozen.begin_round()?;
            if frozen.attempt(round, patience)? {
                frozen.sort();
                frozen.look()?;
                frozen.open_sandbox()?;
                frozen.find_bells();
                return Ok(frozen);
            }
            frozen.give_up();
            held += frozen.since.elapsed();
            frozen.await_moving(deadline)?;
            let due = (held * SHARE).saturating_sub(begun.elapsed() + AT_FIRST);
            if !due.is_zero() {
                frozen.give_up();
                std::thread::sleep(due);
            }
            if Instant::now() > deadline {
                let text =
                    format!("the threads of process {pid} come and go too fast to be stopped");
                return Err(Error::new(text).hint("try again when it makes fewer of them"));
            }
            patience = (patience * 2).min(LAST_ATTEMPT);
        }
    }

    /// One attempt of [`Frozen::freeze`], for a caller that holds others meanwhile, with what the last attempt has left
    /// ([`Frozen::give_up`]). An inner error is what this one leaves when a thread does not stop within `patience`.
    ///
    /// # Errors
    /// Those of [`Frozen::freeze`].
    pub(super) fn soon(
        process: &Process,
        patience: Duration,
        left: Option<Self>,
    ) -> Result<std::result::Result<Self, Self>> {
        Stopping::begin(process, left)?.end(patience)
    }

    /// Stops only one thread of a process, for work that needs no other to stand still.
    pub(crate) fn freeze_one(process: &Process) -> Result<Self> {
        let pid = process.pid();
        forebear::engage(pid);
        reaper::start()?;
        let mut frozen = Self::new(process);
        frozen.one = true;
        let deadline = Instant::now() + PATIENCE;
        for tid in frozen.process.tasks()? {
            let options = raw::OPTIONS | libc::PTRACE_O_TRACEEXEC;
            if seize(&frozen.process, tid, options)? != Seized::Dead {
                frozen.seized.insert(tid);
                frozen.begin(&[tid])?;
                frozen.settle(FIRST_ATTEMPT)?;
            }
            if !frozen.threads.is_empty() {
                frozen.look()?;
                frozen.open_sandbox()?;
                return Ok(frozen);
            }
        }
        while let Some(moving) = frozen.moving.first() {
            if Instant::now() > deadline {
                return Err(stubborn(&frozen.process, moving.tid));
            }
            frozen.settle(FIRST_ATTEMPT)?;
            if !frozen.threads.is_empty() {
                frozen.look()?;
                frozen.open_sandbox()?;
                return Ok(frozen);
            }
        }
        Err(gone(pid))
    }

    /// None of its threads, for what can be seen of a process that goes on.
    pub(crate) fn unstopped(process: &Process) -> Self {
        forebear::engage(process.pid());
        Self::new(process)
    }

    /// The ids of its threads, the main one first, also where they go on; the first may work for us meanwhile.
    pub(crate) fn tids(&self) -> Vec<Tid> {
        if !self.threads.is_empty() {
            return self.threads.iter().map(|thread| thread.tid).collect();
        }
        let mut all = self.process.tasks().unwrap_or_default();
        order::by_key(&mut all, |tid| self.rank(*tid));
        all
    }

    /// What the kernel says of one of its threads.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn status(&self, tid: Tid) -> Result<Rc<Status>> {
        let at = self.threads.partition_point(|thread| self.rank(thread.tid) < self.rank(tid));
        match self.threads.get(at).filter(|thread| thread.tid == tid) {
            Some(thread) => thread.look(self.pid),
            None => self.process.status(tid).map(Rc::new),
        }
    }

    /// What /proc says of it.
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// Reads what the kernel says of the threads.
    fn look(&mut self) -> Result<()> {
        self.refuse_workers()?;
        self.spent = clocks::spent(self.pid);
        let threads = self.threads.iter_mut();
        let opened: Vec<_> = threads.map(|it| (it.tid, Mutex::new(it.opened.take()))).collect();
        let all = abreast::each(&opened, 8, |(tid, file)| {
            let file = file.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.process.status_in(*tid, file)
        });
        for (thread, status) in self.threads.iter_mut().zip(all) {
            thread.status = Some(Rc::new(status?));
        }
        Ok(())
    }

    /// A thread of the kernel stops for us, but never comes to a system call: whoever had it make one would wait for ever.
    fn refuse_workers(&self) -> Result<()> {
        // It has these registers (arch/x86/kernel/process.c, copy_thread).
        let may_be = |thread: &&StoppedThread| thread.regs.rip == 0 && thread.regs.rsp == 0;
        let mut all = self.threads.iter().filter(may_be).map(|thread| thread.tid);
        let Some(tid) = all.find(|tid| self.process.is_worker(*tid)) else { return Ok(()) };
        let name = self.process.status(tid).map(|status| status.name).unwrap_or_default();
        let text = format!(
            "process {} cannot be saved: its thread {tid} ({}) works for it in the kernel",
            self.pid,
            name.display()
        );
        Err(Error::new(text).of(Kind::Obstacles).hint(WITHOUT_RINGS))
    }

    /// As all threads stand still, nobody changes what a signal does.
    fn find_bells(&mut self) {
        self.threads.iter_mut().for_each(StoppedThread::find_bell);
    }

    /// Since when the threads stand still, or are being stopped.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Takes over a process that is already traced and stopped (at its exec).
    pub(crate) fn adopt(process: &Process) -> Result<Self> {
        let tid = process.main_thread();
        let thread = StoppedThread::read(tid, 0)
            .because(|| format!("cannot read the registers of {tid}"))?;
        let mut frozen = Self::new(process);
        frozen.seized.insert(tid);
        frozen.threads.push(thread);
        Ok(frozen)
    }

    /// Does what has to be done as soon as the payload is known: brings home the threads that an earlier host has left
    /// in it, and sees to the calls that the stops have interrupted ([`super::noted`]). The second time it does
    /// nothing: a time-out in the notes would be shortened twice.
    pub(crate) fn attend(&mut self, memory: &Memory, desk: &Desk, region: u64) -> Result<()> {
        if self.attended {
            return Ok(());
        }
        lend::recover(&mut self.threads, memory, desk)?;
        self.note_waits(memory, region)?;
        self.attended = true;
        Ok(())
    }

    /// By how many nanoseconds its CLOCK_MONOTONIC is ahead of ours.
    pub(super) fn skew(&self) -> i64 {
        self.shifts.map_or(0, |[own, theirs]| theirs[0].saturating_sub(own[0]))
    }

    /// Its clocks now.
    ///
    /// # Errors
    /// They cannot be read.
    pub(crate) fn clocks(&self) -> Result<Clocks> {
        self.shifts.map_or_else(|| self.process.clocks(), Clocks::shifted)
    }

    /// Lets every thread go on as if nothing had been. When this returns all of them do, and none is traced.
    pub(crate) fn thaw(mut self) {
        self.release();
    }

    /// Lets the only thread go on by way of the thunk, where it first waits for the child `child`,
    /// which has no exit signal (`__WCLONE`, wait(2)).
    pub(crate) fn leave_waiting(mut self, desk: &Desk, memory: &Memory, child: Pid) -> Result<()> {
        for mut thread in self.threads.drain(..) {
            let caller = Caller::new(&mut thread, memory, desk)?;
            let args = [child.word().into(), 0, libc::__WCLONE as u32 as u64, 0];
            caller.leave_in_call(libc::SYS_wait4, &args)?;
        }
        Ok(())
    }

    /// Lets the kernel end the process if this one ends before it (PTRACE_O_EXITKILL).
    pub(crate) fn end_with_us(&self) {
        for thread in &self.threads {
            // A thread that is killed needs it no more.
            let _ = raw::set_options(thread.tid, thread.options());
        }
    }

    /// Ends the process with exit_group(2), issued by its first thread at `thunk`, and waits until it has ended.
    ///
    /// It stays traced meanwhile: a process that is stopped (SIGSTOP) would stop again, and the others, which the
    /// exit kills where they stand, would run on. `last` is called as soon as no thread of it runs any more code of its own;
    /// to free its memory may take longer than all that was before.
    pub(crate) fn end(mut self, thunk: u64, status: u64, last: Option<&dyn Fn()>) -> Result<()> {
        let pid = self.pid;
        let mut threads = std::mem::take(&mut self.threads);
        let Some(first) = threads.first() else { return Ok(()) };
        let call = libc::SYS_exit_group.cast_unsigned();
        let regs = Regs { rip: thunk, rax: call, orig_rax: u64::MAX, rdi: status, ..first.regs };
        let tid = first.tid;
        let mut last = last;
        let frees = self.process.resident().is_some_and(|bytes| bytes >= LARGE)
            && Memory::open(&self.process).is_ok_and(|memory| {
                // The kernel finds in that memory what each thread leaves to others, and only behind the stop of its exit.
                !threads.iter().any(|thread| thread.may_leave_locks(&memory))
            });
        if last.is_some() || frees {
            // It stops once more when it ends, behind the end of all others (do_group_exit in kernel/exit.c).
            let _ = raw::set_options(tid, first.options() | libc::PTRACE_O_TRACEEXIT);
        }
        let begun = regs
            .set(tid)
            .and_then(|()| raw::set_mask(tid, u64::MAX))
            .and_then(|()| raw::cont(tid, 0));
        // Who was killed where it stood ends by that.
        if begun != Err(Errno::ESRCH) {
            begun.because(|| format!("cannot end process {pid}"))?;
        }
        reach(Point::Ended);
        let deadline = Instant::now() + PATIENCE;
        loop {
            threads.retain(|thread| match raw::wait(thread.tid, false) {
                Ok(State::Ended) | Err(_) => false,
                Ok(State::Stopped { event, .. }) => {
                    if event == libc::PTRACE_EVENT_EXIT {
                        last.take().into_iter().for_each(|last| last());
                    }
                    let goes_on = raw::cont(thread.tid, 0).is_ok();
                    if frees && event == libc::PTRACE_EVENT_EXIT {
                        self.process.free();
                    }
                    goes_on
                }
                Ok(State::Running) => true,
            });
            if threads.is_empty() {
                last.into_iter().for_each(|last| last());
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::new(format!("process {pid} is saved but does not end")));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    pub(super) fn sort(&mut self) {
        let mut threads = std::mem::take(&mut self.threads);
        order::by_key(&mut threads, |thread| self.rank(thread.tid));
        self.threads = threads;
    }

    /// The place of a thread: ids wrap, so the main one need not have the lowest.
    fn rank(&self, tid: Tid) -> (u64, u64) {
        ((tid != self.pid.main_thread()).into(), tid.word().into())
    }
}

/// A process that has `begun` then; None: its id is another's by now.
///
/// # Errors
/// It is gone.
pub(super) fn open_with(pid: Pid, begun: u64) -> Result<Option<Process>> {
    let process = Process::open(pid)?;
    let is_it = process.stat(process.main_thread())?.starttime == begun;
    Ok(is_it.then_some(process))
}

/// A process whose threads are being stopped. Dropping it lets them go on.
pub(super) struct Stopping {
    frozen: Frozen,
    round: Round,
}

impl Stopping {
    /// Begins with [`Frozen::soon`], so that several processes stop abreast.
    ///
    /// # Errors
    /// Those of [`Frozen::freeze`].
    fn begin(process: &Process, left: Option<Frozen>) -> Result<Self> {
        let pid = process.pid();
        forebear::engage(pid);
        reaper::start()?;
        reaper::watch(pid);
        let mut frozen = left.unwrap_or_else(|| Frozen::new(process));
        let round = frozen.begin_round()?;
        Ok(Self { frozen, round })
    }

    /// The same of a process that has `begun` then (in ticks since boot), as all have that are `left`; None: its id is
    /// another's by now.
    ///
    /// # Errors
    /// Those of [`Frozen::freeze`].
    pub(super) fn begin_with(pid: Pid, begun: u64, left: Option<Frozen>) -> Result<Option<Self>> {
        let frozen = match left {
            Some(frozen) => frozen,
            None => match open_with(pid, begun)? {
                Some(process) => Frozen::of(process),
                None => return Ok(None),
            },
        };
        let process = frozen.process.clone();
        Self::begin(&process, Some(frozen)).map(Some)
    }

    /// Waits until all threads stand still.
    ///
    /// # Errors
    /// Those of [`Frozen::freeze`].
    pub(super) fn end(self, patience: Duration) -> Result<std::result::Result<Frozen, Frozen>> {
        let Self { mut frozen, round } = self;
        if !frozen.attempt(round, patience)? {
            frozen.give_up();
            frozen.meet_moving(true);
            return Ok(Err(frozen));
        }
        frozen.sort();
        frozen.look()?;
        frozen.find_bells();
        Ok(Ok(frozen))
    }

    /// What this attempt leaves.
    pub(super) fn give_up(mut self) -> Frozen {
        self.frozen.give_up();
        self.frozen.meet_moving(true);
        self.frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.release();
    }
}
