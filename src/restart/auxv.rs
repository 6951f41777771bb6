// SPDX-License-Identifier: LGPL-2.1-only
//! The auxiliary vector on another machine (getauxval(3)).
//!
//! What describes the machine is brought up to date, on the program's stack, where C libraries read it,
//! and in /proc/PID/auxv. It is only ever narrowed (hardware capabilities) or raised (sizes that a
//! program makes room for), for the program may have looked before. Everything else is the program's
//! own: addresses, the vdso's among them, ids, random bytes, names. Entries are never added.

use super::phase1_check::Saved;
use super::placed::{self, Placed};
use crate::error::Result;
use crate::proc::{self, Process};
use crate::resource::{cpu, xstate};
use ckpt_abi::image::CpuLeaf;

const AT_HWCAP: u64 = 16;
const AT_HWCAP2: u64 = 26;
const AT_RSEQ_FEATURE_SIZE: u64 = 27;
const AT_RSEQ_ALIGN: u64 = 28;
const AT_MINSIGSTKSZ: u64 = 51;
/// Where [`ckpt_abi::image::ProcessRecord::mm`] has start_stack, the address of argc.
const START_STACK: usize = 6;
/// Words of arguments and environment, at most.
const MOST_WORDS: u64 = 1 << 20;

/// Updates the vector in the records and on the restored stack.
pub(crate) fn update(saved: &mut Saved<'_>, placed: &mut [Placed]) -> Result<()> {
    let here = Process::own()?.auxv()?;
    let new = adapted(&saved.auxv, &here, signal_frame(&here, cpu::leaves()));
    if new == saved.auxv {
        return Ok(());
    }
    if let Some(at) = on_stack(placed, saved.process.mm[START_STACK], &saved.auxv) {
        placed::write(placed, at, &new)?;
    }
    saved.auxv = new;
    Ok(())
}

/// What a signal takes on the stack here. Linux before 5.14 does not say; there it is the size of the
/// extended state and what the frame has besides (arch/x86/kernel/signal.c, init_sigframe_size).
fn signal_frame(here: &[u8], leaves: &[CpuLeaf]) -> u64 {
    const BESIDES: u64 = 1024;
    proc::auxv_value(here, AT_MINSIGSTKSZ).unwrap_or_else(|| {
        let size = leaves.iter().find(|l| (l.leaf, l.subleaf) == (0xd, 0)).map_or(0, |l| l.ebx);
        u64::from(size).max(xstate::LEGACY as u64) + BESIDES
    })
}

/// The saved vector with what this machine says in `here`, where a signal takes `frame` bytes.
fn adapted(saved: &[u8], here: &[u8], frame: u64) -> Vec<u8> {
    let mut new = saved.to_vec();
    for pair in new.chunks_exact_mut(16) {
        let (key, value) = pair.split_at_mut(8);
        let old = word(value);
        let now = proc::auxv_value(here, word(key));
        let updated = match word(key) {
            0 => break,
            AT_HWCAP | AT_HWCAP2 => old & now.unwrap_or(0),
            AT_MINSIGSTKSZ => old.max(frame),
            // What the kernel fills of an area that is registered from now on.
            AT_RSEQ_FEATURE_SIZE | AT_RSEQ_ALIGN => now.unwrap_or(old),
            _ => old,
        };
        value.copy_from_slice(&updated.to_ne_bytes());
    }
    new
}

fn word(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_ne_bytes)
}

/// Where the vector lies behind arguments and environment, if it does unchanged.
fn on_stack(placed: &[Placed], start: u64, auxv: &[u8]) -> Option<u64> {
    let read = |index: u64| {
        let mut bytes = [0; 8];
        let at = start.checked_add(index * 8)?;
        placed::read(placed, at, &mut bytes).then(|| u64::from_ne_bytes(bytes))
    };
    let mut index = read(0)?.min(MOST_WORDS) + 2;
    while read(index)? != 0 && index < MOST_WORDS {
        index += 1;
    }
    let end = auxv.chunks_exact(16).position(|pair| word(&pair[..8]) == 0)?;
    let at = start + (index + 1) * 8;
    let mut found = vec![0; end * 16];
    (placed::read(placed, at, &mut found) && found == auxv[..end * 16]).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(pairs: &[(u64, u64)]) -> Vec<u8> {
        let words = pairs.iter().chain(&[(0, 0)]).flat_map(|(key, value)| [*key, *value]);
        words.flat_map(u64::to_ne_bytes).collect()
    }

    #[test]
    fn only_what_describes_the_machine_changes_and_only_for_the_better() {
        let saved = vector(&[(33, 7), (16, 0b110), (26, 2), (51, 1776), (27, 28), (25, 9)]);
        let here = vector(&[(33, 8), (16, 0b011), (51, 3632), (27, 36), (25, 1)]);
        let both = vector(&[(33, 7), (16, 0b010), (26, 0), (51, 3632), (27, 36), (25, 9)]);
        assert_eq!(adapted(&saved, &here, 3632), both);
        let old = vector(&[]);
        assert_eq!(proc::auxv_value(&adapted(&saved, &old, 100), 51), Some(1776));
        assert_eq!(proc::auxv_value(&adapted(&saved, &old, 100), 27), Some(28));
    }

    #[test]
    fn the_frame_of_a_signal_is_not_underrated() {
        let here = Process::own().and_then(|it| it.auxv()).unwrap();
        let estimated = signal_frame(&[], cpu::leaves());
        let told = proc::auxv_value(&here, AT_MINSIGSTKSZ);
        assert!(told.is_none_or(|told| told <= estimated), "{told:?}, {estimated}");
        assert_eq!(signal_frame(&vector(&[(51, 1776)]), &[]), 1776);
        assert_eq!(signal_frame(&[], &[]), 512 + 1024);
    }
}
