// SPDX-License-Identifier: LGPL-2.1-only
//! The files of a server.
//!
//! Names are resolved by the kernel and never leave the directory (openat2(2), RESOLVE_BENEATH).
//! Uploads are written under a number in a folder of the server's own, [`OWN_FOLDER`], and get
//! their name by rename(2) once they are whole and on the disk ([`super::receiving`]). The folder's lock belongs to one
//! server, so what lies there when it starts is litter.
//!
//! A name is that of an image, or of a [recipe](super::recipe) for one whose content lies in the folder's [packs](super::packs).

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::claim::{self, Claim};
use super::packs::{COST, Packs, Place};
use super::recipe::{self, Extent};
use super::sending::Stored;
use super::{recount, sending};
use crate::error::{Because, Error};
use crate::fault::{Point, reach};
use crate::image::file::FINISHED;
use crate::order;
use crate::settings::server::{OWN_FOLDER, check_stored};
use ckpt_abi::image::header_flag;

/// The folder of the packs in the server's own.
const PACKS: &str = "packs";
/// Units that are let go of at a time.
const RELEASED: u64 = 8192;
/// Units that were let go of, and whose room is not given back yet: most packs go as a whole.
pub(super) const PUNCHED: usize = 1 << 20;

/// What a store takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one image.
    pub max_bytes: u64,
    /// Bytes of all that is stored, of what is just being written, too.
    pub quota: u64,
    /// Whether images are stored as whole files.
    pub whole: bool,
}

/// A directory with checkpoints.
pub struct Store {
    pub(super) claim: Claim,
    path: PathBuf,
    pub(super) limits: Limits,
    pub(super) packs: Option<Packs>,
    used: Mutex<u64>,
    pub(super) names: Mutex<()>,
    pub(super) count: AtomicU64,
    readers: Mutex<Vec<Reader>>,
}

/// A file that is being read.
struct Reader {
    inode: u64,
    readers: usize,
    /// It has lost its name meanwhile.
    gone: Option<File>,
}

/// What is said of a recipe with another id.
const ELSEWHERE: &str = "its content is in the directory of another server";

/// How a file is opened to be read: a FIFO that somebody puts there must not make us wait.
pub(super) const READ: OFlag = OFlag::O_NONBLOCK.union(OFlag::O_NOCTTY);

/// Why the store does not do it: a sentence for the client.
pub type Result<T> = std::result::Result<T, String>;

impl Store {
    /// Opens a directory and removes what a server that died has left in it.
    ///
    /// # Errors
    /// It cannot be used, or another server uses it.
    pub fn open(path: &Path, limits: Limits) -> crate::error::Result<Self> {
        Self::opened(path, limits, false)
    }

    /// The same; `anew` counts everything, as after a server that was killed.
    pub(super) fn opened(path: &Path, limits: Limits, anew: bool) -> crate::error::Result<Self> {
        let mut store = Self {
            claim: Claim::of(path)?,
            path: path.into(),
            limits,
            packs: None,
            used: Mutex::new(0),
            names: Mutex::new(()),
            count: AtomicU64::new(0),
            readers: Mutex::new(Vec::new()),
        };
        store.sweep();
        let why = || format!("cannot store checkpoints in {}", path.display());
        store.open_packs(anew).because(why)?;
        *locked(&store.used) = store.sum()?;
        Ok(store)
    }

