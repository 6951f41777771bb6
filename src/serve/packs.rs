// SPDX-License-Identifier: LGPL-2.1-only
//! The content of images, each unit of it once.
//!
//! A unit is at most [`UNIT`] bytes of an image, and lies in a slot of a *pack*: a file with a number for its name that one
//! upload has made of what nobody had sent before. A pack is groups of [`SLOTS`] records, one page, and as many slots. A
//! record has the unit's digest and how many times extents of [recipes](super::recipe) mean it; with the last of them the slot becomes
//! a hole of the file, and with the last slot the pack goes.
//!
//! What is synchronised with the disk before a recipe gets its name are slots and digests. Counts and the
//! [index](super::index) are the kernel's to write; only a server that came to its end has left them whole, and then
//! [`CLEAN`]. Else they are made anew from the recipes ([`super::recount`]). A slot is never written a second time, nor is a
//! number of a pack given a second time: so who holds a count reads without a lock.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use ckpt_cipher::DIGEST;
use nix::fcntl::{FallocateFlags, OFlag, fallocate, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::index::{INDEX, Index};
use super::recipe::Extent;
use super::recount::Left;
use super::store::locked;

/// Most bytes of a unit, and bytes of a slot.
pub(crate) const UNIT: usize = 4096;
/// Bytes that a unit costs: a slot and its record.
pub(super) const COST: u64 = UNIT as u64 + 32;
/// Slots of a group.
pub(super) const SLOTS: u32 = 128;
/// Bytes of a group.
const GROUP: u64 = (SLOTS as u64 + 1) * UNIT as u64;
/// The file that says how all was when a server ended.
pub(super) const CLEAN: &str = "clean";
/// The file with the id.
pub(super) const ID: &str = "id";

/// A slot of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub pack: u32,
    pub slot: u32,
}

/// A piece of an image, as it is told from others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Unit {
    pub digest: [u8; DIGEST],
    pub len: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Record {
    pub digest: [u8; DIGEST],
    /// Its bytes; 0: the slot is free for ever.
    pub len: u32,
    /// How many times it is meant.
    pub count: u32,
}

/// A pack's file.
pub(super) struct Pack {
    pub number: u32,
    pub file: File,
    /// Whether something of it did not come to the disk.
    failed: AtomicBool,
    syncing: Mutex<()>,
}

impl Pack {
    fn new(number: u32, file: File) -> Arc<Self> {
        Arc::new(Self { number, file, failed: AtomicBool::new(false), syncing: Mutex::new(()) })
    }

    /// Brings it to the disk. What one caller was told of a failure, the kernel tells no other (fsync(2)); so we do.
    pub(super) fn sync(&self) -> io::Result<()> {
        let _syncing = locked(&self.syncing);
        if self.failed.load(Ordering::Relaxed) {
            return Err(io::Error::other("content of another upload did not come to the disk"));
        }
        self.file.sync_all().inspect_err(|_| self.failed.store(true, Ordering::Relaxed))
    }
}

/// Where a slot lies in its pack.
pub(super) fn position(slot: u32) -> u64 {
    u64::from(slot / SLOTS) * GROUP + u64::from(slot % SLOTS + 1) * UNIT as u64
}

impl Unit {
    /// What the index finds it by; never 0.
    fn key(&self) -> u64 {
        u64::from_le_bytes(*self.digest.first_chunk().unwrap_or(&[0; 8])).max(1)
    }
}

/// The packs of a store.
pub(super) struct Packs {
    pub dir: OwnedFd,
    /// Tells them from all others.
    pub id: [u64; 2],
    state: Mutex<State>,
}

pub(super) struct State {
    pub index: Index,
    /// Units that each pack has, by its number.
    pub live: Vec<[u32; 2]>,
    /// Those that are not on the disk yet.
    writing: Vec<Arc<Pack>>,
    next: u32,
    page: Page,
    /// Whether records could not be written, so that those on the disk may say of slots without content what these had:
    /// none is believed any more.
    is_lost: bool,
    /// Whether no count is too low; else nothing is freed until they are made anew.
    pub sound: bool,
    /// Whether none is too high either, as far as is known; else they are made anew at the next start.
    pub exact: bool,
}

