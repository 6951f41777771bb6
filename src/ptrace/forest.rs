// SPDX-License-Identifier: LGPL-2.1-only
//! Freezing a process with all that descend from it.
//!
//! Parents before their children: who stands still makes no more. The freeze is final when a list of the tree, made
//! while all that were found stand still, holds nobody else. A process that ends or executes another program on the
//! way is looked for again; one that cannot be stopped soon (its child of vfork(2) has not executed yet) lets all
//! others go on until it can be.

use super::freeze::{FIRST_ATTEMPT, Frozen, LAST_ATTEMPT, PATIENCE, Stopping, open_with};
use super::stopping::await_hearing;
use crate::error::{Error, Kind, Result};
use crate::order;
use crate::proc::tree::{self, Begun, INIT, Kin, Seen, WITNESS};
use crate::proc::{Pid, Process};
use crate::settings::Without;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long failed attempts may hold a job before it has to get its share.
const AT_FIRST: Duration = Duration::from_millis(100);

/// A process and its descendants, all stopped. Dropping it lets them go on.
pub(crate) struct Forest {
    /// Those that live, the root first.
    pub processes: Vec<Frozen>,
    /// Those that have ended, and that nobody has waited for; and this process itself, if it is a child of one of them.
    pub dead: Vec<Kin>,
    /// Those that stay out as was asked for, with their names.
    pub left_out: Vec<(u32, String)>,
    /// Those of whom nobody can tell whether they belong to it.
    pub doubtful: Vec<(u32, String)>,
    /// Who has children, in order; nobody where that is not known.
    parents: Vec<u32>,
    /// When the first of them stood still.
    pub since: Instant,
}

/// The processes of a tree as /proc has them now.
#[derive(Default)]
pub(crate) struct Listed {
    /// Parents before their children.
    pub members: Vec<Kin>,
    /// Who would be a member but for [`Without`].
    pub left_out: Vec<Pid>,
    /// Who may be one.
    pub doubtful: Vec<Pid>,
    /// Whoever has a child, if all can be seen, in order.
    pub parents: Vec<u32>,
}

/// Whether an orphan descends from the root, though no link tells; asked while all run.
pub(crate) type IsHeir<'a> = dyn Fn(Pid) -> bool + 'a;

/// What tells of descent where the kernel's links do not.
#[derive(Clone, Copy)]
pub(crate) struct Evidence<'a> {
    pub(crate) is_heir: &'a IsHeir<'a>,
    pub(crate) begun: Begun,
}

/// Whom a tree has beside those whom the kernel's links tell.
struct Wanted<'a> {
    without: &'a Without,
    heirs: HashSet<Pid>,
    begun: Begun,
    seen: Seen,
}

/// What attempts that have failed leave for the next, and who was opened before the first, by process.
type Left = HashMap<Pid, Frozen>;

/// What came of an attempt.
enum Attempt {
    Whole(Forest),
    /// The root's parent link or somebody on the way was gone: a new list tells.
    Anew,
    /// This one does not stop now.
    Held(Pid),
}

impl Forest {
    /// Stops every process of the tree below `root`, also those that appear meanwhile.
    ///
    /// # Errors
    /// With everything running again: those of [`Frozen::freeze`], of any of them; a tree that grows faster than it
    /// can be stopped.
    pub(crate) fn freeze(
        first: &Process,
        without: &Without,
        evidence: &Evidence<'_>,
    ) -> Result<Self> {
        let root = first.pid();
        let begun = Instant::now();
        let deadline = begun + PATIENCE;
        let mut held = Duration::ZERO;
        let mut patience = FIRST_ATTEMPT;
        let mut left = HashMap::new();
        loop {
            let (wanted, listed) = begin(root, without, evidence)?;
            let before = await_all(root, &wanted, listed, deadline, &mut left)?;
            let since = Instant::now();
            let found = Self::attempt(first, &wanted, before, patience, &mut left);
            held += since.elapsed();
            let holder = match found {
                Ok(Attempt::Whole(forest)) => return Ok(forest),
                Ok(Attempt::Held(pid)) => pid,
                Ok(Attempt::Anew) => root,
                Err(e) if e.kind() == Kind::Gone && !first.has_ended() => root,
                Err(e) => return Err(e),
            };
            if Instant::now() > deadline {
                left.clear();
                // Alone it has its own sentence, or all is well.
                if holder != root {
                    Frozen::freeze(&Process::open(holder)?)?.thaw();
                }
                let text = format!("the processes below {root} come and go too fast to be stopped");
                return Err(Error::new(text).hint("try again when it makes fewer of them"));
            }
            patience = (patience * 2).min(LAST_ATTEMPT);
            // The job runs three quarters of the time that failed attempts take.
            let due = (held * 4).saturating_sub(begun.elapsed() + AT_FIRST);
            std::thread::sleep(due.max(Duration::from_millis(1)));
        }
    }

