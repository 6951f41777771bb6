//! Freezing and thawing a process.

use super::call::Caller;
use super::interrupted;
use super::memory::Memory;
use super::raw::{self, State};
use super::regs::Regs;
use super::sockets;
use super::waits::{self, Interrupted, Look};
use crate::error::{Because, Error, Kind, Result};
use crate::proc;
use ckpt_abi::api::{API, Api};
use nix::errno::Errno;
use nix::libc;
use std::collections::HashMap;
use std::mem::offset_of;
use std::time::{Duration, Instant};

/// How long a thread may take to stop.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A stopped thread.
pub struct Thread {
    /// Thread id.
    pub tid: i32,
    /// Registers as the stop found them.
    pub regs: Regs,
    /// Signal mask, the thread's own also inside sigsuspend(2).
    pub mask: u64,
    /// Stop signal of a process that was already stopped (SIGSTOP and its kin), or 0.
    pub stopped_by: i32,
    /// Whether the thread left its first stop to work for us.
    pub(super) lent: bool,
    /// Since when it waits, if it does (CLOCK_MONOTONIC, nanoseconds); None when that is not known.
    since: Option<u64>,
    /// The wait that the stop has interrupted, and the slot for its notes.
    pub wait: Option<(Interrupted, u64)>,
}

/// A process all of whose threads are stopped. Dropping it lets them go on.
pub struct Frozen {
    /// Process id.
    pub pid: i32,
    /// Its threads, the main one first if it lives.
    pub threads: Vec<Thread>,
    seized: Vec<i32>,
    seen: HashMap<i32, Look>,
}

