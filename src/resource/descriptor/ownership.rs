// SPDX-License-Identifier: LGPL-2.1-only
//! Who is told when a description is ready (O_ASYNC with fcntl(2), F_SETOWN_EX and F_SETSIG).
//!
//! # Safety
//! The system calls here take numbers, or pointers to two words of our own.
#![allow(unsafe_code)]

use super::locks::is_leased;
use super::{Look, Saving, file_type};
use crate::proc::Pid;
use crate::proc::fds::Fd;
use crate::resource::kinship::numbers::here;
use ckpt_abi::image::Descriptor;
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd};

/// [`Descriptor::owner_type`] where there is no owner.
pub(crate) const NOBODY: i32 = -1;

const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
const F_OWNER_TID: i32 = 0;
const F_OWNER_PID: i32 = 1;

/// Saves owner and signal.
pub(crate) fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) {
    // Nobody has anything to tell of a plain file but its lease.
    let tells = fd.flags.cast_signed() & libc::O_ASYNC != 0 || is_leased(fd);
    if !tells && file_type(fd.mode) == libc::S_IFREG {
        return;
    }
    let Ok(ours) = look.ours(fd) else {
        if tells {
            let path = saving.path.display();
            saving.say(format!("signals about {path} (F_SETOWN), which nobody may look for here"));
        }
        return;
    };
    let mut owner = [0i32; 2];
    let at: *mut i32 = owner.as_mut_ptr();
    // SAFETY: the kernel writes struct f_owner_ex, two words.
    let known = unsafe { libc::fcntl(ours.as_raw_fd(), F_GETOWN_EX, at) } == 0;
    let [kind, id] = owner;
    if !known || id == 0 {
        return;
    }
    let is_here = look.tables.of.iter().any(|table| table.pid.get() == id);
    if !is_here || !matches!(kind, F_OWNER_TID | F_OWNER_PID) {
        let path = saving.path.display();
        saving.say(format!("signals for another process or thread about {path} (F_SETOWN)"));
        return;
    }
    // The kernel tells of it nowhere, but makes the process the owner (fs/notify/dnotify/dnotify.c).
    if !tells && file_type(fd.mode) == libc::S_IFDIR {
        let path = saving.path.display();
        saving.say(format!("the notices of changes in {path} (fcntl(2), F_NOTIFY)"));
    }
    // SAFETY: numbers only.
    let signal = unsafe { libc::fcntl(ours.as_raw_fd(), F_GETSIG) };
    (saving.record.owner_type, saving.record.owner) = (kind, id.unsigned_abs());
    saving.record.signal = signal.max(0).unsigned_abs();
}

/// Gives a description the owner that it had, whoever of those that have it does so; of the only process of an image that
/// is `alone`. Only with all signals blocked: what comes before the program's handlers are there would end us.
pub(crate) fn restore(fd: BorrowedFd<'_>, record: &Descriptor, alone: bool) {
    if record.owner_type == NOBODY {
        return;
    }
    let id = if alone { Pid::own() } else { here(Pid::of_word(record.owner)) };
    let owner = [record.owner_type, id.get()];
    let at: *const i32 = owner.as_ptr();
    // SAFETY: the kernel reads struct f_owner_ex, two words.
    let told = unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, at) };
    // SAFETY: numbers only.
    let signal = unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, record.signal) };
    debug_assert!(Errno::result(told).and(Errno::result(signal)).is_ok());
}
