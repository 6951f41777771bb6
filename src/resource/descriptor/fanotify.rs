// SPDX-License-Identifier: LGPL-2.1-only
//! fanotify(7) groups: fdinfo has the flags that they were made with and all marks (fs/notify/fdinfo.c).
//!
//! Of a class that may have permission events (FAN_OPEN_PERM) none is saved: whoever opens a file there waits for the
//! program's answer, also a dumper that holds it stopped, and a restart that has not yet made it.
//!
//! # Safety
//! The system calls take numbers and C strings.
#![allow(unsafe_code)]

use super::inotify::{FANOTIFY, is_unread};
use super::lost::stand_in;
use super::open::owned;
use super::sought::{self, Wanted, device, field};
use super::{Content, Look, Opening, Origin, Saving, watched};
use crate::error::{Because, Error, Kind, Result};
use crate::proc::Process;
use crate::proc::fds::Fd;
use crate::proc::status::CAP_SYS_ADMIN;
use crate::resource::kinds;
use crate::rights;
use ckpt_abi::image::Descriptor;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use std::ffi::{CStr, OsStr};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// FAN_MARK_… and internal bits that the kernel shows and does not take.
const MARK_MOUNT: u32 = 0x10;
const MARK_IGNORED_MASK: u32 = 0x20;
const MARK_SURVIVES: u32 = 0x40;
const MARK_FILESYSTEM: u32 = 0x100;
const MARK_IGNORE: u32 = 0x400;
/// FANOTIFY_UNPRIV: a group that was made without CAP_SYS_ADMIN does not tell which processes others are. The kernel keeps
/// this to itself; who may not make another has made such a one.
const UNPRIVILEGED: u32 = 1 << 31;
/// FANOTIFY_USER_INIT_FLAGS.
const ANYBODYS: u32 = 0x1e03;
const OVERFLOW: u32 = 0x4000;

/// What the link of such a descriptor says.
const LINK: &str = "anon_inode:[fanotify]";
/// FAN_OPEN_PERM, FAN_ACCESS_PERM, FAN_OPEN_EXEC_PERM and FAN_PRE_ACCESS.
const PERMISSION: u32 = 0x17_0000;

pub(super) fn is(fd: &Fd) -> bool {
    fd.target == LINK
}

/// Whether it may have made any group.
fn may_make_any(process: &Process) -> bool {
    process.main_status().is_ok_and(|status| status.may(CAP_SYS_ADMIN))
}

/// Refuses a process by whose leave others open files, before it is touched.
///
/// # Errors
/// Of [`Kind::Obstacles`]: it has such a group.
pub(crate) fn refuse(process: &Process) -> Result<()> {
    // Who may not look may not stop it either.
    let groups = process.linked(LINK).unwrap_or_default();
    match groups.iter().find_map(obstacle) {
        Some(what) => {
            let text = format!("process {} cannot be saved: {what}", process.pid());
            Err(Error::new(text).of(Kind::Obstacles).hint(kinds::advice(&what).unwrap_or_default()))
        }
        None => Ok(()),
    }
}

/// What is in the way of saving such a group. One of the class of notices has no permission events (fanotify_init(2)).
fn obstacle(fd: &Fd) -> Option<String> {
    const CLASSES: u32 = libc::FAN_CLASS_CONTENT | libc::FAN_CLASS_PRE_CONTENT;
    let lines = fd.extra.iter().filter(|(key, _)| key == "fanotify");
    let flags = lines.filter_map(|(_, line)| field(line, "flags"));
    let asks = flags.into_iter().any(|flags| flags as u32 & CLASSES != 0);
    asks.then(|| {
        format!(
            "fanotify descriptor {} is asked when others open files (FAN_CLASS_CONTENT)",
            fd.number
        )
    })
}

