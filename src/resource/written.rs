// SPDX-License-Identifier: LGPL-2.1-only
//! What a process sets by writing to its files in /proc, and a restart by writing to its own.

use super::looked::Rest;
use super::relatives::Relative;
use crate::proc;
use ckpt_abi::image::{ProcessRecord, process_flag};
use std::fs;

/// What is saved of it.
pub(crate) struct Written {
    /// Bits of [`process_flag`].
    pub flags: u32,
    /// [`ProcessRecord::oom_score`].
    pub oom_score: i32,
    /// [`ProcessRecord::coredump_filter`].
    pub coredump_filter: u32,
    /// [`ProcessRecord::login`].
    pub login: u32,
}

impl Written {
    /// An oom_score_adj that is also its parent's belongs to where it runs, not to it.
    pub(crate) fn of(seen: &Rest, parent: &Relative, login: u32) -> Self {
        let (score, filter) = (seen.oom_score, seen.coredump_filter);
        let own = score.is_some() && score != parent.oom_score;
        let flag = |holds, flag| if holds { flag } else { 0 };
        Self {
            flags: flag(own, process_flag::OOM_SCORE)
                | flag(filter.is_some(), process_flag::COREDUMP_FILTER),
            oom_score: score.unwrap_or(0),
            coredump_filter: filter.unwrap_or(0),
            login,
        }
    }
}

/// Sets it for this process, which will be the program; a sentence about what the kernel does not allow.
///
/// The filter lasts as its memory does; the score goes down only with CAP_SYS_RESOURCE, and up always (proc(5)).
pub(crate) fn restore(process: &ProcessRecord) -> Option<String> {
    let own = proc::Process::own().ok();
    let own = own.as_ref();
    let write = |name: &str, value: String| fs::write(format!("/proc/self/{name}"), value).is_ok();
    let mut denied = Vec::new();
    let (score, filter) = (process.oom_score, process.coredump_filter);
    if process.flags & process_flag::OOM_SCORE != 0
        && own.and_then(proc::Process::oom_score).is_some_and(|own| own != score)
        && !write("oom_score_adj", score.to_string())
    {
        denied.push(format!("oom_score_adj {score}"));
    }
    if process.flags & process_flag::COREDUMP_FILTER != 0
        && own.and_then(proc::Process::coredump_filter).is_some_and(|own| own != filter)
        && !write("coredump_filter", format!("{filter:#x}"))
    {
        denied.push(format!("coredump_filter {filter:#x}"));
    }
    // Who may not is somebody else by the kernel's word.
    let login = process.login.wrapping_sub(1);
    if process.login != 0 && own.is_some_and(|own| own.login() != process.login) {
        write("loginuid", login.to_string());
    }
    let denied = denied.join(" and ");
    (!denied.is_empty()).then(|| {
        format!(
            "the program had {denied} in /proc, which the kernel does not let it set again here"
        )
    })
}
