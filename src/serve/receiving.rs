// SPDX-License-Identifier: LGPL-2.1-only
//! An image on its way into a [`Store`].

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::{Mode, SFlag, fchmod};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::claim::sync;
use super::packs::{COST, Pack, Packs, Place, SLOTS, UNIT, Unit, position};
use super::recipe::{self, Extent, Recipe};
use super::store::{Result, Store, is, locked, refusal, sentence};
use crate::fault::{Point, reach};
use crate::settings::server::check_stored;

/// An image that is being written. Dropped before [`Upload::commit`], it leaves nothing.
pub(super) struct Upload<'a> {
    store: &'a Store,
    name: String,
    number: String,
    file: File,
    /// Bytes of the image so far.
    end: u64,
    /// What it takes up of the quota, but for units.
    taken: u64,
    parts: Option<Parts<'a>>,
}

/// One whose content goes into packs.
struct Parts<'a> {
    packs: &'a Packs,
    recipe: Recipe,
    /// Where its new units go, and how many there are.
    pack: Option<Arc<Pack>>,
    slots: u32,
    /// Packs of other uploads with units that it has, too.
    met: Vec<Arc<Pack>>,
}

impl Store {
    /// Begins an image.
    ///
    /// # Errors
    /// The name is none that can be stored, or the disk does not take it.
    pub(super) fn begin(&self, name: &str) -> Result<Upload<'_>> {
        check_stored(name).map_err(|why| format!("the name {why}"))?;
        match self.resolve(name, OFlag::O_PATH) {
            Ok(fd) if nix::sys::stat::fstat(&fd).is_ok_and(|s| is(&s, SFlag::S_IFDIR)) => {
                return Err("it is a folder".into());
            }
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(refusal(e)),
        }
        let number = self.count.fetch_add(1, Ordering::Relaxed).to_string();
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::openat(self.claim.own.as_fd(), number.as_str(), flags, Mode::S_IRWXU);
        let file: File = fd.map_err(refusal)?.into();
        reach(Point::Uploading);
        let name = name.into();
        let mut upload = Upload { store: self, name, number, file, end: 0, taken: 0, parts: None };
        if let Some(packs) = self.packs.as_ref().filter(|_| !self.limits.whole) {
            let copy = upload.file.try_clone().and_then(Recipe::begin);
            let recipe = copy.map_err(|e| sentence(&e))?;
            upload.parts = Some(Parts { packs, recipe, pack: None, slots: 0, met: Vec::new() });
        }
        Ok(upload)
    }
}

