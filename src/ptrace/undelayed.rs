// SPDX-License-Identifier: LGPL-2.1-only
//! No stop and no long sleep of ours while somebody stands still for us.

use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use std::sync::{Mutex, PoisonError};

/// As long as one lives a ^Z at our terminal has to wait: stopped ourselves, we would leave the program frozen. And the
/// kernel may not make our naps longer (PR_SET_TIMERSLACK): by itself it adds 50 microseconds to each.
pub(super) struct Undelayed;

/// How many there are, and the mask and the slack before the first.
static UNDELAYED: Mutex<(usize, Option<SigSet>, Option<u64>)> = Mutex::new((0, None, None));

impl Undelayed {
    pub(super) fn new() -> Self {
        let mut state = UNDELAYED.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 == 0 {
            let stops = SigSet::from_iter([Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU]);
            state.1 = stops.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok();
            state.2 = prctl::get_timerslack().ok().and_then(|slack| u64::try_from(slack).ok());
            let _ = prctl::set_timerslack(1);
        }
        state.0 += 1;
        Self
    }
}

impl Drop for Undelayed {
    fn drop(&mut self) {
        let mut state = UNDELAYED.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 -= 1;
        if state.0 != 0 {
            return;
        }
        if let Some(before) = state.1.take() {
            let _ = before.thread_set_mask();
        }
        if let Some(before) = state.2.take() {
            let _ = prctl::set_timerslack(before);
        }
    }
}
