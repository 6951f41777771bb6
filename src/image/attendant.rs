// SPDX-License-Identifier: LGPL-2.1-only
//! A command of the user's, by /bin/sh, and who stands between us and one that gets bytes at its standard input.
//!
//! The end of its input tells a command that it has all, and would say the same when we are killed in the middle. So the
//! *attendant*, a process of ours, holds the pipe, too, and lets it end when we say so; without us, it kills the command's
//! process group first. It also holds the pipe's other end, and so sees whether the command has left anything unread: the
//! last bytes that fit into a pipe bring no EPIPE.
//!
//! Both are in a session of their own, so the terminal's signals and those of a job's group never come to them.
//!
//! # Safety
//! The attendant and the command begin as forks of a process that may have other threads: until they end, or execute
//! another program, they only make system calls, on memory that was prepared before and is theirs. Descriptors are made
//! owners' that the kernel has just made.
#![allow(unsafe_code)]

use crate::error::{Because, Result};
use crate::proc::fork::end;
use crate::proc::pidfd::Pidfd;
use crate::proc::{Pid, closing};
use crate::rights;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{ForkResult, fork};
use std::ffi::{CString, OsStr, c_char};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

/// As many bytes a command may say on its standard output; more is the image itself, which nobody would keep.
const MOST_SAID: usize = 64 << 10;
/// What is kept of the end of standard error.
pub(super) const TAIL: usize = 512;

/// That was all: the command sees the end.
pub(super) const ALL: u8 = b'A';

/// What becomes of a command: the first byte of the attendant's answer, before a number.
pub(super) const EXITED: u8 = 0;
pub(super) const KILLED: u8 = 1;
pub(super) const LEFT: u8 = 2;
pub(super) const FLOOD: u8 = 3;
pub(super) const NO_FORK: u8 = 4;

/// What a command is executed with; made before the fork.
pub(super) struct Shell {
    words: [CString; 3],
    argv: [*const c_char; 4],
    /// NAME=VALUE, with a null byte behind each.
    environment: Vec<u8>,
    envp: Vec<*const c_char>,
}

impl Shell {
    pub(super) fn of(line: &OsStr, mut environment: Vec<u8>) -> Box<Self> {
        let word = |text: &[u8]| CString::new(text).unwrap_or_default();
        let words = [word(b"sh"), word(b"-c"), word(line.as_bytes())];
        environment.push(0);
        let argv = [words[0].as_ptr(), words[1].as_ptr(), words[2].as_ptr(), std::ptr::null()];
        let mut made = Box::new(Self { words, argv, environment, envp: Vec::new() });
        let pieces = made.environment.split_inclusive(|byte| *byte == 0);
        let mut envp: Vec<_> =
            pieces.filter(|it| it.len() > 1).map(|it| it.as_ptr().cast::<c_char>()).collect();
        envp.push(std::ptr::null());
        made.envp = envp;
        made
    }

