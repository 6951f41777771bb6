// SPDX-License-Identifier: LGPL-2.1-only
//! Descriptor tables and working directories that processes have together (clone(2) with CLONE_FILES, CLONE_FS). A
//! process can share them only with its maker, from birth; so all share them that are between those who do, and have
//! their own again (unshare(2)) when they have made whom they make.

use super::plan::{Life, Step};
use super::{named, plan, planned};
use crate::proc::Tid;
use crate::ptrace::raw::{Share, order_of};
use ckpt_abi::image::{Member, member_flag};
use nix::libc;
use std::collections::BTreeMap;

/// How processes are made that share something with others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Births {
    /// The flags of clone(2) with which each member is made.
    made: Vec<i32>,
    /// Those of the processes that stand between, by the first member that they make.
    between: BTreeMap<usize, i32>,
    /// What each member has for itself again when it has made all (unshare(2)).
    leaves: Vec<i32>,
}

impl Births {
    /// With which flags a member is made.
    pub(crate) fn of(&self, member: usize) -> i32 {
        self.made.get(member).copied().unwrap_or(0)
    }

    /// With which somebody is made that makes members, and ends.
    pub(crate) fn between(&self, members: &[usize]) -> i32 {
        members.first().and_then(|first| self.between.get(first)).copied().unwrap_or(0)
    }

    /// What a member leaves when it has made all.
    pub(crate) fn left_by(&self, member: usize) -> i32 {
        self.leaves.get(member).copied().unwrap_or(0)
    }

    /// How they are made who make each other so.
    ///
    /// # Errors
    /// A member that would have to share with two that share nothing.
    pub(crate) fn of_all(members: &[Member], lives: &[Life]) -> Result<Self, usize> {
        let (makers, between) = makers(lives);
        let mut births = Self {
            made: vec![0; members.len()],
            leaves: vec![0; members.len()],
            ..Self::default()
        };
        for flag in [libc::CLONE_FILES, libc::CLONE_FS] {
            let first = |member: &Member| match flag {
                libc::CLONE_FILES => member.files,
                _ => member.directory,
            };
            let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for (index, member) in members.iter().enumerate() {
                if let Some(first) = first(member).checked_sub(1) {
                    let first = first as usize;
                    groups.entry(first).or_insert_with(|| vec![first]).push(index);
                }
            }
            let mut user: Vec<Option<usize>> = vec![None; makers.len()];
            for (group, all) in &groups {
                all.iter().for_each(|member| user[*member] = Some(*group));
            }
            for (group, all) in &groups {
                let mut below = vec![0; makers.len()];
                for member in all {
                    let mut at = Some(*member);
                    while let Some(node) = at {
                        below[node] += 1;
                        at = makers[node];
                    }
                }
                for node in 0..makers.len() {
                    if below[node] == 0 || below[node] == all.len() {
                        continue;
                    }
                    match between.iter().find(|(_, at)| **at == node) {
                        Some((first, _)) => *births.between.entry(*first).or_default() |= flag,
                        None => births.made[node] |= flag,
                    }
                    let Some(maker) = makers[node] else { continue };
                    match user[maker] {
                        Some(its) if its == *group => {}
                        Some(_) => return Err(all[0]),
                        None => {
                            user[maker] = Some(*group);
                            births.leaves.get_mut(maker).into_iter().for_each(|all| *all |= flag);
                        }
                    }
                }
            }
        }
        Ok(births)
    }
}

/// Who makes each member, and behind them each process that stands between; and these by the first that they make.
fn makers(lives: &[Life]) -> (Vec<Option<usize>>, BTreeMap<usize, usize>) {
    let (mut makers, mut between) = (vec![None; lives.len()], BTreeMap::new());
    for (maker, life) in lives.iter().enumerate() {
        for step in &life.steps {
            match step {
                Step::Make(one) | Step::MakeSibling(one) => makers[*one] = Some(maker),
                Step::MakeOrphan(_) | Step::MakeSession(..) => {
                    let made = step.made();
                    let node = makers.len();
                    made.iter().for_each(|one| makers[*one] = Some(node));
                    between.extend(made.first().map(|first| (*first, node)));
                    makers.push(Some(maker));
                }
                Step::Reap | Step::LeadSession | Step::LeadGroup => {}
            }
        }
    }
    (makers, between)
}

