// SPDX-License-Identifier: LGPL-2.1-only
//! musl keeps the id of a thread in struct pthread, and in the lock words of all mutexes but normal ones.

use super::{among, entries};
use crate::ptrace::memory::Memory;
use ckpt_abi::image::{Thread, thread_flag};

/// Offset of `tid` in struct pthread, to which the FS base points and whose first word points to itself.
pub(super) const TID: u64 = crate::proc::fork::MUSL_TID as u64;
/// Offset of the futex from its entry in the list of held mutexes: `_m_lock` from `_m_next`.
pub(super) const FUTEX: i64 = -28;
/// Where in struct pthread the head of that list is looked for: behind the thread's id. Its place differs
/// from version to version; it is the word from which the list leads back to itself.
const LIST: std::ops::Range<u64> = 0x38..0x180;
/// Where the entry of a mutex that is just being taken or given back stands, from that head.
const PENDING: u64 = 16;

/// [`thread_flag::MUSL`], if struct pthread has the id of this thread.
pub(super) fn cached(memory: &Memory, fs_base: u64, thread: &Thread) -> u32 {
    let points_to_itself = memory.get::<u64>(fs_base).is_ok_and(|word| word == fs_base);
    let held = memory.get::<u32>(fs_base + TID).is_ok_and(|word| word == thread.tid);
    if points_to_itself && held { thread_flag::MUSL } else { 0 }
}

/// The entries of the mutexes that a thread holds, or just takes.
pub(super) fn listed(memory: &Memory, fs_base: u64) -> Vec<u64> {
    let list = LIST.step_by(8).find_map(|at| {
        let head = fs_base + at;
        let (mut entries, whole) = entries(memory, memory.get(head).ok()?, head);
        entries.extend(memory.get::<u64>(head + PENDING).ok());
        whole.then_some(entries)
    });
    list.unwrap_or_default()
}

/// Whether this is the beginning of a mutex that names its owner (struct pthread_mutex_t: type, lock): one
/// whose type is not the normal one, free, or held by one of `ids`.
pub(super) fn names_its_owner(kind: u32, lock: u32, ids: &[u32]) -> bool {
    const KINDS: u32 = 0xff;
    const ID: u32 = 0x3fff_ffff;
    kind & 15 != 0 && kind & !KINDS == 0 && (lock == 0 || among(ids, lock & ID))
}
