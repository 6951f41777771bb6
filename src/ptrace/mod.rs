// SPDX-License-Identifier: LGPL-2.1-only
//! Stopping threads and making them work for us; no policy.
//!
//! [`freeze`] stops every thread of a process with PTRACE_SEIZE and PTRACE_INTERRUPT, never with a
//! signal; [`glance`] only who stops at once. [`call`] makes a stopped thread issue system calls, [`crew`] several abreast. [`memory`] reads and writes the
//! process. [`interrupted`] knows how a thread that was inside a system call has to go on, [`sequence`]
//! one inside a restartable sequence,
//! [`waits`] and [`sockets`] how long it still has to wait there, [`rest`] what is left of a call that was cut short
//! ([`fdkind`]: by what it may wait for). [`lend`] and [`homing`] bring a thread home whose host has died, by a signal [`frame`].

pub(crate) mod borrowed;
pub(crate) mod call;
pub(crate) mod crew;
mod dispatch;
pub(crate) mod fdkind;
pub(crate) mod filters;
pub(crate) mod forebear;
pub(crate) mod forest;
pub(crate) mod frame;
pub(crate) mod freeze;
pub(crate) mod glance;
mod homing;
pub(crate) mod interrupted;
pub(crate) mod lend;
mod letting;
pub(crate) mod list;
pub(crate) mod memory;
mod noted;
pub(crate) mod raw;
mod reaper;
pub(crate) mod regs;
pub(crate) mod rest;
mod resumed;
mod row;
pub(crate) mod sandbox;
pub(crate) mod segments;
pub(crate) mod seize;
pub(crate) mod sequence;
pub(crate) mod shield;
pub(crate) mod sockets;
mod stopping;
mod suspended;
pub(crate) mod thread;
mod undelayed;
pub(crate) mod waits;

/// Holds one of the payload's numbers against libc's.
macro_rules! same_number {
    ($module:ident::$name:ident, $libc:ident) => {
        const _: () = assert!(ckpt_abi::$module::$name as i64 == nix::libc::$libc as i64);
    };
}
ckpt_abi::each_system_call!(same_number);
ckpt_abi::each_error!(same_number);
