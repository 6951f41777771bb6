//! Phase 7: the image gets its head and its name, and the program its end, if that was asked.

use super::phase2_equip::Equipped;
use super::phase6_write::Writing;
use crate::error::Result;
use crate::ptrace::freeze::Frozen;

/// Seals the image; its length in bytes, and what it goes without.
pub fn seal(writing: Writing<'_>) -> Result<(u64, Vec<String>)> {
    writing.finish()
}

/// Ends the program, with the status that was configured, as by _exit(2).
pub fn end(frozen: Frozen, equipped: &Equipped) -> Result<()> {
    let control = &equipped.region.control;
    frozen.end(control.thunk, u64::from(control.config.exit_status))
}
