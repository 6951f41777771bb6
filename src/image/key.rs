// SPDX-License-Identifier: LGPL-2.1-only
//! The file with the key that clients and server share, and that encrypted images have: one line, `ckpt-key-1 ` and 64 hexadecimal
//! digits.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::seal::{KEY, random};
use crate::error::{Because, Error, Result};
use crate::settings::server::Key;

const HEAD: &str = "ckpt-key-1 ";

/// Reads a key.
///
/// # Errors
/// The file is missing, is somebody else's, can be read by others, or holds no key.
pub fn read(path: &Path) -> Result<[u8; KEY]> {
    let shown = path.display();
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let file = file.because(|| format!("cannot open the key file {shown}")).map_err(|e| {
        e.hint("copy the server's key there, or name it with --key FILE or CKPT_KEY")
    })?;
    let meta = file.metadata().because(|| format!("cannot stat the key file {shown}"))?;
    let us = crate::rights::file_user();
    if !meta.is_file() || meta.uid() != us && meta.uid() != 0 {
        return Err(Error::new(format!("the key file {shown} is not a file of yours")));
    }
    if meta.mode() & 0o077 != 0 {
        let mode = meta.mode() & 0o7777;
        let sentence = format!("the key file {shown} can be read by others (mode {mode:04o})");
        return Err(Error::new(sentence).hint(format!("say chmod 600 {shown}")));
    }
    let mut text = String::new();
    file.take(200)
        .read_to_string(&mut text)
        .because(|| format!("cannot read the key file {shown}"))?;
    parse(&text).ok_or_else(|| {
        Error::new(format!("the file {shown} holds no key")).hint("make one with ckpt keygen FILE")
    })
}

/// The key that a user has named.
///
/// # Errors
/// As [`read`]; its passphrase has not been read.
pub(crate) fn of(key: &Key) -> Result<[u8; KEY]> {
    match (key.path(), key) {
        (Some(path), _) => read(path),
        (None, Key::Passphrase(made)) => Ok(made.key),
        (None, _) => Err(Error::new("the passphrase has not been read")),
    }
}

/// Makes a new key in a new file of mode 0600.
///
/// # Errors
/// The file exists already or cannot be written.
pub fn make(path: &Path) -> Result<()> {
    let why = || format!("cannot make the key file {}", path.display());
    let key = random().because(why)?;
    let mut line = HEAD.to_owned();
    for byte in key {
        let _ = write!(line, "{byte:02x}");
    }
    line.push('\n');
    let mut options = File::options();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).because(why)?;
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).because(why)
}

/// Makes the directory of a key file, for its owner alone.
///
/// # Errors
/// It cannot be made.
pub fn make_directory(path: &Path) -> Result<()> {
    let Some(dir) = path.parent() else { return Ok(()) };
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .because(|| format!("cannot make {}", dir.display()))
}

fn parse(text: &str) -> Option<[u8; KEY]> {
    let digits = text.strip_prefix(HEAD)?.trim_end();
    let mut key = [0; KEY];
    if digits.len() != 2 * KEY || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_key() {
        let digits = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eFF";
        let key = parse(&format!("ckpt-key-1 {digits}\n")).unwrap();
        assert_eq!((key[0], key[30], key[31]), (0, 30, 255));
        for wrong in [&digits[1..], "", &format!("{digits}0"), &digits.replace('a', "g")] {
            assert!(parse(&format!("ckpt-key-1 {wrong}\n")).is_none());
        }
        assert!(parse(digits).is_none());
    }
}
