// SPDX-License-Identifier: LGPL-2.1-only
//! The little of the program's C library that the C API needs where there is one: errno, memory that
//! the program may free, and the environment.
//!
//! They are weak, so that the object needs no library. Only the object that the dynamic loader has
//! loaded sees them; the copy in the region must not ask.
//!
//! # Safety
//! The functions have the types of their namesakes in ISO C and glibc's and musl's errno.h.
#![allow(unsafe_code)]

use core::ffi::c_void;

core::arch::global_asm!(
    ".pushsection .text.ckpt_clib,\"ax\",@progbits",
    ".weak __errno_location",
    ".weak malloc",
    ".weak free",
    ".weak environ",
    ".hidden ckpt_clib_function",
    ".globl ckpt_clib_function",
    "ckpt_clib_function:",
    "cmp edi, 2",
    "je 3f",
    "ja 4f",
    "test edi, edi",
    "jnz 2f",
    "mov rax, [rip + __errno_location@GOTPCREL]",
    "ret",
    "2:",
    "mov rax, [rip + malloc@GOTPCREL]",
    "ret",
    "3:",
    "mov rax, [rip + free@GOTPCREL]",
    "ret",
    "4:",
    "mov rax, [rip + environ@GOTPCREL]",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    /// Address of __errno_location (0), malloc (1), free (2) or environ (3), or 0.
    safe fn ckpt_clib_function(which: u32) -> *const c_void;
}

/// Sets errno and gives -1; 0 for the error number 0.
pub(crate) fn fail(errno: u32) -> i32 {
    if errno == 0 {
        return 0;
    }
    let function = ckpt_clib_function(0);
    if !function.is_null() {
        // SAFETY: see the head of this file.
        let function: extern "C" fn() -> *mut u32 = unsafe { core::mem::transmute(function) };
        let place = function();
        // SAFETY: the address of this thread's errno.
        unsafe { place.write(errno) };
    }
    -1
}

/// malloc(3); null where there is none.
pub(crate) fn malloc(len: usize) -> *mut u8 {
    let function = ckpt_clib_function(1);
    if function.is_null() {
        return core::ptr::null_mut();
    }
    // SAFETY: see the head of this file.
    let function: extern "C" fn(usize) -> *mut u8 = unsafe { core::mem::transmute(function) };
    function(len)
}

/// free(3).
pub(crate) fn free(address: u64) {
    let function = ckpt_clib_function(2);
    if !function.is_null() {
        // SAFETY: see the head of this file.
        let function: extern "C" fn(u64) = unsafe { core::mem::transmute(function) };
        function(address);
    }
}

/// The address of environ(7); 0 where there is none.
pub(crate) fn environment() -> u64 {
    ckpt_clib_function(3) as u64
}
