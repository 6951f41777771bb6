// SPDX-License-Identifier: LGPL-2.1-only
//! The parts of a file that hold data (lseek(2), SEEK_DATA and SEEK_HOLE).

use std::fs::File;
use std::ops::Range;

use nix::libc;
use nix::unistd::{Whence, lseek};

use super::pagemap::PAGE;

/// The ranges of the first `size` bytes of a file that are no holes, as whole pages where the file goes
/// on. A file system that knows no holes shows one range.
pub(crate) fn data(file: &File, size: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let seek = |from: u64, whence| {
            let from = libc::off_t::try_from(from).unwrap_or(libc::off_t::MAX);
            lseek(file, from, whence).map(libc::off_t::cast_unsigned)
        };
        let start = match seek(at, Whence::SeekData) {
            Ok(start) => start - start % PAGE,
            // Nothing but a hole until the end.
            Err(nix::errno::Errno::ENXIO) => size,
            Err(_) => at,
        };
        let start = start.max(at);
        if start >= size {
            return None;
        }
        let hole = seek(start, Whence::SeekHole).unwrap_or(size);
        let end = hole.max(start + 1).next_multiple_of(PAGE).min(size);
        at = end;
        Some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_are_left_out() {
        let fd = nix::sys::memfd::memfd_create(c"sparse", nix::sys::memfd::MFdFlags::empty());
        let file = File::from(fd.unwrap());
        assert_eq!(data(&file, 0).count(), 0);
        file.set_len(100 << 20).unwrap();
        assert_eq!(data(&file, 100 << 20).count(), 0);
        file.write_all_at(b"x", (50 << 20) + 5).unwrap();
        file.write_all_at(b"y", (100 << 20) + 7).unwrap();
        let found: Vec<_> = data(&file, (100 << 20) + 8).collect();
        let middle = 50 << 20..(50 << 20) + 4096;
        assert_eq!(found, [middle, 100 << 20..(100 << 20) + 8]);
    }
}
