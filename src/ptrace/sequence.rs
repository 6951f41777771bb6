// SPDX-License-Identifier: LGPL-2.1-only
//! Restartable sequences of a stopped thread.

use super::memory::Memory;
use super::regs::Regs;
use zerocopy::{FromBytes, IntoBytes};

/// struct rseq_cs (include/uapi/linux/rseq.h).
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Sequence {
    version_and_flags: u64,
    start: u64,
    length: u64,
    abort: u64,
}

const _: () = assert!(size_of::<Sequence>() == 32);

/// Where struct rseq has the address of the sequence that the thread is in (rseq_cs).
pub(super) const SEQUENCE: u64 = 8;

/// Sends a thread that is inside a sequence to its abort handler, as any preemption does; `area` is
/// the address of its struct rseq.
///
/// The kernel does so only while the instruction pointer lies inside. A thread that works for us
/// has another one meanwhile, and the kernel forgets the sequence (kernel/rseq.c, rseq_ip_fixup).
pub(crate) fn leave_sequence(memory: &Memory, area: u64, regs: &mut Regs) {
    let Ok(pointer) = memory.get::<u64>(area.wrapping_add(SEQUENCE)) else { return };
    if pointer == 0 {
        return;
    }
    let Ok(sequence) = memory.get::<Sequence>(pointer) else { return };
    if regs.rip.wrapping_sub(sequence.start) < sequence.length {
        regs.rip = sequence.abort;
    }
}
