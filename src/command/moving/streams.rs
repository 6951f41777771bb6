// SPDX-License-Identifier: LGPL-2.1-only
//! The standard streams of a program that has moved: what they were here stays open in us, and what is on them goes through
//! the connection, until the program ends there.
//!
//! # Safety
//! Numbers only.
#![allow(unsafe_code)]

use super::wire::{CREDIT, SMALL, Wire, Word, framed, lost};
use crate::error::{Because, Error, Result};
use crate::proc::Process;
use crate::ptrace::borrowed;
use crate::resource::descriptor::pty;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, isatty, read, tcgetpgrp, write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// What a standard stream is here, for the other host.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stream {
    /// Of nobody else: a file, a device, or nothing.
    #[default]
    Own,
    Pipe,
    Terminal,
}

impl Stream {
    pub(super) fn of_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Pipe,
            2 => Self::Terminal,
            _ => Self::Own,
        }
    }
}

/// How many bytes describe them: a kind for each, and the size of a terminal.
pub(super) const STREAMS: usize = 7;

/// The signals that the program gets in our stead, first those that end whoever does not expect them.
const FORWARDED: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
];

/// All that we wait for beside the streams.
pub(super) fn awaited() -> SigSet {
    FORWARDED.into_iter().chain([Signal::SIGWINCH]).collect()
}

/// Those that stop us, which the program shall not wait for.
pub(super) fn stops() -> SigSet {
    [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU].into_iter().collect()
}

fn enders() -> nix::Result<SignalFd> {
    let ends: SigSet = FORWARDED[..4].iter().copied().collect();
    SignalFd::with_flags(&ends, SfdFlags::SFD_NONBLOCK)
}

/// Waits for the other host, or whoever gives up.
///
/// # Errors
/// As [`not_given_up`].
pub(super) fn await_unless_given_up(wire: &Wire) -> Result<()> {
    let limit = wire.patience.and_then(|limit| PollTimeout::try_from(limit).ok());
    let enders = enders().because(|| "cannot wait for signals")?;
    let mut polled =
        [&wire.from.as_fd(), &enders.as_fd()].map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
    match poll(&mut polled, limit.unwrap_or(PollTimeout::NONE)) {
        Ok(0) => Err(lost(Errno::ETIMEDOUT)),
        _ => not_given_up(),
    }
}

/// Whether nobody has sent us a signal that would end us: until the other host has all, it means the move, not the program.
///
/// # Errors
/// Somebody has.
pub(super) fn not_given_up() -> Result<()> {
    match enders().and_then(|fd| fd.read_signal()) {
        Ok(Some(signal)) => {
            let number = signal.ssi_signo;
            Err(Error::new(format!("signal {number} came before the program had moved")))
        }
        _ => Ok(()),
    }
}

/// The three.
#[derive(Default)]
pub(super) struct Streams {
    all: [(Stream, Option<OwnedFd>); 3],
    /// So many bytes in the pipe of standard input went along in the image.
    pub known: usize,
    /// So many bytes of it may be sent.
    credit: usize,
    /// Output of that number that nobody has taken yet: nothing else is heard before.
    held: Option<(usize, Vec<u8>)>,
}

impl Streams {
    /// Those of a process that stands still.
    pub(super) fn of(process: &Process) -> Self {
        let stream = |number: u32| {
            let found = process.descriptor(number).ok()??;
            // A FIFO with a name is a file: there by that name, or not.
            let is_named = found.target.as_bytes().starts_with(b"/");
            let kind = match found.mode & libc::S_IFMT {
                libc::S_IFIFO | libc::S_IFSOCK if !is_named => Stream::Pipe,
                libc::S_IFCHR => Stream::Terminal,
                _ => return None,
            };
            let fd = borrowed::take(process.pid(), number.cast_signed()).ok()?;
            (kind == Stream::Pipe || isatty(&fd).unwrap_or(false)).then_some((kind, Some(fd)))
        };
        let all = [0, 1, 2].map(|n| stream(n).unwrap_or_default());
        Self { all, credit: CREDIT, ..Self::default() }
    }

    /// What they are, and the size of the terminal.
    pub(super) fn described(&self) -> Vec<u8> {
        let mut words: Vec<u8> = self.all.iter().map(|(stream, _)| *stream as u8).collect();
        let terminal = self.all.iter().find(|(stream, _)| *stream == Stream::Terminal);
        let size = terminal.and_then(|(_, fd)| fd.as_ref()).map_or(0, size);
        words.extend_from_slice(&size.to_le_bytes());
        words
    }

