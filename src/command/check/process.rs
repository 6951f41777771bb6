// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt check PID`: whether and how a running process is saved.

use super::seen;
use crate::command::attach::arrangement;
use crate::command::destination;
use crate::command::facts::Facts;
use crate::dump::survey::survey;
use crate::dump::{Demand, phase1_freeze, phase2_equip, phase4_refuse};
use crate::error::Result;
use crate::inject::{enter, region::Region};
use crate::proc::{Pid, tree};
use crate::ptrace::call::Caller;
use crate::ptrace::forest::named;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use crate::resource::losses;
use crate::resource::signals::verdict;
use crate::settings::{Settings, signal_name};
use ckpt_abi::region::STACKS;
use nix::libc;
use std::collections::HashSet;

/// Exit status where a checkpoint would go without something, or the process's signal makes none.
const LOSSES: u8 = 1;
/// Exit status where there could be none.
const OBSTACLES: u8 = 2;
const SIG_DFL: u64 = libc::SIG_DFL as u64;
const SIG_IGN: u64 = libc::SIG_IGN as u64;

/// Looks at a process and its descendants. Those that have a payload stand still for a moment, as for a checkpoint; nothing
/// is done to any. Where they have namespaces of their own, this process goes there, if it may (`enters`).
pub(crate) fn check(asked: Pid, enters: bool) -> Result<(Facts, u8)> {
    let meant = enter::meant(asked)?;
    let process = if enters { enter::enter(meant)? } else { meant };
    let (pid, status) = (process.pid(), process.main_status()?);
    let words = process.cmdline()?;
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let mut facts = Facts::default();
    facts.add("process", u64::from(asked.word()));
    facts.add("program", words.join(" "));
    let mut saves = true;
    let opened = Memory::open(&process).and_then(|memory| Ok((process.maps()?, memory)));
    let region = opened.as_ref().ok().and_then(|(vmas, memory)| Region::find(memory, vmas));
    facts.add("under_ckpt", region.is_some());
    if let (Some(region), Ok((_, memory))) = (region, &opened) {
        facts.add("arrangement", arrangement(&region.control.config)?);
        let signal = region.control.config.asyncsig;
        let caught = signal != 0 && has(status.caught, signal);
        let action = match caught {
            // What keeps it from being asked is in the way of its checkpoint, too.
            true => disposition(memory, &region, signal).ok(),
            false if has(status.ignored, signal.max(1)) => Some(SIG_IGN),
            false => Some(SIG_DFL),
        };
        if let Some(action) = action.filter(|_| signal != 0) {
            let ours = action == region.control.handler;
            saves &= ours;
            facts.add("signal", verdict(asked, signal, action, ours));
            if ours && has(status.blocked, signal) {
                let name = signal_name(signal);
                let note =
                    format!("the main thread blocks {name}: a checkpoint waits until one does not");
                facts.add("signal_blocked", note);
            }
        }
    } else if let Ok(config) = phase2_equip::configuration(&process, &Settings::default()) {
        let name = Settings::from_config(&config)?.name.map(|name| name.to_string());
        let name = name.unwrap_or_default();
        facts.add(
            "arrangement",
            format!("none: ckpt save {asked} saves it, to {name} if no -n is said"),
        );
    }
    let own = region.map_or(0, |region| region.control.config.asyncsig);
    // 32 and 33 are the C library's own (nptl(7)).
    let others = (1..=64).filter(|signal| *signal != own && !matches!(signal, 32 | 33));
    let taken = others.filter(|signal| has(status.caught, *signal));
    facts.add("signals_taken", taken.map(signal_name).collect::<Vec<_>>().join(" "));
    let begun = region.and_then(|region| region.begun(&process));
    let tree = tree::everybody().map(|all| tree::below(pid, begun, &HashSet::new(), &all))?;
    let others = tree.iter().filter(|other| ![pid, Pid::own()].contains(other));
    let others: Vec<_> = others.filter_map(|other| named(*other)).collect();
    facts.add("descendants", losses::names(&others));
    let found = survey(&Demand {
        process,
        settings: Settings::default(),
        stop: None,
        triggered: false,
        periodic: false,
        open: destination::open,
        prune: destination::prune,
        screen: None,
        tell: None,
        ending: None,
        ended: None,
        rolling: None,
    })?;
    let status = match () {
        () if !found.obstacles.is_empty() => OBSTACLES,
        () if !found.losses.sentences.is_empty() || !saves => LOSSES,
        () => 0,
    };
    seen::add(found, &mut facts);
    Ok((facts, status))
}

fn has(set: u64, signal: u32) -> bool {
    set >> (signal - 1) & 1 == 1
}

/// The handler of a signal in a process that has a payload.
fn disposition(memory: &Memory, region: &Region, signal: u32) -> Result<u64> {
    let process = memory.process();
    phase4_refuse::refuse_shared(process)?;
    let mut frozen = phase1_freeze::patiently(false, || Frozen::freeze_one(process))?;
    frozen.attend(memory, &region.desk(), region.base)?;
    let mut caller = Caller::new(&mut frozen.threads[0], memory, &region.desk())?;
    let old = region.base + STACKS;
    let what = "cannot ask for the handler of the checkpoint signal";
    caller.expect(libc::SYS_rt_sigaction, &[signal.into(), 0, old, 8], what)?;
    let action = memory.get::<[u64; 4]>(old)?;
    frozen.thaw();
    Ok(action[0])
}
