// SPDX-License-Identifier: LGPL-2.1-only
//! What the two ends of a move say to each other: frames of a kind, a number and some bytes, on standard input and output
//! of whatever connects them. Both are the same executable, so there are no versions.

use crate::error::{Because, Error, Kind, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// What the other host says first. What a shell there prints before is not for us.
pub(super) const MARK: &[u8] = b"\nckpt-move:\n";
/// More than so much nobody prints.
const NOISE: usize = 1 << 16;
/// Kind and length, 4 bytes each, then the number, all little-endian.
const HEADER: usize = 16;
/// Most bytes of a frame.
pub(super) const MOST: usize = 1 << 20;
/// Most bytes of standard input that were sent and not taken: who waits for input to be taken hears nothing else.
pub(super) const CREDIT: usize = 64 << 10;
/// Bytes of pieces that make a frame. Pages that have changed lie scattered, and a turn of either side for each takes longer
/// than the page.
pub(super) const ENOUGH: usize = 128 << 10;
/// Bytes with which a frame goes into a pipe as one (PIPE_BUF in pipe(7)).
pub(super) const SMALL: usize = 4096 - HEADER;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Word {
    /// From here: the image will have so many bytes; which standard streams the program has ([`super::streams`]), the image's
    /// name and a restart's options, with a zero between each two.
    Begin,
    /// Pieces of the image: of each where it lies and how many bytes it has (8 bytes each, little-endian), and these.
    Pieces,
    /// The image has so many bytes, and is whole for now.
    Round,
    /// The same of the last one; behind it again: whether what was answered still holds.
    Last,
    /// The program has ended here: it goes on there.
    Go,
    /// It goes on here.
    Drop,
    /// Bytes for its standard input; none: its end.
    Input,
    /// A signal for it.
    Signal,
    /// Its terminal's size: rows and columns.
    Size,
    /// Nobody reads its output of that number any more.
    Shut,
    /// From there: we are here, in that directory.
    Here,
    /// That is done.
    Done,
    /// It is not, and why.
    Failed,
    /// The program goes on there, since the order it has taken so many microseconds.
    Begun,
    /// Bytes of its output of that number.
    Output,
    /// So many bytes for its standard input were taken.
    Took,
    /// It has ended, with that status (wait(2)).
    Ended,
}

const WORDS: [Word; 17] = [
    Word::Begin,
    Word::Pieces,
    Word::Round,
    Word::Last,
    Word::Go,
    Word::Drop,
    Word::Input,
    Word::Signal,
    Word::Size,
    Word::Shut,
    Word::Here,
    Word::Done,
    Word::Failed,
    Word::Begun,
    Word::Output,
    Word::Took,
    Word::Ended,
];

/// A frame; its bytes are in [`Wire::bytes`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub word: Word,
    pub number: u64,
    len: usize,
}

/// One end.
pub(super) struct Wire {
    pub from: OwnedFd,
    pub to: OwnedFd,
    /// How long the other end may be silent, and take nothing; None: for ever.
    pub patience: Option<Duration>,
    room: Vec<u8>,
}

impl Wire {
    pub(super) fn new(from: OwnedFd, to: OwnedFd) -> Self {
        Self { from, to, patience: None, room: Vec::new() }
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// The other end is gone, or takes nothing.
    pub(super) fn send(&self, word: Word, number: u64, bytes: &[u8]) -> Result<()> {
        write_all(self.to.as_fd(), &framed(word, number, bytes), self.patience).map_err(lost)
    }

    /// Waits until the other end says that it is there.
    ///
    /// # Errors
    /// It is not, or says too much before.
    pub(super) fn greeted(&mut self) -> Result<()> {
        let mut said = Vec::new();
        while !said.ends_with(MARK) {
            let mut byte = [0];
            read_exact(self.from.as_fd(), &mut byte, self.patience).map_err(lost)?;
            said.extend_from_slice(&byte);
            if said.len() > NOISE {
                return Err(Error::new("the other host says something else than ckpt"));
            }
        }
        Ok(())
    }

    /// Receives one.
    ///
    /// # Errors
    /// The other end is gone, is silent, or says something else.
    pub(super) fn receive(&mut self) -> Result<Frame> {
        let mut header = [0; HEADER];
        read_exact(self.from.as_fd(), &mut header, self.patience).map_err(lost)?;
        let field = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
        let (word, len) = (field(0) as usize, field(4) as usize);
        let number = u64::from(field(8)) | u64::from(field(12)) << 32;
        let word = WORDS.get(word).copied().filter(|_| len <= MOST);
        let word =
            word.ok_or_else(|| Error::new("the other host says something else than ckpt"))?;
        self.room.resize(self.room.len().max(len), 0);
        read_exact(self.from.as_fd(), &mut self.room[..len], self.patience).map_err(lost)?;
        Ok(Frame { word, number, len })
    }

    /// The bytes of the frame that was received last.
    pub(super) fn bytes(&self, frame: Frame) -> &[u8] {
        &self.room[..frame.len]
    }

    /// Why the other end has failed, as it says in such a frame.
    pub(super) fn reason(&self, frame: Frame) -> Error {
        Error::new(String::from_utf8_lossy(self.bytes(frame)).into_owned())
    }

    /// Why something could not be sent: what the other end has said, if it has.
    pub(super) fn why_not(&mut self, error: Error) -> Error {
        self.patience = Some(Duration::from_secs(1));
        match self.expect(Word::Done) {
            Err(said) if said.kind() != Kind::Unreachable => said,
            _ => error,
        }
    }

    /// Whether something has come, or nothing will any more.
    pub(super) fn is_heard(&self) -> bool {
        ready(self.from.as_fd(), PollFlags::POLLIN, Some(Duration::ZERO)).is_ok()
    }

    /// Waits until the other end says that something is done.
    ///
    /// # Errors
    /// As [`Wire::receive`]; it says why not.
    pub(super) fn expect(&mut self, word: Word) -> Result<Frame> {
        let frame = self.receive()?;
        match frame.word {
            Word::Failed => Err(self.reason(frame)),
            other if other == word => Ok(frame),
            _ => Err(lost(Errno::EPROTO)),
        }
    }
}

/// The pieces in a frame: where each lies, and its bytes.
pub(super) fn pieces(mut frame: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = frame.split_first_chunk::<16>()?;
        let [at, len] =
            [0, 8].map(|from| u64::from_le_bytes(std::array::from_fn(|byte| head[from + byte])));
        let (piece, rest) = rest.split_at_checked(len as usize)?;
        frame = rest;
        Some((at, piece))
    })
}

