//! Phase 4: refuse, naming every obstacle at once, before anything is done.

use crate::error::{Error, Kind, Result};
use crate::proc;
use crate::ptrace::raw;
use crate::resource::Gathered;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// The children of all threads of a process (CONFIG_PROC_CHILDREN).
fn children(pid: i32) -> Vec<i32> {
    let list = |tid: i32| std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/children"));
    let lists = proc::tasks(pid).unwrap_or_default().into_iter().filter_map(|tid| list(tid).ok());
    lists
        .flat_map(|l| l.split_whitespace().filter_map(|c| c.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Children that share the address space. The intermediate that started this dumper does so too
/// for the moment that it takes to end.
fn sharers(pid: i32, keeper: u32) -> Vec<i32> {
    let shares = |child: &i32| {
        child.cast_unsigned() != keeper && raw::same_memory(pid, *child).unwrap_or(false)
    };
    let deadline = Instant::now() + Duration::from_millis(100);
    loop {
        let sharers: Vec<i32> = children(pid).into_iter().filter(shares).collect();
        if sharers.is_empty() || Instant::now() > deadline {
            return sharers;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Names the program's children, which an image does not hold. Processes of ours have another exit
/// signal.
fn declare_children(pid: i32, gathered: &mut Gathered) {
    let stats = children(pid).into_iter().filter_map(|child| proc::stat(child, child).ok());
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

/// Fails when something stands in the way of a checkpoint.
pub fn refuse(pid: i32, keeper: u32, gathered: &mut Gathered) -> Result<()> {
    declare_children(pid, gathered);
    let mut obstacles = gathered.obstacles.clone();
    for thread in proc::tasks(pid)? {
        let dead = proc::status(pid, thread).is_ok_and(|s| s.state == 'Z');
        if dead && thread == pid {
            obstacles.push("its main thread has ended while others run".into());
        }
    }
    for child in sharers(pid, keeper) {
        obstacles.push(format!("process {child} shares its memory (clone(2), CLONE_VM)"));
    }
    if obstacles.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!("process {pid} cannot be saved: {}", obstacles.join("; ")))
        .of(Kind::Obstacles)
        .hint("it goes on unharmed"))
}
