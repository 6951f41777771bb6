// SPDX-License-Identifier: LGPL-2.1-only
//! The client's side of a request.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ckpt_cipher::Digest;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::channel::{Channel, KEY, Refusal, Wire, reason};
use super::packs::UNIT;
use super::protocol::{
    Checksum, Entry, Header, Kind, OFFERS, Offer, OfferSums, Seal, Welcome, broken,
};
use super::session::units;
use crate::error::{self, Because, Error, Result};
use crate::image::key;
use crate::image::sink::Sink;
use crate::image::zeros::nonzero;
use crate::order;
use crate::progress::{self, Screen};
use crate::settings::server::{self, ServerName, Transfer};

/// Longest time for a connection to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the server may be silent, or take nothing.
const SILENCE: Duration = Duration::from_secs(20);
/// How long a busy server is asked again.
const BUSY: Duration = Duration::from_secs(5);
/// Bytes of which it is not known yet whether the server has them.
const WINDOW: usize = 4 << 20;
/// Most names that are taken from a server.
const ENTRIES: usize = 1 << 20;

impl Wire for TcpStream {
    fn speaks(&self) -> bool {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }
}

/// A connection to a server.
pub(crate) struct Client {
    channel: Channel<TcpStream>,
    server: String,
}

/// An image on its way to the server.
pub(crate) struct Put {
    client: Client,
    name: String,
    sum: Checksum,
    /// Where the server asks for what it has not.
    offers: Option<Offers>,
}

/// What the server was offered, and did not answer to yet.
#[derive(Default)]
struct Offers {
    digest: Digest,
    /// Of what was offered, and of what was answered.
    sums: OfferSums,
    waiting: VecDeque<(u64, Vec<u8>)>,
    /// Bytes of these.
    bytes: usize,
    /// Buffers of earlier ones: new memory for each piece costs as much as its digests.
    spare: Vec<Vec<u8>>,
}

