// SPDX-License-Identifier: LGPL-2.1-only
//! The code of ckpt that runs inside somebody else's process.
//!
//! It decides nothing. The host prepares lists of orders ([`ckpt_abi::op`]) and the memory they
//! refer to; what is here runs them ([`run`]), lends a thread to the host for single system calls
//! ([`thunk`]), and starts a dumper when the checkpoint signal arrives ([`trigger`]). As libckpt.so
//! it makes its own region ([`load`]) and offers the C API ([`api`]). There is no
//! libc, no allocation, no thread-local storage and no panic: the panic handler calls a function
//! that does not exist, so code that could panic does not link.
#![no_std]
#![deny(unsafe_op_in_unsafe_fn)]

mod api;
mod assist;
mod callbacks;
mod clib;
mod control;
mod exclude;
mod files;
mod heirs;
mod listing;
mod load;
mod mem;
mod panic;
mod run;
mod signals;
mod spawn;
mod suspend_thunk;
mod sys;
mod thunk;
mod trigger;
mod turns;
