//! Thread ids that programs have cached, and how they get the new ones.
//!
//! The kernel gives a restored thread its old id only where we may ask for it (clone3(2),
//! set_tid). Where the id changes, the words are rewritten in which C libraries and Go keep it, if
//! they held the saved id: glibc's struct pthread (the word at the tid address), glibc before 2.25
//! the process id beside it, musl's struct pthread, Go's runtime.m.procid, and the locks that the thread
//! holds ([`super::mutexes`]).

use super::plan::{Orders, Step};
use crate::ptrace::memory::Memory;
use ckpt_abi::image::{Owner, Thread, thread_flag};
use ckpt_abi::op::Kind;

/// Offset of `tid` in musl's struct pthread (src/internal/pthread_impl.h, x86-64), to which the
/// FS base points and whose first word points to itself.
const MUSL_TID: u64 = 0x30;
/// Offset of `m` in Go's runtime.g (src/runtime/runtime2.go): behind stack, two stack guards,
/// _panic and _defer.
const GO_G_M: u64 = 48;
/// How far below the thread pointer Go's pointer to g is looked for: at -8 without cgo, somewhere
/// in the static TLS block with it.
const GO_TLS: u64 = 512;
/// How much of runtime.m, in which procid is one of the first fields.
const GO_M: u64 = 256;

/// The id of a restored thread.
#[derive(Clone, Copy)]
pub enum Id {
    /// Known before the restart.
    Known(u64),
    /// Written by the kernel at this address when the thread is made.
    At(u64),
}

/// Finds the cached ids of a thread.
pub fn save(memory: &Memory, pid: i32, fs_base: u64, thread: &mut Thread) {
    let word = |addr| memory.get::<u32>(addr).unwrap_or(0);
    if thread.tid_address != 0 && word(thread.tid_address) == thread.tid {
        thread.flags |= thread_flag::TID_CACHED;
        if word(thread.tid_address + 4) == pid.cast_unsigned() {
            thread.flags |= thread_flag::PID_CACHED;
        }
    }
    let points_to_itself = memory.get::<u64>(fs_base).is_ok_and(|word| word == fs_base);
    if points_to_itself && word(fs_base + MUSL_TID) == thread.tid {
        thread.flags |= thread_flag::MUSL;
    }
    thread.go_id = go_id(memory, fs_base, thread.tid).unwrap_or(0);
}

/// The address of runtime.m.procid: of a thread-local pointer to a g whose m has a g0 that points
/// back to the same m.
fn go_id(memory: &Memory, fs_base: u64, tid: u32) -> Option<u64> {
    let pointer = |addr: u64| memory.get::<u64>(addr).ok().filter(|p| p % 8 == 0 && *p > 4096);
    let mut tls = [0u64; GO_TLS as usize / 8];
    memory.read(fs_base.checked_sub(GO_TLS)?, zerocopy::IntoBytes::as_mut_bytes(&mut tls)).ok()?;
    let m = tls.iter().rev().filter(|g| **g > 4096 && **g % 8 == 0).find_map(|g| {
        let m = pointer(g.checked_add(GO_G_M)?)?;
        let g0 = pointer(m)?;
        (pointer(g0.checked_add(GO_G_M)?)? == m).then_some(m)
    })?;
    let mut words = [0u64; GO_M as usize / 8];
    memory.read(m, zerocopy::IntoBytes::as_mut_bytes(&mut words)).ok()?;
    let mut found = (0u64..).zip(words).filter(|(_, word)| *word == u64::from(tid));
    let (index, _) = found.next()?;
    found.next().is_none().then_some(m + 8 * index)
}

/// Orders that rewrite the cached ids, in the thread itself.
///
/// A futex loses FUTEX_WAITERS with its old id: its waiters ask anew after a restart, find another
/// value than they expect, and set the bit again.
pub fn restore(thread: &Thread, owners: &[Owner], pid: u64, id: Id, orders: &mut Orders) {
    let fs_base = super::threads::regs(thread).fs_base;
    let step = Step::Thread;
    let mut store = |at: u64| match id {
        Id::Known(tid) => orders.push(Kind::Store, 0, step, 4, &[at, tid]),
        Id::At(word) => orders.push(Kind::Copy, 0, step, 0, &[at, word, 4]),
    };
    if thread.flags & thread_flag::TID_CACHED != 0 {
        store(thread.tid_address);
    }
    if thread.flags & thread_flag::MUSL != 0 {
        store(fs_base + MUSL_TID);
    }
    if thread.go_id != 0 {
        store(thread.go_id);
    }
    owners.iter().filter(|owner| owner.tid == thread.tid).for_each(|owner| store(owner.address));
    if thread.flags & thread_flag::PID_CACHED != 0 {
        orders.push(Kind::Store, 0, step, 4, &[thread.tid_address + 4, pid]);
    }
}