    /// One attempt, with what others have `left` of processes that could not all be stopped.
    fn attempt(
        first: &Process,
        wanted: &Wanted<'_>,
        before: Listed,
        patience: Duration,
        left: &mut Left,
    ) -> Result<Attempt> {
        let root = first.pid();
        let mut forest = match Frozen::soon(first, patience, left.remove(&root))? {
            Ok(first) => Self::of(first),
            Err(some) => {
                left.insert(root, some);
                return Ok(Attempt::Held(root));
            }
        };
        let outcome = forest.grow(wanted, before, patience, left);
        if matches!(outcome, Ok(None)) {
            return Ok(Attempt::Whole(forest));
        }
        for mut frozen in forest.processes.into_iter().rev() {
            frozen.give_up();
            left.insert(frozen.pid, frozen);
        }
        outcome.map(|failed| failed.unwrap_or(Attempt::Anew))
    }

    /// Adds the root's descendants, first those that a list had `before`, until a list holds nobody new; what came in
    /// between.
    fn grow(
        &mut self,
        wanted: &Wanted<'_>,
        before: Listed,
        patience: Duration,
        left: &mut Left,
    ) -> Result<Option<Attempt>> {
        let root = self.processes.first().map_or(Pid::NONE, |first| first.pid);
        let mut known: HashSet<Pid> = [root].into();
        let mut before = Some(before);
        loop {
            let is_old = before.is_some();
            let next = before.take().map_or_else(|| list(root, &known, wanted), Ok);
            let Listed { members, left_out, doubtful, parents } = next?;
            self.parents = parents;
            if members.is_empty() {
                return Ok(Some(Attempt::Anew));
            }
            self.left_out = left_out.into_iter().filter_map(named).collect();
            self.doubtful = doubtful.into_iter().filter_map(named).collect();
            self.dead = members.iter().filter(|kin| kin.dead).copied().collect();
            let alive = members.into_iter().filter(|kin| !kin.dead);
            let alive: Vec<_> = alive.collect();
            let news: Vec<_> =
                alive.iter().filter(|kin| !known.contains(&kin.pid)).copied().collect();
            if news.is_empty() && !is_old {
                // Another dumper's snapshot has its name by the time that the root can be stopped, not before.
                let listed: HashSet<Pid> = alive.iter().map(|kin| kin.pid).collect();
                self.processes.retain(|frozen| {
                    listed.contains(&frozen.pid) || !tree::kin(frozen.pid).is_ok_and(|kin| kin.ours)
                });
                self.dead.extend(own_ghost(&known));
                return Ok(None);
            }
            for generation in tree::generations(&news) {
                if let Some(failed) = self.stop(generation, patience, left)? {
                    return Ok(Some(failed));
                }
            }
            known.extend(self.processes.iter().map(|frozen| frozen.pid));
        }
    }

    /// Stops some, none of whom is another's child, abreast; what came in between.
    fn stop(
        &mut self,
        processes: &[Kin],
        patience: Duration,
        left: &mut Left,
    ) -> Result<Option<Attempt>> {
        let (mut begun, mut failed) = (Vec::new(), None);
        for kin in processes {
            // Who was listed may have ended by now, and its id be a stranger's.
            match Stopping::begin_with(kin.pid, kin.start, left.remove(&kin.pid)) {
                Ok(Some(stopping)) => begun.push((kin.pid, stopping)),
                Ok(None) => failed = Some(Attempt::Anew),
                Err(e) if e.kind() == Kind::Gone => {}
                Err(e) => return Err(e),
            }
        }
        for (pid, stopping) in begun {
            if failed.is_some() {
                left.insert(pid, stopping.give_up());
                continue;
            }
            match stopping.end(patience) {
                Ok(Ok(frozen)) => self.processes.push(frozen),
                Ok(Err(some)) => {
                    left.insert(pid, some);
                    failed = Some(Attempt::Held(pid));
                }
                Err(e) if e.kind() == Kind::Gone => {}
                Err(e) => return Err(e),
            }
        }
        Ok(failed)
    }

