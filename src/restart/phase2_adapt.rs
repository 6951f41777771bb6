// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 2: what this process and this machine are, beside what the program needs: refused, converted, warned of.

use super::phase1_check::{Saved, Whole};
use super::{Options, machine};
use crate::error::{Error, Result};
use crate::fault::{Point, reach};
use crate::image::stub;
use crate::inject::{self, monitor::Monitor};
use crate::proc::Pid;
use crate::resource::cpu::{self, Set};
use crate::resource::memory::{advice, locked, policy};
use crate::resource::{process, scheduling, written, xstate};
use ckpt_abi::image::{VmaKind, vma_flag};
use ckpt_abi::region::Config;

/// Adapts this process to the records of the one that it becomes.
///
/// # Errors
/// There is no /proc.
pub(crate) fn adapt_to(saved: &Saved<'_>, warnings: &mut Vec<String>) -> Result<()> {
    warnings.extend(process::raise_limits(&saved.limits)?);
    warnings.extend(scheduling::denied(&saved.threads));
    warnings.extend(locked::denied(&saved.vmas)?);
    warnings.extend(advice::unsealed(&saved.vmas));
    let main = saved.threads.first().map_or(0, |main| main.tid);
    warnings.extend(policy::adopt(&saved.policies, main));
    warnings.extend(written::restore(&saved.process));
    Ok(())
}

/// Refuses what cannot go on here, and brings the threads' extended state into this machine's layout.
/// What is lost with that is a warning.
///
/// # Errors
/// All that is missing; nothing has happened then.
pub(crate) fn convert(
    whole: &Whole<'_>,
    saved: &mut Saved<'_>,
    options: &Options,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let lacks = machine::lacks(whole, saved);
    let stays = lacks.iter().any(|l| !l.forcible);
    if lacks.iter().any(|l| !(l.forcible && options.force_cpu)) {
        let all: Vec<_> = lacks.iter().map(|l| l.what.as_str()).collect();
        let error = Error::new(format!(
            "cannot restart {} on this machine: {}",
            whole.image.path().display(),
            all.join("; ")
        ));
        return Err(if stays {
            error.hint("restart it where it was saved")
        } else {
            error.hint(format!(
                "start the program with `ckpt --cpu {}` to have checkpoints that restart here, or try --force-cpu",
                cpu::level_name(Set::here().level())
            ))
        });
    }
    warnings.extend(lacks.into_iter().map(|l| format!("forced: {}", l.what)));
    let lost = machine::lost(whole, saved, false);
    if !lost.is_empty() {
        warnings.push(format!("values are lost that it may not use (--cpu): {lost}"));
    }
    for vma in saved.vmas.iter_mut().filter(|v| v.flags & vma_flag::CARRIED != 0) {
        if !whole.path(vma.name).exists() {
            vma.kind = VmaKind::Private as u32;
        }
    }
    let (from, to) = machine::layouts(whole, saved);
    let mut converted = Vec::new();
    for index in 0..saved.threads.len() {
        let bytes = xstate::convert(machine::area(saved, &saved.threads[index]), &from, &to);
        let thread = &mut saved.threads[index];
        (thread.xstate, thread.xstate_len) = (converted.len() as u64, bytes.len() as u64);
        converted.extend_from_slice(&bytes);
    }
    saved.xstate = converted;
    Ok(())
}

/// Starts the monitor of a program that needs one: now, while this process is small
/// and has one thread. It waits until the program is there.
pub(crate) fn monitor(config: &Config) -> Result<Option<Monitor>> {
    crate::settings::template(config)?;
    let own = Pid::own();
    let monitor = inject::monitor::start_if_wanted(own, &stub::own()?, config)?;
    if let Some(monitor) = &monitor {
        monitor.allow();
        reach(Point::Watched);
    }
    Ok(monitor)
}
