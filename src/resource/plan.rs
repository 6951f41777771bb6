// SPDX-License-Identifier: LGPL-2.1-only
//! Orders for the restorer, and the memory they lie in.
//!
//! The arena is mapped in the restarting process at addresses that are free there and in the
//! image, so orders and what they point to are written in place; the restorer unmaps it last.
//!
//! # Safety
//! Writes stay within the arena: its bounds are checked at each.
#![allow(unsafe_code)]

use crate::error::{Because, Error, Result};
use ckpt_abi::op::{Op, OpKind, flag};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use std::num::NonZeroUsize;
use zerocopy::{FromZeros, Immutable, IntoBytes};

/// Memory at a fixed address that is filled from its start.
pub(crate) struct Arena {
    base: u64,
    len: u64,
    used: u64,
}

impl Arena {
    /// Maps `len` bytes at `base`, which must be free.
    pub(crate) fn map(base: u64, len: u64) -> Result<Self> {
        let addr = NonZeroUsize::new(base as usize);
        let len_at = NonZeroUsize::new(len as usize).ok_or_else(|| Error::new("an empty arena"))?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
        let at = unsafe { mmap_anonymous(addr, len_at, prot, flags) };
        at.because(|| format!("cannot map {len} bytes at {base:#x} for the restart"))?;
        Ok(Self { base, len, used: 0 })
    }

    /// Its first address.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Room for `len` bytes at a multiple of `align`; its address. The bytes are zero.
    pub(crate) fn room(&mut self, len: u64, align: u64) -> Result<u64> {
        let start = self.used.next_multiple_of(align);
        let end = start.checked_add(len).filter(|end| *end <= self.len);
        self.used = end.ok_or_else(|| Error::new("the restart's plan is too long"))?;
        Ok(self.base + start)
    }

    /// Stores bytes; their address, a multiple of 64.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<u64> {
        let addr = self.room(bytes.len() as u64, 64)?;
        self.write(addr, bytes)?;
        Ok(addr)
    }

    /// Stores a value; its address.
    pub(crate) fn value<T: IntoBytes + Immutable + ?Sized>(&mut self, value: &T) -> Result<u64> {
        self.bytes(value.as_bytes())
    }

    /// Overwrites bytes that were stored.
    pub(crate) fn write(&mut self, addr: u64, bytes: &[u8]) -> Result<()> {
        let end = addr.checked_add(bytes.len() as u64);
        if addr < self.base || end.is_none_or(|end| end > self.base + self.used) {
            return Err(Error::new("the restart's plan writes outside its arena"));
        }
        let to: *mut u8 = std::ptr::with_exposed_provenance_mut(addr as usize);
        // SAFETY: the range was just checked to be a part of the arena that `room` gave out.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }
}

/// Declares [`Step`] with what the kernel refuses when it fails.
macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $number:literal: $refused:literal;)*) => {
        /// What an order is for: its number travels in [`Op::step`] and comes back in a report.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub(crate) enum Step {
            $($(#[$doc])* $name = $number,)*
        }

        impl TryFrom<u32> for Step {
            type Error = u32;

            fn try_from(number: u32) -> std::result::Result<Self, u32> {
                match number {
                    $($number => Ok(Self::$name),)*
                    other => Err(other),
                }
            }
        }

        impl Step {
            /// What it is that failed, for the sentence "the kernel did not let the program …".
            pub(crate) fn describe(self) -> &'static str {
                match self {
                    $(Self::$name => $refused,)*
                }
            }
        }
    };
}

