// SPDX-License-Identifier: LGPL-2.1-only
//! ptrace(2) and its kin as functions with types.
//!
//! # Safety
//! Every request here reads or writes only buffers that it owns; what it does to the tracee is the
//! caller's intention, not a matter of memory safety in this process.
#![allow(unsafe_code)]

use crate::proc::fds::holder;
use crate::proc::forebear::{self, Ask, Reply, shape, what};
use crate::proc::pidfd::Pidfd;
use crate::proc::{Pid, Process, Tid, head};
use nix::errno::Errno;
use nix::libc;
use std::ffi::c_void;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

type Result<T> = std::result::Result<T, Errno>;

/// PTRACE_EVENT_STOP of a status from [`wait`], and its kin.
pub(crate) const EVENT_STOP: i32 = 128;
/// PTRACE_EVENT_EXEC.
pub(crate) const EVENT_EXEC: i32 = libc::PTRACE_EVENT_EXEC;
/// PTRACE_EVENT_CLONE.
pub(crate) const EVENT_CLONE: i32 = libc::PTRACE_EVENT_CLONE;
/// Set of options that [`seize`] asks for: syscall stops that can be told from SIGTRAP.
pub(crate) const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD;

/// PTRACE_O_SUSPEND_SECCOMP.
pub(crate) const SUSPEND_SECCOMP: i32 = 1 << 21;

/// A request of ptrace(2), made by this process or by its [`forebear`].
fn request(asked: Ask, buffer: &mut [u8]) -> Result<i64> {
    let asked = Ask { len: buffer.len() as u32, ..asked };
    match forebear::ask(&asked, buffer) {
        Some(answered) => answered.map(|answer| answer.result),
        None => perform(&asked, buffer),
    }
}

/// Makes a request itself.
pub(super) fn perform(asked: &Ask, buffer: &mut [u8]) -> Result<i64> {
    let Ask { what, id, addr, data, shape, .. } = *asked;
    let (mut addr, mut data) = (number(addr), number(data));
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    if shape & shape::VECTOR != 0 {
        data = std::ptr::from_mut(&mut iov).cast();
    } else if shape & shape::PAIR != 0 {
        let (first, second) = buffer.split_at_mut_checked(16).ok_or(Errno::EINVAL)?;
        (addr, data) = (first.as_mut_ptr().cast(), second.as_mut_ptr().cast());
    } else if shape & (shape::IN | shape::OUT) != 0 {
        data = buffer.as_mut_ptr().cast();
    }
    // SAFETY: what the kernel reads and writes is the buffer, which is as long as each request below says.
    let result = Errno::result(unsafe { libc::ptrace(what.cast_signed() as _, id, addr, data) })?;
    Ok(if shape & shape::VECTOR != 0 { iov.iov_len as i64 } else { result })
}

fn number(value: u64) -> *mut c_void {
    std::ptr::without_provenance_mut(value as usize)
}

/// A request with numbers alone.
fn order(what: u32, tid: Tid, addr: u64, data: u64) -> Result<()> {
    request(Ask { what, id: tid.get(), addr, data, ..Ask::default() }, &mut []).map(drop)
}

/// A request that fills or reads a buffer.
pub(super) fn transfer(
    what: u32,
    tid: Tid,
    addr: u64,
    shape: u32,
    buffer: &mut [u8],
) -> Result<i64> {
    request(Ask { what, id: tid.get(), addr, shape, ..Ask::default() }, buffer)
}

/// PTRACE_SEIZE with the options given.
pub(crate) fn seize(tid: Tid, options: i32) -> Result<()> {
    order(libc::PTRACE_SEIZE as u32, tid, 0, options as u64)
}

/// PTRACE_INTERRUPT.
pub(crate) fn interrupt(tid: Tid) -> Result<()> {
    order(libc::PTRACE_INTERRUPT as u32, tid, 0, 0)
}

/// PTRACE_CONT, delivering `signal` (0: none).
pub(crate) fn cont(tid: Tid, signal: i32) -> Result<()> {
    order(libc::PTRACE_CONT as u32, tid, 0, signal as u64)
}

/// PTRACE_SETOPTIONS.
pub(crate) fn set_options(tid: Tid, options: i32) -> Result<()> {
    order(libc::PTRACE_SETOPTIONS as u32, tid, 0, options as u64)
}