    /// Becomes the command, with these as its standard streams.
    pub(super) fn execute(&self, streams: [RawFd; 3]) -> ! {
        let _ = &self.words;
        for (number, fd) in streams.iter().enumerate() {
            // SAFETY: our own standard streams are not used any more.
            unsafe { libc::dup2(*fd, number as RawFd) };
        }
        for number in 1..=64 {
            // SAFETY: no handler is installed.
            unsafe { libc::signal(number, libc::SIG_DFL) };
        }
        let none = nix::sys::signal::SigSet::empty();
        let _ = none.thread_set_mask();
        // SAFETY: all end with a null pointer, and outlive the call.
        unsafe { libc::execve(c"/bin/sh".as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
        end(127)
    }
}

/// A pipe, reading end first. Neither is a standard stream.
pub(super) fn pipe() -> Result<[OwnedFd; 2]> {
    let high = |fd: OwnedFd| match fd.as_raw_fd() {
        3.. => Ok(fd),
        _ => {
            let number = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(3))?;
            // SAFETY: the kernel has just made it for us.
            Ok(unsafe { OwnedFd::from_raw_fd(number) })
        }
    };
    let made = nix::unistd::pipe2(OFlag::O_CLOEXEC)
        .and_then(|(from, to)| Ok::<_, Errno>([high(from)?, high(to)?]));
    made.because(|| "cannot make a pipe")
}

/// What the attendant needs.
pub(super) struct Attendant {
    /// The command's input; and its other end, until the command is to see its end.
    input: OwnedFd,
    held: Option<OwnedFd>,
    control: OwnedFd,
    answer: OwnedFd,
    output: OwnedFd,
    errors: OwnedFd,
    maker: Option<Pidfd>,
    /// The command's process group.
    group: libc::pid_t,
    /// Bytes on its standard output.
    said: usize,
    tail: [u8; TAIL],
    kept: usize,
}

impl Attendant {
    /// Between a pipe's two ends, with the line that its orders come over and the one for its answer; the command's output and
    /// errors come over the last two.
    pub(super) fn of(
        [input, held]: [OwnedFd; 2],
        [control, answer]: [OwnedFd; 2],
        [output, errors]: [OwnedFd; 2],
    ) -> Self {
        let maker = Pidfd::open(Pid::own()).ok();
        let (held, tail) = (Some(held), [0; TAIL]);
        Self {
            input,
            held,
            control,
            answer,
            output,
            errors,
            maker,
            group: 0,
            said: 0,
            tail,
            kept: 0,
        }
    }

