// SPDX-License-Identifier: LGPL-2.1-only
//! What a checkpoint would meet, looked at without taking one: phases 1, 3 and 4, and nothing of it is kept.
//!
//! Who has a payload stands still for it as for a checkpoint, and is asked by it. Who has none is not touched at all, not
//! even stopped: a stop may cut a call short, and the rest of that can only be made in a payload (`ptrace/rest.rs`). What
//! only its threads can tell of such a process is not known, and that is said. So it is of one that does not stop at once:
//! nobody waits for it.

use super::late::{self, Losses};
use super::phase2_equip::{self, Equipped};
use super::phase4_refuse::{self, Obstacle};
use super::{
    AGAIN, Demand, caller, checkpoint, phase0_visit, phase1_freeze, phase3_gather, sharers,
};
use crate::error::{Error, Kind, Result};
use crate::inject::region::Region;
use crate::proc::tree::Kin;
use crate::proc::{self, Process};
use crate::ptrace::forest::{self, Forest};
use crate::ptrace::freeze::Frozen;
use crate::ptrace::glance;
use crate::ptrace::memory::Memory;

/// What was seen.
pub(crate) struct Survey {
    /// What is in the way.
    pub obstacles: Vec<Obstacle>,
    /// What the checkpoint would go without.
    pub losses: Losses,
    /// Those whose threads were not asked.
    pub unasked: Vec<(u32, String)>,
}

/// How a survey looks at the processes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Who has a payload stands still.
    Asking,
    /// Nobody does.
    Watching,
}

/// Looks at a process and all that would be saved with it.
///
/// # Errors
/// It is gone, or just being saved or restarted.
pub(crate) fn survey(request: &Demand) -> Result<Survey> {
    look(request, Way::Asking)
}

/// Adds to a refusal that came before all could be looked at what else is in the way.
pub(super) fn completed(request: &Demand, refusal: Error) -> Error {
    let (said, kind) = (refusal.to_string(), refusal.kind());
    let Ok(survey) = look(request, Way::Watching) else { return refusal };
    let mut more = survey.obstacles;
    more.retain(|obstacle| !obstacle.passing && !said.contains(&obstacle.what));
    match more.is_empty() {
        true => refusal,
        false => Error::new(format!("{said}; {}", phase4_refuse::sentence(&more)))
            .of(kind)
            .with_errno(refusal.errno()),
    }
}

fn look(request: &Demand, way: Way) -> Result<Survey> {
    proc::of_this_namespace()?;
    let open = |()| Memory::open(&request.process).map(drop);
    if let Err(e) = phase1_freeze::alive(&request.process).and_then(open) {
        return match e.kind() {
            _ if e.kind() == Kind::Obstacles || e.is_refusal() => Ok(Survey {
                obstacles: vec![Obstacle::of(request.pid(), e.to_string())],
                losses: Losses::default(),
                unasked: Vec::new(),
            }),
            _ => Err(e),
        };
    }
    let mut again = AGAIN;
    loop {
        match attempt(request, way) {
            // Descriptors, mappings and processes come and go under the eyes of who only looks.
            Err(e) if again > 0 && e.kind() != Kind::Busy && !request.process.has_ended() => {
                again -= 1;
            }
            result => return result,
        }
    }
}