    /// Takes what went along out of the pipe. None of it is there for anybody else.
    fn skip(&mut self) {
        let Some(input) = &self.all[0].1 else { return };
        let mut room = [0; 4096];
        let here = |input: &OwnedFd| {
            poll(&mut [PollFd::new(input.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
        };
        while self.known > 0 && here(input) {
            let most = self.known.min(room.len());
            match read(input, &mut room[..most]) {
                Ok(0) | Err(_) => return,
                Ok(done) => self.known -= done,
            }
        }
    }

    /// Carries what is on them until the program has ended; its status, as wait(2) has it. `begun` is told when it goes on
    /// there.
    ///
    /// # Errors
    /// The connection is lost, or the program could not begin.
    pub(super) fn carry(mut self, wire: &mut Wire, begun: impl FnOnce(u64)) -> Result<i32> {
        self.skip();
        let mut begun = Some(begun);
        let raw = self.all[0].1.as_ref().filter(|fd| is_ours(fd)).and_then(Raw::begin);
        let reads = self.all[0].0 == Stream::Pipe || raw.is_some();
        let mut input = if reads { self.all[0].1.take() } else { None };
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals =
            SignalFd::with_flags(&awaited(), flags).because(|| "cannot wait for signals")?;
        // Nobody else is in front there who could let it go on, if it was stopped (^Z) for us to be in front here.
        let mut waits = match &raw {
            Some(_) => framed(Word::Signal, Signal::SIGCONT as u64, &[]),
            None => Vec::new(),
        };
        loop {
            let taker = self.held.as_ref().and_then(|(number, _)| self.all[*number].1.as_ref());
            let mut polled =
                vec![taker.map_or(PollFd::new(wire.from.as_fd(), PollFlags::POLLIN), |fd| {
                    PollFd::new(fd.as_fd(), PollFlags::POLLOUT)
                })];
            if !waits.is_empty() {
                polled.push(PollFd::new(wire.to.as_fd(), PollFlags::POLLOUT));
            } else {
                polled.push(PollFd::new(signals.as_fd(), PollFlags::POLLIN));
                let input = input.iter().filter(|_| self.credit > 0);
                polled.extend(input.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
            }
            if let Err(e) = poll(&mut polled, PollTimeout::NONE)
                && e != Errno::EINTR
            {
                return Err(e).because(|| "cannot wait for the other host");
            }
            let is_ready: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            drop(polled);
            if is_ready[0] && self.held.is_some() {
                self.show(wire);
            } else if is_ready[0]
                && let Some(status) = self.hear(wire, &mut begun)?
            {
                drop(raw);
                return Ok(status);
            }
            if !waits.is_empty() {
                if !is_ready[1] {
                    continue;
                }
                // As one, or not at all: nobody may wait here, for the other host may wait for us.
                match write(&wire.to, &waits) {
                    Ok(done) => drop(waits.drain(..done)),
                    Err(Errno::EAGAIN | Errno::EINTR) => {}
                    // What else there is to hear tells why.
                    Err(_) => waits.clear(),
                }
            } else if is_ready[1] {
                waits = self.signalled(&signals);
            } else if is_ready.get(2) == Some(&true)
                && let Some(fd) = &input
            {
                let mut room = [0; SMALL];
                match read(fd, &mut room[..self.credit.min(SMALL)]) {
                    Ok(0) | Err(Errno::EIO) => {
                        waits = framed(Word::Input, 0, &[]);
                        input = None;
                    }
                    Ok(done) => {
                        waits = framed(Word::Input, 0, &room[..done]);
                        self.credit -= done;
                    }
                    Err(Errno::EAGAIN | Errno::EINTR) => {}
                    Err(_) => input = None,
                }
            }
        }
    }

    /// Gives some output to whoever takes it.
    fn show(&mut self, wire: &mut Wire) {
        let Some((number, bytes)) = &mut self.held else { return };
        let stream = &mut self.all[*number].1;
        // So much there is room for in a pipe (poll(2)), whose other writers would wait, too, if it were not to wait.
        let done = stream.as_ref().map(|fd| write(fd, &bytes[..bytes.len().min(libc::PIPE_BUF)]));
        match done {
            Some(Ok(done)) => drop(bytes.drain(..done)),
            Some(Err(Errno::EAGAIN | Errno::EINTR)) => {}
            _ => {
                *stream = None;
                bytes.clear();
                let _ = wire.send(Word::Shut, *number as u64, &[]);
            }
        }
        self.held.take_if(|(_, bytes)| bytes.is_empty());
    }

    /// A signal for the program.
    fn signalled(&self, signals: &SignalFd) -> Vec<u8> {
        let Ok(Some(info)) = signals.read_signal() else { return Vec::new() };
        if info.ssi_signo != Signal::SIGWINCH as u32 {
            return framed(Word::Signal, u64::from(info.ssi_signo), &[]);
        }
        let terminals = self.all.iter().filter(|(stream, _)| *stream == Stream::Terminal);
        let size = terminals.filter_map(|(_, fd)| fd.as_ref()).map(size).next();
        size.map_or(Vec::new(), |size| framed(Word::Size, size.into(), &[]))
    }

    /// Does what the other host says; the program's status, when it has ended.
    fn hear(
        &mut self,
        wire: &mut Wire,
        begun: &mut Option<impl FnOnce(u64)>,
    ) -> Result<Option<i32>> {
        wire.patience = None;
        let frame = wire.receive()?;
        match frame.word {
            Word::Begun => {
                if let Some(begun) = begun.take() {
                    begun(frame.number);
                }
            }
            Word::Output => {
                let number = frame.number as usize;
                if self.all.get(number).is_some_and(|(_, fd)| fd.is_some()) {
                    self.held = Some((number, wire.bytes(frame).to_vec()));
                }
            }
            Word::Took => self.credit += frame.number as usize,
            Word::Ended => return Ok(Some(frame.number as i32)),
            Word::Failed => return Err(wire.reason(frame)),
            _ => {}
        }
        Ok(None)
    }
}

/// Whether a terminal is our own, and we are in front.
fn is_ours(fd: &OwnedFd) -> bool {
    tcgetpgrp(fd).is_ok_and(|group| group == getpgrp())
}

/// Rows and columns of a terminal, 16 bits each.
fn size(fd: &OwnedFd) -> u32 {
    pty::window(fd).map_or(0, |[rows, columns, ..]| u32::from(rows) << 16 | u32::from(columns))
}

/// Our terminal, whose keys are the program's: what they mean is said there.
struct Raw {
    fd: OwnedFd,
    before: Termios,
}

impl Raw {
    fn begin(fd: &OwnedFd) -> Option<Self> {
        let fd = fd.try_clone().ok()?;
        let before = tcgetattr(&fd).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&fd, SetArg::TCSANOW, &raw).ok()?;
        Some(Self { fd, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.fd, SetArg::TCSADRAIN, &self.before);
    }
}
