//! How a thread is lent to the host for a system call.
//!
//! The host saves the thread's registers in the area behind the thunk, points the thread at it
//! with the system call's number and arguments in registers and all signals blocked, and drives
//! it by syscall-exit stops. If the host dies at any moment, the thread runs on: it finishes the
//! call, reloads what the area holds and is back where it was. The kernel's restart_block stays as
//! it is, so an interrupted nanosleep(2) still goes on.
//!
//! The order of the epilogue matters. Flags are popped while signals are blocked, because rsp
//! then points into the area. When the mask comes back, rsp is the thread's own again, so a
//! signal frame finds a proper stack; the instructions behind it are interruptible like any.
//!
//! The same bytes are copied into a hole of a foreign text mapping when there is no payload yet,
//! so they refer to nothing but their own area.
//!
//! # Safety
//! Only the host enters here, as described.
#![allow(unsafe_code)]

use ckpt_abi::nr;
use ckpt_abi::region::{SocketWait, THUNK_AREA, THUNK_LEN};
use core::mem::offset_of;

core::arch::global_asm!(
    ".pushsection .text.ckpt_thunk,\"ax\",@progbits",
    ".balign 64",
    ".globl ckpt_thunk",
    "ckpt_thunk:",
    "syscall",
    ".Lckpt_epilogue:",
    "lea rsp, [rip + .Lckpt_area]",
    "popfq",
    "mov rsp, [rip + .Lckpt_area + 8]",
    "mov rbx, [rip + .Lckpt_area + 16]",
    "mov rbp, [rip + .Lckpt_area + 24]",
    "mov r8, [rip + .Lckpt_area + 32]",
    "mov r9, [rip + .Lckpt_area + 40]",
    "mov r12, [rip + .Lckpt_area + 48]",
    "mov r13, [rip + .Lckpt_area + 56]",
    "mov r14, [rip + .Lckpt_area + 64]",
    "mov r15, [rip + .Lckpt_area + 72]",
    "lea rsi, [rip + .Lckpt_area + 80]",
    "mov edi, 2",
    "mov edx, 0",
    "mov r10d, 8",
    "mov eax, {rt_sigprocmask}",
    "syscall",
    "mov rdi, [rip + .Lckpt_area + 88]",
    "mov rsi, [rip + .Lckpt_area + 96]",
    "mov rdx, [rip + .Lckpt_area + 104]",
    "mov r10, [rip + .Lckpt_area + 112]",
    "mov rax, [rip + .Lckpt_area + 120]",
    "mov rcx, [rip + .Lckpt_area + 128]",
    "mov r11, [rip + .Lckpt_area + 136]",
    "jmp [rip + .Lckpt_area + 144]",
    ".org ckpt_thunk + {area}",
    ".Lckpt_area:",
    ".zero {len} - {area}",
    // clone(2): the child takes its stack from the kernel and its orders from r15, the parent
    // is driven or ends in the thunk's epilogue.
    ".balign 16",
    ".globl ckpt_clone_thunk",
    "ckpt_clone_thunk:",
    "syscall",
    "test rax, rax",
    "jnz .Lckpt_epilogue",
    "xor ebp, ebp",
    "mov rdi, r15",
    "call ckpt_run",
    "ud2",
    ".balign 16",
    ".globl ckpt_restorer",
    "ckpt_restorer:",
    "mov eax, {rt_sigreturn}",
    "syscall",
    "ud2",
    // A thread that a dumper has sent: rsp points to a frame, a multiple of 16.
    ".balign 16",
    ".globl ckpt_visit",
    "ckpt_visit:",
    "call ckpt_visited",
    "add rsp, 8",
    "jmp ckpt_restorer",
    // A thread whose call on a socket a dump has interrupted: first it waits for the rest of the socket's
    // time-out, rsp pointing to a SocketWait. Ready, it makes its call again; else the call ends here, as it
    // would have. rax, rcx and r11 are lost in any system call.
    ".balign 16",
    "syscall",
    ".globl ckpt_socket_wait",
    "ckpt_socket_wait:",
    "mov rdi, [rsp + {arguments}]",
    "mov rsi, [rsp + {arguments} + 8]",
    "mov rdx, [rsp + {arguments} + 16]",
    "mov r10, [rsp + {arguments} + 24]",
    "mov rcx, [rsp + {rip}]",
    "test eax, eax",
    "jz 2f",
    "cmp eax, {eintr}",
    "je 3f",
    "mov rax, [rsp + {call}]",
    "mov rsp, [rsp + {rsp}]",
    "jmp rcx",
    "2: mov rax, [rsp + {over}]",
    "3: add rcx, 2",
    "mov rsp, [rsp + {rsp}]",
    "jmp rcx",
    ".popsection",
    area = const THUNK_AREA,
    len = const THUNK_LEN,
    arguments = const offset_of!(SocketWait, arguments),
    rip = const offset_of!(SocketWait, rip),
    call = const offset_of!(SocketWait, call),
    over = const offset_of!(SocketWait, over),
    rsp = const offset_of!(SocketWait, rsp),
    eintr = const -nr::EINTR,
    rt_sigreturn = const nr::RT_SIGRETURN,
    rt_sigprocmask = const nr::RT_SIGPROCMASK,
);
