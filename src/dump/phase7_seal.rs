//! Phase 7: the image gets its head and its name, and the program its end, if that was asked.

use super::phase2_equip::Equipped;
use super::phase6_write::Writing;
use crate::error::{Error, Kind, Result};
use crate::image::read::Image;
use crate::proc;
use crate::ptrace::freeze::Frozen;
use crate::settings::{Template, Values};
use std::fs::File;

/// Seals the image; its length in bytes, and what it goes without.
pub fn seal(writing: Writing<'_>) -> Result<(u64, Vec<String>)> {
    writing.finish()
}

/// Refuses a periodic checkpoint of a program that has ended while it was written: somebody may
/// have restarted an older one already, and this would take the place of that run's checkpoints.
pub fn still_wanted(pid: i32) -> Result<()> {
    match proc::stat(pid, pid) {
        Ok(stat) if !matches!(stat.state, 'Z' | 'X') => Ok(()),
        _ => Err(Error::new(format!("process {pid} has ended meanwhile")).of(Kind::Gone)),
    }
}

/// Deletes older checkpoints of a counted name, now that a newer one is whole: all but the last
/// `keep`, counting damaged ones as any other. What is no checkpoint is nobody's business.
pub fn prune(template: &Template, values: &Values, keep: u32) {
    let older = template.existing(values).unwrap_or_default().into_iter().skip(keep as usize);
    for (_, path) in older {
        let checkpoint = File::open(&path).map(|file| Image::find(&file));
        if !matches!(checkpoint, Ok(Ok(None)) | Err(_)) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// Ends the program, with the status that was configured, as by _exit(2).
pub fn end(frozen: Frozen, equipped: &Equipped) -> Result<()> {
    let control = &equipped.region.control;
    frozen.end(control.thunk, u64::from(control.config.exit_status))
}
