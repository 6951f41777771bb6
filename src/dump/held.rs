// SPDX-License-Identifier: LGPL-2.1-only
//! What is held of a process in place of a picture of it (phase 5): where little of it has to be read, it stands still
//! until that is read. fork(2) copies all page tables, and each page that the program writes to afterwards.
//!
//! A picture shows more than memory: flags of mappings and policies are read when the process has gone on, and have to be
//! those of before the stop. One that has set a flag and takes it back meanwhile goes on to take it back after a restart,
//! too. Who maps and unmaps memory all the time gets pictures.

use super::phase3_gather::Still;
use super::rolling::Rolling;
use crate::error::{Error, Kind, Result};
use crate::proc::Process;
use crate::proc::maps::Vma;
use crate::proc::pagemap::Pagemap;
use crate::ptrace::memory::Memory;

/// The most that is held, in bytes, if there is little else that needs room.
const MOST: u64 = 16 << 20;
/// What a mapping needs, a thread, a descriptor, and so many bytes of memory (its pieces in the image).
const NEEDS: [u64; 3] = [512, 4096, 1024];
const MEMORY: u64 = 4096;
/// A quarter of memory that is copied takes about as long as fork(2) with what follows it; and without any it takes as
/// long as so many bytes.
const SHARE: u64 = 4;
const FORK: u64 = 16 << 20;
/// How many checkpoints have pictures after one that could not do without.
const RESTLESS: u64 = 30;

/// Makes room before the program stands still, for what the last checkpoint needed and some more, and has the files that the
/// program maps in memory: it does not stand still for a disk or a server.
pub(super) fn prepare(known: &mut Rolling, process: &Process) {
    let wanted = known.expected + known.expected / 4;
    if (1..=MOST).contains(&wanted) && known.restless == 0 {
        // Each page of it is there.
        known.room.resize(wanted as usize, 1);
        let _ = touch(process);
    }
}

fn touch(process: &Process) -> Result<()> {
    let (vmas, memory, pagemap) = (process.maps()?, Memory::open(process)?, Pagemap::of(process)?);
    let is_whole = |vma: &&Vma| vma.inode != 0 || vma.name == "[vdso]";
    let is_file = |vma: &&Vma| vma.read && !vma.shared && is_whole(vma) && vma.len() <= MOST;
    let mut left = 2 * MOST;
    for vma in vmas.iter().filter(is_file) {
        left = left.saturating_sub(vma.len());
        if left == 0 {
            break;
        }
        let mut absent = Vec::new();
        pagemap.entries(vma.start, vma.end, |page, entry| {
            absent.extend(Some(page).filter(|_| !entry.present()));
        })?;
        // The kernel brings those around it, too. Behind the end of a file there is nothing.
        absent.iter().all(|page| memory.read_some(*page, &mut [0]).is_ok());
    }
    Ok(())
}

/// Whether what remains to be read of a process is held.
pub(super) fn is_little(bytes: u64, still: &Still<'_>, known: &mut Rolling) -> bool {
    known.expected = bytes;
    if known.restless > 0 {
        known.restless -= 1;
        return false;
    }
    let gathered = &still.gathered;
    let counts = [gathered.vmas.len(), gathered.threads.len(), gathered.descriptors.len()];
    let resident = still.equipped.process.resident().unwrap_or(0);
    let needed: u64 = counts.iter().zip(NEEDS).map(|(count, each)| *count as u64 * each).sum();
    // Whether keys of memory (pkeys(7)) are as they were cannot be told later.
    let keyed = |vma: &Vma| vma.protection_key != 0;
    let is_keyed = still.presumed.iter().flatten().any(keyed);
    let most = MOST.saturating_sub(needed + resident / MEMORY);
    !is_keyed && bytes <= most && bytes <= (resident + FORK) / SHARE && is_there(still)
}

/// Whether all that remains to be read is in memory.
fn is_there(still: &Still<'_>) -> bool {
    let Ok(pagemap) = Pagemap::of(&still.equipped.process) else { return false };
    let later = still.areas.iter().filter(|area| !area.at_once);
    later.flat_map(|area| area.known.iter().flatten()).all(|pages| {
        let mut all = true;
        let looked = pagemap.entries(pages.start, pages.end, |_, entry| all &= entry.present());
        looked.is_ok() && all
    })
}

/// Takes note of why a checkpoint failed of which memory was held.
pub(super) fn failed(error: Error, known: &mut Rolling) -> Error {
    if error.kind() == Kind::Changed {
        known.restless = RESTLESS;
    }
    error
}
