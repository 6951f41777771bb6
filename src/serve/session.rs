// SPDX-License-Identifier: LGPL-2.1-only
//! One connection on the server: the beginning, one request, one line of the log.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::time::{Duration, Instant};

use super::channel::{Channel, Refusal, Wire, reason};
use super::log::Record;
use super::packs::{UNIT, Unit};
use super::protocol::{Checksum, Entry, Kind, Offer, OfferSums, Seal, Welcome};
use super::receiving::Upload;
use super::store::{Store, locked};
use super::users::User;
use crate::fault::{Point, reach};
use crate::image::zeros::nonzero;
use ckpt_cipher::Digest;
use std::sync::Mutex;

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
    crowded: bool,
}

/// Answers one connection, one of many if it is `crowded`; the line for the log, if there was a request at all.
pub fn answer<S: Wire>(stream: S, users: &[User], mut who: String, crowded: bool) -> Record {
    let begin = Instant::now();
    let keys: Vec<_> = users.iter().filter_map(|user| user.key).collect();
    let channel = Channel::accept(stream, &keys);
    let user = channel.as_ref().ok().and_then(|(_, whose)| users.get(*whose));
    if let Some(user) = user.filter(|user| !user.name.is_empty()) {
        who = format!("{}@{who}", user.name);
    }
    let record = |what, name, bytes, outcome| Record {
        who,
        what,
        name,
        bytes,
        time: begin.elapsed(),
        outcome,
    };
    let (channel, user) = match (channel, user) {
        (Ok((channel, _)), Some(user)) => (channel, user),
        (Err(refusal), _) => {
            return record("hello", String::new(), 0, Err(no_hello(&refusal)));
        }
        _ => return record("hello", String::new(), 0, Err("nobody is known".into())),
    };
    let mut session = Session { channel, store: &user.store, bytes: 0, crowded };
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
    let bytes = session.bytes;
    record(what, name, bytes, outcome)
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
struct Writing<'a, 'b> {
    upload: &'b Mutex<Upload<'a>>,
    /// None: it wants to know no units.
    digest: Option<Digest>,
    sum: Checksum,
    bytes: u64,
}

impl Writing<'_, '_> {
    /// Writes a piece.
    fn one(&mut self, offset: u64, piece: &[u8]) -> Result<(), Failure> {
        self.sum.add(offset, piece);
        self.bytes += piece.len() as u64;
        let units = self.digest.as_mut().map_or_else(Vec::new, |digest| units(digest, piece));
        Ok(locked(self.upload).write(offset, piece, &units)?)
    }

    /// Writes what comes until no more comes.
    fn all(
        &mut self,
        pieces: Receiver<(u64, usize, Vec<u8>)>,
        give_back: Sender<Vec<u8>>,
    ) -> Result<(), Failure> {
        for (offset, len, buffer) in pieces {
            self.one(offset, &buffer[..len])?;
            // The other side may be gone.
            let _ = give_back.send(buffer);
        }
        Ok(())
    }
}

/// What a piece is made of.
pub(super) fn units(digest: &mut Digest, piece: &[u8]) -> Vec<Unit> {
    let (mut units, mut left) = (Vec::with_capacity(piece.len().div_ceil(UNIT)), piece.len());
    digest.each(piece, UNIT, &mut |digest| {
        let len = left.min(UNIT);
        left -= len;
        units.push(Unit { digest, len: len as u32 });
    });
    units
}

/// Who takes pieces of an image: where each belongs, its bytes, and the buffer that begins with them.
type Taker<'a> = dyn FnMut(u64, usize, &mut Vec<u8>) -> Result<(), Failure> + 'a;

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

    /// One thread receives and decrypts, another one checks and writes; where there are many clients, one does both, so that
    /// there is one piece of each in memory.
    fn put(&mut self, name: &str) -> Result<(), Failure> {
        let upload = self.store.begin(name)?;
        let has_units = upload.has_units();
        let upload = Mutex::new(upload);
        let digest = has_units.then(Digest::default);
        let mut writing = Writing { upload: &upload, digest, sum: Checksum::default(), bytes: 0 };
        self.channel.send(Kind::Done, 0, &[u8::from(has_units)])?;
        let seal = match self.crowded {
            true => {
                let mut one = |offset, len, piece: &mut Vec<u8>| writing.one(offset, &piece[..len]);
                self.pieces(&upload, &mut one, None)
            }
            false => self.pieces_abreast(&mut writing),
        };
        let (bytes, sum) = (writing.bytes, writing.sum.sum());
        self.bytes += bytes;
        let (seal, offers) = seal?;
        if seal.sum != sum.wrapping_add(offers) {
            return Err(no("the checksum of what arrived is wrong"));
        }
        let mut upload = Some(upload.into_inner().unwrap_or_else(|e| e.into_inner()));
        self.patiently(&mut || {
            let Some(mut upload) = upload.take() else { return Ok(false) };
            upload.settle(seal.len)?;
            upload.commit().map(|()| true)
        })?;
        Ok(self.channel.send(Kind::Done, 0, &[])?)
    }

    fn pieces_abreast(&mut self, writing: &mut Writing<'_, '_>) -> Result<(Seal, u128), Failure> {
        let (queue, pieces) = sync_channel(QUEUE);
        let (give_back, empty) = channel();
        let failed = AtomicBool::new(false);
        let upload = writing.upload;
        std::thread::scope(|scope| {
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
            let mut one = |offset, len, piece: &mut Vec<u8>| {
                let next = empty.try_recv().unwrap_or_default();
                let order = (offset, len, std::mem::replace(piece, next));
                queue.send(order).map_err(|_| no("it could not be written"))
            };
            let received = self.pieces(upload, &mut one, Some(failed));
            drop(queue);
            match writer.join() {
                // What the writer says comes first: the other only saw that it was not there any more.
                Ok(written) => written.and(received),
                Err(_) => Err(no("the server failed while it wrote to the disk")),
            }
        })
    }

    /// Receives an image up to its seal, which it returns with the checksum of the offers. `one` takes a piece, and may take
    /// its buffer for another one.
    fn pieces(
        &mut self,
        upload: &Mutex<Upload<'_>>,
        one: &mut Taker<'_>,
        failed: Option<&AtomicBool>,
    ) -> Result<(Seal, u128), Failure> {
        let mut sums = OfferSums::default();
        loop {
            // A client that waits for our word before it goes on hears of a failure, too.
            for failed in std::iter::repeat_n(failed, GLANCES as usize).flatten() {
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
                    one(header.offset, header.len as usize, self.channel.buffer())?;
                }
                Kind::Offer => {
                    let offer = self.channel.payload(&header);
                    sums.offers.add(header.offset, offer);
                    let units = Offer::read(offer)?;
                    let lacks = locked(upload).offer(header.offset, &units)?;
                    let mut bits = vec![0; lacks.len().div_ceil(8)];
                    for (i, _) in lacks.iter().enumerate().filter(|(_, lacks)| **lacks) {
                        bits[i / 8] |= 1 << (i % 8);
                    }
                    sums.answers.add(header.offset, &bits);
                    self.channel.send(Kind::Lacks, header.offset, &bits)?;
                }
                Kind::Wait => {}
                Kind::Seal => {
                    let seal = Seal::read(self.channel.payload(&header))?;
                    return Ok((seal, sums.sum()));
                }
                _ => return Err(no("a frame came that does not belong into an upload")),
            }
        }
    }

    /// Does what can take long on a disk, while the client hears that we live.
    fn patiently(
        &mut self,
        work: &mut (dyn FnMut() -> Result<bool, String> + Send),
    ) -> Result<bool, Failure> {
        let (sender, done) = channel();
        std::thread::scope(|scope| {
            let worker = std::thread::Builder::new().stack_size(super::server::STACK);
            worker
                .spawn_scoped(scope, move || sender.send(work()))
                .map_err(|e| Failure::No(format!("no thread for the disk: {e}")))?;
            loop {
                match done.recv_timeout(WAIT) {
                    Ok(result) => return Ok(result?),
                    Err(RecvTimeoutError::Timeout) => {
                        self.channel.send(Kind::Wait, 0, &[])?;
                    }
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(no("the server failed while it wrote to the disk"));
                    }
                }
            }
        })
    }

    fn get(&mut self, name: &str) -> Result<(), Failure> {
        let stored = self.store.read(name)?;
        let len = stored.len();
        self.channel.send(Kind::Done, 0, &len.to_le_bytes())?;
        let mut sum = Checksum::default();
        let mut lost = None;
        let sent = stored.each(&mut |at, piece| {
            reach(Point::Sending);
            for (begin, bytes) in nonzero(piece) {
                let offset = at + begin as u64;
                sum.add(offset, bytes);
                let sent = self.channel.send(Kind::Data, offset, bytes);
                sent.inspect_err(|e| lost = Some(reason(e)))?;
                self.bytes += bytes.len() as u64;
            }
            Ok(())
        });
        if let Some(why) = lost {
            return Err(Failure::Lost(why));
        }
        sent.map_err(|e| Failure::No(format!("the server cannot read it: {}", reason(&e))))?;
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
        let store = self.store;
        let is_done = self.patiently(&mut || store.finish(name, of))?;
        Ok(self.channel.send(Kind::Done, 0, &[u8::from(is_done)])?)
    }

    fn remove(&mut self, name: &str) -> Result<(), Failure> {
        let store = self.store;
        self.patiently(&mut || store.remove(name).map(|()| true))?;
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