/// The records that were looked at last.
struct Page {
    pack: Option<Arc<Pack>>,
    group: u32,
    records: [Record; SLOTS as usize],
    is_changed: bool,
}

impl Page {
    fn flush(&mut self) -> io::Result<()> {
        if let Some(pack) = self.pack.as_ref().filter(|_| self.is_changed) {
            pack.file.write_all_at(self.records.as_bytes(), u64::from(self.group) * GROUP)?;
        }
        self.is_changed = false;
        Ok(())
    }
}

impl Packs {
    /// Opens the folder, which a server left like this ([`super::recount::closed`]).
    pub(super) fn open(
        dir: OwnedFd,
        path: &Path,
        id: [u64; 2],
        closed: Option<Left>,
    ) -> io::Result<Self> {
        let (size, live) = closed.map_or_else(
            || Ok((None, numbers(path)?)),
            |(size, live)| io::Result::Ok((Some(size), live)),
        )?;
        let index = Index::open(&dir, size)?;
        // Seconds, so that numbers of packs that are gone do not come again.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let last = live.last().map_or(0, |[number, _]| *number);
        let next = last.saturating_add(1).max(now.as_secs() as u32);
        let records = [Record::new_zeroed(); SLOTS as usize];
        let page = Page { pack: None, group: 0, records, is_changed: false };
        let state = State {
            index,
            live,
            writing: Vec::new(),
            next,
            page,
            is_lost: false,
            sound: true,
            exact: true,
        };
        Ok(Self { dir, id, state: Mutex::new(state) })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Opens a pack to read from.
    pub(super) fn file(&self, number: u32) -> io::Result<File> {
        open(&self.dir, number, OFlag::O_RDWR)
    }

    /// Begins a pack.
    pub(super) fn begin(&self) -> io::Result<Arc<Pack>> {
        let mut state = self.state();
        let number = state.next;
        // Whatever has this number already: the next upload gets another.
        state.next = number.checked_add(1).ok_or(ErrorKind::FileTooLarge)?;
        let file = open(&self.dir, number, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL)?;
        let pack = Pack::new(number, file);
        state.writing.push(pack.clone());
        state.live.push([number, 0]);
        Ok(pack)
    }

    /// Where units lie, each of which is meant once more from now on. `met` gets the packs that have to be
    /// [on the disk](Pack::sync) before somebody relies on it; what will not come there is not found.
    pub(super) fn find(&self, units: &[Unit], met: &mut Vec<Arc<Pack>>) -> Vec<Option<Place>> {
        let mut state = self.state();
        let mut last: Option<Place> = None;
        let failed = state.writing.iter().filter(|pack| pack.failed.load(Ordering::Relaxed));
        let failed: Vec<u32> = failed.map(|pack| pack.number).collect();
        let may = |at: &Place| !failed.contains(&at.pack);
        let mut find = |unit: &Unit| {
            // What lay side by side does so again.
            let next = last.map(|last| Place { slot: last.slot.saturating_add(1), ..last });
            let there = next.filter(may).and_then(|at| state.mean(&self.dir, at, unit));
            let found = there.or_else(|| {
                let at = state.index.find(unit.key()).filter(may)?;
                state.mean(&self.dir, at, unit)
            });
            last = found.or(last);
            found
        };
        let found: Vec<_> = units.iter().map(&mut find).collect();
        let _ = state.flush();
        let places: Vec<_> = found.iter().flatten().collect();
        for place in places.chunk_by(|a, b| a.pack == b.pack) {
            let number = place[0].pack;
            let unsynced = state.writing.iter().find(|pack| pack.number == number);
            if let Some(pack) = unsynced.filter(|_| met.iter().all(|m| m.number != number)) {
                met.push(pack.clone());
            }
        }
        found
    }

    /// Takes down what was written into the slots of a pack from `first` on, which are of one group.
    pub(super) fn add(&self, pack: u32, first: u32, units: &[Unit]) -> io::Result<()> {
        let mut state = self.state();
        state.record(&self.dir, Place { pack, slot: first })?;
        let was_changed = state.page.is_changed;
        for (slot, unit) in (first..).zip(units) {
            let place = Place { pack, slot };
            let record = Record { digest: unit.digest, len: unit.len, count: 1 };
            state.put(&self.dir, place, record)?;
        }
        if let Err(e) = state.flush() {
            // On a full disk they may never be written, and all others would wait for that.
            let at = (first % SLOTS) as usize;
            state.page.records[at..at + units.len()].fill(Record::new_zeroed());
            state.page.is_changed &= was_changed;
            return Err(e);
        }
        for (slot, unit) in (first..).zip(units) {
            // It is only a hint.
            let _ = state.index.insert(&self.dir, unit.key(), Place { pack, slot });
        }
        if let Some(live) = state.live_of(pack) {
            *live += units.len() as u32;
        }
        Ok(())
    }

    /// An upload writes no more into its pack. What others mean of one that was given up is on the disk first.
    pub(super) fn end(&self, pack: &Arc<Pack>, committed: bool) {
        let number = pack.number;
        let is_needed = || self.state().live_of(number).is_some_and(|live| *live > 0);
        if !committed && is_needed() && pack.sync().is_err() {
            return;
        }
        let mut state = self.state();
        state.writing.retain(|other| other.number != number);
        if state.live_of(number).is_some_and(|live| *live == 0) {
            self.forget(&mut state, number);
        }
    }

    /// Extents mean their units no more. `freed` gets those whose room is to be [given back](Packs::punch); how many there are.
    pub(super) fn release(&self, extents: &[Extent], freed: &mut Vec<Place>) -> u64 {
        let mut state = self.state();
        let before = freed.len();
        for place in extents.iter().flat_map(Extent::places) {
            if state.sound && state.unmean(&self.dir, place) == Some(0) {
                freed.push(place);
            }
        }
        let _ = state.flush();
        for pack in freed[before..].chunk_by(|a, b| a.pack == b.pack) {
            let number = pack[0].pack;
            let left = state.live_of(number).map(|live| {
                *live = live.saturating_sub(pack.len() as u32);
                *live
            });
            if left == Some(0) && state.writing.iter().all(|w| w.number != number) {
                self.forget(&mut state, number);
            }
        }
        (freed.len() - before) as u64
    }

    fn forget(&self, state: &mut State, number: u32) {
        state.live.retain(|[other, _]| *other != number);
        if state.page.pack.as_ref().is_some_and(|pack| pack.number == number) {
            // As long as it is open, it has its room.
            state.page.pack = None;
            state.page.is_changed = false;
        }
        let _ = unlinkat(&self.dir, number.to_string().as_str(), UnlinkatFlags::NoRemoveDir);
    }

    /// Gives the room of slots back where the file system can: nobody means them, and nobody ever will.
    pub(super) fn punch(&self, slots: &mut [Place]) {
        crate::order::by_key(slots, |place| (place.pack.into(), place.slot.into()));
        let next = |a: &Place, b: &Place| {
            a.pack == b.pack && position(a.slot) + UNIT as u64 == position(b.slot)
        };
        for pack in slots.chunk_by(|a, b| a.pack == b.pack) {
            // It may be gone as a whole.
            let Ok(file) = self.file(pack[0].pack) else { continue };
            for run in pack.chunk_by(next) {
                let how =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                let (at, len) = (position(run[0].slot).cast_signed(), (run.len() * UNIT) as i64);
                if fallocate(&file, how, at, len).is_err() {
                    break;
                }
            }
        }
    }

    /// Removes the folder's own files where no content is left.
    pub(super) fn clear(&self) -> bool {
        let is_empty = self.state().live.is_empty();
        for name in [INDEX, CLEAN, ID].into_iter().filter(|_| is_empty) {
            let _ = unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir);
        }
        is_empty
    }
}

