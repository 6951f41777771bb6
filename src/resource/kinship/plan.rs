// SPDX-License-Identifier: LGPL-2.1-only
//! Who makes whom: a pure plan by which processes come to have their parents, sessions and groups.
//!
//! A child is born in its maker's session and group (credentials(7)). A session is only begun, by the process whose
//! id it has (setsid(2)); a group of the own session can be joined (setpgid(2)). So a process makes the children that
//! belong to its maker's session or to the group from outside before it begins its own, and the others after that.
//! Orphans are made by an intermediate that ends, in a session and below a reaper (init, or PR_SET_CHILD_SUBREAPER) that
//! are theirs. A session or group whose leader is gone is begun by a placeholder with the leader's id that ends. Who is in
//! another session than its parent was ever in is made by a brother or by such a placeholder (CLONE_PARENT).
//!
//! The plan simulates what the kernel does; what it cannot bring about is an error, so that it can be an obstacle when
//! the checkpoint is taken.

use crate::order;
use crate::proc::Pid;

/// A session or group that begins outside of the tree: the restarter's own.
pub(crate) const OUTSIDE: Pid = Pid::NONE;

/// A process of the tree, dead ones that nobody has waited for among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Process id.
    pub(crate) pid: Pid,
    /// Index of its parent; None of the root, and of orphans that init has.
    pub(crate) parent: Option<usize>,
    /// Process group, or [`OUTSIDE`].
    pub(crate) group: Pid,
    /// Session, or [`OUTSIDE`].
    pub(crate) session: Pid,
    /// Orphans among its descendants come to it (PR_SET_CHILD_SUBREAPER).
    pub(crate) reaps: bool,
    /// Its place among the children of its parent, who are made in that order.
    pub(crate) rank: u32,
}

/// What a process does, in this order, before it becomes its member. Those of `group` come when all are made, those of
/// `join` when all have done these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) steps: Vec<Step>,
    /// A group without a leader that it begins again, by a placeholder.
    pub(crate) revive: Option<Pid>,
    /// A group that it joins.
    pub(crate) join: Option<Pid>,
}

impl Life {
    /// Whom it makes, in this order.
    pub(crate) fn made(&self) -> impl Iterator<Item = usize> {
        self.steps.iter().flat_map(Step::made).copied()
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// prctl(PR_SET_CHILD_SUBREAPER).
    Reap,
    /// Make a child: this member.
    Make(usize),
    /// Make an intermediate that makes this member and ends.
    MakeOrphan(usize),
    /// Make a child of the own parent: this member.
    MakeSibling(usize),
    /// Make a placeholder of this id that begins a session, makes these members, and ends.
    MakeSession(Pid, Vec<usize>),
    /// setsid(2).
    LeadSession,
    /// setpgid(2) with the own id.
    LeadGroup,
}

impl Step {
    /// Whom it makes, in this order.
    pub(crate) fn made(&self) -> &[usize] {
        match self {
            Self::Make(one) | Self::MakeOrphan(one) | Self::MakeSibling(one) => {
                std::slice::from_ref(one)
            }
            Self::MakeSession(_, all) => all,
            Self::Reap | Self::LeadSession | Self::LeadGroup => &[],
        }
    }
}

/// Plans for all members, by index; the root is the first.
///
/// # Errors
/// The index of a member that cannot come to its session, group or parent.
pub(crate) fn plan(members: &[Node]) -> Result<Vec<Life>, usize> {
    let mut planner = Planner {
        members,
        lives: vec![Life::default(); members.len()],
        born: vec![None; members.len()],
        needs: needs(members),
    };
    planner.give_birth(0, State { session: OUTSIDE, group: OUTSIDE });
    loop {
        // Where one can be made may depend on who is there by then.
        let orphans: Vec<_> = planner.unborn().collect();
        let Some(first) = orphans.first() else { break };
        let mut each = orphans.iter();
        let placed = each.clone().any(|orphan| planner.place(*orphan))
            || each.any(|orphan| planner.place_in_dead_session(*orphan));
        if !placed {
            return Err(*first);
        }
    }
    planner.groups()?;
    Ok(planner.lives)
}

/// Where a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    session: Pid,
    group: Pid,
}

/// Where a process has to be born.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Need {
    /// In this session.
    session: Option<Pid>,
    /// In the group from outside.
    outside: bool,
}

impl Need {
    fn is_met(self, state: State) -> bool {
        self.session.is_none_or(|session| session == state.session)
            && (!self.outside || state.group == OUTSIDE)
    }
}

