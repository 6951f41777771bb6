// SPDX-License-Identifier: LGPL-2.1-only
//! Taking a checkpoint: the phases, in running order.
//!
//! Phases 0 to 3, 5 and the end are those of each process; the image, its name and the refusal are the checkpoint's.
//! [`phase0_visit`] → [`phase1_freeze`] → [`phase2_equip`] → [`phase3_gather`] → [`phase4_refuse`] →
//! [`phase5_snapshot`] → [`phase6_write`] → [`phase7_seal`]. Until the image is sealed nothing of
//! the program has changed (but for a payload that was injected), and whatever fails gives it back
//! as it was.

pub mod caller;
pub mod checkpoint;
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
use crate::resource::Common;
use crate::settings::server::Transfer;
use crate::settings::{Name, Settings};
use checkpoint::Checkpoint;
use ckpt_abi::turn::{By, Phase, Turn};
use phase2_equip::Equipped;
use phase5_snapshot::Pictured;
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
pub struct Demand {
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

impl Demand {
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
    /// What else there is to say.
    pub notes: Vec<String>,
    /// Why the checkpoint is in the fallback file.
    pub diverted: Option<String>,
}

impl Outcome {
    /// All that is to be said of it on standard error.
    pub fn sentences(&self) -> impl Iterator<Item = String> {
        let losses = self.losses.iter().map(|loss| format!("not saved: {loss}"));
        let name = self.name.display();
        let diverted = self.diverted.iter();
        let diverted = diverted.map(move |why| format!("{why}; saved to {name} instead"));
        losses.chain(self.notes.iter().cloned()).chain(diverted)
    }
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
pub fn dump(request: &Demand) -> Result<Outcome> {
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

fn take(request: &Demand) -> Result<Outcome> {
    reach(Point::Begun);
    let processes = phase1_freeze::processes(request);
    let executable = stub::own()?;
    let ready = processes.iter().try_for_each(|pid| look(request, *pid));
    let begun = ready.and_then(|()| begin(request, &processes, &executable));
    if let Err(e) = &begun {
        processes.iter().for_each(|pid| phase0_visit::leave(*pid, e));
    }
    let Begun { mut checkpoint, equipped, frozen } = begun?;
    let result = proceed(&checkpoint, &equipped, frozen, executable);
    let result = match result {
        // By now the file is known as one that is being written.
        Err(e) if e.kind() == Kind::Changed => anew(&checkpoint, &equipped),
        result => result,
    };
    let result = match (result, checkpoint.place.fallback()) {
        (Err(e), Some(file)) => {
            checkpoint.place.name = file;
            divert(&checkpoint, &equipped, e)
        }
        (result, _) => result,
    };
    reach(Point::Ending);
    equipped.iter().for_each(|process| process.finish(result.as_ref().err()));
    result
}

/// Looks at a process before anything of it is touched.
fn look(request: &Demand, pid: i32) -> Result<()> {
    phase1_freeze::check(pid)?;
    phase4_refuse::refuse_shared(pid)?;
    match request.triggered || request.periodic {
        true => Ok(()),
        false => phase2_equip::await_restart(pid),
    }
}

/// Takes the checkpoint anew for the fallback file: what the server got of the first is lost.
fn divert(checkpoint: &Checkpoint<'_>, equipped: &[Equipped], error: Error) -> Result<Outcome> {
    match anew(checkpoint, equipped) {
        Ok(outcome) => Ok(Outcome { diverted: Some(error.to_string()), ..outcome }),
        Err(second) if second == error => Err(error),
        Err(second) => Err(error.hint(format!("nor did the fallback work: {second}"))),
    }
}

/// Takes the checkpoint once more.
fn anew(checkpoint: &Checkpoint<'_>, equipped: &[Equipped]) -> Result<Outcome> {
    let mut frozen = Vec::new();
    for process in equipped {
        frozen.push(phase1_freeze::freeze(checkpoint.request, process.process.pid())?);
    }
    for process in equipped {
        process.claim_again()?;
    }
    proceed(checkpoint, equipped, frozen, stub::own()?)
}

/// A checkpoint whose processes stand still and have payloads that are ours; in the order of the image.
struct Begun<'a> {
    checkpoint: Checkpoint<'a>,
    equipped: Vec<Equipped>,
    frozen: Vec<Frozen>,
}

fn begin<'a>(request: &'a Demand, processes: &[i32], executable: &[u8]) -> Result<Begun<'a>> {
    let whose = place::Whose::of(request.pid, request.settings.name.is_some())?;
    let deadline = Instant::now() + TURN;
    loop {
        for pid in processes {
            phase0_visit::visit(request, *pid)?;
        }
        let mut frozen = Vec::new();
        for pid in processes {
            frozen.push(phase1_freeze::freeze(request, *pid)?);
        }
        reach(Point::Frozen);
        if phase0_visit::held(request, &mut frozen)? {
            continue;
        }
        let mut equipped = Vec::new();
        for process in &mut frozen {
            equipped.extend(phase2_equip::equip(request, process, executable, &whose)?);
        }
        if let Some(first) = equipped.first().filter(|_| equipped.len() == processes.len()) {
            let checkpoint = Checkpoint::of(request, whose, first)?;
            reach(Point::Claimed);
            return Ok(Begun { checkpoint, equipped, frozen });
        }
        frozen.into_iter().for_each(Frozen::thaw);
        if request.periodic || Instant::now() > deadline {
            return Err(phase0_visit::turn_of_another(request.pid));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn proceed(
    checkpoint: &Checkpoint<'_>,
    equipped: &[Equipped],
    frozen: Vec<Frozen>,
    executable: Vec<u8>,
) -> Result<Outcome> {
    let (place, stop) = (&checkpoint.place, checkpoint.stop);
    let start = frozen.iter().map(Frozen::since).min().unwrap_or_else(Instant::now);
    let mut sink = place.open(checkpoint.request.open)?;
    reach(Point::Opened);
    let (mut common, mut still) = (Common::default(), Vec::new());
    for ((number, process), frozen) in (0..).zip(equipped).zip(frozen) {
        still.push(phase3_gather::gather(checkpoint, number, process, frozen, &mut common)?);
    }
    reach(Point::Gathered);
    let notes = checkpoint.notes(&still, &mut common);
    phase4_refuse::refuse(&mut still)?;

    let runs = checkpoint.runs(equipped);
    let mut writing = phase6_write::Writing::begin(&mut *sink, executable, common, runs);
    for process in &mut still {
        writing.at_once(process, stop)?;
    }
    place.touch(|| writing.streams())??;
    if !stop {
        reach(Point::Shared);
    }
    let mut pictured = Vec::new();
    for process in still {
        pictured.push(phase5_snapshot::take(process, !stop)?);
    }
    reach(Point::Pictured);
    for process in &mut pictured {
        process.thaw()?;
    }
    let mut pause = start.elapsed();
    for process in &mut pictured {
        writing.rest(process)?;
    }
    reach(Point::Written);

    if checkpoint.request.periodic {
        phase7_seal::still_wanted(&equipped[0].process)?;
    }
    let (held, gathered): (Vec<_>, _) = pictured.into_iter().map(Pictured::take_apart).unzip();
    let (bytes, losses) = phase7_seal::seal(writing, gathered)?;
    reach(Point::Sealed);
    checkpoint.sealed(equipped);
    for (process, frozen) in equipped.iter().zip(held) {
        let Some(frozen) = frozen else { continue };
        if stop {
            phase7_seal::end(frozen, process)?;
        } else {
            frozen.thaw();
        }
        pause = start.elapsed();
    }
    let name = place.name.clone();
    Ok(Outcome { name, bytes, pause, stopped: stop, losses, notes, diverted: None })
}
