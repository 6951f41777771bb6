// SPDX-License-Identifier: LGPL-2.1-only
//! How far a long transfer is, on a terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Time between two lines; transfers that take less show nothing.
const STEP: Duration = Duration::from_millis(300);

/// A line on standard error that changes; nothing where that is no terminal.
pub(crate) struct Progress {
    what: String,
    total: Option<u64>,
    done: u64,
    begin: Instant,
    shown: Option<Instant>,
    wanted: bool,
}

impl Progress {
    /// A transfer of `total` bytes, if known.
    pub(crate) fn new(what: String, total: Option<u64>) -> Self {
        let wanted = std::io::stderr().is_terminal();
        Self { what, total, done: 0, begin: Instant::now(), shown: None, wanted }
    }

    /// More bytes are done.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.done += bytes;
        if self.wanted && self.shown.unwrap_or(self.begin).elapsed() >= STEP {
            self.shown = Some(Instant::now());
            let line = line(self.done, self.total, self.begin.elapsed());
            // ESC [K: erase to the end of the line (console_codes(4)).
            eprint!("\r{}: {line}\x1b[K", self.what);
            let _ = std::io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

fn line(done: u64, total: Option<u64>, time: Duration) -> String {
    let rate = done as f64 / time.as_secs_f64().max(0.001);
    let mut line = format!("{}, {}/s", size(done as f64), size(rate));
    if let Some(total) = total.filter(|total| *total > 0) {
        let left = total.saturating_sub(done) as f64 / rate.max(1.0);
        let left = format!("{}:{:02}", left as u64 / 60, left as u64 % 60);
        line = format!(
            "{} of {}, {}/s, {left} left",
            size(done as f64),
            size(total as f64),
            size(rate)
        );
    }
    line
}

fn size(bytes: f64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} bytes") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let time = Duration::from_secs(2);
        assert_eq!(line(1 << 20, None, time), "1.0 MiB, 512.0 KiB/s");
        let known = line(1 << 20, Some(65 << 20), time);
        assert_eq!(known, "1.0 MiB of 65.0 MiB, 512.0 KiB/s, 2:08 left");
        assert_eq!(line(5, Some(0), time), "5 bytes, 2 bytes/s");
    }
}
