// SPDX-License-Identifier: LGPL-2.1-only
//! A stream whose bytes are sealed on their way: a wrapper of any other stream, or that as it is.
//!
//! It knows nothing of what goes through it, and who uses it of no cipher. Sealed, the bytes are Noise transport messages of
//! at most [`RECORD`] bytes of plain text, each behind its length (u16). A piece that is written at once begins a message of
//! its own. None is empty, so a stream that ends is cut off: that all has come has to be said by what it carries.

use std::io::{self, ErrorKind, IoSlice, Read, Write};

use ckpt_cipher::Resolver;
use snow::{Builder, HandshakeState, TransportState};

use super::protocol::{RECORD, broken};

/// Bytes of the shared key.
pub const KEY: usize = 32;
/// Bytes that sealing adds to a message.
const TAG: usize = 16;
/// Bytes of both handshake messages: an ephemeral key and a tag.
const HANDSHAKE: usize = 48;
/// Most messages that one write makes, which are in memory at once.
const MESSAGES: usize = 8;

/// How both sides come to their keys.
pub(super) struct Agreement<'a> {
    /// The name of the Noise protocol.
    pub name: &'a str,
    /// What both have.
    pub key: &'a [u8; KEY],
    /// What was said before in the clear, which both must have heard alike.
    pub prologue: &'a [u8],
}

/// A stream, sealed or as it is.
pub struct Sealed<S> {
    stream: S,
    seal: Option<Box<Noise>>,
}

/// The ciphers of both directions, and what is between them and the stream.
struct Noise {
    keys: TransportState,
    sealed: Vec<u8>,
    opened: Vec<u8>,
    /// How much of what was opened has been read.
    taken: usize,
}

impl<S: Read + Write> Sealed<S> {
    /// In the clear.
    pub(super) fn plain(stream: S) -> Self {
        Self { stream, seal: None }
    }

    /// Sealed, from the side that speaks first. None: the other side has another key.
    ///
    /// # Errors
    /// Those of the stream.
    pub(super) fn asking(mut stream: S, terms: &Agreement<'_>) -> io::Result<Option<Self>> {
        let Some(mut noise) = terms.begin(true) else { return Ok(None) };
        let agreed = say(&mut stream, &mut noise)?
            && hear(&mut stream)?.is_some_and(|message| opens(&mut noise, &message));
        Ok(Self::agreed(stream, noise).filter(|_| agreed))
    }

    /// The same from the side that answers, and which of the `keys` the other side has; that of the terms counts for nothing.
    ///
    /// # Errors
    /// Those of the stream.
    pub(super) fn answering(
        mut stream: S,
        terms: &Agreement<'_>,
        keys: &[[u8; KEY]],
    ) -> io::Result<Option<(Self, usize)>> {
        let Some(message) = hear(&mut stream)? else { return Ok(None) };
        for (i, key) in keys.iter().enumerate() {
            let Some(mut noise) = (Agreement { key, ..*terms }).begin(false) else { continue };
            if opens(&mut noise, &message) {
                let agreed = say(&mut stream, &mut noise)?;
                let sealed = Self::agreed(stream, noise).filter(|_| agreed);
                return Ok(sealed.map(|sealed| (sealed, i)));
            }
        }
        Ok(None)
    }

    fn agreed(stream: S, noise: HandshakeState) -> Option<Self> {
        let keys = noise.is_handshake_finished().then(|| noise.into_transport_mode().ok())??;
        let noise = Noise { keys, sealed: Vec::new(), opened: Vec::new(), taken: 0 };
        Some(Self { stream, seal: Some(Box::new(noise)) })
    }
}