    /// One process alone.
    pub(crate) fn of(first: Frozen) -> Self {
        let since = first.since();
        let (dead, left_out, doubtful) = Default::default();
        Self { processes: vec![first], dead, left_out, doubtful, parents: Vec::new(), since }
    }

    /// Those that a list names, none of them stopped, but for the living ones, which have yet to come.
    pub(crate) fn of_list(listed: &Listed) -> Self {
        let dead = listed.members.iter().filter(|kin| kin.dead).copied().collect();
        let all = |pids: &[Pid]| pids.iter().copied().filter_map(named).collect();
        let (left_out, doubtful) = (all(&listed.left_out), all(&listed.doubtful));
        let (parents, since) = (Vec::new(), Instant::now());
        Self { processes: Vec::new(), dead, left_out, doubtful, parents, since }
    }

    /// Whether the list that was made while all stood still has nobody whom a process has made; false where that list may
    /// not have all.
    pub(crate) fn is_childless(&self, pid: Pid) -> bool {
        !self.parents.is_empty() && self.parents.binary_search(&pid.word()).is_err()
    }

    /// Lets all go on.
    pub(crate) fn thaw(self) {
        // Children first: a parent finds them as they were.
        self.processes.into_iter().rev().for_each(Frozen::thaw);
    }
}

/// This process, where somebody in the tree has started it and waits for it (`ckpt save $$` in a script): to a restart
/// it is one that has ended well.
fn own_ghost(living: &HashSet<Pid>) -> Option<Kin> {
    let own = tree::kin(Pid::own()).ok()?;
    (!own.ours && living.contains(&own.parent)).then_some(Kin { dead: true, ..own })
}

/// Those whom a list would name now, none of whom stands still.
///
/// # Errors
/// /proc cannot be read.
pub(crate) fn listed(root: Pid, without: &Without, evidence: &Evidence<'_>) -> Result<Listed> {
    begin(root, without, evidence).map(|(_, listed)| listed)
}

/// Whom the tree has, and the first list of it.
fn begin<'a>(
    root: Pid,
    without: &'a Without,
    evidence: &Evidence<'_>,
) -> Result<(Wanted<'a>, Listed)> {
    let (seen, all) = Seen::now()?;
    let heirs = heirs(root, &all, evidence.is_heir);
    let wanted = Wanted { without, heirs, begun: evidence.begun, seen };
    let listed = list_of(all, root, &HashSet::new(), &wanted);
    Ok((wanted, listed))
}

/// The tree, without this process, what else is ours, and those whom the user leaves out with their descendants.
fn list(root: Pid, known: &HashSet<Pid>, wanted: &Wanted<'_>) -> Result<Listed> {
    Ok(list_of(wanted.seen.again(root)?, root, known, wanted))
}

fn list_of(mut all: Vec<Kin>, root: Pid, known: &HashSet<Pid>, wanted: &Wanted<'_>) -> Listed {
    let without = wanted.without;
    let own = Pid::own();
    let mut known = known.clone();
    // Whoever hides processes hides the first, too (hidepid, proc(5)).
    let sees_all = all.iter().any(|kin| kin.pid == Pid::INIT);
    let parents = all.iter().filter(|_| sees_all).map(|kin| kin.parent.word());
    let mut parents: Vec<u32> = parents.collect();
    order::numbers(&mut parents);
    known.extend(adopted(root, &all));
    known.extend(&wanted.heirs);
    let known = &known;
    all.retain(|kin| kin.pid != own);
    let is_meant = |pid| {
        Process::glimpse(pid).and_then(|it| it.name()).is_ok_and(|comm| without.means(pid, &comm))
    };
    let mut found = tree::below(root, wanted.begun, known, &all);
    let others = found.iter().filter(|pid| **pid != root);
    let none = *without == Without::default();
    let meant: HashSet<Pid> = others.copied().filter(|pid| !none && is_meant(*pid)).collect();
    let mut left_out = Vec::new();
    if !meant.is_empty() {
        all.retain(|kin| !meant.contains(&kin.pid));
        let with = std::mem::replace(&mut found, tree::below(root, wanted.begun, known, &all));
        let kept: HashSet<Pid> = found.iter().copied().collect();
        left_out.extend(with.into_iter().filter(|pid| !kept.contains(pid)));
    }
    let doubtful = tree::doubtful(root, &found, &all);
    let by_id = tree::ById::of(&all);
    let members = found.into_iter().filter_map(|pid| by_id.get(pid).copied()).collect();
    Listed { members, left_out, doubtful, parents }
}

