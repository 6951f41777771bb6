// SPDX-License-Identifier: LGPL-2.1-only
//! What stands in the place of an image whose content lies in packs: where each part of it is.
//!
//! A few lines for whoever executes it, extents in the order in which they came (a later one counts where two overlap), and
//! a tail. What is in no extent is zeros. A recipe is only good beside the packs that it was made for, whose id it has.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use xxhash_rust::xxh3::Xxh3Default;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::packs::{Place, UNIT};
use super::protocol::broken;

/// How a recipe begins, up to [`START`] with spaces.
const HEAD: &[u8] = b"#!/bin/sh\n# ckpt recipe 1\n\
    echo \"ckpt: $0 is a checkpoint whose content a checkpoint server keeps elsewhere; \
    fetch the executable file with: ckpt get cssrv://SERVER/NAME\" >&2\nexit 126\n";
/// Where its extents begin.
const START: u64 = 512;
/// First bytes of the tail.
const MAGIC: [u8; 8] = *b"CKPTREC\n";
/// Extents that are in memory at once.
const BATCH: usize = 1024;
const EXTENT: u64 = size_of::<Extent>() as u64;

/// A part of an image.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Extent {
    /// Where it is in the image.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
    /// The pack.
    pub pack: u32,
    /// The first slot there.
    pub slot: u32,
}

impl Extent {
    /// Its units.
    pub(super) fn units(&self) -> u64 {
        self.len.div_ceil(UNIT as u64)
    }

    /// The first units of it, and the rest.
    pub(super) fn split(self, units: u64) -> (Self, Self) {
        let len = self.len.min(units.saturating_mul(UNIT as u64));
        let (offset, slot) = (self.offset + len, self.slot.saturating_add(units as u32));
        (Self { len, ..self }, Self { offset, slot, len: self.len - len, ..self })
    }

    /// The places of its units.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> + use<> {
        let Self { pack, slot, .. } = *self;
        (0..self.units() as u32).map(move |i| Place { pack, slot: slot.saturating_add(i) })
    }
}

/// What a recipe ends with.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Tail {
    magic: [u8; 8],
    /// Bytes of the image.
    pub len: u64,
    /// The packs' id.
    pub id: [u64; 2],
    extents: u64,
    /// xxh3 of all before.
    hash: u64,
}

/// A recipe in the making.
pub(super) struct Recipe {
    file: File,
    batch: Vec<Extent>,
    written: u64,
    sum: Xxh3Default,
}

impl Recipe {
    pub(super) fn begin(file: File) -> io::Result<Self> {
        let mut head = [b' '; START as usize];
        head[..HEAD.len()].copy_from_slice(HEAD);
        file.write_all_at(&head, 0)?;
        let mut sum = Xxh3Default::new();
        sum.update(&head);
        Ok(Self { file, batch: Vec::new(), written: 0, sum })
    }

    /// Takes a part in; even one that is not written then is known to [`Recipe::each`].
    pub(super) fn push(&mut self, next: Extent) -> io::Result<()> {
        if let Some(last) = self.batch.last_mut()
            && last.offset + last.len == next.offset
            && last.pack == next.pack
            && last.len % UNIT as u64 == 0
            && u64::from(last.slot) + last.len / UNIT as u64 == u64::from(next.slot)
        {
            last.len += next.len;
            return Ok(());
        }
        self.batch.push(next);
        if self.batch.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(self.batch.as_bytes(), START + self.written * EXTENT)?;
        self.sum.update(self.batch.as_bytes());
        self.written += self.batch.len() as u64;
        self.batch.clear();
        Ok(())
    }

    /// How many bytes it has in the end, if nothing is pushed any more.
    pub(super) fn size(&self) -> u64 {
        START + (self.written + self.batch.len() as u64) * EXTENT + size_of::<Tail>() as u64
    }

    /// Ends it, of an image of `len` bytes.
    pub(super) fn finish(&mut self, len: u64, id: [u64; 2]) -> io::Result<()> {
        self.flush()?;
        let mut tail = Tail { magic: MAGIC, len, id, extents: self.written, hash: 0 };
        let end = size_of::<Tail>() - size_of::<u64>();
        self.sum.update(&tail.as_bytes()[..end]);
        tail.hash = self.sum.digest();
        self.file.write_all_at(tail.as_bytes(), START + self.written * EXTENT)
    }

    /// Gives all that was pushed to `each`.
    pub(super) fn each(&self, each: &mut dyn FnMut(&[Extent])) -> io::Result<()> {
        each(&self.batch);
        batches(&self.file, self.written, &mut |batch| {
            each(batch);
            Ok(())
        })
    }
}

/// The tail of a file that is a recipe: one end of a damaged one says so still. Its length may be wrong then.
pub(super) fn tail(file: &File) -> io::Result<Option<Tail>> {
    let mut head = [0; 26];
    let whole = file.metadata()?.len();
    let Some(at) = whole.checked_sub(size_of::<Tail>() as u64).filter(|at| *at >= START) else {
        return Ok(None);
    };
    file.read_exact_at(&mut head, 0)?;
    let mut tail = Tail::new_zeroed();
    file.read_exact_at(tail.as_mut_bytes(), at)?;
    let fits = tail.magic == MAGIC && tail.extents.checked_mul(EXTENT) == Some(at - START);
    match [head == HEAD[..head.len()], fits] {
        [true, true] => Ok(Some(tail)),
        [false, false] => Ok(None),
        _ => Err(damage()),
    }
}

/// What is said of a recipe whose checksum is wrong.
fn damage() -> io::Error {
    broken("the file that says where its content lies is damaged")
}

/// Gives all extents of a recipe to `each`, after a look whether it is whole.
pub(super) fn each(
    file: &File,
    tail: &Tail,
    each: &mut dyn FnMut(&[Extent]) -> io::Result<()>,
) -> io::Result<()> {
    let mut head = [0; START as usize];
    file.read_exact_at(&mut head, 0)?;
    let mut sum = Xxh3Default::new();
    sum.update(&head);
    let mut is_sane = true;
    batches(file, tail.extents, &mut |batch| {
        sum.update(batch.as_bytes());
        is_sane &=
            batch.iter().all(|e| e.offset.checked_add(e.len).is_some_and(|end| end <= tail.len));
        Ok(())
    })?;
    sum.update(&tail.as_bytes()[..size_of::<Tail>() - size_of::<u64>()]);
    if sum.digest() != tail.hash || !is_sane {
        return Err(damage());
    }
    batches(file, tail.extents, each)
}

fn batches(
    file: &File,
    count: u64,
    each: &mut dyn FnMut(&[Extent]) -> io::Result<()>,
) -> io::Result<()> {
    let mut batch = vec![Extent::new_zeroed(); BATCH.min(count as usize)];
    let mut at = 0;
    while at < count {
        let now = &mut batch[..(count - at).min(BATCH as u64) as usize];
        file.read_exact_at(now.as_mut_bytes(), START + at * EXTENT)?;
        each(now)?;
        at += now.len() as u64;
    }
    Ok(())
}
