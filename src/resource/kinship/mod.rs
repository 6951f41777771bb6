// SPDX-License-Identifier: LGPL-2.1-only
//! How the processes of a tree are related: parents, groups, sessions, and the dead that nobody has waited for.
//!
//! The group and session in which the root was started began outside of the tree; a restart has the restarter's in their
//! place, for everybody who is in them. Every other group or session is kept by its number.

pub(crate) mod numbers;
pub(crate) mod plan;
pub(crate) mod sharing;

use crate::proc::tree::Kin;
use crate::proc::{self, Pid, Process, stat::Stat};
use crate::ptrace::raw::signal_set;
use crate::resource::descriptor::pty::{self, Ptys};
use crate::resource::descriptor::terminal;
use ckpt_abi::image::{self as rec, NOBODY, member_flag};
use ckpt_abi::region::GROUP_LEFT;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use zerocopy::FromZeros;

/// How a sentence begins about those who were left out.
const MISSING: &str = "child processes: ";
/// How that of processes that may belong to it begins.
const DOUBTFUL: &str = "what may belong to the job: ";

/// A process of the tree, as it is found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// What /proc says.
    pub(crate) kin: Kin,
    /// The same of its first thread; None if it is gone.
    pub(crate) stat: Option<Stat>,
    /// Its children, in the order in which it has them.
    pub(crate) children: Vec<Pid>,
    /// Whether orphans come to it (PR_SET_CHILD_SUBREAPER).
    pub(crate) reaps: bool,
    /// Whether it is stopped and wait(2) would tell its parent so.
    pub(crate) untold: bool,
}

impl Found {
    /// One that has ended, and that nobody has waited for.
    pub(crate) fn dead(kin: &Kin) -> Self {
        let stat = Process::glimpse(kin.pid).and_then(|dead| dead.main_stat()).ok();
        Self { kin: *kin, stat, children: Vec::new(), reaps: false, untold: false }
    }
}

/// The session and the group of a process, for [`Config::begun`](ckpt_abi::region::Config::begun).
pub(crate) fn begun(pid: Pid) -> [u32; 2] {
    proc::tree::kin(pid).map_or([0; 2], |kin| [kin.session, kin.group].map(Pid::word))
}

/// How the numbers of sessions and groups are recorded.
struct Numbers {
    root: Kin,
    begun: [Pid; 2],
    /// Whether the root has begun its session, or its group, itself.
    own: [bool; 2],
}

impl Numbers {
    /// Of a tree whose root was in the session and group `begun`, if that is known, unless the session's terminal is one
    /// of the tree's (`apart`). A root that has taken a terminal from whoever started it takes that of the restarter as
    /// well, and so is in its group, unless it `governs`.
    fn of(root: Kin, begun: Option<[u32; 2]>, apart: bool, governs: bool) -> Self {
        let begun = begun.map_or([root.session, root.group], |begun| begun.map(Pid::of_word));
        let session = root.session == root.pid && (apart || root.session != begun[0]);
        let leads = root.group == root.pid || begun[1].word() == GROUP_LEFT;
        let has_terminal = || {
            Process::glimpse(root.pid)
                .and_then(|it| it.main_stat())
                .is_ok_and(|stat| stat.tty_nr != 0 && stat.tpgid == root.group)
        };
        let group = session || governs || root.group != begun[1] && leads && !has_terminal();
        Self { root, begun, own: [session, group] }
    }

    fn recorded(&self, id: Pid, which: usize) -> u32 {
        let outside = plan::OUTSIDE;
        let roots = [self.root.session, self.root.group][which];
        let number = match id {
            id if id == roots && self.own[which] => self.root.pid,
            id if id == roots || id == self.begun[which] => outside,
            id => id,
        };
        number.word()
    }
}

/// The place of each process among the children of its parent.
fn ranks(living: &[Found]) -> HashMap<Pid, u32> {
    living.iter().flat_map(|found| found.children.iter().copied().zip(0..)).collect()
}

