// SPDX-License-Identifier: LGPL-2.1-only
//! Restarting a tree: every process of it is a fork of this one that becomes its program, all at one moment.
//!
//! Here everything is checked and opened once; then come the witness, the namespaces, init, the root and whoever is
//! below it ([`super::skeleton`]). Each fills its memory and plans; when all have, they leave, and when all restorers
//! are done, they enter their saved states. A failure before that ends them all. This process stays, as a proxy.

use super::phase1_check::Saved;
use super::phase3_open::{self, Files, Way};
use super::pooled::Pool;
use super::skeleton::children::{await_end, none_ended, seen};
use super::skeleton::init::Init;
use super::skeleton::make::{Processes, Role, end};
use super::skeleton::namespaces::Place;
use super::skeleton::nursery::Nursery;
use super::skeleton::proxy::{self, Begun, Proxy};
use super::skeleton::rendezvous::{Rendezvous, Stage, ended};
use super::skeleton::witness::Witness;
use super::skeleton::{counted, deputy, stay};
use super::space::Space;
use super::{Start, mapping, painter, phase2_adapt};
use crate::error::{Error, FAILED, Result, printable};
use crate::fault::{Point, reach};
use crate::image::PAGE;
use crate::image::read::Image;
use crate::inject::monitor::Monitor;
use crate::proc::{self, Pid};
use crate::progress;
use crate::resource::kinship::{self, numbers, plan::plan, sharing::Births};
use ckpt_abi::image::{Member, NOBODY, SectionKind, member_flag};
use nix::libc;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use zerocopy::FromZeros;

/// The processes of an image.
pub(crate) struct Tree {
    pub(super) members: Vec<Member>,
}

/// What every member has from the restarter.
struct Inherited<'a> {
    all: Vec<Saved<'a>>,
    files: Files,
    warnings: Vec<String>,
    /// Why some ids may be new ones.
    anew: String,
    monitor: u32,
    pool: Pool<'a>,
}

/// What a member of the tree knows of the others.
pub(crate) struct Membership {
    rendezvous: Rendezvous,
    /// How many processes live.
    pub(crate) living: u32,
    /// Its children that have ended.
    dead: Vec<(Pid, i32)>,
    /// Its children that are stopped, and whether it has yet to hear of that.
    pub(crate) stopped: Vec<(Pid, bool)>,
    /// By which signal it is to be stopped, if it was.
    pub(crate) stop_signal: i32,
    /// Whether its parent belongs to the tree.
    pub(crate) has_parent: bool,
    /// Whether it has capabilities only for its restart.
    pub(crate) is_privileged: bool,
    /// Whether its descriptor table, and its directories, are an earlier process's, which sees to it (CLONE_FILES, CLONE_FS).
    pub(crate) led: [bool; 2],
}

/// What a process of a restart is among others.
#[derive(Clone, Copy)]
pub(crate) enum Who<'a> {
    /// The only one of its image.
    Alone,
    /// One of a tree.
    Member(&'a Membership),
}

impl Who<'_> {
    /// What it knows of the others.
    pub(crate) fn member(&self) -> Option<&Membership> {
        match self {
            Self::Alone => None,
            Self::Member(member) => Some(member),
        }
    }

    /// Whether another process has the same descriptors, and gives them their numbers. Two processes work with one
    /// table then: whoever follows closes nothing but what it has opened itself, and opens nothing more when all have
    /// planned.
    pub(crate) fn follows(&self) -> bool {
        self.member().is_some_and(|member| member.led[0])
    }

    /// Waits until all that live have come so far.
    ///
    /// # Errors
    /// Another has failed.
    pub(crate) fn meet(self, stage: Stage) -> Result<()> {
        match self {
            Self::Alone => Ok(()),
            Self::Member(member) => member.rendezvous.meet(stage, member.living, none_ended),
        }
    }

    /// Whether nobody has said a sentence yet.
    pub(crate) fn is_news(self, sentence: &str) -> bool {
        self.member().is_none_or(|member| member.rendezvous.is_news(sentence))
    }

    /// Waits until the children are dead that were, and forgets the signals that told of them and of our own helpers.
    ///
    /// # Errors
    /// One of them has ended in another way.
    pub(crate) fn bury(self) -> Result<()> {
        if let Self::Member(member) = self {
            if !member.dead.iter().all(|(pid, status)| await_end(*pid, *status)) {
                return Err(ended());
            }
            proxy::forget_children();
        }
        Ok(())
    }
}

