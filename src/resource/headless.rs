// SPDX-License-Identifier: LGPL-2.1-only
//! A main thread that has ended before others: it has a record like another's, and ends again when all are there.

use super::plan::{Orders, Step};
use crate::proc::Pid;
use crate::proc::stat::Stat;
use ckpt_abi::image::{Thread, thread_flag};
use nix::libc;
use std::os::unix::ffi::OsStrExt;

/// Bytes of struct robust_list_head (set_robust_list(2)).
const ROBUST_LIST_HEAD: u64 = 24;

/// Its record: that of a thread that lives, without what is that one's own.
pub(super) fn record(like: &Thread, pid: Pid, ended: &Stat) -> Thread {
    Thread {
        tid: pid.word(),
        flags: thread_flag::ENDED,
        robust_list: 0,
        tid_address: 0,
        rseq: 0,
        // Of the end of a thread (exit(2)), which is the process's if each ends by itself.
        rseq_signature: (ended.wait_status >> 8 & 0xff).cast_unsigned(),
        name: padded(ended.comm.as_bytes()),
        go_id: 0,
        filter: 0,
        id_registers: 0,
        ..*like
    }
}

/// The last orders of a main thread, if it has ended.
pub(crate) fn end(main: &Thread, orders: &mut Orders) {
    if main.flags & thread_flag::ENDED != 0 {
        // Its end writes where these say, which is the program's memory by now.
        orders.call(Step::Leave, libc::SYS_set_robust_list, &[0, ROBUST_LIST_HEAD]);
        orders.call(Step::Leave, libc::SYS_set_tid_address, &[0]);
        orders.call(Step::Leave, libc::SYS_exit, &[main.rseq_signature.into()]);
    }
}

/// A name as a record has it.
pub(super) fn padded(comm: &[u8]) -> [u8; 16] {
    let mut name = [0; 16];
    let len = comm.len().min(15);
    name[..len].copy_from_slice(&comm[..len]);
    name
}
