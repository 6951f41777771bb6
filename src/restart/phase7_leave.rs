// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 7, the point of no return: descriptors get their numbers, and the restorer takes over.
//!
//! # Safety
//! The one unsafe call ends this program; everything it needs was prepared.
#![allow(unsafe_code)]

use super::mapping;
use super::phase3_open::Opened;
use super::phase6_plan::Plan;
use super::tree::Who;
use crate::error::{Error, Result};
use crate::fault::{Point, reach};
use crate::proc::Process;
use crate::resource::descriptor::{inotify, locks, numbers};
use ckpt_abi::image::FileLock;
use std::convert::Infallible;
use std::time::{Duration, Instant};

/// Leaves this program for the one in the image.
pub(crate) fn leave(
    opened: Opened,
    plan: Plan,
    held: &[FileLock],
    who: Who<'_>,
) -> Result<Infallible> {
    mapping::block_all_signals();
    if who.follows() {
        std::mem::forget(opened);
    } else {
        inotify::forget_all(&opened.descriptors, &opened.led);
        numbers::install(opened.descriptors, &plan.kept, who.member().is_none());
        if let Err(e) = locks::take_own(held) {
            // Where ours was is the program's standard error.
            // SAFETY: numbers only.
            plan.complaints.map(|fd| unsafe { nix::libc::dup2(fd, 2) });
            return Err(e);
        }
    }
    reach(Point::Installed);
    // SAFETY: the payload lies at its place with its orders, and nothing of ours is used again.
    unsafe { mapping::jump(plan.run, plan.stack, plan.orders) }
}

/// Waits until the threads that read the pages are gone: they were joined, but a joined thread
/// still has a few instructions to run before its exit(2), in memory that is about to vanish.
pub(super) fn be_alone() -> Result<()> {
    let own = Process::own()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while own.tasks()?.len() > 1 {
        if Instant::now() > deadline {
            return Err(Error::new("a thread of the restart does not end"));
        }
        std::thread::yield_now();
    }
    Ok(())
}
