// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 2: find the payload, or inject it, and claim it for this dump.

use super::place::{Place, Whose};
use super::{Request as Asked, caller, keeper, phase0_visit};
use crate::error::{Error, Kind, Result};
use crate::fault::{Point, reach};
use crate::image::read::Image;
use crate::inject;
use crate::inject::region::Region;
use crate::inject::turns::{self, own_task};
use crate::proc::{self, maps::Vma};
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use crate::settings::{self, Name, Settings, Template};
use ckpt_abi::api::Request;
use ckpt_abi::region::{Config, Control, config_flag};
use ckpt_abi::turn::{By, Denied, Event, Phase, Task};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a restart in progress is waited for.
const RESTART: Duration = Duration::from_secs(5);

/// A frozen process with a payload that is ours for now.
pub struct Equipped {
    /// The payload.
    pub region: Region,
    /// The mappings, with the payload's.
    pub vmas: Vec<Vma>,
    /// Where the checkpoint goes.
    pub place: Place,
    /// Whether the program ends after it.
    pub stop: bool,
    /// Whether orphans of the program come to somebody who reaps them, so that there can be a snapshot.
    pub orphans_leave: bool,
    /// This dumper, as the payload names it.
    task: Task,
}

/// Finds or injects the payload; None when a thread of the program has its turn, which has to run for that to change.
pub fn equip(
    request: &Asked,
    frozen: &mut Frozen,
    memory: &Memory,
    executable: &[u8],
    whose: Whose,
) -> Result<Option<Equipped>> {
    let pid = request.pid;
    let vmas = proc::maps::read(pid)?;
    if is_stub(pid, &vmas) {
        return Err(restarting(pid));
    }
    let mut region = match Region::find(memory, &vmas) {
        Some(region) => region,
        None => {
            // A process that may do less than we may is not told where we save it to.
            let told = if whose.is_its() { &request.settings } else { &Settings::default() };
            // A checkpoint by `ckpt save` is one; the program was never asked to give a signal away for more of them.
            let config = inject::unsignalled(configuration(pid, told)?);
            inject::inject(pid, &mut frozen.threads[0], memory, &vmas, &config, executable)?
        }
    };
    frozen.attend(memory, &region.desk(), region.base)?;
    let Some(task) = claim(request, &region, memory)? else { return Ok(None) };
    let orphans_leave = keeper::dismiss(frozen, memory, &region)?;
    let vmas = proc::maps::read_with_flags(pid)?;
    // For this checkpoint alone: only our copy of the configuration changes.
    let embed = &mut region.control.config.embed;
    *embed = request.settings.embed.unwrap_or(*embed);
    let template = template(request, &region, memory)?;
    let control = &mut region.control;
    let forked = forked(request, control);
    let place =
        Place::find(request, whose, template, &control.config, forked, &mut control.generation)?;
    let config = &region.control.config;
    let ends = config.continues == 0;
    let stop = match request.periodic {
        true => ends && config.flags & config_flag::CONTINUE_GIVEN != 0,
        false => request.stop.unwrap_or(ends),
    };
    Ok(Some(Equipped { region, vmas, place, stop, orphans_leave, task }))
}

/// The configuration of a process that had none: its name comes from its own and its directory.
pub fn configuration(pid: i32, settings: &Settings) -> Result<Config> {
    let arguments = proc::cmdline(pid)?;
    let program = match arguments.first().filter(|a| !a.is_empty()) {
        // A login shell's name begins with a dash.
        Some(name) => {
            let name = name.as_bytes();
            std::ffi::OsStr::from_bytes(name.strip_prefix(b"-").unwrap_or(name)).to_owned()
        }
        None => proc::comm(pid, pid)?,
    };
    let cwd = proc::cwd(pid)?.path;
    let own = Name::parse(&settings::default_name(&program))?;
    let settings = settings.clone().or(Settings { name: Some(own), ..Settings::default() });
    Ok(settings.resolve(&cwd)?.apply(settings::default_config()))
}

/// Whether the process is a checkpoint that has not yet become the program; whatever it has of a
/// payload is not ready. The program, once there, has no mapping of its checkpoint.
fn is_stub(pid: i32, vmas: &[Vma]) -> bool {
    let Ok(exe) = std::fs::read_link(format!("/proc/{pid}/exe")) else { return false };
    let runs = vmas.iter().any(|vma| vma.exec && vma.name == exe.as_os_str());
    let file = std::fs::File::open(format!("/proc/{pid}/exe"));
    runs && file.is_ok_and(|file| matches!(Image::find(&file), Ok(Some(_))))
}

