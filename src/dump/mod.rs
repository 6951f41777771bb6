// SPDX-License-Identifier: LGPL-2.1-only
//! Taking a checkpoint: the phases, in running order.
//!
//! Phases 0 to 3, 5 and the end are those of each process; the image, its name and the refusal are the checkpoint's.
//! [`phase0_visit`] → [`phase1_freeze`] → [`phase2_equip`] → [`phase3_gather`] → [`phase4_refuse`] →
//! [`phase5_snapshot`] → [`phase6_write`] → [`phase7_seal`]. Until the image is sealed nothing of
//! the program has changed (but for a payload that was injected), and whatever fails gives it back
//! as it was.

pub(crate) mod caller;
pub(crate) mod checkpoint;
pub(crate) mod excluded;
pub(crate) mod halted;
mod held;
mod keeper;
pub(crate) mod late;
mod pages;
mod pageset;
pub(crate) mod phase0_visit;
pub(crate) mod phase1_freeze;
pub(crate) mod phase2_equip;
pub(crate) mod phase3_gather;
pub(crate) mod phase4_refuse;
pub(crate) mod phase5_snapshot;
pub(crate) mod phase6_write;
pub(crate) mod phase7_seal;
pub(crate) mod place;
mod reader;
pub(crate) mod rolling;
mod sharers;
mod stream;
pub(crate) mod survey;

use crate::error::{Error, Kind, Result};
use crate::fault::{Point, reach};
use crate::image::older::{Over, Renewal};
use crate::image::sink::Sink;
use crate::image::{PAGE, stub};
use crate::inject::enter::Standing;
use crate::inject::last;
use crate::proc::{Pid, Process};
use crate::progress::Screen;
use crate::ptrace::forest::Forest;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use crate::resource::cpu;
use crate::resource::descriptor::{pty::screen::Outer, socket};
use crate::resource::looked::Looked;
use crate::settings::server::Transfer;
use crate::settings::{Name, Settings};
use checkpoint::Checkpoint;
use ckpt_abi::turn::By;
use phase2_equip::{Equipped, Seen};
use phase5_snapshot::Pictured;
use phase6_write::Writing;
use rolling::Rolling;
use std::cell::RefCell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often a checkpoint is begun anew when something has changed under it.
const AGAIN: usize = 3;

/// How long the processes go on between two attempts at most.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// How long they do at first, when something is in the way that goes by itself.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// How long threads of the program may have their turn.
const TURN: Duration = Duration::from_secs(2);

/// Makes the sink for a name. It is called while the target stands still, and must not wait for a
/// network.
/// The bytes are the environment of a command, NAME=VALUE with a null byte behind each.
pub(crate) type Open = fn(&Name, &Transfer, Option<Renewal>, &[u8]) -> Result<Box<dyn Sink>>;

/// Deletes what is older than wanted of a counted name, now that the checkpoint of that name is whole.
pub(crate) type Prune = fn(&Name, &Transfer, &place::Keep);

/// Says a sentence.
pub(crate) type Tell = Box<dyn Fn(&str) + Send + Sync>;

/// Hears of an outcome.
pub(crate) type Ending = Box<dyn Fn(&Outcome) + Send + Sync>;

/// What is asked of a dump.
pub(crate) struct Demand {
    /// The process, opened when it was named: whatever is looked at later is of this one.
    pub process: Process,
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
    /// Where is shown how far it is. On the program's own screen it is so of a checkpoint that ends it.
    pub screen: Option<Screen>,
    /// Says what there is to say of a checkpoint that ends the program, before it does: with the first process of a
    /// container we end, too. Without it the outcome has it.
    pub tell: Option<Tell>,
    /// Hears of a checkpoint that ends the program, before it does.
    pub ending: Option<Ending>,
    /// Is asked before anybody ends whether they may still; and called when all that are to end run nothing of their own
    /// any more, with how long they stood still.
    pub ended: Option<phase7_seal::Ended>,
    /// What is known of earlier checkpoints of the process: of those that the monitor takes.
    pub rolling: Option<RefCell<Rolling>>,
}

impl Demand {
    /// The process's id.
    pub(crate) fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Whether it is for another machine: what it is called there is no name of a checkpoint here.
    fn moves(&self) -> bool {
        self.rolling.as_ref().is_some_and(|known| known.borrow().moves)
    }

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
pub(crate) struct Outcome {
    /// The checkpoint.
    pub name: PathBuf,
    /// Its number in the chain of checkpoints.
    pub number: u64,
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
    /// Says what there is to say before the program ends, if it can be said here.
    fn tell(&mut self, request: &Demand) {
        if let Some(tell) = &request.tell {
            self.sentences().for_each(|sentence| tell(&sentence));
            (self.losses, self.notes) = (Vec::new(), Vec::new());
        }
        request.ending.iter().for_each(|hears| hears(self));
    }

