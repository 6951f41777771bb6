// SPDX-License-Identifier: LGPL-2.1-only
//! The ckpt command, and the stub of every checkpoint file.
//!
//! Rust's own start of main would ignore SIGPIPE and install handlers for SIGSEGV and SIGBUS, and a
//! program that we become would inherit the former; so the C entry point is ours.
//!
//! # Safety
//! The C runtime calls `main` once, with the arguments of the process. A stack of our own is memory that
//! nobody else uses and that is never unmapped.
#![no_main]
#![allow(unsafe_code)]

#[cfg(not(test))]
mod naming;
#[cfg(not(test))]
mod unwinding;

use ckpt::proc::room;
use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;

/// Entry point.
#[unsafe(no_mangle)]
extern "C" fn main(count: c_int, words: *const *const c_char) -> c_int {
    if let Err(sentence) = room::make() {
        let _ = nix::unistd::write(std::io::stderr(), sentence);
        return c_int::from(ckpt::error::FAILED);
    }
    if room::has_stack() { proceed(count, words) } else { on_a_larger_stack(count, words) }
}

extern "C" fn proceed(count: c_int, words: *const *const c_char) -> c_int {
    let count = usize::try_from(count).unwrap_or(0);
    let args = (0..count).map(|i| argument(words, i)).collect();
    c_int::from(ckpt::command::main(args))
}

/// Under `ulimit -s 64` and no right to raise that; a thread would not do, for the process becomes the
/// program in its main one.
fn on_a_larger_stack(count: c_int, words: *const *const c_char) -> c_int {
    let Ok(stack) = memmap2::MmapMut::map_anon(room::STACK as usize) else {
        return proceed(count, words);
    };
    let stack = stack.as_ptr_range().end;
    let status: c_int;
    // SAFETY: `proceed` is called as the ABI of C wants it, on a stack that is empty and aligned to a page,
    // and ours comes back from a register that a call keeps.
    unsafe {
        std::arch::asm!("mov r12, rsp", "mov rsp, {stack}", "call {proceed}", "mov rsp, r12",
            stack = in(reg) stack, proceed = in(reg) proceed as extern "C" fn(c_int, *const *const c_char) -> c_int,
            in("edi") count, in("rsi") words, lateout("eax") status, out("r12") _, clobber_abi("C"));
    }
    status
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
