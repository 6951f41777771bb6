// SPDX-License-Identifier: LGPL-2.1-only
//! Names and numbers of signals on x86-64, and which of them can trigger checkpoints.

use std::ffi::OsStr;

use super::{digits, quoted};
use crate::error::{Error, Result};

/// SIGTSTP, the signal that triggers checkpoints unless another is chosen.
pub const DEFAULT_SIGNAL: u32 = 20;

/// Names of the classic signals of x86-64 without "SIG"; the index is the number (signal(7)).
pub const SIGNALS: [&str; 32] = [
    "", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

const SIGNAL_ALIASES: [(&str, u32); 3] = [("IOT", 6), ("CLD", 17), ("POLL", 29)];

const SIGKILL: u32 = 9;
const SIGSTOP: u32 = 19;
/// First real-time signal of programs, as `kill -l` counts. The kernel's first is 32, but C
/// libraries keep 32 and 33 for thread cancellation and setuid (nptl(7)).
const SIGRTMIN: u32 = 34;
const SIGRTMAX: u32 = 64;

/// "SIGTSTP", "SIGRTMIN+3", "none" for 0, "signal 99" for numbers without a name.
pub fn signal_name(number: u32) -> String {
    match number {
        0 => "none".into(),
        1..=31 => format!("SIG{}", SIGNALS[number as usize]),
        SIGRTMIN => "SIGRTMIN".into(),
        SIGRTMAX => "SIGRTMAX".into(),
        35..=49 => format!("SIGRTMIN+{}", number - SIGRTMIN),
        50..=63 => format!("SIGRTMAX-{}", SIGRTMAX - number),
        _ => format!("signal {number}"),
    }
}

/// Reads the signal that triggers checkpoints: a number, a name with or without "SIG" in any
/// case, RTMIN+N, RTMAX-N, or 0 for none.
///
/// # Errors
/// What is no signal, and signals that cannot be caught or belong to the C library.
pub fn parse_signal(text: &OsStr) -> Result<u32> {
    let unknown = || {
        Error::new(format!(
            "there is no signal {}; give a name (USR1, SIGUSR1, RTMIN+3), a number from 1 to 64, \
             or 0 for none",
            quoted(text)
        ))
    };
    let word = text.to_str().ok_or_else(unknown)?;
    let number = match digits(word) {
        Some(number) => number.ok_or_else(unknown)?,
        None => signal_of_name(word).ok_or_else(unknown)?,
    };
    usable_signal(number, word)
}

fn signal_of_name(word: &str) -> Option<u32> {
    let upper = word.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let offset = if rest.is_empty() { 0 } else { digits(rest.strip_prefix('+')?)?? };
        return SIGRTMIN.checked_add(offset).filter(|&n| n <= SIGRTMAX);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        let offset = if rest.is_empty() { 0 } else { digits(rest.strip_prefix('-')?)?? };
        return SIGRTMAX.checked_sub(offset).filter(|&n| n >= SIGRTMIN);
    }
    let alias = SIGNAL_ALIASES.iter().find(|(alias, _)| *alias == name).map(|&(_, n)| n);
    alias.or_else(|| (1..32).find(|&n| SIGNALS[n as usize] == name))
}

/// `number`, if a program can take that signal; `said` is how it was given.
pub(super) fn usable_signal(number: u32, said: &str) -> Result<u32> {
    match number {
        SIGKILL | SIGSTOP => Err(Error::new(format!(
            "the signal '{said}' ({}) cannot be caught, so it cannot trigger checkpoints; \
             choose another, for example USR1",
            signal_name(number)
        ))),
        32 | 33 => Err(Error::new(format!(
            "the signal '{said}' belongs to the C library; choose another, for example USR1"
        ))),
        0..=SIGRTMAX => Ok(number),
        _ => Err(Error::new(format!(
            "the signal '{said}' is out of range; signals are 1 to {SIGRTMAX}, and 0 is none"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn signal(text: &str) -> std::result::Result<u32, String> {
        parse_signal(OsStr::new(text)).map_err(|e| e.to_string())
    }

    #[test]
    fn signals() {
        for text in ["10", "010", "USR1", "usr1", "SIGUSR1", "sigUsr1"] {
            assert_eq!(signal(text), Ok(10), "{text}");
        }
        assert_eq!(signal("0"), Ok(0));
        assert_eq!(signal("CLD"), Ok(17));
        assert_eq!(signal("RTMIN"), Ok(34));
        assert_eq!(signal("sigrtmin+3"), Ok(37));
        assert_eq!(signal("RTMIN+30"), Ok(64));
        assert_eq!(signal("RTMAX-1"), Ok(63));
    }

    #[test]
    fn bad_signals() {
        let cases = [
            ("KILL", "'KILL' (SIGKILL) cannot be caught"),
            ("9", "'9' (SIGKILL) cannot be caught"),
            ("sigstop", "'sigstop' (SIGSTOP) cannot be caught"),
            ("65", "'65' is out of range"),
            ("33", "'33' belongs to the C library"),
            ("99999999999", "no signal '99999999999'"),
            ("-1", "no signal '-1'"),
            ("+1", "no signal '+1'"),
            ("", "no signal ''"),
            ("SIG", "no signal 'SIG'"),
            ("FOO", "no signal 'FOO'"),
            ("RTMIN+31", "no signal 'RTMIN+31'"),
            ("RTMIN+99999999999", "no signal"),
            ("RTMIN-1", "no signal 'RTMIN-1'"),
            ("RTMAX-31", "no signal 'RTMAX-31'"),
            ("RTMIN+", "no signal 'RTMIN+'"),
            ("a\nb", "no signal 'a\\nb'"),
        ];
        for (text, part) in cases {
            let sentence = signal(text).unwrap_err();
            assert!(sentence.contains(part), "{text:?}: {sentence}");
        }
        assert!(parse_signal(OsStr::from_bytes(b"\xff")).is_err());
    }

    #[test]
    fn signal_names_are_the_kernels() {
        for known in nix::sys::signal::Signal::iterator() {
            assert_eq!(signal_name(known as u32), known.as_str());
        }
        for number in (1..=SIGRTMAX).filter(|n| !matches!(n, 9 | 19 | 32 | 33)) {
            assert_eq!(signal(&signal_name(number)), Ok(number));
        }
        assert_eq!(signal_name(0), "none");
        assert_eq!(signal_name(33), "signal 33");
        assert_eq!(signal_name(65), "signal 65");
    }
}
