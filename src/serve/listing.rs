// SPDX-License-Identifier: LGPL-2.1-only
//! What a [`Store`] has.

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use super::protocol::Entry;
use super::recipe;
use super::store::{READ, Result, Store, is, refusal};
use crate::settings::server::check_stored;

/// Folders deeper than any name can be are not listed.
const DEPTH: usize = 512;

/// Who is given files by name, and what cannot be looked at.
type Walker<'a> = dyn FnMut(String, nix::Result<&FileStat>) -> Result<()> + 'a;

impl Store {
    /// Gives the images in a folder ("": all) to `each`, in no order.
    ///
    /// # Errors
    /// There is no such folder, or `each` failed.
    pub fn list(&self, folder: &str, each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        self.walk(folder, &mut |name, stat| {
            let Ok(stat) = stat else { return Ok(()) };
            let file = self.resolve(&name, READ).ok().map(File::from);
            let tail = file.and_then(|file| recipe::tail(&file).ok().flatten());
            let len = tail.map_or(stat.st_size.cast_unsigned(), |tail| tail.len);
            each(Entry { name, len, time: stat.st_mtime.cast_unsigned() })
        })
    }

    /// Gives the files in a folder ("": all) to `each`, by name.
    pub(super) fn walk(&self, folder: &str, each: &mut Walker<'_>) -> Result<()> {
        let folder = folder.strip_suffix('/').unwrap_or(folder);
        if !folder.is_empty() {
            check_stored(folder).map_err(|why| format!("the name {why}"))?;
        }
        let place = if folder.is_empty() { "." } else { folder };
        let fd = self.resolve(place, OFlag::O_DIRECTORY).map_err(refusal)?;
        self.walk_below(fd, folder, DEPTH, each)
    }

    fn walk_below(
        &self,
        fd: OwnedFd,
        folder: &str,
        depth: usize,
        each: &mut Walker<'_>,
    ) -> Result<()> {
        let mut folders = Vec::new();
        let mut dir = Dir::from_fd(fd).map_err(refusal)?;
        let at = dir.as_fd_owned().map_err(refusal)?;
        for entry in dir.iter() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) => {
                    each(folder.into(), Err(e))?;
                    continue;
                }
            };
            let Ok(part) = entry.file_name().to_str() else { continue };
            let slash = if folder.is_empty() { "" } else { "/" };
            let name = format!("{folder}{slash}{part}");
            // "." and "..", the server's own folder, and what nobody could ask for.
            if check_stored(&name).is_err() {
                continue;
            }
            match fstatat(&at, part, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) if is(&stat, SFlag::S_IFDIR) => folders.push((name, stat)),
                Ok(stat) if is(&stat, SFlag::S_IFREG) => each(name, Ok(&stat))?,
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(e) => each(name, Err(e))?,
            }
        }
        drop(dir);
        for (folder, stat) in folders.into_iter().filter(|_| depth > 0) {
            match self.resolve(&folder, OFlag::O_DIRECTORY) {
                Ok(fd) => self.walk_below(fd, &folder, depth - 1, each)?,
                Err(e) if self.is_nothing(e, &stat) => {}
                Err(e) => each(folder, Err(e))?,
            }
        }
        Ok(())
    }

    /// Whether what cannot be opened is gone, or has been put there by somebody else, so that nothing of ours is there. What
    /// is another one's in a directory that is not for everybody, or root's, is rather of a server that ran as they.
    pub(super) fn is_nothing(&self, error: Errno, stat: &FileStat) -> bool {
        let is_for_all = || {
            let root = fstat(&self.claim.root);
            root.is_ok_and(|root| root.st_mode & Mode::S_IWOTH.bits() != 0)
        };
        let owners = [0, nix::unistd::geteuid().as_raw()];
        error == Errno::ENOENT
            || error == Errno::EACCES && !owners.contains(&stat.st_uid) && is_for_all()
    }
}

/// A descriptor of an open directory beside its stream.
trait AsFdOwned {
    fn as_fd_owned(&self) -> nix::Result<OwnedFd>;
}

impl AsFdOwned for Dir {
    fn as_fd_owned(&self) -> nix::Result<OwnedFd> {
        use std::os::fd::AsFd;
        self.as_fd().try_clone_to_owned().map_err(|_| Errno::EMFILE)
    }
}
