// SPDX-License-Identifier: LGPL-2.1-only
//! A sink whose image goes away over something that may be slow: a network, or a pipe to a command.
//!
//! A thread of its own does that, so that the target, which stands still when a sink is made, never waits: until somebody
//! says that it may ([`Sink::may_wait`]), nothing here blocks, however many pieces are on their way, and from then on until
//! there are [`QUEUE`] of them. Pieces that follow each other are sent as one.

use super::PAGE;
use super::write::Sink;
use crate::error::{Because, Error, Result};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Most pieces in memory, once it may wait.
const QUEUE: usize = 16;

/// Bytes of a piece.
pub(crate) const PIECE: usize = 240 << 10;

/// How long the other end hears nothing while the target gives nothing.
const QUIET: Duration = Duration::from_secs(3);

/// The other end.
pub(crate) trait Far: Send {
    /// Takes some bytes.
    ///
    /// # Errors
    /// It does not.
    fn piece(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// There is nothing just now.
    ///
    /// # Errors
    /// It has gone.
    fn alive(&mut self) -> Result<()> {
        Ok(())
    }

    /// That was all: makes it last.
    ///
    /// # Errors
    /// It does not.
    fn seal(&mut self, len: u64) -> Result<()>;
}

enum Order {
    Piece(u64, Vec<u8>),
    Seal(u64),
}

/// An image on its way.
pub(crate) struct QueuedSink {
    orders: Option<Sender<Order>>,
    empty: Receiver<Vec<u8>>,
    worker: Option<JoinHandle<Result<()>>>,
    at: u64,
    piece: Vec<u8>,
    /// Pieces that have not come back.
    away: usize,
    may_wait: bool,
    is_stream: bool,
}

impl QueuedSink {
    /// Begins with `connect`. Whatever goes wrong is told by a later call. `is_stream`: as [`Sink::is_stream`].
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(crate) fn create(
        is_stream: bool,
        connect: Box<dyn FnOnce() -> Result<Box<dyn Far>> + Send>,
    ) -> Result<Self> {
        let (orders, taken) = channel();
        let (give_back, empty) = channel();
        let worker = std::thread::Builder::new()
            .name("ckpt-upload".into())
            .spawn(move || send(connect, &taken, &give_back))
            .because(|| "cannot start a thread for the upload")?;
        let (orders, worker, piece) = (Some(orders), Some(worker), Vec::with_capacity(PIECE));
        Ok(Self { orders, empty, worker, at: 0, piece, away: 0, may_wait: false, is_stream })
    }

    fn flush(&mut self) -> Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let mut back = None;
        loop {
            let waits = self.may_wait && self.away >= QUEUE;
            // Where nobody is there any more, so says the order.
            let came = if waits { self.empty.recv().ok() } else { self.empty.try_recv().ok() };
            let Some(came) = came else { break };
            self.away -= 1;
            back = Some(came);
        }
        let mut next = back.unwrap_or_else(|| Vec::with_capacity(PIECE));
        next.clear();
        let piece = std::mem::replace(&mut self.piece, next);
        let at = self.at;
        self.at += piece.len() as u64;
        self.away += 1;
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

impl Sink for QueuedSink {
    fn write_at(&mut self, offset: u64, mut bytes: &[u8]) -> Result<()> {
        // A compressed block begins a piece, so that a server knows it again wherever it lies.
        let begins = !self.is_stream && !offset.is_multiple_of(PAGE);
        if offset != self.at + self.piece.len() as u64 || begins {
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

    fn is_stream(&self) -> bool {
        self.is_stream
    }

    fn may_wait(&mut self) {
        self.may_wait = true;
    }

    fn seal(&mut self, len: u64) -> Result<()> {
        self.flush()?;
        self.order(Order::Seal(len))?;
        self.end()
    }
}

/// The thread: what is not sealed is forgotten by the other end when it is dropped.
fn send(
    connect: Box<dyn FnOnce() -> Result<Box<dyn Far>> + Send>,
    orders: &Receiver<Order>,
    give_back: &Sender<Vec<u8>>,
) -> Result<()> {
    let mut far = connect()?;
    loop {
        match orders.recv_timeout(QUIET) {
            Err(RecvTimeoutError::Timeout) => far.alive()?,
            // The image is given up.
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(Order::Piece(at, piece)) => {
                far.piece(at, &piece)?;
                let _ = give_back.send(piece);
            }
            Ok(Order::Seal(len)) => return far.seal(len),
        }
    }
}
