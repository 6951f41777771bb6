// SPDX-License-Identifier: LGPL-2.1-only
//! What the packs of a store are counted by: how they were left, and what the recipes say.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use ckpt_cipher::{DIGEST, Digest};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, syncfs, unlinkat};
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::{FromZeros, IntoBytes};

use super::claim::sync;
use super::packs::{CLEAN, ID, Packs, Place, Record, State, UNIT, position, slots};
use super::recipe::Extent;
use super::store::PUNCHED;

/// Bytes of content that are read at a time.
const PIECE: u32 = 64;
/// The name of [`CLEAN`] in the making.
const NEW: &str = "clean.new";

fn made(dir: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    Ok(openat(dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?.into())
}

/// The id of a folder of packs, which gets one.
pub(super) fn id(dir: &OwnedFd) -> io::Result<[u64; 2]> {
    let file = made(dir, ID)?;
    let mut id = [0; 2];
    if file.read_exact_at(id.as_mut_bytes(), 0).is_err() {
        File::open("/dev/urandom")?.read_exact(id.as_mut_bytes())?;
        file.write_all_at(id.as_bytes(), 0)?;
        file.sync_all()?;
        sync(dir)?;
    }
    Ok(id)
}

/// The index's size, and how many units each pack has.
pub(super) type Left = ([u64; 2], Vec<[u32; 2]>);

/// How the server before has left all. From now on that is not true
/// any more; what says so is gone from the disk before anything changes.
pub(super) fn closed(dir: &OwnedFd) -> io::Result<Option<Left>> {
    let mut bytes = Vec::new();
    match openat(dir, CLEAN, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(fd) => _ = File::from(fd).read_to_end(&mut bytes)?,
        Err(Errno::ENOENT) => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    unlinkat(dir, CLEAN, UnlinkatFlags::NoRemoveDir)?;
    sync(dir)?;
    let Some((rest, sum)) = bytes.split_last_chunk::<8>() else { return Ok(None) };
    let mut words = vec![0u64; rest.len() / 8];
    if words.len() < 2 || rest.len() % 8 != 0 || xxh3_64(rest) != u64::from_le_bytes(*sum) {
        return Ok(None);
    }
    words.as_mut_bytes().copy_from_slice(rest);
    let live = words[2..].iter().map(|word| [(word >> 32) as u32, *word as u32]).collect();
    Ok(Some(([words[0], words[1]], live)))
}

impl Packs {
    /// Leaves all as [`closed`] finds it.
    pub(super) fn close(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.flush().is_err() || !state.sound || !state.exact {
            return Ok(());
        }
        let live = state.live.iter().map(|[pack, live]| u64::from(*pack) << 32 | u64::from(*live));
        let words: Vec<u64> = state.index.size().into_iter().chain(live).collect();
        syncfs(&self.dir)?;
        let mut file = made(&self.dir, NEW)?;
        file.set_len(0)?;
        file.write_all(words.as_bytes())?;
        file.write_all(&xxh3_64(words.as_bytes()).to_le_bytes())?;
        file.sync_all()?;
        renameat(&self.dir, NEW, &self.dir, CLEAN)?;
        Ok(sync(&self.dir)?)
    }

    /// Gives each slot of all packs and its record to `each`, of those that cannot be read as many as can.
    fn slots(
        &self,
        each: &mut dyn FnMut(&mut State, Place, Record) -> io::Result<()>,
    ) -> io::Result<()> {
        let packs = self.state().live.clone();
        let mut result = Ok(());
        for [pack, _] in packs {
            let mut all = || -> io::Result<()> {
                let len = self.file(pack)?.metadata()?.len();
                let mut state = self.state();
                for slot in 0..slots(len) {
                    let place = Place { pack, slot };
                    let record = *state.record(&self.dir, place)?;
                    if record.len > 0 {
                        each(&mut state, place, record)?;
                    }
                }
                Ok(())
            };
            result = result.and(all());
        }
        result.and(self.state().flush())
    }

    /// Begins to count anew.
    pub(super) fn forget_counts(&self) -> io::Result<()> {
        self.slots(&mut |state, place, record| {
            state.put(&self.dir, place, Record { count: 0, ..record })
        })
    }

    /// Counts what extents mean, as far as it is there.
    pub(super) fn count(&self, extents: &[Extent]) -> io::Result<()> {
        let mut state = self.state();
        for extent in extents {
            let mut left = extent.len;
            for place in extent.places() {
                let len = left.min(UNIT as u64);
                left -= len;
                if state.live_of(place.pack).is_none() {
                    continue;
                }
                let record = *state.record(&self.dir, place)?;
                if u64::from(record.len) == len {
                    let count = record.count.saturating_add(1);
                    state.put(&self.dir, place, Record { count, ..record })?;
                }
            }
        }
        Ok(())
    }

    /// Whether all that extents mean is there, counted if all is, and none of it among the `bad`.
    pub(super) fn holds(&self, extents: &[Extent], bad: &[Place]) -> bool {
        let mut state = self.state();
        let sound = state.sound;
        extents.iter().all(|extent| {
            let mut left = extent.len;
            extent.places().all(|place| {
                let len = left.min(UNIT as u64);
                left -= len;
                let record = state.record(&self.dir, place).ok().copied();
                let is_there =
                    record.is_some_and(|r| u64::from(r.len) == len && (r.count > 0 || !sound));
                is_there && bad.binary_search(&place).is_err()
            })
        })
    }

    /// Ends it: what is not meant is freed if all counts are right, what is meant is found.
    pub(super) fn settle_counts(&self) -> io::Result<()> {
        let sound = self.state().sound;
        let mut dead = Vec::new();
        let settled = self.slots(&mut |state, place, record| {
            if record.count == 0 && sound {
                state.put(&self.dir, place, Record::new_zeroed())?;
                dead.push(place);
                if dead.len() == PUNCHED {
                    self.punch(&mut dead);
                    dead.clear();
                }
                return Ok(());
            }
            state.index(&self.dir, place, record.digest);
            if let Some(of_pack) = state.live_of(place.pack) {
                *of_pack += 1;
            }
            Ok(())
        });
        self.punch(&mut dead);
        // A pack that could not be read seems to have nothing.
        settled?;
        if sound {
            self.state().live.retain(|[pack, units]| {
                if *units == 0 {
                    let name = pack.to_string();
                    let _ = unlinkat(&self.dir, name.as_str(), UnlinkatFlags::NoRemoveDir);
                }
                *units > 0
            });
        }
        Ok(())
    }

    /// Reads all content; the slots whose content is another than it was, in order. No new upload is made of
    /// these any more.
    pub(super) fn damaged(&self, progress: &mut dyn FnMut(u64)) -> Vec<Place> {
        let mut bad = Vec::new();
        let mut digest = Digest::default();
        let mut content = vec![0; PIECE as usize * UNIT];
        let packs = self.state().live.clone();
        for [pack, _] in packs {
            let file = self.file(pack).ok();
            let len = file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |m| m.len());
            for first in (0..slots(len)).step_by(PIECE as usize) {
                content.fill(0);
                // What is cut off is not what it was.
                let _ = file.as_ref().map(|file| file.read_at(&mut content, position(first)));
                let mut state = self.state();
                for (slot, unit) in (first..).zip(content.chunks(UNIT)) {
                    let place = Place { pack, slot };
                    let record =
                        state.record(&self.dir, place).map_or(Record::new_zeroed(), |r| *r);
                    let unit = &unit[..UNIT.min(record.len as usize)];
                    if record.len > 0 && digest.of(unit) != record.digest {
                        bad.push(place);
                        let nobodys = Record { digest: [0; DIGEST], ..record };
                        let _ = state.put(&self.dir, place, nobodys);
                    }
                }
                drop(state);
                progress(content.len() as u64);
            }
        }
        bad
    }
}
