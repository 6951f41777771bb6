// SPDX-License-Identifier: LGPL-2.1-only
//! A sink whose image goes away over something that may be slow: a network, or a pipe to a command.
//!
//! A thread of its own does that, so that the target, which stands still when a sink is made, never waits: until somebody
//! says that it may ([`Sink::may_wait`]), nothing here blocks, however many pieces are on their way, and from then on until
//! there are [`QUEUE`] of them. More of them wait in a file without a name, so that their memory is bounded, too. Pieces
//! that follow each other are sent as one.

use super::PAGE;
use super::sink::Sink;
use crate::error::{Because, Error, Result};
use nix::libc;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Most pieces in memory, unless no disk takes them while nobody may wait.
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
    /// As many bytes of a file, from an offset of its.
    Kept(u64, usize, Arc<File>, u64),
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
    /// Where pieces wait for which there is no room in memory, and how many bytes do; None: nowhere.
    disk: Option<Arc<File>>,
    kept: u64,
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
        let (disk, may_wait) = (None, false);
        Ok(Self {
            orders,
            empty,
            worker,
            at: 0,
            piece,
            away: 0,
            disk,
            kept: 0,
            may_wait,
            is_stream,
        })
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
        let (at, len) = (self.at, self.piece.len());
        self.at += len as u64;
        if let Some((disk, from)) = self.keep() {
            self.piece.clear();
            return self.order(Order::Kept(at, len, disk, from));
        }
        let mut next = back.unwrap_or_else(|| Vec::with_capacity(PIECE));
        next.clear();
        let piece = std::mem::replace(&mut self.piece, next);
        self.away += 1;
        self.order(Order::Piece(at, piece))
    }

    /// Has the piece wait on a disk, where there may be no more in memory and nobody may wait: in which file, and where.
    fn keep(&mut self) -> Option<(Arc<File>, u64)> {
        if self.may_wait || self.away < QUEUE {
            return None;
        }
        if self.kept == 0 {
            self.disk = on_disk().map(Arc::new);
        }
        let (disk, at) = (self.disk.take()?, self.kept);
        disk.write_all_at(&self.piece, at).ok()?;
        self.kept += self.piece.len() as u64;
        self.disk = Some(disk.clone());
        Some((disk, at))
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
        (self.may_wait, self.disk) = (true, None);
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
    let mut room = Vec::new();
    loop {
        match orders.recv_timeout(QUIET) {
            Err(RecvTimeoutError::Timeout) => far.alive()?,
            // The image is given up.
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(Order::Piece(at, piece)) => {
                far.piece(at, &piece)?;
                let _ = give_back.send(piece);
            }
            Ok(Order::Kept(at, len, disk, from)) => {
                room.resize(len, 0);
                disk.read_exact_at(&mut room, from)
                    .because(|| "cannot read what waits to be sent")?;
                far.piece(at, &room)?;
            }
            Ok(Order::Seal(len)) => return far.seal(len),
        }
    }
}

/// A file without a name, where there is more room than in memory; None: nowhere.
pub(crate) fn on_disk() -> Option<File> {
    let open = |dir: PathBuf| {
        let flags = libc::O_TMPFILE;
        File::options().read(true).write(true).custom_flags(flags).mode(0o600).open(dir)
    };
    let dirs = [std::env::var_os("TMPDIR").map(PathBuf::from), Some("/var/tmp".into())];
    dirs.into_iter().flatten().find_map(|dir| open(dir).ok())
}
