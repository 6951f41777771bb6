// SPDX-License-Identifier: LGPL-2.1-only
//! Making the processes of a tree, each with its own id (clone3(2) with set_tid, Linux 5.5).
//!
//! Every process of a restart is a fork of the restarter, with one thread, the image open and all descriptions of the
//! tree in it. So `make` returns many times: in the restarter, and in each member.
//!
//! # Safety
//! Processes are made by a bare clone3(2) without CLONE_VM by a process with one thread, so each may do all that its
//! maker may.
#![allow(unsafe_code)]

use super::children::{Change, change, none_ended};
use super::counted;
use super::namespaces::mount_proc;
use super::rendezvous::{Rendezvous, Stage};
use crate::error::{Because, Error, Result};
use crate::fault::{Point, become_member, reach};
use crate::proc::Pid;
use crate::proc::fork::{fork, own_id};
use crate::resource::descriptor::pty;
use crate::resource::kinship::numbers;
use crate::resource::kinship::plan::{Life, Node, Step};
use crate::resource::kinship::sharing::Births;
use crate::restart::pooled::Pool;
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::unistd::{setpgid, setsid};
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// What has to be made.
pub(crate) struct Processes<'a> {
    /// The processes.
    pub(crate) members: &'a [Node],
    /// What each does ([`crate::resource::kinship::plan::plan`]).
    pub(crate) lives: &'a [Life],
    /// Signals that their parents get when they end.
    pub(crate) exit_signals: &'a [i32],
    /// What they share with their makers.
    pub(crate) births: &'a Births,
    /// Where they meet.
    pub(crate) rendezvous: Rendezvous,
    /// In a PID namespace of their own: the last id behind which new ones begin.
    pub(crate) apart: Option<Pid>,
    /// Whether there is another place for them if an id is taken.
    pub(crate) gives_way: bool,
    /// The controlling terminals of sessions, by the member that leads one, with the foreground group of each.
    pub(crate) terminals: &'a HashMap<usize, (OwnedFd, Pid)>,
}

/// Who returns from [`Processes::make`].
pub(crate) enum Role {
    /// The restarter; the root's id as it sees it.
    Restarter(Pid),
    /// The member of this index, or why a process that was to be one cannot be.
    Member(Result<usize>),
}

