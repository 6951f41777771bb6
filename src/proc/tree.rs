// SPDX-License-Identifier: LGPL-2.1-only
//! Who descends from whom: the processes of a job.
//!
//! The parent link tells, as long as it is there. Of a process whose parent has ended before it, init or a subreaper is
//! the parent; it still belongs to the tree when its session or its process group is one that began in the tree
//! (credentials(7)). What has left both (a daemon that began a session of its own and whose parent is gone) is not found
//! here.

use super::id::Pid;
use super::process::Process;
use super::stat;
use crate::abreast;
use crate::error::{Because, Result};
use crate::order;
use nix::fcntl::AT_FDCWD;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// The name of the process that a restarter, or a ckpt that stays, has beside the root.
pub(crate) const WITNESS: &str = "ckpt-witness";
/// That of the first process in the PID namespace of a restarted tree.
pub(crate) const INIT: &str = "ckpt-init";
/// That of a process's copy, from which a dumper reads.
pub(crate) const SNAPSHOT: &str = "ckpt-snapshot";

/// What the list of all processes says of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kin {
    /// Process id.
    pub pid: Pid,
    /// Its parent's, 0 of one in another PID namespace.
    pub parent: Pid,
    /// Process group.
    pub group: Pid,
    /// Session.
    pub session: Pid,
    /// When it began, in ticks since boot.
    pub start: u64,
    /// It has ended, and nobody has waited for it.
    pub dead: bool,
    /// It is one of ours that the program must not meet: nameable by that, and without an exit signal, or by its arguments,
    /// which a snapshot has of the program.
    pub ours: bool,
}

/// Processes by their numbers. (They come in that order from /proc, and to sort what is sorted is to look at it once.)
pub(crate) struct ById<'a> {
    all: &'a [Kin],
    /// The number of each, and its place.
    order: Vec<(u64, u64)>,
}

impl<'a> ById<'a> {
    /// Those of a list.
    pub(crate) fn of(all: &'a [Kin]) -> Self {
        let mut order: Vec<_> =
            (0..).zip(all).map(|(at, kin)| (kin.pid.word().into(), at)).collect();
        order::numbers(&mut order);
        Self { all, order }
    }

    /// The one with a number.
    pub(crate) fn get(&self, pid: Pid) -> Option<&'a Kin> {
        let number = u64::from(pid.word());
        let at = self.order.partition_point(|(of, _)| *of < number);
        let (_, place) = self.order.get(at).filter(|(of, _)| *of == number)?;
        self.all.get(*place as usize)
    }
}

/// All processes that can be seen.
///
/// # Errors
/// /proc cannot be read.
pub(crate) fn everybody() -> Result<Vec<Kin>> {
    Ok(abreast::each(&pids()?, 16, |pid| glance(*pid)).into_iter().flatten().collect())
}

/// The same, looked at by this thread alone: behind others the C library's lock on their list may be held for a moment, and a
/// child that is made by a bare clone(2) would have it held for ever.
///
/// # Errors
/// As [`everybody`].
pub(crate) fn everybody_alone() -> Result<Vec<Kin>> {
    Ok(pids()?.into_iter().filter_map(glance).collect())
}

/// A process and those that descend from it, looked at so.
pub(crate) fn below_alone(root: Pid) -> Vec<Pid> {
    let all = everybody_alone().unwrap_or_default();
    below(root, None, &HashSet::new(), &all)
}

/// All processes at a moment.
#[derive(Default)]
pub(crate) struct Seen(Option<(Instant, Vec<Kin>)>);

impl Seen {
    /// Now, and who they are.
    ///
    /// # Errors
    /// As [`everybody`].
    pub(crate) fn now() -> Result<(Self, Vec<Kin>)> {
        let now = Instant::now();
        let all = everybody()?;
        Ok((Self(Some((now, all.clone()))), all))
    }

