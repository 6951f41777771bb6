// SPDX-License-Identifier: LGPL-2.1-only
//! The server's own folder in a directory, and with its lock the directory.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use crate::error::{Because, Error, Result};
use crate::settings::server::OWN_FOLDER;

/// A directory in which nobody else serves meanwhile.
pub(crate) struct Claim {
    /// The directory.
    pub root: OwnedFd,
    /// The folder, which is locked.
    pub own: Flock<File>,
}

impl Claim {
    /// Takes a directory.
    ///
    /// # Errors
    /// It cannot be used, or another server uses it.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let why = || format!("cannot store checkpoints in {}", path.display());
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let root = nix::fcntl::open(path, flags, Mode::empty()).because(why)?;
        folder(&root, OWN_FOLDER).because(why)?;
        // In a directory for everybody somebody else could have made the folder.
        let flags = flags | OFlag::O_NOFOLLOW;
        let own = nix::fcntl::openat(&root, OWN_FOLDER, flags, Mode::empty()).because(why)?;
        let stat = nix::sys::stat::fstat(&own).because(why)?;
        if stat.st_uid != nix::unistd::geteuid().as_raw() {
            let folder = path.join(OWN_FOLDER);
            return Err(Error::new(format!("{} belongs to somebody else", folder.display())));
        }
        let own = Flock::lock(own.into(), FlockArg::LockExclusiveNonblock).ok();
        // One that has just ended has removed it.
        let named = fstatat(&root, OWN_FOLDER, AtFlags::AT_SYMLINK_NOFOLLOW);
        let is_same = named.is_ok_and(|named| named.st_ino == stat.st_ino);
        let own = own.filter(|_| is_same).ok_or_else(|| {
            Error::new(format!("another checkpoint server works in {}", path.display()))
                .hint("choose another directory with -d")
        })?;
        Ok(Self { root, own })
    }

    /// Removes the folder if nothing is in it.
    pub(crate) fn leave(&self) {
        let _ = unlinkat(&self.root, OWN_FOLDER, UnlinkatFlags::RemoveDir);
    }
}

/// Makes a folder that is not there, on the disk, too: what comes into it can only be found there then.
pub(super) fn folder(parent: impl AsFd + Copy, name: &str) -> nix::Result<()> {
    match mkdirat(parent, name, Mode::S_IRWXU) {
        Err(Errno::EEXIST) => Ok(()),
        made => made.and_then(|()| sync(parent)).inspect_err(|_| {
            // Whoever finds it need not wonder.
            let _ = unlinkat(parent, name, UnlinkatFlags::RemoveDir);
        }),
    }
}

/// Brings the names in a folder to the disk; EINVAL of fsync(2): the file system, one on a network, knows of no such thing.
pub(super) fn sync(folder: impl AsFd) -> nix::Result<()> {
    match fsync(folder) {
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => Ok(()),
        synced => synced,
    }
}
