// SPDX-License-Identifier: LGPL-2.1-only
//! An image that goes to a command's standard input or our standard output, and one that comes from a command.
//!
//! # Safety
//! A fork of a process that may have other threads makes system calls only, on memory that was prepared before, until it
//! ends or executes another program.
#![allow(unsafe_code)]

use super::attendant::{ALL, Attendant, EXITED, FLOOD, KILLED, LEFT, NO_FORK, Shell, TAIL, pipe};
use super::queued::{Far, QueuedSink};
use crate::error::{Because, Error, Result, printable};
use crate::proc::Pid;
use crate::rights;
use crate::settings::stream;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// How long a command may take nothing, or not end after its last byte.
const SILENCE: Duration = Duration::from_secs(600);
/// What is asked of the kernel for a pipe, in bytes; less does as well.
const PIPE: i32 = 1 << 20;

/// The sink that is a command's standard input. It runs as the user as whom this thread touches files.
///
/// # Errors
/// There is no process, thread or pipe to be had.
pub(crate) fn to_command(line: &OsStr, environment: Vec<u8>) -> Result<QueuedSink> {
    let taker = Taker::start(line, environment)?;
    QueuedSink::create(true, Box::new(|| Ok(Box::new(taker))))
}

/// The sink that is our standard output.
///
/// # Errors
/// It is a terminal, or closed.
pub(crate) fn to_output() -> Result<QueuedSink> {
    let output = std::io::stdout();
    if output.is_terminal() {
        return Err(Error::new("standard output is a terminal, which an image is not for")
            .hint("say > FILE, or | COMMAND"));
    }
    let file = output.as_fd().try_clone_to_owned().because(|| "cannot write to standard output")?;
    QueuedSink::create(true, Box::new(|| Ok(Box::new(Output(file.into())))))
}

struct Output(File);

impl Far for Output {
    fn piece(&mut self, _: u64, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes).because(|| "cannot write to standard output")
    }

    fn seal(&mut self, _: u64) -> Result<()> {
        // A pipe has no disk.
        let _ = self.0.sync_all();
        Ok(())
    }
}

/// A command that gets an image.
struct Taker {
    attendant: Pid,
    input: Option<File>,
    control: File,
    answer: File,
    /// In sentences.
    name: String,
}

impl Taker {
    fn start(line: &OsStr, environment: Vec<u8>) -> Result<Self> {
        let name = stream::shown(line);
        let shell = Shell::of(line, environment);
        let [input, to] = pipe()?;
        let _ = fcntl(&to, FcntlArg::F_SETPIPE_SZ(PIPE));
        fcntl(&to, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).because(|| "cannot make a pipe")?;
        let [[control, order], [answer, tell], [output, out], [errors, err]] =
            [pipe()?, pipe()?, pipe()?, pipe()?];
        let held = to.try_clone().because(|| "cannot keep a pipe")?;
        let mut attendant = Attendant::of([input, held], [control, tell], [output, errors]);
        let user = (rights::file_user(), rights::file_group());
        // SAFETY: the child makes system calls only.
        match unsafe { fork() }.because(|| "cannot start a process").map_err(Error::of_making)? {
            ForkResult::Child => attendant.run(&shell, [out, err], user),
            ForkResult::Parent { child } => Ok(Self {
                attendant: Pid::new(child.as_raw()),
                input: Some(to.into()),
                control: order.into(),
                answer: answer.into(),
                name,
            }),
        }
    }

