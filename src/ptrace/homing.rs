// SPDX-License-Identifier: LGPL-2.1-only
//! Threads that a host or a restarter has left in the payload, on their way to their program: in a process that is
//! stopped (SIGSTOP) they stay there until SIGCONT. They are brought home without executing anything of the program,
//! for which nobody has told them to go on.

use super::freeze::{Frozen, PATIENCE};
use super::lend;
use super::memory::Memory;
use super::raw::{self, State};
use super::regs::Regs;
use super::thread::{StoppedThread, back_to_signal_stop, wait_event_stop};
use crate::error::{Because, Result};
use crate::proc::Tid;
use ckpt_abi::nr;
use ckpt_abi::region::{HOLE_AREA, HoleArea};
use nix::errno::Errno;
use std::time::{Duration, Instant};

/// How long a way home may take: it waits for a child that was made by us, or for other threads that go the same way.
const WAY: Duration = Duration::from_secs(2);

/// Lets threads run to the end of their next rt_sigreturn(2), through which they come home; false when one does not come
/// so far within [`WAY`]. Then, too, all stand still.
pub(super) fn bring_home(threads: &mut [&mut StoppedThread]) -> std::result::Result<bool, Errno> {
    let deadline = Instant::now() + WAY;
    let mut away: Vec<(Tid, bool)> = Vec::new();
    for thread in threads.iter() {
        raw::syscall(thread.tid, 0)?;
        away.push((thread.tid, false));
    }
    let mut nap = Duration::from_micros(20);
    while !away.is_empty() && Instant::now() < deadline {
        let before = away.len();
        for (tid, returns) in std::mem::take(&mut away) {
            if let Some(returns) = step(tid, returns)? {
                away.push((tid, returns));
            }
        }
        if away.len() == before {
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_millis(1));
        }
    }
    for thread in threads.iter_mut() {
        let tid = thread.tid;
        if away.iter().any(|(late, _)| *late == tid) {
            raw::interrupt(tid)?;
            wait_event_stop(tid, Instant::now() + PATIENCE)?.ok_or(Errno::ESRCH)?;
        } else {
            back_to_signal_stop(tid)?;
        }
        thread.read_again()?;
    }
    Ok(away.is_empty())
}

/// One step of a thread, if it has come to a stop: whether it `returns` to its program (it is in rt_sigreturn(2)); None
/// when it has.
fn step(tid: Tid, returns: bool) -> std::result::Result<Option<bool>, Errno> {
    let (returns, signal) = match raw::wait(tid, false)? {
        State::Running => return Ok(Some(returns)),
        State::Ended => return Err(Errno::ESRCH),
        State::Stopped { signal, event: 0 } if signal & 0x80 != 0 => {
            if returns {
                return Ok(None);
            }
            (Regs::get(tid)?.orig_rax == nr::RT_SIGRETURN, 0)
        }
        State::Stopped { signal, event: 0 } => (returns, signal),
        State::Stopped { .. } => (returns, 0),
    };
    raw::syscall(tid, signal)?;
    Ok(Some(returns))
}

impl Frozen {
    /// Whether the process was stopped (SIGSTOP and its kin) before we stopped it.
    pub(crate) fn is_halted(&self) -> bool {
        self.threads.iter().any(|thread| thread.stopped_by != 0)
    }

    /// The process was stopped, and is no more, for we have told it so (SIGCONT), of which it hears or `unheard`.
    pub(crate) fn goes_on(&mut self, unheard: bool) {
        self.was_told = unheard;
        for thread in &mut self.threads {
            (thread.stopped_by, thread.halted_by) = (0, 0);
        }
    }

    /// Brings those threads home that stand where `is_on_its_way` says; false when they do not come.
    ///
    /// # Errors
    /// One is gone.
    pub(crate) fn come_home(&mut self, is_on_its_way: impl Fn(&Regs) -> bool) -> Result<bool> {
        let all = self.threads.iter_mut().filter(|thread| is_on_its_way(&thread.regs));
        let pid = self.pid;
        bring_home(&mut all.collect::<Vec<_>>())
            .because(|| format!("cannot bring the threads of process {pid} home"))
    }

    /// Gives threads that a host has left in a hole, whose code is `code`, what it has of them.
    ///
    /// # Errors
    /// One is gone.
    pub(crate) fn leave_holes(&mut self, memory: &Memory, code: &[u8]) -> Result<()> {
        for thread in &mut self.threads {
            let Some(hole) = hole_around(memory, thread.regs.rip, code) else { continue };
            let area: HoleArea = memory.get(hole + HOLE_AREA)?;
            let regs = lend::out_of_a_hole(&thread.regs, &area);
            regs.set(thread.tid)
                .and_then(|()| raw::set_mask(thread.tid, area.mask))
                .and_then(|()| thread.read_again())
                .because(|| format!("cannot bring thread {} home", thread.tid))?;
        }
        Ok(())
    }
}

/// Address of the hole in which code at `rip` lies.
fn hole_around(memory: &Memory, rip: u64, code: &[u8]) -> Option<u64> {
    const APART: u64 = 64;
    let near = rip - rip % APART;
    let mut places = [Some(near), near.checked_sub(APART)].into_iter().flatten();
    places.find(|at| {
        let mut found = vec![0; code.len()];
        rip - at < code.len() as u64 && memory.read(*at, &mut found).is_ok() && found == code
    })
}
