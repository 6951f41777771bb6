// SPDX-License-Identifier: LGPL-2.1-only
//! What the periodic checkpoints of a program know of those before them, so that the next has less to do. The monitor has
//! it between them, a dumper takes it and gives it back changed; who does not give it back leaves nothing to go by, and the
//! next checkpoint is a whole one.
//!
//! Two files alternate: the older one, under a hidden name, is brought up to date ([`Base`]) and changes its name with the
//! newer one. Which pages differ from those of the older the [`Tracker`] tells, where there is one: what was found at each
//! stop of the program is kept until the file that lacks it is sealed again. What is not tracked is read, and compared by
//! its checksum.

mod found;
mod handing;
mod same;

use super::pageset::PageSet;
use crate::error::Result;
use crate::fault::{Point, reach};
use crate::image::base::Base;
use crate::image::older::{Id, Older, Over, Renewal};
use crate::image::sink::Sink;
use crate::proc::Process;
use crate::proc::maps::Vma;
use crate::proc::pagemap::Pagemap;
use crate::proc::tracking::Tracker;
use crate::proc::tree::Kin;
use crate::ptrace::waits;
use crate::resource::memory::{Area, Pages};
use crate::resource::presumed::{Before, Confirming};
use ckpt_abi::image::VmaRecord;
use nix::errno::Errno;
pub(super) use same::Same;
use std::cell::RefCell;
use std::ops::Range;
use std::os::fd::OwnedFd;

/// With more mappings a program comes near to the most that it may have (vm.max_map_count), and what is tracked does not
/// become one with what is not.
const MOST_AREAS: usize = 16_000;
/// With more memory that is not tracked there is nothing to gain, in bytes of addresses.
const MOST_UNKNOWN: u64 = 1 << 36;
/// User memory.
const ALL: Range<u64> = 0..0x7fff_ffff_f000;

/// What is tracked unless all is to be: what is so long, in bytes, and has been so since the last stop. A mapping that is
/// tracked and one beside it that is not do not become one, as they would else, and whoever moves both as one meets EFAULT
/// (mremap(2)): what is put together of pieces so is rarely long, and what comes and goes is not worth it.
const LARGE: u64 = 32 << 20;

/// How late somebody may write to a page that he has pinned before a stop, in nanoseconds. A copy by another process
/// (process_vm_writev(2)) waits for a page of its own memory. Of asynchronous I/O the requests of a slow disk: its driver
/// gives them up after six tries of 30 seconds each (SD_TIMEOUT and SD_MAX_RETRIES, drivers/scsi/sd.h), and what it does
/// about errors between them takes time; a file system of another host may wait longer. What a thread of the program reads
/// itself has ended before that thread stands still.
const COPIES: u64 = 1_000_000_000;
const REQUESTS: u64 = 600 * COPIES;

/// See the module.
#[derive(Default)]
pub(crate) struct Rolling {
    /// All memory is to be tracked.
    pub(super) all: bool,
    /// The image goes to another machine, as whose the last one that the process has may be, too.
    pub(crate) moves: bool,
    /// Flags of mappings are read while the program stands still.
    exact: bool,
    /// The large areas of the last stop.
    before: Vec<[u64; 2]>,
    older: Option<Older>,
    older_generation: u64,
    /// The file of the newest checkpoint, and its number.
    last: Option<(Id, u64)>,
    tracker: Option<Tracker>,
    /// What the control page says as long as nobody else has begun to track ([`Control::tracked`]).
    ///
    /// [`Control::tracked`]: ckpt_abi::region::Control::tracked
    mark: u32,
    intervals: Vec<Interval>,
    /// What the last stop has found that is to be tracked.
    found: Vec<[u64; 2]>,
    /// What has to be read of the next one, by the last one, in bytes.
    pub(super) expected: u64,
    /// For so many checkpoints nothing is held ([`super::held`]): the program maps and unmaps memory all the time.
    pub(super) restless: u64,
    /// Room for what is held.
    pub(super) room: Vec<u8>,
    /// What is known of the flags of its mappings, and who confirms what was presumed of them.
    flags: Option<Before>,
    confirms: Option<Confirming>,
}

