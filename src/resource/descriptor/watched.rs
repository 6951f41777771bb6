// SPDX-License-Identifier: LGPL-2.1-only
//! What inotify(7) and fanotify(7) watch, watched again by the path that [`super::sought`] has found.

use super::Opening;
use super::open::place;
use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Device and inode number of what a path leads to, that a restart knows it again; zeros: unknown.
pub(super) fn identity(path: &Path) -> [u64; 2] {
    fs::metadata(path).map_or([0; 2], |data| [data.dev(), data.ino()])
}

/// Numbers of a record.
pub(super) fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut chunks = bytes.as_chunks::<4>().0.iter();
    std::array::from_fn(|_| chunks.next().map_or(0, |word| u32::from_le_bytes(*word)))
}

/// An [`identity`] of a record.
pub(super) fn told(bytes: &[u8]) -> [u64; 2] {
    let [a, b, c, d] = words(bytes).map(u64::from);
    [a | b << 32, c | d << 32]
}

/// What is to be said of a watch of a descriptor.
pub(super) fn doubt(path: &Path, (of, fd): (&str, u32), set: Result<bool>) -> Option<String> {
    let path = path.display();
    match set {
        Ok(true) => None,
        Ok(false) => Some(format!("{path} is another file than {of} descriptor {fd} has watched")),
        Err(e) => Some(format!("{path} is not watched any more by {of} descriptor {fd}: {e}")),
    }
}

/// Has what a path leads to watched as the process may, whose user may have put anything there; what it may not is
/// watched by our leave if it is the very file. Whether it is the one that was watched before, as far as that is known.
///
/// # Errors
/// There is nothing, it is somebody else's, or `watch` fails.
pub(super) fn watch_again(
    opening: &Opening<'_>,
    path: &Path,
    was: [u64; 2],
    watch: impl Fn(&CStr) -> nix::Result<()>,
) -> Result<bool> {
    let open = || {
        let file = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let stat = nix::sys::stat::fstat(&file)?;
        nix::Result::Ok((file, [stat.st_dev, stat.st_ino]))
    };
    let set = |file: &OwnedFd| {
        let name = CString::new(place(file).into_os_string().into_vec());
        watch(&name.map_err(|_| Errno::EINVAL)?)
    };
    // The device may have another number after a boot.
    let same = |is: [u64; 2]| was[1] == 0 || is[1] == was[1];
    let done = opening.acting(|| open().and_then(|(file, is)| set(&file).map(|()| same(is))))?;
    let done = match done {
        Err(Errno::EACCES | Errno::EPERM) => match open() {
            Ok((file, is)) if is == was => set(&file).map(|()| true),
            _ => done,
        },
        _ => done,
    };
    done.map_err(|errno| Error::new(errno.desc()))
}
