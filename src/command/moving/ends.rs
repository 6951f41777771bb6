// SPDX-License-Identifier: LGPL-2.1-only
//! The standard streams of a program that has come here: pipes of ours or a pseudo-terminal, what is on which goes to the host
//! that it comes from. When that is gone, its output goes into a file.
//!
//! # Safety
//! The terminal's calls read and write numbers; descriptors are those of a child that has nothing else.
#![allow(unsafe_code)]

use super::streams::Stream;
use super::wire::{Wire, Word, say};
use crate::error::{Because, Result};
use crate::proc::Pid;
use crate::proc::pidfd::Pidfd;
use crate::resource::descriptor::pty;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{dup2_raw, read, setpgid, setsid, write};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// Nobody reads output 1 or 2 any more, by bit; nobody is at the other end.
static SHUT: AtomicU32 = AtomicU32::new(0);
const LOST: u32 = 1;
/// Whoever says something to the other host.
static SPEAKS: Mutex<()> = Mutex::new(());

/// The ends of the program's standard streams.
pub(super) struct Ends {
    /// Ours that is written to; a terminal is both.
    input: Option<OwnedFd>,
    outs: Vec<(u64, OwnedFd)>,
    terminal: bool,
    /// The program's.
    pub(super) theirs: Vec<(i32, OwnedFd)>,
}

impl Ends {
    pub(super) fn make(streams: &[u8]) -> Result<Self> {
        let what = || "cannot make the program's standard streams";
        let stream = |n: usize| streams.get(n).map_or(Stream::Own, |byte| Stream::of_byte(*byte));
        let mut ends = Self { input: None, outs: Vec::new(), terminal: false, theirs: Vec::new() };
        let terminals: Vec<_> =
            [0, 1, 2].into_iter().filter(|n| stream(*n) == Stream::Terminal).collect();
        if !terminals.is_empty() {
            let byte = |at: usize| streams.get(at).copied().map_or(0, u16::from);
            let half = |at: usize| byte(at) | byte(at + 1) << 8;
            let (master, slave) = pty::pair([half(5), half(3), 0, 0])?;
            ends.terminal = true;
            for number in &terminals {
                ends.theirs.push((*number as i32, slave.try_clone().because(what)?));
            }
            ends.input = Some(master.try_clone().because(what)?);
            let shown = terminals.iter().copied().max().unwrap_or(1);
            ends.outs.push((shown as u64, master));
        }
        for number in [0, 1, 2] {
            match stream(number) {
                Stream::Pipe => {
                    let (reader, writer) = std::io::pipe().because(what)?;
                    let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
                    if number == 0 {
                        ends.theirs.push((0, reader));
                        ends.input = ends.input.or(Some(writer));
                    } else {
                        ends.theirs.push((number as i32, writer));
                        ends.outs.push((number as u64, reader));
                    }
                }
                Stream::Own if number < 2 => {
                    let null =
                        File::options().read(true).write(true).open("/dev/null").because(what)?;
                    ends.theirs.push((number as i32, null.into()));
                }
                _ => {}
            }
        }
        for fd in ends.outs.iter().map(|(_, fd)| fd).chain(&ends.input) {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).because(what)?;
        }
        Ok(ends)
    }

    /// What the program has said that nobody has heard.
    pub(super) fn said(&self) -> String {
        let all: Vec<u8> = self.outs.iter().flat_map(|(_, fd)| rest(fd)).collect();
        String::from_utf8_lossy(&all).trim().to_owned()
    }

    /// Has them, in the child, in a group or a session of its own.
    pub(super) fn take(&mut self) -> Result<()> {
        let what = || "cannot have the program's standard streams";
        let own = Pid::NONE.nix();
        if self.terminal {
            setsid().because(what)?;
        } else {
            setpgid(own, own).because(what)?;
        }
        // SAFETY: no handler runs.
        let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
        for (number, fd) in &self.theirs {
            // SAFETY: what was there is not used again.
            std::mem::forget(unsafe { dup2_raw(fd, *number) }.because(what)?);
            // Refused of what is no terminal.
            let _ = pty::control(fd);
        }
        Ok(())
    }

    /// Carries what is on them until a child has ended, and all who have its output. `name` is where output goes that nobody
    /// takes.
    ///
    /// # Errors
    /// There can be no thread.
    pub(super) fn carry(
        self,
        wire: Wire,
        (child, pidfd): (Pid, &Pidfd),
        name: &Path,
    ) -> Result<Spill> {
        let Self { input, mut outs, terminal, .. } = self;
        let master = outs.first().map(|(_, fd)| fd).filter(|_| terminal);
        let master = master.and_then(|fd| fd.try_clone().ok());
        let to = wire.to.try_clone().because(|| "cannot keep the connection")?;
        let target = Pidfd::open(child).because(|| "cannot keep hold of the program")?;
        let hearing = std::thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(move || hear(wire, input, master, &target));
        hearing.because(|| "cannot start a thread")?;
        let mut spill = Spill { to, name: name.to_owned(), file: None };
        let mut has_ended = false;
        // Who has moved on from here reads and writes still; so do others that it has left.
        while !(has_ended && outs.is_empty()) {
            let mut polled: Vec<_> =
                outs.iter().map(|(_, fd)| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
            if !has_ended {
                polled.push(PollFd::new(pidfd.as_fd(), PollFlags::POLLIN));
            }
            let _ = poll(&mut polled, PollTimeout::NONE);
            let ready: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            drop(polled);
            has_ended |= ready.get(outs.len()) == Some(&true);
            for at in (0..outs.len()).rev().filter(|at| ready[*at]).collect::<Vec<_>>() {
                let (number, fd) = &outs[at];
                let shut = SHUT.load(Ordering::Relaxed) & (1 << number) != 0;
                if shut || !spill.pass(*number, fd) {
                    outs.remove(at);
                }
            }
        }
        Ok(spill)
    }
}