impl State {
    pub(super) fn live_of(&mut self, pack: u32) -> Option<&mut u32> {
        let i = self.live.binary_search_by_key(&pack, |[number, _]| *number).ok()?;
        self.live.get_mut(i).map(|[_, live]| live)
    }

    /// Writes records that were changed. They stay until there is room for them; what cannot be written at all is given up.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.page.flush().inspect_err(|e| {
            self.exact = false;
            if !matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
                self.page.pack = None;
                self.page.is_changed = false;
                if !self.is_lost {
                    let why = super::channel::reason(e);
                    eprintln!("ckpt: packs: no room is given back: {why}; start the server again");
                }
                self.is_lost = true;
                self.sound = false;
            }
        })
    }

    /// The record of a slot; of one that there is not, zeros.
    pub(super) fn record(&mut self, dir: &OwnedFd, place: Place) -> io::Result<&mut Record> {
        let group = place.slot / SLOTS;
        let same_pack = self.page.pack.as_ref().is_some_and(|pack| pack.number == place.pack);
        if !same_pack || self.page.group != group {
            self.flush()?;
            let pack = match self.page.pack.take() {
                Some(pack) if same_pack => pack,
                _ => match self.writing.iter().find(|pack| pack.number == place.pack) {
                    Some(pack) => pack.clone(),
                    None => {
                        let file = open(dir, place.pack, OFlag::O_RDWR)?;
                        Pack::new(place.pack, file)
                    }
                },
            };
            self.page.records = FromZeros::new_zeroed();
            read_up_to(&pack.file, self.page.records.as_mut_bytes(), u64::from(group) * GROUP)?;
            (self.page.pack, self.page.group) = (Some(pack), group);
        }
        Ok(&mut self.page.records[(place.slot % SLOTS) as usize])
    }

    pub(super) fn put(&mut self, dir: &OwnedFd, at: Place, record: Record) -> io::Result<()> {
        *self.record(dir, at)? = record;
        self.page.is_changed = true;
        Ok(())
    }

    /// Counts a unit once more, if it lies there.
    fn mean(&mut self, dir: &OwnedFd, at: Place, unit: &Unit) -> Option<Place> {
        if self.is_lost {
            return None;
        }
        let record = self.record(dir, at).ok()?;
        let is_it = record.digest == unit.digest && record.len == unit.len;
        if !is_it || record.count == 0 || record.count == u32::MAX {
            return None;
        }
        record.count += 1;
        self.page.is_changed = true;
        Some(at)
    }

    /// Counts a unit once less; how often it is meant still. None: it was not counted.
    fn unmean(&mut self, dir: &OwnedFd, at: Place) -> Option<u32> {
        let record = match self.record(dir, at) {
            Ok(record) if record.count > 0 => record,
            Ok(_) => return None,
            Err(_) => {
                self.exact = false;
                return None;
            }
        };
        record.count -= 1;
        let (left, digest) = (record.count, record.digest);
        if left == 0 {
            *record = Record::new_zeroed();
            let _ = self.index.remove(Unit { digest, len: 0 }.key(), at);
        }
        self.page.is_changed = true;
        Some(left)
    }

    /// Makes a unit findable.
    pub(super) fn index(&mut self, dir: &OwnedFd, at: Place, digest: [u8; DIGEST]) {
        let _ = self.index.insert(dir, Unit { digest, len: 0 }.key(), at);
    }
}

/// How many slots a pack of this length has.
pub(super) fn slots(len: u64) -> u32 {
    len.div_ceil(GROUP).saturating_mul(SLOTS.into()).min(u32::MAX.into()) as u32
}

/// The packs of a folder.
fn numbers(path: &Path) -> io::Result<Vec<[u32; 2]>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(path)? {
        if let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            numbers.push([number, 0]);
        }
    }
    crate::order::by_key(&mut numbers, |[number, _]| (u64::from(*number), 0));
    Ok(numbers)
}

fn open(dir: &OwnedFd, number: u32, flags: OFlag) -> io::Result<File> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    Ok(openat(dir, number.to_string().as_str(), flags, mode)?.into())
}

fn read_up_to(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, at)? {
            0 => break,
            n => (bytes, at) = (&mut bytes[n..], at + n as u64),
        }
    }
    Ok(())
}
