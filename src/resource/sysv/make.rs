// SPDX-License-Identifier: LGPL-2.1-only
//! The System V objects of an image, made again in an IPC namespace where nobody else has any.

use super::calls::{self, Attached, Owner};
use super::{called, name};
use crate::error::{Because, Error, Result};
use crate::order;
use crate::resource::memory::hugetlb;
use ckpt_abi::image::{SystemV, SystemVKind};
use std::fs;

/// Permissions, of [`SystemV::mode`].
const PERMISSIONS: u32 = 0o777;
/// It goes with its last mapping (SHM_DEST).
const REMOVED: u32 = 0o1000;
/// It stays in memory (SHM_LOCKED).
const LOCKED: u32 = 0o2000;
/// How often an identifier is tried for.
const TRIES: usize = 1 << 20;

/// Makes all; `fill` writes the content of an object into memory, `content` holds what is in the others, and `page` tells
/// the size of an object's huge pages. How many bytes of these are ordinary ones here.
///
/// # Errors
/// An identifier, a key or memory is not to be had.
pub(crate) fn all(
    records: &[SystemV],
    content: &[u8],
    fill: impl Fn(u32, &mut [u8]) -> Result<()>,
    page: impl Fn(u32) -> u64,
) -> Result<u64> {
    let mut lacking = 0;
    let mut records = records.to_vec();
    // Where they can only be counted up to, the kernel gives them in this order.
    order::by_key(&mut records, |record| (record.id.into(), 0));
    for record in &records {
        let kind = kind(record)?;
        let id = record.id.cast_signed();
        let why = || format!("cannot make the System V {} {id} again", called(kind));
        let page = page(record.object);
        if !make(kind, record, page).because(why)? {
            lacking += record.size;
        }
        let from = record.content as usize;
        let own = content.get(from..from + record.content_len as usize).ok_or_else(damaged)?;
        let owner =
            Owner { user: record.user, group: record.group, mode: record.mode & PERMISSIONS };
        match kind {
            SystemVKind::Segment => {
                let mut memory = Attached::new(id, record.size as usize, true).because(why)?;
                fill(record.object, memory.bytes_mut())?;
            }
            SystemVKind::Semaphores => {
                let values: Vec<u16> =
                    own.chunks_exact(2).map(|v| u16::from_le_bytes([v[0], v[1]])).collect();
                if values.len() as u64 != record.size {
                    return Err(damaged());
                }
                calls::set_values(id, &values).because(why)?;
            }
            SystemVKind::Messages => {
                let _ = calls::own(kind, id, &owner, record.size);
                let mut rest = own;
                while let Some((len, more)) = rest.split_first_chunk() {
                    let len = u32::from_le_bytes(*len) as usize;
                    let (message, more) = more.split_at_checked(len).ok_or_else(damaged)?;
                    calls::send(id, message).because(why)?;
                    rest = more;
                }
            }
        }
        // Only the permissions where the owner is unknown here.
        let _ = calls::own(kind, id, &owner, record.size).or_else(|_| {
            let (user, group) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
            calls::own(kind, id, &Owner { user, group, ..owner }, record.size)
        });
        if record.mode & LOCKED != 0 {
            calls::lock(id);
        }
    }
    Ok(lacking)
}

/// Removes those that were to go, when all who had them have them.
pub(crate) fn remove(records: &[SystemV]) {
    for record in records.iter().filter(|record| record.mode & REMOVED != 0) {
        calls::remove(SystemVKind::Segment, record.id.cast_signed());
    }
}

fn kind(record: &SystemV) -> Result<SystemVKind> {
    SystemVKind::try_from(record.kind).map_err(|_| damaged())
}

fn damaged() -> Error {
    Error::new("the image is damaged: a System V object is not whole")
}

/// Makes one with its identifier (/proc/sys/kernel/shm_next_id and kin), which an ordinary user may not choose before
/// Linux 6.1: there it is counted up to. False of one that was to have huge pages, and has ordinary ones: they are not
/// there, or not for this user.
fn make(kind: SystemVKind, record: &SystemV, page: u64) -> Result<bool> {
    let (id, key) = (record.id.cast_signed(), record.key.cast_signed());
    let chosen =
        fs::write(format!("/proc/sys/kernel/{}_next_id", name(kind)), id.to_string()).is_ok();
    for _ in 0..if chosen { 1 } else { TRIES } {
        let huge =
            if hugetlb::is_possible(page) { calls::huge(key, record.size, page) } else { None };
        let made = match huge {
            Some(made) => made,
            None => calls::make(kind, key, record.size).because(|| "no room for it")?,
        };
        if made == id {
            return Ok(page == 0 || huge.is_some());
        }
        calls::remove(kind, made);
    }
    Err(Error::new("its identifier cannot be had"))
}
