// SPDX-License-Identifier: LGPL-2.1-only
//! Flags of mappings that were read before their process stood still, as they take longer than all the rest: the kernel
//! tells them in /proc/PID/smaps alone, for which it counts all pages. Whether they were so at the stop is
//! [confirmed](confirm) while the process goes on, by its copy, to which fork(2) gives the same mappings and flags.

use crate::abreast::{self, Aside};
use crate::error::{Error, Kind, Result};
use crate::proc::fds::Fd;
use crate::proc::maps::Vma;
use crate::proc::pagemap::Pagemap;
use crate::proc::tree::Kin;
use crate::proc::{Pid, Process};
use nix::sys::sysinfo::sysinfo;
use std::collections::HashMap;
use std::sync::Arc;

/// What is so long is worth knowing to be empty, in bytes.
const RESERVATION: u64 = 64 << 20;

/// The mappings of some processes before they stood still.
pub(crate) struct Before(HashMap<Pid, Vec<Vma>>);

/// Whether there is a userfaultfd(2) among descriptors.
pub(super) fn has_userfaultfd(fds: &[Fd]) -> bool {
    fds.iter().any(|fd| fd.target == "anon_inode:[userfaultfd]")
}

impl Before {
    /// Reads them, as far as they can be read.
    pub(crate) fn of(all: &[Kin]) -> Self {
        let read =
            |kin: &Kin| Some((kin.pid, Process::open(kin.pid).ok()?.maps_with_flags().ok()?));
        Self(abreast::each(all, 1, read).into_iter().flatten().collect())
    }

    /// Reads those of one process aside, for the next time that it stands still. Nobody forks until that has ended.
    pub(crate) fn aside(process: &Process) -> Option<Aside<Self>> {
        let process = process.clone();
        let read = move || Some((process.pid(), process.maps_with_flags().ok()?));
        abreast::aside(move || Self(read().into_iter().collect()))
    }

    /// The mappings of one that stands still by now, with the flags of before. None where some may have others that a
    /// copy would not show, or have none of before.
    pub(super) fn presume(&self, process: &Process, fds: &[Fd]) -> Option<Vec<Vma>> {
        let before = self.0.get(&process.pid())?;
        // What is locked or filled by somebody else is not so in a copy.
        let locked = process.status(process.main_thread()).ok()?.locked;
        if locked != 0 || has_userfaultfd(fds) {
            return None;
        }
        let swaps = sysinfo().map_or(true, |info| info.swap_total() != 0);
        let mut vmas = process.maps().ok()?;
        let same = |old: &Vma, vma: &Vma| (old.start, old.end) == (vma.start, vma.end);
        for vma in &mut vmas {
            let at = before.partition_point(|old| old.end <= vma.start);
            let old = before.get(at).filter(|old| old.start < vma.end)?;
            let file = |vma: &Vma| (vma.shared, vma.inode, vma.device);
            // How much is swapped out of shared memory changes at any moment.
            // MADV_DONTFORK: a copy does not have it.
            let hidden = old.flags.has("lo") || old.flags.has("dc");
            if file(old) != file(vma) || hidden || (vma.shared && swaps) {
                return None;
            }
            (vma.flags, vma.protection_key) = (old.flags, old.protection_key);
            vma.page_size = old.page_size;
            // What is empty is not looked through: reservations have terabytes. Small ones may be those in which threads
            // work for us. Of MADV_WIPEONFORK a copy does not tell.
            let large = vma.len() >= RESERVATION && !old.flags.has("wf");
            let empty = old.populated == 0 && same(old, vma) && large;
            vma.populated = if empty { 0 } else { u64::MAX };
        }
        Some(vmas)
    }
}

/// Makes sure that presumed mappings of a process that stands still have no pages where they are presumed to have none:
/// later it may have made some.
///
/// # Errors
/// Of [`Kind::Changed`]: there are some.
pub(crate) fn confirm_empty(presumed: &mut Option<Vec<Vma>>, pagemap: &Pagemap) -> Result<()> {
    let all = presumed.iter_mut().flatten();
    all.filter(|vma| vma.populated == 0).try_for_each(|vma| {
        vma.populated = u64::MAX;
        let found = pagemap.populated(vma.start, vma.end, false)?;
        if found.is_empty() { Ok(()) } else { Err(changed()) }
    })
}

/// Makes sure that presumed mappings were so when their process stood still: it does so still, or is a copy of it.
///
/// # Errors
/// Of [`Kind::Changed`]: they were not.
pub(crate) fn confirm(presumed: &[Vma], process: &Process) -> Result<()> {
    // Whether pages were written (soft-dirty) nobody asks, and what we track ourselves a copy does not.
    let mut expected = presumed.iter();
    let told = |vma: &Vma| {
        let flags = vma.flags.without("sd").without("uw");
        (vma.start, vma.end, vma.prot(), vma.shared, flags, vma.protection_key, vma.page_size)
    };
    let mut is_same = true;
    process.each_map_with_flags(&mut |now| {
        let is_so =
            |vma: &Vma| told(vma) == told(&now) && (vma.populated != 0 || now.populated == 0);
        is_same = expected.next().is_some_and(is_so);
        is_same
    })?;
    if !is_same || expected.next().is_some() {
        return Err(changed());
    }
    Ok(())
}

type Work = dyn Fn() -> Result<()> + Send + Sync;

/// A thread that [confirms](confirm) mappings of a process that stands still: for their flags the kernel needs as long as there is
/// memory. Nobody forks until it has ended.
pub(crate) struct Confirming {
    thread: Option<Aside<Result<()>>>,
    work: Arc<Work>,
}

impl Confirming {
    pub(crate) fn begin(presumed: Vec<Vma>, process: &Process) -> Self {
        let process = process.clone();
        let work: Arc<Work> = Arc::new(move || confirm(&presumed, &process));
        let theirs = Arc::clone(&work);
        Self { thread: abreast::aside(move || theirs()), work }
    }

    /// # Errors
    /// As [`confirm`].
    pub(crate) fn end(&mut self) -> Result<()> {
        let done = self.thread.take().and_then(Aside::join);
        done.unwrap_or_else(|| (self.work)())
    }
}

impl Drop for Confirming {
    fn drop(&mut self) {
        self.thread.take().map(Aside::join);
    }
}

fn changed() -> Error {
    let text = "what the program has told the kernel about its memory (madvise(2)) has changed while it was saved";
    Error::new(text).of(Kind::Changed)
}
