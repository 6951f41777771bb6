// SPDX-License-Identifier: LGPL-2.1-only
//! Opening everything that a program had open, in the restarting process.
//!
//! # Safety
//! Numbers that system calls have just given become descriptors; the standard streams are borrowed
//! for single calls; an ioctl(2) is about a word of ours.
#![allow(unsafe_code)]

use super::objects::Objects;
use super::{Kind, Place, kind, numbers, of, pipe, pty, regular, socket};
use crate::error::{Because, Error, Result};
use crate::proc::fds::shown;
use crate::rights::{Rights, open_for};
use ckpt_abi::image::{Descriptor, DescriptorKind, Text};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Status flags that reopening a file keeps; what only matters at the first open is not among
/// them (O_CREAT, O_EXCL, O_TRUNC).
const KEPT: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_DSYNC
    | libc::O_SYNC
    | libc::O_DIRECT
    | libc::O_DIRECTORY
    | libc::O_NOATIME
    | libc::O_PATH;

/// What a descriptor of the program will be a duplicate of.
pub(crate) enum Origin {
    /// A description that was made for it.
    Own(OwnedFd),
    /// The restarter's 0, 1 or 2.
    Standard(u32),
    /// That of the program's descriptor of this number, which is restored before.
    Shared(u32),
    /// That of a descriptor of an earlier process of the tree.
    Elsewhere(Place),
}

/// A descriptor of the restarting process that will become one of the program.
pub(crate) struct Restored {
    /// Its record.
    pub record: Descriptor,
    /// What it is now.
    pub origin: Origin,
}

/// Where the restored descriptors come from, besides the file system.
pub(crate) trait Sources {
    /// A string of the image.
    fn text(&self, text: Text) -> OsString;
    /// With whose rights the files of a process are opened, if not with ours.
    fn rights(&self, process: u32) -> Option<&Rights>;
    /// A path of the image, on this machine.
    fn place(&self, path: Text) -> PathBuf;
    /// What a descriptor is called in the image.
    fn name(&self, record: &Descriptor) -> OsString {
        self.text(record.path)
    }
    /// Its path on this machine.
    fn path(&self, record: &Descriptor) -> PathBuf {
        self.place(record.path)
    }
    /// What is in it, of a descriptor of process `process` of the image.
    fn content(&self, process: u32, index: u32) -> Result<Vec<u8>>;
    /// What is said before a failure of a process, which names it among several.
    fn whose(&self, process: u32) -> &str;
    /// What a port of the image is on this machine.
    fn port(&self, port: u16) -> u16;
    /// Whether TCP connections to others go on that were saved so.
    fn keeps_tcp(&self) -> bool;
    /// Whether this is only to see if a program that still runs could be restarted.
    fn is_rehearsal(&self) -> bool;
    /// Gives a new file the size and the content of an object.
    fn fill(&self, object: u32, file: &File) -> Result<()>;
    /// Gives the content of an object to memory of zeros.
    fn fill_memory(&self, object: u32, memory: &mut [u8]) -> Result<()>;
}

/// A restart that is opening descriptors.
pub(crate) struct Opening<'a> {
    /// Names and contents.
    pub sources: &'a dyn Sources,
    /// Which process of the image has what is being opened.
    pub process: u32,
    /// Sentences for the restarter.
    pub warnings: Vec<String>,
    /// Files whose content is in the image.
    pub objects: &'a mut Objects,
    /// Pipes that were made so far.
    pub pipes: pipe::Made,
    /// And pseudo-terminals.
    pub(crate) ptys: pty::Made,
    /// The descriptors of all processes of the image.
    pub all: &'a [&'a [Descriptor]],
    /// The sockets of all of them, which are made together.
    pub(crate) sockets: Option<socket::Made>,
}

impl Opening<'_> {
    /// What is in a descriptor of the process.
    pub(crate) fn content(&self, record: &Descriptor) -> Result<Vec<u8>> {
        self.sources.content(self.process, record.content)
    }

    /// Does something with the rights of the process.
    pub(crate) fn acting<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        match self.sources.rights(self.process) {
            Some(rights) => rights.with(work),
            None => Ok(work()),
        }
    }

    /// [`by_path`], for the process.
    pub(crate) fn by_path(&self, record: &Descriptor, path: &Path) -> Result<OwnedFd> {
        let rights = self.sources.rights(self.process);
        open_for(rights, path, (record.device, record.inode), || by_path(record, path))
    }
}