/// Where output goes: to the other host, or into a file when that is gone.
pub(super) struct Spill {
    to: OwnedFd,
    name: PathBuf,
    file: Option<File>,
}

impl Spill {
    /// Says how the program has ended.
    pub(super) fn end(&self, status: i32) {
        let _ = self.say(Word::Ended, status.cast_unsigned().into(), &[]);
    }

    fn say(&self, word: Word, number: u64, bytes: &[u8]) -> nix::Result<()> {
        let _speaks = SPEAKS.lock();
        say(self.to.as_fd(), word, number, bytes)
    }

    /// Takes some of what there is; whether more may come.
    fn pass(&mut self, number: u64, fd: &OwnedFd) -> bool {
        let mut room = [0; 1 << 16];
        match read(fd, &mut room) {
            Ok(0) => return false,
            Ok(done) => self.write(number, &room[..done]),
            Err(e) => return matches!(e, Errno::EAGAIN | Errno::EINTR),
        }
        true
    }

    fn write(&mut self, number: u64, bytes: &[u8]) {
        if self.file.is_none()
            && SHUT.load(Ordering::Relaxed) & LOST == 0
            && self.say(Word::Output, number, bytes).is_ok()
        {
            return;
        }
        if self.file.is_none() {
            let mut name = self.name.clone().into_os_string();
            name.push(".output");
            let options = File::options().append(true).create(true).mode(0o600).open(&name);
            self.file = options.ok();
        }
        if let Some(file) = &mut self.file {
            let _ = file.write_all(bytes);
        }
    }
}

/// The program's standard input: what has come for it, and what of that it was given.
struct Input {
    fd: Option<OwnedFd>,
    waits: Vec<u8>,
    is_whole: bool,
    given: usize,
}

impl Input {
    /// Waits until something is said; gives the program its input meanwhile, and says that it has it.
    fn give(&mut self, wire: &Wire) {
        loop {
            if self.fd.is_none() || self.is_whole && self.waits.is_empty() {
                self.fd = None;
                self.took(self.waits.len());
            }
            let takes = self.fd.as_ref().filter(|_| !self.waits.is_empty());
            let hears = self.given > 0;
            let mut polled = vec![PollFd::new(wire.from.as_fd(), PollFlags::POLLIN)];
            // Nobody's end is of use that nothing is for, and who is gone would be told of at once, again and again.
            let both = [takes, Some(&wire.to).filter(|_| hears)];
            let both = both.into_iter().flatten();
            polled.extend(both.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLOUT)));
            let _ = poll(&mut polled, PollTimeout::NONE);
            let ready: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            let (is_told, hears) = (ready[0], hears && ready.last() == Some(&true));
            if let Some(fd) = takes.filter(|_| ready[1]) {
                match write(fd, &self.waits) {
                    Ok(done) => self.took(done),
                    Err(Errno::EAGAIN | Errno::EINTR) => {}
                    Err(_) => self.fd = None,
                }
            }
            if hears && let Ok(_speaks) = SPEAKS.try_lock() {
                let _ = say(wire.to.as_fd(), Word::Took, self.given as u64, &[]);
                self.given = 0;
            }
            if is_told {
                return;
            }
        }
    }

    fn took(&mut self, bytes: usize) {
        self.waits.drain(..bytes);
        self.given += bytes;
    }
}

/// Does what is said from the other host. If that is gone standard input stays open: its end would be a lie.
fn hear(mut wire: Wire, input: Option<OwnedFd>, master: Option<OwnedFd>, program: &Pidfd) {
    let mut input = Input { fd: input, waits: Vec::new(), is_whole: false, given: 0 };
    loop {
        input.give(&wire);
        let Ok(frame) = wire.receive() else { break };
        match frame.word {
            Word::Input => {
                input.is_whole |= wire.bytes(frame).is_empty();
                input.waits.extend_from_slice(wire.bytes(frame));
            }
            Word::Signal => {
                let signal = Signal::try_from(frame.number as i32);
                let _ = signal.map(|signal| program.signal(signal));
            }
            Word::Size => {
                let (rows, columns) = ((frame.number >> 16) as u16, frame.number as u16);
                let _ = master.as_ref().map(|fd| pty::set_window(fd, [rows, columns, 0, 0]));
            }
            Word::Shut => _ = SHUT.fetch_or(1 << (frame.number & 3), Ordering::Relaxed),
            _ => {}
        }
    }
    SHUT.fetch_or(LOST, Ordering::Relaxed);
    std::mem::forget(input.fd);
}

/// What is left in a descriptor.
fn rest(fd: &OwnedFd) -> Vec<u8> {
    let (mut all, mut room) = (Vec::new(), [0; 4096]);
    while let Ok(done @ 1..) = read(fd, &mut room) {
        all.extend_from_slice(&room[..done]);
    }
    all
}
