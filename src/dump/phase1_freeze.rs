// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 1: stop every thread of every process of the checkpoint.

use super::Demand;
use crate::error::{Error, Kind, Result};
use crate::inject::region::Region;
use crate::proc::tree::Kin;
use crate::proc::{self, Pid, Process, Tid, forebear};
use crate::ptrace::forest::{self, Evidence, Forest, IsHeir, Listed};
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use crate::ptrace::{sandbox, seize};
use crate::resource::descriptor::fanotify;
use crate::settings::{Settings, Without};
use ckpt_abi::region::Control;
use std::time::{Duration, Instant};

/// How long the payload may take to allow us to trace it, after it has started us, and another
/// ckpt to have done with the process.
const PERMISSION: Duration = Duration::from_secs(2);

/// The processes of the checkpoint, the first of which may be touched.
///
/// # Errors
/// Those of [`check`] and [`listed`].
#[inline(never)]
pub(crate) fn members(request: &Demand) -> Result<Vec<Kin>> {
    is_program(&request.process)?;
    listed(request).map(|listed| listed.members)
}

/// Freezes the processes of the checkpoint, the one that is asked for first: these [`members`], and who comes to them.
pub(crate) fn freeze(request: &Demand, members: &[Kin]) -> Result<Forest> {
    let (alone, without) = left_out(request);
    let heirs = Heirs::of(&request.process);
    untouchable(&request.process)?;
    if !alone {
        // Some could not even bear a stop: the kernel makes calls in their names behind it (restart_syscall(2)).
        let opener = sandbox::is_opener();
        let members = members.iter().filter(|kin| kin.pid != request.pid());
        for kin in members {
            let closed = Process::open(kin.pid).and_then(|it| match opener {
                true => fanotify::refuse(&it),
                false => untouchable(&it),
            });
            closed.or_else(|e| if e.kind() == Kind::Obstacles { Err(e) } else { Ok(()) })?;
        }
    }
    patiently(request.triggered, || match alone {
        true => Frozen::freeze(&request.process).map(Forest::of),
        false => {
            let are_heirs = |pid| heirs.are(pid);
            let evidence = heirs.evidence(&are_heirs);
            let mut forest = Forest::freeze(&request.process, &without, &evidence)?;
            let descendants = forest.processes.iter_mut();
            let refused: Vec<_> = descendants
                .filter_map(|frozen| check_frozen(frozen).err())
                .map(|e| e.to_string())
                .collect();
            match refused.is_empty() {
                true => Ok(forest),
                false => Err(Error::new(refused.join("; ")).of(Kind::Obstacles)),
            }
        }
    })
}

/// The processes of the checkpoint, none of which stands still.
///
/// # Errors
/// /proc cannot be read, or the first is gone.
pub(super) fn listed(request: &Demand) -> Result<Listed> {
    let (alone, without) = left_out(request);
    if alone {
        let members = vec![proc::tree::kin(request.pid())?];
        return Ok(Listed { members, ..Listed::default() });
    }
    let heirs = Heirs::of(&request.process);
    forest::listed(request.pid(), &without, &heirs.evidence(&|pid| heirs.are(pid)))
}

/// Forks of a process, and their forks, have its payload until they execute another program, whoever is their parent.
struct Heirs(Option<([Pid; 2], Region)>);

impl Heirs {
    /// Of the process that the payload was configured for: a fork of that may have other forks of it beside itself.
    fn of(root: &Process) -> Self {
        let found = Region::of(root).ok().flatten();
        Self(found.and_then(|(_, region)| Some((region.begun(root)?, region))))
    }

    fn evidence<'a>(&self, is_heir: &'a IsHeir<'a>) -> Evidence<'a> {
        Evidence { is_heir, begun: self.0.map(|(begun, _)| begun) }
    }

