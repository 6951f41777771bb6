// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt -p PID`

use super::{destination, follow};
use crate::dump::phase1_freeze;
use crate::dump::phase2_equip::{self, configuration};
use crate::dump::place::Whose;
use crate::error::Result;
use crate::fault::{Point, reach};
use crate::image::stub;
use crate::inject::{self, enter, monitor, region::Region};
use crate::proc::{Pid, Process};
use crate::ptrace::call::Caller;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use crate::ptrace::sandbox;
use crate::resource::kinship;
use crate::settings::{self, DEFAULT_SIGNAL, Name, Settings, Values, period_text, signal_name};
use ckpt_abi::region::{Config, config_flag};

/// Equips a running process, or changes the configuration of one that is equipped.
///
/// Periodic checkpoints get a new monitor each time, for nobody can say whether one that is there
/// is not about to end; it ends when it sees the new one in its place.
#[inline(never)]
pub(super) fn run(asked: &Process, settings: &Settings) -> Result<u8> {
    let executable = stub::own()?;
    let process = enter::meant_by(asked)?;
    phase1_freeze::check(&process)?;
    sandbox::refuse(&process)?;
    phase2_equip::await_restart(&process)?;
    follow::summon(&process, &process);
    let mut frozen = phase1_freeze::patiently(false, || Frozen::freeze_one(&process))?;
    let memory = Memory::open(&process)?;
    let vmas = process.maps()?;
    let region = match Region::find(&memory, &vmas) {
        Some(region) => {
            frozen.attend(&memory, &region.desk(), region.base)?;
            reconfigure(&process, &mut frozen, &memory, region, settings)?
        }
        None => {
            let settings = signalled(&process, settings)?;
            let config = configuration(&process, &settings)?;
            check_name(&process, &config)?;
            let thread = &mut frozen.threads[0];
            let region = inject::inject(thread, &memory, &vmas, &config, &executable)?;
            frozen.attend(&memory, &region.desk(), region.base)?;
            region
        }
    };
    if monitor::is_wanted(&region.control.config) {
        watch(process.pid(), &mut frozen, &memory, &region, &executable)?;
    }
    frozen.thaw();
    super::print(&format!("process {}: {}\n", process.pid(), arrangement(&region.control.config)?))
}

/// What a configuration comes to, in words.
pub(super) fn arrangement(config: &Config) -> Result<String> {
    let name = Settings::from_config(config)?.name;
    let name = name.map_or("no file (it has no name)".into(), |name| name.to_string());
    let ends = |ends: bool| if ends { "and ends" } else { "and goes on" };
    let mut ways = Vec::new();
    if config.asyncsig != 0 {
        let signal = signal_name(config.asyncsig);
        ways.push(format!("on {signal}, {}", ends(config.continues == 0)));
    }
    if config.msperiod != 0 {
        let stops = config.continues == 0 && config.flags & config_flag::CONTINUE_GIVEN != 0;
        ways.push(format!("each {}, {}", period_text(config.msperiod), ends(stops)));
    }
    if ways.is_empty() {
        ways.push("only by ckpt save: it has neither a signal nor a period".into());
    }
    Ok(format!("is saved to {name} {}", ways.join("; ")))
}

/// Starts a monitor for the frozen process.
fn watch(
    pid: Pid,
    frozen: &mut Frozen,
    memory: &Memory,
    region: &Region,
    executable: &[u8],
) -> Result<()> {
    let mut caller = Caller::new(&mut frozen.threads[0], memory, &region.desk())?;
    monitor::start(pid, executable, &region.control.config)?.appoint(
        &mut caller,
        memory,
        region,
    )?;
    reach(Point::Appointed);
    Ok(())
}

fn reconfigure(
    process: &Process,
    frozen: &mut Frozen,
    memory: &Memory,
    mut region: Region,
    settings: &Settings,
) -> Result<Region> {
    let settings = match region.control.config.flags & config_flag::SIGNAL_OPEN {
        0 => settings.clone(),
        _ => signalled(process, settings)?,
    };
    let settings = settings.resolve(&process.cwd()?.path)?;
    let mut config = settings.apply(region.control.config);
    if config.run == 0 {
        config.run = settings::fresh_run();
        config.begun = kinship::begun(process.pid());
    }
    check_name(process, &config)?;
    let mut caller = Caller::new(&mut frozen.threads[0], memory, &region.desk())?;
    region.configure(&mut caller, memory, &config)?;
    Ok(region)
}

/// The settings with a signal: the usual one where none was named, unless the program has a use of its own for that.
fn signalled(process: &Process, settings: &Settings) -> Result<Settings> {
    let (pid, status) = (process.pid(), process.main_status()?);
    let used = (status.caught | status.ignored) >> (DEFAULT_SIGNAL - 1) & 1 == 1;
    if used && settings.asyncsig.is_none() {
        let signal = signal_name(DEFAULT_SIGNAL);
        eprintln!(
            "ckpt: process {pid} handles or ignores {signal} itself, so no signal triggers checkpoints of it; \
             -a names one that may be taken"
        );
    }
    let usual = if used { 0 } else { DEFAULT_SIGNAL };
    Ok(settings.clone().or(Settings { asyncsig: Some(usual), ..Settings::default() }))
}

/// Says at once when the checkpoint could not be written: by the process itself, which the checkpoint
/// signal makes do it, or by a monitor of ours with its rights.
fn check_name(process: &Process, config: &Config) -> Result<()> {
    let template = settings::template(config)?;
    // A server is not asked: it may be there when it is needed.
    if Settings::from_config(config)?.name.as_ref().and_then(Name::file).is_none() {
        return Ok(());
    }
    match Whose::of(process, false) {
        Ok(whose) => whose.touch(|| destination::check(&template, &Values::of(process.pid())))?,
        Err(e) if config.msperiod != 0 => Err(e),
        Err(_) => Ok(()),
    }
}
