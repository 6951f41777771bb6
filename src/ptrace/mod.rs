//! Stopping threads and making them work for us; no policy.
//!
//! [`freeze`] stops every thread of a process with PTRACE_SEIZE and PTRACE_INTERRUPT, never with a
//! signal. [`call`] makes a stopped thread issue system calls. [`memory`] reads and writes the
//! process. [`interrupted`] knows how a thread that was inside a system call has to go on, [`sequence`]
//! one inside a restartable sequence,
//! [`waits`] and [`sockets`] how long it still has to wait there.

pub mod call;
pub mod freeze;
pub mod interrupted;
pub mod memory;
pub mod raw;
pub mod regs;
pub mod sequence;
pub mod sockets;
pub mod waits;
