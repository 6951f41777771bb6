// SPDX-License-Identifier: LGPL-2.1-only
//! The POSIX timers of a process: /proc/PID/timers.

use super::id::Tid;
use nix::libc;

use super::parsed;
use super::process::Process;
use super::text::{decimal, hex, lines};
use crate::error::{Error, Result};

/// A timer of timer_create(2), without its times: those only the process can ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PosixTimer {
    /// The kernel's id of the timer.
    pub id: i32,
    /// sigev_signo.
    pub signal: i32,
    /// sigev_value as 64 bits.
    pub value: u64,
    /// sigev_notify: SIGEV_SIGNAL, SIGEV_NONE or SIGEV_THREAD, with SIGEV_THREAD_ID where it is
    /// set.
    pub notify: i32,
    /// The thread that is notified with SIGEV_THREAD_ID, else the main one, whose id is the process's.
    pub target: Tid,
    /// The clock (CLOCK_ constants; negative ones are clocks of a process, thread or device).
    pub clock: i32,
}

impl Process {
    /// The timers of process `pid`.
    ///
    /// # Errors
    /// The process is gone or may not be read, or the kernel was built without this file
    /// (CONFIG_CHECKPOINT_RESTORE).
    pub fn posix_timers(&self) -> Result<Vec<PosixTimer>> {
        let text = self.file("timers")?;
        parsed(parse(&text), || self.called("timers"))
    }
}

/// Lines as show_timer (fs/proc/base.c) writes them; a line of a key that it does not write
/// today is passed over.
fn parse(text: &[u8]) -> Result<Vec<PosixTimer>> {
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in lines(text) {
        let text = std::str::from_utf8(line).map_err(|_| Error::new("it is no text"))?;
        let wrong = || Error::new(format!("{text:?} is no line of a timer"));
        let (key, value) = text.split_once(": ").ok_or_else(wrong)?;
        if key == "ID" {
            let id = decimal(value.as_bytes())?;
            timers.push(PosixTimer {
                id,
                signal: 0,
                value: 0,
                notify: 0,
                target: Tid::NONE,
                clock: 0,
            });
        }
        let timer = timers.last_mut().ok_or_else(wrong)?;
        match key {
            "signal" => {
                let (signal, sigval) = value.split_once('/').ok_or_else(wrong)?;
                timer.signal = decimal(signal.as_bytes())?;
                timer.value = hex(sigval.as_bytes())?;
            }
            "notify" => {
                (timer.notify, timer.target) = parse_notify(value).ok_or_else(wrong)?;
            }
            "ClockID" => timer.clock = decimal(value.as_bytes())?,
            _ => {}
        }
    }
    Ok(timers)
}

/// "signal/pid.5797": sigev_notify and the target.
fn parse_notify(value: &str) -> Option<(i32, Tid)> {
    let (how, whom) = value.split_once('/')?;
    let (kind, target) = whom.split_once('.')?;
    let how = match how {
        "signal" => libc::SIGEV_SIGNAL,
        "none" => libc::SIGEV_NONE,
        "thread" => libc::SIGEV_THREAD,
        _ => return None,
    };
    let thread = match kind {
        "tid" => libc::SIGEV_THREAD_ID,
        "pid" => 0,
        _ => return None,
    };
    Some((how | thread, target.parse().ok()?))
}

/// See [`super::parse_anything`].
pub(super) fn parse_anything(bytes: &[u8]) {
    let _ = parse(bytes);
}

#[cfg(test)]
mod tests {
    use super::super::tests::we;
    use super::*;

    #[test]
    fn three_timers() {
        let text = b"\
ID: 1
signal: 34/00007f0000000099
notify: signal/tid.5798
ClockID: -46374
ID: 0
signal: 10/0xffffffffffffffff
notify: none/pid.5797
ClockID: 1
ID: 7
signal: 0/0000000000000000
notify: thread/pid.5797
ClockID: 0
Future: 1
";
        let timer = |id, signal, value, notify, target, clock| PosixTimer {
            id,
            signal,
            value,
            notify,
            target: Tid::new(target),
            clock,
        };
        assert_eq!(
            parse(text).unwrap(),
            [
                timer(1, 34, 0x7f00_0000_0099, libc::SIGEV_THREAD_ID, 5798, -46374),
                timer(0, 10, u64::MAX, libc::SIGEV_NONE, 5797, 1),
                timer(7, 0, 0, libc::SIGEV_THREAD, 5797, 0),
            ]
        );
        assert_eq!(parse(b"").unwrap(), []);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "signal: 1/0\n",
            "ID: x\n",
            "ID: 1\nsignal: 1\n",
            "ID: 1\nnotify: signal/x.1\n",
            "ID: 1\nnotify: loud/pid.1\n",
            "ID\n",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn we_have_no_timers() {
        assert_eq!(we().posix_timers().unwrap(), []);
    }
}
