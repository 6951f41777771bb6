// SPDX-License-Identifier: LGPL-2.1-only
//! The sink that sends an image to a server.

use super::client::{Client, Put};
use super::protocol;
use crate::error::Result;
use crate::image::queued::{Far, PIECE, QueuedSink};
use crate::settings::server::{ServerName, Transfer};

const _: () = assert!(PIECE <= protocol::PIECE);

/// Begins to connect. Whatever goes wrong is told by a later call.
///
/// # Errors
/// There is no thread to be had.
pub(crate) fn sink(name: ServerName, transfer: Transfer) -> Result<QueuedSink> {
    let connect = move || {
        let put = Client::connect(&name, &transfer)?.put(name.path())?;
        Ok(Box::new(put) as Box<dyn Far>)
    };
    QueuedSink::create(false, Box::new(connect))
}

/// An image that is not sealed is forgotten by the server when the connection ends.
impl Far for Put {
    fn piece(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        Self::piece(self, offset, bytes)
    }

    fn alive(&mut self) -> Result<()> {
        Self::alive(self)
    }

    fn seal(&mut self, len: u64) -> Result<()> {
        Self::seal(self, len)
    }
}