/// A file that could not be opened, and that the program may not want.
#[derive(Clone)]
pub(crate) struct Missing {
    /// Its record.
    pub record: Descriptor,
    /// Why it could not be.
    pub errno: i32,
    /// Where it was.
    pub path: PathBuf,
}

/// Opens everything that the processes of an image had open, by process; warnings are sentences. Where `missing` is
/// given, regular files of the first that cannot be opened go there, and /dev/null takes their numbers. With the sockets
/// that are to be finished then.
///
/// # Errors
/// All files that are missing or forbidden, at once; more descriptors than the limit allows.
pub(crate) fn open_all(
    processes: &[&[Descriptor]],
    sources: &dyn Sources,
    objects: &mut Objects,
    warnings: &mut Vec<String>,
    mut missing: Option<&mut Vec<Missing>>,
) -> Result<(Vec<Vec<Restored>>, Option<socket::Made>)> {
    let pipes = pipe::Made::new();
    let warned = Vec::new();
    let mut opening = Opening {
        sources,
        process: 0,
        objects,
        warnings: warned,
        pipes,
        ptys: pty::Made::new(),
        all: processes,
        sockets: None,
    };
    let (mut all, mut failures, mut said) = (Vec::new(), Vec::new(), Vec::new());
    // EADDRINUSE if there is nothing but that.
    let mut taken = Errno::EADDRINUSE as i32;
    let mut led = HashSet::new();
    numbers::check(processes)?;
    for (number, records) in (0..).zip(processes) {
        let mut restored: Vec<Restored> = Vec::new();
        opening.process = number;
        for record in *records {
            let leader = Place { process: record.shared_process, fd: record.shared_with };
            let own = Place { process: number, fd: record.fd };
            let origin = match leader {
                _ if leader == own || !led.contains(&leader) => open_one(record, &mut opening),
                Place { process, fd } if process == number => Ok(Origin::Shared(fd)),
                elsewhere => Ok(Origin::Elsewhere(elsewhere)),
            };
            match origin {
                Ok(origin) => {
                    led.insert(own);
                    restored.push(Restored { record: *record, origin });
                }
                Err(e) if number == 0 && replaceable(record) && missing.is_some() => {
                    let path = sources.path(record);
                    let missed = Missing { record: *record, errno: e.errno(), path };
                    missing.as_deref_mut().into_iter().for_each(|list| list.push(missed.clone()));
                }
                Err(e) => {
                    // Whoever shares it fails the same way.
                    let failure = format!("descriptor {}: {e}", shown(record.fd));
                    if !failures.contains(&failure) {
                        if e.errno() != taken {
                            taken = 0;
                        }
                        said.push(format!("{}{failure}", sources.whose(number)));
                        failures.push(failure);
                    }
                }
            }
        }
        for Missing { record, .. } in missing.take().into_iter().flatten() {
            restored.push(Restored { record: *record, origin: Origin::Own(stand_in()?) });
        }
        all.push(restored);
    }
    pty::finish(&opening.ptys);
    warnings.append(&mut opening.warnings);
    let error = || Error::new(said.join("; ")).with_errno(taken);
    if said.is_empty() { Ok((all, opening.sockets)) } else { Err(error()) }
}

fn open_one(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let Kind { open, .. } = of(kind(record));
    open(record, opening)
}

/// Keeps the number of a missing file: what the restart callbacks open must not get it.
fn stand_in() -> Result<OwnedFd> {
    File::open("/dev/null").map(OwnedFd::from).because(|| "cannot open /dev/null")
}

/// Whether the program's restart callbacks may name another file in the place of this one.
fn replaceable(record: &Descriptor) -> bool {
    kind(record) == DescriptorKind::Path && super::file_type(record.mode) == libc::S_IFREG
}