/// PTRACE_SYSCALL, delivering `signal` (0: none).
pub(crate) fn syscall(tid: Tid, signal: i32) -> Result<()> {
    order(libc::PTRACE_SYSCALL as u32, tid, 0, signal as u64)
}

/// PTRACE_DETACH.
pub(crate) fn detach(tid: Tid) -> Result<()> {
    detach_with(tid, 0)
}

/// PTRACE_DETACH, delivering `signal` (0: none).
pub(crate) fn detach_with(tid: Tid, signal: i32) -> Result<()> {
    order(libc::PTRACE_DETACH as u32, tid, 0, signal as u64)
}

/// PTRACE_GETEVENTMSG: the new thread's id at a PTRACE_EVENT_CLONE. Fails with ESRCH of a thread that is not in a stop.
pub(crate) fn event_message(tid: Tid) -> Result<u64> {
    let mut message = 0u64;
    transfer(libc::PTRACE_GETEVENTMSG as u32, tid, 0, shape::OUT, message.as_mut_bytes())?;
    Ok(message)
}

/// PTRACE_GETREGSET: fills `buffer` and says how many bytes the kernel had.
pub(crate) fn get_regset(tid: Tid, kind: usize, buffer: &mut [u8]) -> Result<usize> {
    let shape = shape::OUT | shape::VECTOR;
    let what = libc::PTRACE_GETREGSET as u32;
    transfer(what, tid, kind as u64, shape, buffer).map(|len| len as usize)
}

/// PTRACE_SETREGSET.
pub(crate) fn set_regset(tid: Tid, kind: usize, buffer: &[u8]) -> Result<()> {
    let shape = shape::IN | shape::VECTOR;
    let what = libc::PTRACE_SETREGSET as u32;
    transfer(what, tid, kind as u64, shape, &mut buffer.to_vec()).map(drop)
}

/// PTRACE_SINGLESTEP: one instruction, with `signal` delivered first unless it is 0.
pub(crate) fn step(tid: Tid, signal: i32) -> Result<()> {
    order(libc::PTRACE_SINGLESTEP as u32, tid, 0, signal as u64)
}

/// PTRACE_GETSIGMASK: the thread's own mask, also inside sigsuspend(2) and its kin.
pub(crate) fn get_mask(tid: Tid) -> Result<u64> {
    let mut mask = 0u64;
    transfer(libc::PTRACE_GETSIGMASK, tid, 8, shape::OUT, mask.as_mut_bytes())?;
    Ok(mask)
}

/// PTRACE_SETSIGMASK.
pub(crate) fn set_mask(tid: Tid, mut mask: u64) -> Result<()> {
    transfer(libc::PTRACE_SETSIGMASK, tid, 8, shape::IN, mask.as_mut_bytes()).map(drop)
}

/// One siginfo_t as bytes.
pub(crate) type SigInfo = [u8; 128];

/// PTRACE_PEEKSIGINFO: the queue of the thread, or of its process.
pub(crate) fn peek_siginfo(tid: Tid, shared: bool) -> Result<Vec<SigInfo>> {
    const CHUNK: usize = 16;
    /// struct ptrace_peeksiginfo_args, and room for what it asks for.
    #[derive(FromBytes, IntoBytes)]
    #[repr(C)]
    struct Asked {
        off: u64,
        flags: u32,
        count: i32,
        found: [SigInfo; CHUNK],
    }
    const _: () = assert!(size_of::<Asked>() == 16 + 128 * CHUNK);
    let mut queue = Vec::new();
    loop {
        let (off, flags, count) = (queue.len() as u64, u32::from(shared), CHUNK as i32);
        let mut asked = Asked { off, flags, count, found: [[0; 128]; CHUNK] };
        let shape = shape::IN | shape::OUT | shape::PAIR;
        let what = libc::PTRACE_PEEKSIGINFO as u32;
        let n = transfer(what, tid, 0, shape, asked.as_mut_bytes())? as usize;
        queue.extend_from_slice(&asked.found[..n.min(CHUNK)]);
        if n < CHUNK {
            return Ok(queue);
        }
    }
}

/// struct ptrace_rseq_configuration.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes)]
#[repr(C)]
pub(crate) struct RseqConfiguration {
    /// Address of the area; 0: not registered.
    pub pointer: u64,
    /// Length it was registered with.
    pub size: u32,
    /// Signature before abort handlers.
    pub signature: u32,
    /// Flags.
    pub flags: u32,
    pad: u32,
}

