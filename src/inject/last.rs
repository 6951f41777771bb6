// SPDX-License-Identifier: LGPL-2.1-only
//! What became of the last checkpoints of a process, in the control page of its payload: so it is where the process is,
//! through restarts and, by the monitor, execve(2), and whoever may look at the process reads it while that runs.

use super::region::Region;
use crate::error::{Error, Kind};
use crate::image::hash;
use crate::proc::Process;
use crate::ptrace::memory::Memory;
use ckpt_abi::region::{Control, Last, REASON_LEN};
use std::mem::offset_of;
use std::time::{Instant, SystemTime};
use zerocopy::{FromZeros, IntoBytes};

/// Nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64)
}

/// What the control page says, if whoever wrote it was one of us and had done so.
pub(crate) fn of(control: &Control) -> Option<Last> {
    (sum(&control.last) == control.last.sum).then_some(control.last)
}

/// The same of an image that is restarted: the last checkpoint is the image itself.
pub(crate) fn restarted(at: u64, bytes: u64, number: u64) -> Last {
    summed(Last { at, bytes, number, ..Last::new_zeroed() })
}

/// Notes what became of a checkpoint whose program goes on. What fails leaves what was there.
pub(crate) fn note(memory: &Memory, base: u64, outcome: Result<[u64; 3], &Error>) {
    let Ok(region) = Region::read(memory, base) else { return };
    let last = match outcome {
        Ok([bytes, pause, number]) => Last { pause, ..restarted(now(), bytes, number) },
        Err(e) if is_news(e) => {
            let mut reason = [0; REASON_LEN];
            let text = e.to_string();
            let end = text.len().min(REASON_LEN - 1);
            reason[..end].copy_from_slice(&text.as_bytes()[..end]);
            let before = of(&region.control).unwrap_or_else(Last::new_zeroed);
            Last { failed: now(), reason, ..before }
        }
        Err(_) => return,
    };
    let _ = put(memory, base, &summed(last));
}

/// The same of a process that nothing could be begun with.
pub(crate) fn note_failure(process: &Process, error: &Error) {
    if is_news(error)
        && let Ok(Some((memory, region))) = Region::of(process)
    {
        note(&memory, region.base, Err(error));
    }
}

/// Says when the next periodic checkpoint is due.
pub(crate) fn put_due(memory: &Memory, base: u64, due: Instant) {
    let left = due.saturating_duration_since(Instant::now()).as_nanos() as u64;
    let _ = memory.put(base + offset_of!(Control, due) as u64, &(now() + left));
}

/// Writes what is carried over an execve(2).
///
/// # Errors
/// The memory is gone.
pub(crate) fn put(memory: &Memory, base: u64, last: &Last) -> crate::error::Result<()> {
    memory.put(base + offset_of!(Control, last) as u64, last)
}

/// Whether it says something of the checkpoints of a process that it failed, and not of who had its turn.
pub(crate) fn is_news(error: &Error) -> bool {
    !matches!(error.kind(), Kind::Gone | Kind::Busy | Kind::Superseded)
}

fn summed(last: Last) -> Last {
    Last { sum: sum(&last), ..last }
}

/// A page that was never written has none.
fn sum(last: &Last) -> u64 {
    match last.at | last.failed {
        0 => 0,
        _ => hash(&last.as_bytes()[..offset_of!(Last, sum)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rubbish_is_nothing() {
        let mut control = Control::new_zeroed();
        assert_eq!(of(&control).map(|last| last.at), Some(0));
        control.last = restarted(5, 7, 9);
        assert_eq!(of(&control), Some(control.last));
        control.last.as_mut_bytes().fill(0xff);
        assert_eq!(of(&control), None);
        control.last = Last { bytes: 8, ..restarted(5, 7, 9) };
        assert_eq!(of(&control), None);
    }
}