    /// Gives it bytes.
    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let Some(input) = &mut self.input else { return Err(Error::new("it has all already")) };
            let mut fds = [
                PollFd::new(input.as_fd(), PollFlags::POLLOUT),
                PollFd::new(self.answer.as_fd(), PollFlags::POLLIN),
            ];
            if !is_ready(&mut fds) {
                return Err(self.silent("has taken nothing"));
            }
            if fds[1].any() == Some(true) {
                return self.ended().and_then(|()| Err(self.left()));
            }
            match input.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return self.ended().and_then(|()| Err(self.left())),
            }
        }
        Ok(())
    }

    /// Lets it see the end of its input, and waits for its own.
    fn finish(&mut self) -> Result<()> {
        let _ = self.control.write_all(&[ALL]);
        self.input = None;
        let mut fds = [PollFd::new(self.answer.as_fd(), PollFlags::POLLIN)];
        if !is_ready(&mut fds) {
            return Err(self.silent("has not come to its end"));
        }
        self.ended()
    }

    /// What became of it.
    fn ended(&mut self) -> Result<()> {
        let (mut said, name) = (Vec::new(), &self.name);
        let _ = (&self.answer).take(2 + TAIL as u64).read_to_end(&mut said);
        let (what, number) = (said.first().copied(), said.get(1).copied().unwrap_or(0));
        let error = match what {
            Some(EXITED) if number == 0 => return Ok(()),
            Some(EXITED) => Error::new(format!("the command {name} ended with status {number}")),
            Some(KILLED) => Error::new(format!("the command {name} was killed by signal {number}")),
            Some(LEFT) => self.left(),
            Some(FLOOD) => Error::new(format!(
                "the command {name} gives the image to its own standard output, where nobody keeps it"
            ))
            .hint("let it write to a file, or hand it on to another"),
            Some(NO_FORK) => {
                let why = Errno::from_raw(number.into()).desc();
                Error::new(format!("cannot start the command {name}: {why}"))
            }
            _ => Error::new(format!("whoever watches over the command {name} was killed")),
        };
        let text = String::from_utf8_lossy(said.get(2..).unwrap_or_default()).into_owned();
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        Err(last.map_or(error.clone(), |last| {
            Error::new(format!("{error}: {}", printable(last.trim())))
        }))
    }

    fn left(&self) -> Error {
        Error::new(format!("the command {} ended before it had read all of the image", self.name))
    }

    fn silent(&self, what: &str) -> Error {
        let minutes = SILENCE.as_secs() / 60;
        Error::new(format!("the command {} {what} for {minutes} minutes", self.name))
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        // Before the pipe ends. One that is over hears nothing.
        let _ = self.control.write_all(b"-");
        let _ = waitpid(self.attendant.nix(), None);
    }
}

/// Waits as long as it takes at most; whether there is anything.
fn is_ready(fds: &mut [PollFd<'_>]) -> bool {
    let limit = PollTimeout::try_from(SILENCE).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(fds, limit) {
            Err(Errno::EINTR) => {}
            ready => return ready.is_ok_and(|n| n > 0),
        }
    }
}

impl Far for Taker {
    fn piece(&mut self, _: u64, bytes: &[u8]) -> Result<()> {
        self.write(bytes)
    }

    fn alive(&mut self) -> Result<()> {
        let mut fds = [PollFd::new(self.answer.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(1..) => self.ended().and_then(|()| Err(self.left())),
            _ => Ok(()),
        }
    }

    fn seal(&mut self, _: u64) -> Result<()> {
        self.finish()
    }
}

/// A command that gives an image.
pub(crate) struct Giver {
    child: Pid,
    /// What it says.
    pub(crate) output: File,
    name: String,
}

impl Giver {
    /// Starts `line` with our environment, terminal and standard error. Its standard input is empty: what comes to ours is the
    /// program's.
    ///
    /// # Errors
    /// There is no process or pipe to be had.
    pub(crate) fn start(line: &OsStr) -> Result<Self> {
        let variables = std::env::vars_os()
            .flat_map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes(), b"\0"].concat());
        let shell = Shell::of(line, variables.collect());
        let nothing = File::open("/dev/null").because(|| "cannot open /dev/null")?;
        let [output, to] = pipe()?;
        // SAFETY: the child makes system calls only.
        match unsafe { fork() }.because(|| "cannot start a process").map_err(Error::of_making)? {
            ForkResult::Child => shell.execute([nothing.as_raw_fd(), to.as_raw_fd(), 2]),
            ForkResult::Parent { child } => Ok(Self {
                child: Pid::new(child.as_raw()),
                output: output.into(),
                name: stream::shown(line),
            }),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It has failed.
    pub(crate) fn finish(self) -> Result<()> {
        drop(self.output);
        let name = &self.name;
        match waitpid(self.child.nix(), None)
            .because(|| format!("cannot wait for the command {name}"))?
        {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, status) => {
                Err(Error::new(format!("the command {name} ended with status {status}")))
            }
            WaitStatus::Signaled(_, signal, _) => Err(Error::new(format!(
                "the command {name} was killed by signal {}",
                signal as i32
            ))),
            _ => Err(Error::new(format!("the command {name} has not ended"))),
        }
    }
}