    /// Those of now. Nobody who is older than the root comes to its tree, so a moment later only who may be in it is looked
    /// at again.
    ///
    /// # Errors
    /// As [`everybody`].
    pub(crate) fn again(&self, root: Pid) -> Result<Vec<Kin>> {
        /// In less time no number is given twice, where there are at least as many as without a smaller limit
        /// (include/linux/threads.h, PID_MAX_DEFAULT).
        const MOMENT: Duration = Duration::from_millis(50);
        const NUMBERS: u64 = 0x8000;
        let seen = self.0.as_ref().filter(|(at, _)| at.elapsed() < MOMENT);
        let seen =
            seen.filter(|_| super::setting("kernel/pid_max").is_some_and(|most| most >= NUMBERS));
        let first = seen.and_then(|(_, seen)| seen.iter().find(|kin| kin.pid == root));
        match seen.zip(first) {
            Some(((_, seen), first)) => everybody_since(seen, |kin| kin.start < first.start),
            None => everybody(),
        }
    }
}

/// All processes that can be seen, where those of `seen` of whom `stays` says so are as they were then if they are there.
fn everybody_since(seen: &[Kin], stays: impl Fn(&Kin) -> bool) -> Result<Vec<Kin>> {
    let known = ById::of(seen);
    let (mut all, mut others) = (Vec::new(), Vec::new());
    for pid in pids()? {
        match known.get(pid).filter(|kin| stays(kin)) {
            Some(kin) => all.push(*kin),
            None => others.push(pid),
        }
    }
    all.extend(abreast::each(&others, 16, |pid| glance(*pid)).into_iter().flatten());
    order::by_key(&mut all, |kin| (kin.pid.word().into(), 0));
    Ok(all)
}

/// Cuts a list, parents before their children, where a parent comes before its child: who stands still has no child in
/// vfork(2), for whom it could not be stopped.
pub(crate) fn generations(all: &[Kin]) -> Vec<&[Kin]> {
    let (mut cut, mut begin, mut inside) = (Vec::new(), 0, HashSet::new());
    for (index, kin) in all.iter().enumerate() {
        if inside.contains(&kin.parent) {
            cut.push(&all[begin..index]);
            begin = index;
            inside.clear();
        }
        inside.insert(kin.pid);
    }
    cut.push(&all[begin..]);
    cut
}

/// The numbers of all processes that can be seen.
///
/// # Errors
/// /proc cannot be read.
pub(crate) fn pids() -> Result<Vec<Pid>> {
    let entries = std::fs::read_dir("/proc").because(|| "cannot read /proc")?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(names.collect())
}

/// One process; None if it is gone. Of all processes of a machine it is asked often, so without a pidfd: what it says
/// is of whoever has the id now.
fn glance(pid: Pid) -> Option<Kin> {
    let text = super::slurp_piece(AT_FDCWD, &format!("/proc/{pid}/task/{pid}/stat")).ok()?;
    // Of one that is gone but for its number the kernel says no group.
    Some(of_stat(pid, &stat::parse(&text).ok()?)).filter(|kin| kin.group >= Pid::NONE)
}

/// One process.
///
/// # Errors
/// It is gone.
pub(crate) fn kin(pid: Pid) -> Result<Kin> {
    Ok(of_stat(pid, &Process::glimpse(pid)?.main_stat()?))
}

/// The same as the kernel says it of its first thread.
pub(crate) fn of_stat(pid: Pid, stat: &stat::Stat) -> Kin {
    let [parent, group, session] = [stat.ppid, stat.pgrp, stat.session];
    let named = stat.comm.as_encoded_bytes().starts_with(b"ckpt-");
    // A monitor has that name from its birth, but for a moment when it has executed itself.
    let ours =
        named && stat.exit_signal == 0 || (named || stat.comm == "memfd:ckpt") && is_adopted(pid);
    let ours = ours || stat.comm == SNAPSHOT;
    let dead = stat.has_ended();
    Kin { pid, parent, group, session, start: stat.starttime, dead, ours }
}

