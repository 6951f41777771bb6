// SPDX-License-Identifier: LGPL-2.1-only
//! inotify(7) instances; [`sought`] finds paths that lead to what is watched.
//!
//! # Safety
//! The system calls take numbers, C strings and buffers of ours.
#![allow(unsafe_code)]

use super::open::owned;
use super::sought::{self, Wanted, field};
use super::{Content, Kind, Look, Opening, Origin, Restored, Saving, fanotify, kind, watched};
use crate::error::{Because, Error, Result};
use crate::order;
use crate::proc::Pid;
use crate::proc::fds::Fd;
use crate::ptrace::raw;
use crate::resource::plan::{Arena, Orders, Step};
use ckpt_abi::image::{Descriptor, DescriptorKind};
use nix::errno::Errno;
use nix::libc;
use std::collections::HashSet;
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(super) const KIND: Kind = Kind { recognise, save, open };

/// [`Descriptor::extra`] of what is a fanotify(7) group.
pub(super) const FANOTIFY: u32 = 1;

/// Most numbers of watches that are passed over to come to a saved one.
const FAR: i32 = 1 << 16;

fn recognise(fd: &Fd, _: &Look<'_>) -> bool {
    fd.target == "anon_inode:inotify" || fanotify::is(fd)
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    if fanotify::is(fd) {
        saving.record.extra = FANOTIFY;
        fanotify::save(fd, look, saving);
        return Ok(());
    }
    let number = fd.number;
    let mut bytes = Vec::new();
    let lines = fd.extra.iter().filter(|(key, _)| key == "inotify").map(|(_, line)| line);
    let watch =
        |line: &String| Some(([field(line, "wd")?, field(line, "mask")?], Wanted::of(line)?));
    let (watches, wanted): (Vec<_>, Vec<_>) = lines.filter_map(watch).unzip();
    for ([wd, mask], path) in watches.into_iter().zip(sought::find(look, &wanted)) {
        let Some(path) = path else {
            saving.say(format!(
                "what inotify descriptor {number} watches as number {wd}: no path is known that leads there"
            ));
            continue;
        };
        let is = watched::identity(&path);
        let path = path.as_os_str().as_bytes();
        bytes.extend(
            [wd as u32, mask as u32, path.len() as u32].map(u32::to_le_bytes).as_flattened(),
        );
        bytes.extend(is.map(u64::to_le_bytes).as_flattened());
        bytes.extend(path);
    }
    if is_unread(look.process.pid(), fd) {
        saving.say(format!("what inotify descriptor {number} has noticed and nobody has read"));
    }
    saving.record.content = number;
    saving.content = Some(Content { index: number, bytes });
    Ok(())
}

/// Whether there are events that nobody has read.
pub(super) fn is_unread(pid: Pid, fd: &Fd) -> bool {
    // Who may not look says that there is something.
    let Ok(ours) = raw::take_descriptor(pid, fd.number.cast_signed()) else { return true };
    let mut waiting: libc::c_int = 0;
    // SAFETY: the kernel writes one number.
    let asked = unsafe { libc::ioctl(ours.as_raw_fd(), libc::FIONREAD, &raw mut waiting) };
    asked == 0 && waiting != 0
}

fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    if record.extra == FANOTIFY {
        return fanotify::open(record, opening);
    }
    let content = opening.content(record)?;
    let flags = libc::IN_CLOEXEC | libc::IN_NONBLOCK;
    // SAFETY: numbers only.
    let made = unsafe { libc::syscall(libc::SYS_inotify_init1, flags) };
    let inotify = owned(made).because(|| "cannot make an inotify instance")?;
    let mut watches = Vec::new();
    let mut rest = &content[..];
    while let Some((head, more)) = rest.split_first_chunk::<28>() {
        let ([wd, mask, len], is) = (watched::words(&head[..12]), watched::told(&head[12..]));
        let (path, more) = more.split_at_checked(len as usize).ok_or_else(damaged)?;
        watches.push((wd.cast_signed(), mask, path, is));
        rest = more;
    }
    order::by_key(&mut watches, |(wd, ..)| (wd.cast_unsigned().into(), 0));
    for (wd, mask, path, was) in watches {
        let path = Path::new(OsStr::from_bytes(path));
        let done = watched::watch_again(opening, path, was, |path| add(&inotify, wd, mask, path));
        opening.warnings.extend(watched::doubt(path, ("inotify", record.fd), done));
    }
    // It has noticed the watches that were passed over.
    let mut buffer = [0; 4096];
    while nix::unistd::read(&inotify, &mut buffer).is_ok_and(|len| len != 0) {}
    Ok(Origin::Own(inotify))
}