impl Membership {
    /// The address of the page that all share, and of the words that tell of the restarter, and that one has failed.
    pub(crate) fn page(&self) -> [u64; 3] {
        let page = self.rendezvous;
        [page.address(), page.restarter(), page.failure()]
    }

    /// The address of the word that counts who has come to a stage.
    pub(crate) fn word(&self, stage: Stage) -> u64 {
        self.rendezvous.word(stage)
    }
}

impl Tree {
    /// The tree of an image; None of an image of one process without children.
    ///
    /// # Errors
    /// A damaged image.
    pub(crate) fn of_image(image: &Image) -> Result<Option<Self>> {
        let members: Vec<Member> = image.records(SectionKind::Tree).unwrap_or_default();
        let count = members.len() as u32;
        let shares = |member: &Member| member.files.max(member.directory) <= count;
        let sane =
            |member: &Member| (member.parent == NOBODY || member.parent < count) && shares(member);
        match members.iter().all(sane) {
            true => Ok((!members.is_empty()).then_some(Self { members })),
            false => Err(image.damaged("its processes are related to none")),
        }
    }

    /// A tree of one process without children.
    pub(crate) fn of_one(pid: u32) -> Self {
        let exit_signal = libc::SIGCHLD.unsigned_abs();
        let member = Member { pid, parent: NOBODY, exit_signal, ..Member::new_zeroed() };
        Self { members: vec![member] }
    }

    /// Becomes all of its processes, and stands for the root.
    ///
    /// # Errors
    /// Why it cannot be; nothing has happened then.
    pub(super) fn restart(
        &self,
        start: &Start<'_>,
        all: Vec<Saved<'_>>,
        mut warnings: Vec<String>,
    ) -> Result<Infallible> {
        let Start { whole, program_name, .. } = start;
        mapping::block_all_signals();
        let _ = proxy::expect_children();
        let records: Vec<_> = all.iter().collect();
        let mut files = phase3_open::open(whole, &records, Way::Restart, &mut warnings)?;
        reach(Point::Reopened);
        let members = kinship::planned(&self.members);
        let lives = plan(&members)
            .map_err(|_| whole.image.damaged("its processes cannot be related so"))?;
        warnings.extend(self.cores());
        let rendezvous = Rendezvous::map(place_for_all(&all)?)?;
        rendezvous.watch_over(self.living().count() as u32);
        let ids = self.ids(&all);
        let made = counted::is_possible(&members, &lives).then(|| self.made_ids());
        let (mut place, mut anew) = self.place(start, &ids, made.as_deref(), false, rendezvous)?;
        let monitor = phase2_adapt::monitor(&start.config)?;
        let painter = painter::start(start.front.as_ref(), false);
        let mut pool = Pool::make(whole.image, &all, &self.members, &lives, start.early())?;
        let mut witness = Witness::start()?;
        let mut begun = Begun::with(&witness);
        reach(Point::Witnessed);
        let births = Births::of_all(&self.members, &lives)
            .map_err(|_| whole.image.damaged("its processes cannot share what they share"))?;
        let terminals = self.terminals(&files)?;
        // Behind the first attempt /proc shows the offsets of children that were not to be (timens_offsets).
        let ahead = super::clock::ahead(whole)?;
        loop {
            warnings.extend(Saved::all_denied(&all, place == Place::AsUser)?);
            place.enter(ahead, !whole.systemv.is_empty())?;
            // Who was the first process of a namespace becomes that of this one.
            let leads = place.is_apart() && self.was_init();
            let init = (place.is_apart() && !leads).then(|| Init::start(rendezvous)).transpose()?;
            begun.init = init.as_ref().map(Init::pid);
            reach(Point::Apart);
            let chosen = matches!(place, Place::Here | Place::Apart | Place::AsUser) && !leads;
            files.finish(whole, chosen.then_some(&deputy::act), &mut warnings)?;
            // Orphans of the tree stay below us, where a checkpoint finds them.
            let nursery = Nursery::open(!place.is_apart());
            let processes = Processes {
                members: &members,
                lives: &lives,
                exit_signals: &self.exit_signals(),
                births: &births,
                rendezvous,
                terminals: &terminals,
                apart: place.is_apart().then(|| ids.last().copied().unwrap_or(Pid::NONE)),
                gives_way: place == Place::Here && nursery.sees(witness.pid()),
            };
            let root = match processes.make(&mut pool) {
                Ok(Role::Restarter(root)) => root,
                Ok(Role::Member(Ok(index))) => {
                    let monitor = monitor.as_ref().map_or(0, Monitor::pid);
                    let inherited = Inherited { all, files, warnings, anew, monitor, pool };
                    self.become_member(index, start, (place, rendezvous), witness, inherited)
                }
                Err(_) if rendezvous.has_given_way() => Pid::NONE,
                Ok(Role::Member(Err(error))) | Err(error) => {
                    give_up(rendezvous, program_name, &error)
                }
            };
            (init.is_none() && root != Pid::NONE).then(|| witness.guard(root));
            let lives = || nursery.none_ended(&begun.all());
            let all_made = rendezvous.watch_births(self.members.len() as u32, lives);
            if let Err(error) = &all_made {
                // Nobody gives way behind that.
                complain(rendezvous, program_name, error);
            }
            if rendezvous.has_given_way() {
                witness.forget();
                nursery.close();
                rendezvous.begin_again();
                (place, anew) = self.place(start, &ids, made.as_deref(), true, rendezvous)?;
                continue;
            }
            let (governs, halts) = (self.governs(), all.iter().any(Saved::stands_still));
            drop((files, all, terminals));
            pool.give_up();
            let init = init.or_else(|| leads.then(|| Init::root(root)));
            reach(Point::Rooted);
            let proxy = Proxy { root, init, witness, rendezvous: Some(rendezvous), governs };
            self.stand(start, (proxy, nursery), (rendezvous, halts), (monitor, painter), all_made)
        }
    }

