// SPDX-License-Identifier: LGPL-2.1-only
//! A checkpoint file in the local file system.
//!
//! It has no name until it is whole and on the disk (O_TMPFILE, then linkat and rename), so that a
//! dump that dies leaves nothing. Where the file system has no such files, it gets a temporary
//! name, which goes away on failure or is swept away by the next dump to the same directory. A lock
//! (flock(2)) on it says that it is still being written: a process id would be another's in another PID
//! namespace. Where the file system has no locks nothing is swept.

use super::base::Base;
use super::older::{Id, Older, Renewal, id};
use super::sink::Sink;
use super::{elf, hash};
use crate::error::{Because, Error, Result};
use crate::fault::{Point, reach};
use crate::image::read::Image;
use crate::proc::{exchange, room};
use crate::rights::file_user;
use crate::settings::{Template, Values, quoted};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::Mode;
use std::fs::{self, File, Metadata, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Mode of a checkpoint: the memory of a program is nobody else's business.
const MODE: Mode = Mode::S_IRWXU;
/// As many symbolic links as the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// A file that several write to, each its parts.
pub struct Abreast {
    file: File,
    name: PathBuf,
}

impl Abreast {
    /// As [`Sink::write_at`], from anywhere.
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        put(&self.file, &self.name, offset, bytes)
    }
}

fn put(file: &File, name: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    file.write_all_at(bytes, offset)
        .because(|| cannot(name))
        .map_err(|e| e.hint("free some room, raise the limit, or choose another name with -n"))
}

/// A file in the making.
pub(crate) struct FileSink {
    file: File,
    name: PathBuf,
    /// The temporary name that it has.
    temporary: Option<PathBuf>,
    /// What others have left in its directory is removed at the end, by whoever ends it: at the beginning the program stands
    /// still, and there may be thousands of entries.
    has_swept: bool,
    /// Which file is to stay under a hidden name if it has the name; then, as what it stays.
    keeps: Option<Id>,
    kept: Option<Older>,
    base: Option<Base>,
}

impl FileSink {
    /// As [`Self::create`]; and an older one is brought up to date, the newer kept in its place.
    pub(crate) fn renew(name: &Path, renewal: Renewal) -> Result<Self> {
        let name = free(name)?;
        let mut sink = match renewal.over {
            Some(over) if directory(&over.path) == directory(&name) => {
                room::keep_files_small();
                let mut sink = Self::of(over.file, name, Some(over.path));
                sink.base = Some(over.base);
                sink
            }
            _ => Self::begin(name)?,
        };
        sink.keeps = renewal.last;
        Ok(sink)
    }

    /// Prepares a file that will be called `name` (absolute).
    ///
    /// # Errors
    /// It cannot be written there, or something that is no checkpoint has the name.
    pub(crate) fn create(name: &Path) -> Result<Self> {
        Self::begin(free(name)?)
    }

    fn of(file: File, name: PathBuf, temporary: Option<PathBuf>) -> Self {
        let (keeps, kept, base) = (None, None, None);
        Self { file, name, temporary, has_swept: false, keeps, kept, base }
    }

    fn begin(name: PathBuf) -> Result<Self> {
        let dir = directory(&name);
        room::keep_files_small();
        match may_link(dir).and_then(|()| nameless(dir)) {
            Ok(file) => Ok(Self::of(file, name, None)),
            // What the kernels and file systems say that do not know O_TMPFILE (open(2)).
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {
                let (file, temporary) = named(dir).because(|| cannot(&name))?;
                Ok(Self::of(file, name, Some(temporary)))
            }
            Err(e) => Err(e).because(|| cannot(&name)),
        }
    }

