// SPDX-License-Identifier: LGPL-2.1-only
//! What this machine is beside the one in the image: refusals that name everything that is missing,
//! and what is converted.

use super::phase1_check::{Saved, Whole};
use crate::proc;
use crate::resource::cpu::{self, Set};
use crate::resource::xstate::{self, Layout};
use crate::resource::{regained, seccomp};
use ckpt_abi::image::Thread;

/// End of addresses with 4-level paging.
const FOUR_LEVELS: u64 = 1 << 47;
/// Mappings that the restart needs beside the program's own.
const MORE_MAPPINGS: u64 = 64;
const CAP_SYS_RAWIO: u32 = 17;

/// Something that this machine does not have.
pub(crate) struct Lack {
    /// What, as a part of a sentence.
    pub what: String,
    /// Whether `--force-cpu` goes over it.
    pub forcible: bool,
}

/// Everything that stands in the way of a restart on this machine, but files.
pub(crate) fn lacks(whole: &Whole<'_>, saved: &Saved<'_>) -> Vec<Lack> {
    let mut lacks = Vec::new();
    let mut add = |what: String, forcible| lacks.push(Lack { what, forcible });
    let missing = Set(saved.process.cpu).without(&Set::here());
    if !missing.is_empty() {
        let from = whole.image.text(whole.machine.processor);
        let here = cpu::name(cpu::leaves());
        add(
            format!(
                "the program may use {}, which its CPU had ({}) and this one ({here}) has not",
                missing.names(),
                from.display()
            ),
            true,
        );
    }
    let lost = lost(whole, saved, true);
    if !lost.is_empty() {
        add(format!("it has values in registers that this CPU has not ({lost})"), true);
    }
    let keys = saved.process.keys != 0 || saved.vmas.iter().any(|v| v.pkey != 0);
    if keys && cpu::xcr0() & 1 << 9 == 0 {
        add("it has protection keys (pkeys(7)), which this CPU has not".into(), false);
    }
    if seccomp::is_roots(&saved.threads) && !capable(CAP_SYS_ADMIN) {
        let what =
            "only root may put its seccomp filters in place again (it has not set no_new_privs)";
        add(what.into(), false);
    }
    let late = |thread: &Thread| seccomp::is_late(thread, &saved.process);
    if saved.threads.iter().any(late) && regained::loses_all(&saved.process, &saved.supplementary) {
        let what = "only who keeps its capabilities over a change of users may put its seccomp filters in place again (securebits, capabilities(7))";
        add(what.into(), false);
    }
    addresses(saved, &mut add);
    lacks
}

/// Names the registers with values that this CPU does not have: those of features that the program may
/// use, or the others. The latter are leftovers: the JVM tries AVX when it starts, whatever it was told.
pub(super) fn lost(whole: &Whole<'_>, saved: &Saved<'_>, usable: bool) -> String {
    let (from, to) = layouts(whole, saved);
    let set = Set(saved.process.cpu);
    let lost = saved.threads.iter().flat_map(|t| xstate::lost(area(saved, t), &from, &to));
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in lost.filter(|(_, feature)| set.has(feature) == usable) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

fn addresses(saved: &Saved<'_>, add: &mut dyn FnMut(String, bool)) {
    let end = saved.vmas.last().map_or(0, |v| v.end);
    if end > FOUR_LEVELS && !five_levels() {
        let what = format!("it has memory at {end:#x}, which takes 5-level paging (la57)");
        add(what, false);
    }
    let (start, lowest) =
        (saved.vmas.first().map_or(0, |v| v.start), proc::setting("vm/mmap_min_addr"));
    if let Some(lowest) = lowest.filter(|lowest| start < *lowest)
        && !capable(CAP_SYS_RAWIO)
    {
        let what = format!("it has memory at {start:#x}, and vm.mmap_min_addr is {lowest} here");
        add(what, false);
    }
    let wanted = saved.vmas.len() as u64 + MORE_MAPPINGS;
    if let Some(most) = proc::setting("vm/max_map_count").filter(|most| wanted > *most) {
        let what = format!("it has {wanted} mappings, and vm.max_map_count is {most} here");
        add(what, false);
    }
}

/// Whether the kernel gives out addresses above 2^47, which it does only when asked for them
/// (Documentation/arch/x86/x86_64/5level-paging.rst).
fn five_levels() -> bool {
    super::mapping::is_possible(FOUR_LEVELS, crate::image::PAGE)
}

pub(crate) use proc::status::CAP_SYS_ADMIN;
/// From Linux 5.9 on (linux/capability.h).
pub(crate) const CAP_CHECKPOINT_RESTORE: u32 = 40;

/// Whether this process has a capability (CapEff in /proc/PID/status).
pub(crate) fn capable(capability: u32) -> bool {
    let status = proc::Process::own().and_then(|own| own.status(own.main_thread()));
    status.is_ok_and(|status| status.may(capability))
}

/// The layouts of extended state there and here.
pub(crate) fn layouts(whole: &Whole<'_>, saved: &Saved<'_>) -> (Layout, Layout) {
    let leaves = cpu::leaves();
    let from = if whole.cpuid.is_empty() { leaves } else { &whole.cpuid };
    let dynamic = !xstate::DYNAMIC | saved.process.permitted;
    (Layout::new(from, whole.machine.xcr0), Layout::new(leaves, cpu::xcr0() & dynamic))
}

pub(super) fn area<'a>(saved: &'a Saved<'_>, thread: &Thread) -> &'a [u8] {
    let (start, len) = (thread.xstate as usize, thread.xstate_len as usize);
    saved.xstate.get(start..start.saturating_add(len)).unwrap_or_default()
}
