// SPDX-License-Identifier: LGPL-2.1-only
//! The files of a server.
//!
//! Names are resolved by the kernel and never leave the directory (openat2(2), RESOLVE_BENEATH).
//! Uploads are written under a number in a folder of the server's own, [`OWN_FOLDER`], and get
//! their name by rename(2) once they are whole and on the disk. The folder's lock belongs to one
//! server, so what lies there when it starts is litter.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, OpenHow, ResolveFlag, openat2, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::protocol::Entry;
use crate::error::{Because, Error};
use crate::fault::{Point, reach};
use crate::image::{file::FINISHED, read::Image};
use crate::settings::server::{OWN_FOLDER, check_stored};
use ckpt_abi::image::header_flag;

/// Folders deeper than any name can be are not listed.
const DEPTH: usize = 512;

/// What a store takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one image.
    pub max_bytes: u64,
    /// Bytes of all files, those that are just being written included.
    pub quota: u64,
}

/// A directory with checkpoints.
pub struct Store {
    root: OwnedFd,
    own: OwnedFd,
    path: PathBuf,
    _lock: Flock<File>,
    limits: Limits,
    used: Mutex<u64>,
    names: Mutex<()>,
    count: AtomicU64,
}

/// Why the store does not do it: a sentence for the client.
pub type Result<T> = std::result::Result<T, String>;

/// An image that is being written. Dropped before [`Upload::commit`], it leaves nothing.
pub struct Upload<'a> {
    store: &'a Store,
    name: String,
    number: String,
    file: File,
    end: u64,
}