const _: () = assert!(size_of::<RseqConfiguration>() == 24);

/// PTRACE_GET_RSEQ_CONFIGURATION (Linux 5.13).
pub(crate) fn rseq_configuration(tid: Tid) -> Result<RseqConfiguration> {
    const REQUEST: u32 = 0x420f;
    let mut configuration = RseqConfiguration::default();
    let len = size_of::<RseqConfiguration>() as u64;
    transfer(REQUEST, tid, len, shape::OUT, configuration.as_mut_bytes())?;
    Ok(configuration)
}

/// PTRACE_POKEDATA of one word, which also writes where the process itself may not.
pub(crate) fn poke(tid: Tid, addr: u64, word: u64) -> Result<()> {
    order(libc::PTRACE_POKEDATA as u32, tid, addr, word)
}

/// sched_getscheduler(2) of another thread: its policy, with SCHED_RESET_ON_FORK.
pub(crate) fn policy(tid: Tid) -> Result<u32> {
    // SAFETY: the call has no memory arguments. musl's function of that name refuses to make it.
    let result = unsafe { libc::syscall(libc::SYS_sched_getscheduler, tid.get()) };
    Errno::result(result).map(|policy| policy as u32)
}

/// struct sched_attr (sched_setattr(2)) with what Linux 5.3 has added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes)]
#[repr(C)]
pub(crate) struct SchedAttr {
    /// Its size.
    pub size: u32,
    /// SCHED_…
    pub policy: u32,
    /// SCHED_FLAG_…
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Static priority.
    pub priority: u32,
    /// Run time, deadline and period of SCHED_DEADLINE in nanoseconds.
    pub deadline: [u64; 3],
    /// The least and the most that it is taken to use of a CPU (uclamp), of 1024; zeros where the kernel has no such
    /// thing (CONFIG_UCLAMP_TASK).
    pub clamps: [u32; 2],
}

/// SCHED_ATTR_SIZE_VER1 (include/uapi/linux/sched/types.h).
const _: () = assert!(size_of::<SchedAttr>() == 56);

/// sched_getattr(2) of another thread, or of this one (0).
pub(crate) fn scheduling(tid: Tid) -> Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    let at: *mut SchedAttr = &mut attr;
    let size = size_of::<SchedAttr>();
    // SAFETY: the kernel writes at most `size` bytes.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, tid.get(), at, size, 0) };
    Errno::result(result).map(|_| attr)
}

/// kcmp(2) with KCMP_FILE: the order of the open file descriptions behind two descriptors, each of a process, the
/// same for all comparisons until the next boot.
pub(crate) fn file_order(a: (Pid, u32), b: (Pid, u32)) -> Result<std::cmp::Ordering> {
    let [a, b] = [a, b].map(|(pid, fd)| holder(pid, fd));
    // SAFETY: kcmp reads nothing of ours.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, a.0.get(), b.0.get(), 0, a.1, b.1) };
    Ok(match Errno::result(result)? {
        0 => std::cmp::Ordering::Equal,
        1 => std::cmp::Ordering::Less,
        _ => std::cmp::Ordering::Greater,
    })
}

/// kcmp(2) with KCMP_EPOLL_TFD: whether a process's descriptor is the file of a watch of a process's epoll instance, the
/// `nth` (from 0) of those that were set under `number`.
pub(crate) fn is_watched(fd: (Pid, u32), epoll: (Pid, u32), number: u32, nth: u32) -> Result<bool> {
    const KCMP_EPOLL_TFD: i32 = 7;
    let (other, epoll) = holder(epoll.0, epoll.1);
    let slot = [epoll, number, nth];
    let at: *const u32 = slot.as_ptr();
    let (one, fd) = holder(fd.0, fd.1);
    // SAFETY: kcmp reads the struct kcmp_epoll_slot.
    let result =
        unsafe { libc::syscall(libc::SYS_kcmp, one.get(), other.get(), KCMP_EPOLL_TFD, fd, at) };
    Errno::result(result).map(|order| order == 0)
}

