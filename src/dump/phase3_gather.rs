// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 3: read everything but the pages of a process, while it stands still.

use super::checkpoint::Checkpoint;
use super::phase2_equip::Equipped;
use super::{caller, excluded};
use crate::abreast;
use crate::error::{Error, Kind, Result};
use crate::image::PAGE;
use crate::ptrace::call::Caller;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::list::List;
use crate::resource::descriptor::{Tables, tables::Table};
use crate::resource::looked::{Looked, LookedThread};
use crate::resource::memory::Area;
use crate::resource::{
    Common, Gathered, Target, descriptor, memory, privileges, process, signals, sysv, threads,
    timers, unsaved,
};
use std::rc::Rc;

/// A process of the checkpoint that stands still, with its records.
pub(crate) struct Still<'a> {
    /// The process.
    pub equipped: &'a Equipped,
    /// Its threads.
    pub frozen: Frozen,
    /// What the image says of it.
    pub gathered: Gathered,
    /// What is to be written of its memory.
    pub areas: Vec<Area>,
    /// Whether orphans of the process come to somebody who reaps them, so that there can be a snapshot.
    pub orphans_leave: bool,
}

/// Gathers the records of all processes, and what they have in common.
pub(crate) fn gather_all<'a>(
    checkpoint: &Checkpoint<'_>,
    equipped: &'a [Equipped],
    mut processes: Vec<Frozen>,
) -> Result<(Vec<Still<'a>>, Common)> {
    for (frozen, Equipped { memory, region, .. }) in processes.iter_mut().zip(equipped) {
        frozen.attend(memory, &region.desk(), region.base)?;
    }
    let looked = abreast::each(equipped, 1, |one| Looked::at(&one.process, &one.memory));
    let mut looked = looked.into_iter().collect::<Result<Vec<_>>>()?;
    let mut threads = look_at_threads(equipped, &processes, &looked)?;
    let table = |(one, looked): (&Equipped, &mut Looked)| Table {
        pid: one.process.pid(),
        fds: std::mem::take(&mut looked.fds),
    };
    let of = equipped.iter().zip(&mut looked).map(table).collect();
    let at_start = equipped.first().map_or([[0; 3]; 3], |first| first.region.control.standard);
    let mut common = Common { tables: Tables::new(of, at_start)?, ..Common::default() };
    let mut still = Vec::new();
    for (((number, one), frozen), looked) in (0..).zip(equipped).zip(processes).zip(looked) {
        let rest = threads.split_off(frozen.threads.len());
        let own = std::mem::replace(&mut threads, rest);
        still.push(gather(checkpoint, number, one, frozen, (looked, &own), &mut common)?);
    }
    Ok((still, common))
}

/// Looks at the threads of all processes, some abreast.
fn look_at_threads(
    equipped: &[Equipped],
    processes: &[Frozen],
    looked: &[Looked],
) -> Result<Vec<LookedThread>> {
    let mut all = Vec::new();
    for ((one, looked), frozen) in equipped.iter().zip(looked).zip(processes) {
        all.extend(frozen.threads.iter().map(|t| (&one.process, t.tid, looked.rest.as_ref())));
    }
    let looks =
        abreast::each(&all, 8, |&(process, tid, rest)| LookedThread::at(process, tid, rest));
    looks.into_iter().collect()
}

/// Gathers the records of the process of this number, and the areas whose pages are to be written.
fn gather<'a>(
    checkpoint: &Checkpoint<'_>,
    number: u32,
    equipped: &'a Equipped,
    mut frozen: Frozen,
    (looked, threads): (Looked, &[LookedThread]),
    common: &mut Common,
) -> Result<Still<'a>> {
    let Equipped { process, memory, region, .. } = equipped;
    let Looked { vmas, obstacles, rest, .. } = looked;
    let Some(LookedThread { stat, .. }) = threads.first() else {
        return Err(Error::new(format!("process {} is gone", frozen.pid)).of(Kind::Gone));
    };
    let mut gathered = Gathered { number, obstacles, ..Gathered::default() };
    let loaded = rest.as_ref().map_or(&[][..], |rest| &rest.loaded);
    let status = match frozen.threads.first() {
        Some(first) => first.look(frozen.pid)?,
        None => Rc::new(process.status(process.main_thread())?),
    };
    let (vmas, rest) = (&vmas, rest.as_ref());
    let mut target =
        Target { frozen: &mut frozen, memory, vmas, loaded, region, status, stat, threads, rest };
    let areas = read(&mut target, &mut gathered, common)?;
    let areas = excluded::cut(areas, &caller::read(memory, region)?.excluded);
    if let Some(process) = &mut gathered.process {
        process.generation = checkpoint.generation;
    }
    let orphans_leave = equipped.orphans_leave;
    Ok(Still { equipped, frozen, gathered, areas, orphans_leave })
}

fn read(
    target: &mut Target<'_>,
    gathered: &mut Gathered,
    common: &mut Common,
) -> Result<Vec<Area>> {
    if !gathered.obstacles.is_empty() {
        descriptor::save(target, gathered, common)?;
        return Ok(Vec::new());
    }
    let ids: Vec<u32> = target.frozen.threads.iter().map(|t| t.tid.word()).collect();
    threads::save(target, &ids, gathered)?;
    let mut areas = memory::save(target, gathered, common)?;
    if gathered.obstacles.is_empty() {
        ask_main_thread(target, gathered, common, &mut areas)?;
    }
    unsaved::name(target, gathered);
    signals::save_pending(target, gathered)?;
    signals::save_stop(target, gathered);
    descriptor::save(target, gathered, common)?;
    memory::leave_to_streams(&mut areas, gathered, common);
    memory::shown::save(target, &mut areas, gathered, common)?;
    gathered.clocks = target.process().clocks()?;
    Ok(areas)
}

/// The address of a page behind the region where nothing is. Nobody can map anything there while all stands still.
fn free_page(target: &Target<'_>) -> u64 {
    let mut free = target.region.end();
    while let Some(there) = target.vmas.iter().find(|vma| vma.start < free + PAGE && vma.end > free)
    {
        free = there.end;
    }
    free
}

fn ask_main_thread(
    target: &mut Target<'_>,
    gathered: &mut Gathered,
    common: &mut Common,
    areas: &mut [Area],
) -> Result<()> {
    let desk = target.region.desk();
    // The caller borrows the thread, the savers read the rest of the target.
    let mut main = target.frozen.threads.remove(0);
    let mut ask = || {
        let mut caller = Caller::new(&mut main, target.memory, &desk)?;
        let mut list = List::default();
        let actions = signals::ask(&mut list);
        let clocks = timers::ask(target, &mut list);
        let privileges = privileges::ask(&mut list);
        let process = process::ProcessQuestions::add(&mut list, free_page(target));
        let answers = caller.list(target.memory, &list)?;
        signals::save_actions(&actions, &answers, gathered)?;
        timers::save(clocks, &answers, target, gathered)?;
        memory::look_into_shared(target, &mut caller, areas, gathered)?;
        privileges::name(&privileges, &answers, target, gathered, common);
        privileges::name_sandbox(target, &mut caller, gathered)?;
        sysv::undo::save(target, &mut caller, gathered, common)?;
        process::save(&process, &answers, target, gathered, common)
    };
    let result = ask();
    target.frozen.threads.insert(0, main);
    result
}
