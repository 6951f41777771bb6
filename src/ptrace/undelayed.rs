// SPDX-License-Identifier: LGPL-2.1-only
//! No stop of ours while somebody stands still for us.

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use std::sync::{Mutex, PoisonError};

/// As long as one lives a ^Z at our terminal has to wait: stopped ourselves, we would leave the program frozen.
pub(super) struct Undelayed;

/// How many there are, and the mask before the first.
static UNDELAYED: Mutex<(usize, Option<SigSet>)> = Mutex::new((0, None));

impl Undelayed {
    pub(super) fn new() -> Self {
        let mut state = UNDELAYED.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 == 0 {
            let stops = SigSet::from_iter([Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU]);
            state.1 = stops.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok();
        }
        state.0 += 1;
        Self
    }
}

impl Drop for Undelayed {
    fn drop(&mut self) {
        let mut state = UNDELAYED.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 -= 1;
        let before = if state.0 == 0 { state.1.take() } else { None };
        if let Some(before) = before {
            let _ = before.thread_set_mask();
        }
    }
}
