// SPDX-License-Identifier: LGPL-2.1-only
//! Finding the path by which an open file can be opened again.

use super::Look;
use crate::proc::fds::Fd;
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How many entries of a directory are looked at for a file's new name, while the program stands still.
const LOOKED_AT: usize = 20_000;

/// A path that leads to the very file behind a descriptor, by device and inode number.
///
/// What /proc/PID/fd says is a path of the target's mount namespace, and "(deleted)" says only that the
/// one name by which it was opened is gone: the file may have others (link(2), rename(2) on another
/// client, O_TMPFILE with linkat(2)). These are looked for in the directory of the old name and in the
/// working directory.
pub(crate) fn locate(fd: &Fd, look: &Look<'_>) -> Option<PathBuf> {
    let told = Path::new(&fd.target);
    if !told.is_absolute() || is_silly(told) {
        return None;
    }
    let inside = PathBuf::from(look.process.path("root"));
    let within = told.strip_prefix("/").map(|rest| inside.join(rest)).ok();
    let places = std::iter::once(told.to_path_buf()).chain(within);
    if places.into_iter().any(|place| is_file(&place, fd)) || is_of_machine(told, fd, look) {
        return Some(told.to_path_buf());
    }
    if fd.nlink == 0 {
        return None;
    }
    let cwd = look.process.cwd().ok().map(|cwd| cwd.path);
    let directories = told.parent().map(Path::to_path_buf).into_iter().chain(cwd);
    directories.into_iter().find_map(|directory| search(&directory, fd))
}

/// Whether this is a file of /proc about the machine, as another /proc shows it: a restarted tree has one of its own.
fn is_of_machine(told: &Path, fd: &Fd, look: &Look<'_>) -> bool {
    let is_proc =
        |path: &Path| statfs(path).is_ok_and(|fs| fs.filesystem_type() == PROC_SUPER_MAGIC);
    told.starts_with("/proc")
        && fs::symlink_metadata(told).is_ok_and(|found| found.mode() == fd.mode)
        && is_proc(told)
        && is_proc(Path::new(look.process.fd(fd.number).as_str()))
}

/// Whether NFS gave the file this name because it was removed while open: it goes when the last descriptor
/// does.
fn is_silly(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.as_bytes()).unwrap_or_default();
    name.strip_prefix(b".nfs")
        .is_some_and(|rest| rest.len() >= 16 && rest.iter().all(u8::is_ascii_hexdigit))
}

fn search(directory: &Path, fd: &Fd) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?.take(LOOKED_AT);
    let named = entries.filter_map(|e| e.ok().filter(|e| e.ino() == fd.inode));
    named.map(|e| e.path()).find(|path| is_file(path, fd))
}

fn is_file(path: &Path, fd: &Fd) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| is_same(&found, fd))
}

/// Device nodes are the same by the device that they name.
fn is_same(found: &Metadata, fd: &Fd) -> bool {
    let device = found.rdev() != 0 && found.rdev() == fd.rdev && found.mode() == fd.mode;
    device || (found.dev(), found.ino()) == (fd.device, fd.inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_removed_files_of_nfs() {
        assert!(is_silly(Path::new("/home/a/.nfs000000000b2c70f200000045")));
        assert!(!is_silly(Path::new("/home/a/.nfsrc")));
        assert!(!is_silly(Path::new("/home/a/data")));
    }
}
