//! Standard streams, and what else is one of them: what the restarter has there takes their place.

use super::{Content, Kind, Look, Opening, Origin, Saving, access, file_type, pipe, terminal};
use crate::error::{Because, Result};
use crate::proc::fds::Fd;
use crate::ptrace::raw;
use ckpt_abi::image::Descriptor;
use nix::libc;

pub(super) const KIND: Kind = Kind { recognise, save, open };

/// Which of 0, 1 and 2 a terminal, pipe or socket is: its own number, that of a standard stream it
/// is a duplicate of, or that of one which it was when the program began: shells keep their
/// standard output under a high number while a command is redirected.
pub fn number(fd: &Fd, look: &Look<'_>) -> Option<u32> {
    let tty = file_type(fd.mode) == libc::S_IFCHR && terminal::is_terminal(fd.rdev);
    if !tty && !matches!(file_type(fd.mode), libc::S_IFIFO | libc::S_IFSOCK) {
        return None;
    }
    if fd.number < 3 {
        return (!is_own(fd, look)).then_some(fd.number);
    }
    let twin = |s: &&Fd| {
        let same = (s.device, s.inode, access(s.flags)) == (fd.device, fd.inode, access(fd.flags));
        let terminal = tty && s.rdev == fd.rdev && file_type(s.mode) == libc::S_IFCHR;
        s.number < 3 && (same || terminal) && !is_own(s, look)
    };
    let then = look.at_start.iter().position(|s| *s == at_start(fd));
    look.all.iter().find(twin).map(|twin| twin.number).or(then.map(|n| n as u32))
}

fn at_start(fd: &Fd) -> [u64; 3] {
    [fd.device, fd.inode, u64::from(fd.flags) & libc::O_ACCMODE as u64]
}

/// Whether a standard stream is a pipe that the program made itself and holds both ends of.
fn is_own(fd: &Fd, look: &Look<'_>) -> bool {
    pipe::has_both_ends(fd, look.all) && !look.at_start.contains(&at_start(fd))
}

/// [`Descriptor::extra`] of a standard input whose unread bytes are in the image.
pub const UNREAD: u32 = 1;

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    number(fd, look).is_some()
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    saving.record.value = u64::from(number(fd, look).unwrap_or(0));
    if fd.number != 0 || file_type(fd.mode) != libc::S_IFIFO || access(fd.flags) == libc::O_WRONLY {
        return Ok(());
    }
    let why = || "cannot look into the pipe of standard input";
    let ours = raw::take_descriptor(look.pid, 0).because(why)?;
    let bytes = pipe::peek(&ours)?.concat();
    if bytes.is_empty() {
        return Ok(());
    }
    if !pipe::is_last(fd, look.pid) {
        saving.say(format!(
            "what is written to the pipe of standard input from now on ({} bytes that are in it already are saved)",
            bytes.len()
        ));
    }
    (saving.record.extra, saving.record.content) = (UNREAD, 0);
    saving.content = Some(Content { index: 0, bytes });
    Ok(())
}

fn open(record: &Descriptor, _: &mut Opening<'_>) -> Result<Origin> {
    Ok(Origin::Standard(record.value as u32))
}
