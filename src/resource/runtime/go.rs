// SPDX-License-Identifier: LGPL-2.1-only
//! Go keeps the id of a thread in runtime.m.procid.

use crate::ptrace::memory::Memory;

/// Offset of `m` in runtime.g (src/runtime/runtime2.go): behind stack, two stack guards, _panic and _defer.
const G_M: u64 = 48;
/// How far below the thread pointer the pointer to g is looked for: at -8 without cgo, somewhere in the static
/// TLS block with it.
const TLS: u64 = 512;
/// How much of runtime.m, in which procid is one of the first fields.
const M: u64 = 256;

/// The address of runtime.m.procid: of a thread-local pointer to a g whose m has a g0 that points
/// back to the same m.
pub(super) fn id(memory: &Memory, fs_base: u64, tid: u32) -> Option<u64> {
    let pointer = |addr: u64| memory.get::<u64>(addr).ok().filter(|p| p % 8 == 0 && *p > 4096);
    let mut tls = [0u64; TLS as usize / 8];
    memory.read(fs_base.checked_sub(TLS)?, zerocopy::IntoBytes::as_mut_bytes(&mut tls)).ok()?;
    let m = tls.iter().rev().filter(|g| **g > 4096 && **g % 8 == 0).find_map(|g| {
        let m = pointer(g.checked_add(G_M)?)?;
        let g0 = pointer(m)?;
        (pointer(g0.checked_add(G_M)?)? == m).then_some(m)
    })?;
    let mut words = [0u64; M as usize / 8];
    memory.read(m, zerocopy::IntoBytes::as_mut_bytes(&mut words)).ok()?;
    let mut found = (0u64..).zip(words).filter(|(_, word)| *word == u64::from(tid));
    let (index, _) = found.next()?;
    found.next().is_none().then_some(m + 8 * index)
}