/// Waits while a restart of the process is going on.
///
/// # Errors
/// It is stopped in it, or takes more than [`RESTART`].
pub fn await_restart(pid: i32) -> Result<()> {
    let deadline = Instant::now() + RESTART;
    while is_restarting(pid) {
        let stopped = proc::stat(pid, pid).is_ok_and(|stat| stat.state == 'T');
        if stopped {
            let text = format!("process {pid} has been stopped since its restart");
            let hint = format!("let it go on first (kill -CONT {pid})");
            return Err(Error::new(text).hint(hint));
        }
        if Instant::now() > deadline {
            return Err(restarting(pid));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn is_restarting(pid: i32) -> bool {
    let (Ok(memory), Ok(vmas)) = (Memory::open(pid), proc::maps::read(pid)) else { return false };
    let turn = || Region::find(&memory, &vmas)?.turn(&memory).ok();
    is_stub(pid, &vmas) || turn().is_some_and(|turn| turn.phase == Phase::Restoring)
}

/// Why not now, while a restart of the process goes on.
pub fn restarting(pid: i32) -> Error {
    Error::new(format!("process {pid} is just being restarted"))
        .of(Kind::Busy)
        .hint("try again in a moment")
}

/// Why not now, while another dumper works.
pub fn busy(pid: i32, other: Task) -> Error {
    let other = other.pid;
    Error::new(format!("a checkpoint of process {pid} is already being taken, by process {other}"))
        .of(Kind::Busy)
        .hint("wait for it")
}

/// Makes the turn ours, every thread standing still; None when it may be in a moment.
fn claim(request: &Asked, region: &Region, memory: &Memory) -> Result<Option<Task>> {
    let pid = request.pid;
    if request.periodic && region.turns(memory)?.handlers != 0 {
        let text = "the checkpoint signal has just come, whose checkpoint goes first";
        return Err(Error::new(text).of(Kind::Busy));
    }
    let task = own_task(pid);
    let event = Event::Claim { by: request.by(), task, kept: false };
    loop {
        match region.step(memory, pid, event)? {
            Ok(_) => return Ok(Some(task)),
            // The monitor's dumper gives way; it has let the program go, for we could freeze it.
            Err(Denied::After(other, _)) => turns::end(pid, other),
            Err(Denied::Busy(other)) => return Err(busy(pid, other)),
            Err(Denied::Restoring) => return Err(restarting(pid)),
            Err(Denied::Soon | Denied::NotYours) => return Ok(None),
        }
    }
}

/// The name of the checkpoint: for this call, else as configured; a forked child's has its id
/// appended, so that a signal to the whole group does not make two write one file.
fn template(request: &Asked, region: &Region, memory: &Memory) -> Result<Template> {
    if let Some(name) = called(request, region, memory)? {
        return Template::parse(Path::new(&name.written()));
    }
    if let Some(name) = request.settings.name.as_ref() {
        return Template::parse(Path::new(&name.written()));
    }
    let mut name = region.name()?;
    if forked(request, &region.control) {
        name.as_mut_os_string().push(format!(".{}", request.pid));
    }
    Template::parse(&name)
}

/// The name that the program has given to ckpt_ckpt().
fn called(request: &Asked, region: &Region, memory: &Memory) -> Result<Option<Name>> {
    let api = caller::read(memory, region)?;
    let len = api.name.iter().position(|b| *b == 0).unwrap_or(0);
    if !request.triggered || api.request != Request::Call as u32 || len == 0 {
        return Ok(None);
    }
    let name = Name::parse(std::ffi::OsStr::from_bytes(&api.name[..len]))?;
    name.resolve(&proc::cwd(request.pid)?.path).map(Some)
}

fn forked(request: &Asked, control: &Control) -> bool {
    control.owner != proc::inner_pid(request.pid).cast_unsigned()
}

impl Equipped {
    /// Changes the destination; the process may have run since it was equipped, and stands still again.
    pub fn divert(&mut self, memory: &Memory, pid: i32, file: PathBuf) -> Result<()> {
        let event = Event::Claim { by: By::Order, task: self.task, kept: false };
        if self.region.step(memory, pid, event)?.is_err() {
            return Err(phase0_visit::turn_of_another(pid));
        }
        self.place.name = file;
        self.vmas = proc::maps::read_with_flags(pid)?;
        Ok(())
    }

    /// Tells the payload that its threads are about to be let go.
    pub fn leaves(&self, memory: &Memory, pid: i32) -> Result<()> {
        self.region.step(memory, pid, Event::Leave(self.task)).map(drop)
    }

    /// Tells the payload that all of its threads run; from now on a signal may end this dumper.
    pub fn has_left(&self, memory: &Memory, pid: i32) -> Result<()> {
        self.region.step(memory, pid, Event::Left(self.task)).map(drop)
    }

    /// The checkpoint is whole: the next one has the next number, and older ones may go.
    pub fn sealed(&self, memory: &Memory, prune: super::Prune) {
        let control = &self.region.control;
        let _ = self.region.set_generation(memory, control.generation + 1);
        reach(Point::Numbered);
        self.place.prune(prune);
    }

    /// The dump is over, well or not: a caller of the C API gets its answer, and gives the payload
    /// free itself; else the next signal may start another. A process that is gone needs no word.
    pub fn finish(&self, memory: &Memory, pid: i32, error: Option<&Error>) {
        if self.region.turn(memory).is_ok_and(|turn| turn.kept) {
            caller::answer(memory, &self.region, error);
            reach(Point::Answered);
        }
        let _ = self.region.step(memory, pid, Event::End(self.task));
    }
}
