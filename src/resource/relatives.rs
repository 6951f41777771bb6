// SPDX-License-Identifier: LGPL-2.1-only
//! What the parents of a job's processes have, which these are compared with.

use crate::proc::namespaces::Namespaces;
use crate::proc::{Pid, Process, status::Status};
use std::collections::HashMap;
use std::path::PathBuf;

/// One of them, as far as it may be looked at.
pub(crate) struct Relative {
    pub(crate) status: Option<Status>,
    pub(crate) namespaces: Namespaces,
    /// Its root directory.
    pub(crate) root: Option<PathBuf>,
    pub(crate) oom_score: Option<i32>,
    pub(crate) control_groups: Option<Vec<u8>>,
}

/// Those that were asked for, by their ids. Each is looked at once: who belongs to the job stands still.
#[derive(Default)]
pub(crate) struct Relatives(HashMap<Pid, Relative>);

impl Relatives {
    pub(crate) fn of(&mut self, pid: Pid) -> &Relative {
        self.0.entry(pid).or_insert_with(|| {
            let process = Process::glimpse(pid).ok();
            let seen = process.as_ref();
            Relative {
                status: seen.and_then(|process| process.main_status().ok()),
                namespaces: seen.map(Namespaces::of).unwrap_or_default(),
                root: seen.and_then(|process| process.root().ok()).map(|root| root.path),
                oom_score: seen.and_then(Process::oom_score),
                control_groups: seen.and_then(Process::control_groups),
            }
        })
    }
}
