// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt ps`

use super::facts::{Facts, listed};
use super::running::{self, Running};
use crate::error::Result;
use crate::inject::last;
use crate::proc::{self, TICK, ticks};
use crate::serve::log::date;
use crate::settings::period_text;
use crate::units::fraction;
use ckpt_abi::region::Last;
use std::io::IsTerminal;
use std::time::Duration;

const SECOND: u64 = 1_000_000_000;
/// How often it is shown anew.
const GLANCE: Duration = Duration::from_secs(2);

/// Shows what runs under ckpt here; to `watch` means again and again.
#[inline(never)]
pub(super) fn run(json: bool, watch: bool) -> Result<u8> {
    proc::of_this_namespace()?;
    loop {
        let all: Vec<Facts> = running::all()?.iter().map(|it| describe(it, json)).collect();
        let text = match json {
            false if all.is_empty() => "nothing runs under ckpt here\n".to_owned(),
            json => listed(&all, json),
        };
        let clear = watch && std::io::stdout().is_terminal();
        super::print(&format!("{}{text}", if clear { "\x1b[H\x1b[2J" } else { "" }))?;
        if !watch {
            return Ok(0);
        }
        std::thread::sleep(GLANCE);
    }
}

fn describe(running: &Running, json: bool) -> Facts {
    let now = last::now();
    let last = running.last.ok().filter(|last| last.at != 0);
    let mut facts = Facts::default();
    facts.add("pid", u64::from(running.pid.word()));
    if json || nix::unistd::geteuid().is_root() {
        facts.add("user", running.process.user().map(u64::from));
    }
    facts.add("program", running.program());
    let lived = ticks().saturating_sub(running.start) * TICK.unsigned_abs();
    facts.add("since", date(now.saturating_sub(lived) / SECOND));
    let period = running.config.map(|config| config.msperiod).filter(|period| *period != 0);
    facts.add("period", period.map(|period| (period_text(period), u64::from(period))));
    let ago = |at: u64| format!("{} ago", span(now.saturating_sub(at)));
    facts.add("last", last.map(|last| (ago(last.at), last.at / SECOND)));
    match last {
        Some(last) => facts.add_bytes("bytes", last.bytes),
        None => facts.add("bytes", None::<u64>),
    }
    let pause = last.map(|last| last.pause).filter(|pause| *pause != 0);
    let pause = pause.map(|pause| (format!("{} ms", fraction(pause, 1000, 1)), pause));
    facts.add(if json { "pause_us" } else { "pause" }, pause);
    let due = running.due.filter(|due| *due != 0);
    let next = |due: u64| match due.saturating_sub(now) {
        0 => "now".to_owned(),
        left => format!("in {}", span(left)),
    };
    facts.add("next", due.map(|due| (next(due), due / SECOND)));
    facts.add("name", running.name());
    facts.add("result", result(running, now));
    if json {
        facts.add("within", running.within.map(|pid| u64::from(pid.word())));
    }
    facts
}

/// "saved", or why not.
fn result(running: &Running, now: u64) -> Option<String> {
    let last = match running.last {
        Ok(last) => last,
        Err(why) => return Some(format!("not known: {why}")),
    };
    match last {
        Last { failed: 0, at: 0, .. } => None,
        Last { failed: 0, .. } => Some("saved".to_owned()),
        Last { failed, reason, .. } => {
            let len = reason.iter().position(|byte| *byte == 0).unwrap_or(reason.len());
            let why = String::from_utf8_lossy(&reason[..len]);
            Some(format!("failed {} ago: {why}", span(now.saturating_sub(failed))))
        }
    }
}

/// "5m": so many nanoseconds in the largest unit of which there are two.
fn span(nanoseconds: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("d", 86400), ("h", 3600), ("m", 60)];
    let seconds = nanoseconds / SECOND;
    let (name, unit) = UNITS.into_iter().find(|(_, unit)| seconds >= 2 * unit).unwrap_or(("s", 1));
    format!("{}{name}", seconds / unit)
}
