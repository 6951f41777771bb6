// SPDX-License-Identifier: LGPL-2.1-only
//! A path that leads to what inotify(7) or fanotify(7) watches, of which the kernel tells device, inode number and a handle
//! (fs/notify/fdinfo.c): looked for where programs have them from, which is what is open, the arguments, the working
//! directory and the directories above; then by the handle, which takes CAP_DAC_READ_SEARCH; then in all directories
//! below the former and below the mount points of that device. All this is seen once for a checkpoint, as its programs
//! stand still meanwhile.
//!
//! # Safety
//! The system calls take numbers, C strings, and a buffer of ours that is as long as is said there.
#![allow(unsafe_code)]

use super::Look;
use super::open::{owned, place};
use crate::proc::Pid;
use nix::libc;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How many entries of directories are looked at, and for how long, while the programs of a checkpoint stand still: for what
/// is known, for handles, below what is known, and below the mount points.
const LOOKED_AT: usize = 20_000;
const PATIENCE: Duration = Duration::from_millis(100);
const STAGES: usize = 4;
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

    /// The number of a mount's own file system is the one that is told: stat(2) may show another (btrfs, overlayfs), and
    /// handles alone say nothing, as those of cgroups and of /sys are small numbers.
    fn is(&self, path: &Path, found: Spot, own: &Own, trusted: bool) -> bool {
        if found.inode != self.inode || own.device(found) != self.device {
            return false;
        }
        match self.handle.as_ref().zip(Handle::of(path)) {
            Some((told, found)) => *told == found,
            None => trusted || found.device == self.device,
        }
    }
}

/// What a path leads to: the id of its mount, if the kernel tells it, and what stat(2) has.
#[derive(Clone, Copy)]
struct Spot {
    mount: u64,
    device: u64,
    inode: u64,
    mode: u32,
}

impl Spot {
    fn at(path: &Path, follow: bool) -> Option<Self> {
        /// STATX_BASIC_STATS and STATX_MNT_ID (Linux 5.8).
        const ASKED: u32 = 0x17ff;
        /// AT_STATX_DONT_SYNC: what is known of it here.
        const KNOWN: i32 = 0x4000;
        /// Words of a struct statx (include/uapi/linux/stat.h): masks, the mode, the inode, the device, the mount.
        const WORDS: usize = 32;
        let name = CString::new(path.as_os_str().as_bytes()).ok()?;
        let link = if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
        let (at, name, how) = (libc::AT_FDCWD, name.as_ptr(), KNOWN | libc::AT_NO_AUTOMOUNT | link);
        let mut words = [0u64; WORDS];
        // SAFETY: the kernel reads the C string, and writes a struct statx, for which there is room.
        if unsafe { libc::syscall(libc::SYS_statx, at, name, how, ASKED, words.as_mut_ptr()) } == 0
        {
            let mount = if words[0] & 0x1000 != 0 { words[18] } else { 0 };
            let device = libc::makedev(words[17] as u32, (words[17] >> 32) as u32);
            let mode = (words[3] >> 32) as u32 & 0xffff;
            return Some(Self { mount, device, inode: words[4], mode });
        }
        // Filters of containers may forbid that.
        let data = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) }.ok()?;
        Some(Self { mount: 0, device: data.dev(), inode: data.ino(), mode: data.mode() })
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
    fn path(&self, mounted: &File) -> Option<PathBuf> {
        let from: *const Self = self;
        // SAFETY: the kernel reads the handle.
        let opened = owned(unsafe {
            libc::syscall(libc::SYS_open_by_handle_at, mounted.as_raw_fd(), from, libc::O_PATH)
        });
        fs::read_link(place(&opened.ok()?)).ok()
    }
}

/// A mount of the process.
#[derive(Clone)]
pub(super) struct Mount {
    pub(super) id: u64,
    pub(super) device: u64,
    pub(super) point: PathBuf,
}

/// The mounts of a process (proc_pid_mountinfo(5)), but those with spaces and the like in their names.
pub(super) fn mounts(look: &Look<'_>) -> Vec<Mount> {
    let atlas = look.tables.sought.borrow();
    let known = atlas.own.as_ref().filter(|(whose, _)| *whose == look.process.pid());
    let own = known.map_or_else(|| Rc::new(Own::of(look)), |(_, own)| own.clone());
    own.mounts.iter().filter(|mount| !mount.point.as_os_str().is_empty()).cloned().collect()
}

/// What is one process's own.
struct Own {
    /// What has spaces and the like in its name has no name here.
    mounts: Vec<Mount>,
    devices: HashMap<u64, u64>,
    /// Its arguments and its working directory.
    below: Vec<PathBuf>,
}

