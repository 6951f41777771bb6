// SPDX-License-Identifier: LGPL-2.1-only
//! POSIX message queues (mq_overview(7)). A queue is the kernel's until mq_unlink(3) or the next boot, with
//! the messages in it; a restart opens it again by its name.
//!
//! # Safety
//! The system call reads one C string.
#![allow(unsafe_code)]

use super::open::owned;
use super::{Kind, Look, Opening, Origin, Saving, file_type};
use crate::error::{Because, Error, Result};
use crate::proc::fds::Fd;
use ckpt_abi::image::Descriptor;
use nix::libc;
use nix::sys::statfs::{FsType, statfs};
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;

pub(super) const KIND: Kind = Kind { recognise, save, open };

/// MQUEUE_MAGIC (ipc/mqueue.c).
const MAGIC: FsType = FsType(0x1980_0202);

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    // Its files are regular ones (ipc/mqueue.c, mqueue_get_inode).
    let named = file_type(fd.mode) == libc::S_IFREG && fd.target.as_bytes().starts_with(b"/");
    let there = || statfs(look.process.fd(fd.number).as_str());
    named && there().is_ok_and(|fs| fs.filesystem_type() == MAGIC)
}

/// Whether a queue is to tell a process of its first message: "QSIZE:0 NOTIFY:0 SIGNO:10 NOTIFY_PID:4711" (ipc/mqueue.c).
/// What it is to get with the signal nobody can see.
fn tells(fd: &Fd, look: &Look<'_>) -> bool {
    let text = fs::read_to_string(look.process.fd(fd.number)).unwrap_or_default();
    let whom = text.split_once("NOTIFY_PID:").map(|(_, whom)| whom.trim().parse());
    whom == Some(Ok(look.process.pid().word()))
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    if fd.deleted || fd.nlink == 0 {
        saving.lose("a message queue that was removed");
        return Ok(());
    }
    let path = saving.path.display();
    saving.say(format!(
        "the messages in the message queue {path}: they stay in the kernel, until the next boot at most"
    ));
    if tells(fd, look) {
        let path = saving.path.display();
        saving.say(format!("what the message queue {path} is to tell it (mq_notify(2))"));
    }
    Ok(())
}

fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let path = opening.sources.name(record);
    let name = path.as_bytes().rsplit(|b| *b == b'/').next().unwrap_or_default();
    let name = CString::new(name).map_err(|_| Error::new("a damaged message queue"))?;
    let flags = record.flags.cast_signed() & (libc::O_ACCMODE | libc::O_NONBLOCK) | libc::O_CLOEXEC;
    let none: *const u8 = std::ptr::null();
    // SAFETY: the kernel reads the C string; without O_CREAT it looks at nothing else.
    let result = unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, 0, none) };
    let why = || format!("cannot open the message queue {}", path.display());
    owned(result).map(Origin::Own).because(why)
}
