// SPDX-License-Identifier: LGPL-2.1-only
//! Whether a job is in the foreground of its terminal, as that is seen from outside of its PID namespace: in it, all groups
//! outside are 0, in the foreground or not.

use super::Process;
use std::sync::atomic::{AtomicBool, Ordering};

static IS_IN_FRONT: AtomicBool = AtomicBool::new(false);

/// Notes it for a process whose namespace this one is about to enter.
pub(crate) fn note(process: &Process) {
    let stat = process.main_stat();
    let is = stat.is_ok_and(|stat| stat.tty_nr != 0 && stat.tpgid == stat.pgrp);
    IS_IN_FRONT.store(is, Ordering::Relaxed);
}

/// Whether it was.
pub(crate) fn is_noted() -> bool {
    IS_IN_FRONT.load(Ordering::Relaxed)
}
