// SPDX-License-Identifier: LGPL-2.1-only
//! The pages of all processes of a checkpoint: phases 5 and 6.

use super::checkpoint::Checkpoint;
use super::held;
use super::phase2_equip::Equipped;
use super::phase3_gather::Still;
use super::phase5_snapshot::{Begun, Copying, Pictured};
use super::phase6_write::Writing;
use super::rolling::Rolling;
use crate::error::Result;
use crate::fault::{Point, reach};
use crate::ptrace::call::Caller;
use crate::resource::Gathered;
use crate::resource::memory::{Area, policy};
use ckpt_abi::image::VmaKind;
use std::cell::RefCell;
use std::time::{Duration, Instant};

/// Writes the pages of all: of those who go on, from pictures of them. How long they have stood still by then.
pub(super) fn write<'a>(
    checkpoint: &Checkpoint<'_>,
    mut still: Vec<Still<'a>>,
    writing: &mut Writing<'_>,
    (rolling, since): (Option<&RefCell<Rolling>>, Instant),
) -> Result<(Vec<Pictured<'a>>, Duration)> {
    let (place, stop) = (&checkpoint.place, checkpoint.stop);
    for one in still.iter_mut().filter(|_| stop) {
        let Equipped { memory, region, .. } = one.equipped;
        if let Some(first) = one.frozen.threads.first_mut() {
            let caller = Caller::new(first, memory, &region.desk())?;
            one.gathered.has_no_policies = policy::has_none(caller, memory, &one.gathered.vmas)?;
        }
    }
    let (mut tracks, mut holds) = (false, false);
    if let Some((known, first)) = rolling.zip(still.first_mut()) {
        let mut known = known.borrow_mut();
        writing.is_rough = known.moves && !stop;
        if stop {
            known.presume(&mut first.presumed, &first.equipped.process);
        }
        known.meets(first.equipped.region.control.tracked);
        tracks = !stop && known.wants_tracker(&first.equipped.process, &first.areas);
        if !writing.is_rough {
            let Still { equipped, gathered, areas, .. } = &mut *first;
            let remains = leave_out(checkpoint, writing, &mut known, (*equipped, gathered, areas))?;
            let may = !stop && !tracks && !known.has_found();
            holds = may && remains.is_some_and(|bytes| held::is_little(bytes, first, &mut known));
        }
    }
    let copying = match (stop || holds, writing.is_rough, tracks) {
        (true, ..) | (_, true, false) => Copying::Nothing,
        (_, true, true) => Copying::Tracker,
        (_, _, true) => Copying::Tracked,
        _ => Copying::Picture,
    };
    let mut begun = Begun::of(still, copying);
    // The kernel copies the page tables meanwhile. What has begun has to be met, whatever fails.
    let mut written = begun.pictured.iter_mut().try_for_each(|one| writing.at_once(one, stop));
    written = written.and_then(|()| place.touch(|| writing.streams())?);
    if !stop {
        reach(Point::Shared);
    }
    let mut pictured = begun.finish().and_then(|pictured| written.map(|()| pictured))?;
    reach(Point::Pictured);
    let mut room = rolling.map(|known| std::mem::take(&mut known.borrow_mut().room));
    let mut holding = None;
    if let Some((first, room)) = pictured.first_mut().zip(room.as_deref_mut()).filter(|_| holds) {
        holding = Some(writing.hold(first, room)?);
        first.held = true;
    }
    if let Some((known, first)) = rolling.zip(pictured.first_mut()) {
        track(writing.is_rough, &mut known.borrow_mut(), first);
    }
    pictured.iter_mut().for_each(Pictured::start_home);
    for process in &mut pictured {
        process.thaw()?;
    }
    let pause = since.elapsed();
    if let Some((known, first)) = rolling.zip(pictured.first_mut()) {
        let mut known = known.borrow_mut();
        if writing.is_rough {
            let Pictured { equipped, gathered, areas, .. } = first;
            leave_out(checkpoint, writing, &mut known, (*equipped, gathered, areas))?;
        } else if tracks {
            first.be_tracked(&mut known);
        }
    }
    writing.may_wait();
    for process in &mut pictured {
        let written = writing.rest(process, holding.take());
        written.map_err(|error| match rolling.filter(|_| holds) {
            Some(known) => held::failed(error, &mut known.borrow_mut()),
            None => error,
        })?;
    }
    if let Some(known) = rolling.filter(|_| writing.is_rough) {
        known.borrow_mut().read_again(std::mem::take(&mut writing.unread));
    }
    reach(Point::Written);
    Ok((pictured, pause))
}

/// Tracks what is to be of a process that stands still, and goes on.
fn track(is_rough: bool, known: &mut Rolling, first: &mut Pictured<'_>) {
    if is_rough {
        first.held = true;
        first.be_tracked(known);
        known.track_now(&first.equipped.process, (&first.areas, &first.gathered.vmas));
    } else {
        // Where a mapping was tracked before, marks of then may be in its page tables, of which the kernel tells
        // nothing: the copying of a picture has each page met anew.
        known.track_new(first.snapshot.is_some());
    }
}

/// Asks what was written to of a process, and takes over from an older image what is as it was; see [`Writing::leave_out`].
fn leave_out(
    checkpoint: &Checkpoint<'_>,
    writing: &mut Writing<'_>,
    known: &mut Rolling,
    (equipped, gathered, areas): (&Equipped, &mut Gathered, &mut [Area]),
) -> Result<Option<u64>> {
    let mut vmas = gathered.vmas.iter();
    let has_rings = vmas.any(|vma| vma.kind == VmaKind::Ring as u32);
    known.look((&equipped.process, has_rings), (areas, &gathered.vmas), checkpoint.generation);
    let run = equipped.region.control.config.run;
    writing.leave_out((equipped, gathered, areas), |base| known.same(base, run))
}