    /// All that is to be said of it on standard error.
    pub(crate) fn sentences(&self) -> impl Iterator<Item = String> {
        let losses = self.losses.iter().map(|loss| format!("not saved: {loss}"));
        let name = self.name.display();
        let diverted = self.diverted.iter();
        let diverted = diverted.map(move |why| format!("{why}; saved to {name} instead"));
        losses.chain(self.notes.iter().cloned()).chain(diverted)
    }
}

/// Takes a checkpoint.
///
/// # Errors
/// Why there is none; the program goes on, unless it has ended ([`Kind::Gone`]).
pub(crate) fn dump(request: &Demand) -> Result<Outcome> {
    let pid = request.pid();
    phase1_freeze::alive(&request.process)?;
    take(request).map_err(|e| match e.kind() {
        // Whatever failed first: a process that ends takes everything away.
        kind if kind != Kind::Gone && request.process.is_ending() => {
            let text = format!("process {pid} is gone: it has ended before it was saved");
            Error::new(text).of(Kind::Gone)
        }
        _ => e,
    })
}

fn take(request: &Demand) -> Result<Outcome> {
    reach(Point::Begun);
    // What we need beside the program shall not cost the program its life.
    Process::own()?.ends_first();
    // Before anybody stands still, as that takes long.
    let executable = stub::own()?;
    let front = stub::in_front(&executable);
    let _ = (cpu::leaves(), keeper::init_reaps(request.pid()));
    let start = (front.len() as u64).next_multiple_of(PAGE);
    let over = request.rolling.as_ref().and_then(|known| {
        let whose = place::Whose::of(&request.process, false).ok()?;
        held::prepare(&mut known.borrow_mut(), &request.process);
        whose.touch(|| known.borrow_mut().prepare(start)).ok()?
    });
    if request.triggered && halted::is_forebears(&request.process) {
        let text = "the checkpoint of the process that it was forked from holds it";
        let error = Error::new(text).of(Kind::Superseded);
        phase0_visit::leave(&request.process, &error);
        return Err(error);
    }
    let begun = look(request).and_then(|()| begin(request, &executable));
    let begun = begun.map_err(|e| match e.kind() {
        Kind::Obstacles | Kind::NotPermitted => survey::completed(request, e),
        _ => e,
    });
    if let Err(e) = &begun {
        if request.triggered {
            halted::rescue(&request.process);
        }
        if !request.moves() {
            last::note_failure(&request.process, e);
        }
        phase0_visit::leave(&request.process, e);
    }
    let Entered { mut checkpoint, mut equipped, still, looked } = begun?;
    let mut result = proceed(&checkpoint, &equipped, (still, looked), (front, over));
    let mut again = if request.moves() { 0 } else { AGAIN };
    let (mut pause, deadline) = (FIRST_PAUSE, Instant::now() + TURN);
    loop {
        match &result {
            Err(e) if e.kind() == Kind::Passing && Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause *= 2;
            }
            // By now the file is known as one that is being written.
            Err(e) if again > 0 && (e.kind() == Kind::Changed || is_thinned(&equipped)) => {
                again -= 1
            }
            _ => break,
        }
        result = anew(&checkpoint, &mut equipped);
    }
    let result = match (result, checkpoint.place.fallback()) {
        (Err(e), Some(file)) => {
            checkpoint.place.name = file;
            divert(&checkpoint, &mut equipped, e)
        }
        (result, _) => result,
    };
    reach(Point::Ending);
    if let Some(first) = equipped.first() {
        let told = result
            .as_ref()
            .map(|outcome| [outcome.bytes, outcome.pause.as_micros() as u64, outcome.number]);
        // Who was ended has nothing to be noted in, and what is on its way to another machine is no checkpoint here.
        if !request.moves() && !result.as_ref().is_ok_and(|outcome| outcome.stopped) {
            last::note(&first.memory, first.region.base, told);
        }
    }
    equipped.iter().for_each(|process| process.finish(result.as_ref().err()));
    result
}

/// Whether a process of the job has ended, or is about to.
fn is_thinned(equipped: &[Equipped]) -> bool {
    equipped.iter().skip(1).any(|process| process.process.is_ending())
}

/// Looks at a process before anything of it is touched.
fn look(request: &Demand) -> Result<()> {
    let process = &request.process;
    phase1_freeze::is_program(process)?;
    phase4_refuse::refuse_shared(process)?;
    match request.triggered || request.periodic {
        true => Ok(()),
        false => {
            phase2_equip::await_restart(process).and_then(|()| Memory::open(process).map(drop))
        }
    }
}

