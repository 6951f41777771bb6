// SPDX-License-Identifier: LGPL-2.1-only
//! Threads in a row.

use crate::proc::Tid;

/// Threads in ascending order, as they are listed and let go. (A HashSet has 2.5 KiB of code for each type.)
#[derive(Default)]
pub(super) struct Row(Vec<Tid>);

impl Row {
    pub(super) fn contains(&self, tid: Tid) -> bool {
        self.0.binary_search(&tid).is_ok()
    }

    /// Whether it was not there.
    pub(super) fn insert(&mut self, tid: Tid) -> bool {
        let found = self.0.binary_search(&tid);
        found.err().map(|at| self.0.insert(at, tid)).is_some()
    }

    pub(super) fn remove(&mut self, tid: Tid) {
        if let Ok(at) = self.0.binary_search(&tid) {
            self.0.remove(at);
        }
    }
}
