// SPDX-License-Identifier: LGPL-2.1-only
//! ptrace(2) and its kin as functions with types.
//!
//! # Safety
//! Every request here reads or writes only buffers that it owns; what it does to the tracee is the
//! caller's intention, not a matter of memory safety in this process.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;
use std::ffi::c_void;

type Result<T> = std::result::Result<T, Errno>;

/// PTRACE_EVENT_STOP of a status from [`wait`], and its kin.
pub(crate) const EVENT_STOP: i32 = 128;
/// PTRACE_EVENT_EXEC.
pub(crate) const EVENT_EXEC: i32 = libc::PTRACE_EVENT_EXEC;
/// PTRACE_EVENT_CLONE.
pub(crate) const EVENT_CLONE: i32 = libc::PTRACE_EVENT_CLONE;
/// Set of options that [`seize`] asks for: syscall stops that can be told from SIGTRAP.
pub(crate) const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD;

fn request(what: u32, tid: i32, addr: *mut c_void, data: *mut c_void) -> Result<i64> {
    // SAFETY: the callers below pass buffers they own, as long as the request says.
    let result = unsafe { libc::ptrace(what.cast_signed() as _, tid, addr, data) };
    Errno::result(result)
}

fn number(value: usize) -> *mut c_void {
    std::ptr::without_provenance_mut(value)
}

/// PTRACE_SEIZE with the options given.
pub(crate) fn seize(tid: i32, options: i32) -> Result<()> {
    request(libc::PTRACE_SEIZE as u32, tid, number(0), number(options as usize)).map(drop)
}

/// PTRACE_INTERRUPT.
pub(crate) fn interrupt(tid: i32) -> Result<()> {
    request(libc::PTRACE_INTERRUPT as u32, tid, number(0), number(0)).map(drop)
}

/// PTRACE_CONT, delivering `signal` (0: none).
pub(crate) fn cont(tid: i32, signal: i32) -> Result<()> {
    request(libc::PTRACE_CONT as u32, tid, number(0), number(signal as usize)).map(drop)
}

/// PTRACE_SETOPTIONS.
pub(crate) fn set_options(tid: i32, options: i32) -> Result<()> {
    request(libc::PTRACE_SETOPTIONS as u32, tid, number(0), number(options as usize)).map(drop)
}

/// PTRACE_SYSCALL, delivering `signal` (0: none).
pub(crate) fn syscall(tid: i32, signal: i32) -> Result<()> {
    request(libc::PTRACE_SYSCALL as u32, tid, number(0), number(signal as usize)).map(drop)
}

/// PTRACE_DETACH.
pub(crate) fn detach(tid: i32) -> Result<()> {
    detach_with(tid, 0)
}

/// PTRACE_DETACH, delivering `signal` (0: none).
pub(crate) fn detach_with(tid: i32, signal: i32) -> Result<()> {
    request(libc::PTRACE_DETACH as u32, tid, number(0), number(signal as usize)).map(drop)
}

/// PTRACE_GETEVENTMSG: the new thread's id at a PTRACE_EVENT_CLONE. Fails with ESRCH of a thread that is not in a stop.
pub(crate) fn event_message(tid: i32) -> Result<u64> {
    let mut message = 0u64;
    let data: *mut u64 = &mut message;
    request(libc::PTRACE_GETEVENTMSG as u32, tid, number(0), data.cast())?;
    Ok(message)
}

/// PTRACE_GETREGSET: fills `buffer` and says how many bytes the kernel had.
pub(crate) fn get_regset(tid: i32, kind: usize, buffer: &mut [u8]) -> Result<usize> {
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let data: *mut libc::iovec = &mut iov;
    request(libc::PTRACE_GETREGSET as u32, tid, number(kind), data.cast())?;
    Ok(iov.iov_len)
}

/// PTRACE_SETREGSET.
pub(crate) fn set_regset(tid: i32, kind: usize, buffer: &[u8]) -> Result<()> {
    let mut iov =
        libc::iovec { iov_base: buffer.as_ptr().cast_mut().cast(), iov_len: buffer.len() };
    let data: *mut libc::iovec = &mut iov;
    request(libc::PTRACE_SETREGSET as u32, tid, number(kind), data.cast()).map(drop)
}

/// PTRACE_SINGLESTEP: one instruction, with `signal` delivered first unless it is 0.
pub(crate) fn step(tid: i32, signal: i32) -> Result<()> {
    request(libc::PTRACE_SINGLESTEP as u32, tid, std::ptr::null_mut(), number(signal as usize))
        .map(drop)
}

