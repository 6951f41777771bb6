// SPDX-License-Identifier: LGPL-2.1-only
//! How a thread waits that a dump has found in sigsuspend(2) or another call with a signal mask of its own.
//!
//! The kernel keeps the thread's mask aside for such a call, and nobody can put it back there: a ptrace(2) call that sets
//! the mask drops it, and a restart begins without. With the thread's mask in place, signals would come before the
//! call that the call blocks. So the thread makes its call here with all signals blocked, and gets its mask
//! back behind it. rsp points to a [`Suspended`]. A handler that the call lets through runs here and comes back here.
//!
//! No instruction changes the flags, and rax, rcx and r11 are lost in any system call.
//!
//! # Safety
//! Only the host sends threads here, as described.
#![allow(unsafe_code)]

use ckpt_abi::nr;
use ckpt_abi::region::Suspended;
use core::mem::offset_of;

core::arch::global_asm!(
    ".pushsection .text.ckpt_suspended,\"ax\",@progbits",
    ".balign 16",
    "syscall",
    ".globl ckpt_suspended",
    "ckpt_suspended:",
    "mov [rsp + {result}], rax",
    "mov edi, {set_mask}",
    "lea rsi, [rsp + {mask}]",
    "mov edx, 0",
    "mov r10d, 8",
    "mov eax, {sigprocmask}",
    "syscall",
    "mov rdi, [rsp + {arguments}]",
    "mov rsi, [rsp + {arguments} + 8]",
    "mov rdx, [rsp + {arguments} + 16]",
    "mov r10, [rsp + {arguments} + 24]",
    "mov rax, [rsp + {result}]",
    "mov rcx, [rsp + {rip}]",
    "mov rsp, [rsp + {rsp}]",
    "jmp rcx",
    ".popsection",
    set_mask = const 2,
    sigprocmask = const nr::RT_SIGPROCMASK,
    result = const offset_of!(Suspended, result),
    mask = const offset_of!(Suspended, mask),
    arguments = const offset_of!(Suspended, arguments),
    rip = const offset_of!(Suspended, rip),
    rsp = const offset_of!(Suspended, rsp),
);