/// What was written to between two stops of the program.
struct Interval {
    /// The number of the checkpoint at whose stop it ended.
    generation: u64,
    /// When that was, and the last stop behind which nobody is late any more at it, in nanoseconds of CLOCK_MONOTONIC.
    when: [u64; 2],
    pages: PageSet,
    /// The memory of which that checkpoint has all: nothing was left out, nor saved in another way.
    whole: Vec<[u64; 2]>,
}

impl Rolling {
    /// For a program that moves: its memory is tracked from the first round on.
    pub(crate) fn moving(process: &Process, exact: bool) -> Self {
        let maps = process.maps().unwrap_or_default();
        let large = maps.iter().filter(|vma| vma.end - vma.start >= LARGE);
        let before = large.map(|vma| [vma.start, vma.end]).collect();
        Self { moves: true, exact, before, ..Self::default() }
    }

    /// What is known of the flags of mappings before these stand still; where they `end`, it would only be read twice.
    pub(super) fn before(known: Option<&RefCell<Self>>, ends: bool, all: &[Kin]) -> Before {
        if let Some(flags) = known.and_then(|known| known.borrow_mut().flags.take()) {
            return flags;
        }
        Before::of(if known.map_or(ends, |known| known.borrow().exact) { &[] } else { all })
    }

    /// Does something that takes a while; of a program that moves and goes on the flags are read meanwhile for its next stop,
    /// which would only be later by that.
    pub(super) fn meanwhile<T>(
        (known, ends): (Option<&RefCell<Self>>, bool),
        own: &Process,
        work: impl FnOnce() -> T,
    ) -> T {
        let known = known.filter(|known| !ends && known.borrow().moves && !known.borrow().exact);
        let reads = known.and_then(|_| Before::aside(own));
        let done = work();
        if let Some((known, reads)) = known.zip(reads) {
            known.borrow_mut().flags = reads.join();
        }
        done
    }

    /// Prepares the older checkpoint for one behind `stub` bytes, before the program stands still.
    pub(super) fn prepare(&mut self, stub: u64) -> Option<Over> {
        let older = self.older.as_ref()?;
        let path = older.path().to_owned();
        let opened = older.for_writing();
        let base = opened.as_ref().and_then(|file| Base::of(file, &path, stub));
        let over = opened.zip(base).map(|(file, base)| Over { file, path, base });
        if over.is_none() {
            self.remove_older();
        }
        over
    }

    /// Has what was presumed of mappings confirmed until the end, where the program moves, which stands still.
    pub(super) fn presume(&mut self, presumed: &mut Option<Vec<Vma>>, process: &Process) {
        if self.moves {
            self.confirms = presumed.take().map(|all| Confirming::begin(all, process));
        }
    }

    /// Whether that was so.
    ///
    /// # Errors
    /// It was not.
    fn confirm(&mut self) -> Result<()> {
        self.confirms.take().map_or(Ok(()), |mut it| it.end())
    }

    /// For the file of the next one. From now on the older one may be changed.
    pub(super) fn renewal(&mut self, over: Option<Over>) -> Renewal {
        self.older = None;
        Renewal { over, last: self.last.map(|(id, _)| id) }
    }

    /// Takes note of a checkpoint of a process, and its number, that was sealed.
    ///
    /// # Errors
    /// It is none: what was presumed was not so, or whoever has it cannot use it.
    pub(super) fn settle(
        known: Option<&RefCell<Self>>,
        sink: &mut dyn Sink,
        generation: u64,
    ) -> Result<()> {
        known.map_or(Ok(()), |known| known.borrow_mut().confirm())?;
        let kept = sink.kept()?;
        if let Some((known, kept)) = known.zip(kept) {
            known.borrow_mut().sealed(kept, generation);
        }
        Ok(())
    }

    /// A checkpoint is whole: its file, and what has become of the one that had the name.
    fn sealed(&mut self, (older, id): (Option<Older>, Id), generation: u64) {
        self.older_generation = self.last.map_or(generation, |(_, before)| before);
        if older.is_none() {
            self.older_generation = generation;
        }
        (self.older, self.last) = (older, Some((id, generation)));
        self.forget();
    }