/// The shared key, if one is to be used.
///
/// # Errors
/// The key file is not there, or not only ours.
pub(crate) fn shared_key(transfer: &Transfer) -> Result<Option<[u8; KEY]>> {
    if transfer.insecure == Some(true) {
        return Ok(None);
    }
    if let Some(server::Key::Passphrase(_) | server::Key::Descriptor(_)) = transfer.key {
        return Err(Error::new("a passphrase is no key for a checkpoint server").hint(
            "--key FILE encrypts checkpoints with the server's key; with --insecure the server needs none",
        ));
    }
    let path = transfer.key.as_ref().and_then(|key| key.path());
    let path = path.ok_or_else(|| {
        Error::new(
            "there is no key for the checkpoint server, and no home directory to look for one",
        )
        .hint("name it with --key FILE, or say --insecure")
    })?;
    key::read(path).map(Some)
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// The server cannot be reached, or server and client do not accept each other.
    pub(crate) fn connect(name: &ServerName, transfer: &Transfer) -> Result<Self> {
        let key = shared_key(transfer)?;
        let begin = Instant::now();
        loop {
            match Self::try_connect(name, key.as_ref())? {
                Ok(channel) => return Ok(Self { channel, server: name.server() }),
                Err(Refusal::Unwelcome(Welcome::Busy)) if begin.elapsed() < BUSY => {
                    std::thread::sleep(Duration::from_millis(200));
                }
                Err(refusal) => return Err(unwelcome(&name.server(), &refusal)),
            }
        }
    }

    fn try_connect(
        name: &ServerName,
        key: Option<&[u8; KEY]>,
    ) -> Result<std::result::Result<Channel<TcpStream>, Refusal>> {
        let why = || format!("cannot reach the checkpoint server {}", name.server());
        let stream = open(name).map_err(|e| match e.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => io::Error::other("no answer in time"),
            _ => e,
        });
        let stream = stream.because(why).map_err(|e| e.of(error::Kind::Unreachable))?;
        let limit = Some(SILENCE);
        stream.set_nodelay(true).because(why)?;
        stream
            .set_read_timeout(limit)
            .and_then(|()| stream.set_write_timeout(limit))
            .because(why)?;
        // A write that times out after a part of its bytes begins anew for the rest; so the connection itself
        // ends when nothing was acknowledged for so long (tcp(7)).
        let silence = SILENCE.as_millis() as u32;
        setsockopt(&stream, sockopt::TcpUserTimeout, &silence).because(why)?;
        Ok(Channel::connect(stream, key))
    }

    /// Begins an upload.
    ///
    /// # Errors
    /// The server refuses, or the connection ends.
    pub(crate) fn put(mut self, name: &str) -> Result<Put> {
        self.ask(Kind::Put, name)?;
        let header = self.expect(Kind::Done, name)?;
        let offers = (self.channel.payload(&header) == [1]).then(Offers::default);
        Ok(Put { client: self, name: name.into(), sum: Checksum::default(), offers })
    }

    /// Fetches an image into a sink; its length.
    ///
    /// # Errors
    /// The server refuses, the connection ends, the image arrives damaged, or the sink fails.
    pub(crate) fn get(mut self, name: &str, sink: &mut dyn Sink) -> Result<u64> {
        self.ask(Kind::Get, name)?;
        let header = self.expect(Kind::Done, name)?;
        let total = self.channel.payload(&header).first_chunk().map(|len| u64::from_le_bytes(*len));
        let _shown = progress::begin(name.to_owned(), total, Screen::Own);
        let mut sum = Checksum::default();
        loop {
            let header = self.hear(name)?;
            let payload = self.channel.payload(&header);
            match header.kind {
                Kind::Data => {
                    sum.add(header.offset, payload);
                    sink.write_at(header.offset, payload)?;
                    progress::add(payload.len() as u64);
                }
                Kind::Seal => {
                    let seal = Seal::read(payload).map_err(|e| lost(&self.server, name, &e))?;
                    if seal.sum != sum.sum() || Some(seal.len) != total {
                        let what = broken("the checksum of what arrived is wrong");
                        return Err(lost(&self.server, name, &what));
                    }
                    sink.seal(seal.len)?;
                    return Ok(seal.len);
                }
                _ => return Err(lost(&self.server, name, &broken("a strange answer came"))),
            }
        }
    }

    /// The checkpoints in a folder, sorted by name.
    ///
    /// # Errors
    /// The server refuses, or the connection ends.
    pub(crate) fn list(mut self, folder: &str) -> Result<Vec<Entry>> {
        self.ask(Kind::List, folder)?;
        let mut entries = Vec::new();
        loop {
            let header = self.hear(folder)?;
            let entry = Entry::read(self.channel.payload(&header));
            match (header.kind, entry) {
                (Kind::Entry, Ok(entry)) if entries.len() < ENTRIES => entries.push(entry),
                (Kind::Done, _) => break,
                _ => return Err(lost(&self.server, folder, &broken("a strange answer came"))),
            }
        }
        order::by(&mut entries, |a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Removes a checkpoint.
    ///
    /// # Errors
    /// The server refuses, or the connection ends.
    pub(crate) fn remove(mut self, name: &str) -> Result<()> {
        self.ask(Kind::Remove, name)?;
        self.expect(Kind::Done, name).map(drop)
    }

    /// Sets a checkpoint aside whose program has come to its end, if it is of this run (0: any); false if the run that is
    /// named alone was ended by it.
    ///
    /// # Errors
    /// It is another's, the server does not know this request, or the connection ends.
    pub(crate) fn finish(mut self, name: &str, [run, number]: [u64; 2]) -> Result<bool> {
        self.ask(Kind::Finish, &format!("{name}\n{run} {number}"))?;
        let header = self.expect(Kind::Done, name)?;
        // One that says nothing else has done it.
        Ok(self.channel.payload(&header) != [0])
    }

    fn ask(&mut self, kind: Kind, name: &str) -> Result<()> {
        let sent = self.channel.send(kind, 0, name.as_bytes());
        sent.map_err(|e| lost(&self.server, name, &e))
    }

    fn expect(&mut self, kind: Kind, name: &str) -> Result<Header> {
        let header = self.hear(name)?;
        if header.kind != kind {
            return Err(lost(&self.server, name, &broken("a strange answer came")));
        }
        Ok(header)
    }

    /// The next frame that is neither a refusal nor a plea for patience.
    fn hear(&mut self, name: &str) -> Result<Header> {
        loop {
            let header = self.channel.receive().map_err(|e| lost(&self.server, name, &e))?;
            match header.kind {
                Kind::Wait => {}
                Kind::Refused => {
                    let why = String::from_utf8_lossy(self.channel.payload(&header));
                    let why: String = why.chars().filter(|c| !c.is_control()).take(500).collect();
                    let server = &self.server;
                    let sentence =
                        format!("the checkpoint server {server} refuses '{name}': {why}");
                    return Err(Error::new(sentence).of(error::Kind::Refused));
                }
                _ => return Ok(header),
            }
        }
    }
}

impl Put {
    /// Sends a piece of at most [`super::protocol::PIECE`] bytes, but for its pages of zeros.
    ///
    /// # Errors
    /// The server refuses, or the connection ends.
    pub(crate) fn piece(&mut self, at: u64, piece: &[u8]) -> Result<()> {
        for (begin, bytes) in nonzero(piece) {
            let offset = at + begin as u64;
            if self.offers.is_some() {
                self.offer(offset, bytes)?;
                continue;
            }
            if self.client.channel.stream().speaks() {
                return Err(self.refused());
            }
            self.data(offset, bytes)?;
        }
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.sum.add(offset, bytes);
        self.send(Kind::Data, offset, bytes)
    }

    fn send(&mut self, kind: Kind, offset: u64, bytes: &[u8]) -> Result<()> {
        match self.client.channel.send(kind, offset, bytes) {
            Ok(()) => Ok(()),
            // Its last words may still be there.
            Err(e) if self.client.channel.stream().speaks() && !timed_out(&e) => {
                Err(self.refused())
            }
            Err(e) => Err(lost(&self.client.server, &self.name, &e)),
        }
    }

    /// Tells the server what a piece is made of, and sends what it lacks of earlier ones.
    fn offer(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some(offers) = &mut self.offers else { return Ok(()) };
        let offer = Offer::bytes(&units(&mut offers.digest, bytes));
        offers.sums.offers.add(offset, &offer);
        offers.bytes += bytes.len();
        let mut own = offers.spare.pop().unwrap_or_default();
        own.clear();
        own.extend_from_slice(bytes);
        offers.waiting.push_back((offset, own));
        self.send(Kind::Offer, offset, &offer)?;
        self.answered(OFFERS, WINDOW)
    }

    /// Hears answers: those that are there, and for as long as more offers or bytes than these wait for one.
    fn answered(&mut self, most: usize, most_bytes: usize) -> Result<()> {
        while let Some(offers) = &mut self.offers {
            let many = offers.waiting.len() > most || offers.bytes > most_bytes;
            if !many && !self.client.channel.stream().speaks() {
                break;
            }
            let header = self.client.hear(&self.name)?;
            let first = offers.waiting.pop_front();
            let (offset, bytes) = match first.filter(|_| header.kind == Kind::Lacks) {
                Some(first) if first.0 == header.offset => first,
                _ => return Err(early(&self.client.server, &self.name)),
            };
            let bits = self.client.channel.payload(&header).to_vec();
            offers.sums.answers.add(offset, &bits);
            offers.bytes -= bytes.len();
            let lacks = |i: usize| bits.get(i / 8).is_some_and(|byte| byte & 1 << (i % 8) != 0);
            let mut at = 0;
            while at < bytes.len() {
                let mut end = at;
                while end < bytes.len() && lacks(end / UNIT) {
                    end = (end + UNIT).min(bytes.len());
                }
                if end > at {
                    self.data(offset + at as u64, &bytes[at..end])?;
                }
                at = end.max(at + UNIT);
            }
            if let Some(offers) = &mut self.offers {
                offers.spare.push(bytes);
            }
        }
        Ok(())
    }

    /// Tells the server that the image goes on, only later.
    ///
    /// # Errors
    /// As before.
    pub(crate) fn alive(&mut self) -> Result<()> {
        match self.offers {
            Some(_) => self.answered(OFFERS, WINDOW)?,
            None if self.client.channel.stream().speaks() => return Err(self.refused()),
            None => {}
        }
        let sent = self.client.channel.send(Kind::Wait, 0, &[]);
        sent.map_err(|e| lost(&self.client.server, &self.name, &e))
    }

    /// Ends the image; returns when the server has it on its disk.
    ///
    /// # Errors
    /// As before; the server keeps what it had under this name.
    pub(crate) fn seal(&mut self, len: u64) -> Result<()> {
        self.answered(0, 0)?;
        let offers = self.offers.as_ref().map_or(0, |offers| offers.sums.sum());
        let seal = Seal { len, sum: self.sum.sum().wrapping_add(offers) }.bytes();
        let sent = self.client.channel.send(Kind::Seal, 0, &seal);
        match sent {
            Err(e) if timed_out(&e) => Err(lost(&self.client.server, &self.name, &e)),
            // Otherwise the answer says it better.
            _ => self.client.expect(Kind::Done, &self.name).map(drop),
        }
    }

    /// What the server says in the middle of an upload, which is never good.
    fn refused(&mut self) -> Error {
        match self.client.hear(&self.name) {
            Err(e) => e,
            Ok(_) => early(&self.client.server, &self.name),
        }
    }
}

fn early(server: &str, name: &str) -> Error {
    lost(server, name, &broken("an answer came before the question"))
}

fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

fn open(name: &ServerName) -> io::Result<TcpStream> {
    let begin = Instant::now();
    let mut last = io::Error::other("the name has no address");
    for address in name.place().to_socket_addrs()? {
        let Some(left) = CONNECT.checked_sub(begin.elapsed()) else { break };
        match TcpStream::connect_timeout(&address, left.max(Duration::from_millis(1))) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn unwelcome(server: &str, refusal: &Refusal) -> Error {
    let (why, way_out) = match refusal {
        Refusal::Unwelcome(Welcome::OtherVersion) => {
            ("speaks another version of the protocol", "install the same ckpt on both sides")
        }
        Refusal::Unwelcome(Welcome::NeedsKey) => (
            "has a key and refuses whoever comes without",
            "leave out --insecure, and name its key with --key FILE",
        ),
        Refusal::Unwelcome(Welcome::HasNoKey) => {
            ("is insecure", "if that is meant, say --insecure")
        }
        Refusal::Unwelcome(_) => ("is busy", "try again later, or raise its --max-clients"),
        Refusal::Key => {
            ("has another key than ours", "copy its key file, or name it with --key FILE")
        }
        Refusal::Stream(error) => {
            let sentence =
                format!("the checkpoint server {server} did not greet us: {}", reason(error));
            return Error::new(sentence).hint("it may be busy, or something else than ckpt serve");
        }
    };
    Error::new(format!("the checkpoint server {server} {why}")).hint(way_out)
}

fn lost(server: &str, name: &str, error: &io::Error) -> Error {
    let why = reason(error);
    Error::new(format!("the checkpoint server {server} was lost with '{name}' on its way: {why}"))
}
