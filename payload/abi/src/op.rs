// SPDX-License-Identifier: LGPL-2.1-only
//! Orders: the little programs that the host writes and the payload obeys.
//!
//! A list of [`Op`]s is run from its first entry to one that does not return ([`OpKind::Exit`],
//! [`OpKind::Sigreturn`]) or to [`OpKind::End`]. Every address and number in it was computed by the
//! host; the payload takes no decision of its own.

use crate::{codes, record};

record! {
    /// One order.
    Op, 64, {
        /// What to do: an [`OpKind`] as a number.
        kind: u16,
        /// Bits of [`flag`].
        flags: u16,
        /// Which step of the host's plan this is, for the report when it fails; the payload does
        /// not look at it.
        step: u32,
        /// System call number, or the kind's own operand.
        nr: u64,
        /// Arguments.
        args: [u64; 6],
    }
}

codes! {
    /// The kinds of order. Numbers, not an enum field in [`Op`], so that any bytes are a valid `Op`.
    OpKind: u16 {
        /// The list ends here: the caller of the interpreter goes on.
        End = 0,
        /// System call `nr` with `args`.
        Syscall = 1,
        /// clone(2): `nr` = flags, `args[0]` = top of the child's stack, `args[1]` = address of the
        /// child's own list, `args[2]` = parent_tid pointer, `args[3]` = child_tid pointer.
        Clone = 2,
        /// clone3(2) with the struct clone_args at `args[0]` (length `nr`), whose child runs the list at
        /// `args[1]` on the stack that clone_args names. While somebody else has its id it is tried again each millisecond,
        /// `args[2]` times.
        Clone3 = 3,
        /// Store the low `nr` (4 or 8) bytes of `args[1]` at `args[0]`.
        Store = 4,
        /// Count one arrival at the u32 at `args[0]` and sleep until it has reached `args[1]`. It fails with
        /// [`VAIN`] when the owner of the robust futex at `args[2]` (0: none) ends before that: then for all.
        Barrier = 5,
        /// rt_sigreturn(2) through the frame at `args[0]`: the thread becomes the program's.
        Sigreturn = 6,
        /// exit_group(2) with status `args[0]`.
        Exit = 7,
        /// Copy `args[2]` bytes from `args[1]` to `args[0]`.
        Copy = 8,
        /// Go on with the list at `args[0]`.
        Goto = 9,
        /// Make and delete POSIX timers until the one before number `args[0]` has been, with the struct sigevent
        /// at `args[1]`; the word at `args[2]` is free for their numbers.
        UseUpTimers = 10,
        /// Count `args[2]` arrivals at the u32 at `args[0]`, and turn round until it has reached `args[1]`, without a system
        /// call.
        Turn = 11,
    }
}

/// FUTEX_OWNER_DIED (linux/futex.h): what the kernel writes into a robust futex when its owner ends.
pub const OWNER_DIED: u32 = 0x4000_0000;
/// In a barrier's word: whoever comes there comes in vain.
pub const VAIN: u32 = 1 << 31;

/// Flags of an [`Op`].
pub mod flag {
    /// Go on when the system call fails.
    pub const MAY_FAIL: u16 = 1;
    /// The result must equal `args[5]` (system calls of at most five arguments).
    pub const EXACT: u16 = 2;
    /// Skip the next order when this one succeeds, and go on with it when this one fails.
    pub const OR_NEXT: u16 = 4;
    /// The second argument is the address of a u32 that holds it.
    pub const INDIRECT: u16 = 8;
    /// The first argument is the address of a u32 with a thread's id; the id of that thread's CPU clock of the
    /// kind in the fourth argument goes in its stead.
    pub const CLOCK_OF: u16 = 16;
}

record! {
    /// What the payload says of an order that failed.
    Report, 40, {
        /// [`Op::step`] of the order.
        step: u32,
        /// Error number (positive), or 0 when a result differed from the exact one wanted.
        errno: u32,
        /// Position of the order in its list.
        index: u64,
        /// System call number, or the kind's operand.
        nr: u64,
        /// First argument, mostly an address or a descriptor.
        addr: u64,
        /// Second argument, mostly a length.
        len: u64,
    }
}

/// A restorer has failed and executes what says so, unless the word that tells it was another than 0: whoever fails
/// later waits and is silent.
pub const REPORTS: u32 = 4;

/// Bytes of a [`Report`] in letters.
pub const SPELLED: usize = 2 * size_of::<Report>();

/// Half bytes as letters, for an argument of execve(2): a report that needs neither a descriptor nor a
/// file lives through any resource limit.
pub fn spell(bytes: &[u8], letters: &mut [u8; SPELLED]) {
    for (pair, byte) in letters.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = [(byte >> 4).wrapping_add(b'a'), (byte & 15).wrapping_add(b'a')];
    }
}

/// The bytes that [`spell`] has spelled; None if these are no such letters.
pub fn read_spelled(letters: &[u8]) -> Option<[u8; SPELLED / 2]> {
    let letters: &[u8; SPELLED] = letters.try_into().ok()?;
    let mut bytes = [0; SPELLED / 2];
    for (byte, pair) in bytes.iter_mut().zip(letters.as_chunks::<2>().0) {
        let [high, low] = pair.map(|letter| letter.wrapping_sub(b'a'));
        if high > 15 || low > 15 {
            return None;
        }
        *byte = high << 4 | low;
    }
    Some(bytes)
}

record! {
    /// How a list is run: the argument of the payload's `run` entry.
    ListHead, 56, {
        /// Address of the first [`Op`].
        ops: u64,
        /// Address of a word, 0 until an order fails, and behind it of [`SPELLED`] bytes for the letters of
        /// the [`Report`]; 0: nobody asks.
        report: u64,
        /// After a failure: descriptor of an executable to execute, or negative: exit_group(125).
        exec_fd: i64,
        /// Its argv, an array of pointers.
        argv: u64,
        /// Its environment, an array of pointers.
        envp: u64,
        /// Address of an empty string.
        empty: u64,
        /// Address of a word with the address of the word by which the processes of a restart tell that one
        /// [`REPORTS`]; 0 in one of them: nobody asks.
        told: u64,
    }
}
