// SPDX-License-Identifier: LGPL-2.1-only
//! Where an image goes to, as [`super::source::Source`] is where it comes from.

use super::base::Base;
use super::file::Abreast;
use super::older::{Id, Older};
use crate::error::Result;
use ckpt_abi::image::Chunk;

/// Where an image goes to.
pub trait Sink: Send {
    /// Writes bytes at an offset. Offsets only grow, but for the stub and the header, which come last, and where an older
    /// image is brought up to date.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;
    /// The file that it writes to, where others may write their parts of it beside it.
    fn abreast(&self) -> Option<Abreast> {
        None
    }
    /// Whether each write has to begin where the last one ended ([`ckpt_abi::image::needs::STREAMED`]).
    fn is_stream(&self) -> bool {
        false
    }
    /// Nobody who is to go on stands still for it from now on: it may wait.
    fn may_wait(&mut self) {}
    /// Has what was written so far last already, so that sealing takes less.
    fn settle(&mut self) {}
    /// The older image in its file that is to be brought up to date, if there is one; once.
    fn base(&mut self) -> Option<Base> {
        None
    }
    /// After the seal, when all is done with it that may fail: what was kept of the one that had the name before, and what
    /// the new one is recognised by. None: it is no file.
    fn kept(&mut self) -> Result<Option<(Option<Older>, Id)>> {
        Ok(None)
    }
    /// Before the seal: its chunks, which checkpoint it is ([`ckpt_abi::image::Header::run`]), and whether its process remembers its ids.
    fn laid_out(&mut self, _: Vec<Chunk>, _: [u64; 2], _: bool) {}
    /// Makes what was written last and gives it its name; before this nothing is visible.
    fn seal(&mut self, len: u64) -> Result<()>;
}

/// An image in memory.
impl Sink for Vec<u8> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let start = offset as usize;
        let end = start + bytes.len();
        self.resize(self.len().max(end), 0);
        self[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn seal(&mut self, len: u64) -> Result<()> {
        self.resize(len as usize, 0);
        Ok(())
    }
}
