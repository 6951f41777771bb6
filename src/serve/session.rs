// SPDX-License-Identifier: LGPL-2.1-only
//! One connection on the server: the beginning, one request, one line of the log.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use super::channel::{Channel, KEY, Refusal, Wire, reason};
use super::log::Record;
use super::protocol::{Checksum, Entry, Header, Kind, PIECE, Seal, Welcome};
use super::store::{Store, Upload};
use crate::fault::{Point, reach};
use crate::image::zeros::nonzero;
use std::os::unix::fs::FileExt;

/// Time between two `Wait` frames while the disk is slow.
const WAIT: Duration = Duration::from_secs(3);
/// Longest name that is taken out of a request, valid or not.
const NAME_SHOWN: usize = 2048;

/// Why a request came to nothing.
enum Failure {
    /// The client is told.
    No(String),
    /// Nobody is there to be told.
    Lost(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidData => Self::No(error.to_string()),
            _ => Self::Lost(reason(&error)),
        }
    }
}

impl From<String> for Failure {
    fn from(sentence: String) -> Self {
        Self::No(sentence)
    }
}

struct Session<'a, S> {
    channel: Channel<S>,
    store: &'a Store,
    bytes: u64,
}

/// Answers one connection; the line for the log, if there was a request at all.
pub fn answer<S: Wire>(stream: S, key: Option<&[u8; KEY]>, store: &Store, who: String) -> Record {
    let begin = Instant::now();
    let record = |what, name, bytes, outcome| Record {
        who,
        what,
        name,
        bytes,
        time: begin.elapsed(),
        outcome,
    };
    let channel = match Channel::accept(stream, key) {
        Ok(channel) => channel,
        Err(refusal) => return record("hello", String::new(), 0, Err(no_hello(&refusal))),
    };
    let mut session = Session { channel, store, bytes: 0 };
    let (what, name, result) = session.request();
    let outcome = match result {
        Ok(()) => Ok(()),
        Err(Failure::Lost(why)) => Err(why),
        Err(Failure::No(why)) => {
            let _ = session.channel.send(Kind::Refused, 0, why.as_bytes());
            session.channel.stream().leave();
            Err(why)
        }
    };
    record(what, name, session.bytes, outcome)
}

fn no_hello(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Unwelcome(Welcome::OtherVersion) => "it speaks another version".into(),
        Refusal::Unwelcome(Welcome::NeedsKey) => "it came without a key".into(),
        Refusal::Unwelcome(Welcome::HasNoKey) => "it came with a key, and we have none".into(),
        Refusal::Unwelcome(_) => "not welcome".into(),
        Refusal::Key => "it has not our key".into(),
        Refusal::Stream(error) => reason(error),
    }
}

/// How often, and for how long each time, an upload's client is waited for with an eye on the disk.
const GLANCES: u32 = 100;
/// See [`GLANCES`].
const GLANCE: Duration = Duration::from_millis(10);
/// Pieces that were received and not written yet.
const QUEUE: usize = 4;

/// An upload on its way to the disk.
struct Writing<'a> {
    upload: Upload<'a>,
    sum: Checksum,
    bytes: u64,
}

impl Writing<'_> {
    /// Writes what comes until no more comes.
    fn all(
        &mut self,
        pieces: Receiver<(Header, Vec<u8>)>,
        give_back: Sender<Vec<u8>>,
    ) -> Result<(), Failure> {
        for (header, buffer) in pieces {
            let piece = &buffer[..header.len as usize];
            self.sum.add(header.offset, piece);
            self.bytes += piece.len() as u64;
            self.upload.write(header.offset, piece)?;
            // The other side may be gone.
            let _ = give_back.send(buffer);
        }
        Ok(())
    }
}

