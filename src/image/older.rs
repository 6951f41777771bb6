// SPDX-License-Identifier: LGPL-2.1-only
//! A checkpoint that has lost its name to a newer one, and what the next one of that name may do with it.

use super::base::Base;
use super::file::is_at;
use crate::proc::exchange;
use crate::rights::file_user;
use nix::fcntl::OFlag;
use std::fs::{self, File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a file is recognised by as long as somebody has it open: device and inode.
pub(crate) type Id = [u64; 2];

/// What is known of earlier checkpoints of the same name, for the next one.
pub(crate) struct Renewal {
    /// The older, to be brought up to date.
    pub over: Option<Over>,
    /// The newer, which has the name: it is the older then, and stays.
    pub last: Option<Id>,
}

/// A file that is written over.
pub(crate) struct Over {
    /// The file, for writing.
    pub file: File,
    /// Its hidden name.
    pub path: PathBuf,
    /// What is in it.
    pub base: Base,
}

/// A checkpoint that has lost its name to a newer one and is kept under a hidden one, locked.
pub struct Older {
    file: File,
    path: PathBuf,
}

impl Older {
    /// The file of that hidden name, if it is the one that is meant, nobody else has it open, and it has no other name.
    pub(crate) fn hold(path: PathBuf, id: Id) -> Option<Self> {
        let file =
            File::options().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(&path).ok()?;
        let older = Self { file, path };
        let is_ours = older.id() == Some(id) && older.file.try_lock_shared().is_ok();
        (is_ours && is_at(&older.file, &older.path)).then_some(older)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn id(&self) -> Option<Id> {
        self.file.metadata().ok().map(|meta| id(&meta))
    }

    /// Opens it for writing, if nobody but us has it: neither by another name, nor open, nor executed.
    pub(crate) fn for_writing(&self) -> Option<File> {
        let meta = self.file.metadata().ok()?;
        let ours = meta.nlink() == 1 && meta.uid() == file_user() && is_at(&self.file, &self.path);
        if !ours || !exchange::is_alone(&self.file) {
            return None;
        }
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let file = File::options().read(true).write(true).open(own).ok()?;
        file.try_lock_shared().is_ok().then_some(file)
    }

    /// Removes it.
    pub(crate) fn remove(self) {
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

pub(super) fn id(meta: &Metadata) -> Id {
    [meta.dev(), meta.ino()]
}