/// What each member needs. Who leads a session or a group is born where those of its children were that are elsewhere.
fn needs(members: &[Node]) -> Vec<Need> {
    let own = |member: &Node| Need {
        session: (member.session != member.pid).then_some(member.session),
        outside: member.group == OUTSIDE,
    };
    let mut needs: Vec<_> = members.iter().map(own).collect();
    // A child is often listed behind its parent: from the end it is a matter of one round for most.
    while (1..members.len()).rev().fold(false, |more, child| {
        let Some(parent) = members[child].parent else { return more };
        let (wanted, Node { pid, session, group, reaps, .. }) = (needs[child], members[parent]);
        let mut need = needs[parent];
        // Whoever reaps may have got the child from elsewhere.
        let near =
            |session: Pid| session == OUTSIDE || !reaps || is_above(members, parent, session);
        if session == pid && need.session.is_none() {
            need.session = wanted.session.filter(|session| *session != pid && near(*session));
        }
        need.outside |= wanted.outside && group == pid;
        let news = std::mem::replace(&mut needs[parent], need) != need;
        more || news
    }) {}
    needs
}

/// Whether an ancestor of a member is in a session.
fn is_above(members: &[Node], index: usize, session: Pid) -> bool {
    let mut at = members[index].parent;
    for _ in 0..members.len() {
        match at {
            Some(above) if members[above].session == session => return true,
            Some(above) => at = members[above].parent,
            None => break,
        }
    }
    false
}

struct Planner<'a> {
    members: &'a [Node],
    lives: Vec<Life>,
    born: Vec<Option<State>>,
    needs: Vec<Need>,
}