/// Takes the checkpoint anew for the fallback file: what the server got of the first is lost.
fn divert(
    checkpoint: &Checkpoint<'_>,
    equipped: &mut Vec<Equipped>,
    error: Error,
) -> Result<Outcome> {
    match anew(checkpoint, equipped) {
        Ok(outcome) => Ok(Outcome { diverted: Some(error.to_string()), ..outcome }),
        Err(second) if second == error => Err(error),
        Err(second) => Err(error.hint(format!("nor did the fallback work: {second}"))),
    }
}

/// Takes the checkpoint once more.
fn anew(checkpoint: &Checkpoint<'_>, equipped: &mut Vec<Equipped>) -> Result<Outcome> {
    let request = checkpoint.request;
    let executable = stub::own()?;
    let front = stub::in_front(&executable);
    let members = phase1_freeze::members(request)?;
    let mut still = phase1_freeze::freeze(request, &members)?;
    let mut before = std::mem::take(equipped);
    for frozen in &mut still.processes {
        let known = before.iter().position(|process| process.process.pid() == frozen.pid);
        let process = match known.map(|index| before.swap_remove(index)) {
            Some(process) => process.claim_again().map(|()| process)?,
            None => {
                let (seen, whose) =
                    (Seen::of(frozen.process(), (None, false))?, &checkpoint.place.whose);
                phase2_equip::equip(request, frozen, seen, &executable, whose)?
                    .ok_or_else(|| phase0_visit::turn_of_another(frozen.pid))?
                    .0
            }
        };
        equipped.push(process);
    }
    let looked = equipped.iter().map(|_| None).collect();
    proceed(checkpoint, equipped, (still, looked), (front, None))
}

/// A checkpoint whose processes stand still and have payloads that are ours.
struct Entered<'a> {
    checkpoint: Checkpoint<'a>,
    equipped: Vec<Equipped>,
    still: Forest,
    /// What was seen of the processes since they stand still, where it is still so.
    looked: Vec<Option<Looked>>,
}

