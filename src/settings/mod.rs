// SPDX-License-Identifier: LGPL-2.1-only
//! What a user may say about checkpoints: where they go, which signal triggers them, whether the
//! program goes on, and how often (section 7.1 of the original manual).
//!
//! The command line, the environment and a running program's [`Config`] all meet here, so that a
//! value is accepted or refused in one place and in the same words.

mod encryption;
mod fields;
pub mod passphrase;
pub mod server;
pub(crate) mod setting;
mod signal;
pub(crate) mod stream;
pub(crate) mod table;
mod template;
#[cfg(test)]
mod tests;
mod without;
mod words;

use crate::proc::Pid;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use ckpt_abi::region::{Config, KEY_LEN, NAME_LEN, NOTIFY_LEN, WITHOUT_LEN, config_flag};

use crate::error::{Error, Result, printable};
use fields::Said;
use server::{ServerName, Transfer};
use table::SETTINGS;

pub use signal::{DEFAULT_SIGNAL, SIGNALS, parse_signal, signal_name};
pub use template::{Template, Values};
pub use without::Without;
pub(crate) use words::period_text;
use words::{get_command, parse_level, put_command};
pub use words::{
    parse_command, parse_file, parse_host, parse_number, parse_pair, parse_period, parse_ports,
    parse_size,
};

/// Longest checkpoint name in bytes (PATH_MAX without its final NUL).
pub const LONGEST_NAME: usize = NAME_LEN - 1;

/// Where a checkpoint goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// A file of the local file system, with the placeholders of a [`Template`]; relative until
    /// [`Name::resolve`].
    File(PathBuf),
    /// `cssrv://HOST[:PORT]/NAME`, a checkpoint server's.
    Server(ServerName),
    /// `|COMMAND`, whose standard input gets it, with the placeholders of a [`Template`], or `-`, standard output.
    Stream(OsString),
}

/// What was said about checkpoints; `None` where nothing was said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// CKPT_NAME.
    pub name: Option<Name>,
    /// CKPT_ASYNCSIG: a signal number, or 0 for none.
    pub asyncsig: Option<u32>,
    /// CKPT_CONTINUE: whether the program goes on after a checkpoint.
    pub continues: Option<bool>,
    /// CKPT_MSPERIOD in milliseconds; 0 for no periodic checkpoints.
    pub msperiod: Option<u32>,
    /// CKPT_EXIT: the status of a program that a checkpoint ended.
    pub exit_status: Option<u8>,
    /// How many checkpoints of a counted name are kept; 0 for all.
    pub keep: Option<u32>,
    /// CKPT_COMPRESS: whether the content of checkpoints is compressed.
    pub compress: Option<bool>,
    /// CKPT_ENCRYPT: whether checkpoints are encrypted.
    pub encrypt: Option<bool>,
    /// CKPT_INCREMENTAL: whether periodic checkpoints write only what has changed: 0 not, 1 (and None) so, 2 with all memory tracked.
    pub incremental: Option<u8>,
    /// How checkpoints travel to a server.
    pub transfer: Transfer,
    /// CKPT_EMBED_FILES: open files of at most so many bytes travel along; 0 for none.
    pub embed: Option<u64>,
    /// Whether checkpoints keep their names when the program has come to its normal end (true), or get
    /// another (false), as with `--resume`.
    pub keep_finished: Option<bool>,
    /// CKPT_ALONE: whether checkpoints hold the process without its descendants.
    pub alone: Option<bool>,
    /// CKPT_WITHOUT: descendants that checkpoints leave out.
    pub without: Option<Without>,
    /// CKPT_VERBOSE: whether checkpoints also tell what nobody is likely to miss.
    pub verbose: Option<bool>,
    /// CKPT_STRICT: whether what an image would go without is in the way of it.
    pub strict: Option<bool>,
    /// CKPT_KEEP_TCP: whether TCP connections to others go on after a checkpoint that ends the program.
    pub keep_tcp: Option<bool>,
    /// CKPT_NOTIFY: what is run when a checkpoint has come to something.
    pub notify: Option<OsString>,
    /// CKPT_LAZY: whether a restart goes on before its memory is there.
    pub lazy: Option<bool>,
}

