// SPDX-License-Identifier: LGPL-2.1-only
//! A path that leads to what inotify(7) or fanotify(7) watches, of which the kernel tells device, inode number and a handle
//! (fs/notify/fdinfo.c): looked for where programs have them from, which is what is open, the arguments, the working
//! directory and the directories above; then by the handle, which takes CAP_DAC_READ_SEARCH; then in all directories
//! below the former and below the mount points of that device.
//!
//! # Safety
//! The system calls take numbers, C strings, and a buffer of ours that is as long as is said there.
#![allow(unsafe_code)]

use super::open::{owned, place};
use super::{Look, Opening};
use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How many entries of directories are looked at, and for how long, while the program stands still: below what is known, and
/// once more below the mount points.
const LOOKED_AT: usize = 20_000;
const PATIENCE: Duration = Duration::from_millis(100);
/// MAX_HANDLE_SZ.
const HANDLE: usize = 128;

/// struct file_handle (open_by_handle_at(2)).
#[derive(Clone, PartialEq, Eq)]
#[repr(C)]
struct Handle {
    len: u32,
    kind: i32,
    bytes: [u8; HANDLE],
}

/// What is watched.
pub(super) struct Wanted {
    inode: u64,
    device: u64,
    handle: Option<Handle>,
}

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

/// A word of a line such as "wd:1 ino:2f sdev:fe00000", in base 16.
pub(super) fn word<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let mut words = line.split_ascii_whitespace().filter_map(|word| word.split_once(':'));
    words.find(|(key, _)| *key == name).map(|(_, value)| value)
}

pub(super) fn field(line: &str, name: &str) -> Option<u64> {
    u64::from_str_radix(word(line, name)?, 16).ok()
}

impl Wanted {
    /// What a line of fdinfo tells.
    pub(super) fn of(line: &str) -> Option<Self> {
        let device = device(line)?;
        Some(Self { inode: field(line, "ino")?, device, handle: Handle::told(line) })
    }

    /// Some file systems show another device number than they have (btrfs, overlayfs): there the handle decides.
    fn may_be_on(&self, device: u64) -> bool {
        self.device == device || libc::major(self.device) == 0
    }

    fn is(&self, path: &Path, trusted: bool) -> bool {
        let Ok(found) = fs::metadata(path) else { return false };
        if found.ino() != self.inode || !self.may_be_on(found.dev()) {
            return false;
        }
        match self.handle.as_ref().zip(Handle::of(path)) {
            Some((told, found)) => *told == found,
            None => trusted || found.dev() == self.device,
        }
    }

    fn by_handle(&self, mounts: &[Mount]) -> Option<PathBuf> {
        let handle = self.handle.as_ref()?;
        let on_it = mounts.iter().filter(|mount| mount.device == self.device);
        on_it.filter_map(|mount| handle.path(&mount.point)).find(|path| self.is(path, false))
    }
}

/// The device of "sdev:fe00000", as stat(2) has it.
pub(super) fn device(line: &str) -> Option<u64> {
    let device = field(line, "sdev")?;
    Some(libc::makedev((device >> 20) as u32, device as u32 & 0xf_ffff))
}

impl Handle {
    fn told(line: &str) -> Option<Self> {
        let kind = field(line, "fhandle-type")? as i32;
        let digits = word(line, "f_handle")?.as_bytes();
        let mut handle = Self { len: (digits.len() / 2) as u32, kind, bytes: [0; HANDLE] };
        for (to, pair) in handle.bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *to = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        (digits.len() <= 2 * HANDLE).then_some(handle)
    }

    fn of(path: &Path) -> Option<Self> {
        let path = CString::new(path.as_os_str().as_bytes()).ok()?;
        let mut handle = Self { len: HANDLE as u32, kind: 0, bytes: [0; HANDLE] };
        let (at, name, follow) = (libc::AT_FDCWD, path.as_ptr(), libc::AT_SYMLINK_FOLLOW);
        let (mut mount, into): (i32, *mut Self) = (0, &mut handle);
        // SAFETY: the kernel reads the C string, and writes the handle and the number.
        let done = unsafe {
            libc::syscall(libc::SYS_name_to_handle_at, at, name, into, &raw mut mount, follow)
        };
        (done == 0).then_some(handle)
    }

    /// The path of what it stands for on a mounted file system.
    fn path(&self, mounted: &Path) -> Option<PathBuf> {
        let mounted = File::open(mounted).ok()?;
        let from: *const Self = self;
        // SAFETY: the kernel reads the handle.
        let opened = owned(unsafe {
            libc::syscall(libc::SYS_open_by_handle_at, mounted.as_raw_fd(), from, libc::O_PATH)
        });
        fs::read_link(place(&opened.ok()?)).ok()
    }
}

/// A mount of the process.
pub(super) struct Mount {
    pub(super) id: u64,
    pub(super) device: u64,
    pub(super) point: PathBuf,
}

/// The mounts of a process (proc_pid_mountinfo(5)), but those with spaces and the like in their names.
pub(super) fn mounts(look: &Look<'_>) -> Vec<Mount> {
    let text = fs::read_to_string(look.process.path("mountinfo")).unwrap_or_default();
    let mount = |line: &str| {
        let mut words = line.split(' ');
        let id = words.next()?.parse().ok()?;
        let (major, minor) = words.nth(1)?.split_once(':')?;
        let device = libc::makedev(major.parse().ok()?, minor.parse().ok()?);
        let point = words.nth(1).filter(|point| !point.contains('\\'))?;
        Some(Mount { id, device, point: point.into() })
    };
    text.lines().filter_map(mount).collect()
}

