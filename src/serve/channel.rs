// SPDX-License-Identifier: LGPL-2.1-only
//! Frames over a stream: in the clear, or as Noise messages.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use ckpt_cipher::Resolver;
use snow::{Builder, HandshakeState, TransportState};

use super::protocol::{
    HEADER, Header, Kind, Mode, PIECE, PREAMBLE, Preamble, RECORD, VERSION, Welcome, broken,
};

/// Bytes of the shared key.
pub const KEY: usize = 32;
/// Bytes that encryption adds to a message.
const TAG: usize = 16;
/// Bytes of both handshake messages: an ephemeral key and a tag.
const HANDSHAKE: usize = 48;

impl<S: Wire + ?Sized> Wire for &mut S {
    fn speaks(&self) -> bool {
        (**self).speaks()
    }

    fn speaks_within(&self, limit: Duration) -> bool {
        (**self).speaks_within(limit)
    }

    fn trusted(&mut self) {
        (**self).trusted();
    }

    fn leave(&mut self) {
        (**self).leave();
    }
}

/// A stream that frames go over.
pub trait Wire: Read + Write {
    /// Whether the other side has said something that was not read yet.
    fn speaks(&self) -> bool {
        false
    }

    /// The same, once it does so within `limit`.
    fn speaks_within(&self, _limit: Duration) -> bool {
        true
    }

    /// The handshake is over; time limits are those of work now.
    fn trusted(&mut self) {}

    /// Lets the other side read our last words before the connection ends.
    fn leave(&mut self) {}
}

/// Why there is no channel.
#[derive(Debug)]
pub enum Refusal {
    /// The server's word.
    Unwelcome(Welcome),
    /// The other side has another key, or is no friend.
    Key,
    /// The stream failed.
    Stream(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Stream(error)
    }
}

/// Frames over a stream.
pub struct Channel<S> {
    stream: S,
    noise: Option<Box<TransportState>>,
    cipher: Vec<u8>,
    payload: Vec<u8>,
}

impl<S: Wire> Channel<S> {
    /// The client's side of the beginning.
    ///
    /// # Errors
    /// The server does not welcome us, has another key, or is none.
    pub fn connect(stream: S, key: Option<&[u8; KEY]>) -> Result<Self, Refusal> {
        Self::connect_in(key.map_or(Mode::Plain, |_| Mode::encrypted()), stream, key)
    }

    /// The same in a mode of the caller's choice, which is not `Plain` with a key and nothing else without.
    ///
    /// # Errors
    /// As there.
    pub fn connect_in(mode: Mode, mut stream: S, key: Option<&[u8; KEY]>) -> Result<Self, Refusal> {
        let ours = Preamble { version: VERSION, mode, welcome: 0 }.bytes();
        stream.write_all(&ours)?;
        let theirs = read_preamble(&mut stream)?;
        let answer = Preamble::read(&theirs)?;
        match answer.welcome {
            0 if answer.version == VERSION && answer.mode == mode => {}
            1 => return Err(Refusal::Unwelcome(Welcome::OtherVersion)),
            2 => return Err(Refusal::Unwelcome(Welcome::NeedsKey)),
            3 => return Err(Refusal::Unwelcome(Welcome::HasNoKey)),
            4 => return Err(Refusal::Unwelcome(Welcome::Busy)),
            _ => return Err(broken("the server answered in a way that is not known").into()),
        }
        let Some(key) = key else { return Ok(Self::new(stream, None)) };
        let mut noise = handshake(mode, key, &ours, &theirs, true)?;
        say(&mut stream, &mut noise)?;
        hear(&mut stream, &mut noise)?;
        Self::encrypted(stream, noise)
    }

    /// The server's side of the beginning.
    ///
    /// # Errors
    /// The client is none, or not welcome.
    pub fn accept(mut stream: S, key: Option<&[u8; KEY]>) -> Result<Self, Refusal> {
        let theirs = read_preamble(&mut stream)?;
        let asked = Preamble::read(&theirs)?;
        let welcome = match (asked.version, asked.mode.noise(), key) {
            (version, ..) if version != VERSION => Welcome::OtherVersion,
            (_, None, Some(_)) => Welcome::NeedsKey,
            (_, Some(_), None) => Welcome::HasNoKey,
            _ => Welcome::Yes,
        };
        let ours = Preamble { version: VERSION, mode: asked.mode, welcome: welcome as u8 };
        let ours = ours.bytes();
        stream.write_all(&ours)?;
        if welcome != Welcome::Yes {
            stream.leave();
            return Err(Refusal::Unwelcome(welcome));
        }
        let Some(key) = key else {
            stream.trusted();
            return Ok(Self::new(stream, None));
        };
        let mut noise = handshake(asked.mode, key, &theirs, &ours, false)?;
        hear(&mut stream, &mut noise)?;
        say(&mut stream, &mut noise)?;
        stream.trusted();
        Self::encrypted(stream, noise)
    }

    fn new(stream: S, noise: Option<Box<TransportState>>) -> Self {
        Self { stream, noise, cipher: Vec::new(), payload: Vec::new() }
    }

    fn encrypted(stream: S, noise: HandshakeState) -> Result<Self, Refusal> {
        let noise = noise.into_transport_mode().map_err(|_| Refusal::Key)?;
        Ok(Self::new(stream, Some(Box::new(noise))))
    }

