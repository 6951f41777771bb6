// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 3: read everything but the pages of a process, while it stands still.

use super::phase2_equip::Equipped;
use super::{caller, excluded};
use crate::abreast;
use crate::error::{Error, Kind, Result};
use crate::image::PAGE;
use crate::proc::tree::Kin;
use crate::proc::{Pid, Tid};
use crate::ptrace::call::Caller;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::list::{List, Replies};
use crate::resource::descriptor::{Tables, tables::Table};
use crate::resource::looked::{Looked, LookedThread};
use crate::resource::memory::Area;
use crate::resource::{
    Common, Gathered, Target, descriptor, memory, privileges, process, signals, sysv, threads,
    timers, unsaved,
};
use ckpt_abi::api::EXCLUDED;
use std::collections::HashSet;
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

/// Gathers the records of all processes, and what they have in common; all of it may have to stay `untouched`
/// ([`Tables::untouched`]). Of those who die by their end, if they `stop`, a SIGTERM is forgotten; `dead` are so by now.
pub(crate) fn gather_all<'a>(
    generation: u64,
    equipped: &'a [Equipped],
    mut processes: Vec<Frozen>,
    (dead, stop): (&[Kin], bool),
    untouched: bool,
) -> Result<(Vec<Still<'a>>, Common)> {
    for (frozen, Equipped { memory, region, .. }) in processes.iter_mut().zip(equipped) {
        if region.is_there() {
            frozen.attend(memory, &region.desk(), region.base)?;
        }
    }
    let looked = abreast::each(equipped, 1, |one| Looked::at(&one.process, &one.memory));
    let mut looked = looked.into_iter().collect::<Result<Vec<_>>>()?;
    let tids: Vec<_> = processes.iter().map(Frozen::tids).collect();
    let mut threads = look_at_threads(equipped, &tids, &looked)?;
    let table = |(one, looked): (&Equipped, &mut Looked)| Table {
        pid: one.process.pid(),
        fds: std::mem::take(&mut looked.fds),
    };
    let of = equipped.iter().zip(&mut looked).map(table).collect();
    let at_start = equipped.first().map_or([[0; 3]; 3], |first| first.region.control.standard);
    let mut common = Common { tables: Tables::new(of, at_start, untouched)?, ..Common::default() };
    let mut still = Vec::new();
    let all = (0..).zip(equipped).zip(processes).zip(looked).zip(&tids);
    for ((((number, one), frozen), looked), tids) in all {
        let rest = threads.split_off(tids.len());
        let own = std::mem::replace(&mut threads, rest);
        still.push(gather(generation, number, one, frozen, (looked, &own), &mut common)?);
    }
    if stop {
        let ids = dead.iter().map(|kin| kin.pid);
        let members: HashSet<Pid> = common.tables.of.iter().map(|t| t.pid).chain(ids).collect();
        still.iter_mut().for_each(|s| signals::forget_termination(&mut s.gathered, &members));
    }
    sysv::save(still.iter_mut().map(|s| (&mut s.gathered, &mut s.areas)), &mut common);
    memory::carried::carry(still.iter_mut().map(|s| (&mut s.gathered, &mut s.areas)), &mut common);
    Ok((still, common))
}

/// Looks at the threads of all processes, some abreast.
fn look_at_threads(
    equipped: &[Equipped],
    tids: &[Vec<Tid>],
    looked: &[Looked],
) -> Result<Vec<LookedThread>> {
    let mut all = Vec::new();
    for ((one, looked), tids) in equipped.iter().zip(looked).zip(tids) {
        all.extend(tids.iter().map(|tid| (&one.process, *tid, looked.rest.as_ref())));
    }
    let looks =
        abreast::each(&all, 8, |&(process, tid, rest)| LookedThread::at(process, tid, rest));
    looks.into_iter().collect()
}

/// Gathers the records of the process of this number, and the areas whose pages are to be written. Where there is no
/// payload its threads are not asked, and where they do not stand still there are no records of them.
fn gather<'a>(
    generation: u64,
    number: u32,
    equipped: &'a Equipped,
    mut frozen: Frozen,
    (looked, seen): (Looked, &[LookedThread]),
    common: &mut Common,
) -> Result<Still<'a>> {
    let Equipped { process, memory, region, .. } = equipped;
    let Looked { vmas, mut obstacles, rest, .. } = looked;
    obstacles.extend(threads::obstacles(&frozen));
    let Some(LookedThread { stat, .. }) = seen.first() else {
        return Err(Error::new(format!("process {} is gone", frozen.pid)).of(Kind::Gone));
    };
    let mut gathered = Gathered { number, obstacles, ..Gathered::default() };
    let loaded = rest.as_ref().map_or(&[][..], |rest| &rest.loaded);
    let status = match frozen.threads.first() {
        Some(first) => first.look(frozen.pid)?,
        None => Rc::new(process.status(process.main_thread())?),
    };
    let (vmas, rest) = (&vmas, rest.as_ref());
    let mut target = Target {
        frozen: &mut frozen,
        memory,
        vmas,
        loaded,
        region,
        status,
        stat,
        threads: seen,
        rest,
    };
    let areas = read(&mut target, &mut gathered, common)?;
    let excluded = match region.is_there() {
        true => caller::read(memory, region)?.excluded,
        false => [[0; 2]; EXCLUDED],
    };
    let areas = excluded::cut(areas, &excluded);
    if let Some(process) = &mut gathered.process {
        process.generation = generation;
    }
    let orphans_leave = equipped.orphans_leave;
    Ok(Still { equipped, frozen, gathered, areas, orphans_leave })
}

fn read(
    target: &mut Target<'_>,
    gathered: &mut Gathered,
    common: &mut Common,
) -> Result<Vec<Area>> {
    // To read what a handler of the program has to fill first would be to wait for it.
    if target.rest.is_none() {
        descriptor::save(target, gathered, common)?;
        return Ok(Vec::new());
    }
    let before = gathered.obstacles.len();
    let ids: Vec<u32> = target.frozen.threads.iter().map(|t| t.tid.word()).collect();
    threads::save(target, &ids, gathered)?;
    let mut areas = memory::save(target, gathered, common)?;
    // None of its threads may be unable to work for us.
    if gathered.obstacles.len() == before {
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
    let stands = !target.frozen.threads.is_empty();
    let mut main = stands.then(|| target.frozen.threads.remove(0));
    let mut ask = || {
        let main = main.as_mut();
        let mut caller = main.map(|main| Caller::new(main, target.memory, &desk)).transpose()?;
        let mut list = List::default();
        let actions = signals::ask(&mut list);
        let clocks = timers::ask(target, &mut list);
        let privileges = privileges::ask(&mut list);
        let process = process::ProcessQuestions::add(&mut list, free_page(target));
        let answers = match &mut caller {
            Some(caller) => caller.list(target.memory, &list)?,
            None => Replies::unknown(),
        };
        signals::save_actions(&actions, &answers, gathered)?;
        timers::save(clocks, &answers, target, gathered)?;
        if let Some(caller) = &mut caller {
            memory::look_into_shared(target, caller, areas, gathered)?;
        }
        privileges::name(&privileges, &answers, target, gathered, common);
        if let Some(caller) = &mut caller {
            privileges::name_sandbox(target, caller, gathered)?;
            sysv::undo::save(target, caller, gathered, common)?;
        }
        process::save(&process, &answers, target, gathered, common)
    };
    let result = ask();
    main.into_iter().for_each(|main| target.frozen.threads.insert(0, main));
    result
}