impl<S> Sealed<S> {
    /// The stream below.
    pub fn below(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The same for a look.
    pub(super) fn beneath(&self) -> &S {
        &self.stream
    }

    /// Whether something has come that was not read yet.
    pub(super) fn has_more(&self) -> bool {
        self.seal.as_ref().is_some_and(|noise| noise.taken < noise.opened.len())
    }
}

impl Noise {
    /// Opens a message: into `bytes`, if all of it has room there.
    fn read(&mut self, stream: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.opened.len() {
            let mut len = [0; 2];
            stream.read_exact(&mut len)?;
            let len = usize::from(u16::from_le_bytes(len));
            let plain = len.checked_sub(TAG).filter(|plain| (1..=RECORD).contains(plain));
            let plain = plain.ok_or_else(|| broken("a message of a wrong length came"))?;
            let sealed = room(&mut self.sealed, len);
            stream.read_exact(sealed)?;
            let direct = plain <= bytes.len();
            self.opened.resize(if direct { 0 } else { plain }, 0);
            self.taken = 0;
            let target = if direct { &mut bytes[..plain] } else { &mut self.opened[..] };
            if self.keys.read_message(sealed, target).is_err() {
                // It is nobody's word.
                self.opened.clear();
                return Err(broken("a message that was not encrypted with our key came"));
            }
            if direct {
                return Ok(plain);
            }
        }
        let left = &self.opened[self.taken..];
        let now = left.len().min(bytes.len());
        bytes[..now].copy_from_slice(&left[..now]);
        self.taken += now;
        Ok(now)
    }

    /// Seals pieces; how many bytes of them, and how many that makes.
    fn seal(&mut self, parts: &[IoSlice<'_>]) -> io::Result<[usize; 2]> {
        let [mut taken, mut end] = [0; 2];
        for plain in parts.iter().flat_map(|part| part.chunks(RECORD)).take(MESSAGES) {
            let needed = end + 2 + plain.len() + TAG;
            let sealed = &mut room(&mut self.sealed, needed)[end..];
            let len = self
                .keys
                .write_message(plain, &mut sealed[2..])
                .map_err(|_| broken("a message could not be encrypted"))?;
            sealed[..2].copy_from_slice(&(len as u16).to_le_bytes());
            (taken, end) = (taken + plain.len(), needed);
        }
        Ok([taken, end])
    }
}

/// The beginning of a buffer that is only made longer.
fn room(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

impl<S: Read> Read for Sealed<S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &mut self.seal {
            None => self.stream.read(bytes),
            Some(_) if bytes.is_empty() => Ok(0),
            Some(noise) => noise.read(&mut self.stream, bytes),
        }
    }
}

impl<S: Write> Write for Sealed<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(noise) = &mut self.seal else { return self.stream.write_vectored(parts) };
        let [taken, len] = noise.seal(parts)?;
        self.stream.write_all(&noise.sealed[..len])?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Agreement<'_> {
    fn begin(&self, first: bool) -> Option<HandshakeState> {
        let builder = Builder::with_resolver(self.name.parse().ok()?, Box::<Resolver>::default());
        let builder = builder.psk(0, self.key).and_then(|b| b.prologue(self.prologue)).ok()?;
        if first { builder.build_initiator() } else { builder.build_responder() }.ok()
    }
}

/// Sends a message of the handshake; whether there could be one.
fn say(stream: &mut impl Write, noise: &mut HandshakeState) -> io::Result<bool> {
    let mut message = [0; 2 + HANDSHAKE];
    let Ok(len) = noise.write_message(&[], &mut message[2..]) else { return Ok(false) };
    message[..2].copy_from_slice(&(len as u16).to_le_bytes());
    stream.write_all(&message).map(|()| true)
}

/// Receives one; None if there could be none.
fn hear(stream: &mut impl Read) -> io::Result<Option<[u8; HANDSHAKE]>> {
    let mut message = [0; 2 + HANDSHAKE];
    match stream.read_exact(&mut message) {
        // What the other side does with a message that its key does not open.
        Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            return Ok(None);
        }
        read => read?,
    }
    let is_whole = usize::from(u16::from_le_bytes([message[0], message[1]])) == HANDSHAKE;
    Ok(message.last_chunk().copied().filter(|_| is_whole))
}