/// The orphans that descend from the root. A snapshot of it is one by its memory, which a dumper is reading.
fn heirs(root: Pid, all: &[Kin], is_heir: &IsHeir<'_>) -> HashSet<Pid> {
    let orphans = tree::orphans(root, all).into_iter();
    orphans.filter(|pid| !is_ours(*pid) && is_heir(*pid)).collect()
}

/// Whether an orphan is one of our processes. By the name alone, where [`Kin::ours`] wants evidence: a snapshot that has come
/// to init has the program's arguments and init's exit signal, a monitor that has not executed itself yet its maker's.
/// Nobody is lost by that who belongs to the tree by a link and has taken such a name.
fn is_ours(pid: Pid) -> bool {
    const OURS: [&str; 4] = ["ckpt-monitor", "ckpt-dump", "ckpt-assist", "ckpt-snapshot"];
    let Ok(process) = Process::glimpse(pid) else { return false };
    let name = process.name().unwrap_or_default();
    // A name of ours is gone for a moment when a monitor is executed, from memory.
    let from_memory = || process.exe().is_ok_and(|exe| exe.path.as_os_str() == "/memfd:ckpt");
    OURS.iter().any(|ours| name == *ours) || from_memory()
}

/// The orphans of the tree that a ckpt has which stays as the root's parent, or the init of a restarted tree: these have
/// no other children but ours.
fn adopted(root: Pid, all: &[Kin]) -> Vec<Pid> {
    let Some(parent) = all.iter().find(|kin| kin.pid == root).map(|kin| kin.parent) else {
        return Vec::new();
    };
    let has_witness =
        |kin: &&Kin| kin.ours && kin.parent == parent && tree::is_named(kin.pid, WITNESS);
    let is_init = |kin: &&Kin| kin.pid == Pid::INIT && tree::is_named(kin.pid, INIT);
    let parents: Vec<Pid> = [
        all.iter().find(has_witness).map(|kin| kin.parent),
        all.iter().find(is_init).map(|kin| kin.pid),
    ]
    .into_iter()
    .flatten()
    .collect();
    let adopted = all.iter().filter(|kin| parents.contains(&kin.parent) && kin.pid != root);
    adopted.filter(|kin| !kin.ours && !is_ours(kin.pid)).map(|kin| kin.pid).collect()
}

/// A process with its name.
pub(crate) fn named(pid: Pid) -> Option<(u32, String)> {
    let comm = Process::glimpse(pid).and_then(|it| it.name()).ok()?;
    Some((pid.word(), comm.to_string_lossy().into_owned()))
}

/// Waits, while nobody is touched, until every process of the tree can hear; who they are.
fn await_all(
    root: Pid,
    wanted: &Wanted<'_>,
    listed: Listed,
    deadline: Instant,
    left: &mut Left,
) -> Result<Listed> {
    let begun = Instant::now();
    for kin in listed.members.iter().filter(|kin| !kin.dead) {
        if let Ok(Some(process)) = open_with(kin.pid, kin.start) {
            await_hearing(&process, deadline).or_else(|e| match e.kind() {
                Kind::Gone => Ok(()),
                _ => Err(e),
            })?;
            left.entry(kin.pid).or_insert_with(|| Frozen::of(process));
        }
    }
    // After a wait it would name those who have long gone.
    match begun.elapsed() < Duration::from_millis(100) {
        true => Ok(listed),
        false => list(root, &HashSet::new(), wanted),
    }
}

#[cfg(test)]
mod tests;
