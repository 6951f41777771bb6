// SPDX-License-Identifier: LGPL-2.1-only
//! How a conversation begins: both sides say which protocol they speak, and agree on what the frames go over.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use super::frames::Frames;
use super::protocol::{Mode, PREAMBLE, Preamble, VERSION, Welcome, broken};
use super::sealed::{Agreement, Sealed};

pub use super::sealed::KEY;

/// A stream that a conversation goes over.
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

impl<S: Wire> Wire for Sealed<S> {
    fn speaks(&self) -> bool {
        self.has_more() || self.beneath().speaks()
    }

    fn speaks_within(&self, limit: Duration) -> bool {
        self.has_more() || self.beneath().speaks_within(limit)
    }

    fn trusted(&mut self) {
        self.below().trusted();
    }

    fn leave(&mut self) {
        self.below().leave();
    }
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

/// The frames of a conversation.
pub type Channel<S> = Frames<Sealed<S>>;

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
        let Some(key) = key else { return Ok(Frames::over(Sealed::plain(stream))) };
        let name = mode.noise().ok_or(Refusal::Key)?;
        let terms = Agreement { name, key, prologue: &[ours, theirs].concat() };
        Sealed::asking(stream, &terms)?.map(Frames::over).ok_or(Refusal::Key)
    }

    /// The server's side of the beginning, and which of the keys the client has; without any, 0.
    ///
    /// # Errors
    /// The client is none, or not welcome.
    pub fn accept(mut stream: S, keys: &[[u8; KEY]]) -> Result<(Self, usize), Refusal> {
        let theirs = read_preamble(&mut stream)?;
        let asked = Preamble::read(&theirs)?;
        let welcome = match (asked.version, asked.mode.noise(), keys.is_empty()) {
            (version, ..) if version != VERSION => Welcome::OtherVersion,
            (_, None, false) => Welcome::NeedsKey,
            (_, Some(_), true) => Welcome::HasNoKey,
            _ => Welcome::Yes,
        };
        let ours = Preamble { version: VERSION, mode: asked.mode, welcome: welcome as u8 };
        let ours = ours.bytes();
        stream.write_all(&ours)?;
        if welcome != Welcome::Yes {
            stream.leave();
            return Err(Refusal::Unwelcome(welcome));
        }
        let (mut stream, whose) = match asked.mode.noise() {
            None => (Sealed::plain(stream), 0),
            Some(name) => {
                let terms = Agreement { name, key: &[0; KEY], prologue: &[theirs, ours].concat() };
                Sealed::answering(stream, &terms, keys)?.ok_or(Refusal::Key)?
            }
        };
        stream.trusted();
        Ok((Frames::over(stream), whose))
    }
}

fn read_preamble(stream: &mut impl Read) -> io::Result<[u8; PREAMBLE]> {
    let mut bytes = [0; PREAMBLE];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
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
