// SPDX-License-Identifier: LGPL-2.1-only
//! The system calls of the payload, by name: no other file but the thunks, which are machine code, knows a number.
//!
//! What gives a descriptor, a length or an address gives a negative error number where the call has failed.
//!
//! # Safety
//! A system call can do anything to the process. Those that change memory at an address that the caller gives are
//! unsafe and say what it must know; the others touch what is theirs, and where they only read at an address the
//! kernel answers EFAULT if nothing is there.
#![allow(unsafe_code)]

use ckpt_abi::{errno, nr};
use core::arch::asm;
use core::ffi::CStr;

/// Highest error number of a system call (include/linux/err.h, MAX_ERRNO).
const MAX_ERRNO: i64 = 4095;

/// O_CLOEXEC, also for dup3(2).
pub(crate) const CLOEXEC: u64 = 0o2_000_000;
/// PROT_READ of mmap(2).
pub(crate) const PROT_READ: u64 = 1;
/// PROT_WRITE.
pub(crate) const PROT_WRITE: u64 = 2;
const MAP_PRIVATE: u64 = 2;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_NORESERVE: u64 = 0x4000;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
const AT_FDCWD: u64 = -100i64 as u64;
const F_GETFD: u64 = 1;
const F_SETFD: u64 = 2;
const F_GETFL: u64 = 3;
pub(crate) const RLIMIT_FSIZE: u64 = 1;
pub(crate) const RLIMIT_DATA: u64 = 2;
pub(crate) const RLIMIT_NOFILE: u64 = 7;
pub(crate) const RLIMIT_AS: u64 = 9;
const SIGKILL: u64 = 9;