impl Planner<'_> {
    /// Plans a member that is born in `state`, and all children that it can have by itself.
    fn give_birth(&mut self, index: usize, state: State) {
        let mut open = vec![(index, state)];
        while let Some((index, state)) = open.pop() {
            self.born[index] = Some(state);
            let (turn, after) = self.turn(index, state);
            let mut steps: Vec<_> =
                self.members[index].reaps.then_some(Step::Reap).into_iter().collect();
            let mut late = Vec::new();
            for child in self.children(index) {
                if self.needs[child].is_met(after) {
                    late.push(Step::Make(child));
                    open.push((child, after));
                } else if self.needs[child].is_met(state) {
                    steps.push(Step::Make(child));
                    open.push((child, state));
                }
            }
            steps.extend(turn);
            steps.extend(late);
            self.lives[index].steps = steps;
        }
    }

    /// How a process begins what it leads, and where it is then.
    fn turn(&self, index: usize, state: State) -> (Option<Step>, State) {
        let Node { pid, group, session, .. } = self.members[index];
        if session == pid && state.session != pid {
            return (Some(Step::LeadSession), State { session: pid, group: pid });
        }
        if group == pid && state.group != pid {
            return (Some(Step::LeadGroup), State { group: pid, ..state });
        }
        (None, state)
    }

    fn children(&self, index: usize) -> Vec<usize> {
        let is_child = |child: &usize| self.members[*child].parent == Some(index);
        let mut children: Vec<_> = (1..self.members.len()).filter(is_child).collect();
        order::by_key(&mut children, |child| (self.members[*child].rank.into(), 0));
        children
    }

    /// Those that nobody makes yet.
    fn unborn(&self) -> impl Iterator<Item = usize> {
        (1..self.members.len()).filter(|index| self.born[*index].is_none())
    }

    /// Who gets the orphans of a process's children.
    fn reaper(&self, index: usize) -> Option<usize> {
        let mut at = Some(index);
        // A circle of parents would be damage.
        for _ in 0..self.members.len() {
            match at {
                Some(index) if self.members[index].reaps => return Some(index),
                Some(index) => at = self.members[index].parent,
                None => return None,
            }
        }
        None
    }

    /// Finds a maker for an orphan; false where there is none yet.
    fn place(&mut self, orphan: usize) -> bool {
        let (member, need) = (self.members[orphan], self.needs[orphan]);
        for maker in 0..self.members.len() {
            let Some(state) = self.born[maker] else { continue };
            let (turn, after) = self.turn(maker, state);
            if self.reaps_too_early(maker, orphan) {
                if self.place_before_reaping(maker, orphan, turn, need.is_met(after)) {
                    self.give_birth(orphan, after);
                    return true;
                }
                continue;
            }
            let step = match member.parent {
                parent if self.reaper(maker) == parent => Step::MakeOrphan(orphan),
                Some(_) if self.members[maker].parent == member.parent => Step::MakeSibling(orphan),
                _ => continue,
            };
            if need.is_met(after) {
                self.lives[maker].steps.push(step);
                self.give_birth(orphan, after);
                return true;
            }
            if need.is_met(state) {
                let steps = &mut self.lives[maker].steps;
                let at = turn.and_then(|turn| steps.iter().position(|step| *step == turn));
                steps.insert(at.unwrap_or(steps.len()), step);
                self.give_birth(orphan, state);
                return true;
            }
        }
        false
    }

    /// Whether an orphan would come to a maker that reaps, and belongs to whoever reaped before.
    fn reaps_too_early(&self, maker: usize, orphan: usize) -> bool {
        let Node { reaps, parent, .. } = self.members[maker];
        let above = parent.and_then(|parent| self.reaper(parent));
        let wanted = self.members[orphan].parent;
        reaps && wanted != Some(maker) && above == wanted
    }

    /// Has a maker make an orphan that belongs to whoever reaped before it: when it leads its session, and before it reaps,
    /// which comes before all others. False where that cannot be.
    fn place_before_reaping(
        &mut self,
        maker: usize,
        orphan: usize,
        turn: Option<Step>,
        fits: bool,
    ) -> bool {
        let steps = &mut self.lives[maker].steps;
        let place = |steps: &[Step], wanted: &Step| steps.iter().position(|step| step == wanted);
        let Some(mut at) = place(steps, &Step::Reap).filter(|_| fits) else { return false };
        if let Some(turn) = turn.and_then(|turn| place(steps, &turn)).filter(|turn| at < *turn) {
            if steps[..turn].iter().any(|step| !step.made().is_empty()) {
                return false;
            }
            let reap = steps.remove(at);
            steps.insert(turn, reap);
            at = turn;
        }
        steps.insert(at, Step::MakeOrphan(orphan));
        true
    }

    /// The leader of its session is gone, as that of a daemon: a placeholder begins it and makes all that are in it. False
    /// where that is not so.
    fn place_in_dead_session(&mut self, orphan: usize) -> bool {
        let parent = self.members[orphan].parent;
        let Some(session) = self.needs[orphan].session.filter(|session| *session != OUTSIDE) else {
            return false;
        };
        let leads = |member: &Node| member.pid == session;
        let makes = |maker: &usize| match parent {
            Some(parent) => *maker == parent,
            None => self.reaper(*maker).is_none(),
        };
        let maker =
            (0..self.members.len()).find(|maker| self.born[*maker].is_some() && makes(maker));
        let begun = |life: &Life| {
            life.steps.iter().any(|step| matches!(step, Step::MakeSession(id, _) if *id == session))
        };
        let exists = self.members.iter().any(leads) || self.lives.iter().any(begun);
        let (Some(maker), false) = (maker, exists) else { return false };
        let state = State { session, group: session };
        let belongs = |index: &usize| {
            self.members[*index].parent == parent
                && self.needs[*index].session == Some(session)
                && self.needs[*index].is_met(state)
        };
        let all: Vec<_> = self.unborn().filter(belongs).collect();
        if !all.contains(&orphan) {
            return false;
        }
        self.lives[maker].steps.push(Step::MakeSession(session, all.clone()));
        all.into_iter().for_each(|index| self.give_birth(index, state));
        true
    }

    /// Plans who joins which group when all are made.
    fn groups(&mut self) -> Result<(), usize> {
        let mut exist = vec![OUTSIDE];
        for (index, member) in self.members.iter().enumerate() {
            let state = self.born[index].ok_or(index)?;
            let (_, after) = self.turn(index, state);
            if after.session != member.session {
                return Err(index);
            }
            exist.push(after.group);
        }
        for (index, member) in self.members.iter().enumerate() {
            let state = self.born[index].ok_or(index)?;
            let (_, after) = self.turn(index, state);
            if after.group == member.group {
                continue;
            }
            // A leader of a session leads its group for ever; nobody can name the group from outside.
            if member.session == member.pid || member.group == OUTSIDE {
                return Err(index);
            }
            if exist.contains(&member.group) && self.is_kept(member.group) {
                self.lives[index].join = Some(member.group);
            } else {
                self.lives[index].revive = Some(member.group);
                exist.push(member.group);
            }
        }
        Ok(())
    }

    /// Whether somebody stays in a group from the start, so that others can join it, or begins it again.
    fn is_kept(&self, group: Pid) -> bool {
        let stays = |(index, member): (usize, &Node)| {
            let after = self.born[index].map(|state| self.turn(index, state).1);
            let revives = self.lives[index].revive == Some(group);
            revives || (member.group == group && after.is_some_and(|after| after.group == group))
        };
        self.members.iter().enumerate().any(stays)
    }
}

#[cfg(test)]
mod tests;