    /// Starts the command as that user and group, with these as its output and errors, and waits for what comes.
    pub(super) fn run(
        &mut self,
        shell: &Shell,
        streams: [OwnedFd; 2],
        (user, group): (u32, u32),
    ) -> ! {
        let _ = nix::unistd::setsid();
        let _ = nix::sys::prctl::set_name(c"ckpt-command");
        let _ = nix::sys::signal::SigSet::all().thread_set_mask();
        self.keep_own(&streams);
        let own = Pid::own().nix();
        // SAFETY: the child makes system calls only.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                // SAFETY: it takes no pointer.
                unsafe { libc::setpgid(0, 0) };
                // Without us it could take a part for the whole. A change of user would undo that (prctl(2)).
                // Whoever enters the user namespace of a job may do there what its user may not.
                let own_ids = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
                let is_root = user == 0 && own_ids == (user, group);
                let is_one = is_root || rights::become_one(user, group);
                // SAFETY: it takes no pointer.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
                if !is_one || nix::unistd::getppid() != own {
                    end(126);
                }
                shell.execute([
                    self.input.as_raw_fd(),
                    streams[0].as_raw_fd(),
                    streams[1].as_raw_fd(),
                ])
            }
            Ok(ForkResult::Parent { child }) => {
                self.group = child.as_raw();
                // Whoever is second finds it done.
                // SAFETY: it takes no pointer.
                unsafe { libc::setpgid(self.group, self.group) };
                drop(streams);
                self.attend(Pidfd::open(Pid::new(child.as_raw())).ok())
            }
            Err(e) => self.tell(NO_FORK, e as i32 as u8),
        }
    }

    /// Whatever else our maker had open is not ours: a pipe of the program would not end.
    fn keep_own(&self, streams: &[OwnedFd; 2]) {
        let maker = self.maker.as_ref().map_or(-1, |maker| maker.as_fd().as_raw_fd());
        let held = self.held.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let mut own = [
            self.input.as_raw_fd(),
            held,
            self.control.as_raw_fd(),
            self.answer.as_raw_fd(),
            self.output.as_raw_fd(),
            self.errors.as_raw_fd(),
            streams[0].as_raw_fd(),
            streams[1].as_raw_fd(),
            maker,
        ];
        // By hand, and in place: another thread of the process that we are a copy of may have held the heap.
        for last in 1..own.len() {
            let mut at = last;
            while at > 0 && own[at - 1] > own[at] {
                own.swap(at - 1, at);
                at -= 1;
            }
        }
        let mut next = 3;
        for fd in own.iter().filter_map(|fd| u32::try_from(*fd).ok()) {
            if next < fd {
                closing::close_range(next, fd - 1);
            }
            next = fd + 1;
        }
        closing::close_range(next, u32::MAX);
    }

    fn attend(&mut self, command: Option<Pidfd>) -> ! {
        let Some(command) = command else {
            self.kill();
            self.tell(NO_FORK, Errno::ENOSYS as i32 as u8)
        };
        let mut is_said = [true; 2];
        loop {
            let [control, maker, ended, output, errors] = {
                let fds = [
                    Some(self.control.as_fd()),
                    self.maker.as_ref().map(AsFd::as_fd),
                    Some(command.as_fd()),
                    Some(self.output.as_fd()).filter(|_| is_said[0]),
                    Some(self.errors.as_fd()).filter(|_| is_said[1]),
                ];
                ready(fds.map(|fd| fd.unwrap_or(command.as_fd())))
            };
            if errors && is_said[1] {
                is_said[1] = self.hear();
            }
            if output && is_said[0] {
                is_said[0] = self.swallow();
            }
            if control {
                let mut word = [0];
                if nix::unistd::read(&self.control, &mut word) != Ok(1) || word[0] != ALL {
                    self.kill();
                    end(0)
                }
                self.held = None;
            } else if maker && self.maker.is_some() {
                self.kill();
                end(0)
            } else if ended {
                self.judge()
            }
        }
    }

    /// The command has ended.
    fn judge(&mut self) -> ! {
        let mut status = 0;
        // SAFETY: the kernel writes the one word.
        while unsafe { libc::waitpid(self.group, &mut status, 0) } < 0
            && Errno::last() == Errno::EINTR
        {}
        let _ = fcntl(&self.errors, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        // What it has left running may say more without end.
        let _ = (0..MOST_SAID / TAIL).all(|_| self.hear());
        let mut unread: libc::c_int = 0;
        // SAFETY: the kernel writes the one word.
        unsafe { libc::ioctl(self.input.as_raw_fd(), libc::FIONREAD, &mut unread) };
        let is_all = self.held.is_none() && unread == 0;
        if libc::WIFSIGNALED(status) {
            self.tell(KILLED, libc::WTERMSIG(status) as u8)
        } else if is_all || libc::WEXITSTATUS(status) != 0 {
            self.tell(EXITED, libc::WEXITSTATUS(status) as u8)
        }
        self.kill();
        self.tell(LEFT, 0)
    }

    fn kill(&self) {
        // SAFETY: it takes no pointer; the group is the command's, which has not been waited for, or has members.
        unsafe { libc::kill(-self.group, libc::SIGKILL) };
    }

    /// Says what has become of the command, and ends.
    fn tell(&self, what: u8, number: u8) -> ! {
        let mut words = [0; 2 + TAIL];
        (words[0], words[1]) = (what, number);
        words[2..2 + self.kept].copy_from_slice(&self.tail[..self.kept]);
        let _ = nix::unistd::write(&self.answer, &words[..2 + self.kept]);
        end(0)
    }

    /// Keeps the end of what is said on standard error; whether more may come.
    fn hear(&mut self) -> bool {
        let mut words = [0; TAIL];
        let n = match nix::unistd::read(&self.errors, &mut words) {
            Err(Errno::EINTR) => return true,
            Ok(0) | Err(_) => return false,
            Ok(n) => n,
        };
        let over = (self.kept + n).saturating_sub(TAIL);
        self.tail.copy_within(over..self.kept, 0);
        self.kept -= over;
        self.tail[self.kept..self.kept + n].copy_from_slice(&words[..n]);
        self.kept += n;
        true
    }

    /// Takes what is said on standard output; whether more may come.
    fn swallow(&mut self) -> bool {
        let mut words = [0; 4096];
        match nix::unistd::read(&self.output, &mut words) {
            Err(Errno::EINTR) => true,
            Ok(0) | Err(_) => false,
            Ok(n) => {
                self.said += n;
                if self.said > MOST_SAID {
                    self.kill();
                    self.tell(FLOOD, 0)
                }
                true
            }
        }
    }
}

/// Which of them have something to be read, or have ended.
fn ready<const N: usize>(fds: [BorrowedFd<'_>; N]) -> [bool; N] {
    let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let _ = poll(&mut fds, PollTimeout::NONE);
    fds.map(|fd| fd.any() == Some(true))
}