    fn open_packs(&mut self, anew: bool) -> std::io::Result<()> {
        let own = self.claim.own.as_fd();
        if !self.limits.whole {
            claim::folder(own, PACKS)?;
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let dir = match nix::fcntl::openat(own, PACKS, flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(()),
            opened => opened?,
        };
        let (id, closed) = (recount::id(&dir)?, recount::closed(&dir)?.filter(|_| !anew));
        let is_known = closed.is_some();
        let path = self.path.join(OWN_FOLDER).join(PACKS);
        self.packs = Some(Packs::open(dir, &path, id, closed)?);
        if !is_known && let Err(why) = self.recount() {
            eprintln!("ckpt: {}: no room is given back: {why}", self.path.display());
        }
        Ok(())
    }

    /// Counts all anew. What could not be looked at may mean anything, so nothing is freed then.
    fn recount(&self) -> Result<()> {
        let Some(packs) = &self.packs else { return Ok(()) };
        let of_packs = |counted: std::io::Result<()>| {
            counted.map_err(|e| [PACKS, &super::channel::reason(&e)].join(": "))
        };
        let mut result = of_packs(packs.forget_counts());
        let walked = self.walk("", &mut |name, stat| {
            let counted = stat.map_err(Into::into).and_then(|stat| self.count(packs, &name, stat));
            if let (Err(e), true) = (counted, result.is_ok()) {
                result = Err([name, super::channel::reason(&e)].join(": "));
            }
            Ok(())
        });
        result = result.and(walked);
        packs.state().sound = result.is_ok();
        result = result.and(of_packs(packs.settle_counts()));
        packs.state().sound = result.is_ok();
        result
    }

    fn count(&self, packs: &Packs, name: &str, stat: &FileStat) -> std::io::Result<()> {
        let file = match self.resolve(name, READ) {
            Err(e) if self.is_nothing(e, stat) => return Ok(()),
            opened => File::from(opened?),
        };
        match recipe::tail(&file)? {
            Some(tail) if packs.id == tail.id => {
                recipe::each(&file, &tail, &mut |batch| packs.count(batch))
            }
            // Or it is ours, and what says so is damaged.
            Some(_) => Err(std::io::Error::other(ELSEWHERE)),
            None => Ok(()),
        }
    }

    /// Removes the uploads that nobody finishes, and the server's folder if nothing is in it.
    pub fn close(&self) {
        self.sweep();
        if let Some(packs) = &self.packs {
            if !packs.clear() {
                // Without it all is counted anew.
                let _ = packs.close();
            }
            let _ = unlinkat(self.claim.own.as_fd(), PACKS, UnlinkatFlags::RemoveDir);
        }
        self.claim.leave();
    }

    fn sweep(&self) {
        for entry in fs::read_dir(self.path.join(OWN_FOLDER)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let _ = unlinkat(self.claim.own.as_fd(), &*name, UnlinkatFlags::NoRemoveDir);
        }
    }

    /// Bytes that are taken up.
    fn sum(&self) -> crate::error::Result<u64> {
        let units = self
            .packs
            .as_ref()
            .map_or(0, |packs| packs.state().live.iter().map(|[_, units]| u64::from(*units)).sum());
        let mut sum = units * COST;
        let added = self.walk("", &mut |_, file| {
            sum += file.map_or(0, |file| file.st_size.cast_unsigned());
            Ok(())
        });
        added.map(|()| sum).map_err(|e| Error::new(format!("{}: {e}", self.path.display())))
    }

    /// The same, as it is kept.
    pub(super) fn used(&self) -> u64 {
        *locked(&self.used)
    }

    /// Opens an image.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn read(&self, name: &str) -> Result<Stored<'_>> {
        check_stored(name).map_err(|why| format!("the name {why}"))?;
        let _names = locked(&self.names);
        self.read_named(name)
    }

