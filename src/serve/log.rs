// SPDX-License-Identifier: LGPL-2.1-only
//! One line per request.

use crate::units::fraction;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What became of a request.
#[derive(Clone, Debug)]
pub struct Record {
    /// Address and port of the client.
    pub who: String,
    /// "put", "get", "ls", "rm"; "hello" where it did not come so far.
    pub what: &'static str,
    /// The checkpoint's name.
    pub name: String,
    /// Bytes of images that went over the wire, as they are stored.
    pub bytes: u64,
    /// How long it took.
    pub time: Duration,
    /// Why it failed.
    pub outcome: Result<(), String>,
}

impl Record {
    /// Writes the line on standard output; a reader who is gone is no reason to stop.
    pub fn print(&self, json: bool) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(self.line(now, json).as_bytes()).and_then(|()| out.flush());
    }

    fn line(&self, now: u64, json: bool) -> String {
        let (time, seconds) = (date(now), fraction(self.time.as_micros() as u64, 1_000_000, 3));
        let outcome = self.outcome.as_ref().map_or_else(String::as_str, |()| "ok");
        let (who, what, name, bytes) = (&self.who, self.what, &self.name, self.bytes);
        if json {
            return format!(
                "{{\"time\":\"{time}\",\"who\":{},\"what\":\"{what}\",\"name\":{},\"bytes\":{bytes},\
                 \"seconds\":{seconds},\"ok\":{},\"outcome\":{}}}\n",
                quoted(who),
                quoted(name),
                self.outcome.is_ok(),
                quoted(outcome)
            );
        }
        let (name, outcome) = (quoted(name), quoted(outcome));
        let outcome = outcome.trim_matches('"');
        format!("{time} {who} {what} {name} {bytes} bytes {seconds} s: {outcome}\n")
    }
}

/// A JSON string (RFC 8259, section 7); also what keeps a line of text one line.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if crate::error::is_harmful(c) => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// "2026-11-22T12:34:56Z"; days to dates as in Howard Hinnant's `civil_from_days`.
pub(crate) fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400 + 719_468, seconds % 86400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month < 3);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(1_795_350_896), "2026-11-22T12:34:56Z");
    }

    #[test]
    fn lines() {
        let record = Record {
            who: "10.0.0.1:5".into(),
            what: "put",
            name: "a\"\n".into(),
            bytes: 7,
            time: Duration::from_millis(1500),
            outcome: Err("no".into()),
        };
        assert_eq!(
            record.line(0, false),
            "1970-01-01T00:00:00Z 10.0.0.1:5 put \"a\\\"\\u000a\" 7 bytes 1.500 s: no\n"
        );
        assert_eq!(
            record.line(0, true),
            "{\"time\":\"1970-01-01T00:00:00Z\",\"who\":\"10.0.0.1:5\",\"what\":\"put\",\
             \"name\":\"a\\\"\\u000a\",\"bytes\":7,\"seconds\":1.500,\"ok\":false,\"outcome\":\"no\"}\n"
        );
    }
}
