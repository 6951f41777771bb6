// SPDX-License-Identifier: LGPL-2.1-only
//! A name in a directory that others may write to, too: the directory is opened once, so whoever replaces it, or the name
//! by a symbolic link, leads root to no other file.

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat, mknodat};
use nix::unistd::{UnlinkatFlags, geteuid, symlinkat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::Path;

/// A directory, and a name there.
pub(super) struct Spot {
    directory: OwnedFd,
    name: OsString,
}

const PLACE: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

impl Spot {
    pub(super) fn of(path: &Path) -> nix::Result<Self> {
        let name = path.file_name().ok_or(nix::errno::Errno::EINVAL)?.to_owned();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let directory = nix::fcntl::open(parent, PLACE | OFlag::O_DIRECTORY, Mode::empty())?;
        Ok(Self { directory, name })
    }

    /// Whether nobody but us (and root) can change what the name leads to.
    pub(super) fn is_ours_alone(&self) -> bool {
        fstat(&self.directory)
            .is_ok_and(|found| found.st_uid == geteuid().as_raw() && found.st_mode & 0o022 == 0)
    }

    pub(super) fn look(&self) -> nix::Result<FileStat> {
        fstatat(&self.directory, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    pub(super) fn make_directory(&self) -> nix::Result<()> {
        mkdirat(&self.directory, self.name.as_os_str(), Mode::S_IRWXU)
    }

    /// A device, a FIFO, a socket, or a symbolic link that leads to `leads`.
    pub(super) fn make_node(
        &self,
        file_type: libc::mode_t,
        device: u64,
        leads: &OsStr,
    ) -> nix::Result<()> {
        let name = self.name.as_os_str();
        match file_type {
            libc::S_IFLNK => symlinkat(leads, &self.directory, name),
            _ => {
                let file_type = SFlag::from_bits_truncate(file_type);
                mknodat(&self.directory, name, file_type, Mode::S_IRUSR | Mode::S_IWUSR, device)
            }
        }
    }

    /// What has the name (O_PATH), if it is of this type, ours, and has no other name: what we have just made.
    ///
    /// # Errors
    /// ESTALE: it is another.
    pub(super) fn ours(&self, file_type: libc::mode_t) -> nix::Result<OwnedFd> {
        let flags = PLACE | OFlag::O_NOFOLLOW;
        let file = openat(&self.directory, self.name.as_os_str(), flags, Mode::empty())?;
        let found = fstat(&file)?;
        let directory = file_type == libc::S_IFDIR;
        let ours = found.st_mode & libc::S_IFMT == file_type
            && found.st_uid == geteuid().as_raw()
            && (directory || found.st_nlink <= 1);
        if ours { Ok(file) } else { Err(nix::errno::Errno::ESTALE) }
    }

    pub(super) fn remove(&self, how: UnlinkatFlags) -> nix::Result<()> {
        unlinkat(&self.directory, self.name.as_os_str(), how)
    }
}
