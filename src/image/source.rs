// SPDX-License-Identifier: LGPL-2.1-only
//! Where an image comes from, as [`super::sink::Sink`] is where it goes to.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The bytes of an image.
pub trait Source: Send + Sync {
    /// Their number.
    ///
    /// # Errors
    /// Those of fstat(2).
    fn length(&self) -> io::Result<u64>;

    /// Fills `bytes` with what lies at `offset`.
    ///
    /// # Errors
    /// Those of pread(2); `UnexpectedEof` where there is not so much.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// The file, where it is one.
    fn file(&self) -> Option<&File> {
        None
    }
}

impl Source for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    fn file(&self) -> Option<&File> {
        Some(self)
    }
}

impl Source for Vec<u8> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let piece = self.get(start..start.saturating_add(bytes.len()));
        bytes.copy_from_slice(piece.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