fn attempt(request: &Demand, way: Way) -> Result<Survey> {
    let listed = phase1_freeze::listed(request)?;
    let living = listed.members.iter().filter(|kin| !kin.dead || kin.pid == request.pid());
    let (mut obstacles, mut open) = (Vec::new(), Vec::new());
    for pid in living.map(|kin| kin.pid) {
        let Ok(process) = Process::open(pid) else { continue };
        let outside = phase1_freeze::outside(&process);
        let refused: Vec<_> = outside.iter().map(|e| e.to_string()).collect();
        // Who ends meanwhile has no memory, and is of no user any more (fs/proc/base.c, task_dump_owner): a checkpoint would
        // be without it, or meet it as dead.
        if pid != request.pid() && (process.has_ended() || process.is_ending()) {
            continue;
        }
        // A zombie has no memory, nor has a thread of the kernel.
        if Memory::open(&process).is_ok() {
            let others = sharers::anywhere(&process);
            // Whose memory is another's, too, is refused before it is touched, and its threads work for nobody.
            open.push((process, refused.is_empty() && others.is_empty()));
            let others = others.into_iter().map(phase4_refuse::shared);
            obstacles.extend(others.map(|what| Obstacle::of(pid, what)));
        }
        obstacles.extend(refused.into_iter().map(|what| Obstacle::of(pid, what)));
    }
    let forest = Forest::of_list(&listed);
    let (equipped, frozen) = match meet(&open, way) {
        // What one is locked in forbids a stop, of which only those who stood still could tell.
        Err(e) if way == Way::Asking && e.kind() == Kind::Obstacles => {
            obstacles.push(Obstacle::of(request.pid(), e.to_string()));
            meet(&open, Way::Watching)?
        }
        met => met?,
    };
    let first = equipped.first().zip(frozen.first());
    if let Some((first, frozen)) = first.filter(|(first, _)| first.region.is_there()) {
        let closed = phase0_visit::closed(&caller::read(&first.memory, &first.region)?, frozen);
        obstacles.extend(closed.map(|what| Obstacle::of(frozen.pid, what)));
    }
    let without = equipped.iter().filter(|one| !one.region.is_there());
    let unasked = without.filter_map(|one| forest::named(one.process.pid())).collect();
    let dead: Vec<Kin> =
        forest.dead.iter().filter(|kin| kin.pid != request.pid()).copied().collect();
    let losses = if equipped.first().is_some_and(|first| first.process.pid() == request.pid()) {
        let looked = equipped.iter().map(|_| None).collect();
        let ends = equipped[0].region.control.config.continues == 0;
        let keeps = checkpoint::keeps(request, &equipped[0], ends) == Some(true);
        let (mut still, mut common) =
            phase3_gather::gather_all(0, &equipped, (frozen, looked), (&dead, false, keeps), true)?;
        let (members, judged) = phase4_refuse::judge(&mut still, &dead, common.tables.ptys())?;
        common.members = members;
        let known = |new: &Obstacle| obstacles.iter().any(|old| old.what.contains(&new.what));
        let news: Vec<_> = judged.into_iter().filter(|new| !known(new)).collect();
        obstacles.extend(news);
        let missing = phase4_refuse::left_out(request, &forest, &equipped, &[])?;
        let doubtful = phase4_refuse::doubtful(&forest, &equipped)?;
        common.losses.extend(missing.into_iter().chain(doubtful));
        late::losses(still, common)
    } else {
        Losses::default()
    };
    Ok(Survey { obstacles, losses, unasked })
}

/// The processes, with whether they may be asked. Who may, has a payload, and stops soon stands still.
fn meet(open: &[(Process, bool)], way: Way) -> Result<(Vec<Equipped>, Vec<Frozen>)> {
    let mut able = Vec::new();
    for (process, may_be_asked) in open {
        if *may_be_asked && way == Way::Asking {
            able.extend(Region::of(process)?.map(|(_, region)| (process.clone(), region.base)));
        }
    }
    let mut stopped = phase1_freeze::patiently(false, || glance::stop(&able))?;
    let (mut equipped, mut frozen, mut outcome) = (Vec::new(), Vec::new(), Ok(()));
    for (process, _) in open {
        let mut one = match stopped.iter().position(|stopped| stopped.pid == process.pid()) {
            Some(at) => stopped.swap_remove(at),
            None => Frozen::unstopped(process),
        };
        match phase2_equip::glimpse(&mut one).and_then(|seen| attended(seen, &mut one)) {
            Ok(seen) => equipped.push(seen),
            Err(e) => outcome = outcome.and(Err(e)),
        }
        frozen.push(one);
    }
    outcome.map(|()| (equipped, frozen))
}

/// From here on nothing shows of a stop, whatever is met in other processes.
fn attended(seen: Equipped, frozen: &mut Frozen) -> Result<Equipped> {
    match seen.region.is_there() {
        true => frozen.attend(&seen.memory, &seen.region.desk(), seen.region.base)?,
        // It had a payload before it stood still.
        false if !frozen.threads.is_empty() => {
            let text = format!("process {} has just executed another program", frozen.pid);
            return Err(Error::new(text).of(Kind::Gone));
        }
        false => {}
    }
    Ok(seen)
}