impl Processes<'_> {
    /// Makes the root, and every member those that it has to make; returns when all are in their sessions and groups.
    ///
    /// # Errors
    /// In the restarter alone: the root's id is taken, or not permitted. Who fails among those that are made must not take
    /// itself for the restarter, so that is told in its [`Role`].
    pub(crate) fn make(&self, pool: &mut Pool<'_>) -> Result<Role> {
        let flags = self.apart.map_or(0, |_| libc::CLONE_NEWNS);
        pool.bequeath();
        match self.clone_member(0, flags)? {
            Some(root) => Ok(Role::Restarter(root)),
            None => Ok(Role::Member(self.become_one(pool))),
        }
    }

    /// Goes from the root's birth to the life of whoever this process becomes.
    fn become_one(&self, pool: &mut Pool<'_>) -> Result<usize> {
        reach(Point::Born);
        if let Some(last) = self.apart {
            if self.members[0].pid == Pid::INIT {
                // Nobody else ends it with the restarter, until that has told the witness.
                let _ = prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
            }
            mount_proc().because(|| "cannot mount a /proc for the program's processes")?;
            let _ = std::fs::write("/proc/sys/kernel/ns_last_pid", last.to_string());
        }
        let me = self.live(0, pool).and_then(|me| self.find_group(me).map(|()| me))?;
        reach(Point::Grouped);
        Ok(me)
    }

    fn all(&self) -> u32 {
        self.members.len() as u32
    }

    /// Does what a life holds; who this process is when all is done, for it may be one of those made on the way.
    fn live(&self, mut me: usize, pool: &mut Pool<'_>) -> Result<usize> {
        'life: loop {
            for step in &self.lives[me].steps {
                let born = match step {
                    Step::Reap => {
                        prctl::set_child_subreaper(true).because(|| "cannot adopt orphans")?;
                        None
                    }
                    Step::Make(child) => {
                        pool.before(Some(me), &[*child])?;
                        let made = self.clone_member(*child, 0)?;
                        made.is_none().then_some(*child)
                    }
                    Step::MakeSibling(other) => {
                        pool.before(Some(me), &[*other])?;
                        let made = self.clone_member(*other, libc::CLONE_PARENT)?;
                        made.is_none().then_some(*other)
                    }
                    Step::MakeOrphan(orphan) => self.by_another(me, None, &[*orphan], pool)?,
                    Step::MakeSession(id, members) => {
                        self.by_another(me, Some(*id), members, pool)?
                    }
                    Step::LeadSession => {
                        setsid().because(|| "cannot begin a session")?;
                        // Its children have it by birth.
                        if let Some((terminal, _)) = self.terminals.get(&me) {
                            pty::control(terminal)
                                .because(|| "cannot have a terminal (TIOCSCTTY)")?;
                        }
                        None
                    }
                    Step::LeadGroup => {
                        setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0))
                            .because(|| "cannot begin a process group")?;
                        None
                    }
                };
                if let Some(born) = born {
                    pool.born();
                    reach(Point::Born);
                    me = born;
                    continue 'life;
                }
            }
            let left = CloneFlags::from_bits_retain(self.births.left_by(me));
            if !left.is_empty() {
                unshare(left).because(|| "cannot have what others have had, too (unshare(2))")?;
            }
            return Ok(me);
        }
    }

    /// Makes a member; None in the member itself.
    fn clone_member(&self, index: usize, flags: i32) -> Result<Option<Pid>> {
        let pid = self.members[index].pid;
        let flags = flags | self.births.of(index);
        // A brother has the exit signal of who makes it.
        let exit_signal =
            if flags & libc::CLONE_PARENT == 0 { self.exit_signals[index] } else { 0 };
        let made = self.unless_taken(clone_with(flags, Some(pid), exit_signal));
        let made = made_or(made, || format!("cannot have the process id {pid} again"))
            .map_err(|e| e.hint("try again, or restart it with other ids (--ids new)"))?;
        if made.is_none() {
            numbers::note(pid, own_pid());
            become_member(index as u32);
        }
        Ok(made)
    }

    /// What was made; others are told where somebody has taken its id since that was looked for.
    fn unless_taken<T>(&self, made: nix::Result<T>) -> nix::Result<T> {
        if self.gives_way && matches!(made, Err(Errno::EEXIST)) {
            self.rendezvous.give_way();
        }
        made
    }

    /// Lets another process make members and end, so that they become orphans; with an id it leads a session of it.
    fn by_another(
        &self,
        me: usize,
        leader: Option<Pid>,
        members: &[usize],
        pool: &mut Pool<'_>,
    ) -> Result<Option<usize>> {
        let what = || match leader {
            Some(id) => format!("cannot begin the session {id} again"),
            None => "cannot make an orphan".to_owned(),
        };
        pool.before(Some(me), members)?;
        let flags = self.births.between(members);
        let made = self.unless_taken(clone_with(flags, leader, libc::SIGCHLD));
        if let Some(other) = made_or(made, what)? {
            return reap(other).because(what).map(|()| None);
        }
        pool.born();
        if let Some(id) = leader {
            setsid().because(what)?;
            numbers::note(id, own_pid());
        }
        for index in members {
            pool.before(None, std::slice::from_ref(index))?;
            let brother = leader.is_some() && self.members[*index].parent == Some(me);
            let flags = if brother { libc::CLONE_PARENT } else { 0 };
            if self.clone_member(*index, flags)?.is_none() {
                return Ok(Some(*index));
            }
        }
        end(0)
    }

    /// Brings this process into its group.
    fn find_group(&self, me: usize) -> Result<()> {
        let life = &self.lives[me];
        self.rendezvous.meet(Stage::Made, self.all(), none_ended)?;
        if let Some(group) = life.revive {
            self.unless_taken(revive(group))
                .because(|| format!("cannot begin the process group {group} again"))?;
        }
        self.rendezvous.meet(Stage::Revived, self.all(), none_ended)?;
        if let Some(group) = life.join {
            setpgid(nix::unistd::Pid::from_raw(0), numbers::here(group).nix())
                .because(|| format!("cannot join the process group {group}"))?;
        }
        // The restarter is one of them: whoever is made is guarded when it goes on.
        self.rendezvous.meet(Stage::Joined, self.all() + 1, none_ended)?;
        if me == 0 && self.members[0].pid == Pid::INIT {
            let _ = prctl::set_pdeathsig(None);
        }
        if let Some((terminal, group)) = self.terminals.get(&me) {
            // A group that nobody is in any more cannot be had again.
            let _ = pty::set_foreground(terminal, numbers::here(*group));
        }
        Ok(())
    }
}