/// The records of a tree: those that live in the order of the image's processes, the root first; then the dead. The
/// root was in the session and group `begun` when it was started, if that is known. The pseudo-terminals in `ptys` are
/// made again.
///
/// # Errors
/// What stands in the way of making them again, a sentence each.
pub(crate) fn save(
    living: &[Found],
    dead: &[Found],
    ptys: &Ptys,
    begun: Option<[u32; 2]>,
) -> Result<Vec<rec::Member>, Vec<String>> {
    let Some(root) = living.first() else { return Ok(Vec::new()) };
    let numbers: HashMap<Pid, u32> =
        (0..).zip(living).map(|(n, found)| (found.kin.pid, n)).collect();
    let all = living.iter().chain(dead).cloned();
    let governs = governs(living, ptys);
    let apart = root.stat.as_ref().is_some_and(|stat| own_terminal(stat, ptys).is_some());
    let (outer, ranks) = (Numbers::of(root.kin, begun, apart, governs), ranks(living));
    let record = |found: Found| {
        let Kin { pid, parent, group, session, .. } = found.kin;
        let parent = if pid == root.kin.pid { None } else { numbers.get(&parent) };
        let flags = [
            (found.kin.dead, member_flag::DEAD),
            (found.reaps, member_flag::REAPS),
            (found.untold, member_flag::UNTOLD),
            (governs && pid == root.kin.pid, member_flag::GOVERNS),
        ];
        let stat = &found.stat;
        let exit_signal = stat.as_ref().map_or(nix::libc::SIGCHLD, |stat| stat.exit_signal);
        let number = stat.as_ref().filter(|_| session == pid);
        let number = number.and_then(|stat| own_terminal(stat, ptys));
        let foreground =
            stat.as_ref().filter(|_| number.is_some()).map_or(Pid::NONE, |stat| stat.tpgid);
        let mut name = [0; 16];
        let comm = stat.as_ref().map(|stat| stat.comm.as_bytes()).unwrap_or_default();
        name.iter_mut().zip(comm).for_each(|(to, from)| *to = *from);
        rec::Member {
            pid: pid.word(),
            parent: parent.copied().unwrap_or(NOBODY),
            group: outer.recorded(group, 1),
            session: outer.recorded(session, 0),
            exit_signal: exit_signal.unsigned_abs(),
            flags: flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum(),
            status: stat.as_ref().map_or(0, |stat| stat.wait_status.cast_unsigned()),
            process: numbers.get(&pid).copied().filter(|_| !found.kin.dead).unwrap_or(NOBODY),
            name,
            terminal: number.map_or(0, |number| number + 1),
            foreground: foreground.word(),
            rank: ranks.get(&pid).copied().unwrap_or_default(),
            ..rec::Member::new_zeroed()
        }
    };
    let members: Vec<_> = all.map(record).collect();
    match plan::plan(&planned(&members)) {
        Ok(_) => Ok(members),
        Err(index) => {
            let (pid, name) = members.get(index).map(named).unwrap_or_default();
            Err(vec![format!(
                "process {pid} ({name}) is in a session or a process group that a restart cannot make again"
            )])
        }
    }
}

/// The number of a controlling terminal that is made again.
fn own_terminal(stat: &Stat, ptys: &Ptys) -> Option<u32> {
    let device = terminal::decoded(stat.tty_nr.cast_unsigned());
    pty::number_of(device).filter(|number| ptys.has(*number))
}

/// Whether the first gives its terminal, which is somebody else's, to process groups of its own making, and takes it back
/// by the number of its own group: shells with job control do, and stop nothing when they do so in the background.
fn governs(living: &[Found], ptys: &Ptys) -> bool {
    let root = living.first().and_then(|root| Some((root.kin, root.stat.as_ref()?)));
    root.is_some_and(|(kin, stat)| {
        let leads = stat.tty_nr != 0 && kin.group == kin.pid;
        let ignores = || {
            Process::glimpse(kin.pid)
                .and_then(|it| it.main_status())
                .is_ok_and(|status| status.ignored & signal_set(nix::libc::SIGTTOU) != 0)
        };
        let others = living.iter().map(|found| found.kin.group).filter(|it| *it != kin.group);
        leads
            && own_terminal(stat, ptys).is_none()
            && (others.into_iter().any(|group| group == stat.tpgid) || ignores())
    })
}

