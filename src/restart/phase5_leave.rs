//! Phase 5, the point of no return: descriptors get their numbers, and the restorer takes over.
//!
//! # Safety
//! The one unsafe call ends this program; everything it needs was prepared.
#![allow(unsafe_code)]

use super::mapping;
use super::phase1_check::Saved;
use super::phase2_open::Opened;
use super::phase4_plan::Plan;
use crate::error::Result;
use crate::resource::descriptors;
use std::convert::Infallible;

/// Leaves this program for the one in the image.
pub fn leave(_saved: &Saved, opened: Opened, plan: Plan) -> Result<Infallible> {
    mapping::block_all_signals();
    descriptors::install(opened.descriptors, &plan.kept);
    // SAFETY: the payload lies at its place with its orders, and nothing of ours is used again.
    unsafe { mapping::jump(plan.run, plan.stack, plan.orders) }
}