pub(super) fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) {
    let number = fd.number;
    let lines = || fd.extra.iter().filter(|(key, _)| key == "fanotify").map(|(_, line)| line);
    let made = lines().find_map(|line| Some([field(line, "event-flags")?, field(line, "flags")?]));
    let Some([events, flags]) = made else { return saving.lose("an object of the kernel") };
    saving.obstacles.extend(obstacle(fd));
    saving.record.value = events << 32 | flags & !u64::from(UNPRIVILEGED);
    let mut is_privileged = flags as u32 & !ANYBODYS != 0 || may_make_any(look.process);
    let marks: Vec<_> = lines().filter(|line| field(line, "mask").is_some()).collect();
    let wanted: Vec<_> = marks.iter().filter_map(|line| Wanted::of(line)).collect();
    let (mut found, mounts) = (sought::find(look, &wanted).into_iter(), sought::mounts(look));
    let mut bytes = Vec::new();
    for line in marks {
        let mount = |is: &dyn Fn(&sought::Mount) -> bool| {
            mounts.iter().find(|mount| is(mount)).map(|mount| mount.point.clone())
        };
        let (how, path): (u32, Option<PathBuf>) = match field(line, "mnt_id") {
            Some(id) => (MARK_MOUNT, mount(&|mount| mount.id == id)),
            None if Wanted::of(line).is_some() => (0, found.next().flatten()),
            None => (MARK_FILESYSTEM, mount(&|mount| device(line) == Some(mount.device))),
        };
        let Some(path) = path else {
            saving.say(format!("what fanotify descriptor {number} watches ({line}): no path is known that leads there"));
            continue;
        };
        let bits = |name| field(line, name).unwrap_or(0) as u32;
        // A mount point is not asked: its server may be gone.
        let is = if how == 0 { watched::identity(&path) } else { [0; 2] };
        is_privileged |= how != 0;
        let path = path.as_os_str().as_bytes();
        let head = [how | bits("mflags"), bits("mask"), bits("ignored_mask"), path.len() as u32];
        bytes.extend(head.map(u32::to_le_bytes).as_flattened());
        bytes.extend(is.map(u64::to_le_bytes).as_flattened());
        bytes.extend(path);
    }
    if !is_privileged {
        saving.record.value |= u64::from(UNPRIVILEGED);
    }
    if is_unread(look.process.pid(), fd) {
        saving.say(format!("what fanotify descriptor {number} has noticed and nobody has read"));
    }
    saving.record.content = number;
    saving.content = Some(Content { index: number, bytes });
}

/// Whether reading of it opens files: where it does not report by handles (FANOTIFY_FID_BITS), or with a pidfd.
pub(super) fn opens(record: &Descriptor) -> bool {
    let flags = record.value as u32;
    record.extra == FANOTIFY && (flags & 0x1e00 == 0 || flags & 0x80 != 0)
}

pub(super) fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let content = opening.content(record)?;
    let fd = record.fd;
    // The group shows them for ever: ours are set when it is there.
    let flags = record.value as u32 & !UNPRIVILEGED;
    let make = || {
        // SAFETY: numbers only.
        owned(unsafe { libc::syscall(libc::SYS_fanotify_init, flags, record.value >> 32) })
    };
    let made = match record.value as u32 & UNPRIVILEGED {
        0 => make(),
        _ => rights::as_anybody(make)?,
    };
    let group = match made {
        Ok(group) => group,
        Err(errno) => {
            let why = errno.desc();
            opening
                .warnings
                .push(format!("nothing is watched any more by fanotify descriptor {fd}: {why}"));
            return stand_in().map(Origin::Own);
        }
    };
    for ours in [FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)] {
        fcntl(&group, ours).because(|| "cannot change a fanotify group")?;
    }
    let mut rest = &content[..];
    while let Some((head, more)) = rest.split_first_chunk::<32>() {
        let ([how, mask, ignored, len], was) = (watched::words(head), watched::told(&head[16..]));
        let damaged = || Error::new("the image is damaged: a fanotify group is not whole");
        let (path, more) = more.split_at_checked(len as usize).ok_or_else(damaged)?;
        rest = more;
        let mark = |how: u32, mask: u32, name: &CStr| {
            let how = how | libc::FAN_MARK_ADD;
            let mask = u64::from(mask & !(OVERFLOW | PERMISSION));
            let (group, at) = (group.as_raw_fd(), libc::AT_FDCWD);
            // SAFETY: the kernel reads the C string.
            Errno::result(unsafe {
                libc::syscall(libc::SYS_fanotify_mark, group, how, mask, at, name.as_ptr())
            })
        };
        let kind = how & !(MARK_SURVIVES | MARK_IGNORE);
        let ignores = if how & MARK_IGNORE != 0 { how } else { how | MARK_IGNORED_MASK };
        let path = Path::new(OsStr::from_bytes(path));
        let set = watched::watch_again(opening, path, was, |name| {
            let wanted = [(kind, mask), (ignores, ignored)].into_iter();
            let mut wanted = wanted.filter(|(_, mask)| *mask != 0);
            wanted.try_for_each(|(how, mask)| mark(how, mask, name).map(drop))
        });
        opening.warnings.extend(watched::doubt(path, ("fanotify", fd), set));
    }
    Ok(Origin::Own(group))
}
