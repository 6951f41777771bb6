// SPDX-License-Identifier: LGPL-2.1-only
//! A look at all that is stored: everything that recipes mean is there, and is what it was.

use std::path::Path;

use super::channel::reason;
use super::packs::Place;
use super::recipe::{self, Extent};
use super::sending::Stored;
use super::store::{Limits, Store};
use crate::error::{Because, Result};
use crate::image::read::Image;
use crate::progress::{self, Screen};

/// What was found.
#[derive(Default)]
pub(crate) struct Report {
    /// Names of damaged checkpoints, and what is wrong.
    pub damaged: Vec<(String, String)>,
    /// All checkpoints.
    pub checkpoints: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Bytes that they take up.
    pub used: u64,
}

/// Looks at a directory, in which no server works; all is counted anew.
///
/// # Errors
/// It cannot be used.
pub(crate) fn run(directory: &Path, limits: Limits) -> Result<Report> {
    let store = Store::opened(directory, limits, true)?;
    let _shown = progress::begin(directory.display().to_string(), Some(store.used()), Screen::Own);
    let bad = store.packs.as_ref().map_or_else(Vec::new, |p| p.damaged(&mut progress::add));
    let mut report = Report { used: store.used(), ..Report::default() };
    let listed = store.list("", &mut |entry| {
        report.checkpoints += 1;
        report.bytes += entry.len;
        if let Err(why) = look(&store, &entry.name, directory, &bad) {
            report.damaged.push((entry.name, why));
        }
        Ok(())
    });
    listed.map_err(std::io::Error::other).because(|| directory.display().to_string())?;
    store.close();
    Ok(report)
}

fn look(
    store: &Store,
    name: &str,
    directory: &Path,
    bad: &[Place],
) -> std::result::Result<(), String> {
    let stored = store.read(name)?;
    match &stored {
        Stored::Whole(file, ..) => {
            let copy = file.try_clone().map_err(|e| reason(&e))?;
            let image = Image::from_file(copy, &directory.join(name));
            // The key of an encrypted one is its client's.
            let whole = image.and_then(|image| match image.locked() {
                Some(_) => image.verify_sums(),
                None => image.verify(),
            });
            whole.map_err(|e| e.to_string())
        }
        Stored::Parts(parts) => {
            let mut missing = false;
            let mut look = |batch: &[Extent]| {
                missing |= !parts.packs.holds(batch, bad);
                Ok(())
            };
            recipe::each(&parts.file, &parts.tail, &mut look).map_err(|e| reason(&e))?;
            match missing {
                true => Err("a part of its content is lost or damaged".into()),
                false => Ok(()),
            }
        }
    }
}
