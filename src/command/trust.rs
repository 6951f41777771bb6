// SPDX-License-Identifier: LGPL-2.1-only
//! Whether a checkpoint may be executed that nobody has chosen with his own eyes: it can do whatever the
//! one can do who executes it.

use crate::error::{Because, Error, Result};
use crate::image::file::{directory, is_safe};
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Why not.
pub(super) enum Distrust {
    /// It is somebody else's.
    Foreign(Error),
    /// Others may write to it, or put another in its place.
    Open(Error),
}

/// For sentences.
pub(super) const WAY_OUT: &str = "if it is to be trusted, say --trust";

impl Distrust {
    /// The reason.
    pub(super) fn sentence(self) -> Error {
        let (Self::Foreign(why) | Self::Open(why)) = self;
        why
    }
}

/// Looks at a checkpoint, opened unless that failed, and the directories of its name.
///
/// # Errors
/// It or a directory cannot be looked at.
pub(super) fn judge(file: Option<&File>, path: &Path) -> Result<Option<Distrust>> {
    let shown = path.display();
    let meta = match file.map_or_else(|| std::fs::metadata(path), File::metadata) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        meta => meta.because(|| format!("cannot stat {shown}"))?,
    };
    let why = |what: String| Error::new(format!("{shown} {what}"));
    if !own(&meta) {
        let what = format!("belongs to another user ({}), who can make it do anything", meta.uid());
        return Ok(Some(Distrust::Foreign(why(what))));
    }
    if !is_private(&meta) {
        let what = format!("can be written by others (mode {:04o})", meta.mode() & 0o7777);
        return Ok(Some(Distrust::Open(why(what))));
    }
    let link = |file: &File| std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let real = file.and_then(|file| link(file).ok());
    for name in [Some(path.to_owned()), real].into_iter().flatten() {
        let dir = directory(&name);
        let meta = std::fs::metadata(dir).because(|| format!("cannot stat {}", dir.display()))?;
        if !own(&meta) || !is_safe(&meta) {
            let what = format!("can be replaced by others, who may write to {}", dir.display());
            return Ok(Some(Distrust::Open(why(what))));
        }
    }
    Ok(None)
}

/// Root's are everybody's.
fn own(meta: &Metadata) -> bool {
    meta.uid() == nix::unistd::geteuid().as_raw() || meta.uid() == 0
}

/// A group that has its user's number is his alone.
fn is_private(meta: &Metadata) -> bool {
    let others = if meta.gid() == meta.uid() { 0o002 } else { 0o022 };
    meta.mode() & others == 0
}