    fn are(&self, pid: Pid) -> bool {
        let Some((_, Region { base, control })) = &self.0 else { return false };
        let opened = Process::glimpse(pid).and_then(|it| Memory::open(&it));
        let there = opened.and_then(|memory| memory.get::<Control>(*base));
        there.is_ok_and(|there| {
            there.magic == control.magic && there.config.run == control.config.run
        })
    }
}

/// Whether all descendants stay out, and which, as is asked for now or as the process is configured.
fn left_out(request: &Demand) -> (bool, Without) {
    let configured = || {
        let (_, region) = Region::of(&request.process).ok()??;
        Settings::from_config(&region.control.config).ok()
    };
    let Settings { alone, without, .. } =
        request.settings.clone().or(configured().unwrap_or_default());
    (alone.unwrap_or(false), without.unwrap_or_default())
}

/// Tries again while another ckpt traces the process (the monitor's dumper does for some
/// milliseconds each period), and where `allowed_late`: under Yama the thread that started us names
/// us as tracer only once it knows our id.
pub(crate) fn patiently<T>(allowed_late: bool, freeze: impl Fn() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PERMISSION;
    let may_pass =
        |e: &Error| e.kind() == Kind::Busy || (allowed_late && e.kind() == Kind::NotPermitted);
    loop {
        match freeze() {
            Err(e) if Instant::now() < deadline && may_pass(&e) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

/// [`check`] of one that stands still.
fn check_frozen(frozen: &mut Frozen) -> Result<()> {
    frozen.open_sandbox()
}

/// Refuses what must not even be touched.
pub(crate) fn check(process: &Process) -> Result<()> {
    is_program(process)?;
    untouchable(process)
}

/// Refuses what cannot be saved whatever it does.
pub(super) fn is_program(process: &Process) -> Result<()> {
    if process.pid() == Pid::own() {
        return Err(Error::new("ckpt cannot save itself"));
    }
    proc::of_this_namespace()?;
    alive(process)
}

/// Refuses whom a stop itself could harm, or others: before each stop, for it takes a look at all descriptors.
pub(super) fn untouchable(process: &Process) -> Result<()> {
    sandbox::refuse_closed(process)?;
    fanotify::refuse(process)
}

/// How long the threads of a process that ends may take.
const ENDING: Duration = Duration::from_millis(200);

/// Refuses what is no program that could go on.
pub(super) fn alive(process: &Process) -> Result<()> {
    let pid = process.pid();
    let mut status = process.main_status()?;
    // Of a process that ends, the main thread may be the first to be gone.
    let deadline = Instant::now() + ENDING;
    while status.state == 'Z'
        && status.threads > 1
        && process.is_ending()
        && Instant::now() < deadline
    {
        std::thread::sleep(ENDING / 100);
        status = process.main_status()?;
    }
    let name = status.name.display();
    match status.state {
        'Z' if status.threads > 1 => Ok(()),
        'Z' | 'X' => Err(Error::new(format!(
            "process {pid} ({name}) has ended: it is a zombie, for which its parent {} has not waited yet",
            status.ppid
        ))
        .of(Kind::Obstacles)
        .hint("there is nothing left to save")),
        _ if process.is_kernels() => {
            Err(Error::new(format!("process {pid} ({name}) is a thread of the kernel, not a program"))
                .of(Kind::Obstacles)
                .hint("nothing of it can be saved"))
        }
        _ => Ok(()),
    }
}

/// All that is in the way of saving a process, as far as it can be seen without touching it; nothing if it is gone.
pub(super) fn outside(process: &Process) -> Vec<Error> {
    let Ok(status) = process.main_status() else { return Vec::new() };
    if let Err(e) = alive(process) {
        return vec![e];
    }
    let mut all = Vec::from_iter(untouchable(process).err());
    if status.tracer != Tid::NONE && status.tracer != forebear::tracer() {
        all.push(seize::traced(process.pid(), status.tracer));
    }
    all.extend(Memory::open(process).err());
    all.retain(|e| !matches!(e.kind(), Kind::Gone | Kind::Busy));
    all
}
