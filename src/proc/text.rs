// SPDX-License-Identifier: LGPL-2.1-only
//! Numbers and lines in the text that the kernel writes.

use crate::error::{Error, Result};

/// The lines of a file; the newline at its end begins no further line.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|&b| b == b'\n').map(|line| line.strip_suffix(b"\n").unwrap_or(line))
}

/// The words of a line, which blanks and tabs divide.
pub(super) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// What stands after "`key`:" in the first line that begins with it, without blanks around it.
pub(super) fn field<'a>(text: &'a [u8], key: &str) -> Option<&'a [u8]> {
    lines(text)
        .find_map(|line| line.strip_prefix(key.as_bytes())?.strip_prefix(b":"))
        .map(<[u8]>::trim_ascii)
}

/// [`field`], whose absence is an error.
pub(super) fn needed<'a>(text: &'a [u8], key: &str) -> Result<&'a [u8]> {
    field(text, key).ok_or_else(|| Error::new(format!("it has no line {key:?}")))
}

/// A number of base 10, signed where the type is.
pub(super) fn decimal<N: std::str::FromStr>(word: &[u8]) -> Result<N> {
    let text = std::str::from_utf8(word).ok();
    text.and_then(|w| w.parse().ok()).ok_or_else(|| no_number(word))
}

/// A number of base 16, with or without 0x before it.
pub(super) fn hex(word: &[u8]) -> Result<u64> {
    based(word.strip_prefix(b"0x").unwrap_or(word), 16)
}

/// A number of base 8.
pub(super) fn octal(word: &[u8]) -> Result<u64> {
    based(word, 8)
}

fn based(word: &[u8], base: u32) -> Result<u64> {
    let text = std::str::from_utf8(word).ok();
    text.and_then(|w| u64::from_str_radix(w, base).ok()).ok_or_else(|| no_number(word))
}

fn no_number(word: &[u8]) -> Error {
    Error::new(format!("{:?} is no number", String::from_utf8_lossy(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_at_newlines() {
        assert_eq!(lines(b"a\n\nb").collect::<Vec<_>>(), [&b"a"[..], b"", b"b"]);
        assert_eq!(lines(b"a\n").collect::<Vec<_>>(), [&b"a"[..]]);
        assert_eq!(lines(b"").count(), 0);
    }

    #[test]
    fn fields_are_whole_keys() {
        let text = b"Pid:\t12\nPPid:\t3\nUid:\t0\t0\n";
        assert_eq!(field(text, "PPid"), Some(&b"3"[..]));
        assert_eq!(field(text, "Uid"), Some(&b"0\t0"[..]));
        assert_eq!(field(text, "id"), None);
        assert_eq!(needed(text, "P").unwrap_err().to_string(), "it has no line \"P\"");
    }

    #[test]
    fn numbers() {
        assert_eq!(decimal::<i32>(b"-5").unwrap(), -5);
        assert!(decimal::<u32>(b"-5").is_err());
        assert_eq!(hex(b"0xffffffffffffffff").unwrap(), u64::MAX);
        assert_eq!(hex(b"00000000000000ff").unwrap(), 255);
        assert_eq!(octal(b"02000002").unwrap(), 0o2000002);
        assert_eq!(octal(b"9").unwrap_err().to_string(), "\"9\" is no number");
        assert!(decimal::<u8>(b"\xff").is_err());
    }
}