    /// Forgets what counts for no checkpoint any more, and joins what is before the older one: by the second, since periods may
    /// be short, or by a thirtieth of the time by which somebody may be late.
    fn forget(&mut self) {
        let first = self.older_generation;
        let is_older = |interval: &Interval| interval.generation == first;
        let since = self.intervals.iter().find(|it| is_older(it)).map_or(u64::MAX, |it| it.when[1]);
        self.intervals.retain(|it| it.generation >= first || it.when[0] >= since);
        self.intervals.dedup_by(|next, kept| {
            let unit = ((next.when[0] - next.when[1]) / 30).max(COPIES);
            let part = |it: &Interval| it.when[0] / unit;
            let joins = next.generation < first && part(next) == part(kept);
            if joins {
                kept.pages.join(&next.pages);
                (kept.generation, kept.when) = (next.generation, next.when);
            }
            joins
        });
    }

    /// Removes the older checkpoint.
    pub(crate) fn remove_older(&mut self) {
        self.older.take().into_iter().for_each(Older::remove);
    }

    /// Whether the program is to be tracked, and is not.
    pub(super) fn wants_tracker(&self, process: &Process, areas: &[Area]) -> bool {
        let any = areas.iter().any(|area| self.wants(area));
        // By somebody else: what one of two rearms the other does not hear of.
        let is_free = |map: Pagemap| {
            !areas.iter().any(|area| is_trackable(area) && map.is_tracked(area.start))
        };
        self.tracker.is_none()
            && areas.len() < MOST_AREAS
            && any
            && Tracker::is_possible()
            && Pagemap::of(process).is_ok_and(is_free)
    }

    /// Tracks from the next stop on, by a userfaultfd that the program's memory was made with, for which the control page
    /// has this mark.
    pub(super) fn track(&mut self, fd: OwnedFd, mark: u32) {
        (self.tracker, self.mark) = (Tracker::begin(fd), mark);
        self.intervals.clear();
        reach(Point::Tracked);
    }

    fn lose(&mut self) {
        (self.tracker, self.intervals) = (None, Vec::new());
    }

    /// Looks at the mark in the control page of a process that stands still: with another than ours somebody else tracks it.
    /// The kernel does not tell whose an area is, and what one of two rearms the other does not hear of.
    pub(super) fn meets(&mut self, mark: u32) {
        if mark != self.mark {
            self.lose();
        }
    }

    /// Asks what was written to since this was asked last, for a checkpoint of this number; nobody else may begin to track
    /// meanwhile. The program may have asynchronous I/O under way (`has_rings`). It stands still, or has gone on from a stop
    /// and is read behind this: what a thread of it is just having written to a page that was asked about (O_DIRECT) is there
    /// at its next stop, behind which that page is read again ([`Self::same`]).
    pub(super) fn look(
        &mut self,
        (process, has_rings): (&Process, bool),
        (areas, vmas): (&[Area], &[VmaRecord]),
        generation: u64,
    ) {
        let others = self.clear_found();
        if self.tracker.is_some() {
            match self.written(process, (areas, vmas), &others) {
                Some((pages, found)) => {
                    let whole = areas.iter().filter(|area| is_trackable(area));
                    let whole = whole.map(|area| [area.start, area.end]).collect();
                    let (now, late) = (waits::now(), if has_rings { REQUESTS } else { COPIES });
                    let when = [now, now.saturating_sub(late)];
                    self.note(Interval { generation, when, pages, whole });
                    self.found = found;
                }
                None => self.lose(),
            }
            reach(Point::Rearmed);
        }
        let large = |area: &&Area| is_trackable(area) && area.end - area.start >= LARGE;
        self.before = areas.iter().filter(large).map(|area| [area.start, area.end]).collect();
    }

    /// One whose checkpoint has failed is a part of that of the next, which has its number.
    fn note(&mut self, mut new: Interval) {
        let failed = self.intervals.pop_if(|last| last.generation == new.generation);
        failed.iter().for_each(|failed| new.pages.join(&failed.pages));
        self.intervals.push(new);
    }

