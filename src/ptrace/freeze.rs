//! Freezing and thawing a process.

use super::call::Caller;
use super::interrupted;
use super::memory::Memory;
use super::raw::{self, State};
use super::regs::Regs;
use crate::error::{Because, Error, Result};
use crate::proc;
use nix::errno::Errno;
use nix::libc;
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
}

/// A process all of whose threads are stopped. Dropping it lets them go on.
pub struct Frozen {
    /// Process id.
    pub pid: i32,
    /// Its threads, the main one first if it lives.
    pub threads: Vec<Thread>,
    seized: Vec<i32>,
}

impl Frozen {
    /// Stops every thread of `pid`, also those that appear meanwhile.
    ///
    /// Fails, with everything running again, when the process may not be traced or a thread does
    /// not stop within [`PATIENCE`]; the sentence names the thread and its system call.
    pub fn freeze(pid: i32) -> Result<Self> {
        let mut frozen = Self { pid, threads: Vec::new(), seized: Vec::new() };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let news = frozen.seize_news()?;
            if news.is_empty() {
                break;
            }
            for tid in news {
                frozen.stop(tid, deadline)?;
            }
        }
        if frozen.threads.is_empty() {
            return Err(Error::new(format!("process {pid} is gone")));
        }
        frozen.threads.sort_by_key(|t| (t.tid != pid, t.tid));
        Ok(frozen)
    }

    /// Stops only one thread of `pid`, for work that needs no other to stand still.
    pub fn freeze_one(pid: i32) -> Result<Self> {
        let mut frozen = Self { pid, threads: Vec::new(), seized: Vec::new() };
        for tid in proc::tasks(pid)? {
            if seize(pid, tid)? {
                frozen.seized.push(tid);
                frozen.interrupt(tid)?;
                frozen.stop(tid, Instant::now() + PATIENCE)?;
            }
            if !frozen.threads.is_empty() {
                return Ok(frozen);
            }
        }
        Err(Error::new(format!("process {pid} is gone")))
    }

    /// Takes over a thread that is already traced and stopped (at its exec).
    pub fn adopt(tid: i32) -> Result<Self> {
        let thread = Thread::read(tid, 0).because(|| format!("cannot read the registers of {tid}"))?;
        Ok(Self { pid: tid, threads: vec![thread], seized: vec![tid] })
    }

    fn seize_news(&mut self) -> Result<Vec<i32>> {
        let mut news = Vec::new();
        for tid in proc::tasks(self.pid)? {
            if !self.seized.contains(&tid) && seize(self.pid, tid)? {
                self.seized.push(tid);
                self.interrupt(tid)?;
                news.push(tid);
            }
        }
        Ok(news)
    }

    fn interrupt(&self, tid: i32) -> Result<()> {
        match raw::interrupt(tid) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(e).because(|| format!("cannot stop thread {tid} of process {}", self.pid)),
        }
    }

    /// Waits until `tid` stands in a PTRACE_EVENT_STOP. Signals that it meets on the way are
    /// delivered: their handlers' first instruction is where it stops.
    fn stop(&mut self, tid: i32, deadline: Instant) -> Result<()> {
        match wait_event_stop(tid, deadline) {
            Ok(Some(signal)) => {
                let group = if signal == libc::SIGTRAP { 0 } else { signal };
                let thread = Thread::read(tid, group)
                    .because(|| format!("cannot read the registers of thread {tid}"))?;
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
            Ok(Some((number, _))) => {
                format!("in system call {number}")
            }
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
        // The others are still stopped by us; the exit kills them where they are.
        self.threads.clear();
        Ok(())
    }

    fn release(&mut self) {
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
        Ok(Self { tid, regs, mask: raw::get_mask(tid)?, stopped_by, lent: false })
    }

    /// Errors mean that the thread is gone, which is no matter here.
    fn release(self) {
        if self.lent && back_to_signal_stop(self.tid).is_err() {
            return;
        }
        // The mask first: should we die in between, the thunk's epilogue gives both back.
        if self.lent {
            let _ = raw::set_mask(self.tid, self.mask);
        }
        let regs = interrupted::undisturbed(&self.regs, None);
        if self.lent || regs != self.regs {
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
    let text = format!("cannot trace process {pid}: {}", error.desc());
    if tracer != 0 {
        return Error::new(text).hint(format!(
            "process {tracer} (a debugger?) traces it already, and there can be only one"
        ));
    }
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match scope.trim() {
        "1" => Error::new(text).hint(
            "kernel.yama.ptrace_scope is 1: start the program with `ckpt PROGRAM`, or run this as root",
        ),
        "2" | "3" => Error::new(text).hint(format!(
            "kernel.yama.ptrace_scope is {}: only root may, or nobody",
            scope.trim()
        )),
        _ => Error::new(text)
            .hint("it must run as your own user, not be set-user-ID, and be dumpable (prctl(2))"),
    }
}
