// SPDX-License-Identifier: LGPL-2.1-only
//! Taking a checkpoint: the phases, in running order.
//!
//! [`phase0_visit`] → [`phase1_freeze`] → [`phase2_equip`] → [`phase3_gather`] → [`phase4_refuse`] →
//! [`phase5_snapshot`] → [`phase6_write`] → [`phase7_seal`]. Until the image is sealed nothing of
//! the program has changed (but for a payload that was injected), and whatever fails gives it back
//! as it was.

pub mod caller;
pub mod excluded;
mod keeper;
pub mod phase0_visit;
pub mod phase1_freeze;
pub mod phase2_equip;
pub mod phase3_gather;
pub mod phase4_refuse;
pub mod phase5_snapshot;
pub mod phase6_write;
pub mod phase7_seal;
pub mod place;
mod sharers;
mod stream;

use crate::error::{Error, Kind, Result};
use crate::fault::{Point, reach};
use crate::image::stub;
use crate::image::write::Sink;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use crate::resource::signals;
use crate::settings::server::Transfer;
use crate::settings::{Name, Settings};
use ckpt_abi::turn::{By, Phase, Turn};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long threads of the program may have their turn.
const TURN: Duration = Duration::from_secs(2);

/// Makes the sink for a name. It is called while the target stands still, and must not wait for a
/// network.
pub type Open = fn(&Name, &Transfer) -> Result<Box<dyn Sink>>;

/// Deletes what is older than wanted of a counted name, now that the checkpoint of that name is whole.
pub type Prune = fn(&Name, &Transfer, &place::Keep);

/// What is asked of a dump.
pub struct Request {
    /// The process.
    pub pid: i32,
    /// Overrides of the process's configuration, for this checkpoint alone; a payload that has to
    /// be injected first is configured with them.
    pub settings: Settings,
    /// Whether the program ends (true), goes on (false), or does as it is configured (None).
    pub stop: Option<bool>,
    /// The payload waits for this dumper (it sent the signal).
    pub triggered: bool,
    /// The monitor asks: signals and orders go before, and nothing is sealed for a program that
    /// has ended meanwhile.
    pub periodic: bool,
    /// Where images go to.
    pub open: Open,
    /// And what becomes of older ones.
    pub prune: Prune,
}

impl Request {
    /// Who asks.
    fn by(&self) -> By {
        match (self.triggered, self.periodic) {
            (true, _) => By::Signal,
            (_, true) => By::Period,
            _ => By::Order,
        }
    }
}

/// What a dump did.
pub struct Outcome {
    /// The checkpoint.
    pub name: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// How long the program stood still.
    pub pause: Duration,
    /// Whether the program was ended.
    pub stopped: bool,
    /// What the image goes without.
    pub losses: Vec<String>,
    /// Why the checkpoint is in the fallback file.
    pub diverted: Option<String>,
}

/// Whether another checkpoint of a process is being taken, or a thread is about to ask for one.
pub fn is_busy(pid: i32) -> bool {
    let turns = Memory::open(pid).and_then(|memory| {
        let vmas = crate::proc::maps::read(pid)?;
        let region = crate::inject::region::Region::find(&memory, &vmas);
        region.map(|region| region.turns(&memory)).transpose()
    });
    let Ok(Some(turns)) = turns else { return false };
    let turn = Turn::of(turns.turn);
    turns.handlers != 0 || (turn.phase != Phase::Idle && turn.task.pid != std::process::id())
}

/// Takes a checkpoint.
///
/// # Errors
/// Why there is none; the program goes on, unless it has ended ([`Kind::Gone`]).
pub fn dump(request: &Request) -> Result<Outcome> {
    let pid = request.pid;
    take(request).map_err(|e| match e.kind() {
        // Whatever failed first: a process that ends takes everything away.
        kind if kind != Kind::Gone && crate::proc::has_ended(pid) => {
            let text = format!("process {pid} is gone: it has ended before it was saved");
            Error::new(text).of(Kind::Gone)
        }
        _ => e,
    })
}

fn take(request: &Request) -> Result<Outcome> {
    reach(Point::Begun);
    phase1_freeze::check(request.pid)?;
    let sharing = phase4_refuse::refuse_shared(request.pid);
    if let Err(e) = &sharing {
        phase0_visit::leave(request.pid, e);
    }
    sharing?;
    if !request.triggered && !request.periodic {
        phase2_equip::await_restart(request.pid)?;
    }
    let executable = stub::own()?;
    let whose = place::Whose::of(request.pid, request.settings.name.is_some());
    let begun = whose.and_then(|whose| begin(request, &executable, &whose));
    if let Err(e) = &begun {
        phase0_visit::leave(request.pid, e);
    }
    let Begun { frozen, memory, mut equipped } = begun?;
    let result = proceed(request, frozen, &memory, &mut equipped, executable);
    let result = match result {
        // By now the file is known as one that is being written.
        Err(e) if e.kind() == Kind::Changed => {
            let file = equipped.place.name.clone();
            anew(request, &memory, &mut equipped, file)
        }
        result => result,
    };
    let result = match (result, equipped.place.fallback()) {
        (Err(e), Some(file)) => divert(request, &memory, &mut equipped, file, e),
        (result, _) => result,
    };
    reach(Point::Ending);
    equipped.finish(&memory, request.pid, result.as_ref().err());
    result
}