fn begin<'a>(request: &'a Demand, executable: &[u8]) -> Result<Entered<'a>> {
    let whose = place::Whose::of(&request.process, request.settings.name.is_some())?;
    let deadline = Instant::now() + TURN;
    let mut pause = Duration::from_millis(1);
    checkpoint::foresee(request);
    let foreseen = place::foresee(request, &whose);
    loop {
        phase0_visit::visit(request)?;
        let members = phase1_freeze::members(request)?;
        for member in &members {
            Process::glimpse(member.pid).map_or(Ok(()), |it| phase2_equip::await_memory(&it))?;
        }
        let before =
            Rolling::before(request.rolling.as_ref(), request.stop == Some(true), &members);
        let mut still = phase1_freeze::freeze(request, &members)?;
        reach(Point::Frozen);
        let seen = phase2_equip::see(&still, &before);
        drop(before);
        if phase0_visit::held(request, &mut still.processes, &seen)? {
            continue;
        }
        let (mut equipped, mut looked, mut busy) = (Vec::new(), Vec::new(), None);
        for (frozen, seen) in still.processes.iter_mut().zip(seen) {
            let equip = |seen| phase2_equip::equip(request, frozen, seen, executable, &whose);
            match seen.and_then(equip) {
                Ok(found) => {
                    let (process, seen) = found.unzip();
                    equipped.extend(process);
                    looked.extend(seen);
                }
                // Somebody has killed it where it stood.
                Err(_) if frozen.pid != request.pid() && frozen.process().is_ending() => break,
                // A signal to a whole group has come to it, too; or its restart has gone on since it was looked at.
                Err(e)
                    if e.kind() == Kind::Busy
                        && (frozen.pid != request.pid()
                            || phase2_equip::is_restarting(frozen.process())) =>
                {
                    busy = Some(e);
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        let is_settled = |equipped: &[Equipped]| {
            equipped.len() == still.processes.len()
                && !(request.triggered
                    && Instant::now() < deadline
                    && halted::has_yet_to_come(equipped, &still.processes))
        };
        if let Some(first) = equipped.first().filter(|_| is_settled(&equipped)) {
            let checkpoint = Checkpoint::of(request, (whose, foreseen), first)?;
            reach(Point::Claimed);
            if request.triggered {
                halted::release(&equipped, &mut still.processes)?;
            }
            return Ok(Entered { checkpoint, equipped, still, looked });
        }
        equipped.iter().skip(1).for_each(|process| process.finish(None));
        still.thaw();
        if request.periodic || Instant::now() > deadline {
            return Err(busy.unwrap_or_else(|| phase0_visit::turn_of_another(request.pid())));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn proceed(
    checkpoint: &Checkpoint<'_>,
    equipped: &[Equipped],
    (forest, looked): (Forest, Vec<Option<Looked>>),
    (front, over): (Vec<u8>, Option<Over>),
) -> Result<Outcome> {
    let left_out = phase4_refuse::left_out(checkpoint.request, &forest, equipped, &looked)?;
    let doubtful = phase4_refuse::doubtful(&forest, equipped)?;
    let Forest { processes, dead, since, .. } = forest;
    let (place, stop) = (&checkpoint.place, checkpoint.stop);
    let rolling = checkpoint.rolling(equipped);
    let renewal = rolling.map(|known| known.borrow_mut().renewal(over));
    let mut sink = place.open(checkpoint.request.open, renewal)?;
    reach(Point::Opened);
    let (mut still, mut common) = phase3_gather::gather_all(
        checkpoint.generation,
        equipped,
        (processes, looked),
        (&dead, stop, checkpoint.keeps == Some(true)),
        false,
    )?;
    reach(Point::Gathered);
    common.members = phase4_refuse::refuse(&mut still, &dead, common.tables.ptys())?;
    let first = &equipped[0];
    let known = checkpoint.request.triggered && first.region.control.by_terminal != 0;
    let screen = Outer::look(&first.process, &common.tables, &common.members, known);
    common.screen = screen.as_ref().map(|seen| seen.record);
    // Who goes on may have the same ones.
    let ends_all = stop && left_out.is_none();
    let connections = if ends_all { socket::connections(&common.tables) } else { Vec::new() };
    common.losses.extend(left_out.into_iter().chain(doubtful));
    if checkpoint.strict && late::any(&still, &common) {
        return Err(phase4_refuse::strictly(&late::losses(still, common).sentences));
    }
    let notes = checkpoint.notes(&still, &common.members);
    let shown = checkpoint.shown(equipped, &common);
    let runs = checkpoint.runs(equipped);
    let mut writing = Writing::begin(place.image(&mut *sink, front)?, common, runs, stop);
    if stop {
        writing.may_wait();
    }
    let (pictured, mut pause) = pages::write(checkpoint, still, &mut writing, (rolling, since))?;

    if checkpoint.request.periodic {
        phase7_seal::still_wanted(&equipped[0].process)?;
    }
    let pids: Vec<_> = equipped.iter().map(|process| process.process.pid()).collect();
    writing.look_outside(pids.iter().copied().collect());
    let (held, mut gathered): (Vec<_>, Vec<_>) =
        pictured.into_iter().map(Pictured::take_apart).unzip();
    // The connections hear nothing from here to the end of their program.
    if stop && checkpoint.keeps == Some(true) {
        writing.settle();
    }
    // Dropped before whoever stands still goes on.
    let keeping = stop.then(|| socket::keep(&mut gathered, &pids)).flatten();
    let seal = || phase7_seal::seal(writing, gathered, checkpoint.strict);
    let (bytes, losses) = Rolling::meanwhile((rolling, stop), &equipped[0].process, seal)?;
    Rolling::settle(rolling, &mut *sink, checkpoint.generation)?;
    drop(shown);
    reach(Point::Sealed);
    checkpoint.sealed(equipped);
    let (name, number) = (place.shown(), checkpoint.generation);
    let mut outcome =
        Outcome { name, number, bytes, pause, stopped: stop, losses, notes, diverted: None };
    if stop {
        checkpoint.request.ended.iter().try_for_each(|ended| ended(None))?;
        outcome.tell(checkpoint.request);
        // Some ended and others not would be neither the job nor its checkpoint.
        held.iter().flatten().for_each(Frozen::end_with_us);
        keeping.into_iter().for_each(socket::Keeping::hold);
        connections.into_iter().for_each(socket::end_at_once);
        // Before whoever waits for its end has the terminal again.
        screen.iter().for_each(Outer::calm);
    }
    let standing = stop.then(|| Standing::of(&equipped[0].process));
    for (process, frozen) in equipped.iter().zip(held).rev() {
        let Some(frozen) = frozen else { continue };
        if stop {
            // The image has its name, and is not to be followed by one of those that are left.
            let ended = phase7_seal::end(frozen, process, checkpoint.request, since);
            outcome.notes.extend(ended.err().map(|e| e.to_string()));
        } else {
            frozen.thaw();
        }
        pause = since.elapsed();
    }
    standing.iter().for_each(Standing::go_on);
    Ok(Outcome { pause, ..outcome })
}
