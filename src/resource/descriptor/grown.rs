// SPDX-License-Identifier: LGPL-2.1-only
//! Files that have grown since the checkpoint.

use super::{Origin, Restored, access, file_type, kind, only_names};
use crate::error::{Because, Result};
use crate::order;
use ckpt_abi::image::{Descriptor, DescriptorKind};
use nix::libc;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Cuts the files that the program has open for writing and that have grown since the checkpoint
/// back to their length at the checkpoint, or says which they are. What ckpt itself has written there since,
/// as `name` or as "ckpt", does not count.
///
/// # Errors
/// A file that cannot be cut; those before it are.
pub(crate) fn cut<'a>(
    restored: impl Iterator<Item = &'a Restored>,
    truncate: bool,
    name: &str,
) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for Restored { record, origin } in restored {
        let writes = access(record.flags) != libc::O_RDONLY && !only_names(record.flags);
        let named = kind(record) == DescriptorKind::Path;
        let Origin::Own(file) = origin else { continue };
        if !writes || !named || file_type(record.mode) != libc::S_IFREG {
            continue;
        }
        let path = std::fs::read_link(super::open::place(file)).unwrap_or_default();
        let size = nix::sys::stat::fstat(file).map_or(0, |stat| stat.st_size.cast_unsigned());
        if size <= record.size {
            continue;
        }
        if truncate {
            nix::unistd::ftruncate(file, record.size.cast_signed()).because(|| {
                format!("cannot cut {} back to {} bytes", path.display(), record.size)
            })?;
        } else {
            if !is_ours(&path, record.size, size, name) {
                warnings.push(sentence(&path.display().to_string(), record, size));
            }
        }
    }
    order::by(&mut warnings, Ord::cmp);
    warnings.dedup();
    Ok(warnings)
}

fn sentence(path: &str, record: &Descriptor, size: u64) -> String {
    let (was, more) = (record.size, size - record.size);
    let place = match record.flags.cast_signed() & libc::O_APPEND {
        0 => format!("byte {}, over what is there", record.position),
        _ => "its end".into(),
    };
    format!(
        "{path} is {size} bytes long and was {was} at the checkpoint: the program goes on writing at {place}; \
         --truncate-files would cut off the last {more} bytes first"
    )
}

/// Whether all that a file has from `start` to `end` are lines of ours: on a log that is the program's
/// standard error each checkpoint and restart may leave some.
fn is_ours(path: &Path, start: u64, end: u64, name: &str) -> bool {
    const MOST: u64 = 64 << 10;
    if end - start > MOST {
        return false;
    }
    let mut bytes = vec![0; (end - start) as usize];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, start));
    let text = String::from_utf8_lossy(&bytes);
    let ours = |line: &str| {
        let known = line.strip_prefix(name).or_else(|| line.strip_prefix("ckpt"));
        known.is_some_and(|rest| rest.starts_with(": "))
    };
    read.is_ok() && text.lines().all(ours)
}
