// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt save PID`

use super::follow;
use super::notify::{Hook, Ran, Shared};
use crate::dump::{Demand, Outcome, dump};
use crate::error::{Because, Kind, Result, printable};
use crate::inject::enter;
use crate::proc::Process;
use crate::progress::Screen;
use crate::settings::Settings;
use crate::units::fraction;
use std::time::Duration;

/// How long the command of `--notify` is waited for.
const NOTIFIED: Duration = Duration::from_secs(60);

/// Saves a process from outside and says what came of it.
#[inline(never)]
pub(super) fn run(process: &Process, stop: bool, settings: Settings) -> Result<u8> {
    let here = std::env::current_dir().because(|| "cannot find out the current directory")?;
    let settings = settings.resolve(&here)?;
    let own = std::process::id();
    let (outcome, ran) = loop {
        let meant = enter::meant_by(process)?;
        match save(process, &meant, stop, &settings) {
            // What had yet to execute its checkpoint is a restarter that stands for another by now.
            Err(e)
                if e.kind() == Kind::Busy
                    && std::process::id() == own
                    && enter::meant_by(process).is_ok_and(|now| now.pid() != meant.pid()) => {}
            saved => break saved?,
        }
    };
    for sentence in outcome.sentences() {
        eprintln!("ckpt: {}", printable(&sentence));
    }
    let name = printable(&outcome.name.to_string_lossy());
    let is_output = name == "-";
    let name = if is_output { "standard output" } else { &name };
    let line = format!(
        "{name}: {}, the program stood still for {} ms{}",
        super::facts::size(outcome.bytes),
        fraction(outcome.pause.as_micros() as u64, 1000, 1),
        if outcome.stopped { " and was ended" } else { "" }
    );
    if is_output {
        eprintln!("ckpt: {line}");
    } else {
        // The checkpoint is there, whatever becomes of this.
        let line = format!("{line}\n");
        let _ = std::io::Write::write_all(&mut std::io::stdout(), line.as_bytes());
    }
    if ran.is_some_and(|ran| !ran.done_within(NOTIFIED)) {
        eprintln!("ckpt: the command of --notify still runs");
    }
    Ok(0)
}

fn save(
    asked: &Process,
    meant: &Process,
    stop: bool,
    settings: &Settings,
) -> Result<(Outcome, Option<Ran>)> {
    follow::summon(asked, meant);
    let hook = Hook::prepare(meant, settings.notify.as_deref(), true);
    let hook = hook.unwrap_or_else(|e| {
        eprintln!("ckpt: {e}");
        None
    });
    let hook = Shared::of(hook, asked.pid());
    let settings = settings.clone();
    let without = settings.without.map(|who| who.with_ids(|id| enter::inner(id, meant)));
    let settings = Settings { without, ..settings };
    let process = enter::enter(meant.clone())?;
    super::dumper::prepare();
    let (open, prune) = (super::destination::open_or_print, super::destination::prune);
    let result = dump(&Demand {
        process,
        settings,
        stop: Some(stop),
        triggered: false,
        periodic: false,
        open,
        prune,
        screen: Some(Screen::Own),
        tell: None,
        ending: None,
        ended: None,
        rolling: None,
    });
    let ran = hook.tell(result.as_ref());
    match result {
        Ok(outcome) => Ok((outcome, ran)),
        Err(e) => {
            ran.map(|ran| ran.done_within(NOTIFIED));
            Err(e)
        }
    }
}