    fn publish(&mut self) -> Result<()> {
        let why = || cannot(&self.name);
        // The umask does not count for a checkpoint.
        nix::sys::stat::fchmod(&self.file, MODE).because(why)?;
        self.file.sync_all().because(why)?;
        // Nobody may execute what somebody has open for writing (ETXTBSY), so that ends before it has
        // its name. The lock passes on without a gap: both share it.
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let reopened = File::open(own).because(why)?;
        let _ = reopened.try_lock_shared();
        self.file = reopened;
        if self.temporary.is_none() {
            match link(&self.file, &self.name) {
                Ok(()) => {
                    sync_directory(&self.name);
                    return Ok(());
                }
                Err(Errno::EEXIST) => {}
                Err(e) => return Err(e).because(why),
            }
            let temporary = self.link_temporarily().because(why)?;
            self.temporary = Some(temporary);
        }
        reach(Point::Linked);
        // Somebody may have put something else there since the start.
        let there = look(&self.name)?.map(|meta| id(&meta));
        if let Some(temporary) = &self.temporary {
            let keeps = self.keeps.filter(|last| there == Some(*last));
            if keeps.is_some() && exchange::exchange(temporary, &self.name).is_ok() {
                self.kept = keeps.and_then(|last| Older::hold(temporary.clone(), last));
                reach(Point::Exchanged);
                if self.kept.is_none() {
                    // What came there meanwhile is replaced as ever.
                    let _ = fs::remove_file(temporary);
                }
            } else {
                fs::rename(temporary, &self.name).because(why)?;
            }
            self.temporary = None;
        }
        sync_directory(&self.name);
        Ok(())
    }

    fn link_temporarily(&self) -> nix::Result<PathBuf> {
        loop {
            let temporary = temporary(directory(&self.name));
            match link(&self.file, &temporary) {
                Err(Errno::EEXIST) => {}
                linked => return linked.map(|()| temporary),
            }
        }
    }
}

impl Sink for FileSink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        put(&self.file, &self.name, offset, bytes)
    }

    fn abreast(&self) -> Option<Abreast> {
        Some(Abreast { file: self.file.try_clone().ok()?, name: self.name.clone() })
    }

    fn settle(&mut self) {
        // Sealing says what fails.
        let _ = self.file.sync_data();
    }

    fn base(&mut self) -> Option<Base> {
        self.base.take()
    }

    fn kept(&mut self) -> Result<Option<(Option<Older>, Id)>> {
        let meta = self.file.metadata().ok();
        Ok(meta.map(|meta| (self.kept.take(), id(&meta))))
    }

    fn seal(&mut self, len: u64) -> Result<()> {
        self.file.set_len(len).because(|| cannot(&self.name))?;
        self.publish()?;
        self.has_swept = true;
        sweep(&self.name);
        Ok(())
    }
}

impl Drop for FileSink {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
        if !self.has_swept {
            sweep(&self.name);
        }
    }
}

/// Says why a checkpoint of this name could not be written, without leaving anything.
///
/// # Errors
/// As [`FileSink::create`].
pub(crate) fn check(name: &Path) -> Result<()> {
    FileSink::begin(free(name)?).map(drop)
}

/// Deletes older checkpoints of a counted name, now that a newer one is whole: all but the last
/// `keep` of this user's, counting damaged ones as any other. What is no checkpoint, or somebody else's,
/// neither counts nor goes.
pub(crate) fn prune(template: &Template, values: &Values, keep: u32) {
    let us = file_user();
    let ours = |path: &PathBuf| {
        let mine = |file: &File| file.metadata().is_ok_and(|m| m.uid() == us && m.is_file());
        super::read::open(path).is_ok_and(|file| mine(&file) && is_checkpoint(&file))
    };
    let existing = template.existing(values).unwrap_or_default().into_iter().map(|(_, path)| path);
    for path in existing.filter(ours).skip(keep as usize) {
        let _ = fs::remove_file(path);
    }
}

/// What the name of a checkpoint ends with whose program has come to its end.
pub(crate) const FINISHED: &str = ".finished";

/// The name that a checkpoint gets when its program has come to its end.
pub(crate) fn finished_name(name: &Path) -> PathBuf {
    let mut name = name.as_os_str().to_owned();
    name.push(FINISHED);
    name.into()
}