    /// Whether the root was the first process of its namespace.
    fn was_init(&self) -> bool {
        self.members.first().is_some_and(|root| Pid::of_word(root.pid) == Pid::INIT)
    }

    fn exit_signals(&self) -> Vec<i32> {
        self.members.iter().map(|member| member.exit_signal.cast_signed()).collect()
    }

    /// Becomes a member that was made.
    fn become_member(
        &self,
        index: usize,
        start: &Start<'_>,
        (place, rendezvous): (Place, Rendezvous),
        witness: Witness,
        inherited: Inherited<'_>,
    ) -> ! {
        match self.members[index].files != 0 {
            // Another closes what they share.
            true => std::mem::forget((witness, stay::line())),
            false => drop((witness, stay::line())),
        }
        let is_privileged = place == Place::AsUser;
        let membership = self.membership(index, &inherited.all, rendezvous, is_privileged);
        match self.live(index, start, &membership, inherited) {
            Ok(never) => match never {},
            Err(error) => give_up(rendezvous, start.program_name, &error),
        }
    }

    /// The controlling terminals of its sessions, with their foreground groups, by the member that leads one.
    fn terminals(&self, files: &Files) -> Result<HashMap<usize, (OwnedFd, Pid)>> {
        let mut all = HashMap::new();
        for (index, member) in self.members.iter().enumerate() {
            let Some(number) = member.terminal.checked_sub(1) else { continue };
            let group = Pid::of_word(member.foreground);
            all.extend(files.terminal(number)?.map(|slave| (index, (slave, group))));
        }
        Ok(all)
    }

    fn membership(
        &self,
        index: usize,
        all: &[Saved<'_>],
        rendezvous: Rendezvous,
        is_privileged: bool,
    ) -> Membership {
        let children = |which: &dyn Fn(&&Member) -> bool| -> Vec<&Member> {
            let own = self.members.iter().filter(|m| m.parent as usize == index);
            own.filter(which).collect()
        };
        let pid = |m: &Member| numbers::here(Pid::of_word(m.pid));
        let dead = children(&|m| m.flags & member_flag::DEAD != 0);
        let is_stopped = |m: &&Member| {
            let saved = all.get(m.process as usize);
            saved.is_some_and(Saved::stands_still)
        };
        let own = all.get(self.members[index].process as usize);
        let stopped_by = own.map_or(0, |own| own.process.stopped_by.cast_signed());
        let by_terminal = matches!(stopped_by, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU);
        let keeps = by_terminal && !kinship::is_orphaned(&self.members, index);
        Membership {
            stop_signal: if keeps { stopped_by } else { libc::SIGSTOP },
            rendezvous,
            living: self.living().count() as u32,
            dead: dead.into_iter().map(|m| (pid(m), m.status.cast_signed())).collect(),
            stopped: children(&is_stopped)
                .into_iter()
                .map(|m| (pid(m), m.flags & member_flag::UNTOLD != 0))
                .collect(),
            has_parent: self.members[index].parent != NOBODY,
            led: [self.members[index].files, self.members[index].directory].map(|led| led != 0),
            is_privileged,
        }
    }

    fn living(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.flags & member_flag::DEAD == 0)
    }

