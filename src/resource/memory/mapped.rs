// SPDX-License-Identifier: LGPL-2.1-only
//! The files behind mappings: whether a path still leads to them, and whether they keep still.

use crate::error::{Error, Kind, Result};
use crate::proc::{self, Process, maps::Vma};
use nix::fcntl::OFlag;
use nix::libc;
use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{DirEntryExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A file that was changed so shortly before the checkpoint may be changed during it. A writer through a
/// shared mapping moves the time of modification only when the page was clean: after a writeback, which
/// comes within half a minute (vm.dirty_expire_centisecs).
const HOT: Duration = Duration::from_secs(60);
/// The same for files that are executed, which nobody writes in place: the granularity of their times.
const HOT_CODE: Duration = Duration::from_secs(2);
/// How many names of a directory are looked at for a file whose first name is gone.
const LOOKED_AT: usize = 20_000;

/// A mapped file that a path leads to.
pub(crate) struct Mapped {
    /// The path, as the target sees it.
    pub path: PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// Time of modification in nanoseconds.
    pub mtime: i64,
    /// Device and inode number.
    pub id: (u64, u64),
    /// It is a program or a library.
    pub elf: bool,
    ctime: i64,
    /// How long before the checkpoint it was changed; zero if that is in the future.
    age: Duration,
    /// A data file, opened as a place only (O_PATH), so that it is the same file later.
    place: Option<File>,
    /// Where it was found.
    found: PathBuf,
}

impl Mapped {
    fn has_changed(&self) -> bool {
        let now = match &self.place {
            Some(place) => place.metadata(),
            None => std::fs::symlink_metadata(&self.found),
        };
        now.is_ok_and(|m| {
            // A new name, another owner or fewer links are no change of content.
            let (size, mtime, ctime) = times(&m);
            let same = (m.dev(), m.ino()) == self.id;
            same && (size, mtime) != (self.size, self.mtime) && ctime != self.ctime
        })
    }
}

/// The files that a target maps, each looked at once.
pub(crate) struct Files {
    process: Process,
    now: SystemTime,
    /// What is executed of it: device and inode.
    code: HashSet<(u64, u64)>,
    known: HashMap<(u64, u64), Option<Arc<Mapped>>>,
    trusted: Vec<Arc<Mapped>>,
    /// Pairs of devices, as stat(2) and as /proc/PID/maps tell them, and whether both are one file system.
    devices: HashMap<(u64, u64), bool>,
}

impl Files {
    /// For a process that stands still, with these mappings.
    pub(crate) fn of(process: &Process, vmas: &[Vma]) -> Self {
        let code = vmas.iter().filter(|vma| vma.exec).map(|vma| (vma.device, vma.inode)).collect();
        Self {
            process: process.clone(),
            now: SystemTime::now(),
            code,
            known: HashMap::new(),
            trusted: Vec::new(),
            devices: HashMap::new(),
        }
    }

    /// The file of a mapping; None where no path leads to it.
    pub(crate) fn get(&mut self, vma: &Vma) -> Option<Arc<Mapped>> {
        let key = (vma.device, vma.inode);
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let found = self.find(vma).map(Arc::new);
        self.known.insert(key, found.clone());
        found
    }

    /// Where a file was found that was looked for, as long as we have the process opened.
    pub(super) fn found(&self, id: (u64, u64)) -> Option<(&Path, &Process)> {
        let mut all = self.known.values().flatten();
        all.find(|file| file.id == id).map(|file| (&*file.found, &self.process))
    }

    /// Whether the content of a file can be read when the target goes on; it is seen afterwards whether the
    /// file has kept still ([`Files::unchanged`]).
    pub(crate) fn trust(&mut self, file: &Arc<Mapped>) -> bool {
        let cold = file.age >= if file.elf { HOT_CODE } else { HOT };
        if cold && !self.trusted.iter().any(|known| Arc::ptr_eq(known, file)) {
            self.trusted.push(file.clone());
        }
        cold
    }

    /// Whether the files that were trusted have kept still since they were looked at.
    ///
    /// # Errors
    /// Of [`Kind::Changed`]: one has not.
    pub(crate) fn unchanged(&self) -> Result<()> {
        match self.trusted.iter().find(|file| file.has_changed()) {
            Some(file) => Err(Error::new(format!(
                "the mapped file {} was changed while it was read",
                file.path.display()
            ))
            .of(Kind::Changed)),
            None => Ok(()),
        }
    }

    fn find(&mut self, vma: &Vma) -> Option<Mapped> {
        let told = Path::new(&vma.name);
        let inner = told.strip_prefix("/").ok()?;
        if !vma.deleted {
            let root = PathBuf::from(self.process.path("root"));
            let places = [told.to_path_buf(), root.join(inner)];
            return places.iter().find_map(|place| self.look(place, told, vma));
        }
        // The name by which it was opened is gone, but it may have another: sem_open(3) makes a semaphore
        // under a temporary name. Only the device tells that from any file with the same number: shared anonymous
        // memory has a name in / or /dev, and inodes on a file system of the kernel's own.
        if !vma.shared {
            return None;
        }
        let entries = std::fs::read_dir(told.parent()?).ok()?.take(LOOKED_AT).flatten();
        let mut same = entries.filter(|entry| entry.ino() == vma.inode).map(|entry| entry.path());
        same.find_map(|path| self.look(&path, &path, vma).filter(|found| found.id.0 == vma.device))
    }

    fn look(&mut self, place: &Path, path: &Path, vma: &Vma) -> Option<Mapped> {
        let code = self.code.contains(&(vma.device, vma.inode));
        let flags = (OFlag::O_PATH | OFlag::O_NOFOLLOW).bits();
        let opened = || File::options().read(true).custom_flags(flags).open(place).ok();
        // There may be more files than descriptors.
        let file = if code { None } else { opened() };
        let meta = file.as_ref().map_or_else(|| std::fs::symlink_metadata(place), File::metadata);
        let meta = meta.ok().filter(|meta| self.is_same(place, meta, vma))?;
        let (size, mtime, ctime) = times(&meta);
        let latest = u64::try_from(mtime.max(ctime)).unwrap_or(0);
        let changed = SystemTime::UNIX_EPOCH + Duration::from_nanos(latest);
        let age = self.now.duration_since(changed).unwrap_or_default();
        let id = (meta.dev(), meta.ino());
        Some(Mapped {
            path: path.into(),
            size,
            mtime,
            id,
            elf: code || is_elf(place),
            ctime,
            age,
            place: file,
            found: place.into(),
        })
    }

    /// Whether a file is the mapped one. On btrfs and overlayfs stat(2) tells another device than /proc/PID/maps. Those
    /// have no major number, as tmpfs has none, where numbers of inodes repeat: which two devices are the same is seen of
    /// the file when it is mapped here.
    fn is_same(&mut self, place: &Path, meta: &Metadata, vma: &Vma) -> bool {
        let (device, nameless) = (meta.dev(), |device| libc::major(device) == 0);
        if meta.ino() != vma.inode || !meta.is_file() {
            return false;
        }
        if device == vma.device {
            return true;
        }
        let shown = || {
            let flags = (OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits();
            let file = File::options().read(true).custom_flags(flags).open(place).ok()?;
            proc::shown(&file)
        };
        // What we may not read is taken for the file that its path and its number say it is.
        (nameless(device) || nameless(vma.device))
            && *self
                .devices
                .entry((device, vma.device))
                .or_insert_with(|| shown().is_none_or(|shown| shown == (vma.device, vma.inode)))
    }
}

fn times(meta: &Metadata) -> (u64, i64, i64) {
    let time = |seconds: i64, rest| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    (meta.len(), time(meta.mtime(), meta.mtime_nsec()), time(meta.ctime(), meta.ctime_nsec()))
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    let flags = OFlag::O_NONBLOCK.bits();
    let file = File::options().read(true).custom_flags(flags).open(path);
    file.and_then(|mut f| f.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two file systems in memory have files of one number, and no device that tells them apart by its major number.
    #[test]
    fn a_file_of_another_file_system_is_not_the_mapped_one() {
        let path = PathBuf::from(format!("/dev/shm/ckpt-test-mapped-{}", std::process::id()));
        std::fs::write(&path, b"content").expect("a file");
        let file = File::open(&path).expect("the file");
        let meta = file.metadata().expect("its numbers");
        let shown = proc::shown(&file).expect("a mapping");
        assert_eq!(shown, (meta.dev(), meta.ino()));
        let own = Process::own().expect("we are");
        let mut vma = own.maps().expect("maps").swap_remove(0);
        (vma.name, vma.device, vma.inode) = (path.clone().into(), shown.0, shown.1);
        let found = |vma: &Vma| Files::of(&own, &[]).get(vma).is_some();
        assert!(found(&vma));
        vma.device ^= 1;
        let other = found(&vma);
        std::fs::remove_file(&path).expect("removed");
        assert!(!other);
    }
}
