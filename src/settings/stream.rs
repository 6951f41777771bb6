// SPDX-License-Identifier: LGPL-2.1-only
//! Names of checkpoints that are streams: `|COMMAND`, and `-` for standard output or input.

use crate::error::{Error, Result};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What begins the name of one that a command gets or gives.
const PIPE: u8 = b'|';
/// What stands before the command in a name that was resolved.
const PLACE: &[u8] = b"|cd '";
const BEHIND: &[u8] = b"' || exit; ";

/// Whether a name is a stream's.
pub(crate) fn is_one(name: &[u8]) -> bool {
    name.first() == Some(&PIPE) || name == b"-"
}

/// The command of a name.
///
/// # Errors
/// It is `-`, which `ckpt save` and `ckpt restart` alone know, or empty.
pub(crate) fn command(name: &OsStr) -> Result<&OsStr> {
    match name.as_bytes() {
        [PIPE, line @ ..] if !line.trim_ascii().is_empty() => Ok(OsStr::from_bytes(line)),
        [PIPE, ..] => Err(Error::new("the checkpoint name '|' has no command; say '|COMMAND'")),
        _ => Err(Error::new(
            "the checkpoint name '-' is standard output, which ckpt save alone writes a checkpoint to",
        )
        .hint("say '|COMMAND', or ./- for a file of that name")),
    }
}

/// The name of one whose command works in a directory, given as a template.
pub(super) fn placed(name: &OsStr, dir: &OsStr) -> OsString {
    let bytes = name.as_bytes();
    let Some(line) = bytes.strip_prefix(&[PIPE]).filter(|line| behind(line).is_none()) else {
        return name.to_owned();
    };
    let mut placed = PLACE.to_vec();
    for byte in dir.as_bytes() {
        match byte {
            b'\'' => placed.extend_from_slice(b"'\\''"),
            byte => placed.push(*byte),
        }
    }
    placed.extend_from_slice(BEHIND);
    placed.extend_from_slice(line.trim_ascii_start());
    OsString::from_vec(placed)
}

/// What stands behind the place in a command that has one, in the whole form that [`placed`] gives it.
fn behind(line: &[u8]) -> Option<&[u8]> {
    let mut rest = line.strip_prefix(&PLACE[1..]).filter(|rest| rest.starts_with(b"/"))?;
    loop {
        rest = &rest[rest.iter().position(|byte| *byte == b'\'')?..];
        match rest.strip_prefix(b"'\\''") {
            Some(more) => rest = more,
            None => return rest.strip_prefix(BEHIND),
        }
    }
}

/// The command of a name, or a command, as the user wrote it.
fn written(name: &OsStr) -> &OsStr {
    let bytes = name.as_bytes();
    let line = bytes.strip_prefix(&[PIPE]).unwrap_or(bytes);
    OsStr::from_bytes(behind(line).unwrap_or(line))
}

/// A command in sentences.
pub(crate) fn shown(line: &OsStr) -> String {
    super::quoted(written(line))
}

/// A checkpoint's name in sentences.
pub(crate) fn shown_name(name: &OsStr) -> OsString {
    match name.as_bytes().first() {
        Some(&PIPE) => [OsStr::new("|"), written(name)].join(OsStr::new("")),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_works_where_it_was_named() {
        let placed = |name: &str, dir: &str| placed(OsStr::new(name), OsStr::new(dir));
        let name = placed("| zstd >x", "/it's");
        assert_eq!(name, "|cd '/it'\\''s' || exit; zstd >x");
        assert_eq!(placed(name.to_str().unwrap(), "/b"), name);
        assert_eq!(placed("-", "/b"), "-");
        // What the user's own begins with is no place.
        for own in ["cd 'dir' && cat >x", "cd '/dir' && cat >x", "cd 'a' || exit; cat >x", "cd '/a"]
        {
            let name = placed(&format!("|{own}"), "/b");
            assert_eq!(name.to_str().unwrap(), format!("|cd '/b' || exit; {own}"));
            assert_eq!(shown_name(&name).to_str().unwrap(), format!("|{own}"));
        }
        assert_eq!(shown(&name), "'zstd >x'");
        assert_eq!(shown(command(&name).unwrap()), "'zstd >x'");
        assert_eq!(shown(OsStr::new("cat")), "'cat'");
    }

    #[test]
    fn streams_are_told_from_files() {
        assert!(is_one(b"|x") && is_one(b"-"));
        assert!(!is_one(b"./-") && !is_one(b"a|b") && !is_one(b""));
        assert!(command(OsStr::new("| ")).is_err() && command(OsStr::new("-")).is_err());
    }
}