/// Takes the checkpoint anew for the fallback file: what the server got of the first is lost.
fn divert(
    request: &Request,
    memory: &Memory,
    equipped: &mut phase2_equip::Equipped,
    file: PathBuf,
    error: Error,
) -> Result<Outcome> {
    match anew(request, memory, equipped, file) {
        Ok(outcome) => Ok(Outcome { diverted: Some(error.to_string()), ..outcome }),
        Err(second) if second == error => Err(error),
        Err(second) => Err(error.hint(format!("nor did the fallback work: {second}"))),
    }
}

/// Takes the checkpoint once more.
fn anew(
    request: &Request,
    memory: &Memory,
    equipped: &mut phase2_equip::Equipped,
    file: PathBuf,
) -> Result<Outcome> {
    let frozen = phase1_freeze::freeze(request)?;
    equipped.divert(memory, request.pid, file)?;
    proceed(request, frozen, memory, equipped, stub::own()?)
}

/// A frozen process whose payload is ours.
struct Begun {
    frozen: Frozen,
    memory: Memory,
    equipped: phase2_equip::Equipped,
}

fn begin(request: &Request, executable: &[u8], whose: &place::Whose) -> Result<Begun> {
    let deadline = Instant::now() + TURN;
    loop {
        phase0_visit::visit(request)?;
        let mut frozen = phase1_freeze::freeze(request)?;
        reach(Point::Frozen);
        if phase0_visit::held(request, &mut frozen)? {
            continue;
        }
        let memory = Memory::open(request.pid)?;
        let equipped =
            phase2_equip::equip(request, &mut frozen, &memory, executable, whose.clone())?;
        if let Some(equipped) = equipped {
            reach(Point::Claimed);
            return Ok(Begun { frozen, memory, equipped });
        }
        frozen.thaw();
        if request.periodic || Instant::now() > deadline {
            return Err(phase0_visit::turn_of_another(request.pid));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn proceed(
    request: &Request,
    mut frozen: Frozen,
    memory: &Memory,
    equipped: &mut phase2_equip::Equipped,
    executable: Vec<u8>,
) -> Result<Outcome> {
    let start = frozen.since();
    let mut sink = equipped.place.open(request.open)?;
    reach(Point::Opened);
    frozen.attend(memory, &equipped.region.desk(), equipped.region.base)?;
    let (mut gathered, areas) = phase3_gather::gather(&mut frozen, memory, equipped)?;
    reach(Point::Gathered);
    let areas = excluded::cut(areas, &caller::read(memory, &equipped.region)?.excluded);
    phase4_refuse::refuse(request.pid, &mut gathered)?;
    if equipped.stop {
        signals::forget_termination(&mut gathered);
    }
    let mut writing = phase6_write::Writing::begin(&mut *sink, executable, gathered);
    let stop = equipped.stop;
    let outcome = if stop {
        writing.pages(request.pid, memory, &areas)?;
        equipped.place.touch(|| writing.streams())??;
        None
    } else {
        writing.pages(request.pid, memory, areas.iter().filter(|a| a.at_once))?;
        equipped.place.touch(|| writing.streams())??;
        reach(Point::Shared);
        phase5_snapshot::take(&mut frozen, memory, equipped)?
    };
    reach(Point::Pictured);
    let mut pause = start.elapsed();
    let mut held = Some(frozen);
    match &outcome {
        Some(snapshot) => {
            equipped.leaves(memory, request.pid)?;
            reach(Point::Leaving);
            held.take().into_iter().for_each(Frozen::thaw);
            equipped.has_left(memory, request.pid)?;
            reach(Point::Thawed);
            pause = start.elapsed();
            let forked = areas.iter().filter(|a| !a.at_once);
            writing.pages(snapshot.pid(), &snapshot.memory()?, forked)?;
            writing.unchanged()?;
            writing.look_at_policies(snapshot.pid());
        }
        None if stop => writing.look_at_policies(request.pid),
        None => {
            writing.pages(request.pid, memory, areas.iter().filter(|a| !a.at_once))?;
            writing.look_at_policies(request.pid);
        }
    }
    reach(Point::Written);
    if request.periodic {
        phase7_seal::still_wanted(request.pid)?;
    }
    let (bytes, losses) = phase7_seal::seal(writing)?;
    reach(Point::Sealed);
    equipped.sealed(memory, request.prune);
    if let Some(frozen) = held {
        if stop {
            phase7_seal::end(frozen, equipped)?;
        }
        pause = start.elapsed();
    }
    let name = equipped.place.name.clone();
    Ok(Outcome { name, bytes, pause, stopped: stop, losses, diverted: None })
}