impl Name {
    /// Reads `FILENAME`, `file://FILENAME`, `cssrv://HOST[:PORT]/NAME`, `|COMMAND` or `-`.
    ///
    /// # Errors
    /// Empty or over-long names, names with a NUL, names that can only be a directory's, unknown
    /// placeholders ([`Template::parse`]), and every other `SCHEME://` (a FILENAME does not contain `://`).
    pub fn parse(text: &OsStr) -> Result<Self> {
        let bytes = text.as_bytes();
        if bytes.starts_with(server::SCHEME.as_bytes()) {
            return ServerName::parse(text).map(Self::Server);
        }
        if stream::is_one(bytes) {
            if bytes != b"-" {
                stream::command(text)?;
            }
            if bytes.contains(&0) {
                return Err(nul(text));
            }
            Template::parse(Path::new(text))?;
            return within(text.to_owned()).map(Self::Stream);
        }
        let file = bytes.strip_prefix(b"file://").unwrap_or(bytes);
        if let Some(end) = find(file, b"://") {
            let whole = bytes.len() - file.len();
            let scheme = OsStr::from_bytes(&bytes[..whole + end + 3]);
            return Err(Error::new(format!(
                "the checkpoint name {} has the unknown scheme {}; \
                 a name is FILENAME, file://FILENAME, cssrv://HOST[:PORT]/NAME or |COMMAND, where FILENAME \
                 does not contain '://'",
                quoted(text),
                quoted(scheme)
            )));
        }
        if file.is_empty() {
            let which = if bytes.is_empty() { "''" } else { "'file://'" };
            return Err(Error::new(format!("the checkpoint name {which} names no file")));
        }
        if file.contains(&0) {
            return Err(nul(text));
        }
        let last = file.rsplit(|&b| b == b'/').next().unwrap_or_default();
        if matches!(last, b"" | b"." | b"..") {
            return Err(Error::new(format!(
                "the checkpoint name {} names a directory; add the name of a file",
                quoted(text)
            )));
        }
        let path = PathBuf::from(OsStr::from_bytes(file));
        Template::parse(&path)?;
        Self::fitting(path)
    }

    /// The same name with a relative file name taken from `dir`, which is absolute. Symbolic
    /// links and `..` stay for the kernel to resolve when the file is written.
    ///
    /// # Errors
    /// The result is longer than [`LONGEST_NAME`].
    pub fn resolve(&self, dir: &Path) -> Result<Self> {
        match self {
            Self::File(path) => {
                let dir = PathBuf::from(Template::escape(dir.as_os_str()));
                Self::fitting(dir.join(path).components().collect())
            }
            Self::Server(_) => Ok(self.clone()),
            Self::Stream(name) => {
                within(stream::placed(name, &Template::escape(dir.as_os_str()))).map(Self::Stream)
            }
        }
    }

    /// The file, where the name is a file's; a [`Template`].
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Server(_) | Self::Stream(_) => None,
        }
    }

    fn fitting(path: PathBuf) -> Result<Self> {
        within(path.into()).map(|name| Self::File(name.into()))
    }

    /// How the name stands in [`Config::name`], where an absolute file name has no scheme.
    pub fn written(&self) -> OsString {
        match self {
            Self::File(path) => path.clone().into_os_string(),
            Self::Server(name) => name.to_string().into(),
            Self::Stream(name) => name.clone(),
        }
    }

    /// Reads what [`Name::written`] gave.
    ///
    /// # Errors
    /// As [`Name::parse`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.first() == Some(&b'/') {
            return Self::fitting(PathBuf::from(OsString::from_vec(bytes.to_vec())));
        }
        // Once filled in, a percent sign is itself.
        if stream::is_one(bytes) {
            return within(OsString::from_vec(bytes.to_vec())).map(Self::Stream);
        }
        Self::parse(OsStr::from_bytes(bytes))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Server(name) => name.fmt(f),
            Self::Stream(name) => stream::shown_name(name).display().fmt(f),
        }
    }
}