/// A system call with six arguments, whose number an order has; the result is negative for an error number.
///
/// # Safety
/// The caller answers for what the call does to the process.
pub(crate) unsafe fn call(nr: u64, args: &[u64; 6]) -> i64 {
    let result: i64;
    // SAFETY: the kernel preserves everything but rax, rcx and r11.
    unsafe {
        asm!("syscall", inout("rax") nr => result, in("rdi") args[0], in("rsi") args[1],
             in("rdx") args[2], in("r10") args[3], in("r8") args[4], in("r9") args[5],
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// Whether the result of a system call is an error number.
pub(crate) fn failed(result: i64) -> bool {
    (-MAX_ERRNO..0).contains(&result)
}

/// clone(2) whose child runs `entry(arg)` on the stack that ends at `stack` and never returns.
///
/// # Safety
/// `stack` is the 16-aligned end of memory that nobody else uses while the child runs, and
/// `entry` never returns.
pub(crate) unsafe fn clone(
    flags: u64,
    stack: u64,
    tids: [u64; 2],
    entry: extern "C" fn(u64) -> !,
    arg: u64,
) -> i64 {
    let result: i64;
    // SAFETY: the child has a stack of its own, takes entry and argument from registers, which it
    // inherits, and never comes back here.
    unsafe {
        asm!("syscall", "test rax, rax", "jnz 2f", "xor ebp, ebp", "mov rdi, r13", "call r12",
             "ud2", "2:",
             inout("rax") nr::CLONE => result, in("rdi") flags, in("rsi") stack, in("rdx") tids[0],
             in("r10") tids[1], in("r8") 0u64, in("r12") entry, in("r13") arg,
             lateout("rcx") _, lateout("r11") _);
    }
    result
}

/// clone3(2) whose child runs `entry(arg)` on the stack that the arguments name.
///
/// # Safety
/// `args` points to a struct clone_args of `len` bytes; otherwise as [`clone`].
pub(crate) unsafe fn clone3(args: u64, len: u64, entry: extern "C" fn(u64) -> !, arg: u64) -> i64 {
    let result: i64;
    // SAFETY: as in `clone`.
    unsafe {
        asm!("syscall", "test rax, rax", "jnz 2f", "xor ebp, ebp", "mov rdi, r13", "call r12",
             "ud2", "2:",
             inout("rax") nr::CLONE3 => result, in("rdi") args, in("rsi") len, in("r12") entry,
             in("r13") arg, lateout("rcx") _, lateout("r11") _);
    }
    result
}

/// rt_sigreturn(2) through the frame at `frame`.
///
/// # Safety
/// `frame` is the address of a whole struct rt_sigframe (arch/x86/include/asm/sigframe.h).
pub(crate) unsafe fn sigreturn(frame: u64) -> ! {
    // SAFETY: the kernel takes the frame from rsp - 8 and nothing of this context is used again.
    unsafe {
        asm!("mov rsp, {}", "mov eax, {nr}", "syscall", "ud2", in(reg) frame + 8,
             nr = const nr::RT_SIGRETURN,
             options(noreturn));
    }
}

/// Waits for all children of the calling task, whoever they become, and exits. From its beginning on it needs no
/// stack, so that this may be somebody else's meanwhile.
pub(crate) fn outlive_children() -> ! {
    /// __WALL.
    const ALL: u64 = 0x4000_0000;
    // SAFETY: touches nothing but registers, and ends the task.
    unsafe {
        asm!("2:", "mov eax, {wait}", "mov rdi, -1", "xor esi, esi", "mov edx, {all}", "xor r10d, r10d", "syscall",
             "cmp rax, {none}", "jne 2b", "mov eax, {exit}", "xor edi, edi", "syscall", "ud2",
             wait = const nr::WAIT4, all = const ALL, none = const -errno::ECHILD, exit = const nr::EXIT,
             options(noreturn, nostack));
    }
}

/// exit(2) of the calling task.
pub(crate) fn exit(status: u64) -> ! {
    loop {
        // SAFETY: ends this task and nothing else.
        unsafe { call(nr::EXIT, &[status, 0, 0, 0, 0, 0]) };
    }
}

/// exit_group(2).
pub(crate) fn exit_group(status: u64) -> ! {
    loop {
        // SAFETY: ends the process, which is what was ordered.
        unsafe { call(nr::EXIT_GROUP, &[status, 0, 0, 0, 0, 0]) };
    }
}

/// FUTEX_WAIT on a word of our own, for at most `nanoseconds` (0: for ever).
pub(crate) fn futex_wait(word: *const u32, value: u32, nanoseconds: u64) {
    let time = [0u64, nanoseconds];
    let timeout = if nanoseconds == 0 { 0 } else { time.as_ptr() as u64 };
    // SAFETY: the kernel only reads the word and the time.
    unsafe { call(nr::FUTEX, &[word as u64, 0, u64::from(value), timeout, 0, 0]) };
}

/// FUTEX_WAKE of everybody.
pub(crate) fn futex_wake(word: *const u32) {
    // SAFETY: wakes and touches nothing.
    unsafe { call(nr::FUTEX, &[word as u64, 1, i32::MAX as u64, 0, 0, 0]) };
}

/// getpid(2).
pub(crate) fn getpid() -> u32 {
    // SAFETY: has no effect.
    unsafe { call(nr::GETPID, &[0; 6]) as u32 }
}

/// gettid(2).
pub(crate) fn gettid() -> u32 {
    // SAFETY: has no effect.
    unsafe { call(nr::GETTID, &[0; 6]) as u32 }
}

/// getppid(2).
pub(crate) fn getppid() -> u32 {
    // SAFETY: has no effect.
    unsafe { call(nr::GETPPID, &[0; 6]) as u32 }
}

/// setsid(2): no signal of a terminal meets the caller.
pub(crate) fn setsid() {
    // SAFETY: touches no memory.
    unsafe { call(nr::SETSID, &[0; 6]) };
}

/// Whether two processes have the same memory (kcmp(2)); false where the kernel does not tell.
pub(crate) fn share_memory(one: u32, other: u32) -> bool {
    const KCMP_VM: u64 = 1;
    // SAFETY: compares two numbers of the kernel.
    unsafe { call(nr::KCMP, &[one.into(), other.into(), KCMP_VM, 0, 0, 0]) == 0 }
}

/// A descriptor of a process, which the caller closes (pidfd_open(2)).
pub(crate) fn pidfd(pid: u32) -> i64 {
    // SAFETY: touches no memory.
    unsafe { call(nr::PIDFD_OPEN, &[pid.into(), 0, 0, 0, 0, 0]) }
}

/// Ends the process of a pidfd.
pub(crate) fn kill(pidfd: i64) {
    // SAFETY: touches no memory.
    unsafe { call(nr::PIDFD_SEND_SIGNAL, &[pidfd as u64, SIGKILL, 0, 0, 0, 0]) };
}

/// Whether a descriptor can be read, or can within some milliseconds (poll(2)); a pidfd can when its process has ended.
pub(crate) fn is_readable(fd: i64, milliseconds: u64) -> bool {
    const POLLIN: u64 = 1;
    poll(fd, POLLIN, milliseconds) != 0
}

/// Whether something can be written to a descriptor within so many milliseconds, and be read (poll(2)).
pub(crate) fn is_writable(fd: i64, milliseconds: u64) -> bool {
    const POLLOUT: u64 = 4;
    poll(fd, POLLOUT, milliseconds) == POLLOUT
}

/// What a struct pollfd holds then of the events, and of what is wrong.
fn poll(fd: i64, events: u64, milliseconds: u64) -> u64 {
    let mut request = (fd as u64) | events << 32;
    // SAFETY: `request` is one struct pollfd.
    let ready = unsafe { call(nr::POLL, &[(&raw mut request) as u64, 1, milliseconds, 0, 0, 0]) };
    if ready == 1 { request >> 48 } else { 0 }
}

/// Reaps a child that has ended and whose exit signal is not SIGCHLD; 0 if it lives (wait4(2)).
pub(crate) fn reap_clone(pid: u32) -> i64 {
    const WNOHANG: u64 = 1;
    const WCLONE: u64 = 0x8000_0000;
    // SAFETY: touches no memory.
    unsafe { call(nr::WAIT4, &[pid.into(), 0, WCLONE | WNOHANG, 0, 0, 0]) }
}

/// Executes the file of a descriptor, which becomes this process (execveat(2)); comes back with an error number alone.
/// The addresses are those of an empty string and of two arrays of C strings that end with 0.
pub(crate) fn execute(fd: i64, empty: u64, argv: u64, envp: u64) -> i64 {
    const AT_EMPTY_PATH: u64 = 0x1000;
    // SAFETY: the kernel only reads.
    unsafe { call(nr::EXECVEAT, &[fd as u64, empty, argv, envp, AT_EMPTY_PATH, 0]) }
}

/// Executes the file at a path, as [`execute`] (execve(2)).
pub(crate) fn execute_path(path: u64, argv: u64, envp: u64) -> i64 {
    // SAFETY: the kernel only reads.
    unsafe { call(nr::EXECVE, &[path, argv, envp, 0, 0, 0]) }
}

/// A limit of the calling task, soft and hard (getrlimit(2)).
pub(crate) fn limit(what: u64) -> [u64; 2] {
    let mut limit = [0u64; 2];
    // SAFETY: the kernel writes the two words.
    unsafe { call(nr::PRLIMIT64, &[0, what, 0, (&raw mut limit) as u64, 0, 0]) };
    limit
}

/// Sets it (setrlimit(2)).
pub(crate) fn set_limit(what: u64, limit: [u64; 2]) {
    // SAFETY: the kernel reads the two words.
    unsafe { call(nr::PRLIMIT64, &[0, what, (&raw const limit) as u64, 0, 0, 0]) };
}

/// Makes a POSIX timer on the monotonic clock (timer_create(2)); the number is at `id` then.
///
/// # Safety
/// `event` is the address of a struct sigevent and `id` that of a word for the number.
pub(crate) unsafe fn timer_create(event: u64, id: u64) -> i64 {
    const MONOTONIC: u64 = 1;
    // SAFETY: as above.
    unsafe { call(nr::TIMER_CREATE, &[MONOTONIC, event, id, 0, 0, 0]) }
}

/// timer_delete(2).
pub(crate) fn timer_delete(id: u32) {
    // SAFETY: touches no memory.
    unsafe { call(nr::TIMER_DELETE, &[id.into(), 0, 0, 0, 0, 0]) };
}

/// Maps zeroed memory; None when there is none.
pub(crate) fn map(len: u64) -> Option<u64> {
    let (prot, flags) = (PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    // SAFETY: replaces nothing.
    let mapped = unsafe { call(nr::MMAP, &[0, len, prot, flags, u64::MAX, 0]) };
    (!failed(mapped)).then_some(mapped as u64)
}

/// Maps zeroed memory at an address where nothing is; false where there is something.
pub(crate) fn map_at(start: u64, len: u64) -> bool {
    let prot = PROT_READ | PROT_WRITE;
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    // SAFETY: replaces nothing.
    let mapped = unsafe { call(nr::MMAP, &[start, len, prot, flags, u64::MAX, 0]) };
    if !failed(mapped) && mapped as u64 != start {
        // Before Linux 4.17 the address is only a hint.
        unmap(mapped as u64, len);
    }
    mapped as u64 == start
}

/// Replaces mappings by one that nobody can touch and that costs nothing.
///
/// # Safety
/// Nothing refers to what is there.
pub(crate) unsafe fn replace(start: u64, len: u64) {
    let flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE;
    // SAFETY: as above.
    unsafe { call(nr::MMAP, &[start, len, 0, flags, u64::MAX, 0]) };
}

/// mprotect(2); whether it was done.
///
/// # Safety
/// Nobody uses the memory in a way that `prot` does not allow.
pub(crate) unsafe fn protect(start: u64, len: u64, prot: u64) -> bool {
    // SAFETY: as above.
    unsafe { call(nr::MPROTECT, &[start, len, prot, 0, 0, 0]) == 0 }
}

/// A forked child finds zeros in this memory (MADV_WIPEONFORK, madvise(2)).
pub(crate) fn wipe_on_fork(start: u64, len: u64) {
    const MADV_WIPEONFORK: u64 = 18;
    // SAFETY: nothing changes in this process.
    unsafe { call(nr::MADVISE, &[start, len, MADV_WIPEONFORK, 0, 0, 0]) };
}

/// Unmaps memory of ours.
pub(crate) fn unmap(start: u64, len: u64) {
    // SAFETY: the caller mapped it.
    unsafe { call(nr::MUNMAP, &[start, len, 0, 0, 0, 0]) };
}

/// Whether the eight bytes at an address can be read: rt_sigprocmask(2) copies the set before it
/// refuses an unknown `how`, and has no effect then (kernel/signal.c).
pub(crate) fn readable(address: u64) -> bool {
    const NO_SUCH_HOW: u64 = 0x7fff_ffff;
    // SAFETY: as above.
    unsafe { call(nr::RT_SIGPROCMASK, &[NO_SUCH_HOW, address, 0, 8, 0, 0]) == -errno::EINVAL }
}

/// Sets the signal mask of this thread; what it was.
pub(crate) fn set_mask(mask: u64) -> u64 {
    const SIG_SETMASK: u64 = 2;
    let mut old = 0u64;
    let args = [SIG_SETMASK, (&raw const mask) as u64, (&raw mut old) as u64, 8, 0, 0];
    // SAFETY: the kernel reads one word and writes the other.
    unsafe { call(nr::RT_SIGPROCMASK, &args) };
    old
}

/// rt_sigaction(2) with the kernel's own struct sigaction: handler, flags, restorer, mask. What was there goes to the
/// address `old`, or nowhere where that is 0.
///
/// # Safety
/// The handler is one of this payload's or of the program's own, and `old` the address of such a struct or 0.
pub(crate) unsafe fn set_action(signal: u64, action: &[u64; 4], old: u64) {
    // SAFETY: the kernel reads one struct and writes the other.
    unsafe { call(nr::RT_SIGACTION, &[signal, (&raw const *action) as u64, old, 8, 0, 0]) };
}

/// A descriptor of the file at a path, the address of a C string, from the working directory on (openat(2)).
pub(crate) fn open(path: u64, flags: u64, mode: u64) -> i64 {
    // SAFETY: the kernel reads the path.
    unsafe { call(nr::OPENAT, &[AT_FDCWD, path, flags | CLOEXEC, mode, 0, 0]) }
}

/// A descriptor to read the file at a path.
pub(crate) fn open_to_read(path: &CStr) -> i64 {
    open(path.as_ptr() as u64, 0, 0)
}

/// A descriptor of a file in memory (memfd_create(2)) that is closed at an execve(2).
pub(crate) fn memfd(name: &CStr, flags: u64) -> i64 {
    const MFD_CLOEXEC: u64 = 1;
    // SAFETY: the kernel reads the name.
    unsafe { call(nr::MEMFD_CREATE, &[name.as_ptr() as u64, MFD_CLOEXEC | flags, 0, 0, 0, 0]) }
}

/// dup3(2): `to` becomes the same file.
pub(crate) fn duplicate(fd: i64, to: u64, flags: u64) {
    // SAFETY: touches no memory.
    unsafe { call(nr::DUP3, &[fd as u64, to, flags, 0, 0, 0]) };
}

/// Closes all descriptors from one to another (close_range(2)); where the filter of a container refuses that, those below
/// the limit, as far as that is one.
pub(crate) fn close_range(first: u64, last: u64) {
    const LEAST: u64 = 4096;
    const MOST: u64 = 1 << 20;
    // SAFETY: touches no memory.
    if unsafe { call(nr::CLOSE_RANGE, &[first, last, 0, 0, 0, 0]) } < 0 {
        let limit = limit(RLIMIT_NOFILE);
        (first..=last.min(limit[0].clamp(LEAST, MOST))).for_each(|fd| close(fd as i64));
    }
}

/// What stat(2) says of a descriptor, as words of the struct stat; zeros for one that is not open.
pub(crate) fn stat(fd: i64) -> [u64; 18] {
    let mut stat = [0u64; 18];
    // SAFETY: the kernel fills the struct stat of 144 bytes.
    unsafe { call(nr::FSTAT, &[fd as u64, (&raw mut stat) as u64, 0, 0, 0, 0]) };
    stat
}

/// The access mode and status flags of a descriptor (F_GETFL, fcntl(2)).
pub(crate) fn status_flags(fd: i64) -> i64 {
    // SAFETY: touches no memory.
    unsafe { call(nr::FCNTL, &[fd as u64, F_GETFL, 0, 0, 0, 0]) }
}

/// FD_CLOEXEC of a descriptor, or 0 (F_GETFD).
pub(crate) fn closes_on_exec(fd: i64) -> u32 {
    // SAFETY: touches no memory.
    unsafe { call(nr::FCNTL, &[fd as u64, F_GETFD, 0, 0, 0, 0]) as u32 & 1 }
}

/// Sets it (F_SETFD).
pub(crate) fn set_close_on_exec(fd: i64, flag: u32) {
    // SAFETY: touches no memory.
    unsafe { call(nr::FCNTL, &[fd as u64, F_SETFD, flag.into(), 0, 0, 0]) };
}

/// Whether a descriptor is a terminal (TCGETS, ioctl_tty(2)).
pub(crate) fn is_terminal(fd: i64) -> bool {
    const TCGETS: u64 = 0x5401;
    let mut modes = [0u64; 8];
    // SAFETY: the kernel writes a struct termios of 36 bytes.
    unsafe { call(nr::IOCTL, &[fd as u64, TCGETS, (&raw mut modes) as u64, 0, 0, 0]) == 0 }
}

/// Moves the offset of a file to a place (lseek(2), SEEK_SET); where it is then.
pub(crate) fn seek(fd: i64, offset: i64) -> i64 {
    // SAFETY: touches no memory.
    unsafe { call(nr::LSEEK, &[fd as u64, offset as u64, 0, 0, 0, 0]) }
}

/// The offset of a file (SEEK_CUR).
pub(crate) fn offset(fd: i64) -> i64 {
    // SAFETY: touches no memory.
    unsafe { call(nr::LSEEK, &[fd as u64, 0, 1, 0, 0, 0]) }
}

/// Where a symbolic link leads (readlink(2)): how many bytes the text has; 0 for an error too.
pub(crate) fn read_link(path: u64, buffer: &mut [u8]) -> usize {
    let (to, len) = (buffer.as_mut_ptr() as u64, buffer.len() as u64);
    // SAFETY: the kernel reads the path and writes into the buffer only.
    let n = unsafe { call(nr::READLINKAT, &[AT_FDCWD, path, to, len, 0, 0]) };
    n.max(0) as usize
}

/// Entries of a directory, as many as there is room for (getdents64(2)): how many bytes; 0 for an error too.
pub(crate) fn entries(fd: i64, buffer: &mut [u8]) -> usize {
    let (to, len) = (buffer.as_mut_ptr() as u64, buffer.len() as u64);
    // SAFETY: the kernel writes into the buffer only.
    let n = unsafe { call(nr::GETDENTS64, &[fd as u64, to, len, 0, 0, 0]) };
    n.max(0) as usize
}

/// The working directory as a C string at an address where there are `len` bytes (getcwd(2)): its bytes with the NUL.
///
/// # Safety
/// Nobody else uses these bytes.
pub(crate) unsafe fn working_directory(to: *mut u8, len: usize) -> i64 {
    // SAFETY: the kernel writes at most that many.
    unsafe { call(nr::GETCWD, &[to as u64, len as u64, 0, 0, 0, 0]) }
}

/// read(2): how many bytes there were; 0 for an error too.
pub(crate) fn read(fd: i64, buffer: &mut [u8]) -> usize {
    let (to, len) = (buffer.as_mut_ptr() as u64, buffer.len() as u64);
    // SAFETY: the kernel writes into the buffer only.
    let n = unsafe { call(nr::READ, &[fd as u64, to, len, 0, 0, 0]) };
    n.max(0) as usize
}

/// close(2) of a descriptor that is ours.
pub(crate) fn close(fd: i64) {
    // SAFETY: the caller opened it.
    unsafe { call(nr::CLOSE, &[fd as u64, 0, 0, 0, 0, 0]) };
}

/// write(2) of the whole of `bytes`; 0, or a negative error number.
pub(crate) fn write_all(fd: i64, mut bytes: *const u8, mut len: usize) -> i64 {
    while len > 0 {
        // SAFETY: the kernel only reads, and answers EFAULT where nothing is.
        let n = unsafe { call(nr::WRITE, &[fd as u64, bytes as u64, len as u64, 0, 0, 0]) };
        if n == -errno::EINTR {
            continue;
        }
        if n <= 0 {
            return if n == 0 { -errno::ENOSPC } else { n };
        }
        bytes = bytes.wrapping_add(n as usize);
        len = len.wrapping_sub(n as usize);
    }
    0
}

/// prctl(2) of an option that touches no memory.
pub(crate) fn prctl(option: u64, arg: u64) -> i64 {
    // SAFETY: the callers use PR_SET_PTRACER, PR_SET_CHILD_SUBREAPER and PR_SET_NAME.
    unsafe { call(nr::PRCTL, &[option, arg, 0, 0, 0, 0]) }
}