steps! {
    /// Unmap what is the stub's.
    Unmap = 1: "have the memory that the restart itself took";
    /// Move a mapping to its place.
    Move = 2: "have its memory at its place (mremap)";
    /// Map the vdso.
    Vdso = 3: "have a vdso (ARCH_MAP_VDSO_64)";
    /// PR_SET_MM_MAP.
    MemoryMap = 4: "set its brk, arguments and environment (PR_SET_MM_MAP)";
    /// A signal's disposition.
    SignalAction = 5: "install a signal handler";
    /// Queue a signal again.
    PendingSignal = 6: "have the signals that were pending";
    /// Process-wide attributes.
    Process = 7: "set an attribute of the process";
    /// A thread's attributes.
    Thread = 8: "set an attribute of a thread";
    /// Make a thread.
    Clone = 9: "create a thread";
    /// Resource limits.
    Limit = 10: "set a resource limit";
    /// Descriptors of the stub.
    Descriptor = 11: "close a descriptor of the restart";
    /// Timers.
    Timer = 12: "set a timer";
    /// The last steps.
    Leave = 13: "be entered";
    /// What an epoll instance watches.
    Watch = 14: "watch a descriptor (epoll_ctl)";
    /// What its threads are locked in.
    Filter = 15: "have its filters of system calls (seccomp)";
    /// A TCP connection that goes on.
    Connection = 16: "have a connection that was kept (--keep-tcp)";
}

impl Step {
    /// What the user can do about it.
    pub(crate) fn way_out(self, errno: Errno) -> Option<&'static str> {
        let again = match (self, errno) {
            (Self::Clone, _) => {
                "raise the limit of processes and threads (ulimit -u, or pids.max of the cgroup)"
            }
            (Self::PendingSignal | Self::Timer, Errno::EAGAIN) => {
                "raise the limit of pending signals (ulimit -i)"
            }
            (_, Errno::ENOMEM) => {
                "give it more memory, or raise its limits (ulimit -v, vm.max_map_count)"
            }
            (_, Errno::EPERM | Errno::EACCES | Errno::ENOSYS) => {
                "a sandbox (seccomp) may forbid it: restart it outside of that"
            }
            _ => return None,
        };
        Some(again)
    }
}

/// A list of orders in the making.
#[derive(Clone, Default)]
pub(crate) struct Orders {
    ops: Vec<Op>,
}

impl Orders {
    /// Adds a system call that must succeed.
    pub(crate) fn call(&mut self, step: Step, number: i64, args: &[u64]) {
        self.push(OpKind::Syscall, 0, step, number.cast_unsigned(), args);
    }

    /// Adds a system call whose failure does not matter.
    pub(crate) fn try_call(&mut self, step: Step, number: i64, args: &[u64]) {
        self.push(OpKind::Syscall, flag::MAY_FAIL, step, number.cast_unsigned(), args);
    }

    /// Adds a system call that must give exactly `result`.
    pub(crate) fn exact_call(&mut self, step: Step, number: i64, args: [u64; 5], result: u64) {
        let [a, b, c, d, e] = args;
        let args = [a, b, c, d, e, result];
        self.push(OpKind::Syscall, flag::EXACT, step, number.cast_unsigned(), &args);
    }

    /// Adds a system call whose success makes the next order unnecessary.
    pub(crate) fn call_or_next(&mut self, kind: OpKind, step: Step, nr: u64, args: &[u64]) {
        self.push(kind, flag::OR_NEXT, step, nr, args);
    }

    /// Adds any other order.
    pub(crate) fn push(&mut self, kind: OpKind, flags: u16, step: Step, nr: u64, args: &[u64]) {
        let mut op = Op { kind: kind as u16, flags, step: step as u32, nr, args: [0; 6] };
        for (to, from) in op.args.iter_mut().zip(args) {
            *to = *from;
        }
        self.ops.push(op);
    }

    /// Adds those of another list.
    pub(crate) fn extend(&mut self, others: &Self) {
        self.ops.extend_from_slice(&others.ops);
    }

    /// All but the last, and that.
    pub(crate) fn split_last(&self) -> (Self, Self) {
        let (first, last) = self.ops.split_at(self.ops.len().saturating_sub(1));
        (Self { ops: first.to_vec() }, Self { ops: last.to_vec() })
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Stores the list with an end mark; its address.
    pub(crate) fn store(mut self, arena: &mut Arena) -> Result<u64> {
        self.ops.push(Op::new_zeroed());
        arena.value(self.ops.as_slice())
    }

    /// The orders as bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.ops.as_bytes()
    }
}
