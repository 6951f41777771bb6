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
    Some(of_stat(pid, &stat::parse(&text).ok()?))
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

/// The processes of the tree below `root`, parents before their children, `root` first. Whoever is in `known` belongs
/// to it, also where the links are gone meanwhile.
pub(crate) fn below(root: Pid, known: &HashSet<Pid>, all: &[Kin]) -> Vec<Pid> {
    let by_id = ById::of(all);
    let Some(first) = by_id.get(root) else { return Vec::new() };
    let mut members = vec![root];
    let mut inside: HashSet<Pid> = [root].into();
    let descent = Descent::of(first, &by_id);
    // What began in the tree has the id of a process that is no older than the root.
    let began_here = |id: Pid, inside: &HashSet<Pid>| {
        id != first.group
            && id != first.session
            && (inside.contains(&id) || by_id.get(id).is_none())
    };
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
        for kin in members.iter().filter_map(|pid| by_id.get(*pid)) {
            groups
                .extend([kin.group, kin.session].into_iter().filter(|id| began_here(*id, &inside)));
        }
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
/// process group that the root was given.
pub(crate) fn doubtful(root: Pid, members: &[Pid], all: &[Kin]) -> Vec<Pid> {
    let first = all.iter().find(|kin| kin.pid == root);
    first.map_or(Vec::new(), |first| doubtful_in(first.group, root, members, all))
}

/// The same of a process group that the root has left.
pub(crate) fn doubtful_in(group: Pid, root: Pid, members: &[Pid], all: &[Kin]) -> Vec<Pid> {
    let by_id = ById::of(all);
    let Some(first) = by_id.get(root) else { return Vec::new() };
    let descent = Descent::of(first, &by_id);
    let is = |kin: &&Kin| {
        kin.group == group
            && !kin.dead
            && !kin.ours
            && descent.may_be_orphan(kin)
            // Who starts jobs in its own group, as a script does, is their parent; what adopts orphans (init, a session's or
            // a batch system's manager) lives in a group of its own.
            && by_id.get(kin.parent).is_none_or(|parent| parent.group != group)
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

    /// Whether a process may be an orphan of the tree. Nobody above the root descends from it, though both may have begun
    /// in one tick of the clock.
    fn may_be_orphan(&self, kin: &Kin) -> bool {
        let above = kin.pid == self.root.parent || self.reapers.contains(&kin.pid);
        let no_older = kin.start >= self.root.start && kin.pid != self.root.pid;
        no_older && !above && self.reapers.contains(&kin.parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kin(pid: i32, parent: i32, group: i32, session: i32) -> Kin {
        let [pid, parent, group, session] = [pid, parent, group, session].map(Pid::new);
        Kin { pid, parent, group, session, start: pid.word().into(), dead: false, ours: false }
    }

    fn numbers(ids: Vec<Pid>) -> Vec<i32> {
        ids.into_iter().map(Pid::get).collect()
    }

    fn members(all: &[Kin]) -> Vec<i32> {
        numbers(below(Pid::new(50), &HashSet::new(), all))
    }

    fn unsure(members: &[i32], all: &[Kin]) -> Vec<i32> {
        let members: Vec<_> = members.iter().copied().map(Pid::new).collect();
        numbers(doubtful(Pid::new(50), &members, all))
    }

    #[test]
    fn who_has_come_or_gone_since_is_seen() {
        let start = || std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let (mut stays, mut goes) = (start(), start());
        let pid = |child: &std::process::Child| Pid::of_word(child.id());
        let mut seen = everybody().unwrap();
        let was = seen.iter_mut().find(|kin| kin.pid == pid(&stays)).unwrap();
        was.group = Pid::new(1);
        goes.kill().unwrap();
        goes.wait().unwrap();
        let mut comes = start();
        let group =
            |all: &[Kin], of: Pid| all.iter().find(|kin| kin.pid == of).map(|kin| kin.group);
        let (as_before, anew) =
            [true, false].map(|stays| everybody_since(&seen, |_| stays).unwrap()).into();
        let real = super::kin(Pid::own()).unwrap().group;
        for (all, old) in [(as_before, Pid::new(1)), (anew, real)] {
            assert_eq!(group(&all, pid(&stays)), Some(old));
            assert_eq!((group(&all, pid(&goes)), group(&all, pid(&comes))), (None, Some(real)));
            assert!(all.is_sorted_by_key(|kin| kin.pid));
        }
        for child in [&mut stays, &mut comes] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn a_snapshot_whose_original_has_ended_is_ours() {
        let of = |comm: &str| {
            let text = std::fs::read_to_string("/proc/self/stat").unwrap();
            let (head, rest) = text.split_once('(').unwrap();
            let (_, rest) = rest.rsplit_once(')').unwrap();
            stat::parse(format!("{head}({comm}){rest}").as_bytes()).unwrap()
        };
        let ours = |comm: &str| of_stat(Pid::own(), &of(comm)).ours;
        assert!(ours(SNAPSHOT) && !ours("ckpt-other"));
    }

    #[test]
    fn descendants_come_after_their_parents() {
        let shell = [kin(1, 0, 1, 1), kin(40, 1, 40, 40)];
        let tree =
            [kin(50, 40, 50, 40), kin(60, 55, 50, 40), kin(55, 50, 50, 40), kin(70, 40, 70, 40)];
        assert_eq!(members(&[&shell[..], &tree].concat()), [50, 55, 60]);
    }

    #[test]
    fn a_restarter_of_the_same_tick_is_no_orphan() {
        let shell = [kin(1, 0, 1, 1), kin(40, 1, 40, 40)];
        let restarted = [Kin { start: 50, ..kin(45, 40, 45, 40) }, kin(50, 45, 45, 40)];
        let all = [&shell[..], &restarted].concat();
        assert_eq!(orphans(Pid::new(50), &all), []);
        assert_eq!(members(&all), [50]);
    }

    #[test]
    fn orphans_are_found_by_what_began_in_the_tree() {
        let all = [
            kin(1, 0, 1, 1),
            kin(40, 1, 40, 40),
            kin(45, 1, 40, 40),
            kin(50, 40, 50, 40),
            // In the same pipeline, the shell's child.
            kin(51, 40, 50, 40),
            // The leader of its group lives in the tree; so does that of the next.
            kin(61, 50, 61, 40),
            kin(62, 1, 61, 40),
            // Its session's leader is gone, and a member of the tree is in it.
            kin(71, 50, 70, 70),
            kin(72, 1, 70, 70),
            // In the group that the root leads.
            kin(80, 1, 50, 40),
            // Older than the root, or of another job.
            kin(30, 1, 61, 40),
            kin(90, 1, 90, 90),
        ];
        let mut found = members(&all);
        found.sort_unstable();
        assert_eq!(found, [50, 61, 62, 71, 72, 80]);
        assert_eq!(unsure(&found, &all), []);
    }

    #[test]
    fn orphans_of_a_group_that_others_lead_are_doubtful() {
        let all = [
            kin(1, 0, 1, 1),
            kin(40, 1, 40, 40),
            kin(41, 40, 40, 40),
            kin(30, 1, 40, 40),
            kin(50, 40, 40, 40),
            kin(60, 1, 40, 40),
            kin(70, 1, 70, 40),
        ];
        assert_eq!(members(&all), [50]);
        assert_eq!(unsure(&[50], &all), [60]);
    }

    #[test]
    fn nobody_above_the_root_is_doubtful() {
        // As of `timeout ckpt program` in the background of a script: all begin in one tick.
        let of = |pid, parent| Kin { start: 7, ..kin(pid, parent, 40, 40) };
        let all = [kin(1, 0, 1, 1), of(40, 1), of(41, 40), of(42, 41), of(50, 42)];
        assert_eq!(unsure(&[50], &all), []);
    }

    #[test]
    fn what_a_script_starts_beside_the_root_is_not_doubtful() {
        // As of `timeout ckpt program & other &`.
        let all = [
            kin(1, 0, 1, 1),
            kin(40, 1, 40, 40),
            kin(42, 40, 40, 40),
            kin(50, 42, 40, 40),
            kin(60, 40, 40, 40),
            kin(61, 1, 40, 40),
        ];
        assert_eq!(unsure(&[50], &all), [61]);
    }

    #[test]
    fn an_orphan_needs_no_sibling() {
        let all = [kin(1, 0, 1, 1), kin(40, 1, 40, 40), kin(50, 40, 50, 40), kin(60, 1, 50, 40)];
        assert_eq!(members(&all), [50, 60]);
    }

    #[test]
    fn nobody_is_below_who_is_gone() {
        assert_eq!(members(&[kin(1, 0, 1, 1)]), Vec::<i32>::new());
    }
}
