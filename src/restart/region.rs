// SPDX-License-Identifier: LGPL-2.1-only
//! The payload's region in the program that goes on: what it says of the process is renewed, and the copy of the
//! executable is this one's.
//!
//! # Safety
//! Pages are changed through slices of which no other is alive, before their protection is final.
#![allow(unsafe_code)]

use super::callers::{self, List};
use super::mapping::Mapping;
use super::phase1_check::Saved;
use super::placed::Placed;
use crate::error::{Error, Result};
use crate::image::stub;
use crate::inject::{HUGE_PAGE, last};
use crate::proc::{Pid, Process};
use crate::resource::cpu::Set;
use crate::resource::kinship::numbers;
use crate::settings::Settings;
use ckpt_abi::image::{Machine, SectionKind, SignalAction};
use ckpt_abi::region::{Control, NAME_LEN, TURNS, Turns};
use ckpt_abi::turn::{Event, Seen, Task, Turn, step};
use nix::libc;
use nix::sys::mman::MapFlags;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Renews the payload: its control page, the checkpoint signal's disposition, and the copy of the
/// executable.
pub(super) fn fill(
    saved: &Saved<'_>,
    placed: &mut [Placed],
    settings: &Settings,
    (missing, given): (Option<&List>, Option<[u64; 3]>),
    pager: Option<Task>,
) -> Result<(Control, Vec<SignalAction>)> {
    let base = saved.process.region;
    let home = placed.iter_mut().find(|p| p.record.start == base);
    let home = home.ok_or_else(|| Error::new("the image has no payload"))?;
    let mut control = Control::new_zeroed();
    // SAFETY: the mapping is readable and no other slice of it is alive.
    let page = unsafe { home.mapping.slice(0, callers::END as u64) };
    let page = page.ok_or_else(|| Error::new("the payload's region is too short"))?;
    callers::renew(page, saved, missing, given);
    let page = &mut page[..size_of::<Control>()];
    control.as_mut_bytes().copy_from_slice(page);
    let mut actions = saved.actions.clone();
    renew(&mut control, &mut actions, saved, settings, pager);
    page.copy_from_slice(control.as_bytes());

    // A descendant may have none.
    if control.exe_len == 0 {
        return Ok((control, actions));
    }
    let executable = stub::own()?;
    let len = (executable.len() as u64).next_multiple_of(HUGE_PAGE);
    control.exe_len = executable.len() as u64;
    control.region_len = control.exe_start + len;
    let mut copy = Mapping::anonymous(base + control.exe_start, len, MapFlags::empty())?;
    copy.advise(libc::MADV_HUGEPAGE);
    copy.write(0, &executable)?;
    copy.protect(libc::PROT_READ as u32)?;
    page.copy_from_slice(control.as_bytes());
    Ok((control, actions))
}

/// Makes the state that no child inherits this process's; whose turn it will be then.
pub(super) fn renew_turns(base: u64, placed: &mut [Placed]) -> Result<Turn> {
    let home = placed.iter_mut().find(|p| p.record.start == base + TURNS);
    let home = home.ok_or_else(|| Error::new("the image has no turns"))?;
    let mut turns = Turns::new_zeroed();
    // SAFETY: the mapping is readable and no other slice of it is alive.
    let page = unsafe { home.mapping.slice(0, size_of::<Turns>() as u64) };
    let page = page.ok_or_else(|| Error::new("the payload's turns are too short"))?;
    turns.as_mut_bytes().copy_from_slice(page);
    let seen = Seen { lives: false, ends: false };
    let next = |turn, event| step(turn, event, seen).unwrap_or(Turn::IDLE);
    let restoring = next(Turn::of(turns.turn), Event::Restore);
    (turns.turn, turns.owner, turns.keeper) = (restoring.word(), std::process::id(), 0);
    page.copy_from_slice(turns.as_bytes());
    Ok(next(restoring, Event::Resume))
}

fn renew(
    control: &mut Control,
    actions: &mut [SignalAction],
    saved: &Saved<'_>,
    settings: &Settings,
    pager: Option<Task>,
) {
    let before = control.config.asyncsig;
    if control.owner != saved.process.pid && saved.part.is_first() {
        // A forked child keeps the name that its id had given it.
        let end = control.config.name.iter().position(|b| *b == 0).unwrap_or(0);
        let suffix = format!(".{}", saved.process.pid);
        let room = control.config.name.get_mut(end..end + suffix.len());
        if let Some(room) = room.filter(|_| end + suffix.len() < NAME_LEN) {
            room.copy_from_slice(suffix.as_bytes());
        }
    }
    control.config = settings.apply(control.config);
    Set(saved.process.cpu).note(&mut control.config);
    // A fork is still one of who was given the payload: a signal to them all is for that one.
    let is_own = saved.part.is_first() || control.owner == saved.process.pid;
    let owner = Pid::of_word(control.owner);
    control.owner = if is_own { Pid::own() } else { numbers::here(owner) }.word();
    control.standard =
        Process::own().map_or([[0; 3]; 3], |own| crate::inject::region::standard(&own));
    control.generation = saved.process.generation;
    let image = saved.part.image();
    let at = image.record::<Machine>(SectionKind::Machine).map_or(0, |machine| machine.realtime);
    (control.last, control.due) =
        (last::restarted(at, image.header().file_len, control.generation), 0);
    (control.leftover, control.leftover_len) = (0, 0);
    control.pager = pager.map_or(0, |task| task.pid);
    if saved.threads.iter().any(|thread| thread.filter != 0) {
        control.locked_in = 1;
    }
    let after = control.config.asyncsig;
    if before == after {
        return;
    }
    let slot = |signal: u32| (signal as usize).checked_sub(1);
    let mut ours = SignalAction::new_zeroed();
    if let Some(action) = slot(before).and_then(|i| actions.get_mut(i)) {
        // What the program has installed itself in the meantime stays.
        if action.handler == control.handler {
            ours = *action;
            *action = zerocopy::transmute!(control.old_action);
        }
    }
    if ours.handler == 0 {
        ours = handler_action(control);
    }
    if let Some(action) = slot(after).and_then(|i| actions.get_mut(i)) {
        control.old_action = zerocopy::transmute!(*action);
        *action = ours;
    }
}

fn handler_action(control: &Control) -> SignalAction {
    let region = crate::inject::region::Region { base: 0, control: *control };
    SignalAction::read_from_bytes(region.action().as_bytes())
        .unwrap_or_else(|_| SignalAction::new_zeroed())
}
