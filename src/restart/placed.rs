// SPDX-License-Identifier: LGPL-2.1-only
//! The program's memory in this process: each mapping where it lies until the restorer moves it.
//!
//! # Safety
//! Mappings are read through slices of which no other is alive, before their protection is final.
#![allow(unsafe_code)]

use super::following::Shown;
use super::mapping::Mapping;
use crate::error::Result;
use ckpt_abi::image::{Guard, GuardKind, VmaKind, VmaRecord};

/// A mapping of the program, where it is now.
pub(crate) struct Placed {
    /// Its record.
    pub record: VmaRecord,
    /// What was mapped.
    pub mapping: Mapping,
    /// Offsets at which the kernel has another mapping by now, which has to be moved for itself.
    pub borders: Vec<u64>,
    /// It has its final protection and holds nothing.
    pub is_final: bool,
    /// The file that it showed when it was saved, which it shows again.
    pub follows: Option<Shown>,
}

impl Placed {
    /// A mapping in one piece.
    pub(super) fn whole(record: &VmaRecord, mapping: Mapping) -> Self {
        Self { record: *record, mapping, borders: Vec::new(), is_final: false, follows: None }
    }
}

/// The mapping that holds an address; all are by address.
pub(super) fn home(placed: &[Placed], addr: u64) -> Option<&Placed> {
    let index = placed.partition_point(|p| p.record.start <= addr).checked_sub(1)?;
    placed.get(index).filter(|p| addr < p.record.end)
}

/// Reads filled memory that the program may read; false where there is none.
pub(super) fn read(placed: &[Placed], addr: u64, bytes: &mut [u8]) -> bool {
    let home = home(placed, addr).filter(|p| p.record.prot != 0 && !p.is_final);
    let slice = home.and_then(|home| {
        // SAFETY: what has a protection is readable until `finish`, and no other slice of it is alive.
        unsafe { home.mapping.slice(addr - home.record.start, bytes.len() as u64) }
    });
    slice.map(|slice| bytes.copy_from_slice(slice)).is_some()
}

/// Overwrites filled memory, where [`read`] has read.
pub(super) fn write(placed: &mut [Placed], addr: u64, bytes: &[u8]) -> Result<()> {
    let index = placed.partition_point(|p| p.record.start <= addr);
    let home = index.checked_sub(1).and_then(|index| placed.get_mut(index));
    let Some(home) = home.filter(|p| addr < p.record.end) else { return Ok(()) };
    let offset = addr - home.record.start;
    home.mapping.write(offset, bytes)
}

/// Final protection and advice.
pub(super) fn finish(placed: &mut [Placed], guards: &[Guard]) -> Result<()> {
    for Placed { record, mapping, borders, follows, .. } in placed {
        mapping.tell(record.flags);
        if record.kind != VmaKind::SharedFile as u32 {
            mapping.protect(record.prot)?;
        }
        if record.pkey != 0 {
            mapping.protect_by(record.prot, record.pkey)?;
        }
        let first = guards.partition_point(|guard| guard.end <= record.start);
        for guard in guards[first..].iter().take_while(|guard| guard.start < record.end) {
            let (start, end) = (guard.start.max(record.start), guard.end.min(record.end));
            let (offset, len) = (start - record.start, end - start);
            let split = match guard.kind == GuardKind::Installed as u32 {
                true => mapping.guard(offset, len)?,
                // A file that is there has its own end.
                false if record.kind != VmaKind::Private as u32 || follows.is_some() => false,
                false => mapping.make_absent(offset, len, record.prot).map(|()| true)?,
            };
            if split {
                borders.extend([offset, offset + len]);
            }
        }
    }
    Ok(())
}