/// Notes who shares what with an earlier one.
///
/// # Errors
/// Who shares something that it cannot be made with, in a sentence.
pub(crate) fn save(members: &mut [Member]) -> Vec<String> {
    let mut shared = None;
    for what in [Share::Files, Share::Directory] {
        let mut first: Vec<usize> = Vec::new();
        for index in 0..members.len() {
            if members[index].flags & member_flag::DEAD != 0 {
                continue;
            }
            let pid = |index: usize| Tid::of_word(members[index].pid);
            // Without kcmp(2) nobody can tell.
            let order = |at: &usize| {
                order_of(pid(*at), pid(index), what).unwrap_or_else(|_| at.cmp(&index))
            };
            match first.binary_search_by(order) {
                Ok(at) => {
                    let number = first[at] as u32 + 1;
                    shared = Some((first[at], index));
                    match what {
                        Share::Files => members[index].files = number,
                        Share::Directory => members[index].directory = number,
                    }
                }
                Err(at) => first.insert(at, index),
            }
        }
    }
    let Some((one, other)) = shared else { return Vec::new() };
    let Ok(lives) = plan::plan(&planned(members)) else { return Vec::new() };
    if Births::of_all(members, &lives).is_ok() {
        return Vec::new();
    }
    let [(own, name), (other, others)] = [other, one].map(|at| named(&members[at]));
    vec![format!(
        "process {own} ({name}) has its descriptors (CLONE_FILES) or its working directory (CLONE_FS) together with process {other} ({others}), in a way that a restart cannot make again"
    )]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Pid;
    use zerocopy::FromZeros;

    fn member(files: u32, directory: u32) -> Member {
        Member { files, directory, ..Member::new_zeroed() }
    }

    fn life(steps: Vec<Step>) -> Life {
        Life { steps, ..Life::default() }
    }

    const FILES: i32 = libc::CLONE_FILES;
    const FS: i32 = libc::CLONE_FS;

    #[test]
    fn who_is_between_shares_for_a_while() {
        // Two children of one that shares with neither, and an orphan that one of these makes.
        let lives = [
            life(vec![Step::Make(1), Step::Make(2)]),
            life(vec![]),
            life(vec![Step::MakeOrphan(3)]),
            life(vec![]),
        ];
        let members = [member(0, 0), member(0, 0), member(2, 0), member(0, 2)];
        let births = Births::of_all(&members, &lives).unwrap();
        assert_eq!(births.made, [0, FILES | FS, FILES | FS, FS]);
        assert_eq!(births.between, BTreeMap::from([(3, FS)]));
        assert_eq!(births.leaves, [FILES | FS, 0, FS, 0]);
        // With its parent.
        let members = [member(0, 0), member(1, 0), member(0, 0), member(0, 0)];
        let births = Births::of_all(&members, &lives).unwrap();
        assert_eq!((births.made, births.leaves), (vec![0, FILES, 0, 0], vec![0; 4]));
    }

    #[test]
    fn nobody_shares_with_two_that_do_not() {
        let lives =
            [life(vec![Step::Make(1)]), life(vec![Step::Make(2)]), life(vec![Step::Make(3)])];
        let lives = [&lives[..], &[life(vec![])]].concat();
        // The first with the third, and the second with the fourth.
        let members = [member(0, 0), member(0, 0), member(1, 0), member(2, 0)];
        assert!(Births::of_all(&members, &lives).is_err());
        let session =
            [life(vec![Step::MakeSession(Pid::new(9), vec![1, 2])]), life(vec![]), life(vec![])];
        let members = [member(0, 0), member(0, 0), member(2, 0)];
        let births = Births::of_all(&members, &session).unwrap();
        assert_eq!((births.of(1), births.of(2), births.between(&[1, 2])), (FILES, FILES, 0));
    }
}
