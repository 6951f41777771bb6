// SPDX-License-Identifier: LGPL-2.1-only
//! What the kernel says of a file that others may know, and how two files change their names at once.
//!
//! # Safety
//! The calls get numbers, and strings that live as long as they are looked at.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC,
    TMPFS_MAGIC, fstatfs,
};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Gives each of two files the name of the other (renameat2(2), RENAME_EXCHANGE).
///
/// # Errors
/// One of them is not there, or the file system cannot do it.
pub(crate) fn exchange(one: &Path, other: &Path) -> nix::Result<()> {
    let name = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL);
    let (one, other) = (name(one)?, name(other)?);
    let flags = libc::c_long::from(libc::RENAME_EXCHANGE);
    let at = libc::c_long::from(libc::AT_FDCWD);
    // SAFETY: both strings live during the call.
    let done =
        unsafe { libc::syscall(libc::SYS_renameat2, at, one.as_ptr(), at, other.as_ptr(), flags) };
    Errno::result(done).map(drop)
}

/// File systems that no other machine sees. For XFS and ZFS, the last two, nix has no names here.
const LOCAL: [FsType; 7] = [
    EXT4_SUPER_MAGIC,
    BTRFS_SUPER_MAGIC,
    F2FS_SUPER_MAGIC,
    TMPFS_MAGIC,
    OVERLAYFS_SUPER_MAGIC,
    FsType(0x5846_5342),
    FsType(0x2fc1_2fc1),
];

/// Whether nobody has a file open, mapped or executed but by this one descriptor, which is for reading: then it may
/// have a write lease (fcntl(2), F_SETLEASE), which is given back at once. Where there are no leases it is not known, nor
/// where other machines may have it open: many file systems of the network have leases of this machine alone.
pub(crate) fn is_alone(file: &File) -> bool {
    if !fstatfs(file).is_ok_and(|system| LOCAL.contains(&system.filesystem_type())) {
        return false;
    }
    let lease = |kind: libc::c_int| {
        // SAFETY: the call gets numbers.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) == 0 }
    };
    lease(libc::F_WRLCK) && lease(libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn who_has_a_file_open_is_seen() {
        let dir = std::env::temp_dir().join(format!("ckpt-exchange-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let [one, other] = ["one", "other"].map(|name| dir.join(name));
        fs::write(&one, "1").unwrap();
        fs::write(&other, "2").unwrap();
        exchange(&one, &other).unwrap();
        let seen = [&one, &other].map(|path| fs::read_to_string(path).unwrap());
        let file = File::open(&one).unwrap();
        let alone = is_alone(&file);
        let second = File::open(&one).unwrap();
        let not_alone = is_alone(&file);
        drop(second);
        let writer = File::options().write(true).open(&one).unwrap();
        let written = is_alone(&file);
        drop(writer);
        let again = is_alone(&file);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(seen, ["2", "1"]);
        assert_eq!((alone, not_alone, written, again), (true, false, false, true));
        assert!(exchange(&one, &other).is_err());
    }
}
