// SPDX-License-Identifier: LGPL-2.1-only
//! The ids of a tree that restarts with new ones, or may have to: what each process, group and session of it has here, in a table that
//! all of its processes share while they are made.
//!
//! # Safety
//! The table is mapped once, shared, before the first process is made; its words are atomic.
#![allow(unsafe_code)]

use crate::error::{Because, Result};
use crate::proc::Pid;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

struct Numbers {
    /// The saved ids, sorted.
    saved: Vec<Pid>,
    /// What they are here; 0 of one that is not there yet.
    here: &'static [AtomicI32],
}

static NUMBERS: OnceLock<Numbers> = OnceLock::new();

/// Begins to give new ids in the place of these, which are sorted.
///
/// # Errors
/// No memory.
pub(crate) fn begin_anew(saved: Vec<Pid>) -> Result<()> {
    let len = NonZeroUsize::MIN.saturating_add(saved.len() * size_of::<AtomicI32>());
    let (protection, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
    // SAFETY: a new mapping, in the place of no other.
    let table = unsafe { mmap_anonymous(None, len, protection, flags) };
    let table = table.because(|| "cannot have a table of process ids")?.cast::<AtomicI32>();
    // SAFETY: it has so many words, all zeros, and is never unmapped by this code.
    let here = unsafe { std::slice::from_raw_parts(table.as_ptr(), saved.len()) };
    let _ = NUMBERS.set(Numbers { saved, here });
    Ok(())
}

/// Whether ids may be new ones.
pub(crate) fn are_new() -> bool {
    NUMBERS.get().is_some()
}

/// Says what an id is here.
pub(crate) fn note(saved: Pid, here: Pid) {
    if let Some(word) = word(saved) {
        word.store(here.get(), Ordering::Release);
    }
}

/// What a saved id is here: the same, unless it is a new one.
pub(crate) fn here(saved: Pid) -> Pid {
    match word(saved).map(|word| word.load(Ordering::Acquire)) {
        // Of nobody who was made.
        Some(0) => Pid::new(i32::MAX),
        Some(here) => Pid::new(here),
        None => saved,
    }
}

fn word(saved: Pid) -> Option<&'static AtomicI32> {
    let numbers = NUMBERS.get()?;
    numbers.here.get(numbers.saved.binary_search(&saved).ok()?)
}
