// SPDX-License-Identifier: LGPL-2.1-only
//! Keys of encrypted checkpoints that are made of a passphrase.
//!
//! Argon2id costs whoever guesses 19 MiB for each guess, on hardware of his choice, too; PBKDF2 costs him next to nothing there.
//! More would be more than ckpt has for itself (32 MiB). What lies in the program's memory for its later checkpoints is the key that was made, never the words.
//!
//! # Safety
//! The descriptor of `--passphrase-fd` is the user's for us, and nobody else's in this process.
#![allow(unsafe_code)]

use crate::error::{Because, Error, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};
use std::fs::File;
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};

/// What a new key costs: KiB of memory, and passes (OWASP's Password Storage Cheat Sheet).
const COST: [u64; 2] = [19 << 10, 2];
/// More no checkpoint can ask for: others may have written what it says.
const MOST: [u64; 2] = [64 << 10, 16];
/// Longest passphrase in bytes.
const LONGEST: usize = 1024;

/// A key with what it is made of, but for the words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passphrase {
    /// Another for each key.
    pub salt: [u8; 16],
    /// KiB of memory, and passes.
    pub cost: [u64; 2],
    /// The key.
    pub key: [u8; 32],
}

/// The words that were said, and the key that was made last: to make one takes long.
static WORDS: OnceLock<Vec<u8>> = OnceLock::new();
static LAST: Mutex<Option<Passphrase>> = Mutex::new(None);

/// Bytes of one where a configuration names a key file; the first is none of a path.
const MARK: u8 = 1;
const LEN: usize = 1 + 16 + 16 + 32;

impl Passphrase {
    /// A new key of the words that a descriptor gives.
    ///
    /// # Errors
    /// There are none.
    pub(super) fn begin(fd: i32) -> Result<Self> {
        say(fd)?;
        let mut salt = [0; 16];
        if !ckpt_cipher::random(&mut salt) {
            return Err(Error::new("the kernel gives no random numbers (getrandom)"));
        }
        Self::again(salt, COST, false)
    }

    /// The key with this salt and cost, of the words that were said, else of those that somebody says at our terminal, if
    /// he may be asked.
    ///
    /// # Errors
    /// There are none; the cost is none.
    pub(crate) fn again(salt: [u8; 16], cost: [u64; 2], may_ask: bool) -> Result<Self> {
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last.as_ref().filter(|last| (last.salt, last.cost) == (salt, cost)) {
            return Ok(last.clone());
        }
        let words = match WORDS.get() {
            Some(words) => words,
            None => {
                let asked = ask(may_ask)?;
                WORDS.get_or_init(|| asked)
            }
        };
        let possible = cost[0] <= MOST[0] && cost[1] <= MOST[1];
        let [memory, passes] = cost.map(|n| n as u32);
        let key = possible.then(|| ckpt_cipher::stretch(words, &salt, memory, passes)).flatten();
        let key = key.ok_or_else(|| Error::new("its passphrase has an impossible cost"))?;
        Ok(last.insert(Self { salt, cost, key }).clone())
    }

    pub(super) fn put(&self, field: &mut [u8]) {
        let [memory, passes] = self.cost.map(u64::to_le_bytes);
        let bytes = [&[MARK][..], &self.salt, &memory, &passes, &self.key].concat();
        field.fill(0);
        field[..LEN].copy_from_slice(&bytes);
    }

    pub(super) fn get(field: &[u8]) -> Option<Self> {
        let [MARK, rest @ ..] = field.get(..LEN)? else { return None };
        let (salt, rest) = rest.split_first_chunk()?;
        let (memory, rest) = rest.split_first_chunk()?;
        let (passes, rest) = rest.split_first_chunk()?;
        let cost = [u64::from_le_bytes(*memory), u64::from_le_bytes(*passes)];
        Some(Self { salt: *salt, cost, key: *rest.first_chunk()? })
    }
}

