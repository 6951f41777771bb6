// SPDX-License-Identifier: LGPL-2.1-only
//! The C library's pthread_setname_np(3), for the calling thread only: the standard library names no other. The C library's
//! own spells a path in /proc for others, and with it all of printf(3) would be in the binary, which nothing else uses.
//!
//! # Safety
//! The name is the C library's, which nobody else defines here.
#![allow(unsafe_code)]

use nix::libc;
use nix::sys::prctl;
use std::ffi::{CStr, c_char, c_int};

#[unsafe(no_mangle)]
extern "C" fn pthread_setname_np(_own: libc::pthread_t, name: *const c_char) -> c_int {
    // SAFETY: the standard library's name is a C string.
    let name = unsafe { CStr::from_ptr(name) };
    prctl::set_name(name).map_or_else(|e| e as c_int, |()| 0)
}