fn nul(text: &OsStr) -> Error {
    Error::new(format!("the checkpoint name {} contains a NUL byte", quoted(text)))
}

fn within(name: OsString) -> Result<OsString> {
    let len = name.len();
    if len > LONGEST_NAME {
        return Err(Error::new(format!(
            "the checkpoint name {} has {len} bytes; at most {LONGEST_NAME} are possible",
            quoted(&name)
        )));
    }
    Ok(name)
}

impl Settings {
    /// `self`, and what `weaker` says where `self` says nothing.
    pub fn or(mut self, weaker: Self) -> Self {
        for setting in &SETTINGS {
            (setting.inherit)(&mut self, &weaker);
        }
        self
    }

    /// The same settings with a relative name taken from `dir` ([`Name::resolve`]).
    ///
    /// # Errors
    /// The name becomes too long.
    pub fn resolve(mut self, dir: &Path) -> Result<Self> {
        self.name = self.name.map(|name| name.resolve(dir)).transpose()?;
        self.transfer = self.transfer.resolve(dir)?;
        Ok(self)
    }

    /// `base` with everything changed that was said. The name must have been resolved.
    ///
    /// # Panics
    /// The name does not fit, which [`Name::parse`] and [`Name::resolve`] exclude.
    pub fn apply(&self, mut base: Config) -> Config {
        for setting in &SETTINGS {
            (setting.apply)(self, &mut base);
        }
        base
    }

    /// What `config`, which may come from another process's memory, says. For any configuration
    /// that [`Settings::apply`] made, applying the result gives that configuration again.
    ///
    /// # Errors
    /// A value that no user could have chosen.
    pub fn from_config(config: &Config) -> Result<Self> {
        let mut said = Self::default();
        for setting in &SETTINGS {
            (setting.read)(&mut said, config)?;
        }
        Ok(said)
    }

    /// What was said, as options of a checkpoint file; `None` for what options cannot say.
    pub(crate) fn words(&self) -> Option<Vec<OsString>> {
        let mut words = Vec::new();
        for setting in &SETTINGS {
            let option = format!("--{}", setting.long);
            match (setting.written)(self) {
                Said::Nothing => {}
                Said::Switch => words.push(option.into()),
                Said::Value(value) => words.push([option.into(), value].join(OsStr::new("="))),
                Said::Unsayable => return None,
            }
        }
        Some(words)
    }
}

/// # Panics
/// The name does not fit.
fn put_name(field: &mut [u8; NAME_LEN], name: Option<&Name>) {
    let Some(name) = name else { return };
    let written = name.written();
    let bytes = written.as_bytes();
    assert!(bytes.len() <= LONGEST_NAME, "a checkpoint name of {} bytes", bytes.len());
    *field = [0; NAME_LEN];
    field[..bytes.len()].copy_from_slice(bytes);
}

/// Reads what was put into a field; None of an empty one.
fn get_name(field: &[u8; NAME_LEN]) -> Result<Option<Name>> {
    let end = field.iter().position(|byte| *byte == 0);
    let end = end.ok_or_else(|| Error::new("the checkpoint name in the process has no end"))?;
    (end > 0).then(|| Name::from_bytes(&field[..end])).transpose()
}

/// The configuration when nothing is said: SIGTSTP saves the program and ends it. The name is
/// empty; it is set with [`Settings::apply`], usually from [`default_name`].
pub fn default_config() -> Config {
    Config {
        name: [0; NAME_LEN],
        asyncsig: DEFAULT_SIGNAL,
        continues: 0,
        msperiod: 0,
        exit_status: 0,
        keep: 0,
        flags: config_flag::INCREMENTAL,
        launched: [0; 3],
        embed: 0,
        cpu: [0; 2],
        key: [0; KEY_LEN],
        fallback: [0; NAME_LEN],
        run: 0,
        before: [0; 2],
        without: [0; WITHOUT_LEN],
        begun: [0; 2],
        notify: [0; NOTIFY_LEN],
    }
}