impl<S: Wire> Session<'_, S> {
    fn request(&mut self) -> (&'static str, String, Result<(), Failure>) {
        let header = match self.channel.receive() {
            Ok(header) => header,
            Err(e) => return ("hello", String::new(), Err(e.into())),
        };
        let payload = self.channel.payload(&header);
        let valid = str::from_utf8(payload).is_ok() && payload.len() <= NAME_SHOWN;
        // What only one request has behind its name.
        let end = payload.iter().position(|b| *b == b'\n' && header.kind == Kind::Finish);
        let (payload, rest) = payload.split_at(end.unwrap_or(payload.len()));
        let shown = &payload[..payload.len().min(NAME_SHOWN)];
        let name = String::from_utf8_lossy(shown).into_owned();
        let of = finished_run(rest);
        let what = match header.kind {
            Kind::Put => "put",
            Kind::Get => "get",
            Kind::List => "ls",
            Kind::Remove => "rm",
            Kind::Finish => "finish",
            _ => return ("hello", String::new(), Err(no("that is no request"))),
        };
        let result = match header.kind {
            _ if !valid => Err(no("the name is too long, or not UTF-8")),
            Kind::Put => self.put(&name),
            Kind::Get => self.get(&name),
            Kind::List => self.list(&name),
            Kind::Finish => self.finish(&name, of),
            _ => self.remove(&name),
        };
        (what, name, result)
    }

    /// One thread receives and decrypts, another one checks and writes.
    fn put(&mut self, name: &str) -> Result<(), Failure> {
        let mut writing =
            Writing { upload: self.store.begin(name)?, sum: Checksum::default(), bytes: 0 };
        self.channel.send(Kind::Done, 0, &[])?;
        let (queue, pieces) = sync_channel(QUEUE);
        let (give_back, empty) = channel();
        let failed = AtomicBool::new(false);
        let seal = std::thread::scope(|scope| -> Result<Seal, Failure> {
            let writing = &mut writing;
            let failed = &failed;
            let work = move || {
                let written = writing.all(pieces, give_back);
                failed.store(written.is_err(), Ordering::Relaxed);
                written
            };
            let writer = std::thread::Builder::new().stack_size(super::server::STACK);
            let writer = writer
                .spawn_scoped(scope, work)
                .map_err(|e| Failure::No(format!("no thread for the disk: {e}")))?;
            let received = self.pieces(queue, &empty, failed);
            match writer.join() {
                // What the writer says comes first: the other only saw that it was not there any more.
                Ok(written) => written.and(received),
                Err(_) => Err(no("the server failed while it wrote to the disk")),
            }
        });
        self.bytes += writing.bytes;
        let seal = seal?;
        if seal.sum != writing.sum.sum() {
            return Err(no("the checksum of what arrived is wrong"));
        }
        self.seal(writing.upload, seal.len)
    }

    /// Receives an image up to its seal.
    fn pieces(
        &mut self,
        queue: SyncSender<(Header, Vec<u8>)>,
        empty: &Receiver<Vec<u8>>,
        failed: &AtomicBool,
    ) -> Result<Seal, Failure> {
        loop {
            // A client that waits for our word before it goes on hears of a failure, too.
            for _ in 0..GLANCES {
                if failed.load(Ordering::Relaxed) {
                    return Err(no("it could not be written"));
                }
                if self.channel.stream().speaks_within(GLANCE) {
                    break;
                }
            }
            let header = self.channel.receive()?;
            match header.kind {
                Kind::Data => {
                    let mut piece = empty.try_recv().unwrap_or_default();
                    self.channel.swap_payload(&mut piece);
                    queue.send((header, piece)).map_err(|_| no("it could not be written"))?;
                }
                Kind::Wait => {}
                Kind::Seal => return Ok(Seal::read(self.channel.payload(&header))?),
                _ => return Err(no("a frame came that does not belong into an upload")),
            }
        }
    }

    /// Brings the image to the disk, which can take long, while the client hears that we live.
    fn seal(&mut self, mut upload: Upload<'_>, len: u64) -> Result<(), Failure> {
        let (sender, settled) = channel();
        std::thread::scope(|scope| -> Result<(), Failure> {
            let upload = &mut upload;
            let worker = std::thread::Builder::new().stack_size(super::server::STACK);
            worker
                .spawn_scoped(scope, move || sender.send(upload.settle(len)))
                .map_err(|e| Failure::No(format!("no thread for the disk: {e}")))?;
            loop {
                match settled.recv_timeout(WAIT) {
                    Ok(result) => return Ok(result?),
                    Err(RecvTimeoutError::Timeout) => {
                        self.channel.send(Kind::Wait, 0, &[])?;
                    }
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(no("the server failed while it wrote to the disk"));
                    }
                }
            }
        })?;
        upload.commit()?;
        Ok(self.channel.send(Kind::Done, 0, &[])?)
    }

    fn get(&mut self, name: &str) -> Result<(), Failure> {
        let (file, len) = self.store.read(name)?;
        self.channel.send(Kind::Done, 0, &len.to_le_bytes())?;
        let mut sum = Checksum::default();
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        while at < len {
            reach(Point::Sending);
            let bytes = &mut piece[..(len - at).min(PIECE as u64) as usize];
            file.read_exact_at(bytes, at)
                .map_err(|e| Failure::No(format!("the server cannot read it: {}", reason(&e))))?;
            for (begin, bytes) in nonzero(bytes) {
                let offset = at + begin as u64;
                sum.add(offset, bytes);
                self.channel.send(Kind::Data, offset, bytes)?;
                self.bytes += bytes.len() as u64;
            }
            at += bytes.len() as u64;
        }
        let seal = Seal { len, sum: sum.sum() };
        Ok(self.channel.send(Kind::Seal, 0, &seal.bytes())?)
    }

    fn list(&mut self, folder: &str) -> Result<(), Failure> {
        let channel = &mut self.channel;
        let mut lost = None;
        let mut tell = |entry: Entry| {
            channel.send(Kind::Entry, 0, &entry.bytes()).map_err(|e| {
                let why = reason(&e);
                lost = Some(why.clone());
                why
            })
        };
        let listed = self.store.list(folder, &mut tell);
        if let Some(why) = lost {
            return Err(Failure::Lost(why));
        }
        listed?;
        Ok(self.channel.send(Kind::Done, 0, &[])?)
    }

    fn finish(&mut self, name: &str, of: Option<[u64; 2]>) -> Result<(), Failure> {
        let of = of.ok_or_else(|| no("it is not said whose checkpoint is meant"))?;
        let is_done = self.store.finish(name, of)?;
        Ok(self.channel.send(Kind::Done, 0, &[u8::from(is_done)])?)
    }

    fn remove(&mut self, name: &str) -> Result<(), Failure> {
        self.store.remove(name)?;
        Ok(self.channel.send(Kind::Done, 0, &[])?)
    }
}

/// The two numbers of a `Finish` request.
fn finished_run(rest: &[u8]) -> Option<[u64; 2]> {
    let (run, number) = str::from_utf8(rest).ok()?.strip_prefix('\n')?.split_once(' ')?;
    Some([run.parse().ok()?, number.parse().ok()?])
}

fn no(sentence: &str) -> Failure {
    Failure::No(sentence.into())
}
