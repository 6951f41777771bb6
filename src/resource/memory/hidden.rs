// SPDX-License-Identifier: LGPL-2.1-only
//! Shared memory under guard pages (MADV_GUARD_INSTALL): the pages are still there, and show again when the
//! guards go.

use super::Area;
use crate::error::Result;
use crate::image::zeros::nonzero;
use crate::ptrace::call::Caller;
use crate::ptrace::memory::Memory;
use crate::resource::Gathered;
use ckpt_abi::image::{CHUNK_MAX, Guard};
use nix::libc;

/// Most bytes that are kept in memory until the image is written.
const MOST: u64 = 32 << 20;

/// Reads what guards hide in shared areas. The target makes a second mapping of the same memory for it, which
/// has no guards: mremap(2) does so where the old length is 0.
pub(super) fn save(
    memory: &Memory,
    caller: &mut Caller<'_>,
    areas: &[Area],
    gathered: &mut Gathered,
) -> Result<()> {
    let mut room = MOST;
    for Guard { start, end, .. } in gathered.guards.clone() {
        let len = end - start;
        if !areas.iter().any(|a| a.shared && a.start <= start && end <= a.end) {
            continue;
        }
        let args = [start, 0, len, libc::MREMAP_MAYMOVE as u64];
        let second = match room.checked_sub(len) {
            Some(left) => {
                room = left;
                caller.call(libc::SYS_mremap, &args)?
            }
            None => -1,
        };
        let Ok(second @ 1..) = u64::try_from(second) else {
            let what = format!(
                "shared memory at {start:#x} cannot be read, for it lies under guard pages"
            );
            gathered.obstacles.push(what);
            continue;
        };
        let read = read(memory, second, start, len, gathered);
        caller.expect(libc::SYS_munmap, &[second, len], "cannot unmap a second mapping")?;
        read?;
    }
    Ok(())
}

fn read(memory: &Memory, from: u64, to: u64, len: u64, gathered: &mut Gathered) -> Result<()> {
    let mut buffer = vec![0; CHUNK_MAX as usize];
    for at in (0..len).step_by(CHUNK_MAX as usize) {
        let piece = &mut buffer[..(len - at).min(CHUNK_MAX) as usize];
        memory.read(from + at, piece)?;
        for (start, bytes) in nonzero(piece) {
            gathered.hidden.push((to + at + start as u64, bytes.to_vec()));
        }
    }
    Ok(())
}
