// SPDX-License-Identifier: LGPL-2.1-only
//! The disposition of the checkpoint signal, changed from inside.
//!
//! # Safety
//! rt_sigaction(2) with the handler of this payload, as the injector installs it.
#![allow(unsafe_code)]

use crate::control::Page;
use crate::sys;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use ckpt_abi::region::{Control, HANDLER_MASK};
/// SA_SIGINFO, SA_RESTORER, SA_ONSTACK and SA_RESTART.
const FLAGS: u64 = 4 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000;

fn signal(page: Page) -> u64 {
    page.control(offset_of!(Control, config.asyncsig)).load(Ordering::Acquire).into()
}

fn old_action(page: Page) -> u64 {
    page.address().wrapping_add(offset_of!(Control, old_action) as u64)
}

/// Installs the handler for the configured signal and keeps what was there.
pub(crate) fn take(page: Page) {
    if signal(page) == 0 {
        return;
    }
    let [handler, restorer] = [offset_of!(Control, handler), offset_of!(Control, restorer)]
        .map(|offset| page.control_long(offset));
    let action = [handler, FLAGS, restorer, HANDLER_MASK];
    // SAFETY: a handler of ours, and a field of the control page for what it replaces.
    unsafe { sys::set_action(signal(page), &action, old_action(page)) };
}

/// What a signal was before the handler took it.
pub(crate) struct Disposition {
    signal: u64,
    action: [u64; 4],
}

impl Disposition {
    /// That of the configured signal.
    pub(crate) fn of(page: Page) -> Self {
        let mut action = [0; 4];
        for (word, offset) in action.iter_mut().zip([0, 8, 16, 24]) {
            *word = page.control_long(offset_of!(Control, old_action).wrapping_add(offset));
        }
        Self { signal: signal(page), action }
    }

    /// Gives the signal back.
    pub(crate) fn give_back(&self) {
        if self.signal != 0 {
            // SAFETY: the program's own.
            unsafe { sys::set_action(self.signal, &self.action, 0) };
        }
    }
}