/// kcmp(2) with KCMP_VM: whether two processes share their address space.
pub(crate) fn same_memory(a: Pid, b: Pid) -> Result<bool> {
    const KCMP_VM: i32 = 1;
    let [a, b] = [a, b].map(head);
    // SAFETY: kcmp reads nothing of ours.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, a.get(), b.get(), KCMP_VM, 0, 0) };
    Errno::result(result).map(|order| order == 0)
}

/// What threads of a process mostly have together, by the numbers of kcmp(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Share {
    /// Descriptors (CLONE_FILES).
    Files = 2,
    /// Working directory, root and umask (CLONE_FS).
    Directory = 3,
}

/// Whether two tasks share something, or both have none of it; an error where the kernel cannot tell.
pub(crate) fn share(a: Tid, b: Tid, what: Share) -> Result<bool> {
    order_of(a, b, what).map(|order| order == std::cmp::Ordering::Equal)
}

/// The order of what two tasks have, the same for all comparisons until the next boot.
pub(crate) fn order_of(a: Tid, b: Tid, what: Share) -> Result<std::cmp::Ordering> {
    let [a, b] = [a, b].map(|tid| head(tid.as_pid()));
    // SAFETY: kcmp reads nothing of ours.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, a.get(), b.get(), what as i32, 0, 0) };
    Ok(match Errno::result(result)? {
        0 => std::cmp::Ordering::Equal,
        1 => std::cmp::Ordering::Less,
        _ => std::cmp::Ordering::Greater,
    })
}

/// get_robust_list(2) of another thread: where the list begins of the locks that it would leave behind; 0: it has none.
pub(super) fn robust_list(tid: Tid) -> Result<u64> {
    let (mut head, mut len) = (0u64, 0usize);
    let (at, size): (*mut u64, *mut usize) = (&mut head, &mut len);
    // SAFETY: the kernel writes the two words.
    let result = unsafe { libc::syscall(libc::SYS_get_robust_list, tid.get(), at, size) };
    Errno::result(result).map(|_| head)
}

/// Whether a process may choose the numbers of its POSIX timers (Linux 6.15).
pub(crate) fn chooses_timer_ids() -> bool {
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    const GET: i32 = 2;
    // SAFETY: answers a number and changes nothing.
    unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, GET, 0, 0, 0) >= 0 }
}

/// pidfd_getfd(2): a duplicate of another process's descriptor.
pub(crate) fn take_descriptor(pid: Pid, fd: i32) -> Result<std::os::fd::OwnedFd> {
    take_by(pid, fd, None)
}

/// The same of a process that is open.
pub(crate) fn take_of(process: &Process, fd: u32) -> Result<std::os::fd::OwnedFd> {
    take_by(process.pid(), fd.cast_signed(), process.pidfd())
}

fn take_by(pid: Pid, fd: i32, by: Option<&Pidfd>) -> Result<std::os::fd::OwnedFd> {
    let (_, here) = holder(pid, fd.cast_unsigned());
    if here != fd.cast_unsigned() {
        // SAFETY: what is under way is held by us as long as anybody asks for it.
        let ours = unsafe { std::os::fd::BorrowedFd::borrow_raw(here.cast_signed()) };
        let copy = ours.try_clone_to_owned();
        return copy.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EMFILE)));
    }
    match forebear::open(what::DESCRIPTOR, pid.get(), fd) {
        Some(taken) => taken,
        None => take(pid, fd, by),
    }
}

/// The same without a forebear.
pub(super) fn take(pid: Pid, fd: i32, by: Option<&Pidfd>) -> Result<std::os::fd::OwnedFd> {
    use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
    let head = head(pid);
    let opened;
    let pidfd = match by {
        Some(pidfd) if head == pid => pidfd,
        _ => {
            opened = if head == pid { Pidfd::open(pid) } else { Pidfd::of_thread(head) }?;
            &opened
        }
    };
    let number = pidfd.as_fd().as_raw_fd();
    // SAFETY: pidfd_getfd has no memory arguments.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, number, fd, 0) };
    let fd = Errno::result(result)? as i32;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What became of a thread that was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing yet (only without `block`).
    Running,
    /// Stopped by `signal`, with a PTRACE_EVENT number or 0.
    Stopped {
        /// Signal, 0x80 added for a syscall stop.
        signal: i32,
        /// PTRACE_EVENT_…
        event: i32,
    },
    /// Gone.
    Ended,
}

