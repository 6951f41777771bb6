// SPDX-License-Identifier: LGPL-2.1-only
//! What the kernel gives back of semaphores when a process ends (semop(2), SEM_UNDO).
//!
//! Nothing shows it, but it has bounds: an operation that would carry it over them fails with ERANGE before a later one
//! of the same call that cannot be had fails with EAGAIN, and neither changes anything. So the process itself, asked to
//! make such calls, answers by which it is.

use super::calls;
use crate::error::Result;
use crate::ptrace::call::Caller;
use crate::resource::{Common, Gathered, Target};
use ckpt_abi::image::Undo;
use ckpt_abi::region::STACKS;
use nix::libc;

/// The largest value of a semaphore, and the bound of what is given back (SEMVMX, SEMAEM).
const MOST: i16 = i16::MAX;
const UNDO: i16 = libc::SEM_UNDO as i16;
/// No step may wait.
const NOW: i16 = libc::IPC_NOWAIT as i16;

/// Asks the process; `caller` is its main thread.
pub(crate) fn save(
    target: &Target<'_>,
    caller: &mut Caller<'_>,
    gathered: &mut Gathered,
    common: &Common,
) -> Result<()> {
    let scratch = target.region.base + STACKS;
    for (set, values) in common.semaphores() {
        for (number, value) in (0u16..).zip(values) {
            let mut fails = |steps: &[(i16, i16)]| -> Result<bool> {
                // Nothing can take so much away.
                let last = (i16::MIN, 0);
                let all = steps.iter().filter(|(by, _)| *by != 0).chain([&last]);
                let bytes: Vec<u8> = all
                    .flat_map(|(by, flags)| [number.cast_signed(), *by, flags | NOW])
                    .flat_map(i16::to_le_bytes)
                    .collect();
                target.memory.write(scratch, &bytes)?;
                let count = bytes.len() as u64 / 6;
                let args = [set.cast_signed() as u64, scratch, count];
                Ok(caller.call(libc::SYS_semop, &args)? == -i64::from(libc::ERANGE))
            };
            let value = i16::try_from(*value).unwrap_or(MOST);
            let (up, down) = (MOST - value, -value);
            // Whether it is `least` at least, or minus that at most.
            let given = search(|least| fails(&[(up, 0), (least - 1 - MOST, UNDO)]))?;
            let taken = match given {
                0 => search(|least| {
                    fails(&[(down, 0), (1, UNDO), (-1, 0), (MOST - (least - 1), UNDO)])
                })?,
                _ => 0,
            };
            let adjust = i32::from(given) - i32::from(taken);
            if adjust != 0 {
                gathered.undo.push(Undo { set: *set, number: number.into(), adjust, reserved: 0 });
            }
        }
    }
    Ok(())
}

/// The largest number from 0 to [`MOST`] that is reached.
fn search(mut reaches: impl FnMut(i16) -> Result<bool>) -> Result<i16> {
    if !reaches(1)? {
        return Ok(0);
    }
    let (mut low, mut high) = (1, MOST);
    while low < high {
        let middle = low + (high - low + 1) / 2;
        match reaches(middle)? {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    Ok(low)
}

/// Lets the kernel owe this process the same; the values stay what they are.
pub(crate) fn restore(undo: &[Undo]) -> nix::Result<()> {
    for Undo { set, number, adjust, .. } in undo {
        let step = |by: i32, flags: i16| libc::sembuf {
            sem_num: *number as u16,
            sem_op: by as i16,
            sem_flg: flags | NOW,
        };
        let (owed, back) = (step(-adjust, UNDO), step(*adjust, 0));
        let set = set.cast_signed();
        calls::change(set, &mut [back, owed]).or_else(|_| calls::change(set, &mut [owed, back]))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_found() {
        for bound in [0, 1, 2, 77, MOST - 1, MOST] {
            assert_eq!(search(|number| Ok(number <= bound)).unwrap(), bound);
        }
    }
}