/// A number for [`Config::run`].
pub fn fresh_run() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish().max(1)
}

/// The checkpoint name of `program` when none is given: its base name and ".ckpt".
pub fn default_name(program: &OsStr) -> OsString {
    let name = Path::new(program).file_name().unwrap_or(OsStr::new("program"));
    let mut name = Template::escape(name);
    name.push(".ckpt");
    name
}

/// Reads 0 or 1.
///
/// # Errors
/// Anything else.
pub fn parse_switch(text: &OsStr) -> Result<bool> {
    match text.as_bytes() {
        b"0" => Ok(false),
        b"1" => Ok(true),
        _ => Err(no_switch(&shown(text))),
    }
}

fn no_switch(said: &str) -> Error {
    Error::new(format!("'{said}' is neither 0 (the program ends) nor 1 (it continues)"))
}

/// Reads an exit status.
///
/// # Errors
/// What is no number from 0 to 255.
pub fn parse_status(text: &OsStr) -> Result<u8> {
    let number = text.to_str().and_then(digits).flatten();
    number.and_then(|n| u8::try_from(n).ok()).ok_or_else(|| no_status(&shown(text)))
}

fn no_status(said: &str) -> Error {
    Error::new(format!("'{said}' is no exit status, which is a number from 0 to 255"))
}

/// Reads how many checkpoints are kept; 0 for all.
///
/// # Errors
/// What is no unsigned 32-bit number.
pub fn parse_keep(text: &OsStr) -> Result<u32> {
    text.to_str().and_then(digits).flatten().ok_or_else(|| {
        Error::new(format!(
            "{} is no number of checkpoints to keep; say 3 for the last three, 0 for all",
            quoted(text)
        ))
    })
}

/// The configured name, and that what else is configured fits it.
///
/// # Errors
/// No name, and a number of checkpoints to keep with a name that is not counted.
pub fn template(config: &Config) -> Result<Template> {
    let name = Settings::from_config(config)?.name;
    let name = name.ok_or_else(|| Error::new("there is no checkpoint name"))?;
    if let Name::Stream(name) = &name {
        stream::command(name)?;
        if config.keep > 0 {
            let sentence = "--keep cannot remove what a command has stored";
            return Err(Error::new(sentence).hint("let the command remove it"));
        }
    }
    let template = Template::parse(Path::new(&name.written()))?;
    if config.keep > 0 && !template.is_counted() {
        return Err(Error::new(format!(
            "--keep {} needs a count in the checkpoint's name, which is {}",
            config.keep,
            quoted(&name.written())
        ))
        .hint("put %n where the number shall stand"));
    }
    Ok(template)
}

/// Reads a process id.
///
/// # Errors
/// What cannot be one.
pub fn parse_pid(text: &OsStr) -> Result<Pid> {
    let number = text.to_str().and_then(digits).flatten();
    number.and_then(|n| i32::try_from(n).ok()).filter(|&n| n > 0).map(Pid::new).ok_or_else(|| {
        Error::new(format!("{} is not a process id, which is a number from 1 on", quoted(text)))
    })
}

/// `None` for what is not only decimal digits (no sign, no space), `Some(None)` beyond u32.
fn digits(word: &str) -> Option<Option<u32>> {
    let only = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    only.then(|| word.parse().ok())
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A word of the user in quotes, for sentences.
pub fn quoted(text: &OsStr) -> String {
    format!("'{}'", shown(text))
}

/// On one line, whatever the bytes, and cut where it is long.
fn shown(text: &OsStr) -> String {
    const LONGEST_SHOWN: usize = 100;
    let text = text.to_string_lossy();
    let mut shown = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == LONGEST_SHOWN {
            shown.push('…');
            break;
        }
        shown.push(c);
    }
    printable(&shown)
}
