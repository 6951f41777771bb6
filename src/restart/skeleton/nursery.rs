// SPDX-License-Identifier: LGPL-2.1-only
//! The children of a restarter that makes its tree beside everybody else: an id that was free may be taken by then (by
//! another restart of the same image, say), and then all who were made are gone before they are made elsewhere.

use super::children::{change, none_ended};
use crate::proc::{Pid, Process};
use nix::libc;
use nix::sys::prctl::{get_child_subreaper, set_child_subreaper};
use nix::sys::signal::{Signal, kill};
use std::os::unix::fs::MetadataExt;

/// What there was before the tree.
pub(crate) struct Nursery {
    children: Vec<Pid>,
    reaped: bool,
}

impl Nursery {
    /// Lets orphans of the tree come to this process, if it is to have them.
    pub(crate) fn open(reaps: bool) -> Self {
        let nursery = Self { children: children(), reaped: get_child_subreaper().unwrap_or(false) };
        if reaps {
            let _ = set_child_subreaper(true);
        }
        nursery
    }

    /// Whether the kernel lists children (CONFIG_PROC_CHILDREN, and a /proc that hides nothing), as this one. Where it does
    /// not, nobody can tell when all are gone.
    pub(crate) fn sees(&self, child: Pid) -> bool {
        self.children.contains(&child)
    }

    /// Whether none of those has ended that were made since, or that are `ours`; what a script has left that became this
    /// process is buried.
    pub(crate) fn none_ended(&self, ours: &[Pid]) -> bool {
        for child in self.children.iter().filter(|child| !ours.contains(child)) {
            let _ = change(Some(*child), libc::WEXITED | libc::WNOHANG);
        }
        none_ended()
    }

    /// Waits until all are gone that were made since, who have been told to give up.
    pub(crate) fn close(self) {
        self.wait(|child| {
            let _ = change(Some(child), libc::WEXITED);
            true
        });
        let _ = set_child_subreaper(self.reaped);
    }

    /// Ends those that were made since, with their orphans, and waits for them. What else has come here meanwhile (a
    /// script's, that has become this process) executes another file.
    pub(crate) fn clear(&self) {
        let file = |pid: Pid| {
            let file = Process::glimpse(pid).ok()?.executable().ok()?;
            file.metadata().ok().map(|file| (file.dev(), file.ino()))
        };
        let own = file(Pid::own());
        self.wait(|child| {
            let is_ours = own.is_some() && file(child) == own;
            if is_ours {
                let _ = kill(child.nix(), Signal::SIGKILL);
                let _ = change(Some(child), libc::WEXITED);
            }
            is_ours
        });
    }

    /// Has something done with those who were made since, as long as it does anything.
    fn wait(&self, act: impl Fn(Pid) -> bool) {
        // The list misses some when one of them ends as it is read (proc_pid_children(5)).
        let mut quiet = 0;
        while quiet < 2 {
            let all = children();
            let news = all.into_iter().filter(|child| !self.children.contains(child));
            // All of them, for an orphan of one may be a brother of the others.
            quiet = if news.filter(|child| act(*child)).count() > 0 { 0 } else { quiet + 1 };
        }
    }
}

fn children() -> Vec<Pid> {
    Process::own().map(|own| own.children()).unwrap_or_default()
}
