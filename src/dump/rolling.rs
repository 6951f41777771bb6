// SPDX-License-Identifier: LGPL-2.1-only
//! What the periodic checkpoints of a program know of those before them, so that the next has less to do. The monitor has
//! it between them, a dumper takes it and gives it back changed; who does not give it back leaves nothing to go by, and the
//! next checkpoint is a whole one.
//!
//! Two files alternate: the older one, under a hidden name, is brought up to date ([`Base`]) and changes its name with the
//! newer one. Which pages differ from those of the older the [`Tracker`] tells, where there is one: what was found at each
//! stop of the program is kept until the file that lacks it is sealed again. What is not tracked is read, and compared by
//! its checksum.

use super::pageset::PageSet;
use crate::error::{Because, Result};
use crate::fault::{Point, reach};
use crate::image::base::Base;
use crate::image::older::{Id, Older, Over, Renewal};
use crate::image::sink::Sink;
use crate::order;
use crate::proc::maps::Vma;
use crate::proc::pagemap::Pagemap;
use crate::proc::tracking::Tracker;
use crate::proc::tree::Kin;
use crate::proc::{Process, line};
use crate::ptrace::waits;
use crate::resource::memory::{Area, Pages};
use crate::resource::presumed::{Before, Confirming};
use nix::errno::Errno;
use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

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
    /// Who confirms what was presumed of the mappings of a program that moves.
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

/// What is as it is in an older checkpoint.
pub(super) struct Same<'a> {
    differing: PageSet,
    whole: &'a [[u64; 2]],
}

