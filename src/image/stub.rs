// SPDX-License-Identifier: LGPL-2.1-only
//! Our own executable, which rides in front of every image.
//!
//! # Safety
//! A file that is executed changes as little as the code of this very process, which is mapped from it: the kernel
//! refuses to write to it (ETXTBSY).
#![allow(unsafe_code)]

use super::read::Image;
use super::{elf, front};
use crate::error::{Because, Result};
use memmap2::{MmapMut, MmapOptions};
use std::fs::File;
use std::ops::Deref;

/// The bytes of the running ckpt executable: without the image, when a checkpoint file runs, and
/// without an ELF section table.
pub(crate) struct Executable {
    /// The file's pages, of which those that differ are ours.
    file: MmapMut,
    begin: usize,
}

impl Deref for Executable {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.file[self.begin..]
    }
}

/// See [`Executable`].
///
/// # Errors
/// It cannot be read.
pub(crate) fn own() -> Result<Executable> {
    let path = "/proc/self/exe";
    let what = || format!("cannot read our own executable ({path})");
    let file = File::open(path).because(what)?;
    let header = Image::find(&file)?;
    let len = match &header {
        Some(header) => header.stub_len,
        None => file.metadata().because(|| format!("cannot stat {path}"))?.len(),
    };
    // SAFETY: as the module's Safety paragraph says.
    let mut file = unsafe { MmapOptions::new().len(len as usize).map_copy(&file) }.because(what)?;
    let begin = if header.is_some() { front::len(&file) } else { 0 };
    elf::forget_sections(&mut file[begin..]);
    Ok(Executable { file, begin })
}

/// As it begins an image.
pub(crate) fn in_front(executable: &[u8]) -> Vec<u8> {
    front::put_before(executable)
}
