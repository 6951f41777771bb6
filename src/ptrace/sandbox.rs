// SPDX-License-Identifier: LGPL-2.1-only
//! Threads that may not make every system call (seccomp(2)). A remote call obeys the filters of the thread that makes
//! it, which may kill the process for it, and strict mode does; but a tracer that may look at filters may also suspend them
//! (PTRACE_O_SUSPEND_SECCOMP), for as long as it traces. Each thread has filters of its own.

use super::filters::{self, Call, Filter};
use super::freeze::Frozen;
use super::interrupted;
use super::raw;
use super::shield::{self, Working};
use super::thread::StoppedThread;
use crate::error::{Because, Error, Kind, Result};
use crate::proc::Process;
use crate::proc::status::{CAP_SYS_ADMIN, Status};
use crate::proc::{Tid, tree};
use nix::errno::Errno;
use nix::libc;
use std::rc::Rc;
use std::sync::OnceLock;

/// What a stopped thread has locked itself in.
#[derive(Clone, Debug, Default)]
pub(crate) enum Sandbox {
    /// Nothing.
    #[default]
    None,
    /// Strict mode.
    Strict,
    /// Filters, the first installed first.
    Filters(Rc<Vec<Filter>>),
}

/// Refuses a process with such a thread.
///
/// # Errors
/// Of [`Kind::Obstacles`]: there is one; or the process is gone.
pub(crate) fn refuse(process: &Process) -> Result<()> {
    let own = own()?;
    for tid in process.tasks()? {
        // One that is gone makes no calls.
        if let Ok(status) = process.status(tid) {
            refuse_thread(process, tid, &status, own)?;
        }
    }
    Ok(())
}

/// Refuses a process with such a thread, before one is touched, if we cannot suspend what it is locked in.
///
/// # Errors
/// Those of [`refuse`].
pub(crate) fn refuse_closed(process: &Process) -> Result<()> {
    if is_opener() { Ok(()) } else { refuse(process) }
}

/// Whether we may look at filters and suspend them (kernel/seccomp.c, seccomp_may_assign_mode and get_filter).
pub(crate) fn is_opener() -> bool {
    let is_first = std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]));
    let own = Process::own().and_then(|own| own.status(own.main_thread()));
    let may = |own: Status| own.seccomp == 0 && own.may(CAP_SYS_ADMIN);
    is_first && own.is_ok_and(may)
}

/// Whether a thread of a process, or of one that descends from it, has locked itself in.
pub(super) fn is_any_locked_in(root: &Process) -> bool {
    let members = tree::below_alone(root.pid());
    let locked_in = |process: Result<Process>| process.is_ok_and(|it| refuse(&it).is_err());
    members.into_iter().any(|pid| locked_in(Process::open(pid)))
}

/// What keeps remote calls and the handler of the checkpoint signal from a process: a sentence; None: nothing. Of a process
/// with many threads only the main one is looked at, which takes signals first.
pub(crate) fn obstacle(process: &Process) -> Option<String> {
    const FEW: u32 = 16;
    let (main, own) = (process.status(process.main_thread()).ok()?, own().ok()?);
    let looked = match main.threads {
        0..=FEW => refuse(process),
        _ => refuse_thread(process, process.main_thread(), &main, own),
    };
    looked.err().filter(|e| e.kind() == Kind::Obstacles).map(|e| e.to_string())
}

/// How many filters we obey ourselves, which stays so. Those of a container are the program's and ours, and allow what
/// ckpt needs or would not let us begin.
pub(super) fn own() -> Result<u32> {
    static FILTERS: OnceLock<u32> = OnceLock::new();
    if let Some(known) = FILTERS.get() {
        return Ok(*known);
    }
    let own = Process::own()?;
    let own = filters(&own.status(own.main_thread())?);
    Ok(*FILTERS.get_or_init(|| own))
}

fn filters(status: &Status) -> u32 {
    status.seccomp_filters.unwrap_or(u32::from(status.seccomp == 2))
}

/// A thread in a sentence.
pub(crate) fn named(process: &Process, tid: Tid) -> String {
    let pid = process.pid();
    match tid == pid.main_thread() {
        true => format!("process {pid}"),
        false => format!("thread {tid} of process {pid}"),
    }
}

/// What there is to do where root may not, either.
const OUT: &str = "start it without its sandbox, if it has an option for that";

/// Refuses one thread.
fn refuse_thread(process: &Process, tid: Tid, status: &Status, own: u32) -> Result<()> {
    const ROOT: &str = "save it as root outside of any container, or start it without its sandbox, if it has an option for that";
    let whose = named(process, tid);
    let what = match status.seccomp {
        1 => format!("{whose} is in seccomp's strict mode"),
        _ if filters(status) > own => format!(
            "{whose} has installed seccomp filters, which could kill it for the system calls that a checkpoint needs"
        ),
        _ => return Ok(()),
    };
    Err(Error::new(what).of(Kind::Obstacles).hint(ROOT))
}

/// Refuses a thread where the kernel does not let its filters be suspended, whoever asks.
fn without_kernel(process: &Process, tid: Tid) -> Error {
    const OUT: &str = "save it on a machine whose kernel has that, or start it without its sandbox, if it has an option for that";
    let whose = named(process, tid);
    let what = format!(
        "{whose} has installed seccomp filters, or is in strict mode, which this kernel cannot suspend (it was built without CONFIG_CHECKPOINT_RESTORE)"
    );
    Error::new(what).of(Kind::Obstacles).hint(OUT)
}

