// SPDX-License-Identifier: LGPL-2.1-only
//! What is under way in a pseudo-terminal, in both directions.
//!
//! Nothing can be looked at there but by reading it (no MSG_PEEK, no tee(2)), so it is read and put back at once, by a
//! process that nothing interrupts: it blocks all signals, is in a session of its own, and goes on when its maker is
//! killed. In canonical mode only whole lines can be read; so the terminal is raw for that moment, in which no echo, no
//! signal and no translation comes of what is put back. Who has the terminal stands still meanwhile.
//!
//! # Safety
//! The child of fork(2) ends by _exit(2); the C library makes its memory usable there.
#![allow(unsafe_code)]

use super::super::pipe::{framed, unframed};
use super::settings::{START, STOP, flow, peer, readable, set_termios};
use crate::error::{Because, Error, Result};
use crate::fault::{Point, reach};
use ckpt_abi::image::Termios;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, read, setsid, write};
use std::io::{PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// A pseudo-terminal that is asked about.
pub(super) struct Asked {
    pub(super) master: OwnedFd,
    /// None: nobody has it open.
    pub(super) slave: Option<OwnedFd>,
    pub(super) termios: Termios,
    pub(super) packets: bool,
}

/// What waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    /// What was typed, as the line discipline has it; an end of file (^D) is a zero byte.
    pub(super) typed: Vec<u8>,
    /// What was typed behind that, where the line discipline is full.
    pub(super) later: Vec<u8>,
    /// What was written, or echoed, and not read from the master.
    pub(super) shown: Vec<u8>,
    /// Bytes of whole lines, ends of file not counted.
    pub(super) lines: u32,
    /// Whether writers wait (^S).
    pub(super) stopped: bool,
    /// What was written could not be looked at.
    pub(super) unseen: bool,
}

/// Looks at all of them.
///
/// # Errors
/// No process can be made, or it was killed.
pub(super) fn look(all: &[Asked]) -> Result<Vec<Waiting>> {
    let what = || "cannot look into the program's pseudo-terminals";
    let (mut hear, tell) = std::io::pipe().because(what)?;
    // SAFETY: the child looks at the terminals and ends.
    match unsafe { fork() }.because(what)? {
        ForkResult::Child => {
            let status = i32::from(work(all, tell).is_err());
            // SAFETY: never returns.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => {
            drop(tell);
            reach(Point::Peeking);
            let mut bytes = Vec::new();
            let heard = hear.read_to_end(&mut bytes);
            // The status may be the reaper's.
            let _ = waitpid(child, None);
            heard.because(what)?;
            let found = unframed(&bytes)
                .and_then(|pieces| pieces.chunks(4).map(Waiting::read).collect::<Option<Vec<_>>>());
            found.filter(|found| found.len() == all.len()).ok_or_else(|| Error::new(what()))
        }
    }
}

fn work(all: &[Asked], mut tell: PipeWriter) -> std::io::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    // Without a controlling terminal nothing of it stops us.
    setsid()?;
    for one in all {
        tell.write_all(&framed(&one.look().pieces()))?;
    }
    Ok(())
}

impl Asked {
    fn look(&self) -> Waiting {
        // Where much is under way somebody is in the middle of a write, and who puts it back might find no room. A line
        // discipline that is not full (N_TTY_BUF_SIZE) has all of it, and takes that again.
        const LITTLE: usize = 2048;
        const MORE: usize = 4000;
        let shown = readable(&self.master);
        answers(&self.master, PollFlags::POLLIN);
        let full = |slave: &OwnedFd| {
            readable(slave) > LITTLE || shown > 0 && !answers(slave, PollFlags::POLLOUT)
        };
        if shown.max(readable(&self.master)) > MORE || self.slave.as_ref().is_some_and(full) {
            return Waiting { unseen: true, ..Waiting::default() };
        }
        // A description of our own, which does not block; but a locked or exclusive slave opens to nobody.
        let opened = (self.slave.is_some() || readable(&self.master) > 0)
            .then(|| peer(&self.master, OFlag::O_RDWR | OFlag::O_NONBLOCK).ok());
        let opened = opened.flatten();
        let Some(slave) = opened.as_ref().or(self.slave.as_ref()) else {
            return Waiting { unseen: readable(&self.master) > 0, ..Waiting::default() };
        };
        let t = &self.termios;
        let mut waiting = Waiting::default();
        if t.is_canonical() {
            waiting.lines = readable(slave) as u32;
        }
        if set_termios(slave, &t.raw(self.packets)).is_err() {
            return waiting;
        }
        waiting.typed = take(slave, readable(slave), false);
        waiting.later = drain(slave, false);
        // What the master is told beside the data cannot be put back.
        waiting.unseen = self.packets && answers(&self.master, PollFlags::POLLPRI);
        if !waiting.unseen {
            waiting.shown = drain(&self.master, self.packets);
        }
        waiting.stopped = !waiting.unseen && !answers(slave, PollFlags::POLLOUT);
        let stop = waiting.stopped && !waiting.shown.is_empty();
        waiting.put(&self.master, slave, t, self.packets, stop);
        waiting
    }
}

