// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 5: what comes when everything is open, mapped and filled: the last marks of files, and the clocks.

use super::clock;
use super::phase1_check::{Saved, Whole};
use super::phase3_open::Opened;
use super::phase4_fill::Filled;
use crate::error::Result;
use crate::fault::{Point, reach};
use crate::resource::descriptor::timerfd;
use ckpt_abi::image::SectionKind;

/// Sets modes, owners, times and seals, and lets the program's clocks go on.
pub fn settle(
    whole: &Whole<'_>,
    saved: &mut Saved<'_>,
    opened: &Opened,
    filled: &mut Filled,
) -> Result<()> {
    opened.objects.settle()?;
    reach(Point::Settled);
    clock::go_on(whole, saved, &mut filled.placed)?;
    let content = |index| saved.part.bytes(SectionKind::Content, index);
    timerfd::arm_all(&opened.descriptors, content)
}
