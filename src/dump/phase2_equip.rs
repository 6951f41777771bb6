// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 2: find the payload, or inject it, and claim it for this dump.

use super::place::Whose;
use super::{Demand, caller, keeper, phase0_visit};
use crate::abreast;
use crate::error::{Because, Error, Kind, Result};
use crate::fault::{Point, reach};
use crate::inject::region::Region;
use crate::inject::turns::{self, own_task};
use crate::inject::{self, enter};
use crate::proc::{Pid, Process};
use crate::ptrace::forest::Forest;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use crate::ptrace::regs::Regs;
use crate::resource::kinship;
use crate::resource::looked::Looked;
use crate::resource::presumed::Before;
use crate::settings::{self, Name, Settings};
use ckpt_abi::region::{Config, Control, STACK_LEN, STACKS};
use ckpt_abi::turn::{By, Denied, Event, Phase, Task, Turn};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

/// How long a restart in progress is waited for.
const RESTART: Duration = Duration::from_secs(5);
/// How long the memory of one that was restarted.
const MEMORY: Duration = Duration::from_secs(10);
/// How long a process that may not be looked at: most that are so stay so.
const CLOSED: Duration = Duration::from_secs(1);

/// A process of the checkpoint with a payload that is ours, until it is finished with.
pub(crate) struct Equipped {
    /// The process.
    pub process: Process,
    /// Its memory.
    pub memory: Memory,
    /// The payload.
    pub region: Region,
    /// Whether orphans of the process come to somebody who reaps them, so that there can be a snapshot; unless it adopts
    /// them itself, which is seen later ([`super::phase4_refuse::refuse`]).
    pub orphans_leave: bool,
    /// This dumper, as the payload names it.
    task: Task,
}

/// What there is of a process that stands still, before its payload is known.
pub(crate) struct Seen {
    process: Process,
    pub(super) memory: Memory,
    /// The payload, if it has one.
    pub(super) region: Option<Region>,
    looked: Looked,
}

impl Seen {
    /// Looks at one, of whose mappings something may be known from before.
    ///
    /// # Errors
    /// It is gone, or may not be looked at.
    pub(crate) fn of(process: &Process, before: (Option<&Before>, bool)) -> Result<Self> {
        let (process, memory) = (process.clone(), Memory::open(process)?);
        let looked = Looked::at(&process, &memory, before)?;
        let region = Region::find(&memory, &looked.vmas);
        // Both are remembered.
        memory.note_began(looked.first.starttime);
        let _ = own_task(process.pid());
        Ok(Self { process, memory, region, looked })
    }
}

/// Looks at all, some abreast.
#[inline(never)]
pub(crate) fn see(all: &Forest, before: &Before) -> Vec<Result<Seen>> {
    let of = |it: &Frozen| (it.process().clone(), all.is_childless(it.pid));
    let processes: Vec<_> = all.processes.iter().map(of).collect();
    abreast::each(&processes, 1, |(process, is_childless)| {
        Seen::of(process, (Some(before), *is_childless))
    })
}

/// Takes over the payload, or injects one, and what was seen of the process if it is still so; None when a thread of the program has its turn, which has to run for that to change.
/// What was claimed stays so, and can be claimed again.
#[inline(never)]
pub(crate) fn equip(
    request: &Demand,
    frozen: &mut Frozen,
    seen: Seen,
    executable: &[u8],
    whose: &Whose,
) -> Result<Option<(Equipped, Option<Looked>)>> {
    let pid = frozen.pid;
    let Seen { process, memory, region, looked } = seen;
    if frozen.is_halted() {
        frozen.leave_holes(&memory, &inject::hole()?)?;
    }
    if enter::is_stub(&process, Some(&looked.vmas)) {
        return Err(restarting(pid));
    }
    let (mut region, looked) = match region {
        Some(region) => match has_entered(frozen, &region)? {
            Homecoming::Before => (region, Some(looked)),
            // On its way it has unmapped what was the restorer's.
            Homecoming::Now => (region, None),
            Homecoming::Never => return Ok(None),
        },
        None => {
            // A process that may do less than we may is not told where we save it to.
            let is_told = whose.is_its() && !request.moves();
            let told = if is_told { &request.settings } else { &Settings::default() };
            // A checkpoint by `ckpt save` is one; the program was never asked to give a signal away for more of them.
            let config = inject::unsignalled(configuration(&process, told)?);
            // What a descendant needs of us it needs only while we are there.
            let executable = if pid == request.pid() { executable } else { &[] };
            let first = &mut frozen.threads[0];
            (inject::inject(first, &memory, &looked.vmas, &config, executable)?, None)
        }
    };
    frozen.attend(&memory, &region.desk(), region.base)?;
    let Some(task) = claim(request, pid, &region, &memory)? else { return Ok(None) };
    let orphans_leave = keeper::dismiss(frozen, &memory, &region)?;
    // For this checkpoint alone: only our copy of the configuration changes.
    let embed = &mut region.control.config.embed;
    *embed = request.settings.embed.unwrap_or(*embed);
    Ok(Some((Equipped { process, memory, region, orphans_leave, task }, looked)))
}

