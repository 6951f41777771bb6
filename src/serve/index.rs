// SPDX-License-Identifier: LGPL-2.1-only
//! Where the unit with a digest lies: a table in a file, so that it takes no memory but the kernel's.
//!
//! It is only a hint. Who is led to a slot compares the record there, so an entry that is lost costs room alone, and one
//! that is wrong nothing. Buckets are chosen by the first bits of the digest, and one that is full forgets what comes.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::packs::Place;

/// Its name in the folder of the packs.
pub(super) const INDEX: &str = "index";
/// The same of one that is made larger.
const LARGER: &str = "index.new";
/// Entries of a bucket.
const BUCKET: usize = 64;
/// Bytes of one.
const BYTES: u64 = (BUCKET * size_of::<Hint>()) as u64;
/// Entries that a bucket has on average before the table is made twice as large.
const LOAD: u64 = 40;
/// The smallest table has two to the power of this many buckets.
const SMALLEST: u32 = 4;

/// An entry; the key of a free one is 0.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Hint {
    key: u64,
    pack: u32,
    slot: u32,
}

pub(super) struct Index {
    file: File,
    bits: u32,
    count: u64,
}

impl Index {
    /// Opens the table as it was closed with this size and number of entries, or begins an empty one.
    pub(super) fn open(dir: &OwnedFd, closed: Option<[u64; 2]>) -> io::Result<Self> {
        let file = make(dir, INDEX, OFlag::empty())?;
        if let Some([bits, count]) = closed
            && (u64::from(SMALLEST)..48).contains(&bits)
            && file.metadata()?.len() == BYTES << bits
        {
            return Ok(Self { file, bits: bits as u32, count });
        }
        file.set_len(0)?;
        file.set_len(BYTES << SMALLEST)?;
        Ok(Self { file, bits: SMALLEST, count: 0 })
    }

    /// What [`Index::open`] wants to know.
    pub(super) fn size(&self) -> [u64; 2] {
        [self.bits.into(), self.count]
    }

    pub(super) fn find(&self, key: u64) -> Option<Place> {
        let (_, bucket) = self.bucket(key).ok()?;
        let hint = bucket.iter().find(|hint| hint.key == key)?;
        Some(Place { pack: hint.pack, slot: hint.slot })
    }

    pub(super) fn insert(&mut self, dir: &OwnedFd, key: u64, place: Place) -> io::Result<()> {
        if self.count >= LOAD << self.bits {
            self.grow(dir)?;
        }
        let (at, bucket) = self.bucket(key)?;
        let same = bucket.iter().position(|hint| hint.key == key);
        let Some(i) = same.or_else(|| bucket.iter().position(|hint| hint.key == 0)) else {
            return Ok(());
        };
        self.count += u64::from(same.is_none());
        self.put(at, i, Hint { key, pack: place.pack, slot: place.slot })
    }

    pub(super) fn remove(&mut self, key: u64, place: Place) -> io::Result<()> {
        let (at, bucket) = self.bucket(key)?;
        let is_it = |h: &Hint| h.key == key && h.pack == place.pack && h.slot == place.slot;
        let Some(i) = bucket.iter().position(is_it) else { return Ok(()) };
        self.count -= 1;
        self.put(at, i, Hint::new_zeroed())
    }

    fn put(&self, at: u64, i: usize, hint: Hint) -> io::Result<()> {
        self.file.write_all_at(hint.as_bytes(), at + (i * size_of::<Hint>()) as u64)
    }

    fn bucket(&self, key: u64) -> io::Result<(u64, [Hint; BUCKET])> {
        let at = (key >> (64 - self.bits)) * BYTES;
        Ok((at, read(&self.file, at)?))
    }

    fn grow(&mut self, dir: &OwnedFd) -> io::Result<()> {
        let file = make(dir, LARGER, OFlag::O_TRUNC)?;
        let bit = 1 << (63 - self.bits);
        for number in 0..1 << self.bits {
            let mut halves = [[Hint::new_zeroed(); BUCKET]; 2];
            for (i, hint) in read(&self.file, number * BYTES)?.into_iter().enumerate() {
                halves[usize::from(hint.key & bit != 0)][i] = hint;
            }
            file.write_all_at(halves.as_bytes(), 2 * number * BYTES)?;
        }
        renameat(dir, LARGER, dir, INDEX)?;
        (self.file, self.bits) = (file, self.bits + 1);
        Ok(())
    }
}

fn read(file: &File, at: u64) -> io::Result<[Hint; BUCKET]> {
    let mut bucket = [Hint::new_zeroed(); BUCKET];
    file.read_exact_at(bucket.as_mut_bytes(), at)?;
    Ok(bucket)
}

fn make(dir: &OwnedFd, name: &str, more: OFlag) -> io::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | more;
    Ok(openat(dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?.into())
}
