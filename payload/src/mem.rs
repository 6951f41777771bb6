// SPDX-License-Identifier: LGPL-2.1-only
//! The memory functions that the compiler calls.
//!
//! They are hidden by the version script of the link and never reach the `ckpt` binary, which has
//! libc's.
//!
//! # Safety
//! Each has the contract of its namesake in string(3).
#![allow(unsafe_code)]

use core::arch::asm;

/// memcpy(3).
///
/// # Safety
/// As memcpy(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller owns both ranges and they do not overlap.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack, preserves_flags));
    }
    to
}

/// memset(3).
///
/// # Safety
/// As memset(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller owns the range.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8,
             options(nostack, preserves_flags));
    }
    to
}

/// strlen(3).
///
/// # Safety
/// As strlen(3).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let rest: usize;
    // SAFETY: the caller gives a C string; the direction flag is clear (System V ABI).
    unsafe {
        asm!("repne scasb", inout("rcx") usize::MAX => rest, inout("rdi") text => _, in("al") 0u8,
             options(nostack, readonly));
    }
    (!rest).wrapping_sub(1)
}
