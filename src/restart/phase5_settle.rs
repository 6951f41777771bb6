// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 5: what comes when everything is open, mapped and filled: the last marks of files, and the clocks.

use super::clock;
use super::phase1_check::{Saved, Whole};
use super::phase3_open::Opened;
use super::phase4_fill::Filled;
use super::tree::Who;
use crate::error::Result;
use crate::fault::{Point, reach};
use crate::resource::descriptor::{locks, timerfd};
use ckpt_abi::image::SectionKind;

/// Sets modes, owners, times and seals, and lets the program's clocks go on.
#[inline(never)]
pub(super) fn settle(
    whole: &Whole<'_>,
    saved: &mut Saved<'_>,
    opened: &Opened,
    filled: &mut Filled,
    who: Who<'_>,
) -> Result<()> {
    if saved.part.is_first() {
        opened.objects.settle()?;
    }
    reach(Point::Settled);
    if who.member().is_some() {
        locks::take_over(&opened.descriptors, &saved.locks)?;
    }
    clock::go_on(whole, saved, &mut filled.placed, matches!(who, Who::Alone))?;
    let content = |index| saved.part.bytes(SectionKind::Content, index);
    let led = opened.descriptors.iter().filter(|r| opened.led.contains(&r.record.fd));
    timerfd::arm_all(led, content)
}
