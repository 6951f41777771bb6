// SPDX-License-Identifier: LGPL-2.1-only
//! Names of checkpoints on a checkpoint server, and how to get there.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use ckpt_abi::region::{Config, KEY_LEN, NAME_LEN, config_flag};

use super::passphrase::Passphrase;
use super::{LONGEST_NAME, quoted};
use crate::error::{Error, Result};

/// The port of a checkpoint server when none is said (section 7.1 of the original manual).
pub const PORT: u16 = 10301;
/// What begins the name of a checkpoint on a server.
pub const SCHEME: &str = "cssrv://";
/// Longest name of a stored checkpoint in bytes, folders included.
pub const LONGEST_STORED: usize = 1024;
/// Longest part of such a name (NAME_MAX of Linux).
const LONGEST_PART: usize = 255;
/// The server's own folder in its directory, which no name may contain.
pub const OWN_FOLDER: &str = ".ckpt-serve";

/// `cssrv://HOST[:PORT]/NAME`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerName {
    host: String,
    port: u16,
    path: String,
}

/// The file with the shared key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// --key or CKPT_KEY.
    Said(PathBuf),
    /// ~/.config/ckpt/key of who configured the program.
    Usual(PathBuf),
    /// Of encrypted checkpoints alone: a passphrase comes from this descriptor.
    Descriptor(i32),
    /// The key that was made of one.
    Passphrase(Passphrase),
}

/// How checkpoints travel to a server; `None` where nothing was said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// The shared key.
    pub key: Option<Key>,
    /// Neither encryption nor authentication.
    pub insecure: Option<bool>,
    /// CKPT_FALLBACK: the file for checkpoints that the server did not take.
    pub fallback: Option<PathBuf>,
}

impl ServerName {
    /// Reads `cssrv://HOST[:PORT]/NAME`, where HOST is a DNS name, an IPv4 address or `[IPv6]`.
    ///
    /// # Errors
    /// What is none, and names that no server stores ([`check_stored`]).
    pub fn parse(text: &OsStr) -> Result<Self> {
        let name = Self::parse_folder(text)?;
        if name.path.is_empty() {
            return Err(wrong(text, "names no checkpoint on the server"));
        }
        check_stored(&name.path).map_err(|why| wrong(text, &why))?;
        Ok(name)
    }

