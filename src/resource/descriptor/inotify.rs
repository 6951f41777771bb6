// SPDX-License-Identifier: LGPL-2.1-only
//! inotify(7) instances. The kernel tells what is watched by device and inode number; a path that leads there is looked
//! for where programs have them from: what is open, the arguments, the working directory, and the directories above; then
//! below what is known to be watched (whoever watches a whole tree does so), and below the arguments and the working directory.
//!
//! # Safety
//! The system calls take numbers, C strings and buffers of ours.
#![allow(unsafe_code)]

use super::open::owned;
use super::{Content, Kind, Look, Opening, Origin, Saving};
use crate::error::{Because, Error, Result};
use crate::proc::Pid;
use crate::proc::fds::Fd;
use crate::ptrace::raw;
use ckpt_abi::image::Descriptor;
use nix::errno::Errno;
use nix::libc;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(super) const KIND: Kind = Kind { recognise, save, open };

/// Most numbers of watches that are passed over to come to a saved one.
const FAR: i32 = 1 << 16;

fn recognise(fd: &Fd, _: &Look<'_>) -> bool {
    fd.target == "anon_inode:inotify"
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    let number = fd.number;
    let mut bytes = Vec::new();
    let watches = fd.extra.iter().filter(|(key, _)| key == "inotify");
    let watches: Vec<_> = watches.filter_map(|(_, line)| watch(line)).collect();
    let found = if watches.is_empty() { HashMap::new() } else { find(&watches, look) };
    for [wd, inode, device, mask] in watches {
        let Some(path) = found.get(&(inode, device)) else {
            saving.say(format!(
                "what inotify descriptor {number} watches as number {wd}: no path is known that leads there"
            ));
            continue;
        };
        let path = path.as_os_str().as_bytes();
        bytes.extend(
            [wd as u32, mask as u32, path.len() as u32].map(u32::to_le_bytes).as_flattened(),
        );
        bytes.extend(path);
    }
    if is_unread(look.process.pid(), fd) {
        saving.say(format!("what inotify descriptor {number} has noticed and nobody has read"));
    }
    saving.record.content = number;
    saving.content = Some(Content { index: number, bytes });
    Ok(())
}

/// "wd:1 ino:2f sdev:fe00000 mask:fce ignored_mask:0 ...": its number, inode, device and mask.
fn watch(line: &str) -> Option<[u64; 4]> {
    let field = |name: &str| {
        let mut words = line.split_ascii_whitespace().filter_map(|word| word.split_once(':'));
        let (_, value) = words.find(|(key, _)| *key == name)?;
        u64::from_str_radix(value, 16).ok()
    };
    Some([field("wd")?, field("ino")?, field("sdev")?, field("mask")?])
}

/// How many entries of directories are looked at, and for how long, while the program stands still.
const LOOKED_AT: usize = 20_000;
const PATIENCE: Duration = Duration::from_millis(100);

/// An inode number, and its device as the kernel knows it.
type Id = (u64, u64);

/// What is watched and not found yet, by inode number, and paths that lead to what is.
struct Search {
    wanted: HashMap<u64, Vec<u64>>,
    found: HashMap<Id, PathBuf>,
}

impl Search {
    /// Whether a path leads to something that is looked for.
    fn is_it(&mut self, path: &Path) -> bool {
        let Ok(it) = fs::metadata(path) else { return false };
        let Some(devices) = self.wanted.get_mut(&it.ino()) else { return false };
        let same = |device: &u64| {
            let device = libc::makedev((device >> 20) as u32, *device as u32 & 0xf_ffff);
            // Some file systems show another device than the kernel knows (btrfs).
            device == it.dev() || libc::major(device) == 0
        };
        let Some(at) = devices.iter().position(same) else { return false };
        self.found.insert((it.ino(), devices.swap_remove(at)), path.to_path_buf());
        if devices.is_empty() {
            self.wanted.remove(&it.ino());
        }
        true
    }
}