/// Bytes of the plan that a descriptor takes at most.
pub(crate) const ROOM: u64 = 512;
/// How many bytes are read of what the restorer itself has done.
const LITTLE: u64 = 64 << 10;

/// The instances and groups of a process that no other sees to.
fn led<'a>(
    all: &'a [Restored],
    led: &'a HashSet<u32>,
) -> impl Iterator<Item = (&'a Descriptor, &'a OwnedFd)> {
    let own = |one: &'a Restored| match &one.origin {
        Origin::Own(file) if kind(&one.record) == DescriptorKind::Inotify => {
            Some((&one.record, file)).filter(|(record, _)| led.contains(&record.fd))
        }
        _ => None,
    };
    all.iter().filter_map(own)
}

/// Takes out what they have noticed of the restart, whose files are all open. What others have done meanwhile goes with
/// it, as all has that was done before they were there.
pub(crate) fn forget_all(all: &[Restored], led_by: &HashSet<u32>) {
    let mut buffer = [0; 4096];
    for (_, file) in led(all, led_by) {
        // Files that fanotify(7) opens for us are closed with all that is not the program's.
        let mut again = |file| match nix::unistd::read(file, &mut buffer) {
            Ok(len) => len != 0,
            // An event is gone, if it was the first, for whose file there is no number.
            Err(errno) => !matches!(errno, Errno::EAGAIN | Errno::EBADF | Errno::EINVAL),
        };
        (0..MOST).take_while(|_| again(file)).for_each(drop);
    }
}

/// Most reads of what was noticed.
const MOST: u32 = 1 << 16;

/// Orders that do the same of what the restorer closes and unmaps; when these are made all numbers are the program's.
///
/// # Errors
/// There is no room in the arena.
pub(crate) fn forget(all: &[Restored], led_by: &HashSet<u32>, arena: &mut Arena) -> Result<Orders> {
    let mut orders = Orders::default();
    let Some(_) = led(all, led_by).next() else { return Ok(orders) };
    let buffer = arena.room(LITTLE, 64)?;
    let mut call = |number, args: &[u64]| orders.try_call(Step::Descriptor, number, args);
    for (record, _) in led(all, led_by) {
        let (fd, kept) = (u64::from(record.fd), u64::from(record.flags));
        let waits = kept & libc::O_NONBLOCK as u64 == 0;
        let set = |flags| [fd, libc::F_SETFL as u64, flags];
        if waits {
            call(libc::SYS_fcntl, &set(kept | libc::O_NONBLOCK as u64));
        }
        call(libc::SYS_read, &[fd, buffer, LITTLE]);
        if waits {
            call(libc::SYS_fcntl, &set(kept));
        }
    }
    if led(all, led_by).any(|(record, _)| fanotify::opens(record)) {
        let mut numbers: Vec<u32> = all.iter().map(|one| one.record.fd).collect();
        order::numbers(&mut numbers);
        let mut next = 0;
        for number in numbers.into_iter().chain([u32::MAX]) {
            if number > next {
                call(libc::SYS_close_range, &[next.into(), (number - 1).into(), 0]);
            }
            next = number.saturating_add(1);
        }
    }
    Ok(orders)
}

/// Sets a watch that gets the number `wd`: they are given in turn.
fn add(inotify: &OwnedFd, wd: i32, mask: u32, path: &CStr) -> nix::Result<()> {
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