/// The same for a mere look, for which nobody has to be kept away: with the payload that is there, or none. Threads that
/// stand still are ready to be asked then; `frozen` may have none.
///
/// # Errors
/// It is just being restarted ([`Kind::Busy`]), or is gone.
pub(crate) fn glimpse(frozen: &mut Frozen) -> Result<Equipped> {
    let pid = frozen.pid;
    let process = frozen.process().clone();
    let memory = Memory::open(&process)?;
    let vmas = process.maps()?;
    if enter::is_stub(&process, Some(&vmas)) {
        return Err(restarting(pid));
    }
    let found = Region::find(&memory, &vmas).filter(|_| !frozen.threads.is_empty());
    let region = match found {
        Some(region) => match has_entered(frozen, &region)? {
            Homecoming::Never => return Err(restarting(pid)),
            _ => region,
        },
        None => Region::none(&process, configuration(&process, &Settings::default())?),
    };
    Ok(Equipped { process, memory, region, orphans_leave: false, task: own_task(pid) })
}

/// Whether the threads of a restarted process have entered their program.
enum Homecoming {
    /// All had.
    Before,
    /// Those of a stopped one have, as we told them to.
    Now,
    /// Some have not.
    Never,
}

/// Whether no thread obeys the restorer, whose phase ends before all have entered the program: its orders and stack are
/// in no image. Those of a program that was restarted as a stopped one would be there until SIGCONT.
fn has_entered(frozen: &mut Frozen, region: &Region) -> Result<Homecoming> {
    let leftover = region.control.leftover..region.control.leftover + region.control.leftover_len;
    let first = region.base + STACKS..region.base + STACKS + STACK_LEN;
    let obeys = |regs: &Regs| leftover.contains(&regs.rsp) || first.contains(&regs.rsp);
    if !frozen.threads.iter().any(|thread| obeys(&thread.regs)) {
        return Ok(Homecoming::Before);
    }
    let come = frozen.is_halted() && frozen.come_home(obeys)?;
    Ok(if come { Homecoming::Now } else { Homecoming::Never })
}

/// The configuration of a process that had none: its name comes from its own and its directory.
pub(crate) fn configuration(process: &Process, settings: &Settings) -> Result<Config> {
    let arguments = process.cmdline()?;
    let program = match arguments.first().filter(|a| !a.is_empty()) {
        // A login shell's name begins with a dash.
        Some(name) => {
            let name = name.as_bytes();
            std::ffi::OsStr::from_bytes(name.strip_prefix(b"-").unwrap_or(name)).to_owned()
        }
        None => process.name()?,
    };
    let cwd = process.cwd()?.path;
    let own = Name::parse(&settings::default_name(&program))?;
    let mut settings = settings.clone();
    // What is ckpt save's standard output now is nobody's later.
    settings.name = settings.name.filter(|name| *name != Name::Stream("-".into())).or(Some(own));
    let config = settings.resolve(&cwd)?.apply(settings::default_config());
    Ok(Config { run: settings::fresh_run(), begun: kinship::begun(process.pid()), ..config })
}