    /// Has pages that a checkpoint could not read count as written to behind its stop: the next one reads them, or refuses.
    pub(super) fn read_again(&mut self, pages: Vec<Range<u64>>) {
        let pages = PageSet::of(pages.into_iter());
        self.intervals.last_mut().into_iter().for_each(|last| last.pages.join(&pages));
    }

    /// What was written to since it was asked last, with all that is not tracked and what the `others` have, and what of that
    /// is to be tracked in this stop. None: it is not known.
    fn written(
        &self,
        process: &Process,
        (areas, vmas): (&[Area], &[VmaRecord]),
        others: &[[u64; 2]],
    ) -> Option<(PageSet, Vec<[u64; 2]>)> {
        let pagemap = Pagemap::of(process).ok()?;
        let (mut unknown, mut found, mut bytes) = (Vec::new(), Vec::new(), 0);
        // By now there may be nothing at all.
        for [start, end] in others {
            unknown.extend(pagemap.populated(*start, *end, false).ok()?);
        }
        for area in areas.iter().filter(|area| is_trackable(area)) {
            if pagemap.is_tracked(area.start) {
                continue;
            }
            if self.wants(area) {
                // It may be a reservation of terabytes.
                unknown.extend(pagemap.there(area.start, area.end, self.moves).ok()?);
                found.push([area.start, area.end]);
            } else {
                unknown.push(area.start..area.end);
                bytes += area.end - area.start;
            }
        }
        if areas.len() > MOST_AREAS || bytes > MOST_UNKNOWN {
            return None;
        }
        let mut all = PageSet::of(pagemap.rearm(ALL).ok()?.into_iter());
        all.join(&PageSet::of(unknown.into_iter()));
        match self.moves {
            true => found.clear(),
            false => self.add_neighbours(&pagemap, (areas, vmas), &mut found),
        }
        Some((all, found))
    }

    /// What is as a checkpoint of this run has it that this began with; None: nothing is known. What was written to before
    /// that checkpoint does not count as such, too: whoever else had pinned such a page for writing may have been late
    /// ([`COPIES`], [`REQUESTS`]), and the kernel does not tell that. Another run of the same name may have put its own file in the
    /// place of ours, under the same number of an inode.
    pub(super) fn same(&self, base: &Base, run: u64) -> Option<Same<'_>> {
        self.tracker.as_ref().filter(|_| base.is_of([run, self.older_generation]))?;
        self.same_but(PageSet::of(base.with_locks().into_iter()))
    }

    fn same_but(&self, mut differing: PageSet) -> Option<Same<'_>> {
        let since = self.older_generation;
        let first = self.intervals.iter().find(|interval| interval.generation == since)?;
        let counts = |it: &&Interval| it.generation >= since || it.when[0] >= first.when[1];
        let counted = self.intervals.iter().filter(counts);
        counted.for_each(|interval| differing.join(&interval.pages));
        Some(Same { differing, whole: &first.whole })
    }
}

