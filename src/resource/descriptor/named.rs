// SPDX-License-Identifier: LGPL-2.1-only
//! Files with a name that are memory of the program's processes ([`crate::resource::memory::carried`]).
//!
//! Each is made anew, without a name until nothing can fail any more (open(2), O_TMPFILE): whoever has mapped the one that
//! bears the name keeps that, and a restart that fails leaves everything as it is.

use super::{Sources, deleted};
use crate::error::{Because, Error, Result};
use crate::resource::memory::carried;
use ckpt_abi::image::{Object, object_flag};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, geteuid, linkat, unlinkat};
use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long who uses a file may take to die.
const DYING: Duration = Duration::from_secs(1);

/// A name that a file will have.
pub(super) struct Name {
    /// The file's number in this process.
    number: i32,
    /// Its directory: links lead to files of the same mount only, and a process in another mount namespace gives it.
    directory: OwnedFd,
    path: PathBuf,
}

/// Makes one, with the name that it is to get; opens the one that is there, where it is not the program's alone.
///
/// # Errors
/// Somebody uses the one that is there, or there is no room.
pub(super) fn make(
    index: u32,
    record: &Object,
    sources: &dyn Sources,
) -> Result<(OwnedFd, Option<Name>)> {
    let path = sources.place(record.name);
    let there = fs::symlink_metadata(&path).ok();
    if there.is_some() && record.flags & object_flag::OUTSIDE != 0 {
        return Ok((open(&path, record.user)?, None));
    }
    let id = there.map(|meta| (meta.dev(), meta.ino()));
    if let Some(who) = id.filter(|_| !sources.is_rehearsal()).and_then(user) {
        let text = format!("{who} uses {}, which the program has to have again", path.display());
        return Err(Error::new(text).hint("end that first"));
    }
    let why = || format!("cannot make {} anew", path.display());
    let directory = directory(&path).because(why)?;
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let file = match openat(&directory, c".", flags, Mode::from_bits_truncate(0o600)) {
        // A file system that knows no files without a name.
        Err(Errno::EOPNOTSUPP) if id.is_some() => return Ok((open(&path, record.user)?, None)),
        new => File::from(new.because(why)?),
    };
    sources.fill(index, &file).because(why)?;
    let file = deleted::plain(file.into())?;
    let name = Name { number: file.as_raw_fd(), directory, path };
    Ok((file, Some(name)))
}

/// Opens the one that is there: anybody may have made a file of that name in /dev/shm since.
fn open(path: &Path, user: u32) -> Result<OwnedFd> {
    let why = || format!("cannot open {}", path.display());
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = File::from(nix::fcntl::open(path, flags, Mode::empty()).because(why)?);
    let found = file.metadata().because(why)?;
    if !found.is_file() || ![user, geteuid().as_raw()].contains(&found.uid()) {
        let text = format!("{}, which the program used, is another user's file", path.display());
        return Err(Error::new(text).hint("remove it, or start first who shares it"));
    }
    Ok(file.into())
}

/// Who uses a file, and goes on to: a job that was killed is not gone at once.
fn user(id: (u64, u64)) -> Option<String> {
    let deadline = Instant::now() + DYING;
    loop {
        let user = carried::user(id);
        if user.is_none() || Instant::now() > deadline {
            return user;
        }
        std::thread::sleep(DYING / 50);
    }
}

/// The directory of a file, which is made if it is not there.
fn directory(path: &Path) -> Result<OwnedFd> {
    let directory = path.parent().unwrap_or(path);
    let open = || {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(directory, flags, Mode::empty())
    };
    match open() {
        Err(Errno::ENOENT) => {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700).create(directory).because(|| "mkdir")?;
            open().because(|| "open")
        }
        opened => opened.because(|| "open"),
    }
}

impl Name {
    /// Gives it, in the place of whatever has it.
    ///
    /// # Errors
    /// The directory may not be written to.
    pub(super) fn give(&self) -> Result<()> {
        let why = || format!("cannot make {} anew", self.path.display());
        let place = format!("/proc/self/fd/{}", self.number);
        let name = self.path.file_name().unwrap_or_default();
        let follow = AtFlags::AT_SYMLINK_FOLLOW;
        let link = || linkat(AT_FDCWD, place.as_str(), &self.directory, name, follow);
        match link() {
            Err(Errno::EEXIST) => {
                unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir).because(why)?;
                link().because(why)
            }
            linked => linked.because(why),
        }
    }
}
