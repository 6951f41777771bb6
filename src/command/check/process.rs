// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt check PID`: whether and how a running process is saved.

use crate::command::attach::arrangement;
use crate::command::facts::Facts;
use crate::dump::{phase1_freeze, phase2_equip};
use crate::error::Result;
use crate::inject::region::Region;
use crate::proc::{self, tree};
use crate::proc::{Pid, Tid};
use crate::ptrace::call::Caller;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use crate::resource::losses;
use crate::resource::signals::verdict;
use crate::settings::{Settings, signal_name};
use ckpt_abi::region::STACKS;
use nix::libc;
use std::collections::HashSet;

/// Exit status when the process cannot be saved, or its signal does not save it.
const NO: u8 = 1;
const SIG_DFL: u64 = libc::SIG_DFL as u64;
const SIG_IGN: u64 = libc::SIG_IGN as u64;

/// Looks at a process; one that ckpt is in stands still for a moment if it has a handler for the
/// checkpoint signal, since only the kernel knows whose that is.
pub(crate) fn check(pid: Pid) -> Result<(Facts, u8)> {
    let status = proc::status(pid, pid.main_thread())?;
    let words = proc::cmdline(pid)?;
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let mut facts = Facts::default();
    facts.add("process", pid.word() as usize);
    facts.add("program", words.join(" "));
    let (mut can, mut obstacles) = (true, Vec::new());
    if let Err(e) = phase1_freeze::check(pid) {
        obstacles.push(e.to_string());
    }
    if status.tracer != Tid::NONE {
        obstacles.push(format!("process {} (a debugger?) traces it", status.tracer));
    }
    let opened = Memory::open(pid).and_then(|memory| Ok((proc::maps::read(pid)?, memory)));
    let region = match &opened {
        Ok((vmas, memory)) => Region::find(memory, vmas),
        Err(e) => {
            obstacles.push(e.to_string());
            None
        }
    };
    facts.add("under_ckpt", region.is_some());
    if let (Some(region), Ok((_, memory))) = (region, &opened) {
        facts.add("arrangement", arrangement(&region.control.config)?);
        let signal = region.control.config.asyncsig;
        let caught = signal != 0 && has(status.caught, signal);
        let action = match caught {
            true => disposition(pid, memory, &region, signal)?,
            false if has(status.ignored, signal.max(1)) => SIG_IGN,
            false => SIG_DFL,
        };
        if signal != 0 {
            let ours = action == region.control.handler;
            can &= ours;
            facts.add("signal", verdict(pid, signal, action, ours));
            if ours && has(status.blocked, signal) {
                let name = signal_name(signal);
                let note =
                    format!("the main thread blocks {name}: a checkpoint waits until one does not");
                facts.add("signal_blocked", note);
            }
        }
    } else if let Ok(config) = phase2_equip::configuration(pid, &Settings::default()) {
        let name = Settings::from_config(&config)?.name.map(|name| name.to_string());
        let name = name.unwrap_or_default();
        facts.add(
            "arrangement",
            format!("none: ckpt save {pid} saves it, to {name} if no -n is said"),
        );
    }
    let own = region.map_or(0, |region| region.control.config.asyncsig);
    // 32 and 33 are the C library's own (nptl(7)).
    let others = (1..=64).filter(|signal| *signal != own && !matches!(signal, 32 | 33));
    let taken = others.filter(|signal| has(status.caught, *signal));
    facts.add("signals_taken", taken.map(signal_name).collect::<Vec<_>>().join(" "));
    let tree = tree::everybody().map(|all| tree::below(pid, &HashSet::new(), &all))?;
    let others = tree.iter().filter(|other| **other != pid);
    let named: Vec<_> = others.clone().filter_map(|other| named(*other)).collect();
    facts.add("descendants", losses::names(&named));
    obstacles.extend(others.flat_map(|other| in_the_way(*other)));
    can &= obstacles.is_empty();
    facts.add("obstacles", obstacles);
    Ok((facts, if can { 0 } else { NO }))
}

fn named(pid: Pid) -> Option<(u32, String)> {
    let comm = proc::comm(pid, pid.main_thread()).ok()?;
    Some((pid.word(), comm.to_string_lossy().into_owned()))
}

/// What can be seen from outside that is in the way of saving a descendant.
fn in_the_way(pid: Pid) -> Vec<String> {
    let Ok(status) = proc::status(pid, pid.main_thread()) else { return Vec::new() };
    if status.state == 'Z' && status.threads <= 1 {
        return Vec::new();
    }
    let mut all = Vec::from_iter(phase1_freeze::check(pid).err().map(|e| e.to_string()));
    if status.tracer != Tid::NONE {
        all.push(format!("process {} (a debugger?) traces process {pid}", status.tracer));
    }
    if let Err(e) = Memory::open(pid) {
        all.push(e.to_string());
    }
    all
}

fn has(set: u64, signal: u32) -> bool {
    set >> (signal - 1) & 1 == 1
}

/// The handler of a signal in a process that has a payload.
fn disposition(pid: Pid, memory: &Memory, region: &Region, signal: u32) -> Result<u64> {
    let mut frozen = phase1_freeze::patiently(false, || Frozen::freeze_one(pid))?;
    frozen.attend(memory, &region.desk(), region.base)?;
    let mut caller = Caller::new(&mut frozen.threads[0], memory, &region.desk())?;
    let old = region.base + STACKS;
    let what = "cannot ask for the handler of the checkpoint signal";
    caller.expect(libc::SYS_rt_sigaction, &[signal.into(), 0, old, 8], what)?;
    let action = memory.get::<[u64; 4]>(old)?;
    frozen.thaw();
    Ok(action[0])
}