    /// The stream below.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn send(&mut self, kind: Kind, offset: u64, payload: &[u8]) -> io::Result<()> {
        debug_assert!(payload.len() <= PIECE);
        let header = Header { kind, len: payload.len() as u32, offset }.bytes();
        let Some(noise) = &mut self.noise else {
            return write_both(&mut self.stream, &header, payload);
        };
        let mut end = 0;
        for plain in std::iter::once(&header[..]).chain(payload.chunks(RECORD)) {
            let needed = end + 2 + plain.len() + TAG;
            if self.cipher.len() < needed {
                self.cipher.resize(needed, 0);
            }
            let len = noise
                .write_message(plain, &mut self.cipher[end + 2..needed])
                .map_err(|_| broken("a message could not be encrypted"))?;
            self.cipher[end..end + 2].copy_from_slice(&(len as u16).to_le_bytes());
            end = needed;
        }
        self.stream.write_all(&self.cipher[..end])
    }

    /// Receives a frame; its payload is in [`Channel::payload`] until the next.
    ///
    /// # Errors
    /// Those of the stream; `InvalidData` for what is no frame.
    pub fn receive(&mut self) -> io::Result<Header> {
        let mut header = [0; HEADER];
        self.fill(&mut header)?;
        let header = Header::read(&header)?;
        let mut payload = std::mem::take(&mut self.payload);
        if payload.len() < header.len as usize {
            payload.resize(header.len as usize, 0);
        }
        let filled = self.fill(&mut payload[..header.len as usize]);
        self.payload = payload;
        filled.map(|()| header)
    }

    /// The payload of the frame that [`Channel::receive`] has just given.
    pub fn payload(&self, header: &Header) -> &[u8] {
        &self.payload[..header.len as usize]
    }

    /// Takes the buffer with the payload that [`Channel::receive`] has just given, for another one.
    pub fn swap_payload(&mut self, buffer: &mut Vec<u8>) {
        std::mem::swap(&mut self.payload, buffer);
    }

    fn fill(&mut self, plain: &mut [u8]) -> io::Result<()> {
        let Some(noise) = &mut self.noise else { return self.stream.read_exact(plain) };
        for part in plain.chunks_mut(RECORD) {
            let mut len = [0; 2];
            self.stream.read_exact(&mut len)?;
            let len = usize::from(u16::from_le_bytes(len));
            if len != part.len() + TAG {
                return Err(broken("a message of a wrong length came"));
            }
            if self.cipher.len() < len {
                self.cipher.resize(len, 0);
            }
            self.stream.read_exact(&mut self.cipher[..len])?;
            noise
                .read_message(&self.cipher[..len], part)
                .map_err(|_| broken("a message that was not encrypted with our key came"))?;
        }
        Ok(())
    }
}

fn read_preamble(stream: &mut impl Read) -> io::Result<[u8; PREAMBLE]> {
    let mut bytes = [0; PREAMBLE];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn handshake(
    mode: Mode,
    key: &[u8; KEY],
    client: &[u8; PREAMBLE],
    server: &[u8; PREAMBLE],
    begin: bool,
) -> Result<HandshakeState, Refusal> {
    let prologue = [*client, *server].concat();
    let name = mode.noise().and_then(|name| name.parse().ok()).ok_or(Refusal::Key)?;
    let builder = Builder::with_resolver(name, Box::<Resolver>::default())
        .psk(0, key)
        .and_then(|b| b.prologue(&prologue));
    let built = builder.and_then(|b| if begin { b.build_initiator() } else { b.build_responder() });
    built.map_err(|_| Refusal::Key)
}

fn say(stream: &mut impl Write, noise: &mut HandshakeState) -> Result<(), Refusal> {
    let mut message = [0; 2 + HANDSHAKE];
    let len = noise.write_message(&[], &mut message[2..]).map_err(|_| Refusal::Key)?;
    message[..2].copy_from_slice(&(len as u16).to_le_bytes());
    Ok(stream.write_all(&message)?)
}

fn hear(stream: &mut impl Read, noise: &mut HandshakeState) -> Result<(), Refusal> {
    let mut message = [0; 2 + HANDSHAKE];
    match stream.read_exact(&mut message) {
        // What a server does with a message that its key does not open.
        Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            return Err(Refusal::Key);
        }
        read => read?,
    }
    if usize::from(u16::from_le_bytes([message[0], message[1]])) != HANDSHAKE {
        return Err(Refusal::Key);
    }
    noise.read_message(&message[2..], &mut []).map(drop).map_err(|_| Refusal::Key)
}

/// One system call for a header and its payload, where the stream takes both.
fn write_both(stream: &mut impl Write, header: &[u8], payload: &[u8]) -> io::Result<()> {
    let both = [io::IoSlice::new(header), io::IoSlice::new(payload)];
    let mut done = loop {
        match stream.write_vectored(&both) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => break n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    };
    if done < header.len() {
        stream.write_all(&header[done..])?;
        done = header.len();
    }
    stream.write_all(&payload[done - header.len()..])
}

/// What a stream's error means, for the end of a sentence.
pub fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "no answer in time".into(),
        ErrorKind::UnexpectedEof => "the connection was closed".into(),
        _ => match error.raw_os_error() {
            Some(n) => nix::errno::Errno::from_raw(n).desc().into(),
            None => error.to_string(),
        },
    }
}