impl Waiting {
    /// Puts all of it into a pseudo-terminal, whose settings are `termios` in the end; `stop`: writers wait then. How
    /// many bytes found no room.
    pub(super) fn put(
        &self,
        master: &OwnedFd,
        slave: &OwnedFd,
        termios: &Termios,
        packets: bool,
        stop: bool,
    ) -> usize {
        let _ = set_termios(slave, &termios.raw(packets));
        if self.stopped && !self.shown.is_empty() {
            // Only what tcflow(3) has stopped it starts again.
            let _ = flow(slave, STOP);
            let _ = flow(slave, START);
        }
        let mut lost = put(slave, master, &self.shown);
        let mut typed = self.typed.clone();
        let mut whole = typed.len();
        if termios.is_canonical() {
            let settings;
            (settings, typed, whole) = self.lines_of(termios, packets);
            let _ = set_termios(slave, &settings);
        }
        // The line discipline has to have it before its settings change.
        let (lines, rest) = typed.split_at(whole);
        lost += put(master, slave, lines);
        let count = if termios.is_canonical() { self.lines as usize } else { whole };
        soon(|| readable(slave) >= count);
        lost += put(master, slave, rest);
        if !rest.is_empty() && !lines.is_empty() {
            // Nothing tells when half a line behind whole ones is there.
            std::thread::sleep(Duration::from_millis(3));
        }
        let _ = set_termios(slave, termios);
        if stop {
            let key = termios.chars[libc::VSTOP];
            let by_key = termios.input & libc::IXON != 0 && key != 0;
            let _ = if by_key { write(master, &[key]).map(drop) } else { flow(slave, STOP) };
        }
        lost + put(master, slave, &self.later)
    }

    /// Settings under which lines are typed without effect, and what to type: a key for the end of file that is not
    /// among it; and where half a line begins.
    fn lines_of(&self, termios: &Termios, packets: bool) -> (Termios, Vec<u8>, usize) {
        let mut settings = termios.raw(packets);
        settings.local = libc::ICANON;
        let ends_line = |byte: u8| {
            let keys = [libc::VEOL, libc::VEOL2].map(|key| termios.chars[key]);
            byte == b'\n' || byte != 0 && keys.contains(&byte)
        };
        let whole = self.typed.iter().rposition(|byte| *byte == 0 || ends_line(*byte));
        let whole = &self.typed[..whole.map_or(0, |at| at + 1)];
        let zeros = whole.iter().filter(|byte| **byte == 0).count();
        // Else a zero byte was typed.
        let ends = whole.len().checked_sub(zeros) == Some(self.lines as usize);
        let free = (1..=255).find(|byte| !self.typed.contains(byte) && !ends_line(*byte));
        let keys = [libc::VEOL, libc::VEOL2].map(|key| (key, termios.chars[key]));
        let kept = [libc::VSTART, libc::VSTOP].map(|key| (key, termios.chars[key]));
        settings.chars = [0; 19];
        keys.into_iter().chain(kept.into_iter().filter(|_| packets)).for_each(|(key, byte)| {
            settings.chars[key] = byte;
        });
        let Some(end) = free.filter(|_| ends) else {
            return (settings, self.typed.clone(), whole.len());
        };
        settings.chars[libc::VEOF] = end;
        let typed = self.typed.iter().map(|byte| if *byte == 0 { end } else { *byte });
        (settings, typed.collect(), whole.len())
    }

