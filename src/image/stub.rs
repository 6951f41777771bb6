// SPDX-License-Identifier: LGPL-2.1-only
//! Our own executable, which rides in front of every image.

use super::read::Image;
use super::{elf, front};
use crate::error::{Because, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The bytes of the running ckpt executable: without the image, when a checkpoint file runs, and
/// without an ELF section table.
pub(crate) fn own() -> Result<Vec<u8>> {
    let path = "/proc/self/exe";
    let file = File::open(path).because(|| format!("cannot read our own executable ({path})"))?;
    let header = Image::find(&file)?;
    let len = match &header {
        Some(header) => header.stub_len,
        None => file.metadata().because(|| format!("cannot stat {path}"))?.len(),
    };
    let mut stub = vec![0; len as usize];
    file.read_exact_at(&mut stub, 0)
        .because(|| format!("cannot read our own executable ({path})"))?;
    if header.is_some() {
        front::take_away(&mut stub);
    }
    elf::forget_sections(&mut stub);
    Ok(stub)
}