/// waitpid(2) with `__WALL` for one thread.
pub(crate) fn wait(tid: Tid, block: bool) -> Result<State> {
    let ask = Ask { what: what::WAIT, id: tid.get(), data: block.into(), ..Ask::default() };
    let mut nap = Duration::from_micros(5);
    loop {
        let answered = match forebear::ask(&ask, &mut []) {
            Some(Ok(Reply { result: 0, .. })) if block => {
                // Others of our threads may have something to ask meanwhile.
                std::thread::sleep(nap);
                nap = (nap * 2).min(Duration::from_micros(500));
                continue;
            }
            Some(answered) => answered.map(|answer| (answer.result, answer.more as i32)),
            None => await_change(tid, block),
        };
        return match answered {
            Err(Errno::ECHILD) => Ok(State::Ended),
            Err(e) => Err(e),
            Ok((0, _)) => Ok(State::Running),
            Ok((_, status)) if libc::WIFSTOPPED(status) => {
                Ok(State::Stopped { signal: (status >> 8) & 0xff, event: status >> 16 })
            }
            Ok(_) => Ok(State::Ended),
        };
    }
}

/// The same without a forebear: who has changed, 0 if nobody has, and the status.
pub(super) fn await_change(tid: Tid, block: bool) -> Result<(i64, i32)> {
    let mut status = 0;
    let options = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: the kernel writes the one word.
        let result = unsafe { libc::waitpid(tid.get(), &mut status, options) };
        match Errno::result(result) {
            Err(Errno::EINTR) => {}
            result => return result.map(|tid| (tid.into(), status)),
        }
    }
}

/// Lets SIGCHLD tell of ends only, not of stops, with its default disposition (sigaction(2), SA_NOCLDSTOP).
pub(crate) fn deaths_alone() -> Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::SA_NOCLDSTOP, SigSet::empty());
    // SAFETY: the default disposition runs no code of ours.
    unsafe { sigaction(Signal::SIGCHLD, &action) }.map(drop)
}

/// A set of signals as the kernel has it.
pub(crate) const fn signal_set(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Waits until a signal of `set`, all of which are blocked, is pending, and takes it; no longer than `limit` (None: for
/// ever). What there is to know of it.
pub(crate) fn await_signal(set: u64, limit: Option<Duration>) -> Option<libc::siginfo_t> {
    let set: *const u64 = &set;
    let time = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: i64::from(limit.subsec_nanos()),
    });
    let time: *const libc::timespec = time.as_ref().map_or(std::ptr::null(), |time| time);
    // SAFETY: a siginfo_t may be all zeros.
    let mut found: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let details: *mut libc::siginfo_t = &mut found;
    // SAFETY: the kernel reads a set of 8 bytes and the time, if there is one, and fills in the structure.
    let got = unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, set, details, time, 8usize) };
    (got > 0).then_some(found)
}

/// The process or thread that a signal is about or from (si_pid; 0 for one of another PID namespace).
pub(crate) fn about(signal: &libc::siginfo_t) -> i32 {
    // SAFETY: what the kernel filled in has a sender, or is a child's; else it is zero.
    unsafe { signal.si_pid() }
}

/// Waits for a traced thread that has ended, without blocking; whether that was done. It must be dead: of a living
/// one this takes a stop, which waitid(2) reports whether it was asked for or not (kernel/exit.c, wait_task_stopped).
pub(crate) fn bury(tid: Tid) -> bool {
    match forebear::ask(&Ask { what: what::BURY, id: tid.get(), ..Ask::default() }, &mut []) {
        Some(answered) => answered.is_ok_and(|answer| answer.result != 0),
        None => await_death(tid).is_some(),
    }
}

/// The same without a forebear; the status, as of wait(2).
pub(super) fn await_death(tid: Tid) -> Option<i32> {
    let options = libc::WEXITED | libc::WNOHANG | libc::__WALL;
    // SAFETY: a siginfo_t may be all zeros.
    let mut found: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills in the structure.
    let result = unsafe { libc::waitid(libc::P_PID, tid.word(), &mut found, options) };
    // SAFETY: waitid fills in this member, or leaves the zeros when nobody is dead.
    let pid = unsafe { found.si_pid() };
    // SAFETY: as above.
    let status = unsafe { found.si_status() };
    let status = if found.si_code == libc::CLD_EXITED { status << 8 } else { status };
    (result == 0 && pid != 0).then_some(status)
}
