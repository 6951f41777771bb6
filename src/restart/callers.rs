// SPDX-License-Identifier: LGPL-2.1-only
//! What a restart tells the program through its C API: that it was restarted, and which files the
//! restart callbacks have to do without, or to replace.

use super::mapping::Mapping;
use super::phase1_check::Saved;
use super::placed::Placed;
use super::space::Space;
use crate::error::Result;
use crate::image::PAGE;
use crate::order;
use crate::resource::descriptor::Missing;
use ckpt_abi::api::{API, Answer, Api, Request, Unopened, Visit, When};
use ckpt_abi::image::{VmaKind, VmaRecord};
use nix::libc;
use nix::sys::mman::MapFlags;
use std::ffi::OsString;
use std::mem::size_of;
use std::os::unix::ffi::OsStrExt;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Bytes of the region up to the end of the API's part.
pub(crate) const END: usize = API as usize + size_of::<Api>();

/// The API's part of the region in an image.
pub(crate) fn of_image(saved: &Saved<'_>) -> Result<Option<Api>> {
    let mut page = vec![0; END];
    saved.read(saved.process.region, &mut page)?;
    Ok(read(&page))
}

/// The list of missing files, in memory that the payload unmaps when it has done with it.
pub(crate) struct List {
    /// The memory.
    pub mapping: Mapping,
    count: u64,
}

impl List {
    /// Writes the list, if there is anything to write.
    pub(crate) fn make(missing: &[Missing], space: &mut Space) -> Result<Option<Self>> {
        if missing.is_empty() {
            return Ok(None);
        }
        let paths: usize = missing.iter().map(|m| m.path.as_os_str().len() + 1).sum();
        let records = size_of::<Unopened>() * missing.len();
        let len = ((records + paths) as u64).next_multiple_of(PAGE);
        let at = space.find(len, 0)?;
        let mut mapping = Mapping::anonymous(at, len, MapFlags::empty())?;
        let mut path = records as u64;
        for (i, missed) in missing.iter().enumerate() {
            let record = Unopened {
                fd: missed.record.fd,
                errno: missed.errno.cast_unsigned(),
                flags: missed.record.flags,
                cloexec: missed.record.cloexec,
                position: missed.record.position,
                path: at + path,
            };
            mapping.write((i * size_of::<Unopened>()) as u64, record.as_bytes())?;
            let text = missed.path.as_os_str().as_bytes();
            mapping.write(path, text)?;
            path += text.len() as u64 + 1;
        }
        Ok(Some(Self { mapping, count: missing.len() as u64 }))
    }
}

/// What the restarter gives the program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Arguments.
    pub args: Vec<OsString>,
    /// NAME=VALUE.
    pub env: Vec<OsString>,
}

impl Given {
    /// Gives the first process memory with both lists and their strings; [`Api::given`], or None if there is nothing.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn place(
        &self,
        saved: &Saved<'_>,
        placed: &mut Vec<Placed>,
        space: &mut Space,
    ) -> Result<Option<[u64; 3]>> {
        let words = || self.args.iter().chain(&self.env);
        if words().next().is_none() || !saved.part.is_first() {
            return Ok(None);
        }
        // Two null pointers.
        let table = (words().count() as u64 + 2) * 8;
        let text: u64 = words().map(|word| word.len() as u64 + 1).sum();
        let len = (table + text).next_multiple_of(PAGE);
        let start = space.find(len, 0)?;
        let mut mapping = Mapping::anonymous(start, len, MapFlags::empty())?;
        let (mut slot, mut at) = (0, table);
        for list in [&self.args, &self.env] {
            for word in list {
                mapping.write(slot, &(start + at).to_le_bytes())?;
                mapping.write(at, word.as_bytes())?;
                (slot, at) = (slot + 8, at + word.len() as u64 + 1);
            }
            slot += 8;
        }
        let env = start + (self.args.len() as u64 + 1) * 8;
        let (prot, kind) = ((libc::PROT_READ | libc::PROT_WRITE) as u32, VmaKind::Private as u32);
        let record = VmaRecord { start, end: start + len, prot, kind, ..VmaRecord::new_zeroed() };
        placed.push(Placed::whole(&record, mapping));
        order::by_key(placed, |home| (home.record.start, 0));
        Ok(Some([self.args.len() as u64, start, env]))
    }
}

/// The API's part of a region's first bytes.
pub(crate) fn read(page: &[u8]) -> Option<Api> {
    Api::read_from_bytes(page.get(API as usize..END)?).ok()
}

/// Renews it for the restarted process.
pub(super) fn renew(
    page: &mut [u8],
    saved: &Saved<'_>,
    list: Option<&List>,
    given: Option<[u64; 3]>,
) {
    let Some(mut api) = read(page) else { return };
    let due = due(&api);
    let locks = [&mut api.lock, &mut api.exclude_lock];
    for lock in locks {
        if *lock == saved.process.pid {
            *lock = std::process::id();
        }
    }
    api.restarted = 1;
    api.restart_due = u32::from(due);
    api.answer = Answer::Restarted as u32;
    api.request = Request::Signal as u32;
    api.visit = Visit::None as u32;
    api.pending = 0;
    api.given = given.unwrap_or(api.given);
    if let Some(List { mapping, count }) = list {
        (api.missing, api.missing_count, api.missing_len) = (mapping.at(), *count, mapping.len());
    }
    if let Some(place) = page.get_mut(API as usize..END) {
        place.copy_from_slice(api.as_bytes());
    }
}

/// Whether the program has a word in the matter: callbacks for the restart, or a table of
/// descriptors that it may have changed.
pub(crate) fn due(api: &Api) -> bool {
    api.counts[When::Restart as usize] != 0 || api.table != 0
}
