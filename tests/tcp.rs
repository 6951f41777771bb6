// SPDX-License-Identifier: LGPL-2.1-only
//! TCP and UDP among the processes of a job: connections go on, with what is under way in them.

mod harness;

use harness::{Build, Way, Who, survive};

/// Every kind and state of a socket, in a process and to its child; also of the one that goes on.
#[test]
fn tcp_and_udp_survive() {
    survive(Who::Me, Way::Save, "tcp", Build::Static, &[]);
    survive(Who::Nobody, Way::LaunchContinue, "tcp", Build::Pie, &[]);
}