    /// The same for who has the names: it stays for whom it was opened, whoever removes it.
    fn read_named(&self, name: &str) -> Result<Stored<'_>> {
        let file = File::from(self.resolve(name, READ).map_err(refusal)?);
        let meta = file.metadata().map_err(|e| e.to_string())?;
        if !meta.is_file() {
            return Err("it is not a file".into());
        }
        let tail = recipe::tail(&file).map_err(|e| e.to_string())?;
        let inode = meta.ino();
        let mut readers = locked(&self.readers);
        match readers.iter_mut().find(|reader| reader.inode == inode) {
            Some(reader) => reader.readers += 1,
            None => readers.push(Reader { inode, readers: 1, gone: None }),
        }
        drop(readers);
        let reading = sending::Reading { store: self, inode };
        let Some(tail) = tail else { return Ok(Stored::Whole(file, meta.len(), reading)) };
        let packs = self.packs.as_ref().filter(|packs| packs.id == tail.id);
        let packs = packs.ok_or(ELSEWHERE)?;
        Ok(Stored::Parts(sending::Parts { packs, file, tail, _reading: reading }))
    }

    /// Somebody reads a file no more.
    pub(super) fn read_no_more(&self, inode: u64) {
        let mut readers = locked(&self.readers);
        let Some(at) = readers.iter().position(|reader| reader.inode == inode) else { return };
        readers[at].readers -= 1;
        let gone = if readers[at].readers == 0 { readers.swap_remove(at).gone } else { None };
        drop(readers);
        if let Some(file) = gone {
            self.release(&file);
        }
    }

    /// Gives back what a file took that has no name any more, on the disk neither.
    pub(super) fn let_go(&self, file: &File) {
        let Ok(meta) = self.is_known(file.metadata()) else { return };
        if !meta.is_file() {
            return;
        }
        let mut readers = locked(&self.readers);
        if let Some(reader) = readers.iter_mut().find(|reader| reader.inode == meta.ino()) {
            reader.gone = self.is_known(file.try_clone()).ok();
            return;
        }
        drop(readers);
        self.release(file);
    }

    fn release(&self, file: &File) {
        self.give_back(file.metadata().map_or(0, |meta| meta.len()));
        if let (Some(packs), Ok(Some(tail))) = (&self.packs, self.is_known(recipe::tail(file)))
            && packs.id == tail.id
        {
            reach(Point::Releasing);
            // Of one that is damaged nothing is known; its content goes when all is counted anew.
            let mut freed = Vec::new();
            let all = recipe::each(file, &tail, &mut |batch| {
                self.release_some(packs, batch, &mut freed);
                Ok(())
            });
            let _ = self.is_known(all);
            packs.punch(&mut freed);
        }
    }

    /// Gives back what extents took, a few units at a time: others want to be counted, too. Room that is yet to be given
    /// back is in `freed`.
    pub(super) fn release_some(&self, packs: &Packs, extents: &[Extent], freed: &mut Vec<Place>) {
        let (mut few, mut units) = (Vec::new(), 0);
        let mut release = |few: &mut Vec<Extent>| {
            // Records that lie side by side are read and written once.
            order::by_key(few, |extent| (extent.pack.into(), extent.slot.into()));
            self.give_back(packs.release(few, freed) * COST);
            few.clear();
        };
        for mut rest in extents.iter().copied() {
            while rest.len > 0 {
                let (part, left) = rest.split(RELEASED - units);
                units += part.units();
                few.push(part);
                rest = left;
                if units == RELEASED {
                    release(&mut few);
                    units = 0;
                }
            }
        }
        release(&mut few);
        if freed.len() > PUNCHED {
            packs.punch(freed);
            freed.clear();
        }
    }

    /// Removes an image, and the folders that are empty then.
    ///
    /// # Errors
    /// There is none of this name, or the system does not let us.
    pub fn remove(&self, name: &str) -> Result<()> {
        check_stored(name).map_err(|why| format!("the name {why}"))?;
        let names = locked(&self.names);
        let (folder, last) = split(name);
        let parent = self.resolve(folder, OFlag::O_DIRECTORY).map_err(refusal)?;
        let stat = fstatat(&parent, last, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(refusal)?;
        if is(&stat, SFlag::S_IFDIR) {
            return Err("it is a folder".into());
        }
        let old = self.at(&parent, last);
        unlinkat(&parent, last, UnlinkatFlags::NoRemoveDir).map_err(refusal)?;
        let is_gone = self.is_known(claim::sync(&parent)).is_ok();
        reach(Point::Removing);
        self.remove_empty(name);
        drop(names);
        if let Some(old) = old.filter(|_| is_gone) {
            self.let_go(&old);
        }
        Ok(())
    }

    /// A file that is about to lose its only name. NFS counts a name of a file that is open as long as it is open
    /// (fs/nfs/unlink.c), so they are counted before.
    pub(super) fn at(&self, parent: &OwnedFd, last: &str) -> Option<File> {
        let flags = READ | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = match nix::fcntl::openat(parent, last, flags, Mode::empty()) {
            Err(Errno::ENOENT) => return None,
            opened => self.is_known(opened).ok().map(File::from)?,
        };
        self.is_known(file.metadata()).ok().filter(|meta| meta.nlink() == 1).map(|_| file)
    }

    fn remove_empty(&self, name: &str) {
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
    }

    /// Sets an image aside ([`FINISHED`]) that is of this run ([`crate::image::Header::run`]; 0 for any), in the place of an
    /// earlier one; false of one that has ended the run which is named alone: nothing happens.
    ///
    /// # Errors
    /// There is none such of this name, or the system does not let us.
    pub fn finish(&self, name: &str, [run, number]: [u64; 2]) -> Result<bool> {
        let to = format!("{name}{FINISHED}");
        let fitting = check_stored(name).and_then(|()| check_stored(&to));
        fitting.map_err(|why| format!("the name {why}"))?;
        let names = locked(&self.names);
        let header = self.read_named(name)?.header()?;
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
        let earlier = self.at(&parent, &to);
        renameat(&parent, last, &parent, &*to).map_err(refusal)?;
        let is_gone = self.is_known(claim::sync(&parent)).is_ok();
        drop(names);
        if let Some(earlier) = earlier.filter(|_| is_gone) {
            self.let_go(&earlier);
        }
        Ok(true)
    }

    pub(super) fn resolve(&self, name: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
        openat2(&self.claim.root, name, how)
    }

    /// Opens the folder of a name, making what is missing.
    pub(super) fn folder(&self, folder: &str) -> nix::Result<OwnedFd> {
        let mut parent = self.resolve(".", OFlag::O_DIRECTORY)?;
        let ends = folder.match_indices('/').map(|(at, _)| at).chain([folder.len()]);
        for end in ends.filter(|_| !folder.is_empty()) {
            let so_far = &folder[..end];
            parent = match self.resolve(so_far, OFlag::O_DIRECTORY) {
                Err(Errno::ENOENT) => {
                    let (_, last) = split(so_far);
                    // One part alone, in a parent that was resolved: no symlink is followed.
                    claim::folder(&parent, last)?;
                    self.resolve(so_far, OFlag::O_DIRECTORY)?
                }
                opened => opened?,
            };
        }
        Ok(parent)
    }

    /// What became of a name, on the disk, too. Where that is not known, what the name before has meant stays until all is
    /// counted anew.
    pub(super) fn is_known<T, E>(
        &self,
        known: std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        if let (Err(_), Some(packs)) = (&known, &self.packs) {
            packs.state().exact = false;
        }
        known
    }

    pub(super) fn take(&self, bytes: u64) -> Result<()> {
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

    pub(super) fn give_back(&self, bytes: u64) {
        let mut used = locked(&self.used);
        *used = used.saturating_sub(bytes);
    }
}

pub(super) fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or((".", name))
}

pub(super) fn is(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

/// A thread that panicked with a lock has left counters that are true still.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn refusal(error: Errno) -> String {
    match error {
        Errno::ENOENT => "there is no such checkpoint".into(),
        Errno::EXDEV | Errno::ELOOP => "it is a symbolic link that leads elsewhere".into(),
        Errno::ENOTDIR => "a part of the name is a file, not a folder".into(),
        Errno::EISDIR | Errno::EEXIST | Errno::ENOTEMPTY => "it is a folder".into(),
        error => error.desc().into(),
    }
}

pub(super) fn sentence(error: &std::io::Error) -> String {
    format!("it cannot be written there: {}", super::channel::reason(error))
}