/// Reads the words of this run from a descriptor: its first line.
///
/// # Errors
/// There are none, or it cannot be read.
pub(crate) fn say(fd: i32) -> Result<()> {
    if WORDS.get().is_none() {
        // SAFETY: the user has named it for this, and nobody else reads it.
        let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
        let words =
            line(&file).because(|| format!("cannot read the passphrase from descriptor {fd}"))?;
        // Something else would become the program's standard input otherwise.
        if fd > 2 {
            drop(ManuallyDrop::into_inner(file));
        }
        WORDS.get_or_init(|| words);
    }
    Ok(())
}

/// A pipe that gives the words that were said, for whom we execute.
///
/// # Errors
/// There are none, or no pipe.
pub(crate) fn again_for_another() -> Result<OwnedFd> {
    let why = || "cannot pass the passphrase on";
    let words = WORDS.get().ok_or_else(|| Error::new(why()))?;
    let (read, write) = nix::unistd::pipe().because(why)?;
    // A new pipe takes more than the longest at once (pipe(7)).
    File::from(write).write_all(words).because(why)?;
    Ok(read)
}

/// A line, without its end.
fn line(file: &File) -> Result<Vec<u8>> {
    let (mut words, mut byte) = (Vec::new(), [0]);
    while words.len() < LONGEST {
        match (&mut &*file).read(&mut byte).because(|| "read")? {
            1 if byte != *b"\n" => words.push(byte[0]),
            _ => break,
        }
    }
    match words.is_empty() {
        true => Err(Error::new("there is none")),
        false => Ok(words),
    }
}

/// Asks for the words at our terminal, which shows none of them.
fn ask(may_ask: bool) -> Result<Vec<u8>> {
    loop {
        let tty = may_ask.then(|| File::options().read(true).write(true).open("/dev/tty").ok());
        // In the background a question would stop us, or be lost among what another program shows.
        let tty = tty.flatten().filter(|tty| tcgetpgrp(tty) == Ok(getpgrp()));
        let tty = tty.ok_or_else(|| {
            Error::new("its passphrase is not known, and there is no terminal to ask for it")
                .hint("give it with --passphrase-fd N")
        })?;
        // Whoever interrupts us would be left with a terminal that shows nothing.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).because(asking)?;
        let asked = silently(&tty);
        // A signal that has come is delivered here: who it ends or stops has left the terminal as it was.
        let _ = before.thread_set_mask();
        if let Some(words) = asked? {
            return Ok(words);
        }
    }
}

fn asking() -> &'static str {
    "cannot ask for the passphrase"
}

/// The same while all signals are blocked; None: one has come before the words.
fn silently(tty: &File) -> Result<Option<Vec<u8>>> {
    let mut signals = SigSet::all();
    // By default they do nothing.
    [Signal::SIGCHLD, Signal::SIGWINCH, Signal::SIGURG, Signal::SIGCONT]
        .into_iter()
        .for_each(|signal| signals.remove(signal));
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).because(asking)?;
    let modes = tcgetattr(tty).because(asking)?;
    let mut silent = modes.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    silent.local_flags.insert(LocalFlags::ECHONL | LocalFlags::ICANON);
    let asked = tcsetattr(tty, SetArg::TCSAFLUSH, &silent).because(asking).and_then(|()| {
        // Not before: what answers at once would be shown, and thrown away.
        let _ = (&*tty).write_all(b"passphrase of the checkpoint: ");
        let fds = [tty.as_fd(), signals.as_fd()];
        let mut ready = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        poll(&mut ready, PollTimeout::NONE).because(asking)?;
        match ready[1].any() {
            Some(true) => Ok(None),
            _ => line(tty).because(asking).map(Some),
        }
    });
    let _ = tcsetattr(tty, SetArg::TCSAFLUSH, &modes);
    if matches!(asked, Ok(None)) {
        let _ = (&*tty).write_all(b"\n");
    }
    asked
}