/// Paths that lead to what is watched.
fn find(watches: &[[u64; 4]], look: &Look<'_>) -> HashMap<Id, PathBuf> {
    let mut search = Search { wanted: HashMap::new(), found: HashMap::new() };
    for [_, inode, device, _] in watches {
        search.wanted.entry(*inode).or_default().push(*device);
    }
    let (near, far) = paths(look);
    let mut below: VecDeque<_> = near.into_iter().filter(|path| search.is_it(path)).collect();
    below.extend(far);
    let (mut looked_at, begin) = (0, Instant::now());
    while let Some(directory) = below.pop_front().filter(|_| !search.wanted.is_empty()) {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for entry in entries.flatten() {
            looked_at += 1;
            if looked_at > LOOKED_AT || begin.elapsed() > PATIENCE {
                return search.found;
            }
            let path = entry.path();
            let may_be = search.wanted.contains_key(&entry.ino());
            let is_directory = entry.file_type().is_ok_and(|it| it.is_dir());
            match may_be && search.is_it(&path) {
                true if is_directory => below.push_front(path),
                false if is_directory => below.push_back(path),
                _ => {}
            }
        }
    }
    search.found
}

/// Paths that a process may have had something watched by, and below which such may be.
fn paths(look: &Look<'_>) -> (BTreeSet<PathBuf>, Vec<PathBuf>) {
    let cwd = look.process.cwd().map(|cwd| cwd.path).unwrap_or_default();
    let files = look.tables.everywhere().map(|(_, fd)| PathBuf::from(&fd.target));
    let arguments = look.process.cmdline().unwrap_or_default().into_iter().map(|a| cwd.join(a));
    let arguments: Vec<_> = arguments.collect();
    let mut all = BTreeSet::new();
    for path in files.chain(arguments.iter().cloned()).filter(|path| path.is_absolute()) {
        all.extend(path.ancestors().map(Path::to_path_buf));
    }
    all.extend(cwd.ancestors().map(Path::to_path_buf));
    let mut below = arguments;
    below.push(cwd);
    (all, below)
}

fn is_unread(pid: Pid, fd: &Fd) -> bool {
    // Who may not look says that there is something.
    let Ok(ours) = raw::take_descriptor(pid, fd.number.cast_signed()) else { return true };
    let mut waiting: libc::c_int = 0;
    // SAFETY: the kernel writes one number.
    let asked = unsafe { libc::ioctl(ours.as_raw_fd(), libc::FIONREAD, &raw mut waiting) };
    asked == 0 && waiting != 0
}

fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let content = opening.content(record)?;
    let flags = libc::IN_CLOEXEC | libc::IN_NONBLOCK;
    // SAFETY: numbers only.
    let made = unsafe { libc::syscall(libc::SYS_inotify_init1, flags) };
    let inotify = owned(made).because(|| "cannot make an inotify instance")?;
    let mut watches = Vec::new();
    let mut rest = &content[..];
    while let Some((head, more)) = rest.split_first_chunk::<12>() {
        let [wd, mask, len] =
            [0, 4, 8].map(|at| u32::from_le_bytes([0, 1, 2, 3].map(|byte| head[at + byte])));
        let (path, more) = more.split_at_checked(len as usize).ok_or_else(damaged)?;
        watches.push((wd.cast_signed(), mask, path));
        rest = more;
    }
    watches.sort_unstable();
    for (wd, mask, path) in watches {
        if let Err(errno) = add(&inotify, wd, mask, path) {
            let path = String::from_utf8_lossy(path);
            opening.warnings.push(format!(
                "{path} is not watched any more by inotify descriptor {}: {}",
                record.fd,
                errno.desc()
            ));
        }
    }
    // It has noticed the watches that were passed over.
    let mut buffer = [0; 4096];
    while nix::unistd::read(&inotify, &mut buffer).is_ok_and(|len| len != 0) {}
    Ok(Origin::Own(inotify))
}

/// Sets a watch that gets the number `wd`: they are given in turn.
fn add(inotify: &OwnedFd, wd: i32, mask: u32, path: &[u8]) -> nix::Result<()> {
    let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    for _ in 0..FAR {
        // SAFETY: the kernel reads the C string.
        let got = unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), mask) };
        let got = Errno::result(got)?;
        if got == wd {
            return Ok(());
        }
        // SAFETY: numbers only.
        unsafe { libc::inotify_rm_watch(inotify.as_raw_fd(), got) };
        if got > wd {
            break;
        }
    }
    Err(Errno::ERANGE)
}

fn damaged() -> Error {
    Error::new("the image is damaged: an inotify instance is not whole")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_of_fdinfo() {
        let line = "wd:a ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8";
        assert_eq!(watch(line), Some([10, 0x9e7e, 0x80_0013, 0x0800_afce]));
        assert_eq!(watch("wd:1"), None);
    }
}
