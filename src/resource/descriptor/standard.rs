// SPDX-License-Identifier: LGPL-2.1-only
//! Standard streams, and what else is one of them: what the restarter has there takes their place.

use super::{
    Content, Kind, Look, Opening, Origin, Saving, access, file_type, pipe, pty, socket, terminal,
};
use crate::error::Result;
use crate::proc::Pid;
use crate::proc::fds::Fd;
use crate::ptrace::borrowed;
use ckpt_abi::image::{Descriptor, DescriptorKind};
use nix::libc;

pub(super) const KIND: Kind = Kind { recognise, save, open };

/// Which of 0, 1 and 2 a terminal, pipe or socket is: of a pipe or socket that of a standard stream of the first
/// process, now or when that began, whatever process of the tree has it under whatever number: shells keep their
/// standard output under a high number while a command is redirected. Another pipe under 0, 1 or 2 is none: it would
/// read or write what is not meant for it. A terminal may also be the process's own.
pub(crate) fn number(fd: &Fd, look: &Look<'_>) -> Option<u32> {
    let tty = file_type(fd.mode) == libc::S_IFCHR && terminal::is_terminal(fd.rdev);
    if !tty && !matches!(file_type(fd.mode), libc::S_IFIFO | libc::S_IFSOCK) {
        return None;
    }
    if !tty {
        if is_own(fd, look) {
            return None;
        }
        // Where nobody is at the other end of what it has taken for one itself, such as a here-document, nothing comes.
        let now = || (!pipe::is_last(fd, look.process.pid())).then(|| look.tables.standard_now(fd));
        return look.tables.standard(fd).or_else(|| now().flatten());
    }
    if fd.number < 3 {
        return Some(fd.number);
    }
    let twin = |s: &&Fd| s.number < 3 && s.rdev == fd.rdev && file_type(s.mode) == libc::S_IFCHR;
    let then = look.at_start.iter().position(|s| *s == at_start(fd));
    look.all.iter().find(twin).map(|twin| twin.number).or(then.map(|n| n as u32))
}

/// What the first process's standard streams are compared with.
pub(crate) fn at_start(fd: &Fd) -> [u64; 3] {
    [fd.device, fd.inode, u64::from(fd.flags) & libc::O_ACCMODE as u64]
}

/// Whether it is a pipe, a connection or a terminal that the program made itself and holds both ends of. What it was given as one
/// end that is both is not.
fn is_own(fd: &Fd, look: &Look<'_>) -> bool {
    let both = pipe::has_both_ends(fd, look)
        || socket::has_both_ends(fd, look)
        || pty::has_both_ends(fd, look);
    let given = || access(fd.flags) == libc::O_RDWR && look.at_start.contains(&at_start(fd));
    both && !given()
}

/// [`Descriptor::extra`] of a standard input whose unread bytes are in the image.
pub(crate) const UNREAD: u32 = 1;
/// What a checkpoint goes without whose standard input is written to by others.
pub(crate) const LATER: &str = "what is written to the pipe of standard input from now on";

/// Whether a descriptor is such a one.
pub(crate) fn is_unread(record: &Descriptor) -> bool {
    super::kind(record) == DescriptorKind::Stdio && record.extra == UNREAD
}

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    number(fd, look).is_some()
}

/// Whether this is the first descriptor of the pipe of standard input, which may be under another number than 0.
fn is_input(fd: &Fd, look: &Look<'_>) -> bool {
    let reads = |(_, f): &(Pid, &Fd)| {
        file_type(f.mode) == libc::S_IFIFO && access(f.flags) != libc::O_WRONLY
    };
    number(fd, look) == Some(0)
        && look
            .tables
            .of_file(fd)
            .find(reads)
            .is_some_and(|(pid, first)| (pid, first.number) == (look.process.pid(), fd.number))
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    saving.record.value = u64::from(number(fd, look).unwrap_or(0));
    if !is_input(fd, look) {
        return Ok(());
    }
    let why = || "cannot look into the pipe of standard input".to_owned();
    let ours = match borrowed::look_into(look.process.pid(), fd.number, why) {
        Ok(ours) => ours,
        Err(error) => {
            saving.say(format!("what is in the pipe of standard input, and comes: {error}"));
            return Ok(());
        }
    };
    let bytes = pipe::peek(&ours)?.concat();
    if !pipe::is_last(fd, look.process.pid()) {
        let there = match bytes.len() {
            0 => "a restart does not find it".into(),
            n => format!("{n} bytes that are in it already are saved"),
        };
        saving.say(format!("what is written to the pipe of standard input from now on ({there})"));
    }
    if !bytes.is_empty() {
        (saving.record.extra, saving.record.content) = (UNREAD, fd.number);
        saving.content = Some(Content { index: fd.number, bytes });
    }
    Ok(())
}

fn open(record: &Descriptor, _: &mut Opening<'_>) -> Result<Origin> {
    Ok(Origin::Standard(record.value as u32))
}