/// Waits while a launch or a restart of the process is going on: traced by us, ckpt could not become its program.
///
/// # Errors
/// It is stopped in it, or takes more than [`RESTART`].
pub(crate) fn await_restart(process: &Process) -> Result<()> {
    let pid = process.pid();
    let (opening, deadline) = (Instant::now() + CLOSED, Instant::now() + RESTART);
    while Instant::now() < opening && enter::is_closed(process) {
        std::thread::sleep(Duration::from_millis(1));
    }
    while enter::is_launching(process) {
        if Instant::now() > deadline {
            let text = format!("process {pid} is ckpt itself, which is no program to be saved");
            let hint = "if it is about to start one, try again in a moment";
            return Err(Error::new(text).of(Kind::Busy).hint(hint));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    while is_restarting(process) {
        if process.is_stopped() {
            let text = format!("process {pid} has been stopped since its restart");
            let hint = format!("let it go on first (kill -CONT {pid})");
            return Err(Error::new(text).hint(hint));
        }
        // Who stands for another stays as it is.
        if Instant::now() > deadline || enter::stands(process) {
            return Err(restarting(pid));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Waits until all memory of a process is there that was restarted with `--lazy`: its page tables do not tell what is
/// missing from what is zero.
///
/// # Errors
/// It takes more than [`MEMORY`]. What cannot be looked at is refused when it stands still.
pub(super) fn await_memory(process: &Process) -> Result<()> {
    let Ok(Some((_, region))) = Region::of(process) else { return Ok(()) };
    let Control { pager, .. } = region.control;
    // When it was started is not known: the program may have got another clock since. Others that have its number by now
    // are told by their name.
    let (pid, task) = (process.pid(), Task { pid: pager, start: 0 });
    let name = Process::glimpse(Pid::of_word(pager)).and_then(|pager| pager.name());
    let what = || format!("cannot wait for process {pager}, which brings the memory of {pid}");
    if pager == 0
        || name.is_ok_and(|name| name != "ckpt-assist")
        || turns::outlast(pid, task, MEMORY).because(what)?
    {
        return Ok(());
    }
    let text =
        format!("the memory of process {pid} is still being brought (--lazy), by process {pager}");
    let hint = "try again when that has ended, or end the program if it stands still";
    Err(Error::new(text).of(Kind::Busy).hint(hint))
}

/// Whether the process is a checkpoint, or has yet to leave the restorer.
pub(crate) fn is_restarting(process: &Process) -> bool {
    let Ok(found) = Region::of(process) else { return false };
    let turn = || found.and_then(|(memory, region)| region.turn(&memory).ok());
    enter::is_stub(process, None) || turn().is_some_and(|turn| turn.phase == Phase::Restoring)
}

/// Whether another checkpoint of a process is being taken, or a thread is about to ask for one.
pub(crate) fn is_busy(process: &Process) -> bool {
    let Ok(Some((memory, region))) = Region::of(process) else { return false };
    let Ok(turns) = region.turns(&memory) else { return false };
    let turn = Turn::of(turns.turn);
    turns.handlers != 0 || (turn.phase != Phase::Idle && turn.task.pid != std::process::id())
}

/// Why not now, while a restart of the process goes on.
pub(crate) fn restarting(pid: Pid) -> Error {
    Error::new(format!("process {pid} is just being restarted"))
        .of(Kind::Busy)
        .hint("try again in a moment")
}

/// Why not now, while another dumper works.
pub(crate) fn busy(pid: Pid, other: Task) -> Error {
    let other = other.pid;
    Error::new(format!("a checkpoint of process {pid} is already being taken, by process {other}"))
        .of(Kind::Busy)
        .hint("wait for it")
}

/// Makes the turn ours, every thread standing still; None when it may be in a moment.
fn claim(request: &Demand, pid: Pid, region: &Region, memory: &Memory) -> Result<Option<Task>> {
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

impl Equipped {
    /// Makes the turn ours again: the process may have run since it was equipped, and stands still again.
    pub(crate) fn claim_again(&self) -> Result<()> {
        let event = Event::Claim { by: By::Order, task: self.task, kept: false };
        match self.region.step(&self.memory, self.process.pid(), event)? {
            Ok(_) => Ok(()),
            Err(_) => Err(phase0_visit::turn_of_another(self.process.pid())),
        }
    }

    /// Tells the payload that its threads are about to be let go.
    pub(crate) fn leaves(&self) -> Result<()> {
        self.region.step(&self.memory, self.process.pid(), Event::Leave(self.task)).map(drop)
    }

    /// Tells the payload that all of its threads run; from now on a signal may end this dumper.
    pub(crate) fn has_left(&self) -> Result<()> {
        self.region.step(&self.memory, self.process.pid(), Event::Left(self.task)).map(drop)
    }

    /// The checkpoint of this number is whole: the next one has the next.
    pub(crate) fn sealed(&self, generation: u64) {
        let _ = self.region.set_generation(&self.memory, generation);
    }

    /// The dump is over, well or not: a caller of the C API gets its answer, and gives the payload
    /// free itself; else the next signal may start another. A process that is gone needs no word.
    pub(crate) fn finish(&self, error: Option<&Error>) {
        if self.region.turn(&self.memory).is_ok_and(|turn| turn.kept) {
            caller::answer(&self.memory, &self.region, error);
            reach(Point::Answered);
        }
        let _ = self.region.step(&self.memory, self.process.pid(), Event::End(self.task));
    }
}