/// Whether it is a monitor or dumper that has come to init, which gives it an exit signal (kernel/exit.c,
/// reparent_leader).
fn is_adopted(pid: Pid) -> bool {
    let words = Process::glimpse(pid).and_then(|it| it.cmdline()).unwrap_or_default();
    words.get(1).is_some_and(|word| word.as_encoded_bytes().starts_with(b"__"))
}

/// The session and the process group in which a root was started, if that is known.
pub(crate) type Begun = Option<[Pid; 2]>;

/// The processes of the tree below `root`, parents before their children, `root` first. Whoever is in `known` belongs
/// to it, also where the links are gone meanwhile.
pub(crate) fn below(root: Pid, begun: Begun, known: &HashSet<Pid>, all: &[Kin]) -> Vec<Pid> {
    let by_id = ById::of(all);
    let Some(first) = by_id.get(root) else { return Vec::new() };
    let mut members = vec![root];
    let mut inside: HashSet<Pid> = [root].into();
    let descent = Descent::of(first, &by_id);
    // The root's own group, which its maker has begun, is also that of whoever else stands in the pipeline: an
    // orphan of it belongs to the tree only where the root leads it, or the restarter that stands for it.
    let leads = first.group == root || first.group == first.parent && stands_for(first.parent, all);
    let mut groups: HashSet<Pid> = HashSet::from_iter(Some(first.group).filter(|_| leads));
    loop {
        let before = members.len();
        for kin in all {
            let in_group = groups.contains(&kin.group) || groups.contains(&kin.session);
            let related = in_group && descent.may_be_orphan(kin);
            let belongs = inside.contains(&kin.parent) || known.contains(&kin.pid) || related;
            if kin.pid != root && !kin.ours && belongs && inside.insert(kin.pid) {
                members.push(kin.pid);
            }
        }
        let of_members = members.iter().filter_map(|pid| by_id.get(*pid));
        let news = of_members.flat_map(|kin| descent.ids(kin));
        let mut news: Vec<_> = news.filter(|(id, _)| !groups.contains(id)).collect();
        order::by_key(&mut news, |(id, is_later)| (id.word().into(), u64::from(!is_later)));
        news.dedup_by_key(|(id, _)| *id);
        // An id outlives whoever had it as long as somebody is in the group or the session.
        let began_here = |(id, is_later): &(Pid, bool)| match by_id.get(*id) {
            Some(leader) => inside.contains(&leader.pid),
            None if *is_later => true,
            None => !descent.may_be_older(*id, begun) && !descent.has_others(*id, &inside, all),
        };
        news.retain(began_here);
        groups.extend(news.into_iter().map(|(id, _)| id));
        if members.len() == before {
            return members;
        }
    }
}

/// Whether a process is the restarter of a tree.
fn stands_for(pid: Pid, all: &[Kin]) -> bool {
    let is = |kin: &Kin| is_named(kin.pid, WITNESS);
    all.iter().any(|kin| kin.parent == pid && kin.ours && is(kin))
}

/// Whether init is that of a namespace which a restart has made.
pub(crate) fn is_made_for_a_tree() -> bool {
    is_named(Pid::INIT, INIT)
}

/// Whether the process that has an id now has this name.
pub(crate) fn is_named(pid: Pid, name: &str) -> bool {
    Process::glimpse(pid).and_then(|it| it.name()).is_ok_and(|own| own == name)
}

/// Those of `all` of whom nobody can tell whether they descend from `root`: their parents have ended, and they have the
/// process group that the root was given, or that of a member.
pub(crate) fn doubtful(root: Pid, members: &[Pid], all: &[Kin]) -> Vec<Pid> {
    let by_id = ById::of(all);
    let of_members = members.iter().filter_map(|pid| by_id.get(*pid));
    let groups = of_members.map(|kin| kin.group).filter(|group| *group != Pid::NONE);
    doubtful_in(&groups.collect(), root, members, all)
}

