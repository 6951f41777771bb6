//! The ckpt command, and the stub of every checkpoint file.
//!
//! Rust's own start of main would ignore SIGPIPE and install handlers for SIGSEGV and SIGBUS, and a
//! program that we become would inherit the former; so the C entry point is ours.
//!
//! # Safety
//! The C runtime calls `main` once, with the arguments of the process.
#![no_main]
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;

/// Entry point.
#[unsafe(no_mangle)]
extern "C" fn main(count: c_int, words: *const *const c_char) -> c_int {
    let count = usize::try_from(count).unwrap_or(0);
    let args = (0..count).map(|i| argument(words, i)).collect();
    c_int::from(ckpt::command::main(args))
}

fn argument(words: *const *const c_char, index: usize) -> OsString {
    // SAFETY: `index` is below argc.
    let word = unsafe { words.add(index) };
    // SAFETY: argv has argc pointers.
    let word = unsafe { word.read() };
    // SAFETY: they point to C strings that live as long as the process.
    let word = unsafe { CStr::from_ptr(word) };
    OsStr::from_bytes(word.to_bytes()).to_owned()
}
