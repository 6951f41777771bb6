// SPDX-License-Identifier: LGPL-2.1-only
//! The children of a restarter that makes its tree beside everybody else: an id that was free may be taken by then (by
//! another restart of the same image, say), and then all who were made are gone before they are made elsewhere.

use super::children::change;
use crate::proc::{Pid, Process};
use nix::libc;
use nix::sys::prctl::{get_child_subreaper, set_child_subreaper};

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

    /// Waits until all are gone that were made since, who have been told to give up.
    pub(crate) fn close(self) {
        // The list misses some when one of them ends as it is read (proc_pid_children(5)).
        let mut quiet = 0;
        while quiet < 2 {
            match children().iter().find(|child| !self.children.contains(child)) {
                Some(child) => {
                    let _ = change(Some(*child), libc::WEXITED);
                    quiet = 0;
                }
                None => quiet += 1,
            }
        }
        let _ = set_child_subreaper(self.reaped);
    }
}

fn children() -> Vec<Pid> {
    Process::own().map(|own| own.children()).unwrap_or_default()
}