impl Own {
    fn of(look: &Look<'_>) -> Self {
        let text = fs::read_to_string(look.process.path("mountinfo")).unwrap_or_default();
        let mount = |line: &str| {
            let mut words = line.split(' ');
            let id = words.next()?.parse().ok()?;
            let (major, minor) = words.nth(1)?.split_once(':')?;
            let device = libc::makedev(major.parse().ok()?, minor.parse().ok()?);
            let point = words.nth(1).filter(|point| !point.contains('\\')).unwrap_or_default();
            Some(Mount { id, device, point: point.into() })
        };
        let mounts: Vec<_> = text.lines().filter_map(mount).collect();
        let devices = mounts.iter().map(|mount| (mount.id, mount.device)).collect();
        let cwd = look.process.cwd().map(|cwd| cwd.path).unwrap_or_default();
        let arguments = look.process.cmdline().unwrap_or_default().into_iter();
        let below = arguments.map(|argument| cwd.join(argument)).chain([cwd.clone()]).collect();
        Self { mounts, devices, below }
    }

    /// That of the file system where something is.
    fn device(&self, spot: Spot) -> u64 {
        self.devices.get(&spot.mount).copied().unwrap_or(spot.device)
    }

    fn on(&self, device: u64) -> impl Iterator<Item = &Mount> {
        let named = |mount: &&Mount| !mount.point.as_os_str().is_empty();
        self.mounts.iter().filter(move |mount| mount.device == device).filter(named)
    }
}

/// What was seen for a checkpoint.
#[derive(Default)]
pub(super) struct Atlas {
    /// What paths lead to.
    spots: HashMap<PathBuf, Option<Spot>>,
    /// Paths by inode numbers, and whether the programs may have had something watched by them.
    paths: HashMap<u64, Vec<(PathBuf, bool)>>,
    /// Mounts, open.
    doors: HashMap<u64, Option<File>>,
    own: Option<(Pid, Rc<Own>)>,
    spent: [Duration; STAGES],
    entries: [usize; STAGES],
}

impl Atlas {
    fn spot(&mut self, path: &Path) -> Option<Spot> {
        if let Some(known) = self.spots.get(path) {
            return *known;
        }
        let spot = Spot::at(path, true);
        self.spots.insert(path.to_path_buf(), spot);
        spot
    }

    fn note(&mut self, path: &Path, trusted: bool) {
        if let Some(spot) = self.spot(path) {
            self.paths.entry(spot.inode).or_default().push((path.to_path_buf(), trusted));
        }
    }

    /// What is one process's own; its paths and everybody's are noted then.
    fn own(&mut self, look: &Look<'_>) -> Rc<Own> {
        let pid = look.process.pid();
        if let Some((_, own)) = self.own.as_ref().filter(|(whose, _)| *whose == pid) {
            return own.clone();
        }
        let own = Rc::new(Own::of(look));
        let mut all = BTreeSet::new();
        if self.own.replace((pid, own.clone())).is_none() {
            for (_, fd) in look.tables.everywhere() {
                let path = Path::new(&fd.target);
                if path.is_absolute() {
                    self.paths.entry(fd.inode).or_default().push((path.to_path_buf(), true));
                    above(path.parent(), &mut all);
                }
            }
        }
        own.below.iter().for_each(|path| above(Some(path), &mut all));
        all.retain(|path| !self.spots.contains_key(path));
        let until = self.until(0);
        let begun = Instant::now();
        all.iter().take_while(|_| Instant::now() < until).for_each(|path| self.note(path, true));
        self.spent[0] += begun.elapsed();
        own
    }

    /// When a stage has to come to its end that begins.
    fn until(&self, stage: usize) -> Instant {
        Instant::now() + PATIENCE.saturating_sub(self.spent[stage])
    }

    fn known(&mut self, one: &Wanted, own: &Own) -> Option<PathBuf> {
        let paths = self.paths.get(&one.inode)?.clone();
        let mut found = paths.into_iter().filter(|(path, trusted)| {
            self.spot(path).is_some_and(|spot| one.is(path, spot, own, *trusted))
        });
        found.next().map(|(path, _)| path)
    }

    fn by_handle(&mut self, one: &Wanted, own: &Own, until: Instant) -> Option<PathBuf> {
        let handle = one.handle.as_ref()?;
        for mount in own.on(one.device) {
            if Instant::now() > until {
                break;
            }
            let spot = self.spot(&mount.point);
            let door = self.doors.entry(mount.id).or_insert_with(|| door(mount, spot?));
            let path = door.as_ref().and_then(|door| handle.path(door));
            if let Some(path) = path
                && Spot::at(&path, true).is_some_and(|spot| one.is(&path, spot, own, false))
            {
                return Some(path);
            }
        }
        None
    }
}

/// Opens a mount: open_by_handle_at(2) takes no O_PATH, and whatever is no file or directory may do something when it is
/// opened, or wait.
fn door(mount: &Mount, spot: Spot) -> Option<File> {
    if !matches!(spot.mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR) {
        return None;
    }
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    File::options().read(true).custom_flags(flags).open(&mount.point).ok()
}

