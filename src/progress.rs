// SPDX-License-Identifier: LGPL-2.1-only
//! How far something long is, on a terminal: one line that is written anew, and erased at the end.
//!
//! A process does one such thing at a time. Its threads, and the processes that a restart makes meanwhile, count together:
//! the count lies in a page that they share.
//!
//! # Safety
//! The page is mapped once, is never unmapped and never moves, and is only looked at as atomic numbers, all zeros at first.
#![allow(unsafe_code)]

use crate::error::printable;
use crate::fault;
use crate::speech::takes_words;
use crate::units::size;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::unistd::{getpgrp, tcgetpgrp};
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What takes less shows nothing.
const FIRST: Duration = Duration::from_secs(1);
/// Time between two lines.
const STEP: Duration = Duration::from_millis(300);

/// Most characters of a name.
const LONGEST: usize = 24;

/// What is shown; it stays to the end of the process.
struct Line {
    what: String,
    total: Option<u64>,
    begin: Instant,
    screen: Screen,
    counts: &'static Counts,
}

/// Where it is shown.
#[derive(Debug)]
pub(crate) enum Screen {
    /// On our standard error, if that is a terminal, and its foreground is ours.
    Own,
    /// On a terminal, in a line of its own: a program's words may stand before it.
    Of(File),
}

/// No line will be written any more, by none of the processes.
const OVER: u64 = u64::MAX;

/// What all have in common.
struct Counts {
    /// Bytes.
    done: AtomicU64,
    /// When a line was written last, in milliseconds since the begin, and 1; 0: none was; [`OVER`].
    shown: AtomicU64,
}

static LINE: Mutex<Option<&'static Line>> = Mutex::new(None);

fn line() -> Option<&'static Line> {
    *LINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Until this is dropped, or [`end`] is called, it is shown.
pub(crate) struct Shown(());

impl Drop for Shown {
    fn drop(&mut self) {
        end();
    }
}

/// Something of so many bytes begins, if that is known; `what` is the name of a file or of what is on a server.
pub(crate) fn begin(what: String, total: Option<u64>, screen: Screen) -> Shown {
    let is_terminal = match &screen {
        Screen::Own => std::io::stderr().is_terminal(),
        Screen::Of(file) => file.is_terminal(),
    };
    let made = is_terminal.then(counts).flatten().map(|counts| {
        let (what, begin) = (short(&what), Instant::now());
        &*Box::leak(Box::new(Line { what, total, begin, screen, counts }))
    });
    *LINE.lock().unwrap_or_else(PoisonError::into_inner) = made;
    Shown(())
}

/// More bytes are done.
pub(crate) fn add(bytes: u64) {
    let Some(line) = line() else { return };
    let Counts { done, shown } = line.counts;
    let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
    let (now, last) = (line.begin.elapsed(), shown.load(Ordering::Relaxed));
    let next = if last == 0 { FIRST } else { Duration::from_millis(last).saturating_add(STEP) };
    if last == OVER || (now < next && !fault::is_slow()) || !line.is_open() {
        return;
    }
    // Whoever changes it writes.
    let stamp = now.as_millis() as u64 + 1;
    let mine = shown.compare_exchange(last, stamp, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    if mine && last != stamp {
        let is_first = last == 0 && matches!(line.screen, Screen::Of(_));
        let before = if is_first { "\r\n" } else { "\r" };
        let text = text(done, line.total, now);
        // ESC [K: erase to the end of the line (console_codes(4)).
        line.write(&format!("{before}{}: {text}\x1b[K", line.what));
    }
}

/// It is over: nothing of it is left on the screen, and nothing more is shown.
pub(crate) fn end() {
    let line = LINE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(line) = line
        && !matches!(line.counts.shown.swap(OVER, Ordering::Relaxed), 0 | OVER)
        && line.is_open()
    {
        line.write("\r\x1b[K");
    }
}

impl Line {
    /// Whether a line can be written there now. A terminal whose output is stopped (^S, a connection that hangs) would have
    /// us wait, and with us what stands still for us.
    fn is_open(&self) -> bool {
        match &self.screen {
            Screen::Own => {
                let stderr = std::io::stderr();
                tcgetpgrp(&stderr).is_ok_and(|group| group == getpgrp())
                    && takes_words(stderr.as_fd(), 0)
            }
            Screen::Of(file) => takes_words(file.as_fd(), 0),
        }
    }

    /// In one piece: others speak, too.
    fn write(&self, text: &str) {
        let _ = match &self.screen {
            Screen::Own => std::io::stderr().write_all(text.as_bytes()),
            Screen::Of(file) => (&mut &*file).write_all(text.as_bytes()),
        };
    }
}

fn counts() -> Option<&'static Counts> {
    let len = NonZeroUsize::new(size_of::<Counts>())?;
    let (prot, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
    // SAFETY: the kernel chooses where nothing is.
    let at = unsafe { mmap_anonymous(None, len, prot, flags) }.ok()?;
    // SAFETY: a page of zeros, as the module's Safety paragraph says.
    Some(unsafe { at.cast().as_ref() })
}

/// The end of a name, so that all fits into a line.
fn short(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    let skip = last.chars().count().saturating_sub(LONGEST);
    printable(&last.chars().skip(skip).collect::<String>())
}

fn text(done: u64, total: Option<u64>, time: Duration) -> String {
    let rate = u128::from(done) * 1000 / time.as_millis().max(1);
    let rate = u64::try_from(rate).unwrap_or(u64::MAX);
    // How much there is, is only guessed where the kernel counts pages its own way.
    let Some(total) = total.filter(|total| *total > done) else {
        return format!("{}, {}/s", size(done), size(rate));
    };
    let left = (total - done) / rate.max(1);
    let (done, total, rate) = (size(done), size(total), size(rate));
    format!("{done} of {total}, {rate}/s, {}:{:02} left", left / 60, left % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let time = Duration::from_secs(2);
        assert_eq!(text(1 << 20, None, time), "1.0 MiB, 512.0 KiB/s");
        let known = text(1 << 20, Some(65 << 20), time);
        assert_eq!(known, "1.0 MiB of 65.0 MiB, 512.0 KiB/s, 2:08 left");
        assert_eq!(text(5, Some(0), time), "5 bytes, 2 bytes/s");
    }
}