/// PTRACE_GETSIGMASK: the thread's own mask, also inside sigsuspend(2) and its kin.
pub(crate) fn get_mask(tid: i32) -> Result<u64> {
    let mut mask = 0u64;
    let data: *mut u64 = &mut mask;
    request(libc::PTRACE_GETSIGMASK, tid, number(8), data.cast())?;
    Ok(mask)
}

/// PTRACE_SETSIGMASK.
pub(crate) fn set_mask(tid: i32, mut mask: u64) -> Result<()> {
    let data: *mut u64 = &mut mask;
    request(libc::PTRACE_SETSIGMASK, tid, number(8), data.cast()).map(drop)
}

/// One siginfo_t as bytes.
pub(crate) type SigInfo = [u8; 128];

/// PTRACE_PEEKSIGINFO: the queue of the thread, or of its process.
pub(crate) fn peek_siginfo(tid: i32, shared: bool) -> Result<Vec<SigInfo>> {
    #[repr(C)]
    struct Args {
        off: u64,
        flags: u32,
        count: i32,
    }
    const _: () = assert!(size_of::<Args>() == 16);
    const CHUNK: usize = 16;
    let mut queue = Vec::new();
    loop {
        let mut args =
            Args { off: queue.len() as u64, flags: u32::from(shared), count: CHUNK as i32 };
        let mut buffer = [[0u8; 128]; CHUNK];
        let addr: *mut Args = &mut args;
        let data = buffer.as_mut_ptr();
        let n = request(libc::PTRACE_PEEKSIGINFO as u32, tid, addr.cast(), data.cast())? as usize;
        queue.extend_from_slice(&buffer[..n.min(CHUNK)]);
        if n < CHUNK {
            return Ok(queue);
        }
    }
}

/// struct ptrace_rseq_configuration.
#[derive(Clone, Copy, Debug, Default)]
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
pub(crate) fn rseq_configuration(tid: i32) -> Result<RseqConfiguration> {
    const REQUEST: u32 = 0x420f;
    let mut configuration = RseqConfiguration::default();
    let data: *mut RseqConfiguration = &mut configuration;
    request(REQUEST, tid, number(size_of::<RseqConfiguration>()), data.cast())?;
    Ok(configuration)
}

/// PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG (Linux 6.4): whether the thread's system calls are dispatched; false where
/// the kernel cannot say.
pub(crate) fn dispatches_calls(tid: i32) -> bool {
    const REQUEST: u32 = 0x4211;
    // struct ptrace_sud_config: mode, selector, offset, length.
    let mut config = [0u64; 4];
    let len = number(size_of_val(&config));
    let data: *mut [u64; 4] = &mut config;
    request(REQUEST, tid, len, data.cast()).is_ok() && config[0] != 0
}

/// PTRACE_POKEDATA of one word, which also writes where the process itself may not.
pub(crate) fn poke(tid: i32, addr: u64, word: u64) -> Result<()> {
    request(libc::PTRACE_POKEDATA as u32, tid, number(addr as usize), number(word as usize))
        .map(drop)
}

/// sched_getscheduler(2) of another thread: its policy, with SCHED_RESET_ON_FORK.
pub(crate) fn policy(tid: i32) -> Result<u32> {
    // SAFETY: the call has no memory arguments. musl's function of that name refuses to make it.
    let result = unsafe { libc::syscall(libc::SYS_sched_getscheduler, tid) };
    Errno::result(result).map(|policy| policy as u32)
}

/// struct sched_attr (sched_setattr(2)) with what Linux 5.3 has added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
pub(crate) fn scheduling(tid: i32) -> Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    let at: *mut SchedAttr = &mut attr;
    let size = size_of::<SchedAttr>();
    // SAFETY: the kernel writes at most `size` bytes.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, tid, at, size, 0) };
    Errno::result(result).map(|_| attr)
}

/// ioprio_get(2) of another thread: class and level.
pub(crate) fn io_priority(tid: i32) -> Result<u64> {
    const WHO_PROCESS: i32 = 1;
    // SAFETY: the call has no memory arguments.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, tid) };
    Errno::result(result).map(i64::cast_unsigned)
}

/// get_robust_list(2) of another thread: head and length.
pub(crate) fn robust_list(tid: i32) -> Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    let head_at: *mut u64 = &mut head;
    let len_at: *mut u64 = &mut len;
    // SAFETY: the kernel writes the two words.
    let result = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, head_at, len_at) };
    Errno::result(result)?;
    Ok((head, len))
}