/// Whether the process group of a member is orphaned (setpgid(2)), as far as its ancestors tell: signals of terminals do
/// not stop it then.
pub(crate) fn is_orphaned(members: &[rec::Member], index: usize) -> bool {
    let Some(own) = members.get(index) else { return true };
    let mut parent = own.parent as usize;
    // A circle of parents would be damage.
    for _ in 0..members.len() {
        match members.get(parent) {
            Some(above) if above.group == own.group => parent = above.parent as usize,
            above => return above.is_none_or(|above| above.session != own.session),
        }
    }
    true
}

/// The id and the name of a member, for a sentence.
pub(crate) fn named(member: &rec::Member) -> (u32, String) {
    let end = member.name.iter().position(|byte| *byte == 0).unwrap_or(member.name.len());
    (member.pid, String::from_utf8_lossy(&member.name[..end]).into_owned())
}

/// The sentence about processes that an image goes without.
pub(crate) fn missing(all: &str) -> String {
    format!(
        "{MISSING}{all} (a restart is without them: what they would have done is missing, and wait(2) finds none)"
    )
}

/// The sentence about processes that may belong to it.
pub(crate) fn doubtful(all: &str) -> String {
    format!(
        "{DOUBTFUL}{all} (the parent has ended, and the process group is the one in which the job was started: nobody can tell. In a process group of its own, as with setsid -w ckpt PROGRAM, the job is saved with them)"
    )
}

/// Whether a sentence says one of these.
pub(crate) fn is_missing(sentence: &str) -> bool {
    sentence.starts_with(MISSING) || sentence.starts_with(DOUBTFUL)
}

/// The members as the plan wants them.
pub(crate) fn planned(members: &[rec::Member]) -> Vec<plan::Node> {
    let one = |member: &rec::Member| plan::Node {
        pid: Pid::of_word(member.pid),
        parent: (member.parent != NOBODY).then_some(member.parent as usize),
        group: Pid::of_word(member.group),
        session: Pid::of_word(member.session),
        reaps: member.flags & member_flag::REAPS != 0,
        rank: member.rank,
    };
    members.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kin(pid: i32, parent: i32, group: i32, session: i32) -> Kin {
        let [pid, parent, group, session] = [pid, parent, group, session].map(Pid::new);
        Kin { pid, parent, group, session, start: 0, dead: false, ours: false }
    }

    #[test]
    fn what_began_outside_stays_outside() {
        let found =
            |kin| Found { kin, stat: None, children: Vec::new(), reaps: false, untold: false };
        let living = [
            found(kin(50, 40, 50, 40)),
            found(kin(51, 50, 51, 40)),
            found(kin(52, 1, 51, 40)),
            found(kin(53, 50, 50, 40)),
        ];
        let dead = [Found::dead(&Kin { dead: true, ..kin(54, 51, 51, 40) })];
        let members = save(&living, &dead, &Ptys::default(), None).unwrap();
        let ids = |m: &rec::Member| [m.parent, m.group, m.session, m.process];
        let all: Vec<_> = members.iter().map(ids).collect();
        assert_eq!(
            all,
            [
                [NOBODY, 0, 0, 0],
                [0, 51, 0, 1],
                [NOBODY, 51, 0, 2],
                [0, 0, 0, 3],
                [1, 51, 0, NOBODY]
            ]
        );
        assert_eq!(members[4].flags, member_flag::DEAD);
    }

    #[test]
    fn what_the_root_has_begun_itself_is_its_own() {
        let found =
            |kin| Found { kin, stat: None, children: Vec::new(), reaps: false, untold: false };
        let ids = |living: &[Found], begun| {
            let members = save(living, &[], &Ptys::default(), Some(begun)).unwrap();
            members.iter().map(|m| [m.group, m.session]).collect::<Vec<_>>()
        };
        let daemon = [found(kin(50, 40, 50, 50)), found(kin(51, 50, 41, 40))];
        assert_eq!(ids(&daemon, [40, 41]), [[50, 50], [0, 0]]);
        assert_eq!(ids(&daemon[..1], [50, 50]), [[0, 0]]);
        let group = [found(kin(50, 40, 50, 40)), found(kin(51, 50, 41, 40))];
        assert_eq!(ids(&group, [40, 41]), [[50, 0], [0, 0]]);
        // In a restarter's group, which stands for it.
        assert_eq!(ids(&[found(kin(50, 40, 40, 30))], [30, GROUP_LEFT]), [[50, 0]]);
    }
}
