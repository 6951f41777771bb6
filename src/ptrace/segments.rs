// SPDX-License-Identifier: LGPL-2.1-only
//! Segments that a thread has in its descriptor table (set_thread_area(2)), as code of 32 bits has; a 64-bit program gets
//! them by int $0x80.

use super::raw;
use crate::proc::Tid;
use crate::proc::forebear::shape;
use zerocopy::IntoBytes;

/// Whether it has any (PTRACE_GET_THREAD_AREA); false where the kernel knows of none.
pub(crate) fn any(tid: Tid) -> bool {
    const REQUEST: u32 = 25;
    /// GDT_ENTRY_TLS_MIN to GDT_ENTRY_TLS_MAX of arch/x86/include/asm/segment.h.
    const ENTRIES: std::ops::Range<u64> = 12..15;
    const NOT_PRESENT: u32 = 1 << 5;
    ENTRIES.into_iter().any(|number| {
        // struct user_desc: number, base, limit, bits.
        let mut entry = [0u32; 4];
        let told = raw::transfer(REQUEST, tid, number, shape::OUT, entry.as_mut_bytes());
        told.is_ok() && (entry[1] != 0 || entry[2] != 0 || entry[3] & NOT_PRESENT == 0)
    })
}
