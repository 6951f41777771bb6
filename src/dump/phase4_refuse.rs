//! Phase 4: refuse, naming every obstacle at once, before anything is done.

use crate::error::{Error, Result};
use crate::proc;
use crate::resource::Gathered;

/// Fails when something stands in the way of a checkpoint.
pub fn refuse(pid: i32, gathered: &Gathered) -> Result<()> {
    let mut obstacles = gathered.obstacles.clone();
    for thread in proc::tasks(pid)? {
        let dead = proc::status(pid, thread).is_ok_and(|s| s.state == 'Z');
        if dead && thread == pid {
            obstacles.push("its main thread has ended while others run".into());
        }
    }
    if obstacles.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!("process {pid} cannot be saved: {}", obstacles.join("; ")))
        .hint("it goes on unharmed"))
}
