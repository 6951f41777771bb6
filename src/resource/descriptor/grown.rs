//! Files that have grown since the checkpoint.

use super::{Origin, Restored, access, file_type, kind, only_names};
use crate::error::{Because, Result};
use ckpt_abi::image::DescriptorKind;
use nix::libc;

/// Cuts the files that the program has open for writing and that have grown since the checkpoint
/// back to their length at the checkpoint, or says which they are.
///
/// # Errors
/// A file that cannot be cut; those before it are.
pub fn cut(restored: &[Restored], truncate: bool) -> Result<Vec<String>> {
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
            warnings.push(format!(
                "{} has grown since the checkpoint ({size} bytes, it had {}); --truncate-files cuts it back",
                path.display(),
                record.size
            ));
        }
    }
    warnings.dedup();
    Ok(warnings)
}
