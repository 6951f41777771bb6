// SPDX-License-Identifier: LGPL-2.1-only
//! The one error type: a sentence for the user and the exit status that goes with it.

/// Says a line on standard error. The standard library's ends the process if that cannot be written to (a full disk, a
/// reader that is gone); what was to be done is more than what is said of it.
macro_rules! eprintln {
    ($($words:tt)*) => {{
        let line = format!("{}\n", format_args!($($words)*));
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    }};
}

use nix::errno::Errno;
use nix::libc;
use std::fmt;

/// Exit status when ckpt itself failed (as env, nohup and timeout have it).
pub const FAILED: u8 = 125;
/// The way out where ckpt itself has as many files open as it may.
pub(crate) const OPEN_FILES: &str = "raise the limit of open files (ulimit -n)";

/// The way out where no process or thread can be made.
const PROCESSES: &str =
    "the number of processes is limited here (ulimit -u, or pids.max of its cgroup): raise it";

/// Exit status when the program was found but cannot be executed.
pub const CANNOT_EXECUTE: u8 = 126;
/// Exit status when the program was not found.
pub const NOT_FOUND: u8 = 127;

/// What kind of failure it is, where somebody acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Any other.
    #[default]
    Other,
    /// The process or thread has ended.
    Gone,
    /// Another checkpoint, or a restart, of the process is going on: the same may work in a moment.
    Busy,
    /// The kernel does not let us do that to the process.
    NotPermitted,
    /// The program has something that cannot be saved.
    Obstacles,
    /// The same, but it usually goes by itself in a moment.
    Passing,
    /// A checkpoint is not whole, or is none.
    Damaged,
    /// The checkpoint server does not answer.
    Unreachable,
    /// It does, and says no.
    Refused,
    /// Another checkpoint holds what this one would.
    Superseded,
    /// What was being read has changed meanwhile: the same, begun anew, may work.
    Changed,
}

/// What went wrong, as a sentence that names the thing, the reason and the way out.
// One pointer: every result is as small as it can be, and failures cost nothing where there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(Box<Failure>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    sentence: String,
    status: u8,
    errno: i32,
    kind: Kind,
}

/// `std::result::Result` with our [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with exit status 125.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self::made(sentence.into(), 0)
    }

    #[cold]
    #[inline(never)]
    fn made(sentence: String, errno: i32) -> Self {
        Self(Box::new(Failure { sentence, status: FAILED, errno, kind: Kind::Other }))
    }

    /// "WHAT: WHY".
    #[cold]
    #[inline(never)]
    fn told(what: &dyn fmt::Display, why: &dyn fmt::Display, errno: i32) -> Self {
        let made = Self::made(format!("{what}: {why}"), errno);
        match errno {
            libc::EMFILE => made.hint(OPEN_FILES),
            _ => made,
        }
    }

    #[cold]
    #[inline(never)]
    fn of_io(what: &dyn fmt::Display, e: std::io::Error) -> Self {
        match e.raw_os_error() {
            Some(n) => Self::told(what, &Errno::from_raw(n).desc(), n),
            None => Self::told(what, &e, 0),
        }
    }

    #[cold]
    #[inline(never)]
    fn within(mut self, what: &dyn fmt::Display) -> Self {
        self.0.sentence = format!("{what}: {}", self.0.sentence);
        self
    }

    /// The same error with another exit status.
    pub fn with_status(mut self, status: u8) -> Self {
        self.0.status = status;
        self
    }

    /// The same error with the way out added: "…; HINT".
    pub fn hint(self, hint: impl fmt::Display) -> Self {
        self.hinted(&hint)
    }

    #[cold]
    #[inline(never)]
    fn hinted(mut self, hint: &dyn fmt::Display) -> Self {
        self.0.sentence = format!("{}; {hint}", self.0.sentence);
        self
    }

    /// The same error of who could not make a process or a thread, with the way out.
    pub(crate) fn of_making(self) -> Self {
        if self.errno() == libc::EAGAIN { self.hint(PROCESSES) } else { self }
    }

    /// The same error with the error number that programs get to see (errno(3)).
    pub fn with_errno(mut self, errno: i32) -> Self {
        self.0.errno = errno;
        self
    }

    /// The same error as one of a kind.
    pub fn of(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The error number of the system call that failed; EINVAL where it was none.
    pub fn errno(&self) -> i32 {
        if self.0.errno == 0 { Errno::EINVAL as i32 } else { self.0.errno }
    }

    /// Whether somebody with other rights would have had another answer.
    pub fn is_refusal(&self) -> bool {
        let refused = [Errno::EPERM as i32, Errno::EACCES as i32].contains(&self.0.errno);
        refused || self.0.kind == Kind::NotPermitted
    }

    /// The exit status of the ckpt command.
    pub fn status(&self) -> u8 {
        self.0.status
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.0.sentence))
    }
}

impl std::error::Error for Error {}

/// A text of a file, of /proc or of a server as a terminal may get it.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Whether a character does something to a terminal (escape sequences begin with one), ends a line, or
/// turns the direction of what follows.
pub fn is_harmful(c: char) -> bool {
    let turns =
        matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || c.is_control()
}

/// Turns the error of a system call into a sentence: "WHAT: No such file or directory".
pub trait Because<T> {
    /// `what` names what was being done to which thing: "cannot open /etc/motd".
    fn because<S: fmt::Display>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Because<T> for std::result::Result<T, Errno> {
    fn because<S: fmt::Display>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Error::told(&what(), &e.desc(), e as i32))
    }
}

impl<T> Because<T> for std::io::Result<T> {
    fn because<S: fmt::Display>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Error::of_io(&what(), e))
    }
}

impl<T> Because<T> for Result<T> {
    fn because<S: fmt::Display>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| e.within(&what()))
    }
}
