//! `ckpt -p PID`

use crate::dump::phase2_equip::configuration;
use crate::error::Result;
use crate::image::{file, stub};
use crate::inject::{self, region::Region};
use crate::proc;
use crate::ptrace::call::Caller;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use crate::settings::Settings;

/// Equips a running process, or changes the configuration of one that is equipped.
pub fn run(pid: i32, settings: &Settings) -> Result<u8> {
    let executable = stub::own()?;
    crate::dump::phase1_freeze::check(pid)?;
    let mut frozen = Frozen::freeze_one(pid)?;
    let memory = Memory::open(pid)?;
    let vmas = proc::maps::read(pid)?;
    match Region::find(&memory, &vmas) {
        Some(region) => {
            frozen.note_waits(&memory, region.base)?;
            reconfigure(pid, &mut frozen, &memory, region, settings)?;
        }
        None => {
            let config = configuration(pid, settings)?;
            check_name(&config)?;
            let thread = &mut frozen.threads[0];
            let region = inject::inject(pid, thread, &memory, &vmas, &config, &executable)?;
            frozen.note_waits(&memory, region.base)?;
        }
    }
    frozen.thaw();
    Ok(0)
}

fn reconfigure(
    pid: i32,
    frozen: &mut Frozen,
    memory: &Memory,
    mut region: Region,
    settings: &Settings,
) -> Result<()> {
    let settings = settings.clone().resolve(&proc::cwd(pid)?.path)?;
    let config = settings.apply(region.control.config);
    check_name(&config)?;
    let signal = config.asyncsig;
    let mut caller = Caller::new(&mut frozen.threads[0], memory, region.control.thunk)?;
    if signal != region.control.config.asyncsig {
        region.give_signal_back(&mut caller)?;
    }
    let changed = signal != region.control.config.asyncsig;
    region.control.config = config;
    region.set_config(memory)?;
    if changed {
        region.take_signal(&mut caller, memory)?;
    }
    Ok(())
}

/// Says at once when the checkpoint could not be written.
fn check_name(config: &ckpt_abi::region::Config) -> Result<()> {
    match Settings::from_config(config)?.name.as_ref().and_then(crate::settings::Name::file) {
        Some(path) => file::check(path),
        None => Ok(()),
    }
}