/// Whether our key opens one.
fn opens(noise: &mut HandshakeState, message: &[u8]) -> bool {
    noise.read_message(message, &mut []).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    const TERMS: Agreement<'_> = Agreement {
        name: "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s",
        key: &[7; KEY],
        prologue: b"hello",
    };

    /// What somebody on the way makes of the bytes.
    type Change = dyn Fn(&mut Vec<u8>);

    /// Two ends that have agreed, or not.
    fn pair(other: &Agreement<'_>) -> [Option<Sealed<UnixStream>>; 2] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| Sealed::asking(ours, &TERMS).unwrap());
            let keys = [[9; KEY], *other.key];
            let answering = Sealed::answering(theirs, other, &keys).unwrap();
            let answering = answering.map(|(sealed, key)| {
                assert_eq!(key, 1);
                sealed
            });
            [asking.join().unwrap(), answering]
        })
    }

    fn agreed() -> [Sealed<UnixStream>; 2] {
        pair(&TERMS).map(Option::unwrap)
    }

    #[test]
    fn what_is_written_in_any_pieces_comes_in_any_others() {
        let said: Vec<u8> = (0..4 * RECORD as u32 + 77).map(|n| (n / 3) as u8).collect();
        for [out, into] in [[1, 1000], [999, 7], [RECORD, 100_000], [said.len(), 5000]] {
            let [mut ours, mut theirs] = agreed();
            let said = &said[..said.len().min(out * 3000)];
            let heard = std::thread::scope(|scope| {
                scope.spawn(move || {
                    for piece in said.chunks(out) {
                        ours.write_all(piece).unwrap();
                    }
                });
                let mut heard = vec![0; said.len()];
                for piece in heard.chunks_mut(into) {
                    theirs.read_exact(piece).unwrap();
                }
                assert!(!theirs.has_more());
                let end = theirs.read(&mut [0; 9]).unwrap_err();
                assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
                heard
            });
            assert!(heard == said, "{out} {into}");
        }
    }

    #[test]
    fn pieces_begin_messages_and_long_ones_fill_them() {
        let [mut ours, mut theirs] = agreed();
        let long = vec![1; RECORD + 5];
        let written = ours.write_vectored(&[IoSlice::new(b"head"), IoSlice::new(&long)]).unwrap();
        assert_eq!(written, 4 + long.len());
        for expected in [4, RECORD, 5] {
            let mut len = [0; 2];
            theirs.below().read_exact(&mut len).unwrap();
            let len = usize::from(u16::from_le_bytes(len));
            assert_eq!(len, expected + TAG);
            theirs.below().read_exact(&mut vec![0; len]).unwrap();
        }
        let most = vec![0; MESSAGES * RECORD + 1];
        let reader = std::thread::spawn(move || io::copy(theirs.below(), &mut io::sink()));
        assert_eq!(ours.write(&most).unwrap(), MESSAGES * RECORD);
        drop(ours);
        let sent = (2 + RECORD + TAG) * MESSAGES;
        assert_eq!(reader.join().unwrap().unwrap(), sent as u64);
    }

    #[test]
    fn whatever_was_changed_on_the_way_is_refused() {
        let sealed = |change: &Change| {
            let [mut ours, mut theirs] = agreed();
            ours.write_all(b"one").unwrap();
            ours.write_all(b"two").unwrap();
            let mut bytes = vec![0; 2 * (2 + 3 + TAG)];
            theirs.below().read_exact(&mut bytes).unwrap();
            change(&mut bytes);
            ours.below().write_all(&bytes).unwrap();
            drop(ours);
            let mut heard = [0; 6];
            theirs.read_exact(&mut heard).map(|()| heard)
        };
        assert_eq!(&sealed(&|_| {}).unwrap(), b"onetwo");
        let changes: [&Change; 6] = [
            &|bytes| bytes[3] ^= 1,
            &|bytes| bytes[0] += 1,
            &|bytes| bytes[1] = 0xff,
            &|bytes| bytes[..2].fill(0),
            &|bytes| bytes.rotate_left(21),
            &|bytes| bytes.truncate(30),
        ];
        for change in changes {
            assert!(sealed(change).is_err());
        }
    }

    #[test]
    fn another_key_and_another_prologue_agree_on_nothing() {
        let key = Agreement { key: &[8; KEY], ..TERMS };
        let prologue = Agreement { prologue: b"hullo", ..TERMS };
        for other in [key, prologue] {
            assert!(pair(&other).iter().all(Option::is_none));
        }
    }
}
