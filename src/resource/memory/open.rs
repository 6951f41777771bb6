// SPDX-License-Identifier: LGPL-2.1-only
//! Opening the files that restored mappings show.

use crate::error::{Because, Error, Result};
use ckpt_abi::image::{VmaKind, VmaRecord, vma_flag};
use nix::libc;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Opens the file that a restored mapping shows; a warning where the program cannot make it writable any
/// more, as it once could.
///
/// # Errors
/// It cannot be opened, is shorter than it was, or (under a private mapping) has changed.
pub(crate) fn file(path: &Path, vma: &VmaRecord, warnings: &mut Vec<String>) -> Result<File> {
    let shared = vma.kind == VmaKind::SharedFile as u32;
    let write = shared && vma.flags & vma_flag::MAY_WRITE != 0;
    let open = |write| File::options().read(true).write(write).open(path);
    let why = || format!("cannot open the mapped file {}", path.display());
    let file = match open(write) {
        Err(e) if write && vma.prot & libc::PROT_WRITE as u32 == 0 => {
            warnings.push(format!(
                "{} can only be read here, so what the program has mapped of it cannot be made writable: {e}",
                path.display()
            ));
            open(false).because(why)?
        }
        opened => opened.because(why)?,
    };
    let meta = file.metadata().because(|| format!("cannot stat {}", path.display()))?;
    let mtime = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
    if !shared && (meta.len(), mtime) != (vma.file_size, vma.file_mtime) {
        return Err(Error::new(format!(
            "the mapped file {} has changed since the checkpoint",
            path.display()
        )));
    }
    if meta.len() < vma.file_size {
        return Err(Error::new(format!(
            "the mapped file {} is shorter than at the checkpoint",
            path.display()
        )));
    }
    Ok(file)
}

/// The file that a private mapping showed, if it is still the very same and no shorter; whatever else it holds,
/// the pages of the image go before it.
pub(crate) fn same(path: &Path, vma: &VmaRecord) -> Option<File> {
    let file = crate::image::read::open(path).ok()?;
    let meta = file.metadata().ok()?;
    let same = (meta.dev(), meta.ino()) == (vma.file_device, vma.file_inode);
    (same && meta.is_file() && meta.len() >= vma.file_size).then_some(file)
}
