// SPDX-License-Identifier: LGPL-2.1-only
//! Files, numbers, sizes and addresses as users write them.

use ckpt_abi::region::NOTIFY_LEN;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{LONGEST_NAME, quoted};
use crate::error::{Error, Result};

/// Reads the name of a file.
///
/// # Errors
/// It is empty, contains a NUL, or is longer than [`LONGEST_NAME`].
pub fn parse_file(text: &OsStr) -> Result<PathBuf> {
    if text.is_empty() || text.len() > LONGEST_NAME || text.as_bytes().contains(&0) {
        return Err(Error::new(format!("{} is not the name of a file", quoted(text))));
    }
    Ok(text.into())
}

/// Reads 0, 1 or 2.
///
/// # Errors
/// Anything else.
pub(super) fn parse_level(text: &OsStr) -> Result<u8> {
    match text.as_encoded_bytes() {
        [digit @ b'0'..=b'2'] => Ok(digit - b'0'),
        _ => Err(Error::new("0, 1 or 2 is expected")),
    }
}

/// Reads a command for sh(1).
///
/// # Errors
/// There is no room for it, or it contains a NUL.
pub fn parse_command(text: &OsStr) -> Result<OsString> {
    if text.len() >= NOTIFY_LEN || text.as_bytes().contains(&0) {
        let text = format!(
            "the command has {} bytes, or a NUL; {} are possible",
            text.len(),
            NOTIFY_LEN - 1
        );
        return Err(Error::new(text).hint("put it into a script"));
    }
    Ok(text.into())
}

/// Writes a command into a field.
pub(super) fn put_command(field: &mut [u8; NOTIFY_LEN], command: Option<&OsStr>) {
    if let Some(command) = command {
        *field = [0; NOTIFY_LEN];
        field.iter_mut().zip(command.as_bytes()).for_each(|(to, from)| *to = *from);
    }
}

/// Reads what was put into a field; None of an empty one.
///
/// # Errors
/// What nobody can have put there.
pub(super) fn get_command(field: &[u8; NOTIFY_LEN]) -> Result<Option<OsString>> {
    let len = field.iter().position(|byte| *byte == 0).unwrap_or(NOTIFY_LEN);
    let text = OsStr::from_bytes(&field[..len]);
    (len > 0).then(|| parse_command(text)).transpose()
}

/// Reads a number; `what` says what it should be.
///
/// # Errors
/// What is no number, or too large a one.
pub fn parse_number<T: std::str::FromStr>(text: &OsStr, what: &str) -> Result<T> {
    let number = text.to_str().filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
    number
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| Error::new(format!("{} is not {what}", quoted(text))))
}

/// Reads a number of bytes, which may end with K, M, G or T (powers of 1024).
///
/// # Errors
/// What is none, or beyond 2^63.
pub fn parse_size(text: &OsStr) -> Result<u64> {
    let word = text.to_str().unwrap_or_default();
    let shift = match word.bytes().last() {
        Some(b'K' | b'k') => 10,
        Some(b'M' | b'm') => 20,
        Some(b'G' | b'g') => 30,
        Some(b'T' | b't') => 40,
        _ => 0,
    };
    let number = if shift == 0 { word } else { &word[..word.len() - 1] };
    let what = "a size in bytes, which may end with K, M, G or T";
    let number: u64 = parse_number(OsStr::new(number), what)?;
    number
        .checked_mul(1 << shift)
        .filter(|size| i64::try_from(*size).is_ok())
        .ok_or_else(|| Error::new(format!("{} is not {what}", quoted(text))))
}

/// Units of a period in milliseconds; a bare number counts the first of them, as in the original manual.
const PERIODS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads a period: a number with a unit, or of milliseconds; 0 for no periodic checkpoints.
///
/// # Errors
/// What is none, or does not fit 32 bits as milliseconds.
pub fn parse_period(text: &OsStr) -> Result<u32> {
    let word = text.to_str().unwrap_or_default();
    let split = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
    let (number, unit) = word.split_at(split);
    let unit = if unit.is_empty() { PERIODS.first() } else { PERIODS.iter().find(|u| u.0 == unit) };
    let Some((_, milliseconds)) = unit.filter(|_| !number.is_empty()) else {
        return Err(Error::new(format!(
            "the period {} is not a number with a unit: say 500ms, 30s, 10m, 1h or 1d (a bare number \
             counts milliseconds), or 0 for no periodic checkpoints",
            quoted(text)
        )));
    };
    let period = number.parse().ok().and_then(|n: u64| n.checked_mul(*milliseconds));
    period.and_then(|period| u32::try_from(period).ok()).ok_or_else(|| {
        Error::new(format!("the period {} is too long; at most 49d are possible", quoted(text)))
    })
}

/// A period as users write it: "10m", "1500ms".
pub(crate) fn period_text(milliseconds: u32) -> String {
    let milliseconds = u64::from(milliseconds);
    let fits = |unit: &&(&str, u64)| milliseconds >= unit.1 && milliseconds.is_multiple_of(unit.1);
    let (name, length) = PERIODS.iter().rev().find(fits).unwrap_or(&PERIODS[0]);
    format!("{}{name}", milliseconds / length)
}

/// Reads OLD=NEW, two absolute paths.
///
/// # Errors
/// There is no "=", or a path is not absolute.
pub fn parse_pair(text: &OsStr) -> Result<(PathBuf, PathBuf)> {
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|b| *b == b'=').unwrap_or(bytes.len());
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let (old, new) = (path(&bytes[..at]), path(bytes.get(at + 1..).unwrap_or_default()));
    if !old.is_absolute() || !new.is_absolute() {
        return Err(Error::new(format!("{} is not OLD=NEW with two absolute paths", quoted(text))));
    }
    Ok((old, new))
}

/// Reads OLD=NEW, two ports, or several of them with commas between.
///
/// # Errors
/// What is none.
pub fn parse_ports(text: &OsStr) -> Result<Vec<(u16, u16)>> {
    let port = |text: &str| text.parse().ok().filter(|port| *port != 0);
    let pair = |text: &str| {
        let (old, new) = text.split_once('=')?;
        Some((port(old)?, port(new)?))
    };
    let all: Option<Vec<_>> = text.to_str().and_then(|text| text.split(',').map(pair).collect());
    all.ok_or_else(|| {
        Error::new(format!("{} is not OLD=NEW with two ports from 1 to 65535", quoted(text)))
    })
}

/// Reads an address to listen on.
///
/// # Errors
/// What cannot be one.
pub fn parse_host(text: &OsStr) -> Result<String> {
    let host = text.to_str().map(|t| t.trim_start_matches('[').trim_end_matches(']'));
    host.filter(|host| !host.is_empty())
        .map(str::to_owned)
        .ok_or_else(|| Error::new(format!("{} is not an address", quoted(text))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        let ports = |text: &str| parse_ports(OsStr::new(text)).ok();
        assert_eq!(ports("80=8080,443=8443"), Some(vec![(80, 8080), (443, 8443)]));
        for wrong in ["", "80", "80=", "0=1", "1=65536", "1=2,", "a=b"] {
            assert_eq!(ports(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        let size = |text: &str| parse_size(OsStr::new(text)).ok();
        assert_eq!(size("0"), Some(0));
        assert_eq!(size("3k"), Some(3 << 10));
        assert_eq!(size("8388607T"), Some(8_388_607 << 40));
        for wrong in ["", "K", "-1", "+1", "1KB", "1.5G", "8388608T", "18446744073709551616"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }
}
