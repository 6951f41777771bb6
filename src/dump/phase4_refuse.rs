// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 4: refuse, naming every obstacle at once, before anything is done.

use super::phase3_gather::Still;
use super::sharers;
use crate::error::{Error, Kind, Result};
use crate::proc::tree::{self, Kin};
use crate::proc::{self, Process};
use crate::resource::Gathered;
use crate::resource::kinship::{self, Found};
use ckpt_abi::image::{Member, process_flag};
use nix::sys::signal::Signal;

/// Names the program's children, which an image does not hold. Processes of ours have another exit
/// signal.
fn declare_children(process: &Process, gathered: &mut Gathered) {
    let stats = process.children().into_iter().filter_map(|child| proc::stat(child, child).ok());
    let mut names: Vec<String> = Vec::new();
    for stat in stats.filter(|stat| stat.exit_signal == Signal::SIGCHLD as i32) {
        let name = stat.comm.to_string_lossy().into_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if !names.is_empty() {
        gathered.losses.push(format!(
            "child processes: {} (a restart is without them: what they would have done is missing, and \
             wait(2) finds none)",
            names.join(", ")
        ));
    }
}

/// What is in the way when another process lives in the same memory.
fn shared(other: i32) -> String {
    format!("process {other} shares its memory (vfork(2), or clone(2) with CLONE_VM)")
}

/// Refuses a program that shares its memory, before that is touched: a payload would come to both.
pub(crate) fn refuse_shared(pid: i32) -> Result<()> {
    match sharers::anywhere(pid).first() {
        Some(other) => {
            Err(Error::new(format!("process {pid} cannot be saved: {}", shared(*other)))
                .of(Kind::Obstacles)
                .hint("it can be when that has ended or has executed a program"))
        }
        None => Ok(()),
    }
}

/// Fails when something stands in the way of a checkpoint: all of it, of all processes. How they are related, if there
/// are several.
pub(crate) fn refuse(processes: &mut [Still<'_>], dead: &[Kin]) -> Result<Vec<Member>> {
    let mut refusals = Vec::new();
    let mut found = Vec::new();
    let alone = processes.len() == 1 && dead.is_empty();
    for process in processes.iter_mut() {
        let Still { equipped, gathered, .. } = process;
        let (pid, process) = (equipped.process.pid(), &equipped.process);
        if alone {
            declare_children(process, gathered);
        }
        let mut obstacles = gathered.obstacles.clone();
        for thread in process.tasks()? {
            let dead = process.status(thread).is_ok_and(|s| s.state == 'Z');
            if dead && thread == pid {
                obstacles.push("its main thread has ended while others run".into());
            }
        }
        obstacles.extend(sharers::near(process).into_iter().map(shared));
        if !obstacles.is_empty() {
            refusals.push(format!("process {pid} cannot be saved: {}", obstacles.join("; ")));
        }
        let flags = gathered.process.map_or(0, |process| process.flags);
        found.push(Found { kin: tree::kin(pid)?, reaps: flags & process_flag::SUBREAPER != 0 });
    }
    let members = match alone {
        true => Vec::new(),
        false => kinship::save(&found, dead).unwrap_or_else(|obstacles| {
            refusals.extend(obstacles);
            Vec::new()
        }),
    };
    match refusals.is_empty() {
        true => Ok(members),
        false => {
            Err(Error::new(refusals.join("; ")).of(Kind::Obstacles).hint("it goes on unharmed"))
        }
    }
}