impl Upload<'_> {
    /// Whether it is made of units, and may be asked for those that are there already.
    pub(super) fn has_units(&self) -> bool {
        self.parts.is_some()
    }

    /// Writes a piece, which is made of these units.
    ///
    /// # Errors
    /// A limit, or the disk.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8], units: &[Unit]) -> Result<()> {
        reach(Point::Receiving);
        self.grow(offset.saturating_add(bytes.len() as u64))?;
        self.take_recipe()?;
        let Some(parts) = &mut self.parts else {
            return self.file.write_all_at(bytes, offset).map_err(|e| sentence(&e));
        };
        let found = parts.packs.find(units, &mut parts.met);
        let mut result = Ok(());
        let mut i = 0;
        while i < units.len() {
            let same = found[i..].iter().take_while(|f| f.is_some() == found[i].is_some()).count();
            let (at, next) = (offset + (i * UNIT) as u64, i + same);
            if found[i].is_some() {
                // Whatever fails, the recipe knows of all that is counted.
                result = result.and(parts.mean(at, &units[i..next], &found[i..next]));
            } else if result.is_ok() {
                let run = &bytes[i * UNIT..(next * UNIT).min(bytes.len())];
                result = parts.store(self.store, at, run, &units[i..next]);
            }
            i = next;
        }
        result
    }

    /// Takes over what is there already of a piece that is made of these units; which are missing.
    ///
    /// # Errors
    /// A limit, or the disk.
    pub(super) fn offer(&mut self, offset: u64, units: &[Unit]) -> Result<Vec<bool>> {
        let len: u64 = units.iter().map(|unit| u64::from(unit.len)).sum();
        self.grow(offset.saturating_add(len))?;
        self.take_recipe()?;
        let parts = self.parts.as_mut().ok_or("an offer came that nobody had asked for")?;
        let found = parts.packs.find(units, &mut parts.met);
        parts.mean(offset, units, &found)?;
        Ok(found.iter().map(Option::is_none).collect())
    }

    fn grow(&mut self, end: u64) -> Result<()> {
        let most = self.store.limits.max_bytes;
        if end > most || end > i64::MAX.cast_unsigned() {
            return Err(format!("an image on this server has at most {most} bytes"));
        }
        if end > self.end {
            if self.parts.is_none() {
                self.take(end - self.end)?;
            }
            self.end = end;
        }
        Ok(())
    }

    fn take(&mut self, bytes: u64) -> Result<()> {
        self.store.take(bytes)?;
        self.taken += bytes;
        Ok(())
    }

    /// Takes what its recipe has grown by: offers of the same units for ever cost nothing else.
    fn take_recipe(&mut self) -> Result<()> {
        let size = self.parts.as_ref().map_or(0, |parts| parts.recipe.size());
        self.take(size.saturating_sub(self.taken))
    }

    /// Writes the image to the disk. `len` is its length; what was not written is zeros.
    ///
    /// # Errors
    /// The length is shorter than what was written, a limit, or the disk.
    pub(super) fn settle(&mut self, len: u64) -> Result<()> {
        if len < self.end {
            return Err("the image is shorter than its pieces".into());
        }
        self.grow(len)?;
        match &mut self.parts {
            None => {
                self.file.set_len(len).map_err(|e| sentence(&e))?;
                if !matches!(recipe::tail(&self.file), Ok(None)) {
                    return Err("it is one of a server's own files".into());
                }
            }
            Some(parts) => {
                reach(Point::Packed);
                parts.settle(len).map_err(|e| sentence(&e))?;
                self.take_recipe()?;
            }
        }
        // The umask does not count for a checkpoint.
        fchmod(&self.file, Mode::S_IRWXU).map_err(refusal)?;
        self.file.sync_all().map_err(|e| sentence(&e))
    }

    /// Gives a settled image its name.
    ///
    /// # Errors
    /// The name cannot be had any more.
    pub(super) fn commit(mut self) -> Result<()> {
        reach(Point::Received);
        let store = self.store;
        let names = locked(&store.names);
        let (folder, last) = self.name.rsplit_once('/').unwrap_or(("", &self.name));
        let parent = store.folder(folder).map_err(refusal)?;
        reach(Point::Foldered);
        let old = store.at(&parent, last);
        renameat(store.claim.own.as_fd(), self.number.as_str(), &parent, last).map_err(refusal)?;
        self.number.clear();
        store.is_known(sync(&parent)).map_err(refusal)?;
        reach(Point::Stored);
        drop(names);
        if let Some(old) = old {
            store.let_go(&old);
        }
        Ok(())
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        let is_committed = self.number.is_empty();
        if !is_committed {
            let number = self.number.as_str();
            let _ = unlinkat(self.store.claim.own.as_fd(), number, UnlinkatFlags::NoRemoveDir);
            self.store.give_back(self.taken);
        }
        let Some(parts) = &self.parts else { return };
        if !is_committed {
            let mut freed = Vec::new();
            let mut release = |batch: &[Extent]| {
                self.store.release_some(parts.packs, batch, &mut freed);
            };
            let _ = self.store.is_known(parts.recipe.each(&mut release));
            parts.packs.punch(&mut freed);
        }
        if let Some(pack) = &parts.pack {
            parts.packs.end(pack, is_committed);
        }
    }
}

impl Parts<'_> {
    /// Takes over the units that are there.
    fn mean(&mut self, offset: u64, units: &[Unit], found: &[Option<Place>]) -> Result<()> {
        let mut result = Ok(());
        for (i, (place, unit)) in found.iter().zip(units).enumerate() {
            let Some(Place { pack, slot }) = *place else { continue };
            let (offset, len) = (offset + (i * UNIT) as u64, u64::from(unit.len));
            result = result.and(self.recipe.push(Extent { offset, len, pack, slot }));
        }
        result.map_err(|e| sentence(&e))
    }

    /// Writes new units.
    fn store(&mut self, store: &Store, at: u64, bytes: &[u8], units: &[Unit]) -> Result<()> {
        let pack = match &self.pack {
            Some(pack) => pack.clone(),
            None => {
                let pack = self.packs.begin().map_err(|e| sentence(&e))?;
                self.pack.insert(pack).clone()
            }
        };
        let mut done = 0;
        while done < units.len() {
            let first = self.slots;
            let now = (units.len() - done).min((SLOTS - first % SLOTS) as usize);
            let run = &bytes[done * UNIT..((done + now) * UNIT).min(bytes.len())];
            store.take(now as u64 * COST)?;
            let wrote = pack.file.write_all_at(run, position(first));
            let added =
                wrote.and_then(|()| self.packs.add(pack.number, first, &units[done..done + now]));
            if let Err(e) = added {
                store.give_back(now as u64 * COST);
                return Err(sentence(&e));
            }
            self.slots = first.checked_add(now as u32).ok_or("the image is too large")?;
            let (offset, len) = (at + (done * UNIT) as u64, run.len() as u64);
            let extent = Extent { offset, len, pack: pack.number, slot: first };
            self.recipe.push(extent).map_err(|e| sentence(&e))?;
            done += now;
        }
        Ok(())
    }

    /// Brings all that the image is made of to the disk.
    fn settle(&mut self, len: u64) -> std::io::Result<()> {
        for pack in self.pack.iter().chain(&self.met) {
            pack.sync()?;
        }
        // The packs' names.
        sync(&self.packs.dir)?;
        self.recipe.finish(len, self.packs.id)
    }
}