impl Store {
    /// Opens a directory and removes what a server that died has left in it.
    ///
    /// # Errors
    /// It cannot be used, or another server uses it.
    pub fn open(path: &Path, limits: Limits) -> crate::error::Result<Self> {
        let why = || format!("cannot store checkpoints in {}", path.display());
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let root = nix::fcntl::open(path, flags, Mode::empty()).because(why)?;
        match mkdirat(&root, OWN_FOLDER, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(e).because(why),
        }
        // In a directory for everybody somebody else could have made the folder.
        let flags = flags | OFlag::O_NOFOLLOW;
        let own = nix::fcntl::openat(&root, OWN_FOLDER, flags, Mode::empty()).because(why)?;
        let owner = nix::sys::stat::fstat(&own).because(why)?.st_uid;
        if owner != nix::unistd::geteuid().as_raw() {
            let folder = path.join(OWN_FOLDER);
            return Err(Error::new(format!("{} belongs to somebody else", folder.display())));
        }
        let lock = own.try_clone().map(File::from).because(why)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e);
        let lock = lock.map_err(|_| {
            Error::new(format!("another checkpoint server works in {}", path.display()))
                .hint("choose another directory with -d")
        })?;
        let store = Self {
            root,
            own,
            path: path.into(),
            _lock: lock,
            limits,
            used: Mutex::new(0),
            names: Mutex::new(()),
            count: AtomicU64::new(0),
        };
        store.sweep();
        if limits.quota != u64::MAX {
            *locked(&store.used) = store.sum()?;
        }
        Ok(store)
    }

    /// Removes the uploads that nobody finishes, and the server's folder if nobody works in it.
    pub fn close(&self) {
        self.sweep();
        let _ = unlinkat(&self.root, OWN_FOLDER, UnlinkatFlags::RemoveDir);
    }

    fn sweep(&self) {
        for entry in fs::read_dir(self.path.join(OWN_FOLDER)).into_iter().flatten().flatten() {
            let _ = unlinkat(&self.own, &*entry.file_name(), UnlinkatFlags::NoRemoveDir);
        }
    }

    fn sum(&self) -> crate::error::Result<u64> {
        let mut sum = 0;
        let added = self.list("", &mut |entry| {
            sum += entry.len;
            Ok(())
        });
        added.map(|()| sum).map_err(|e| Error::new(format!("{}: {e}", self.path.display())))
    }

    /// Begins an image.
    ///
    /// # Errors
    /// The name is none that can be stored, or the disk does not take it.
    pub fn begin(&self, name: &str) -> Result<Upload<'_>> {
        check_stored(name).map_err(|why| format!("the name {why}"))?;
        match self.resolve(name, OFlag::O_PATH) {
            Ok(fd) if nix::sys::stat::fstat(&fd).is_ok_and(|s| is(&s, SFlag::S_IFDIR)) => {
                return Err("it is a folder".into());
            }
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(refusal(e)),
        }
        let number = self.count.fetch_add(1, Ordering::Relaxed).to_string();
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::openat(&self.own, number.as_str(), flags, Mode::S_IRWXU);
        let file = fd.map_err(refusal)?.into();
        reach(Point::Uploading);
        Ok(Upload { store: self, name: name.into(), number, file, end: 0 })
    }

    /// Opens an image; the file and its length.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn read(&self, name: &str) -> Result<(File, u64)> {
        check_stored(name).map_err(|why| format!("the name {why}"))?;
        // A FIFO that somebody puts there must not make us wait.
        let fd = self.resolve(name, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY);
        let file = File::from(fd.map_err(refusal)?);
        match file.metadata() {
            Ok(meta) if meta.is_file() => Ok((file, meta.len())),
            Ok(_) => Err("it is not a file".into()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Removes an image, and the folders that are empty then.
    ///
    /// # Errors
    /// There is none of this name, or the system does not let us.
    pub fn remove(&self, name: &str) -> Result<()> {
        check_stored(name).map_err(|why| format!("the name {why}"))?;
        let _names = locked(&self.names);
        let (folder, last) = name.rsplit_once('/').unwrap_or((".", name));
        let parent = self.resolve(folder, OFlag::O_DIRECTORY).map_err(refusal)?;
        let stat = fstatat(&parent, last, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(refusal)?;
        if is(&stat, SFlag::S_IFDIR) {
            return Err("it is a folder".into());
        }
        unlinkat(&parent, last, UnlinkatFlags::NoRemoveDir).map_err(refusal)?;
        let _ = nix::unistd::fsync(&parent);
        reach(Point::Removing);
        self.give_back(stat.st_size.cast_unsigned());
        let mut rest = name;
        while let Some((folder, _)) = rest.rsplit_once('/') {
            let (parent, last) = split(folder);
            let above = self.resolve(parent, OFlag::O_DIRECTORY);
            let gone = above.and_then(|fd| unlinkat(&fd, last, UnlinkatFlags::RemoveDir));
            if gone.is_err() {
                break;
            }
            rest = folder;
        }
        Ok(())
    }

    /// Sets an image aside ([`FINISHED`]) that is of this run ([`crate::image::Header::run`]; 0 for any), in the place of an
    /// earlier one; false of one that has ended the run which is named alone: nothing happens.
    ///
    /// # Errors
    /// There is none such of this name, or the system does not let us.
    pub fn finish(&self, name: &str, [run, number]: [u64; 2]) -> Result<bool> {
        let to = format!("{name}{FINISHED}");
        check_stored(&to).map_err(|why| format!("the name {why}"))?;
        let _names = locked(&self.names);
        let header = Image::find(&self.read(name)?.0).map_err(|e| e.to_string())?;
        let fits = |wanted: u64, there: u64| wanted == 0 || wanted == there;
        let own = header.is_some_and(|h| fits(run, h.run[0]) && fits(number, h.run[1]));
        if !own {
            return Err("it is another run's by now".into());
        }
        // Who names the run alone asks for what this has saved while it went on.
        if number == 0 && run != 0 && header.is_some_and(|h| h.flags & header_flag::ENDED != 0) {
            return Ok(false);
        }
        let (folder, last) = split(name);
        let parent = self.resolve(folder, OFlag::O_DIRECTORY).map_err(refusal)?;
        let to = format!("{last}{FINISHED}");
        let earlier = fstatat(&parent, &*to, AtFlags::AT_SYMLINK_NOFOLLOW).ok();
        if earlier.is_some_and(|stat| !is(&stat, SFlag::S_IFREG)) {
            return Err(format!("{to} is no file"));
        }
        renameat(&parent, last, &parent, &*to).map_err(refusal)?;
        let _ = nix::unistd::fsync(&parent);
        self.give_back(earlier.map_or(0, |stat| stat.st_size.cast_unsigned()));
        Ok(true)
    }

    /// Gives the images in a folder ("": all) to `each`, in no order.
    ///
    /// # Errors
    /// There is no such folder, or `each` failed.
    pub fn list(&self, folder: &str, each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        let folder = folder.strip_suffix('/').unwrap_or(folder);
        if !folder.is_empty() {
            check_stored(folder).map_err(|why| format!("the name {why}"))?;
        }
        let place = if folder.is_empty() { "." } else { folder };
        let fd = self.resolve(place, OFlag::O_DIRECTORY).map_err(refusal)?;
        self.walk(fd, folder, DEPTH, each)
    }

    fn walk(
        &self,
        fd: OwnedFd,
        folder: &str,
        depth: usize,
        each: &mut dyn FnMut(Entry) -> Result<()>,
    ) -> Result<()> {
        let mut folders = Vec::new();
        let mut dir = Dir::from_fd(fd).map_err(refusal)?;
        let at = dir.as_fd_owned().map_err(refusal)?;
        for entry in dir.iter().flatten() {
            let Ok(part) = entry.file_name().to_str() else { continue };
            let slash = if folder.is_empty() { "" } else { "/" };
            let name = format!("{folder}{slash}{part}");
            // "." and "..", the server's own folder, and what nobody could ask for.
            if check_stored(&name).is_err() {
                continue;
            }
            let Ok(stat) = fstatat(&at, part, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
            if is(&stat, SFlag::S_IFDIR) {
                folders.push(name);
            } else if is(&stat, SFlag::S_IFREG) {
                let (len, time) = (stat.st_size.cast_unsigned(), stat.st_mtime.cast_unsigned());
                each(Entry { name, len, time })?;
            }
        }
        drop(dir);
        for folder in folders.into_iter().filter(|_| depth > 0) {
            // A folder that is gone or closed to us is passed over.
            if let Ok(fd) = self.resolve(&folder, OFlag::O_DIRECTORY) {
                self.walk(fd, &folder, depth - 1, each)?;
            }
        }
        Ok(())
    }

    fn resolve(&self, name: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
        openat2(&self.root, name, how)
    }

    /// Opens the folder of a name, making what is missing.
    fn folder(&self, folder: &str) -> nix::Result<OwnedFd> {
        let mut parent = self.resolve(".", OFlag::O_DIRECTORY)?;
        let ends = folder.match_indices('/').map(|(at, _)| at).chain([folder.len()]);
        for end in ends.filter(|_| !folder.is_empty()) {
            let so_far = &folder[..end];
            parent = match self.resolve(so_far, OFlag::O_DIRECTORY) {
                Err(Errno::ENOENT) => {
                    let (_, last) = split(so_far);
                    // One part alone, in a parent that was resolved: no symlink is followed.
                    mkdirat(&parent, last, Mode::S_IRWXU)?;
                    let _ = nix::unistd::fsync(&parent);
                    self.resolve(so_far, OFlag::O_DIRECTORY)?
                }
                opened => opened?,
            };
        }
        Ok(parent)
    }

    fn take(&self, bytes: u64) -> Result<()> {
        let mut used = locked(&self.used);
        match used.checked_add(bytes).filter(|sum| *sum <= self.limits.quota) {
            Some(sum) => *used = sum,
            None => {
                return Err(format!(
                    "the server's quota of {} bytes is used up",
                    self.limits.quota
                ));
            }
        }
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        let mut used = locked(&self.used);
        *used = used.saturating_sub(bytes);
    }
}

impl Upload<'_> {
    /// Writes a piece.
    ///
    /// # Errors
    /// A limit, or the disk.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        reach(Point::Receiving);
        self.grow(end)?;
        self.file.write_all_at(bytes, offset).map_err(|e| sentence(&e))
    }

    fn grow(&mut self, end: u64) -> Result<()> {
        let most = self.store.limits.max_bytes;
        if end > most || end > i64::MAX.cast_unsigned() {
            return Err(format!("an image on this server has at most {most} bytes"));
        }
        if end > self.end {
            self.store.take(end - self.end)?;
            self.end = end;
        }
        Ok(())
    }

    /// Writes the image to the disk. `len` is its length; what was not written is zeros.
    ///
    /// # Errors
    /// The length is shorter than what was written, a limit, or the disk.
    pub fn settle(&mut self, len: u64) -> Result<()> {
        if len < self.end {
            return Err("the image is shorter than its pieces".into());
        }
        self.grow(len)?;
        self.file.set_len(len).map_err(|e| sentence(&e))?;
        // The umask does not count for a checkpoint.
        fchmod(&self.file, Mode::S_IRWXU).map_err(refusal)?;
        self.file.sync_all().map_err(|e| sentence(&e))
    }

    /// Gives a settled image its name.
    ///
    /// # Errors
    /// The name cannot be had any more.
    pub fn commit(mut self) -> Result<()> {
        reach(Point::Received);
        let store = self.store;
        let _names = locked(&store.names);
        let (folder, last) = self.name.rsplit_once('/').unwrap_or(("", &self.name));
        let parent = store.folder(folder).map_err(refusal)?;
        reach(Point::Foldered);
        let old = fstatat(&parent, last, AtFlags::AT_SYMLINK_NOFOLLOW);
        renameat(&store.own, self.number.as_str(), &parent, last).map_err(refusal)?;
        if let Ok(old) = old.as_ref().map(|old| old.st_size.cast_unsigned()) {
            store.give_back(old);
        }
        self.end = 0;
        self.number.clear();
        let _ = nix::unistd::fsync(&parent);
        reach(Point::Stored);
        Ok(())
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if !self.number.is_empty() {
            let number = self.number.as_str();
            let _ = unlinkat(&self.store.own, number, UnlinkatFlags::NoRemoveDir);
            self.store.give_back(self.end);
        }
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

fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or((".", name))
}

fn is(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

/// A thread that panicked with a lock has left counters that are true still.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refusal(error: Errno) -> String {
    match error {
        Errno::ENOENT => "there is no such checkpoint".into(),
        Errno::EXDEV | Errno::ELOOP => "it is a symbolic link that leads elsewhere".into(),
        Errno::ENOTDIR => "a part of the name is a file, not a folder".into(),
        Errno::EISDIR | Errno::EEXIST | Errno::ENOTEMPTY => "it is a folder".into(),
        error => error.desc().into(),
    }
}

fn sentence(error: &std::io::Error) -> String {
    format!("it cannot be written there: {}", super::channel::reason(error))
}