/// Begins a group whose leader is gone: a child of its id leads it until we are in it.
fn revive(group: Pid) -> nix::Result<()> {
    let own = nix::unistd::Pid::from_raw(0);
    let Some(leader) = clone(Some(group), libc::SIGCHLD)? else {
        let led = setpgid(own, own);
        end(i32::from(led.is_err()));
    };
    // Dead, but not yet reaped, it still keeps the group.
    let ended = change(Some(leader), libc::WEXITED | libc::WNOWAIT)?;
    let joined = if ended == Some(Change::Ended(0)) {
        setpgid(own, leader.nix())
    } else {
        Err(Errno::EPERM)
    };
    numbers::note(group, leader);
    reap(leader)?;
    joined
}

fn own_pid() -> Pid {
    Pid::own()
}

/// What was made, or why it was not.
pub(super) fn made_or<S: std::fmt::Display>(
    made: nix::Result<Option<Pid>>,
    what: impl FnOnce() -> S,
) -> Result<Option<Pid>> {
    made.because(what).map_err(Error::of_making)
}

/// Makes a process; None in the process itself.
pub(crate) fn clone(pid: Option<Pid>, exit_signal: i32) -> nix::Result<Option<Pid>> {
    clone_with(0, pid, exit_signal)
}

/// The same with flags, and an id of choice.
pub(super) fn clone_with(
    flags: i32,
    pid: Option<Pid>,
    exit_signal: i32,
) -> nix::Result<Option<Pid>> {
    match pid {
        Some(pid) if counted::is_begun() => match counted::clone_as(flags, pid, exit_signal) {
            // Somebody else has it meanwhile.
            Err(Errno::EEXIST) if numbers::are_new() && !counted::are_vain() => {
                return fork(flags | exit_signal);
            }
            made => return made,
        },
        // Filters of containers know no clone3(2).
        None => return fork(flags | exit_signal),
        Some(_) if numbers::are_new() => return fork(flags | exit_signal),
        Some(_) => {}
    }
    let wanted = [pid.unwrap_or(Pid::NONE)];
    let own = own_id();
    let flags = flags | own.map_or(0, |_| libc::CLONE_CHILD_SETTID);
    let args = libc::clone_args {
        flags: u64::from(flags.cast_unsigned()),
        pidfd: 0,
        child_tid: own.map_or(0, |word| word.as_ptr().expose_provenance() as u64),
        parent_tid: 0,
        exit_signal: u64::from(exit_signal.unsigned_abs()),
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: if pid.is_some() { wanted.as_ptr().expose_provenance() as u64 } else { 0 },
        set_tid_size: u64::from(pid.is_some()),
        cgroup: 0,
    };
    let args: *const libc::clone_args = &args;
    // SAFETY: the arguments live until the call returns, and a fork of a process with one thread goes on here.
    let made = unsafe { libc::syscall(libc::SYS_clone3, args, size_of::<libc::clone_args>()) };
    Errno::result(made).map(|made| (made != 0).then_some(Pid::new(made as i32)))
}

/// Ends this process without running anything of its maker's.
pub(crate) fn end(status: i32) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(status) }
}

fn reap(child: Pid) -> nix::Result<()> {
    change(Some(child), libc::WEXITED).map(drop)
}