/// Gives the checkpoint that `file` is that name, in the place of an earlier one; the name. Where that may not
/// be, it is marked ([`mark_finished`]).
///
/// # Errors
/// It is not under its name any more, or something that is no checkpoint has the new one.
pub(crate) fn set_aside(name: &Path, file: &File) -> Result<PathBuf> {
    let moved = (|| {
        let name = free(name)?;
        let to = finished_name(&name);
        look(&to)?;
        if !is_at(file, &name) {
            return Err(Error::new(format!("{} is another by now", name.display())));
        }
        fs::rename(&name, &to).because(|| format!("cannot rename {}", name.display()))?;
        sync_directory(&to);
        Ok(to)
    })();
    if moved.is_err() {
        let _ = mark_finished(file);
    }
    moved
}

/// Marks a checkpoint as one whose program has come to its end: by the sticky bit of its mode, which means
/// nothing else of a file (inode(7)).
///
/// # Errors
/// It is somebody else's, or its file system has no such bit.
pub(crate) fn mark_finished(file: &File) -> Result<()> {
    nix::sys::stat::fchmod(file, MODE | Mode::S_ISVTX).because(|| "cannot mark a checkpoint")
}

/// Whether it is so marked.
pub(crate) fn is_finished(file: &File) -> bool {
    file.metadata().is_ok_and(|meta| meta.mode() & Mode::S_ISVTX.bits() != 0)
}

/// Whether a file is a checkpoint, be it damaged or cut off.
pub(crate) fn is_checkpoint(file: &File) -> bool {
    elf::is_marked(file) || !matches!(Image::find(file), Ok(None))
}

/// The name behind symbolic links, which is new or a checkpoint's.
fn free(name: &Path) -> Result<PathBuf> {
    let mut name = name.to_path_buf();
    for _ in 0..MOST_LINKS {
        let Some(meta) = look(&name)? else { return Ok(name) };
        if !meta.is_symlink() {
            return Ok(name);
        }
        if !is_trusted(&name, &meta) {
            let sentence = format!(
                "{} is a symbolic link that somebody else may have put there",
                cannot(&name)
            );
            return Err(Error::new(sentence).hint("choose another name with -n"));
        }
        let to = fs::read_link(&name).because(|| cannot(&name))?;
        name = directory(&name).join(to);
    }
    Err(Errno::ELOOP).because(|| cannot(&name))
}

/// What has a name: nothing, a checkpoint, or a symbolic link.
///
/// # Errors
/// Anything else, which no checkpoint takes the place of.
fn look(name: &Path) -> Result<Option<Metadata>> {
    let meta = match fs::symlink_metadata(name) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        meta => meta.because(|| cannot(name))?,
    };
    let kind = meta.file_type();
    let what = match () {
        () if kind.is_symlink() => return Ok(Some(meta)),
        () if kind.is_dir() => "it is a directory",
        () if kind.is_fifo() => "it is a FIFO",
        () if kind.is_socket() => "it is a socket",
        () if !kind.is_file() => "it is a device",
        () => match super::read::open(name) {
            Ok(file) if is_checkpoint(&file) => return Ok(Some(meta)),
            Ok(_) => "a file that is no checkpoint has this name",
            Err(_) => "a file that cannot be read has this name",
        },
    };
    let sentence = format!("{}: {what}", cannot(name));
    Err(Error::new(sentence).hint("choose another name with -n, or move it away"))
}

/// Whether nobody but this user and root can have put a symbolic link there.
fn is_trusted(link: &Path, meta: &Metadata) -> bool {
    let us = file_user();
    let own = |meta: &Metadata| meta.uid() == us || meta.uid() == 0;
    own(meta) && fs::metadata(directory(link)).is_ok_and(|dir| own(&dir) && is_safe(&dir))
}

/// Whether others cannot rename what others than they have in a directory.
pub(crate) fn is_safe(dir: &Metadata) -> bool {
    const STICKY: u32 = 0o1000;
    let others = if dir.gid() == dir.uid() { 0o002 } else { 0o022 };
    dir.mode() & others == 0 || dir.mode() & STICKY != 0
}

fn cannot(name: &Path) -> String {
    format!("cannot save to {}", quoted(name.as_os_str()))
}

/// The directory of a file's name.
pub(crate) fn directory(name: &Path) -> &Path {
    match name.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    }
}

