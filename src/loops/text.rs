// SPDX-License-Identifier: LGPL-2.1-only
//! Numbers and lines in the text that the kernel writes.

/// The lines of a file; the newline at its end begins no further line.
pub fn lines(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (line, after) = cut(rest, b'\n').unwrap_or((rest, &[]));
        rest = after;
        Some(line)
    })
}

/// The words of a line, which blanks and tabs divide.
pub fn words(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    std::iter::from_fn(move || {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        (!word.is_empty()).then_some(word)
    })
}

/// What stands before the first such byte, and what behind it.
pub fn cut(text: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = find(text, byte)?;
    Some((&text[..at], &text[at + 1..]))
}

/// Where a byte stands first. Eight bytes are looked at as one number: where one equals the byte their difference
/// has a zero, and the lowest zero of a number is the lowest bit that this subtraction sets.
fn find(text: &[u8], byte: u8) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const TOPS: u64 = ONES << 7;
    let (pieces, rest) = text.as_chunks::<8>();
    for (at, piece) in pieces.iter().enumerate() {
        let difference = u64::from_le_bytes(*piece) ^ (ONES * u64::from(byte));
        let zeros = difference.wrapping_sub(ONES) & !difference & TOPS;
        if zeros != 0 {
            return Some(8 * at + zeros.trailing_zeros() as usize / 8);
        }
    }
    let at = rest.iter().position(|b| *b == byte)?;
    Some(8 * pieces.len() + at)
}

/// What stands after "`key`:" in the first line that begins with it, without blanks around it.
pub fn field<'a>(text: &'a [u8], key: &str) -> Option<&'a [u8]> {
    lines(text)
        .find_map(|line| line.strip_prefix(key.as_bytes())?.strip_prefix(b":"))
        .map(<[u8]>::trim_ascii)
}

/// Looks up several fields of one text, each as [`field`] does. In the order in which they stand there, that takes one pass.
pub struct Fields<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// Those of a text.
    pub fn of(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    /// What stands after "`key`:" in a line that begins with it: the next one behind the last that was found, else the first.
    pub fn get(&mut self, key: &str) -> Option<&'a [u8]> {
        let behind = self.text.get(self.at..).unwrap_or_default();
        let found = field(behind, key).or_else(|| field(self.text, key))?;
        // Only what was trimmed lies between it and the end of its line.
        self.at = found.as_ptr().addr() - self.text.as_ptr().addr() + found.len();
        Some(found)
    }
}

/// Whether a table of strings, each with a NUL behind it, has this one.
pub fn has_string(table: &[u8], string: &[u8]) -> bool {
    let mut rest = table;
    while let Some((first, others)) = cut(rest, 0) {
        if first == string {
            return true;
        }
        rest = others;
    }
    false
}

/// Divides a line at the first colon that a blank or the end of the line follows ("clockid: 1",
/// "settime flags: 00", "lock:\t1: POSIX ..."), else at the first blank ("inotify wd:1 ino:2"). Without blanks around
/// what it gives.
pub fn pair(line: &str) -> (&str, &str) {
    let bytes = line.as_bytes();
    let mut at = 0;
    let colon = loop {
        let Some(next) = find(&bytes[at..], b':') else { break None };
        at += next + 1;
        if bytes.get(at).is_none_or(u8::is_ascii_whitespace) {
            break Some(at - 1);
        }
    };
    let divided = match colon {
        Some(at) => Some((&line[..at], &line[at + 1..])),
        None => line.split_once(' '),
    };
    let (key, value) = divided.unwrap_or((line, ""));
    (key.trim(), value.trim())
}

/// The name at the end of a line of /proc/PID/maps. seq_pad fills up with blanks before it; no name begins with one,
/// many may end so.
///
/// Turns `\012` back into a newline, and nothing else: show_map_vma calls seq_path with "\n" as the only character to
/// escape, so another octal escape is a part of the name.
pub fn mapped_name(field: &[u8]) -> Vec<u8> {
    let blanks = field.iter().take_while(|b| **b == b' ').count();
    let mut rest = &field[blanks..];
    let mut name = Vec::with_capacity(rest.len());
    while let Some(at) = find(rest, b'\\') {
        name.extend_from_slice(&rest[..at]);
        let newline = rest[at..].strip_prefix(br"\012");
        name.push(if newline.is_some() { b'\n' } else { b'\\' });
        rest = newline.unwrap_or(&rest[at + 1..]);
    }
    name.extend_from_slice(rest);
    name
}

/// A number of base 10 with or without a sign, of 64 bits besides.
pub fn decimal(word: &[u8]) -> Option<i128> {
    match word {
        [b'-', digits @ ..] => based(digits, 10).map(|number| -i128::from(number)),
        [b'+', digits @ ..] | digits => based(digits, 10).map(i128::from),
    }
}

/// A number of base 16, with or without 0x before it.
pub fn hex(word: &[u8]) -> Option<u64> {
    based(word.strip_prefix(b"0x").unwrap_or(word), 16)
}

