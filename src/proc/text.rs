// SPDX-License-Identifier: LGPL-2.1-only
//! Numbers and lines in the text that the kernel writes, whose absence is an error.

use crate::error::{Error, Result};
use ckpt_loops::text;

pub(super) use ckpt_loops::text::{Fields, cut, field, hex_pair, lines, mapped_name, pair, words};

/// [`Fields::get`], whose absence is an error.
pub(super) fn needed<'a>(fields: &mut Fields<'a>, key: &str) -> Result<&'a [u8]> {
    fields.get(key).ok_or_else(|| missing(key))
}

#[cold]
pub(super) fn missing(key: &str) -> Error {
    Error::new(format!("it has no line {key:?}"))
}

/// A number of base 10, signed where the type is.
pub(super) fn decimal<N: TryFrom<i128>>(word: &[u8]) -> Result<N> {
    let number = text::decimal(word).and_then(|number| N::try_from(number).ok());
    number.ok_or_else(|| no_number(word))
}

/// A number of base 16, with or without 0x before it.
pub(super) fn hex(word: &[u8]) -> Result<u64> {
    text::hex(word).ok_or_else(|| no_number(word))
}

/// A number of base 8.
pub(super) fn octal(word: &[u8]) -> Result<u64> {
    text::octal(word).ok_or_else(|| no_number(word))
}

#[cold]
fn no_number(word: &[u8]) -> Error {
    Error::new(format!("{:?} is no number", String::from_utf8_lossy(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let mut fields = Fields::of(b"PPid: 1");
        assert_eq!(needed(&mut fields, "P").unwrap_err().to_string(), "it has no line \"P\"");
        assert_eq!(octal(b"9").unwrap_err().to_string(), "\"9\" is no number");
        assert_eq!(decimal::<i32>(b"-5").unwrap(), -5);
        assert!(decimal::<u32>(b"-5").is_err() && decimal::<i32>(b"2147483648").is_err());
    }
}