impl Same<'_> {
    /// Of ordered ranges those that are as they were, and those that may not be.
    pub(super) fn split(&self, ranges: &[Range<u64>]) -> [Vec<Range<u64>>; 2] {
        let (mut inside, mut outside) = (Vec::new(), Vec::new());
        for range in ranges {
            let mut at = range.start;
            let first = self.whole.partition_point(|[_, end]| *end <= at);
            for [start, end] in
                self.whole[first..].iter().take_while(|[start, _]| *start < range.end)
            {
                let (start, end) = (at.max(*start), range.end.min(*end));
                outside.extend(Some(at..start).filter(|gap| !gap.is_empty()));
                inside.push(start..end);
                at = end;
            }
            outside.extend(Some(at..range.end).filter(|rest| !rest.is_empty()));
        }
        let [same, mut other] = self.differing.split(&inside);
        other.append(&mut outside);
        order::by_key(&mut other, |range| (range.start, 0));
        [same, other]
    }
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
        Before::of(if known.map_or(ends, |known| known.borrow().exact) { &[] } else { all })
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

    fn wants(&self, area: &Area) -> bool {
        let was = |[start, end]: &[u64; 2]| *start == area.start && *end <= area.end;
        is_trackable(area) && (self.all || self.before.iter().any(was))
    }

    /// Tracks from the next stop on, by a userfaultfd that the program's memory was made with, for which the control page
    /// has this mark.
    pub(super) fn track(&mut self, fd: OwnedFd, mark: u32) {
        (self.tracker, self.mark) = (Tracker::begin(fd), mark);
        self.intervals.clear();
        reach(Point::Tracked);
    }

    /// Whether this stop has found memory that is to be tracked, and is not.
    pub(super) fn has_found(&self) -> bool {
        !self.found.is_empty()
    }

    /// Tracks what this stop has found: while the program stands still, since a part of a mapping would be one of its own.
    /// Until the next stop all of it counts as written to. When its picture is taken: what is tracked may become one with
    /// what is so already.
    pub(super) fn track_new(&mut self, has_picture: bool) {
        let found = std::mem::take(&mut self.found);
        let Some(tracker) = self.tracker.as_ref().filter(|_| has_picture) else { return };
        let mut found = found.into_iter();
        // ESRCH: its memory is gone, the program has executed another.
        if found.any(|[start, end]| tracker.register(&(start..end)) == Err(Errno::ESRCH)) {
            (self.tracker, self.intervals) = (None, Vec::new());
        }
    }

    /// Asks what was written to since the last stop, while the program stands still for a checkpoint of this number.
    /// It may have asynchronous I/O under way (`has_rings`). With another mark in its control page than ours somebody else
    /// tracks it: the kernel does not tell whose an area is, and what one of two rearms the other does not hear of.
    pub(super) fn look(
        &mut self,
        (process, has_rings, mark): (&Process, bool, u32),
        areas: &[Area],
        generation: u64,
    ) {
        if mark != self.mark {
            (self.tracker, self.intervals) = (None, Vec::new());
        }
        if self.tracker.is_some() {
            match self.written(process, areas) {
                Some((pages, found)) => {
                    let whole = areas.iter().filter(|area| is_trackable(area));
                    let whole = whole.map(|area| [area.start, area.end]).collect();
                    let (now, late) = (waits::now(), if has_rings { REQUESTS } else { COPIES });
                    let when = [now, now.saturating_sub(late)];
                    self.intervals.push(Interval { generation, when, pages, whole });
                    self.found = found;
                }
                None => (self.tracker, self.intervals) = (None, Vec::new()),
            }
            reach(Point::Rearmed);
        }
        let large = |area: &&Area| is_trackable(area) && area.end - area.start >= LARGE;
        self.before = areas.iter().filter(large).map(|area| [area.start, area.end]).collect();
    }

    /// What was written to since it was asked last, with all that is not tracked, and what of that is to be. None: it is not
    /// known.
    fn written(&self, process: &Process, areas: &[Area]) -> Option<(PageSet, Vec<[u64; 2]>)> {
        let pagemap = Pagemap::of(process).ok()?;
        let (mut unknown, mut found, mut bytes) = (Vec::new(), Vec::new(), 0);
        for area in areas.iter().filter(|area| is_trackable(area)) {
            if pagemap.is_tracked(area.start) {
                continue;
            }
            if self.wants(area) {
                // It may be a reservation of terabytes.
                unknown.extend(pagemap.filled(area.start, area.end).ok()?);
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

    /// Gives it to the other end of a line.
    ///
    /// # Errors
    /// There is no memory, or nobody at the other end.
    pub(crate) fn give(&self, line: &UnixDatagram) -> Result<()> {
        let why = || "cannot tell the monitor of a checkpoint";
        let mut words = Vec::new();
        let (last, number) = self.last.map_or(([0; 2], 0), |(id, number)| (id, number));
        let older = self.older.as_ref().and_then(|older| Some((older.id()?, older.path())));
        let (id, path) =
            older.map_or(([0; 2], &b""[..]), |(id, path)| (id, path.as_os_str().as_bytes()));
        words.extend([
            last[0],
            last[1],
            number,
            id[0],
            id[1],
            self.older_generation,
            path.len() as u64,
        ]);
        words.extend([self.expected, self.restless, u64::from(self.mark)]);
        words.extend([self.intervals.len() as u64, self.before.len() as u64]);
        words.extend_from_slice(self.before.as_flattened());
        for Interval { generation, when, pages, whole } in &self.intervals {
            words.extend([*generation, pages.words().len() as u64, whole.len() as u64]);
            words.extend(when);
            words.extend_from_slice(pages.words());
            words.extend_from_slice(whole.as_flattened());
        }
        let memory = nix::sys::memfd::memfd_create(c"ckpt", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
        let mut memory = File::from(memory.because(why)?);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write_all(&bytes).and_then(|()| memory.write_all(path)).because(why)?;
        let tracker =
            self.tracker.as_ref().map(|tracker| std::os::fd::AsFd::as_fd(tracker).as_raw_fd());
        let fds: Vec<_> = std::iter::once(memory.as_raw_fd()).chain(tracker).collect();
        line::send(line, &fds).because(why)
    }

    /// What the other end has given.
    pub(crate) fn take(line: &UnixDatagram) -> Option<Self> {
        let mut fds = line::receive(line).ok()?.into_iter();
        let memory = File::from(fds.next()?);
        let mut bytes = vec![0; memory.metadata().ok()?.len() as usize];
        memory.read_exact_at(&mut bytes, 0).ok()?;
        let mut words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next();
        let [dev, ino, number, old_dev, old_ino, older_generation, path_len] =
            std::array::from_fn(|_| next());
        let [expected, restless, mark, count, large] = std::array::from_fn(|_| next());
        let before: Vec<_> = (0..large?).map_while(|_| Some([next()?, next()?])).collect();
        let mut intervals = Vec::new();
        let mut used = 12 + 2 * before.len();
        for _ in 0..count? {
            let (generation, len, areas) = (next()?, next()?, next()?);
            let when = [next()?, next()?];
            let pages: Vec<u64> = (0..len).map_while(|_| next()).collect();
            let whole: Vec<_> = (0..areas).map_while(|_| Some([next()?, next()?])).collect();
            used += 5 + pages.len() + 2 * whole.len();
            let pages = PageSet::from_words(&pages);
            intervals.push(Interval { generation, when, pages, whole });
        }
        let path = bytes.get(8 * used..8 * used + path_len? as usize)?.to_vec();
        let path = PathBuf::from(std::ffi::OsString::from_vec(path));
        let last = Some(([dev?, ino?], number?)).filter(|(_, number)| *number != 0);
        Some(Self {
            all: false,
            moves: false,
            exact: false,
            before,
            older: Older::hold(path, [old_dev?, old_ino?]),
            older_generation: older_generation?,
            last,
            tracker: fds.next().map(Tracker::of),
            mark: mark? as u32,
            intervals,
            found: Vec::new(),
            expected: expected?,
            restless: restless?,
            room: Vec::new(),
            confirms: None,
        })
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
    fn who_finds_anothers_mark_forgets_its_own() {
        let Some(tracker) = Tracker::own() else { return };
        let mut known = Rolling { tracker: Some(tracker), mark: 1, ..Rolling::default() };
        let we = Process::own().unwrap();
        known.look((&we, false, 1), &[], 1);
        known.look((&we, false, 1), &[], 2);
        assert!(known.tracker.is_some());
        assert_eq!(known.intervals.len(), 2);
        known.look((&we, false, 2), &[], 3);
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