/// Refuses a thread that had not locked itself in when it was first looked at: this process is known, and may be killed.
fn too_late(process: &Process, tid: Tid) -> Error {
    let whose = named(process, tid);
    let what = format!("{whose} has locked itself in (seccomp(2)) while the checkpoint began");
    Error::new(what).of(Kind::Obstacles).hint("try again, once it has begun")
}

impl Frozen {
    /// Suspends what its threads are locked in, so that they may work for us until we let go of them.
    ///
    /// # Errors
    /// Of [`Kind::Obstacles`]: one may not.
    pub(crate) fn open_sandbox(&mut self) -> Result<()> {
        let own = own()?;
        let mut known = Rc::default();
        for index in 0..self.threads.len() {
            let status = self.threads[index].look(self.pid)?;
            let closed = refuse_thread(&self.process, self.threads[index].tid, &status, own);
            if let Err(closed) = closed {
                let options = raw::OPTIONS | self.options() | raw::SUSPEND_SECCOMP;
                let thread = &mut self.threads[index];
                match raw::set_options(thread.tid, options) {
                    _ if !is_opener() => return Err(closed),
                    _ if !shield::is_up() => return Err(too_late(&self.process, thread.tid)),
                    Ok(()) => {}
                    // kernel/ptrace.c, check_ptrace_options
                    Err(Errno::EINVAL) => return Err(without_kernel(&self.process, thread.tid)),
                    Err(_) => return Err(closed),
                }
                open(thread, &status, &mut known)?;
                if !thread.may_stay_suspended() {
                    let whose = named(&self.process, self.threads[index].tid);
                    let what = format!(
                        "{whose} has installed seccomp filters, which forbid what it takes to go on waiting with the signal mask \
                         of its call (sigsuspend(2), ppoll(2))"
                    );
                    return Err(Error::new(what).of(Kind::Obstacles).hint(OUT));
                }
            }
        }
        Ok(())
    }

    fn options(&self) -> i32 {
        let births = if self.one { 0 } else { libc::PTRACE_O_TRACECLONE };
        libc::PTRACE_O_TRACEEXEC | births
    }

    /// Takes back those who are locked in, as nothing is left to do for them: whoever dies with us alone, long as it takes to
    /// write their memory, has no part of it to make for itself.
    ///
    /// # Errors
    /// One is gone.
    pub(crate) fn end_work(&mut self) -> Result<()> {
        let locked_in = |it: &&mut StoppedThread| !matches!(it.sandbox, Sandbox::None);
        self.threads.iter_mut().filter(locked_in).try_for_each(|thread| {
            thread
                .take_back()
                .because(|| format!("cannot give thread {} its registers back", thread.tid))
        })
    }

    /// Whether a thread is locked in.
    pub(crate) fn is_sandboxed(&self) -> bool {
        self.threads.iter().any(|thread| !matches!(thread.sandbox, Sandbox::None))
    }
}

/// Reads what a thread is locked in. Mostly that is what another has, too: `known`.
fn open(thread: &mut StoppedThread, status: &Status, known: &mut Rc<Vec<Filter>>) -> Result<()> {
    let tid = thread.tid;
    if status.seccomp == 1 {
        thread.sandbox = Sandbox::Strict;
        return Ok(());
    }
    let found = filters::of(tid).because(|| format!("cannot read the filters of thread {tid}"));
    let found = found.map_err(|e| e.of(Kind::Obstacles))?;
    if **known != found {
        *known = Rc::new(found);
    }
    thread.sandbox = Sandbox::Filters(Rc::clone(known));
    // The kernel would make that call in the thread's name, and it be killed.
    if interrupted::has_restart_block(&thread.regs) && !thread.may(&[libc::SYS_restart_syscall]) {
        thread.regs = interrupted::anew(&thread.regs);
        let told = thread.regs.set(tid);
        told.because(|| format!("cannot tell thread {tid} how it goes on"))?;
    }
    Ok(())
}

impl StoppedThread {
    /// Options of ptrace(2) for one that ends with us.
    pub(super) fn options(&self) -> i32 {
        let suspends = match self.sandbox {
            Sandbox::None => 0,
            _ => raw::SUSPEND_SECCOMP,
        };
        raw::OPTIONS | libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_EXITKILL | suspends
    }

    /// Whether it may make system calls when it goes on, whatever their arguments.
    pub(crate) fn may(&self, calls: &[i64]) -> bool {
        calls.iter().all(|number| self.may_make(*number, [0; 6]))
    }

    /// The same of one with arguments.
    pub(crate) fn may_make(&self, number: i64, arguments: [u64; 6]) -> bool {
        match &self.sandbox {
            Sandbox::None => true,
            Sandbox::Strict => false,
            Sandbox::Filters(all) => {
                filters::allow(all, &Call { number, at: self.regs.rip, arguments })
            }
        }
    }

    /// It is about to work for us.
    pub(super) fn begin_work(&mut self) {
        if !matches!(self.sandbox, Sandbox::None) {
            self.working = Some(Working::begin());
        }
    }

    /// Whether it may make the rest of its call in the payload, and come back from there.
    pub(super) fn may_go_on_elsewhere(&self) -> bool {
        const CALLS: [i64; 5] = [
            libc::SYS_ppoll,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_clock_gettime,
            libc::SYS_restart_syscall,
        ];
        matches!(self.sandbox, Sandbox::None)
            || self.may(&CALLS) && self.may(&[self.regs.orig_rax.cast_signed()])
    }
}