/// Adds one.
pub(super) fn add_piece(frame: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    frame.extend_from_slice(&at.to_le_bytes());
    frame.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    frame.extend_from_slice(bytes);
}

/// Sends a frame to whoever reads from there.
///
/// # Errors
/// Those of write(2).
pub(super) fn say(to: BorrowedFd<'_>, word: Word, number: u64, bytes: &[u8]) -> nix::Result<()> {
    write_all(to, &framed(word, number, bytes), None)
}

/// A frame as it is sent.
pub(super) fn framed(word: Word, number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER + bytes.len());
    frame.extend_from_slice(&(word as u32).to_le_bytes());
    frame.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    frame.extend_from_slice(&number.to_le_bytes());
    frame.extend_from_slice(bytes);
    frame
}

pub(super) fn lost(errno: Errno) -> Error {
    let failed = Err::<(), _>(errno).because(|| "the connection to the other host is lost");
    failed.unwrap_err().of(Kind::Unreachable)
}

/// Writes all, whether or not the descriptor makes whoever writes wait.
///
/// # Errors
/// Those of write(2); ETIMEDOUT.
pub(super) fn write_all(
    to: BorrowedFd<'_>,
    mut bytes: &[u8],
    patience: Option<Duration>,
) -> nix::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(done) => bytes = &bytes[done..],
            Err(Errno::EAGAIN) => ready(to, PollFlags::POLLOUT, patience)?,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn read_exact(
    from: BorrowedFd<'_>,
    mut bytes: &mut [u8],
    patience: Option<Duration>,
) -> nix::Result<()> {
    while !bytes.is_empty() {
        // It may be a descriptor on which read(2) itself waits.
        if patience.is_some() {
            ready(from, PollFlags::POLLIN, patience)?;
        }
        match nix::unistd::read(from, bytes) {
            Ok(0) => return Err(Errno::EPIPE),
            Ok(done) => bytes = &mut bytes[done..],
            Err(Errno::EAGAIN) => ready(from, PollFlags::POLLIN, patience)?,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn ready(fd: BorrowedFd<'_>, what: PollFlags, patience: Option<Duration>) -> nix::Result<()> {
    let limit = patience.map_or(PollTimeout::NONE, |limit| {
        PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut [PollFd::new(fd, what)], limit) {
        Ok(0) => Err(Errno::ETIMEDOUT),
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_as_they_were_sent() {
        let ((from, to), none) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
        let mut wire = Wire::new(from.into(), to.into());
        for (place, word) in WORDS.into_iter().enumerate() {
            assert_eq!(word as usize, place);
            wire.send(word, u64::MAX - place as u64, &[7; SMALL][..place]).unwrap();
            let frame = wire.receive().unwrap();
            assert_eq!((frame.word, frame.number), (word, u64::MAX - place as u64));
            assert_eq!(wire.bytes(frame), &[7; SMALL][..place]);
        }
        wire.send(Word::Failed, 0, b"no room").unwrap();
        assert_eq!(wire.expect(Word::Done).unwrap_err().to_string(), "no room");
        wire.to = none.1.into();
        assert_eq!(wire.receive().unwrap_err().kind(), Kind::Unreachable);
    }
}
