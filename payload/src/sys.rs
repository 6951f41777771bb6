// SPDX-License-Identifier: LGPL-2.1-only
//! The system calls of the payload: the only file that issues any.
//!
//! # Safety
//! A system call can do anything to the process. The raw ones are unsafe and say what the caller
//! must know; the others are safe because what they touch is theirs.
#![allow(unsafe_code)]

use ckpt_abi::nr;
use core::arch::asm;

/// Highest error number of a system call (include/linux/err.h, MAX_ERRNO).
const MAX_ERRNO: i64 = 4095;

/// A system call with six arguments; the result is negative for an error number.
///
/// # Safety
/// The caller answers for what the call does to the process.
pub unsafe fn call(nr: u64, args: &[u64; 6]) -> i64 {
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
pub fn failed(result: i64) -> bool {
    (-MAX_ERRNO..0).contains(&result)
}

/// clone(2) whose child runs `entry(arg)` on the stack that ends at `stack` and never returns.
///
/// # Safety
/// `stack` is the 16-aligned end of memory that nobody else uses while the child runs, and
/// `entry` never returns.
pub unsafe fn clone(
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
pub unsafe fn clone3(args: u64, len: u64, entry: extern "C" fn(u64) -> !, arg: u64) -> i64 {
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
pub unsafe fn sigreturn(frame: u64) -> ! {
    // SAFETY: the kernel takes the frame from rsp - 8 and nothing of this context is used again.
    unsafe {
        asm!("mov rsp, {}", "mov eax, {nr}", "syscall", "ud2", in(reg) frame + 8,
             nr = const nr::RT_SIGRETURN,
             options(noreturn));
    }
}

/// Waits for all children of the calling task, whoever they become, and exits. From its beginning on it needs no
/// stack, so that this may be somebody else's meanwhile.
pub fn outlive_children() -> ! {
    /// __WALL.
    const ALL: u64 = 0x4000_0000;
    // SAFETY: touches nothing but registers, and ends the task.
    unsafe {
        asm!("2:", "mov eax, {wait}", "mov rdi, -1", "xor esi, esi", "mov edx, {all}", "xor r10d, r10d", "syscall",
             "cmp rax, {none}", "jne 2b", "mov eax, {exit}", "xor edi, edi", "syscall", "ud2",
             wait = const nr::WAIT4, all = const ALL, none = const -nr::ECHILD, exit = const nr::EXIT,
             options(noreturn, nostack));
    }
}

/// exit(2) of the calling task.
pub fn exit(status: u64) -> ! {
    loop {
        // SAFETY: ends this task and nothing else.
        unsafe { call(nr::EXIT, &[status, 0, 0, 0, 0, 0]) };
    }
}

/// exit_group(2).
pub fn exit_group(status: u64) -> ! {
    loop {
        // SAFETY: ends the process, which is what was ordered.
        unsafe { call(nr::EXIT_GROUP, &[status, 0, 0, 0, 0, 0]) };
    }
}

/// FUTEX_WAIT on a word of our own, for at most `nanoseconds` (0: for ever).
pub fn futex_wait(word: *const u32, value: u32, nanoseconds: u64) {
    let time = [0u64, nanoseconds];
    let timeout = if nanoseconds == 0 { 0 } else { time.as_ptr() as u64 };
    // SAFETY: the kernel only reads the word and the time.
    unsafe { call(nr::FUTEX, &[word as u64, 0, u64::from(value), timeout, 0, 0]) };
}

/// FUTEX_WAKE of everybody.
pub fn futex_wake(word: *const u32) {
    // SAFETY: wakes and touches nothing.
    unsafe { call(nr::FUTEX, &[word as u64, 1, i32::MAX as u64, 0, 0, 0]) };
}

/// getpid(2).
pub fn getpid() -> u32 {
    // SAFETY: has no effect.
    unsafe { call(nr::GETPID, &[0; 6]) as u32 }
}

/// gettid(2).
pub fn gettid() -> u32 {
    // SAFETY: has no effect.
    unsafe { call(nr::GETTID, &[0; 6]) as u32 }
}

/// Maps zeroed memory; None when there is none.
pub fn map(len: u64) -> Option<u64> {
    // SAFETY: replaces nothing.
    let mapped = unsafe { call(nr::MMAP, &[0, len, 3, 0x22, u64::MAX, 0]) };
    (!failed(mapped)).then_some(mapped as u64)
}

/// Unmaps memory of ours.
pub fn unmap(start: u64, len: u64) {
    // SAFETY: the caller mapped it.
    unsafe { call(nr::MUNMAP, &[start, len, 0, 0, 0, 0]) };
}

/// Whether the eight bytes at an address can be read: rt_sigprocmask(2) copies the set before it
/// refuses an unknown `how`, and has no effect then (kernel/signal.c).
pub fn readable(address: u64) -> bool {
    const NO_SUCH_HOW: u64 = 0x7fff_ffff;
    // SAFETY: as above.
    unsafe { call(nr::RT_SIGPROCMASK, &[NO_SUCH_HOW, address, 0, 8, 0, 0]) == -nr::EINVAL }
}

/// Sets the signal mask of this thread; what it was.
pub fn set_mask(mask: u64) -> u64 {
    const SIG_SETMASK: u64 = 2;
    let mut old = 0u64;
    let args = [SIG_SETMASK, (&raw const mask) as u64, (&raw mut old) as u64, 8, 0, 0];
    // SAFETY: the kernel reads one word and writes the other.
    unsafe { call(nr::RT_SIGPROCMASK, &args) };
    old
}

/// close(2) of a descriptor that is ours.
pub fn close(fd: i64) {
    // SAFETY: the caller opened it.
    unsafe { call(nr::CLOSE, &[fd as u64, 0, 0, 0, 0, 0]) };
}

/// write(2) of the whole of `bytes`; 0, or a negative error number.
pub fn write_all(fd: i64, mut bytes: *const u8, mut len: usize) -> i64 {
    while len > 0 {
        // SAFETY: the kernel only reads, and answers EFAULT where nothing is.
        let n = unsafe { call(nr::WRITE, &[fd as u64, bytes as u64, len as u64, 0, 0, 0]) };
        if n == -nr::EINTR {
            continue;
        }
        if n <= 0 {
            return if n == 0 { -nr::ENOSPC } else { n };
        }
        bytes = bytes.wrapping_add(n as usize);
        len = len.wrapping_sub(n as usize);
    }
    0
}

/// prctl(2) of an option that touches no memory.
pub fn prctl(option: u64, arg: u64) -> i64 {
    // SAFETY: the callers use PR_SET_PTRACER, PR_SET_CHILD_SUBREAPER and PR_SET_NAME.
    unsafe { call(nr::PRCTL, &[option, arg, 0, 0, 0, 0]) }
}