/// The flags with which a file is opened once more. Of O_TMPFILE, which is not for a file that has a name by now, the
/// kernel shows O_DIRECTORY, too.
pub(crate) fn kept(record: &Descriptor) -> OFlag {
    let directory = super::file_type(record.mode) == libc::S_IFDIR;
    let not = if directory { 0 } else { libc::O_DIRECTORY };
    OFlag::from_bits_retain(record.flags.cast_signed() & KEPT & !not)
}

/// Opens a path with the flags of a record, and sees that it is the same type of file.
pub(crate) fn by_path(record: &Descriptor, path: &Path) -> Result<OwnedFd> {
    let link = super::file_type(record.mode) == libc::S_IFLNK;
    let flags = kept(record)
        | OFlag::O_CLOEXEC
        | OFlag::O_NOCTTY
        | if link { OFlag::O_NOFOLLOW } else { OFlag::empty() };
    let nofollow = OFlag::from_bits_retain(record.flags.cast_signed()) & OFlag::O_NOFOLLOW;
    let mut opened = nix::fcntl::open(path, flags | nofollow, Mode::empty());
    // By --map-path, say.
    if matches!(opened, Err(Errno::ELOOP)) && !link {
        opened = nix::fcntl::open(path, flags, Mode::empty());
    }
    if matches!(opened, Err(Errno::EPERM)) && flags.contains(OFlag::O_NOATIME) {
        // Only the owner of a file may ask for it.
        opened = nix::fcntl::open(path, flags - OFlag::O_NOATIME, Mode::empty());
    }
    let file = opened.because(|| format!("cannot open {}", path.display()))?;
    regular::check_type(&file, record, path)?;
    Ok(file)
}

/// Another description of the file behind a descriptor of ours, as it was opened in the program.
pub(crate) fn reopened(file: &OwnedFd, flags: u32) -> Result<OwnedFd> {
    let kept = flags.cast_signed() & KEPT & !libc::O_DIRECTORY;
    let flags = OFlag::from_bits_retain(kept) | OFlag::O_CLOEXEC;
    let again = nix::fcntl::open(&place(file), flags, Mode::empty());
    again.because(|| "cannot open a file a second time (/proc/self/fd)")
}

/// A path of what is behind a descriptor of ours.
pub(crate) fn place(file: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// An ioctl(2) whose argument is a word that the kernel reads or writes.
pub(super) fn ioctl(fd: &OwnedFd, request: libc::Ioctl, word: &mut u64) -> nix::Result<()> {
    let at: *mut u64 = word;
    // SAFETY: the callers' requests are about eight bytes.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request, at) }).map(drop)
}

/// Sets the offset.
pub(crate) fn seek(file: &OwnedFd, record: &Descriptor, path: &Path) -> Result<()> {
    if super::only_names(record.flags) {
        return Ok(());
    }
    let to = record.position.cast_signed();
    nix::unistd::lseek(file, to, nix::unistd::Whence::SeekSet)
        .map(drop)
        .because(|| format!("cannot seek in {}", path.display()))
}

/// One of our standard streams, if it is open.
pub(crate) fn standard(number: u32) -> Option<BorrowedFd<'static>> {
    // SAFETY: nobody closes the restarter's standard streams before the point of no return.
    let fd = unsafe { BorrowedFd::borrow_raw(number.cast_signed()) };
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).is_ok().then_some(fd)
}

/// The description that a place stands for, which was opened for the first place that has it.
pub(crate) fn behind(all: &[Vec<Restored>], place: Place) -> Option<(&Descriptor, BorrowedFd<'_>)> {
    let at = all.get(place.process as usize)?.iter().find(|r| r.record.fd == place.fd)?;
    match &at.origin {
        Origin::Own(file) => Some((&at.record, file.as_fd())),
        Origin::Shared(fd) => behind(all, Place { fd: *fd, ..place }),
        Origin::Elsewhere(leader) => behind(all, *leader),
        Origin::Standard(number) => standard(*number).map(|file| (&at.record, file)),
    }
}

/// What a system call has made for us.
pub(crate) fn owned(result: i64) -> nix::Result<OwnedFd> {
    let fd = Errno::result(result)? as i32;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