/// Where each of them is, if that can be found.
pub(super) fn find(look: &Look<'_>, wanted: &[Wanted]) -> Vec<Option<PathBuf>> {
    let (known, below) = known(look);
    let near = |one: &Wanted| known.iter().find(|path| one.is(path, true)).cloned();
    let found = wanted.iter().map(near).collect();
    let mut search = Search { wanted, found, seen: HashSet::new(), elsewhere: HashSet::new() };
    if search.is_done() {
        return search.found;
    }
    let is_wanted = |mount: &Mount| wanted.iter().any(|one| one.device == mount.device);
    let (mounts, others): (Vec<_>, Vec<_>) = mounts(look).into_iter().partition(is_wanted);
    search.elsewhere = others.into_iter().map(|mount| mount.point).collect();
    for (one, place) in wanted.iter().zip(&mut search.found) {
        let points = || mounts.iter().map(|mount| &mount.point);
        let point = || points().find(|point| one.is(point, false)).cloned();
        *place = place.take().or_else(point).or_else(|| one.by_handle(&mounts));
    }
    let near: Vec<_> = search.found.iter().flatten().cloned().collect();
    search.walk(near.into_iter().chain(below).collect());
    search.walk(mounts.into_iter().map(|mount| mount.point).collect());
    search.found
}

struct Search<'a> {
    wanted: &'a [Wanted],
    found: Vec<Option<PathBuf>>,
    /// Directories that were looked at, by device and inode number.
    seen: HashSet<(u64, u64)>,
    /// Where other file systems are mounted: of one whose server is gone a single look would never end.
    elsewhere: HashSet<PathBuf>,
}

impl Search<'_> {
    fn is_done(&self) -> bool {
        self.found.iter().all(Option::is_some)
    }

    /// Looks into directories of devices that matter, and into those below: first into what is watched, as whoever watches
    /// a whole tree watches each of them.
    fn walk(&mut self, mut queue: VecDeque<PathBuf>) {
        let (mut left, begin) = (LOOKED_AT, Instant::now());
        while let Some(directory) = queue.pop_front().filter(|_| !self.is_done()) {
            if self.elsewhere.contains(&directory) {
                continue;
            }
            let Ok(data) = fs::symlink_metadata(&directory).map(|data| (data.dev(), data.ino()))
            else {
                continue;
            };
            let missing = self.wanted.iter().zip(&self.found).filter(|(_, place)| place.is_none());
            let matters = missing.into_iter().any(|(one, _)| one.may_be_on(data.0));
            if !matters || !self.seen.insert(data) {
                continue;
            }
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if left == 0 || begin.elapsed() > PATIENCE {
                    return;
                }
                left -= 1;
                let is_watched = self.meets(&entry);
                match entry.file_type().is_ok_and(|it| it.is_dir()) {
                    true if is_watched => queue.push_front(entry.path()),
                    true => queue.push_back(entry.path()),
                    false => {}
                }
            }
        }
    }

    /// Whether an entry is what is looked for.
    fn meets(&mut self, entry: &fs::DirEntry) -> bool {
        let mut is_watched = false;
        for (one, place) in self.wanted.iter().zip(&mut self.found) {
            if entry.ino() == one.inode && one.is(&entry.path(), false) {
                place.get_or_insert_with(|| entry.path());
                is_watched = true;
            }
        }
        is_watched
    }
}

/// Paths that a process may have had something watched by, and below which such may be.
fn known(look: &Look<'_>) -> (BTreeSet<PathBuf>, Vec<PathBuf>) {
    let cwd = look.process.cwd().map(|cwd| cwd.path).unwrap_or_default();
    let files = look.tables.everywhere().map(|(_, fd)| PathBuf::from(&fd.target));
    let arguments = look.process.cmdline().unwrap_or_default().into_iter().map(|a| cwd.join(a));
    let mut below: Vec<_> = arguments.collect();
    let mut all = BTreeSet::new();
    for path in files.chain(below.iter().cloned()).filter(|path| path.is_absolute()) {
        all.extend(path.ancestors().map(Path::to_path_buf));
    }
    all.extend(cwd.ancestors().map(Path::to_path_buf));
    below.push(cwd);
    (all, below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fdinfo_tells() {
        let line = "wd:a ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e00006405d800";
        let wanted = Wanted::of(line).unwrap();
        assert_eq!((wanted.inode, wanted.device), (0x9e7e, libc::makedev(8, 0x13)));
        let handle = wanted.handle.unwrap();
        assert_eq!((handle.len, handle.kind, &handle.bytes[..3]), (8, 1, &[0x7e, 0x9e, 0][..]));
        assert!(Wanted::of("wd:1").is_none());
    }

    #[test]
    fn a_handle_is_the_files_own() {
        let (one, other) = (Handle::of(Path::new("/proc/self/exe")), Handle::of(Path::new("/")));
        assert!(one.is_none() || one != other);
    }
}