    /// The life of a member, up to its saved state.
    fn live(
        &self,
        index: usize,
        start: &Start<'_>,
        membership: &Membership,
        inherited: Inherited<'_>,
    ) -> Result<Infallible> {
        let member = &self.members[index];
        if member.flags & member_flag::DEAD != 0 {
            let rendezvous = membership.rendezvous;
            let waited = rendezvous.watch(Stage::Planned, membership.living, || true);
            let die = |()| {
                reach(Point::Planned);
                proxy::die(member.status.cast_signed())
            };
            waited.map_or_else(|_| end(FAILED.into()), die)
        }
        let number = member.process;
        let Inherited { mut all, files, warnings, anew, monitor, pool } = inherited;
        if number as usize >= all.len() {
            return Err(start.whole.image.damaged("a process of its tree is missing"));
        }
        let saved = all.swap_remove(number as usize);
        drop(all);
        let mut warnings = if number == 0 { warnings } else { Vec::new() };
        if number == 0 {
            warnings.extend(self.renumbered(&anew));
        }
        phase2_adapt::adapt_to(&saved, &mut warnings)?;
        let kept = pool.keep(&saved)?;
        start.become_program(saved, files, monitor, &kept, Who::Member(membership), warnings)
    }

    /// Waits until all are there, and stands for the root. Where somebody stands still (`halts`), whoever may lets them go on as soon
    /// as they do, and they may end before all others are there.
    fn stand(
        &self,
        start: &Start<'_>,
        (mut proxy, nursery): (Proxy, Nursery),
        (rendezvous, halts): (Rendezvous, bool),
        waiting: (Option<Monitor>, Option<PipeWriter>),
        made: Result<()>,
    ) -> ! {
        let (all, living) = (self.members.len() as u32, self.living().count() as u32);
        let here = |member: &Member| numbers::here(Pid::of_word(member.pid));
        let ids = || self.members.iter().map(here);
        // Before that an id may be somebody else's.
        if made.is_ok() && proxy.init.is_none() {
            ids().for_each(|pid| proxy.witness.guard(pid));
        }
        reach(Point::Made);
        let wanted: Vec<_> = self.living().map(here).collect();
        let outer = seen(&wanted, proxy.root);
        let alive = || outer.iter().all(|pid| proc::stat::lives(*pid));
        let since = proc::ticks();
        let mut ended: Option<Instant> = None;
        let alive_or_over = || {
            let mut is_new = || ended.get_or_insert_with(Instant::now).elapsed() < OTHERS;
            alive() || halts && is_new()
        };
        let done = made.clone().and_then(|()| {
            rendezvous.meet(Stage::Joined, all + 1, alive)?;
            rendezvous.watch(Stage::Planned, living, alive)?;
            rendezvous.watch(Stage::Restored, living, alive_or_over)
        });
        match done {
            Ok(()) => {
                reach(Point::Standing);
                // They begin when nobody has the other ends of their lines.
                drop(waiting);
                stay::announce(proxy.root);
                if proxy.init.is_none() {
                    proxy.witness.running(since);
                }
                proxy.stand()
            }
            Err(error) => {
                complain(rendezvous, start.program_name, &error);
                proxy.give_up(ids().filter(|_| made.is_ok()), nursery, start.front.as_ref());
            }
        }
    }
}

/// How long all others may take from the last but one meeting to the last.
const OTHERS: Duration = Duration::from_secs(2);

/// Ends a process of the tree whose restart has failed. The first to fail says why.
fn give_up(rendezvous: Rendezvous, program_name: &str, error: &Error) -> ! {
    complain(rendezvous, program_name, error);
    end(error.status().into())
}

/// Says why a restart fails, if nobody else has.
fn complain(rendezvous: Rendezvous, program_name: &str, error: &Error) {
    let line = format!("{program_name}: {}\n", printable(&error.to_string()));
    rendezvous.fail(|| {
        progress::end();
        // In one piece: who speaks may be killed.
        let _ = std::io::stderr().write_all(line.as_bytes());
    });
}

/// An address that is free here and in every program.
fn place_for_all(all: &[Saved<'_>]) -> Result<u64> {
    Space::of_all(all)?.find(PAGE, 0)
}