/// A number of base 8.
pub fn octal(word: &[u8]) -> Option<u64> {
    based(word, 8)
}

/// Two numbers of base 16 and what divides them.
pub fn hex_pair(word: &[u8], divider: u8) -> Option<(u64, u64)> {
    let (first, second) = cut(word, divider)?;
    Some((hex(first)?, hex(second)?))
}

fn based(digits: &[u8], base: u64) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let mut number = 0u64;
    for digit in digits {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            b'A'..=b'F' => digit - b'A' + 10,
            _ => return None,
        };
        if u64::from(value) >= base {
            return None;
        }
        number = number.checked_mul(base)?.checked_add(u64::from(value))?;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_any_order() {
        let mut fields = Fields::of(b"A:\t1\nB:  \nC: x y \nA: 2\n");
        let order = ["A", "C", "B", "A", "A", "D", "B", "A"];
        let found = order.map(|key| fields.get(key));
        let wanted: [Option<&[u8]>; 8] = [
            Some(b"1"),
            Some(b"x y"),
            Some(b""),
            Some(b"2"),
            Some(b"1"),
            None,
            Some(b""),
            Some(b"2"),
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn lines_end_at_newlines() {
        assert_eq!(lines(b"a\n\nb").collect::<Vec<_>>(), [&b"a"[..], b"", b"b"]);
        assert_eq!(lines(b"a\n").collect::<Vec<_>>(), [&b"a"[..]]);
        assert_eq!(lines(b"").count(), 0);
    }

    #[test]
    fn words_have_no_blanks() {
        assert_eq!(words(b" a\t bc \n").collect::<Vec<_>>(), [&b"a"[..], b"bc"]);
        assert_eq!(words(b" \t").count() + words(b"").count(), 0);
    }

    #[test]
    fn a_byte_is_found_as_by_looking_at_each() {
        let mut state = 1u32;
        for round in 0..20_000 {
            let mut text = [0u8; 40];
            for byte in &mut text {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Neighbours of what is looked for, and what differs in its upper bit alone.
                *byte = [b'\n', b'\n' - 1, b'\n' + 1, b'\n' | 0x80, 0, 0xff]
                    [(state >> 16) as usize % 6];
            }
            let text = &text[round % 9..][..round % 31];
            for byte in [b'\n', b'\n' + 1, 0, 0xff, b'\n' | 0x80] {
                assert_eq!(find(text, byte), text.iter().position(|b| *b == byte), "{text:?}");
            }
        }
    }

    #[test]
    fn fields_are_whole_keys() {
        let text = b"Pid:\t12\nPPid:\t3\nUid:\t0\t0\n";
        assert_eq!(field(text, "PPid"), Some(&b"3"[..]));
        assert_eq!(field(text, "Uid"), Some(&b"0\t0"[..]));
        assert_eq!(field(text, "id"), None);
    }

    #[test]
    fn strings_of_a_table_are_whole() {
        let table = b"\0abc\0b\0ab";
        assert!(has_string(table, b"abc") && has_string(table, b"b") && has_string(table, b""));
        assert!(!has_string(table, b"bc") && !has_string(table, b"ab") && !has_string(b"", b""));
    }

    #[test]
    fn pairs_are_divided_at_colons_before_blanks() {
        assert_eq!(pair("settime flags: 00"), ("settime flags", "00"));
        assert_eq!(pair("lock:\t1: POSIX"), ("lock", "1: POSIX"));
        assert_eq!(pair("inotify wd:1 ino:2"), ("inotify", "wd:1 ino:2"));
        assert_eq!((pair("a:b:"), pair("a:b"), pair("")), (("a:b", ""), ("a:b", ""), ("", "")));
    }

    #[test]
    fn names_have_newlines_again() {
        assert_eq!(mapped_name(br"   /a\012b\\012\040 c "), b"/a\nb\\\n\\040 c ");
        assert_eq!(mapped_name(b"  "), b"");
    }

    #[test]
    fn numbers() {
        assert_eq!(decimal(b"-5"), Some(-5));
        assert_eq!(decimal(b"+7"), Some(7));
        assert_eq!(decimal(b"18446744073709551615"), Some(i128::from(u64::MAX)));
        assert_eq!(decimal(b"18446744073709551616"), None);
        assert_eq!(hex(b"0xffffffffffffffff"), Some(u64::MAX));
        assert_eq!(hex(b"00000000000000fF"), Some(255));
        assert_eq!(hex(b"10000000000000000"), None);
        assert_eq!(octal(b"02000002"), Some(0o2000002));
        assert_eq!(hex_pair(b"10-2f", b'-'), Some((16, 47)));
        for wrong in [&b""[..], b"-", b"+-1", b"1 ", b" 1", b"\xff", b"1a"] {
            assert_eq!(decimal(wrong), None, "{wrong:?}");
        }
        assert_eq!(
            (octal(b"9"), hex(b"0x"), hex(b"g"), hex_pair(b"1", b'-')),
            (None, None, None, None)
        );
    }
}