impl Frozen {
    /// Stops every thread of `pid`, also those that appear meanwhile.
    ///
    /// Fails, with everything running again, when the process may not be traced or a thread does
    /// not stop within [`PATIENCE`]; the sentence names the thread and its system call.
    pub fn freeze(pid: i32) -> Result<Self> {
        let mut frozen =
            Self { pid, threads: Vec::new(), seized: Vec::new(), seen: HashMap::new() };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let news = frozen.seize_news()?;
            if news.is_empty() {
                break;
            }
            for tid in &news {
                frozen.interrupt(*tid)?;
            }
            for tid in news {
                frozen.stop(tid, deadline)?;
            }
        }
        if frozen.threads.is_empty() {
            return Err(Error::new(format!("process {pid} is gone")).of(Kind::Gone));
        }
        frozen.threads.sort_by_key(|t| (t.tid != pid, t.tid));
        Ok(frozen)
    }

    /// Stops only one thread of `pid`, for work that needs no other to stand still.
    pub fn freeze_one(pid: i32) -> Result<Self> {
        let mut frozen =
            Self { pid, threads: Vec::new(), seized: Vec::new(), seen: HashMap::new() };
        for tid in proc::tasks(pid)? {
            if seize(pid, tid)? {
                frozen.seized.push(tid);
                frozen.observe(tid);
                frozen.interrupt(tid)?;
                frozen.stop(tid, Instant::now() + PATIENCE)?;
            }
            if !frozen.threads.is_empty() {
                return Ok(frozen);
            }
        }
        Err(Error::new(format!("process {pid} is gone")).of(Kind::Gone))
    }

    /// Takes over a thread that is already traced and stopped (at its exec).
    pub fn adopt(tid: i32) -> Result<Self> {
        let thread =
            Thread::read(tid, 0).because(|| format!("cannot read the registers of {tid}"))?;
        Ok(Self { pid: tid, threads: vec![thread], seized: vec![tid], seen: HashMap::new() })
    }

    fn seize_news(&mut self) -> Result<Vec<i32>> {
        let mut news = Vec::new();
        for tid in proc::tasks(self.pid)? {
            if !self.seized.contains(&tid) && seize(self.pid, tid)? {
                self.seized.push(tid);
                self.observe(tid);
                news.push(tid);
            }
        }
        Ok(news)
    }

    /// Looks at a wait before it is interrupted; later nobody can tell how long it has lasted.
    fn observe(&mut self, tid: i32) {
        if let Some(wait) = waits::observe(self.pid, tid) {
            self.seen.insert(tid, wait);
        }
    }

    /// Works out the waits that the stops have interrupted and leaves notes about them in the
    /// payload's region, for the image and for the next dump.
    pub fn note_waits(&mut self, memory: &Memory, region: u64) -> Result<()> {
        let skew = proc::clock_skew(self.pid);
        let notes = waits::notes(memory, region, skew);
        let mut next = 0;
        for thread in &mut self.threads {
            if interrupted::call_in_progress(&thread.regs).is_none() {
                continue;
            }
            if thread.waits_on_a_socket(self.pid, memory, region)? {
                continue;
            }
            let Some(slot) = waits::slot_address(region, next) else { break };
            let wait = waits::interrupted(thread.tid, &thread.regs, thread.since, memory, &notes);
            if let Some(wait) = wait {
                memory.put(slot, &wait.slot(thread.tid, thread.regs.rsp, skew))?;
                thread.wait = Some((wait, slot));
                next += 1;
            }
        }
        Ok(())
    }

    /// The time left once more, now that it is about to begin.
    fn renew_notes(&self) {
        if self.threads.iter().all(|t| t.wait.is_none()) {
            return;
        }
        let Ok(memory) = Memory::open(self.pid) else { return };
        let skew = proc::clock_skew(self.pid);
        for thread in &self.threads {
            if let Some((wait, slot)) = &thread.wait {
                let _ = memory.put(*slot, &wait.slot(thread.tid, thread.regs.rsp, skew));
            }
        }
    }

    fn interrupt(&self, tid: i32) -> Result<()> {
        match raw::interrupt(tid) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => {
                Err(e).because(|| format!("cannot stop thread {tid} of process {}", self.pid))
            }
        }
    }

    /// Waits until `tid` stands in a PTRACE_EVENT_STOP. Signals that it meets on the way are
    /// delivered: their handlers' first instruction is where it stops.
    fn stop(&mut self, tid: i32, deadline: Instant) -> Result<()> {
        match wait_event_stop(tid, deadline) {
            Ok(Some(signal)) => {
                let group = if signal == libc::SIGTRAP { 0 } else { signal };
                let mut thread = Thread::read(tid, group)
                    .because(|| format!("cannot read the registers of thread {tid}"))?;
                thread.since = self.seen.remove(&tid).map(|look| look.since(self.pid, tid));
                self.threads.push(thread);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(Errno::ETIMEDOUT) => Err(self.stubborn(tid)),
            Err(e) => Err(e).because(|| format!("cannot wait for thread {tid}")),
        }
    }

    fn stubborn(&self, tid: i32) -> Error {
        let call = match proc::syscall(self.pid, tid) {
            Ok(Some((number, _))) => match number.cast_signed() {
                libc::SYS_vfork => "in vfork(2)".to_string(),
                libc::SYS_clone => "in clone(2)".to_string(),
                libc::SYS_clone3 => "in clone3(2)".to_string(),
                _ => format!("in system call {number}"),
            },
            _ => "in the kernel".to_string(),
        };
        let name = proc::comm(self.pid, tid).unwrap_or_default();
        let name = name.display();
        Error::new(format!(
            "thread {tid} ({name}) of process {} cannot be stopped within {} seconds: it waits {call}",
            self.pid,
            PATIENCE.as_secs()
        ))
        .hint("a parent in vfork(2) or a thread in state D becomes free when its child or its disk does")
    }

    /// Lets every thread go on as if nothing had been.
    pub fn thaw(mut self) {
        self.release();
    }

    /// Lets the only thread go on by way of the thunk at `thunk`, where it first waits for the child
    /// `child`, which has no exit signal (`__WCLONE`, wait(2)).
    pub fn leave_waiting(mut self, thunk: u64, memory: &Memory, child: i32) -> Result<()> {
        for mut thread in self.threads.drain(..) {
            let caller = Caller::new(&mut thread, memory, thunk)?;
            let args = [child.cast_unsigned().into(), 0, libc::__WCLONE as u32 as u64, 0];
            caller.leave_in_call(libc::SYS_wait4, &args)?;
        }
        Ok(())
    }

    /// Ends the process with exit_group(2), issued by its first thread at `thunk`.
    pub fn end(mut self, thunk: u64, status: u64) -> Result<()> {
        let pid = self.pid;
        let Some(first) = self.threads.first() else { return Ok(()) };
        let call = libc::SYS_exit_group.cast_unsigned();
        let regs = Regs { rip: thunk, rax: call, orig_rax: u64::MAX, rdi: status, ..first.regs };
        let tid = first.tid;
        raw::set_mask(tid, u64::MAX)
            .and_then(|()| regs.set(tid))
            .and_then(|()| raw::detach(tid))
            .because(|| format!("cannot end process {pid}"))?;
        // The others are still stopped by us; the exit kills them where they are. Were we to end
        // before that, they would run on.
        let deadline = Instant::now() + PATIENCE;
        for thread in self.threads.drain(..).skip(1) {
            while !matches!(raw::wait(thread.tid, false), Ok(State::Ended) | Err(_)) {
                if Instant::now() > deadline {
                    return Err(Error::new(format!("process {pid} is saved but does not end")));
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Ok(())
    }

    fn release(&mut self) {
        self.renew_notes();
        for thread in self.threads.drain(..) {
            thread.release();
        }
        self.seized.clear();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.release();
    }
}

impl Thread {
    fn read(tid: i32, stopped_by: i32) -> std::result::Result<Self, Errno> {
        let regs = Regs::get(tid)?;
        Ok(Self {
            tid,
            regs,
            mask: raw::get_mask(tid)?,
            stopped_by,
            lent: false,
            since: None,
            wait: None,
        })
    }

    /// Whether the stop has interrupted a call on a socket with a time-out: then the thread is sent to wait
    /// for the rest of that.
    fn waits_on_a_socket(&mut self, pid: i32, memory: &Memory, region: u64) -> Result<bool> {
        let Some(since) = self.since.filter(|_| interrupted::answered_eintr(&self.regs)) else {
            return Ok(false);
        };
        let entry = memory.get(region + API + offset_of!(Api, socket_wait) as u64)?;
        let Some(regs) = sockets::wait_on(pid, &self.regs, since, memory, entry) else {
            return Ok(false);
        };
        self.take_back()
            .and_then(|()| regs.set(self.tid))
            .because(|| format!("cannot redirect thread {}", self.tid))?;
        self.regs = regs;
        Ok(true)
    }

    /// Makes the thread go on at `entry` with all signals blocked, on the stack below `stack`, as a
    /// signal handler begins.
    pub fn enter(&mut self, entry: u64, stack: u64) -> Result<()> {
        /// Trap, direction, resume and nested-task flags (x64_setup_rt_frame clears the first three).
        const FLAGS: u64 = 1 << 8 | 1 << 10 | 1 << 16 | 1 << 14;
        let flags = self.regs.eflags & !FLAGS;
        let regs =
            Regs { rip: entry, rsp: stack, orig_rax: u64::MAX, rax: 0, eflags: flags, ..self.regs };
        raw::set_mask(self.tid, u64::MAX)
            .and_then(|()| regs.set(self.tid))
            .because(|| format!("cannot redirect thread {}", self.tid))?;
        (self.regs, self.mask, self.wait) = (regs, u64::MAX, None);
        Ok(())
    }

    /// Lets the thread run on, an instruction at a time, until it is outside of `code`, whose
    /// instructions never wait. A thread in a system call or in a stop of its own stays.
    pub fn leave(&mut self, code: std::ops::Range<u64>) -> std::result::Result<(), Errno> {
        const STEPS: usize = 100_000;
        let inside = |regs: &Regs| code.contains(&regs.rip) && regs.orig_rax.cast_signed() < 0;
        if !inside(&self.regs) || self.stopped_by != 0 {
            return Ok(());
        }
        // What steps must be the thread's own registers, and its own mask is what is read after.
        self.take_back()?;
        let mut signal = 0;
        for _ in 0..STEPS {
            if !inside(&self.regs) {
                break;
            }
            raw::step(self.tid, signal)?;
            signal = match raw::wait(self.tid, true)? {
                State::Stopped { signal: libc::SIGTRAP, .. } => 0,
                State::Stopped { signal, event: 0 } => signal & 0x7f,
                State::Stopped { .. } | State::Running => 0,
                State::Ended => return Err(Errno::ESRCH),
            };
            self.regs = Regs::get(self.tid)?;
        }
        if signal != 0 {
            // A signal that came on the way has to be delivered: the thread enters its handler.
            raw::step(self.tid, signal)?;
            raw::wait(self.tid, true)?;
            self.regs = Regs::get(self.tid)?;
        }
        self.mask = raw::get_mask(self.tid)?;
        Ok(())
    }

    /// Gives a thread that has worked for us its mask and registers back; it stays stopped.
    pub fn take_back(&mut self) -> std::result::Result<(), Errno> {
        if !self.lent {
            return Ok(());
        }
        back_to_signal_stop(self.tid)?;
        // The mask first: should we die in between, the thunk's epilogue gives both back.
        raw::set_mask(self.tid, self.mask)?;
        self.regs.set(self.tid)?;
        self.lent = false;
        Ok(())
    }

    /// Errors mean that the thread is gone, which is no matter here.
    fn release(mut self) {
        if self.take_back().is_err() {
            return;
        }
        let mut regs = interrupted::undisturbed(&self.regs);
        if let Some((wait, slot)) = &self.wait
            && let Some((place, _)) = wait.timeout
            && interrupted::answered_eintr(&self.regs)
        {
            waits::shorten(&mut regs, place, wait.left(), *slot);
        }
        if regs != self.regs {
            let _ = regs.set(self.tid);
        }
        let _ = raw::detach(self.tid);
    }
}

/// Brings a thread from a syscall stop to a signal stop, the only place from which the kernel
/// restarts interrupted system calls; it runs no user code on the way.
fn back_to_signal_stop(tid: i32) -> std::result::Result<(), Errno> {
    raw::interrupt(tid)?;
    raw::cont(tid, 0)?;
    wait_event_stop(tid, Instant::now() + PATIENCE)?.map(drop).ok_or(Errno::ESRCH)
}

/// Waits for PTRACE_EVENT_STOP; its signal, or None when the thread ended.
fn wait_event_stop(tid: i32, deadline: Instant) -> std::result::Result<Option<i32>, Errno> {
    let mut nap = Duration::from_micros(20);
    loop {
        match raw::wait(tid, false)? {
            State::Ended => return Ok(None),
            State::Stopped { signal, event: raw::EVENT_STOP } => return Ok(Some(signal)),
            State::Stopped { signal, .. } if signal & 0x80 != 0 => raw::cont(tid, 0)?,
            State::Stopped { signal, event: 0 } => raw::cont(tid, signal)?,
            State::Stopped { .. } => raw::cont(tid, 0)?,
            State::Running if Instant::now() > deadline => return Err(Errno::ETIMEDOUT),
            State::Running => {
                std::thread::sleep(nap);
                nap = (nap * 2).min(Duration::from_millis(5));
            }
        }
    }
}

/// Seizes one thread; false when it is gone or dead.
fn seize(pid: i32, tid: i32) -> Result<bool> {
    match raw::seize(tid, raw::OPTIONS) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(e) => {
            let status = proc::status(pid, tid);
            match status {
                Err(_) => Ok(false),
                Ok(status) if matches!(status.state, 'Z' | 'X') => Ok(false),
                Ok(status) => Err(refused(pid, e, status.tracer)),
            }
        }
    }
}

fn refused(pid: i32, error: Errno, tracer: i32) -> Error {
    let refusal =
        Error::new(format!("cannot trace process {pid}: {}", error.desc())).of(Kind::NotPermitted);
    if tracer != 0 {
        return refusal.of(Kind::Busy).hint(format!(
            "process {tracer} (a debugger?) traces it already, and there can be only one"
        ));
    }
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match scope.trim() {
        "1" => refusal.hint(
            "kernel.yama.ptrace_scope is 1: start the program with `ckpt PROGRAM`, or run this as root",
        ),
        "2" | "3" => refusal.hint(format!(
            "kernel.yama.ptrace_scope is {}: only root may, or nobody",
            scope.trim()
        )),
        _ => refusal
            .hint("it must run as your own user, not be set-user-ID, and be dumpable (prctl(2))"),
    }
}