/// The same of these process groups, which the root may have left.
pub(crate) fn doubtful_in(
    groups: &HashSet<Pid>,
    root: Pid,
    members: &[Pid],
    all: &[Kin],
) -> Vec<Pid> {
    let by_id = ById::of(all);
    let Some(first) = by_id.get(root) else { return Vec::new() };
    let descent = Descent::of(first, &by_id);
    let members: HashSet<Pid> = members.iter().copied().collect();
    let is = |kin: &&Kin| {
        groups.contains(&kin.group)
            && !kin.dead
            && !kin.ours
            && descent.may_be_orphan(kin)
            // Who starts jobs in its own group, as a script does, is their parent; what adopts orphans (init, a session's or
            // a batch system's manager) lives in a group of its own.
            && by_id.get(kin.parent).is_none_or(|parent| parent.group != kin.group)
            && !members.contains(&kin.pid)
    };
    all.iter().filter(is).map(|kin| kin.pid).collect()
}

/// Those of `all` that may be orphans of the root's tree.
pub(crate) fn orphans(root: Pid, all: &[Kin]) -> Vec<Pid> {
    let by_id = ById::of(all);
    let Some(first) = by_id.get(root) else { return Vec::new() };
    let descent = Descent::of(first, &by_id);
    let is = |kin: &&Kin| !kin.dead && !kin.ours && descent.may_be_orphan(kin);
    all.iter().filter(is).map(|kin| kin.pid).collect()
}

/// Where the root comes from.
struct Descent<'a> {
    root: &'a Kin,
    /// Who may have become the parent of its orphans: everybody above its parent, and init.
    reapers: HashSet<Pid>,
}

impl<'a> Descent<'a> {
    fn of(root: &'a Kin, by_id: &ById<'_>) -> Self {
        let mut reapers: HashSet<Pid> = [Pid::INIT].into();
        let mut at = by_id.get(root.parent);
        // The parent itself has children of its own in the root's group.
        while let Some(above) = at.and_then(|kin| by_id.get(kin.parent)) {
            if !reapers.insert(above.pid) {
                break;
            }
            at = by_id.get(above.pid);
        }
        Self { root, reapers }
    }

    /// The session and the group of a member that are not the root's, nor of another PID namespace; and whether that has begun in
    /// the tree for certain: as a group of the session that the root leads.
    fn ids(&self, member: &Kin) -> impl Iterator<Item = (Pid, bool)> {
        let own = [self.root.group, self.root.session, Pid::NONE];
        // Nobody who leads no session has ever been in another.
        let has_left = self.root.session == self.root.pid;
        let ids = [(member.session, !has_left), (member.group, member.session == self.root.pid)];
        ids.into_iter().filter(move |(id, _)| !own.contains(id))
    }

    /// Whether a session or group without a leader may be one that the root was in before it began its own: a child of then is in
    /// it still, and others are who have nothing to do with the tree.
    fn may_be_older(&self, id: Pid, begun: Begun) -> bool {
        match begun {
            Some([session, group]) if session != self.root.pid => [session, group].contains(&id),
            // Where it has led its session since then, nobody knows what it was in before.
            _ => self.root.session == self.root.pid || begun.is_some_and(|all| all.contains(&id)),
        }
    }

    /// Whether somebody is in a session or group who does not descend from the root.
    fn has_others(&self, id: Pid, inside: &HashSet<Pid>, all: &[Kin]) -> bool {
        let is_other =
            |kin: &Kin| !kin.ours && !inside.contains(&kin.pid) && !self.may_be_orphan(kin);
        all.iter().any(|kin| [kin.group, kin.session].contains(&id) && is_other(kin))
    }

    /// Whether a process may be an orphan of the tree. Nobody above the root descends from it, though both may have begun
    /// in one tick of the clock.
    fn may_be_orphan(&self, kin: &Kin) -> bool {
        let above = kin.pid == self.root.parent || self.reapers.contains(&kin.pid);
        let no_older = kin.start >= self.root.start && kin.pid != self.root.pid;
        no_older && !above && self.reapers.contains(&kin.parent)
    }
}

#[cfg(test)]
mod tests;
