// SPDX-License-Identifier: LGPL-2.1-only
//! A stored image, as a whole or in parts.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use ckpt_abi::image::Header;
use zerocopy::{FromZeros, IntoBytes};

use super::packs::{Packs, Record, SLOTS, UNIT, position};
use super::protocol::{PIECE, broken};
use super::recipe::{self, Extent, Tail};
use super::store::Store;
use crate::image::read::Image;
use crate::image::source::Source;

/// An image that can be read.
pub enum Stored<'a> {
    /// A file, and its bytes.
    Whole(File, u64, Reading<'a>),
    /// A recipe.
    Parts(Parts<'a>),
}

/// An image whose content lies in packs, where it stays until this goes.
pub struct Parts<'a> {
    pub(super) packs: &'a Packs,
    pub(super) file: File,
    pub(super) tail: Tail,
    pub(super) _reading: Reading<'a>,
}

/// Somebody reads a file: what it takes up is not given back meanwhile.
pub struct Reading<'a> {
    pub(super) store: &'a Store,
    pub(super) inode: u64,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.store.read_no_more(self.inode);
    }
}

/// Who is given pieces with their places.
pub(super) type Getter<'a> = dyn FnMut(u64, &[u8]) -> io::Result<()> + 'a;

impl Stored<'_> {
    /// Bytes of the image.
    pub fn len(&self) -> u64 {
        match self {
            Self::Whole(_, len, _) => *len,
            Self::Parts(parts) => parts.tail.len,
        }
    }

    /// Its header, if it is a checkpoint.
    pub(super) fn header(&self) -> Result<Option<Header>, String> {
        match self {
            Self::Whole(file, ..) => Image::find(file),
            Self::Parts(parts) => Image::find(parts),
        }
        .map_err(|e| e.to_string())
    }

    /// Gives all of it to `each` in pieces of at most [`PIECE`] bytes; what is not given is zeros.
    ///
    /// # Errors
    /// Those of the disk, and of `each`.
    pub(super) fn each(&self, each: &mut Getter<'_>) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        match self {
            Self::Whole(file, len, _) => {
                let mut at = 0;
                while at < *len {
                    let bytes = &mut piece[..(*len - at).min(PIECE as u64) as usize];
                    file.read_exact_at(bytes, at)?;
                    each(at, bytes)?;
                    at += bytes.len() as u64;
                }
                Ok(())
            }
            Self::Parts(parts) => {
                let (mut begin, mut end) = (0, 0);
                parts.runs(&mut |file, position, offset, len| {
                    if offset != begin + end as u64 || end + len > PIECE {
                        each(begin, &piece[..end])?;
                        (begin, end) = (offset, 0);
                    }
                    file.read_exact_at(&mut piece[end..end + len], position)?;
                    end += len;
                    Ok(())
                })?;
                each(begin, &piece[..end])
            }
        }
    }
}

impl Parts<'_> {
    /// Gives each stretch that lies in one piece to `run`: the pack, where it is there, where in the image, how long.
    fn runs(
        &self,
        run: &mut dyn FnMut(&File, u64, u64, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut last: Option<(u32, File)> = None;
        recipe::each(&self.file, &self.tail, &mut |batch| {
            for mut rest in batch.iter().copied() {
                if last.as_ref().is_none_or(|(pack, _)| *pack != rest.pack) {
                    last = Some((rest.pack, self.packs.file(rest.pack)?));
                }
                let Some((_, file)) = &last else { continue };
                while rest.len > 0 {
                    let side_by_side = SLOTS - rest.slot % SLOTS;
                    let now: Extent;
                    (now, rest) = rest.split(u64::from(side_by_side).min((PIECE / UNIT) as u64));
                    if !is_there(file, &now) {
                        return Err(broken("a part of its content is lost"));
                    }
                    run(file, position(now.slot), now.offset, now.len as usize)?;
                }
            }
            Ok(())
        })
    }
}

/// Whether the slots of an extent in one group have its units. One that was freed has a hole for its content, which
/// reads as zeros.
fn is_there(file: &File, extent: &Extent) -> bool {
    let mut records = [Record::new_zeroed(); SLOTS as usize];
    let records = &mut records[..extent.units() as usize];
    let group = position(extent.slot - extent.slot % SLOTS) - UNIT as u64;
    let at = group + u64::from(extent.slot % SLOTS) * size_of::<Record>() as u64;
    let mut left = extent.len;
    file.read_exact_at(records.as_mut_bytes(), at).is_ok()
        && records.iter().all(|record| {
            let len = left.min(UNIT as u64);
            left -= len;
            u64::from(record.len) == len
        })
}

impl Source for Parts<'_> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.tail.len)
    }

    /// Looks through the whole recipe: for a few reads.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        bytes.fill(0);
        self.runs(&mut |file, position, at, len| {
            let (from, to) = (at.max(offset), (at + len as u64).min(end));
            if from >= to {
                return Ok(());
            }
            let part = &mut bytes[(from - offset) as usize..(to - offset) as usize];
            file.read_exact_at(part, position + from - at)
        })
    }
}
