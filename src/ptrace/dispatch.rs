// SPDX-License-Identifier: LGPL-2.1-only
//! Threads whose system calls are dispatched to a handler of SIGSYS (prctl(2), PR_SET_SYSCALL_USER_DISPATCH).

use super::raw;
use crate::proc::Tid;
use crate::proc::forebear::shape;
use zerocopy::IntoBytes;

/// PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG (Linux 6.4): whether the thread's system calls are dispatched; false where
/// the kernel cannot say.
pub(super) fn is_on(tid: Tid) -> bool {
    const REQUEST: u32 = 0x4211;
    // struct ptrace_sud_config: mode, selector, offset, length.
    let mut config = [0u64; 4];
    let len = size_of_val(&config) as u64;
    let told = raw::transfer(REQUEST, tid, len, shape::OUT, config.as_mut_bytes());
    told.is_ok() && config[0] != 0
}