    /// As [`ServerName::parse`], but NAME may be a folder's, with or without a slash at its end,
    /// or missing.
    ///
    /// # Errors
    /// As there.
    pub fn parse_folder(text: &OsStr) -> Result<Self> {
        let known = text.to_str().and_then(|t| t.strip_prefix(SCHEME));
        let rest = known.ok_or_else(|| wrong(text, "is not of the form"))?;
        if text.len() > LONGEST_NAME {
            return Err(wrong(text, &format!("is longer than {LONGEST_NAME} bytes")));
        }
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = split_port(place);
        let port = match port {
            None => PORT,
            Some(port) => port.parse().ok().filter(|p| *p > 0).ok_or_else(|| {
                wrong(
                    text,
                    "has a port that is not a number from 1 to 65535, or is not of the form",
                )
            })?,
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
        if host.is_empty() || !host.chars().all(plain) {
            return Err(wrong(text, "names no host, or is not of the form"));
        }
        let folder = path.strip_suffix('/').unwrap_or(path);
        if !folder.is_empty() {
            check_stored(folder).map_err(|why| wrong(text, &why))?;
        }
        Ok(Self { host: host.to_owned(), port, path: path.to_owned() })
    }

    /// The host without brackets, and the port.
    pub fn place(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// The name on the server.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Another name on the same server.
    pub fn sibling(&self, path: String) -> Self {
        Self { path, ..self.clone() }
    }

    /// "HOST:PORT", for sentences.
    pub fn server(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.server(), self.path)
    }
}

/// Why a server does not store a checkpoint under this name; it is relative, has no empty part, no
/// `.` or `..`, nothing that does not print, and no part that a file system could not hold.
///
/// # Errors
/// The reason, to stand behind the name.
pub fn check_stored(name: &str) -> std::result::Result<(), String> {
    if name.is_empty() {
        return Err("is empty".into());
    }
    if name.len() > LONGEST_STORED {
        return Err(format!("is longer than {LONGEST_STORED} bytes"));
    }
    if name.chars().any(char::is_control) {
        return Err("has a character that does not print".into());
    }
    for part in name.split('/') {
        match part {
            "" => return Err("is absolute, or has an empty part".into()),
            "." | ".." => return Err(format!("has the part '{part}'")),
            OWN_FOLDER => return Err(format!("has the part '{part}', which is the server's own")),
            part if part.len() > LONGEST_PART => {
                return Err(format!("has a part of more than {LONGEST_PART} bytes"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn split_port(place: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = place.strip_prefix('[').and_then(|p| p.split_once(']')) {
        return match rest {
            "" => (host, None),
            rest => (host, Some(rest.strip_prefix(':').unwrap_or("?"))),
        };
    }
    match place.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (place, None),
    }
}

fn wrong(text: &OsStr, why: &str) -> Error {
    let name = quoted(text);
    Error::new(format!("the checkpoint name {name} {why}: cssrv://HOST[:PORT]/NAME"))
}

impl Key {
    /// The key file of a home directory.
    pub fn of_home(home: &Path) -> Self {
        Self::Usual(home.join(".config/ckpt/key"))
    }

    /// The path, if it is in a file.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Said(path) | Self::Usual(path) => Some(path),
            Self::Descriptor(_) | Self::Passphrase(_) => None,
        }
    }
}

impl Transfer {
    /// The same with relative files taken from `dir`, and the key of a passphrase made.
    ///
    /// # Errors
    /// A path becomes too long, or there is no passphrase.
    pub fn resolve(mut self, dir: &Path) -> Result<Self> {
        if let Some(Key::Said(path)) = &mut self.key {
            *path = fitting(dir.join(&path))?;
        }
        if let Some(Key::Descriptor(fd)) = self.key {
            self.key = Some(Key::Passphrase(Passphrase::begin(fd)?));
        }
        if let Some(path) = &mut self.fallback {
            *path = fitting(dir.join(&path))?;
        }
        Ok(self)
    }
}

/// Writes the name of a key file into a configuration. The usual key never replaces one that was said.
pub(super) fn put_key(config: &mut Config, key: Option<&Key>) {
    match key {
        Some(Key::Said(path)) => {
            put_path(&mut config.key, path);
            config.flags &= !config_flag::KEY_USUAL;
        }
        Some(Key::Usual(path))
            if config.key[0] == 0 || config.flags & config_flag::KEY_USUAL != 0 =>
        {
            put_path(&mut config.key, path);
            config.flags |= config_flag::KEY_USUAL;
        }
        Some(Key::Passphrase(made)) => {
            made.put(&mut config.key);
            config.flags &= !config_flag::KEY_USUAL;
        }
        Some(Key::Usual(_) | Key::Descriptor(_)) | None => {}
    }
}

/// What a configuration says of a key.
pub(super) fn get_key(config: &Config) -> Result<Option<Key>> {
    if let Some(made) = Passphrase::get(&config.key) {
        return Ok(Some(Key::Passphrase(made)));
    }
    let made = match config.flags & config_flag::KEY_USUAL {
        0 => Key::Said,
        _ => Key::Usual,
    };
    Ok(get_path(&config.key)?.map(made))
}

fn fitting(path: PathBuf) -> Result<PathBuf> {
    const { assert!(KEY_LEN == NAME_LEN) };
    if path.as_os_str().len() > LONGEST_NAME {
        return Err(Error::new(format!(
            "the name {} has {} bytes; at most {LONGEST_NAME} are possible",
            quoted(path.as_os_str()),
            path.as_os_str().len()
        )));
    }
    Ok(path)
}

pub(super) fn put_path(field: &mut [u8], path: &Path) {
    use std::os::unix::ffi::OsStrExt;
    field.fill(0);
    let bytes = path.as_os_str().as_bytes();
    // A usual key in a home directory with too long a name counts as none.
    if bytes.len() < field.len() {
        field[..bytes.len()].copy_from_slice(bytes);
    }
}

pub(super) fn get_path(field: &[u8]) -> Result<Option<PathBuf>> {
    use std::os::unix::ffi::OsStringExt;
    match field.iter().position(|b| *b == 0) {
        Some(0) => Ok(None),
        Some(end) => Ok(Some(OsString::from_vec(field[..end].to_vec()).into())),
        None => Err(Error::new("a file name in the process's configuration has no end")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> std::result::Result<(String, u16, String), String> {
        let name = ServerName::parse(OsStr::new(text)).map_err(|e| e.to_string())?;
        Ok((name.host.clone(), name.port, name.path))
    }

    #[test]
    fn names() {
        let is = |h: &str, p: u16, n: &str| Ok((h.to_owned(), p, n.to_owned()));
        assert_eq!(parse("cssrv://host/foo"), is("host", 10301, "foo"));
        assert_eq!(parse("cssrv://10.0.0.1:7/a/b c.ckpt"), is("10.0.0.1", 7, "a/b c.ckpt"));
        assert_eq!(parse("cssrv://[::1]/é"), is("::1", 10301, "é"));
        assert_eq!(parse("cssrv://[fe80::1%eth0]:9/x"), is("fe80::1%eth0", 9, "x"));
        let shown = ServerName::parse(OsStr::new("cssrv://[::1]/é")).unwrap().to_string();
        assert_eq!(shown, "cssrv://[::1]:10301/é");
        assert_eq!(parse(&shown), is("::1", 10301, "é"));
        let folder = |t: &str| ServerName::parse_folder(OsStr::new(t)).map(|n| n.path);
        assert_eq!(folder("cssrv://h"), Ok(String::new()));
        assert_eq!(folder("cssrv://h/a/"), Ok("a/".into()));
    }

    #[test]
    fn bad_names() {
        for text in [
            "cssrv://",
            "cssrv:///x",
            "cssrv://h",
            "cssrv://h/",
            "cssrv://h:/x",
            "cssrv://h:0/x",
            "cssrv://h:65536/x",
            "cssrv://h:1:2/x",
            "cssrv://[::1/x",
            "cssrv://[::1]7/x",
            "cssrv://u@h/x",
            "cssrv://h//etc/x",
            "cssrv://h/../x",
            "cssrv://h/a/./b",
            "cssrv://h/a//b",
            "cssrv://h/a/",
            "cssrv://h/a\nb",
            "cssrv://h/.ckpt-serve/1",
            "http://h/x",
        ] {
            let sentence = parse(text).unwrap_err();
            assert!(sentence.contains("cssrv://HOST"), "{text}: {sentence}");
        }
        assert!(parse(&format!("cssrv://h/{}", "x".repeat(256))).is_err());
        assert!(parse(&format!("cssrv://h/{}", "x/".repeat(600) + "x")).is_err());
        assert!(ServerName::parse(OsStr::new("cssrv://h/x\u{7f}")).is_err());
    }

    #[test]
    fn a_usual_key_gives_way() {
        let mut config = super::super::default_config();
        assert_eq!(get_key(&config).unwrap(), None);
        let (said, usual) = (Key::Said("/k".into()), Key::Usual("/u".into()));
        put_key(&mut config, Some(&usual));
        assert_eq!(get_key(&config).unwrap(), Some(usual.clone()));
        put_key(&mut config, Some(&said));
        put_key(&mut config, Some(&usual));
        put_key(&mut config, None);
        assert_eq!(get_key(&config).unwrap(), Some(said));
    }
}
