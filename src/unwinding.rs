// SPDX-License-Identifier: LGPL-2.1-only
//! The unwinder (Itanium C++ ABI, exception handling, level 1) of a binary that has no tables for unwinding and ends at a
//! panic: it finds no caller. Without it the standard library's printing of backtraces, which a stripped program has none of,
//! is a tenth of the binary.
//!
//! # Safety
//! The names are the C runtime's, which nobody else defines here (build.rs leaves its tables out).
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

/// _URC_END_OF_STACK.
const END_OF_STACK: c_int = 5;

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_each: *const c_void, _argument: *mut c_void) -> c_int {
    END_OF_STACK
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume(_exception: *mut c_void) -> ! {
    std::process::abort()
}

/// What is asked of a frame.
macro_rules! nothing {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(#[unsafe(no_mangle)]
        extern "C" fn $name(_frame: *mut c_void $(, $argument: $type)*) $(-> $result)? { $(<$result>::MIN)? })*
    };
}

nothing! {
    _Unwind_FindEnclosingFunction() -> usize;
    _Unwind_GetCFA() -> usize;
    _Unwind_GetIP() -> usize;
    _Unwind_GetIPInfo(_before: *mut c_int) -> usize;
    _Unwind_GetLanguageSpecificData() -> usize;
    _Unwind_GetRegionStart() -> usize;
    _Unwind_GetTextRelBase() -> usize;
    _Unwind_GetDataRelBase() -> usize;
    _Unwind_SetGR(_register: c_int, _value: usize);
    _Unwind_SetIP(_value: usize);
}
