// SPDX-License-Identifier: LGPL-2.1-only
//! Stopping processes for a mere look, which is not worth that anybody waits for it.
//!
//! Who cannot be stopped now is left as it is, and keeps those that stand still waiting for a moment only. A call that a
//! stop has cut short is made to its end, whatever becomes of the look.

use super::freeze::{FIRST_ATTEMPT, Frozen};
use super::memory::Memory;
use super::stopping::await_hearing;
use crate::error::{Kind, Result};
use crate::proc::Process;
use std::time::{Duration, Instant};

/// How long all together may take until they can hear, while nobody is touched.
const HEARING: Duration = Duration::from_millis(100);

/// For how long in all those that stand still may wait for others that take more than [`QUICK`].
const WAIT: Duration = Duration::from_millis(60);
const QUICK: Duration = Duration::from_millis(2);

/// Stops those of the processes that can be stopped now. With each comes the address of its payload's region.
///
/// # Errors
/// With everything running again: those of `Frozen::freeze`, but for a thread that does not stop.
pub(crate) fn stop(all: &[(Process, u64)]) -> Result<Vec<Frozen>> {
    let able = able(all)?;
    let (mut stopped, mut outcome, mut waited) = (Vec::new(), Ok(()), Duration::ZERO);
    for (process, region) in able {
        if outcome.is_err() || waited > WAIT {
            break;
        }
        let begun = Instant::now();
        match Frozen::soon(&process, FIRST_ATTEMPT, None) {
            Ok(Ok(mut frozen)) => {
                outcome = frozen.open_sandbox();
                stopped.push((frozen, region));
            }
            Ok(Err(some)) => let_be(some, region),
            // It is let go again, and only looked at.
            Err(e) if e.kind() == Kind::Obstacles => {}
            Err(e) => outcome = Err(e),
        }
        waited += begun.elapsed().saturating_sub(QUICK);
    }
    if let Err(e) = outcome {
        stopped.into_iter().rev().for_each(|(frozen, region)| let_be(frozen, region));
        return Err(e);
    }
    Ok(stopped.into_iter().map(|(frozen, _)| frozen).collect())
}

/// Those that can hear us, or can in a moment.
fn able(all: &[(Process, u64)]) -> Result<Vec<(Process, u64)>> {
    let deadline = Instant::now() + HEARING;
    let mut able = Vec::new();
    for (process, region) in all {
        match await_hearing(process, deadline) {
            Ok(()) => able.push((process.clone(), *region)),
            Err(e) if e.kind() == Kind::Other => {}
            Err(e) => return Err(e),
        }
    }
    Ok(able)
}

/// Lets those threads go on that still stand.
fn let_be(mut frozen: Frozen, region: u64) {
    let pid = frozen.pid;
    if let Ok(memory) = Memory::open(frozen.process()) {
        for thread in &mut frozen.threads {
            // Who is gone has no rest to make.
            let _ = thread.makes_the_rest(pid, &memory, region);
        }
    }
    frozen.thaw();
}
