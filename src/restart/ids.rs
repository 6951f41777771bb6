// SPDX-License-Identifier: LGPL-2.1-only
//! Which process ids a restarted program has (`--ids`).
//!
//! Several processes know each other by their ids (the shell's `$!`, wait(2), locks, files with process ids), so a tree
//! has its own again wherever that is possible; where it is not, new ones after a sentence, or none (`keep`). So has one
//! process that remembers its id, or seems to: what goes wrong with another one goes wrong in silence (no running loop in
//! asyncio, a join that fails in multiprocessing, a mutex that nobody owns), and what namespaces take away says so. One
//! that remembers none takes the id of whoever restarts it, as execve(2) would leave it, and nothing of the world is
//! missing. Its thread ids are kept where the kernel grants them, else corrected where the C libraries have them.

use super::Start;
use super::phase1_check::Saved;
use super::skeleton::counted;
use super::skeleton::namespaces::{Hindrance, NO_PROCESS, Place, can_make_one};
use super::skeleton::rendezvous::Rendezvous;
use super::tree::Tree;
use crate::error::{Error, Result};
use crate::image::read::Image;
use crate::order;
use crate::proc::Pid;
use crate::resource::kinship::numbers;
use crate::settings::quoted;
use ckpt_abi::image::{Member, SectionKind, SystemV, process_flag};
use std::ffi::OsStr;

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ids {
    /// Those that it had, of several processes and of one that remembers its own; else a new one.
    #[default]
    Auto,
    /// Those that it had.
    Keep,
    /// New ones.
    New,
}

impl Ids {
    /// Reads a word of the user.
    ///
    /// # Errors
    /// One that is not known.
    pub(crate) fn parse(word: &OsStr) -> Result<Self> {
        let all = [Self::Auto, Self::Keep, Self::New].into_iter();
        all.into_iter().find(|ids| word == ids.word()).ok_or_else(|| {
            Error::new(format!("{} is not known; there are keep, new and auto", quoted(word)))
        })
    }

    /// How it is written.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Keep => "keep",
            Self::New => "new",
        }
    }

    /// The tree as which the processes of an image restart; None: the restarter becomes the only one. What goes wrong
    /// then, if it is known, is added to the warnings.
    ///
    /// # Errors
    /// A damaged image.
    pub(super) fn tree(
        self,
        image: &Image,
        all: &[Saved<'_>],
        warnings: &mut Vec<String>,
    ) -> Result<Option<Tree>> {
        let furnished = self != Self::New && image.records::<SystemV>(SectionKind::SystemV).is_ok();
        let known = Tree::of_image(image)?;
        if known.as_ref().is_some_and(|tree| !tree.can_be_us()) {
            return Ok(known);
        }
        let Some(saved) = all.first() else { return Ok(None) };
        let tree = known.unwrap_or_else(|| Tree::of_one(saved.process.pid));
        // Who has the id already needs nothing else for it.
        let has_it = saved.process.pid == std::process::id() && saved.threads.len() == 1;
        let remembers = saved.process.flags & process_flag::REMEMBERS_IDS != 0 && !has_it;
        let why = match self {
            // System V objects need the namespace of a tree.
            _ if furnished => return Ok(Some(tree)),
            Self::Keep => return Ok((!has_it).then_some(tree)),
            Self::Auto if remembers => match tree.hindered(all)? {
                Some(hindrance) => obstructed(hindrance),
                None => return Ok(Some(tree)),
            },
            _ => ASKED.into(),
        };
        warnings.extend(remembers.then(|| renumbered(1, 1, &why)));
        Ok(None)
    }
}

/// Why there are new ids, where nothing else is the reason.
const ASKED: &str = "--ids new asks for that";

/// The same where ids cannot be kept.
fn obstructed(hindrance: Hindrance) -> String {
    format!("{}. --ids keep starts nothing then", hindrance.remedy())
}

/// What goes wrong where some of all processes have new ids.
fn renumbered(new: usize, all: usize, why: &str) -> String {
    let who = match (new, all) {
        (_, 1) => "the program has a new process id".to_owned(),
        _ if new == all => format!("the {all} processes have new process ids"),
        _ => format!("{new} of the {all} processes have new process ids"),
    };
    let what = match all {
        1 => {
            "what it remembers of its old one goes wrong (asyncio and multiprocessing of python, ids of CPU clocks, `$$` of shells)"
        }
        _ => {
            "whatever remembers one goes wrong (`wait $!` and `kill $!` of shells, files with process ids)"
        }
    };
    format!("{who}, so {what}: {why}")
}

impl Tree {
    /// What keeps its processes from having their ids again, if anything does.
    ///
    /// # Errors
    /// None that are known beforehand.
    fn hindered(&self, all: &[Saved<'_>]) -> Result<Option<Hindrance>> {
        let made = self.made_ids();
        let (place, obstacle) = Place::choose(&self.ids(all), Some(&made), false, false, false)?;
        let is_here = place == Place::Counted && counted::are_at_hand(&made);
        // What counts for them makes processes, too.
        let obstacle = obstacle.filter(|it| !is_here || *it == NO_PROCESS);
        Ok(obstacle.or_else(|| (!can_make_one()).then_some(NO_PROCESS)))
    }

    /// Where its processes will live with which ids; not here, if one is `taken` that was free. And why, where some may be
    /// new ones.
    pub(super) fn place(
        &self,
        start: &Start<'_>,
        ids: &[Pid],
        made: Option<&[Pid]>,
        taken: bool,
        rendezvous: Rendezvous,
    ) -> Result<(Place, String)> {
        let (asked, furnished) = (start.options.ids, !start.whole.systemv.is_empty());
        let (place, obstacle) = match asked {
            Ids::New => (Place::Anew, None),
            _ => Place::choose(ids, made, furnished, asked == Ids::Keep, taken)?,
        };
        match place {
            Place::Counted => {
                let kept = asked == Ids::Keep;
                counted::begin(rendezvous, self.made_ids(), kept);
                if !kept {
                    numbers::begin_anew(ids.to_vec())?;
                }
            }
            Place::Anew => numbers::begin_anew(ids.to_vec())?,
            _ => {}
        }
        let why = obstacle.map_or_else(|| ASKED.to_owned(), obstructed);
        Ok((place, why))
    }

    /// The ids that processes are made with: their own, and those of sessions and groups whose leaders are gone.
    pub(super) fn made_ids(&self) -> Vec<Pid> {
        let mut ids: Vec<u32> = self.members.iter().map(|member| member.pid).collect();
        for id in self.members.iter().flat_map(|member| [member.session, member.group]) {
            if id != 0 && !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids.into_iter().map(Pid::of_word).collect()
    }

    /// What goes wrong with new ids, where there are any, and why there are.
    pub(super) fn renumbered(&self, why: &str) -> Option<String> {
        let is_new = |member: &&Member| {
            let pid = Pid::of_word(member.pid);
            numbers::here(pid) != pid
        };
        let (all, new) = (self.members.len(), self.members.iter().filter(is_new).count());
        (new != 0).then(|| renumbered(new, all, why))
    }

    /// All ids that the tree has.
    pub(super) fn ids(&self, all: &[Saved<'_>]) -> Vec<Pid> {
        let members = self.members.iter().flat_map(|m| [m.pid, m.group, m.session]);
        let threads = all.iter().flat_map(|saved| saved.threads.iter().map(|thread| thread.tid));
        let mut ids: Vec<_> = members.chain(threads).filter(|id| *id != 0).collect();
        order::numbers(&mut ids);
        ids.dedup();
        ids.into_iter().map(Pid::of_word).collect()
    }
}
