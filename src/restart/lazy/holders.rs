// SPDX-License-Identifier: LGPL-2.1-only
//! Who has memory that is missing: the kernel names nobody. A mapping that is ours, of which nothing is awaited, gets a
//! flag by way of the memory's userfaultfd, which nobody else can set ("uw"), and whoever has it then is looked for. Its page is
//! there, or is to be empty (of a child), so that nothing is lost while nothing is awaited there.

use crate::image::PAGE;
use crate::proc::maps::Vma;
use crate::proc::tree::pids;
use crate::proc::uffd::{Request, Uffd};
use crate::proc::{Pid, Process};
use nix::errno::Errno;
use std::collections::HashSet;

/// Looks for them.
pub(super) struct Holders {
    /// A page that is ours in the program, in a mapping of its own.
    sign: u64,
    /// An address at which this process has nothing.
    nowhere: u64,
    /// Who has never any of it, by when it was started.
    others: HashSet<(Pid, u64)>,
}

impl Holders {
    pub(super) fn new(sign: u64, nowhere: u64) -> Self {
        Self { sign, nowhere, others: HashSet::new() }
    }

    /// Whether the memory is no process's any more.
    pub(super) fn is_gone(&self, uffd: &Uffd) -> bool {
        uffd.put(Request::Copy, self.sign, self.nowhere, PAGE).0 == Err(Errno::ESRCH)
    }

    /// Who has the memory of a child that was just forked, and its mappings: a child of `parent`, or else anybody.
    pub(super) fn child(
        &mut self,
        uffd: &Uffd,
        parent: Option<Pid>,
        known: impl Fn(Pid) -> bool,
    ) -> Option<(Pid, Vec<Vma>)> {
        self.mark(&[uffd], true);
        let found = match parent {
            Some(parent) => {
                let near = Process::glimpse(parent).map_or_else(|_| Vec::new(), |it| it.children());
                let near = near.into_iter().rev().filter(|pid| !known(*pid));
                near.filter_map(|pid| Some((pid, self.look(pid)?))).next()
            }
            None => self.marked(&[uffd], known).pop(),
        };
        self.mark(&[uffd], false);
        found
    }

    /// All who have memory of some of these, which is marked from now on.
    pub(super) fn of(&mut self, uffds: &[&Uffd]) -> Vec<Pid> {
        self.mark(uffds, true);
        self.marked(uffds, |_| false).into_iter().map(|(pid, _)| pid).collect()
    }

    /// Whether a process has the mark.
    pub(super) fn has(&mut self, pid: Pid) -> bool {
        self.look(pid).is_some()
    }

    /// All who have memory that is marked.
    fn marked(&mut self, uffds: &[&Uffd], known: impl Fn(Pid) -> bool) -> Vec<(Pid, Vec<Vma>)> {
        let all = pids().unwrap_or_default().into_iter().filter(|pid| !known(*pid));
        let mut found: Vec<_> = all.filter_map(|pid| Some((pid, self.look(pid)?))).collect();
        // Another pager may just have marked the same page of its own program.
        for is_marked in [false, true] {
            if !found.is_empty() {
                self.mark(uffds, is_marked);
                found.retain(|(pid, _)| self.look(*pid).is_some() == is_marked);
            }
        }
        found
    }

    fn mark(&self, uffds: &[&Uffd], is_marked: bool) {
        for uffd in uffds {
            let _ = uffd.mark(self.sign, PAGE, is_marked);
        }
    }

    /// The mappings of a process that has the mark.
    fn look(&mut self, pid: Pid) -> Option<Vec<Vma>> {
        let process = Process::glimpse(pid).ok()?;
        let known = (pid, process.main_stat().ok()?.starttime);
        if self.others.contains(&known) {
            return None;
        }
        let vmas = process.maps_of_any_thread();
        let sign = vmas.iter().find(|vma| vma.start == self.sign).map(|vma| &vma.flags);
        match sign {
            Some(flags) if flags.has("um") => flags.has("uw").then_some(vmas),
            // One gets such memory from its maker, at once, or never.
            _ if !vmas.is_empty() => {
                self.others.insert(known);
                None
            }
            _ => None,
        }
    }
}