/// Adds an absolute path and those above it.
fn above(path: Option<&Path>, all: &mut BTreeSet<PathBuf>) {
    let path = path.filter(|path| path.is_absolute());
    for one in path.into_iter().flat_map(Path::ancestors) {
        if !all.insert(one.to_path_buf()) {
            break;
        }
    }
}

/// Where each of them is, if that can be found.
pub(super) fn find(look: &Look<'_>, wanted: &[Wanted]) -> Vec<Option<PathBuf>> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut atlas = look.tables.sought.borrow_mut();
    let own = atlas.own(look);
    let mut found: Vec<_> = wanted.iter().map(|one| atlas.known(one, &own)).collect();
    if found.iter().all(Option::is_some) {
        return found;
    }
    let devices: HashSet<_> = wanted.iter().map(|one| one.device).collect();
    for mount in devices.iter().flat_map(|device| own.on(*device)) {
        if !atlas.spots.contains_key(&mount.point) {
            atlas.note(&mount.point, false);
        }
    }
    let (until, begun) = (atlas.until(1), Instant::now());
    for (one, place) in wanted.iter().zip(&mut found).filter(|(_, place)| place.is_none()) {
        *place = atlas.known(one, &own).or_else(|| atlas.by_handle(one, &own, until));
    }
    atlas.spent[1] += begun.elapsed();
    let others = own.mounts.iter().filter(|mount| !devices.contains(&mount.device));
    let elsewhere = others.map(|mount| mount.point.clone()).collect();
    let near: Vec<_> = found.iter().flatten().cloned().chain(own.below.clone()).collect();
    let points = devices.iter().flat_map(|device| own.on(*device));
    let points: Vec<_> = points.map(|mount| mount.point.clone()).collect();
    let mut search = Search {
        wanted,
        own: &own,
        found,
        missing: HashMap::new(),
        seen: HashSet::new(),
        elsewhere,
    };
    for (index, _) in search.found.iter().enumerate().filter(|(_, place)| place.is_none()) {
        search.missing.entry(wanted[index].inode).or_default().push(index);
    }
    search.walk(near.into(), &mut atlas, 2);
    search.walk(points.into(), &mut atlas, 3);
    search.found
}

struct Search<'a> {
    wanted: &'a [Wanted],
    own: &'a Own,
    found: Vec<Option<PathBuf>>,
    /// Which are to be found, by inode number.
    missing: HashMap<u64, Vec<usize>>,
    /// Directories that were looked at, by device and inode number.
    seen: HashSet<(u64, u64)>,
    /// Where other file systems are mounted: of one whose server is gone a single look would never end.
    elsewhere: HashSet<PathBuf>,
}

impl Search<'_> {
    /// Looks into directories of devices that matter, and into those below: first into what is watched, as whoever watches
    /// a whole tree watches each of them.
    fn walk(&mut self, mut queue: VecDeque<PathBuf>, atlas: &mut Atlas, stage: usize) {
        let (until, begun) = (atlas.until(stage), Instant::now());
        let missing = self.missing.values().flatten().map(|index| self.wanted[*index].device);
        let devices: HashSet<_> = missing.collect();
        while let Some(directory) = queue.pop_front().filter(|_| !self.missing.is_empty()) {
            if self.elsewhere.contains(&directory) {
                continue;
            }
            let Some(spot) = Spot::at(&directory, false) else { continue };
            let matters = devices.contains(&self.own.device(spot));
            if !matters || !self.seen.insert((spot.device, spot.inode)) {
                continue;
            }
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if atlas.entries[stage] == LOOKED_AT || Instant::now() > until {
                    queue.clear();
                    break;
                }
                atlas.entries[stage] += 1;
                let is_watched = self.meets(&entry);
                match entry.file_type().is_ok_and(|it| it.is_dir()) {
                    true if is_watched => queue.push_front(entry.path()),
                    true => queue.push_back(entry.path()),
                    false => {}
                }
            }
        }
        atlas.spent[stage] += begun.elapsed();
    }

    /// Whether an entry is what is looked for.
    fn meets(&mut self, entry: &fs::DirEntry) -> bool {
        let Some(indices) = self.missing.get_mut(&entry.ino()) else { return false };
        let path = entry.path();
        let Some(spot) = Spot::at(&path, true) else { return false };
        let before = indices.len();
        indices.retain(|index| {
            let is_it = self.wanted[*index].is(&path, spot, self.own, false);
            if is_it {
                self.found[*index] = Some(path.clone());
            }
            !is_it
        });
        let is_watched = indices.len() < before;
        if indices.is_empty() {
            self.missing.remove(&entry.ino());
        }
        is_watched
    }
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
