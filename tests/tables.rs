// SPDX-License-Identifier: LGPL-2.1-only
//! Processes that have a descriptor table, or a working directory and umask, together.

mod harness;

use harness::{Build, Way, Who, survive};

#[test]
fn shared_tables_survive() {
    survive(Who::Me, Way::Save, "tables", Build::Pie, &[]);
    survive(Who::Nobody, Way::SaveStop, "tables", Build::Musl, &[]);
    survive(Who::Nobody, Way::LaunchContinue, "tables", Build::Static, &[]);
}