    /// For an image, or another process.
    pub(super) fn pieces(&self) -> [Vec<u8>; 4] {
        let flags = u32::from(self.stopped) | u32::from(self.unseen) << 1;
        let head = [self.lines.to_le_bytes(), flags.to_le_bytes()].concat();
        [head, self.typed.clone(), self.later.clone(), self.shown.clone()]
    }

    fn read(pieces: &[&[u8]]) -> Option<Self> {
        let [head, typed, later, shown] = pieces else { return None };
        let (lines, flags) = (head.first_chunk()?, head.last_chunk()?);
        let (lines, flags) = (u32::from_le_bytes(*lines), u32::from_le_bytes(*flags));
        let [typed, later, shown] = [typed, later, shown].map(|piece| piece.to_vec());
        Some(Self { typed, later, shown, lines, stopped: flags & 1 != 0, unseen: flags & 2 != 0 })
    }
}

/// Settings for a moment.
pub(super) trait Moment {
    /// Whether lines are edited before they can be read.
    fn is_canonical(&self) -> bool;
    /// Settings under which bytes pass as they are. Flow control stays as it is, since its end starts writers, and a
    /// change of it would be told to a master in packet mode.
    fn raw(&self, packets: bool) -> Self;
}

impl Moment for Termios {
    fn is_canonical(&self) -> bool {
        self.local & libc::ICANON != 0
    }

    fn raw(&self, packets: bool) -> Self {
        let mut raw = Self { input: self.input & libc::IXON, output: 0, local: 0, ..*self };
        (raw.chars[libc::VMIN], raw.chars[libc::VTIME]) = (1, 0);
        if !packets {
            (raw.chars[libc::VSTART], raw.chars[libc::VSTOP]) = (0, 0);
        }
        raw
    }
}

/// Whether poll(2) answers one of these; before it does, the kernel takes what was written to the line discipline.
pub(super) fn answers(fd: &impl AsFd, events: PollFlags) -> bool {
    let mut polled = [PollFd::new(fd.as_fd(), events)];
    let polls = poll(&mut polled, PollTimeout::ZERO).is_ok();
    polls && polled[0].revents().is_some_and(|answer| answer.intersects(events))
}

/// Reads what is known to be there, in packet mode behind a byte that says so.
fn take(fd: &OwnedFd, count: usize, packets: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        let mut piece = vec![0; count - bytes.len() + usize::from(packets)];
        match read(fd, &mut piece) {
            Ok(n) if n > usize::from(packets) => bytes.extend(&piece[usize::from(packets)..n]),
            _ => break,
        }
    }
    bytes
}

/// Reads all that comes.
fn drain(fd: &OwnedFd, packets: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    while answers(fd, PollFlags::POLLIN) {
        let piece = take(fd, readable(fd), packets);
        if piece.is_empty() {
            break;
        }
        bytes.extend(piece);
    }
    bytes
}

/// Waits until something holds that the kernel brings about by itself, in another thread.
fn soon(mut holds: impl FnMut() -> bool) -> bool {
    const MOMENT: Duration = Duration::from_millis(1);
    (0..1000).any(|_| {
        let done = holds();
        if !done {
            std::thread::sleep(MOMENT);
        }
        done
    })
}

/// Writes as much as there is room for to one end, whose other takes it; how much was left. The kernel's buffers hold
/// what they held before if it comes in as large pieces as they take at once, when the line discipline at the other end
/// is full.
fn put(fd: &OwnedFd, other: &OwnedFd, mut bytes: &[u8]) -> usize {
    const DISCIPLINE: usize = 4095;
    const PIECE: usize = 2048;
    if bytes.is_empty() {
        return 0;
    }
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_or(OFlag::empty(), OFlag::from_bits_retain);
    let _ = fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK));
    let mut piece = DISCIPLINE;
    let _ = soon(|| {
        loop {
            let written = write(fd, &bytes[..bytes.len().min(piece)]).unwrap_or(0);
            bytes = &bytes[written..];
            piece = PIECE;
            answers(other, PollFlags::POLLIN);
            if written == 0 || bytes.is_empty() {
                return bytes.is_empty();
            }
        }
    });
    if !flags.contains(OFlag::O_NONBLOCK) {
        let _ = fcntl(fd, FcntlArg::F_SETFL(flags));
    }
    bytes.len()
}
