// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 3: read everything but the pages, while the target stands still.

use super::phase2_equip::Equipped;
use crate::error::Result;
use crate::proc;
use crate::ptrace::call::Caller;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use crate::resource::{
    Gathered, Target, cpu, descriptor, memory, privileges, process, signals, threads, timers,
    unsaved,
};

/// Gathers the records of the image, and the areas whose pages are to be written.
pub fn gather(
    frozen: &mut Frozen,
    mem: &Memory,
    equipped: &Equipped,
) -> Result<(Gathered, Vec<memory::Area>)> {
    let cpu = cpu::Set::of_config(&equipped.region.control.config);
    let obstacles = memory::obstacles(&equipped.vmas);
    let mut gathered = Gathered { cpu, obstacles, ..Gathered::default() };
    let mut target = Target { frozen, memory: mem, vmas: &equipped.vmas, region: &equipped.region };
    if !gathered.obstacles.is_empty() {
        descriptor::save(&target, &mut gathered)?;
        return Ok((gathered, Vec::new()));
    }
    let ids: Vec<u32> = target.frozen.threads.iter().map(|t| t.tid.cast_unsigned()).collect();
    for index in 0..ids.len() {
        threads::save(&mut target, index, &ids, &mut gathered)?;
    }
    let mut areas = memory::save(&target, &mut gathered)?;
    if gathered.obstacles.is_empty() {
        ask_main_thread(&mut target, &mut gathered, &mut areas)?;
    }
    unsaved::name(&target, &mut gathered);
    signals::save_pending(&target, &mut gathered)?;
    signals::save_stop(&target, &mut gathered);
    descriptor::save(&target, &mut gathered)?;
    memory::leave_to_streams(&mut areas, &gathered);
    gathered.clocks = proc::clocks(target.frozen.pid)?;
    Ok((gathered, areas))
}

fn ask_main_thread(
    target: &mut Target<'_>,
    gathered: &mut Gathered,
    areas: &mut [memory::Area],
) -> Result<()> {
    let desk = target.region.desk();
    // The caller borrows the thread, the savers read the rest of the target.
    let mut main = target.frozen.threads.remove(0);
    let mut ask = || {
        let mut caller = Caller::new(&mut main, target.memory, &desk)?;
        signals::save_actions(target, &mut caller, gathered)?;
        timers::save(target, &mut caller, gathered)?;
        memory::look_into_shared(target, &mut caller, areas, gathered)?;
        privileges::name(target, &mut caller, gathered)?;
        process::save(target, &mut caller, gathered)
    };
    let result = ask();
    target.frozen.threads.insert(0, main);
    result
}
