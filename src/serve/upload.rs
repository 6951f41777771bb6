// SPDX-License-Identifier: LGPL-2.1-only
//! The sink that sends an image to a server.
//!
//! A thread of its own connects and sends, so that the target, which stands still when a sink is
//! made, never waits for a network: until [`QUEUE`] pieces are on their way nothing here blocks.
//! Pieces that follow each other are sent as one.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::client::Client;
use super::protocol::PIECE;
use crate::error::{Because, Error, Result};
use crate::image::write::Sink;
use crate::settings::server::{ServerName, Transfer};

/// Most pieces in memory.
const QUEUE: usize = 16;

/// How long the server hears nothing while the target gives nothing.
const QUIET: Duration = Duration::from_secs(3);

enum Order {
    Piece(u64, Vec<u8>),
    Seal(u64),
}

/// An image on its way to a server.
pub(crate) struct UploadSink {
    orders: Option<SyncSender<Order>>,
    empty: Receiver<Vec<u8>>,
    worker: Option<JoinHandle<Result<()>>>,
    at: u64,
    piece: Vec<u8>,
}

impl UploadSink {
    /// Begins to connect. Whatever goes wrong is told by a later call.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(crate) fn create(name: ServerName, transfer: Transfer) -> Result<Self> {
        let (orders, taken) = sync_channel(QUEUE);
        let (give_back, empty) = channel();
        let work = move || send(&name, &transfer, &taken, &give_back);
        let worker = std::thread::Builder::new()
            .name("ckpt-upload".into())
            .spawn(work)
            .because(|| "cannot start a thread for the upload")?;
        let (orders, worker) = (Some(orders), Some(worker));
        Ok(Self { orders, empty, worker, at: 0, piece: Vec::with_capacity(PIECE) })
    }

    fn flush(&mut self) -> Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let mut next = self.empty.try_recv().unwrap_or_else(|_| Vec::with_capacity(PIECE));
        next.clear();
        let piece = std::mem::replace(&mut self.piece, next);
        let at = self.at;
        self.at += piece.len() as u64;
        self.order(Order::Piece(at, piece))
    }

    fn order(&mut self, order: Order) -> Result<()> {
        match self.orders.as_ref().map(|orders| orders.send(order)) {
            Some(Ok(())) => Ok(()),
            // The worker has ended before its time, and knows why.
            _ => match self.end() {
                Err(e) => Err(e),
                Ok(()) => Err(Error::new("the upload is over already")),
            },
        }
    }

    fn end(&mut self) -> Result<()> {
        self.orders = None;
        match self.worker.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(Error::new("the thread of the upload panicked")),
            None => Err(Error::new("the upload has failed already")),
        }
    }
}

impl Sink for UploadSink {
    fn write_at(&mut self, offset: u64, mut bytes: &[u8]) -> Result<()> {
        if offset != self.at + self.piece.len() as u64 {
            self.flush()?;
            self.at = offset;
        }
        while !bytes.is_empty() {
            let room = PIECE - self.piece.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
            if self.piece.len() == PIECE {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn seal(&mut self, len: u64) -> Result<()> {
        self.flush()?;
        self.order(Order::Seal(len))?;
        self.end()
    }
}

/// The thread: an image that is not sealed is forgotten by the server when the connection ends.
fn send(
    name: &ServerName,
    transfer: &Transfer,
    orders: &Receiver<Order>,
    give_back: &Sender<Vec<u8>>,
) -> Result<()> {
    let mut put = Client::connect(name, transfer)?.put(name.path())?;
    loop {
        match orders.recv_timeout(QUIET) {
            Err(RecvTimeoutError::Timeout) => put.alive()?,
            // The image is given up.
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(Order::Piece(at, piece)) => {
                put.piece(at, &piece)?;
                let _ = give_back.send(piece);
            }
            Ok(Order::Seal(len)) => return put.seal(len),
        }
    }
}