/// kcmp(2) with KCMP_FILE: the order of the open file descriptions behind two descriptors, each of a process, the
/// same for all comparisons until the next boot.
pub(crate) fn file_order(a: (i32, u32), b: (i32, u32)) -> Result<std::cmp::Ordering> {
    // SAFETY: kcmp reads nothing of ours.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, 0, a.1, b.1) };
    Ok(match Errno::result(result)? {
        0 => std::cmp::Ordering::Equal,
        1 => std::cmp::Ordering::Less,
        _ => std::cmp::Ordering::Greater,
    })
}

/// kcmp(2) with KCMP_EPOLL_TFD: whether a descriptor is the file of an epoll instance's watch, the `nth`
/// (from 0) of those that were set under `number`.
pub(crate) fn is_watched(pid: i32, fd: u32, epoll: u32, number: u32, nth: u32) -> Result<bool> {
    const KCMP_EPOLL_TFD: i32 = 7;
    let slot = [epoll, number, nth];
    let at: *const u32 = slot.as_ptr();
    // SAFETY: kcmp reads the struct kcmp_epoll_slot.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, fd, at) };
    Errno::result(result).map(|order| order == 0)
}

/// kcmp(2) with KCMP_VM: whether two processes share their address space.
pub(crate) fn same_memory(a: i32, b: i32) -> Result<bool> {
    const KCMP_VM: i32 = 1;
    // SAFETY: kcmp reads nothing of ours.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_VM, 0, 0) };
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
pub(crate) fn share(a: i32, b: i32, what: Share) -> Result<bool> {
    // SAFETY: kcmp reads nothing of ours.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, a, b, what as i32, 0, 0) };
    Errno::result(result).map(|order| order == 0)
}

/// Whether a process may choose the numbers of its POSIX timers (Linux 6.15).
pub(crate) fn chooses_timer_ids() -> bool {
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    const GET: i32 = 2;
    // SAFETY: answers a number and changes nothing.
    unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, GET, 0, 0, 0) >= 0 }
}

/// pidfd_getfd(2): a duplicate of another process's descriptor.
pub(crate) fn take_descriptor(pid: i32, fd: i32) -> Result<std::os::fd::OwnedFd> {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    // SAFETY: pidfd_open has no memory arguments.
    let pidfd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })? as i32;
    // SAFETY: the kernel just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: pidfd_getfd has no memory arguments.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    let fd = Errno::result(result)? as i32;
    // SAFETY: as above.
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
pub(crate) fn wait(tid: i32, block: bool) -> Result<State> {
    let mut status = 0;
    let options = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: the kernel writes the one word.
        let result = unsafe { libc::waitpid(tid, &mut status, options) };
        return match Errno::result(result) {
            Err(Errno::EINTR) => continue,
            Err(Errno::ECHILD) => Ok(State::Ended),
            Err(e) => Err(e),
            Ok(0) => Ok(State::Running),
            Ok(_) if libc::WIFSTOPPED(status) => {
                Ok(State::Stopped { signal: (status >> 8) & 0xff, event: status >> 16 })
            }
            Ok(_) => Ok(State::Ended),
        };
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
/// ever). The signal, and the process or thread that it is about or from (si_pid; 0 for one of another PID namespace).
pub(crate) fn await_signal(set: u64, limit: Option<std::time::Duration>) -> Option<(i32, i32)> {
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
    // SAFETY: what the kernel filled in has a sender, or is a child's; else it is zero.
    let about = unsafe { found.si_pid() };
    (got > 0).then_some((got as i32, about))
}

/// Waits for a traced thread that has ended, without blocking; whether that was done. It must be dead: of a living
/// one this takes a stop, which waitid(2) reports whether it was asked for or not (kernel/exit.c, wait_task_stopped).
pub(crate) fn bury(tid: i32) -> bool {
    let options = libc::WEXITED | libc::WNOHANG | libc::__WALL;
    // SAFETY: a siginfo_t may be all zeros.
    let mut found: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills in the structure.
    let result = unsafe { libc::waitid(libc::P_PID, tid.cast_unsigned(), &mut found, options) };
    // SAFETY: waitid fills in this member, or leaves the zeros when nobody is dead.
    let pid = unsafe { found.si_pid() };
    result == 0 && pid != 0
}