fn sync_directory(name: &Path) {
    // A directory that cannot be opened or synced (some network file systems) is no failure: the
    // file itself is on the disk.
    if let Ok(dir) = File::open(directory(name)) {
        let _ = dir.sync_all();
    }
}

/// Whether what has no name there can be given one.
///
/// # Errors
/// EOPNOTSUPP: a filter refuses linkat(2) (seccomp(2)), or AppArmor, which takes such a file for a removed one unless its
/// profile has the flag mediate_deleted (security/apparmor/path.c).
fn may_link(dir: &Path) -> nix::Result<()> {
    match nix::unistd::linkat(AT_FDCWD, "", AT_FDCWD, "", AtFlags::empty()) {
        Err(Errno::EPERM | Errno::EACCES | Errno::ENOSYS) => return Err(Errno::EOPNOTSUPP),
        _ if !is_confined() => return Ok(()),
        _ => {}
    }
    let (probe, name) = (nameless(dir)?, temporary(dir));
    link(&probe, &name).map_err(|_| Errno::EOPNOTSUPP)?;
    let _ = fs::remove_file(name);
    Ok(())
}

/// Whether AppArmor has a profile for us (Linux 5.8).
fn is_confined() -> bool {
    let profile = fs::read("/proc/self/attr/apparmor/current").unwrap_or_default();
    !profile.is_empty() && !profile.starts_with(b"unconfined")
}

/// Makes a file without a name.
fn nameless(dir: &Path) -> nix::Result<File> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    nix::fcntl::open(dir, flags, MODE).map(File::from)
}

fn link(file: &File, to: &Path) -> nix::Result<()> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    nix::unistd::linkat(AT_FDCWD, own.as_str(), AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW)
}

/// Makes a file under a temporary name, locked.
fn named(dir: &Path) -> std::io::Result<(File, PathBuf)> {
    loop {
        let path = temporary(dir);
        let mut options = File::options();
        let options = options.read(true).write(true).create_new(true).mode(MODE.bits());
        let file = match options.open(&path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
            file => file?,
        };
        // Before the lock somebody may sweep it away.
        let swept = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
        if !swept && is_at(&file, &path) {
            return Ok((file, path));
        }
    }
}

pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let there = fs::symlink_metadata(path).map(|meta| id(&meta)).ok();
    there.is_some() && file.metadata().map(|meta| id(&meta)).ok() == there
}

/// A name that nobody can foresee: others could take all that they foresee, in a directory for everybody.
fn temporary(dir: &Path) -> PathBuf {
    let random = std::hash::RandomState::new().build_hasher().finish();
    dir.join(format!("{}{random:016x}", prefix()))
}

/// Start of the temporary names of this host. Locks may be each host's own (nfs(5), local_lock).
fn prefix() -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    format!(".ckpt-{:08x}-", hash(host.as_encoded_bytes()) as u32)
}

/// Removes what this user's dumps to the directory of this name have left that died on this host.
pub(crate) fn sweep(name: &Path) {
    let (dir, prefix, us) = (directory(name), prefix(), file_user());
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let left = name.as_encoded_bytes().starts_with(prefix.as_bytes())
            && entry.metadata().is_ok_and(|meta| meta.is_file() && meta.uid() == us);
        let path = entry.path();
        let mut options = File::options();
        // An exclusive lock needs a descriptor for writing on NFS (flock(2)).
        let options = options.read(true).write(true).custom_flags(OFlag::O_NOFOLLOW.bits());
        if left
            && let Ok(file) = options.open(&path)
            && file.try_lock().is_ok()
            && is_at(&file, &path)
        {
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_go_and_work_in_progress_stays() {
        let dir = std::env::temp_dir().join(format!("ckpt-file-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let (writing, at_work) = named(&dir).unwrap();
        let (died, left) = named(&dir).unwrap();
        drop(died);
        fs::write(dir.join(".ckpt-else"), "").unwrap();
        sweep(&dir.join("job2.ckpt"));
        let there = [&at_work, &left, &dir.join(".ckpt-else")].map(|path| path.exists());
        drop(writing);
        sweep(&dir.join("job2.ckpt"));
        let later = at_work.exists();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!((there, later), ([true, false, true], false));
    }
}