/// Whether the kernel's word on pages of an area is all there is to know: private memory of no file. Of a file MADV_DONTNEED
/// brings other content back, and does not count as writing. What is registered becomes a mapping of its own, which does not
/// move together with any other (mremap(2), EFAULT): a part of one is not.
pub(super) fn is_trackable(area: &Area) -> bool {
    let plain = area.pages == Pages::Populated && area.known.is_none();
    plain && !area.part && !area.at_once && !area.shared && !area.streamed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stops each half second, at which the program has rings or not; how many pages count as written to, one a stop.
    fn written(stops: u64, has_rings: bool) -> usize {
        let mut known = Rolling::default();
        for generation in 1..=stops {
            let (now, late) =
                (40 * COPIES + generation * COPIES / 2, if has_rings { 30 } else { 1 });
            let pages = PageSet::of(std::iter::once(generation << 12..(generation + 1) << 12));
            let when = [now, now - late * COPIES];
            known.intervals.push(Interval { generation, when, pages, whole: Vec::new() });
            known.older_generation = generation.saturating_sub(1).max(1);
            known.forget();
        }
        assert!(known.intervals.len() <= 34);
        let same = known.same_but(PageSet::default()).unwrap();
        let pages: Vec<_> = (1..=stops).map(|page| page << 12..(page + 1) << 12).collect();
        let [_, other] = same.differing.split(&pages);
        other.iter().map(|range| (range.end - range.start) as usize >> 12).sum()
    }

    #[test]
    fn who_has_pinned_a_page_may_be_late() {
        // That since the older checkpoint, its own, and those of the second before it, by whole seconds.
        assert_eq!(written(100, false), 5);
        assert_eq!(written(100, true), 63);
        assert_eq!(written(3, true), 3);
    }

    #[test]
    fn what_a_failed_checkpoint_has_asked_counts_for_the_next() {
        let mut known = Rolling { older_generation: 1, ..Rolling::default() };
        for page in [3, 5] {
            let pages = PageSet::of(std::iter::once(page << 12..(page + 1) << 12));
            let whole = vec![[page << 12, 8 << 12]];
            known.note(Interval { generation: 1, when: [2 * COPIES, COPIES], pages, whole });
        }
        let same = known.same_but(PageSet::default()).unwrap();
        // Of the failed one nothing is said to be whole.
        assert_eq!(same.split(&[2 << 12..9 << 12; 1])[0], [6 << 12..8 << 12; 1]);
        let pages = PageSet::of([3 << 12..4 << 12, 5 << 12..6 << 12].into_iter());
        assert_eq!(same.differing, pages);
    }

    #[test]
    fn what_could_not_be_read_is_read_again() {
        let page = |number: u64| number << 12..(number + 1) << 12;
        let mut known = Rolling { older_generation: 1, ..Rolling::default() };
        known.read_again(vec![page(2)]);
        for generation in [1, 2] {
            let (pages, whole) = (PageSet::default(), vec![[0, 8 << 12]]);
            known.note(Interval { generation, when: [2 * COPIES, COPIES], pages, whole });
            known.read_again(vec![page(generation + 2)]);
        }
        // For the one that was begun upon the first; and upon the second.
        let read = |known: &Rolling| {
            known.same_but(PageSet::default()).unwrap().split(&[0..8 << 12; 1])[1].clone()
        };
        assert_eq!(read(&known), [3 << 12..5 << 12; 1]);
        known.intervals.remove(0);
        known.older_generation = 2;
        assert_eq!(read(&known), [page(4)]);
    }

    #[test]
    fn who_finds_anothers_mark_forgets_its_own() {
        let Some(tracker) = Tracker::own() else { return };
        let mut known = Rolling { tracker: Some(tracker), mark: 1, ..Rolling::default() };
        let we = Process::own().unwrap();
        for generation in [1, 2] {
            known.meets(1);
            known.look((&we, false), (&[], &[]), generation);
        }
        assert!(known.tracker.is_some());
        assert_eq!(known.intervals.len(), 2);
        known.meets(2);
        known.look((&we, false), (&[], &[]), 3);
        assert!(known.tracker.is_none());
        assert!(known.intervals.is_empty());
    }

    #[test]
    fn what_a_checkpoint_was_without_is_not_as_it_was() {
        let range = |(start, end): (u64, u64)| start * 0x1000..end * 0x1000;
        let ranges = |all: &[(u64, u64)]| all.iter().copied().map(range).collect::<Vec<_>>();
        let whole = [[0x2000, 0x4000], [0x4000, 0x5000], [0x8000, 0x9000]];
        let differing = PageSet::of(ranges(&[(3, 4), (6, 7)]).into_iter());
        let known = Same { differing, whole: &whole };
        let [same, other] = known.split(&ranges(&[(1, 5), (6, 7), (8, 10), (12, 13)]));
        assert_eq!(same, ranges(&[(2, 3), (4, 5), (8, 9)]));
        assert_eq!(other, ranges(&[(1, 2), (3, 4), (6, 7), (9, 10), (12, 13)]));
    }
}
