// SPDX-License-Identifier: LGPL-2.1-only
//! Huge pages for memory that is filled from end to end, where the kernel gives them to whoever asks for them
//! (transparent_hugepage/enabled is "madvise"): they take half of the time of ordinary ones. There is no more memory in use
//! for it, as only what was full becomes one. A mapping that has asked for them (MADV_HUGEPAGE) never is again as one that
//! has not, so they are filled elsewhere and moved: UFFDIO_MOVE (ioctl_userfaultfd(2), Linux 6.8). Where that may not be,
//! pages are ordinary ones.

use super::mapping::{Mapping, no_memory};
use super::space::HUGE;
use crate::error::{Because, Result};
use crate::image::PAGE;
use crate::proc::uffd::{Request, USER_MODE_ONLY, Uffd, feature};
use ckpt_abi::image::{VmaKind, VmaRecord, vma_flag};
use memmap2::{Advice, MmapMut};
use nix::errno::Errno;
use std::fs;

const ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const TRIES: usize = 4;

/// A userfaultfd(2) that moves pages. What is registered with it is as before when it is closed.
pub(super) struct Mover(Uffd);

impl Mover {
    /// None where there is nothing to gain, or pages cannot be moved.
    pub(super) fn new() -> Option<Self> {
        fs::read_to_string(ENABLED).ok().filter(|it| it.contains("[madvise]"))?;
        Uffd::new(USER_MODE_ONLY, feature::MOVE).ok().map(Self)
    }

    /// Lets pages be moved into a mapping: whoever touches one of it that is not there gets SIGBUS until this is closed. The
    /// kernel parts no mapping for it, as it is for a whole one.
    pub(super) fn register(&self, mapping: &Mapping) -> bool {
        self.0.register(mapping.at(), mapping.len()).is_ok()
    }

    /// Moves what is in a room to an address where nothing is. False: it could not be, or not all of it; then there is
    /// memory, and what is in it has to be written yet.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn take(&self, room: &Room, to: u64) -> Result<bool> {
        let mut done = 0;
        let part = |request: Request, done: u64, len: u64| {
            self.0.put(request, to + done, room.at() + done, len)
        };
        // The kernel may be busy with a page at the moment (EAGAIN), and says how many bytes it has come.
        for _ in 0..TRIES {
            let (result, moved) = part(Request::Move, done, HUGE - done);
            if result.is_ok() {
                return Ok(true);
            }
            done += moved;
        }
        // It may have come farther than it says.
        for at in (done..HUGE).step_by(PAGE as usize) {
            let copy = |_| matches!(part(Request::Copy, at, PAGE).0, Ok(()) | Err(Errno::EEXIST));
            if !(0..TRIES).any(copy) {
                let what = || format!("cannot put memory at {to:#x}");
                return match Errno::last() {
                    Errno::ENOMEM => Err(no_memory(what())),
                    other => Err(other).because(what),
                };
            }
        }
        Ok(false)
    }
}

/// Whether a mapping may have huge pages that its program has not asked for.
pub(super) fn is_for(record: &VmaRecord) -> bool {
    // Pages of hugetlb are huge already, and UFFDIO_MOVE takes none.
    let others = vma_flag::NOHUGEPAGE
        | vma_flag::GROWSDOWN
        | vma_flag::DROPPABLE
        | vma_flag::REGION
        | vma_flag::HUGETLB;
    record.kind == VmaKind::Private as u32 && record.flags & others == 0
}

/// Room for a huge page, which is made when it is written to.
pub(super) struct Room(MmapMut);

impl Room {
    /// # Errors
    /// There is no memory for it.
    pub(super) fn new() -> Result<Self> {
        // A mapping begins at a multiple of a small page.
        let mapping = MmapMut::map_anon(2 * HUGE as usize).because(|| "cannot map memory")?;
        let _ = mapping.advise(Advice::HugePage);
        Ok(Self(mapping))
    }

    fn at(&self) -> u64 {
        (self.0.as_ptr().addr() as u64).next_multiple_of(HUGE)
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        let skip = self.at() as usize - self.0.as_ptr().addr();
        &mut self.0[skip..][..HUGE as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn pages_of_hugetlb_are_never_moved() {
        let kind = VmaKind::Private as u32;
        let record = VmaRecord { kind, ..VmaRecord::new_zeroed() };
        assert!(is_for(&record));
        assert!(!is_for(&VmaRecord { flags: vma_flag::HUGETLB, ..record }));
    }

    #[test]
    fn what_is_moved_is_there_and_the_room_is_empty() {
        let Some(mover) = Mover::new() else { return };
        let mut room = Room::new().unwrap();
        let mut target = Room::new().unwrap();
        let mapping = Mapping::of_another(target.0.as_ptr().addr() as u64, 2 * HUGE);
        assert!(mover.register(&mapping));
        room.bytes().fill(7);
        assert!(mover.take(&room, target.at()).unwrap());
        assert!(room.bytes().iter().all(|byte| *byte == 0));
        room.bytes().fill(8);
        assert!(!mover.take(&room, target.at()).unwrap(), "something was there");
        drop((mover, room));
        assert!(target.bytes().iter().all(|byte| *byte == 7));
    }
}
