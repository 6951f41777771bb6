// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt check`: what this machine can do.
//!
//! # Safety
//! Probes are system calls that change nothing, or whose effect ends with the child that makes them.
#![allow(unsafe_code)]

use crate::command::facts::Facts;
use crate::error::{Because, Result};
use crate::proc::Tid;
use crate::proc::pagemap::Pagemap;
use crate::proc::tracking::Tracker;
use crate::proc::{self, Process};
use crate::ptrace::raw;
use crate::resource::cpu::{self, Set, level_name};
use crate::restart::machine::{CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN, capable};
use crate::restart::skeleton::namespaces::{Place, offered};
use nix::libc;
use std::path::Path;

/// Shows what this machine can do.
pub(crate) fn check(json: bool) -> Result<u8> {
    let names = nix::sys::utsname::uname().because(|| "uname")?;
    let here = Set::here();
    let mut facts = Facts::default();
    facts.add("kernel", names.release().to_string_lossy().into_owned());
    facts.add("processor", cpu::name(cpu::leaves()));
    facts.add("cpu_level", level_name(here.level()));
    facts.add("cpu_features", here.names());
    facts.add("ptrace", tracing());
    facts.add("yama", yama());
    facts.add("pagemap_scan", pagemap_scan());
    facts.add("dirty_tracking", dirty_tracking());
    facts.add("pr_set_mm_map", set_mm_map());
    facts.add(
        "exe_link",
        by_capability("/proc/PID/exe of a restarted program is the checkpoint file"),
    );
    facts.add("set_tid", by_capability("threads get new ids at a restart, C libraries are told"));
    facts.add("user_namespaces", user_namespaces());
    facts.add("ids_of_jobs", ids_of_jobs());
    facts.add("time_namespaces", time_namespaces());
    facts.add("memfd_exec", memfd_exec());
    facts.add("overcommit", overcommit());
    facts.add("mmap_min_addr", proc::setting("vm/mmap_min_addr").unwrap_or(0));
    facts.add("max_map_count", proc::setting("vm/max_map_count").unwrap_or(0));
    facts.print(json)?;
    Ok(0)
}

/// Traces a child, as a seccomp filter or a container may forbid.
fn tracing() -> String {
    // SAFETY: this process has one thread; the child only waits for its end.
    let child = unsafe { libc::fork() };
    if child == 0 {
        loop {
            // SAFETY: waits.
            unsafe { libc::pause() };
        }
    }
    if child < 0 {
        return "unknown: no process can be made".into();
    }
    let seized = raw::seize(Tid::new(child), raw::OPTIONS);
    // SAFETY: ends the child that was made above.
    unsafe { libc::kill(child, libc::SIGKILL) };
    // SAFETY: waits for that child.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    match seized {
        Ok(()) => "yes".into(),
        // Yama says so itself.
        Err(e) if proc::setting("kernel/yama/ptrace_scope") > Some(1) => {
            format!("no: {}", e.desc())
        }
        Err(e) => format!("no: {} (a container needs --cap-add SYS_PTRACE)", e.desc()),
    }
}

fn yama() -> String {
    match proc::setting("kernel/yama/ptrace_scope") {
        None | Some(0) => "yes: every process of your own can be saved".into(),
        Some(1) => {
            "fallback: programs that ckpt has started can be saved (ckpt stays as their parent); \
                    others need root, or sysctl kernel.yama.ptrace_scope=0"
                .into()
        }
        Some(2) => "no: only root can save; sysctl kernel.yama.ptrace_scope=1".into(),
        Some(_) => "no: nobody can save until the next boot (kernel.yama.ptrace_scope is 3)".into(),
    }
}

fn pagemap_scan() -> String {
    match Process::own().and_then(|own| Pagemap::of(&own)).map(|pagemap| pagemap.has_scan()) {
        Ok(true) => "yes".into(),
        Ok(false) => "fallback: page by page (Linux 6.7 has PAGEMAP_SCAN)".into(),
        Err(e) => format!("no: {e}"),
    }
}

/// How periodic checkpoints come to know what was written to.
fn dirty_tracking() -> String {
    match Tracker::is_possible() {
        true => "yes: periodic checkpoints read only what was written to large memory",
        false => {
            "fallback: periodic checkpoints read and compare all memory (Linux before 6.7, or \
             userfaultfd(2) is not permitted)"
        }
    }
    .into()
}

fn set_mm_map() -> String {
    const PR_SET_MM_MAP_SIZE: u64 = 15;
    let mut size = 0u32;
    let at: *mut u32 = &mut size;
    // SAFETY: the kernel writes the one word.
    let result = unsafe { libc::prctl(libc::PR_SET_MM, PR_SET_MM_MAP_SIZE, at, 0, 0) };
    if result == 0 { "yes".into() } else { "no: the kernel lacks CONFIG_CHECKPOINT_RESTORE".into() }
}

fn by_capability(fallback: &str) -> String {
    if capable(CAP_CHECKPOINT_RESTORE) || capable(CAP_SYS_ADMIN) {
        return "yes".into();
    }
    format!("fallback: {fallback} (CAP_CHECKPOINT_RESTORE is missing)")
}

fn user_namespaces() -> String {
    match offered() {
        Ok(_) => "yes".into(),
        Err(obstacle) => format!("no: {}", obstacle.remedy()),
    }
}

/// How a restart of several processes gets their ids again.
pub(crate) fn ids_of_jobs() -> String {
    let place = offered();
    if place == Ok(Place::Apart) {
        return "yes: here if they are free, else in a PID namespace".into();
    }
    if place.is_err() {
        return "fallback: here if they are free and the kernel gives them soon, else several processes have new ids \
                and go wrong where they remember them (user namespaces or root keep them)"
            .into();
    }
    let here = if capable(CAP_CHECKPOINT_RESTORE) { "here if they are free, else " } else { "" };
    format!(
        "yes: {here}in a PID namespace and a user namespace (docs/jobs.md says what those change)"
    )
}

fn time_namespaces() -> String {
    if !Path::new("/proc/self/ns/time").exists() {
        return "fallback: only deadlines of waits are shifted (Linux 5.6 has time namespaces)"
            .into();
    }
    if capable(CAP_SYS_ADMIN) {
        return "yes".into();
    }
    "fallback: only deadlines of waits are shifted to another machine's clock (CAP_SYS_ADMIN is \
     missing)"
        .into()
}

fn memfd_exec() -> String {
    match proc::setting("vm/memfd_noexec") {
        Some(2) => "fallback: a nameless file in the checkpoint's directory \
                    (sysctl vm.memfd_noexec=1 allows memfds)"
            .into(),
        _ => "yes".into(),
    }
}

fn overcommit() -> String {
    match proc::setting("vm/overcommit_memory") {
        Some(2) => "no: a restart needs room for all memory that the program has reserved \
                    (sysctl vm.overcommit_memory=0)"
            .into(),
        _ => "yes".into(),
    }
}
