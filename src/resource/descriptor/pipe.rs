// SPDX-License-Identifier: LGPL-2.1-only
//! Pipes both of whose ends are in the program, and FIFOs, with what is in them.

use super::open::reopened;
use super::{Content, Kind, Look, Opening, Origin, Saving, access, device, file_type};
use crate::error::{Because, Error, Result};
use crate::proc::Pid;
use crate::proc::fds::Fd;
use crate::ptrace::borrowed;
use ckpt_abi::image::Descriptor;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, read, write};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

pub(super) const KIND: Kind = Kind { recognise, save, open };

/// In [`Descriptor::extra`]: the content of the pipe is packets (pipe(2), O_DIRECT).
const PACKETS: u32 = 1;
/// The same of a FIFO's reading end that nobody has written to since it was opened: without a writer it is at its end, but
/// does not answer POLLHUP (fs/pipe.c, pipe_poll).
const QUIET: u32 = 2;
/// The same of a FIFO that was removed.
const REMOVED: u32 = 4;

/// Whether the processes of the checkpoint hold both ends of the pipe behind `fd`.
pub(crate) fn has_both_ends(fd: &Fd, look: &Look<'_>) -> bool {
    let end =
        |wanted: &[i32]| look.tables.of_file(fd).any(|(_, f)| wanted.contains(&access(f.flags)));
    file_type(fd.mode) == libc::S_IFIFO
        && end(&[libc::O_RDONLY, libc::O_RDWR])
        && end(&[libc::O_WRONLY, libc::O_RDWR])
}

/// A pipe with a name can be opened again whoever has its other end; a removed one is like one that has none.
fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    file_type(fd.mode) == libc::S_IFIFO
        && (look.path(fd).is_some() || has_both_ends(fd, look) || is_last(fd, look.process.pid()))
}

/// Whether nobody has the other end of a pipe any more: then a restart makes one of which the same is true.
pub(crate) fn is_last(fd: &Fd, pid: Pid) -> bool {
    hung_up(fd, pid) == Some(true)
}

/// Whether an end of a pipe answers POLLHUP or POLLERR, if anybody may ask.
fn hung_up(fd: &Fd, pid: Pid) -> Option<bool> {
    let ours = borrowed::take(pid, fd.number.cast_signed()).ok()?;
    let mut polled = [PollFd::new(ours.as_fd(), PollFlags::empty())];
    poll(&mut polled, PollTimeout::ZERO).ok()?;
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    polled[0].revents().map(|events| events.intersects(gone))
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    saving.path = match look.path(fd) {
        Some(path) => path.into(),
        None if fd.nlink == 0 && fd.target.as_encoded_bytes().starts_with(b"/") => {
            saving.record.extra = REMOVED;
            fd.target.clone()
        }
        None => format!("pipe:[{}]", fd.inode).into(),
    };
    let ends = || look.tables.of_file(fd);
    // Whoever opens it first fills it.
    let first = ends().next().map_or((look.process.pid(), fd.number), |(pid, f)| (pid, f.number));
    saving.record.content = first.1;
    if ends().any(|(_, f)| f.flags.cast_signed() & libc::O_DIRECT != 0) {
        saving.record.extra |= PACKETS;
    }
    if access(fd.flags) == libc::O_RDONLY
        && saving.path.as_encoded_bytes().starts_with(b"/")
        && ends().all(|(_, f)| access(f.flags) == libc::O_RDONLY)
        && hung_up(fd, look.process.pid()) == Some(false)
    {
        saving.record.extra |= QUIET;
    }
    let reader = ends().find(|(_, f)| access(f.flags) != libc::O_WRONLY);
    let (pid, number) = reader.map_or((look.process.pid(), fd.number), |(pid, f)| (pid, f.number));
    let why = || format!("cannot look into the pipe behind descriptor {number}");
    let ours = borrowed::look_into(pid, number, why)?;
    let capacity = fcntl(&ours, FcntlArg::F_GETPIPE_SZ).because(why)?;
    saving.record.value = capacity.unsigned_abs().into();
    if first == (look.process.pid(), fd.number) {
        let pieces = reader.map(|_| peek(&ours)).transpose()?;
        let pieces = pieces.unwrap_or_default();
        let bytes = framed(&pieces);
        saving.content = Some(Content { index: fd.number, bytes });
    }
    Ok(())
}

/// Copies what is in a pipe, which stays in it; `ours` is a duplicate of its reading end. Packets come
/// as one piece each.
pub(crate) fn peek(ours: &OwnedFd) -> Result<Vec<Vec<u8>>> {
    let why = || "cannot look into a pipe";
    let capacity = fcntl(ours, FcntlArg::F_GETPIPE_SZ).because(why)?;
    let (copy, into) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).because(why)?;
    // Refused to a user who has much in pipes (pipe(7), pipe-user-pages-soft): a small one holds what there is, or is full.
    let room = fcntl(&into, FcntlArg::F_SETPIPE_SZ(capacity));
    let size = capacity.unsigned_abs() as usize;
    match tee(ours, &into, size, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Ok(_) if room.is_err() && !is_writable(&into) => {
            let hint = "this user's pipes have too much room together: save it as root, or raise fs.pipe-user-pages-soft";
            return room.because(why).map(|_| Vec::new()).map_err(|e| e.hint(hint));
        }
        Ok(_) => {}
        Err(nix::errno::Errno::EAGAIN) => return Ok(Vec::new()),
        Err(e) => return Err(e).because(why),
    }
    drop(into);
    let (mut pieces, mut buffer) = (Vec::new(), vec![0; size]);
    loop {
        match read(&copy, &mut buffer).because(why)? {
            0 => return Ok(pieces),
            n => pieces.push(buffer[..n].to_vec()),
        }
    }
}

/// Whether a pipe takes more.
fn is_writable(end: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(end.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO) == Ok(1)
}

/// Pieces one after the other, each behind its length in four bytes.
pub(super) fn framed(pieces: &[Vec<u8>]) -> Vec<u8> {
    let frame = |piece: &Vec<u8>| [&(piece.len() as u32).to_le_bytes()[..], piece].concat();
    pieces.iter().flat_map(frame).collect()
}

/// The pieces, if nothing is damaged.
pub(super) fn unframed(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        let (piece, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        pieces.push(piece);
        bytes = rest;
    }
    Some(pieces)
}

/// A pipe that a restart has made or opened.
pub(crate) struct Ends {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Which of them a description of the program has become.
    given: [bool; 2],
}

/// The pipes of a restart by their saved device and inode number.
pub(crate) type Made = HashMap<(u64, u64), Ends>;

fn open(record: &Descriptor, opening: &mut Opening<'_>) -> Result<Origin> {
    let path = opening.sources.path(record);
    let id = (record.device, record.inode);
    if !opening.pipes.contains_key(&id) {
        let removed = record.extra & REMOVED != 0;
        let ends = match path.is_absolute() {
            true if removed && !opening.sources.is_rehearsal() => removed_fifo(record)?,
            true if !removed => fifo(record, &path, opening)?,
            _ => anonymous()?,
        };
        fill(&ends, &opening.content(record)?, record)?;
        let quiet = record.extra & QUIET != 0;
        opening.pipes.insert(id, if quiet { silenced(ends)? } else { ends });
    }
    let ends = opening.pipes.get_mut(&id).ok_or_else(|| Error::new("a pipe is not made"))?;
    // O_DIRECT is set later: open(2) does not know it of a pipe. So is it cleared again that nobody waits.
    let waits = if record.extra & QUIET != 0 { libc::O_NONBLOCK as u32 } else { 0 };
    let flags = record.flags & !(libc::O_DIRECT as u32) | waits;
    let (index, end) = match access(record.flags) {
        libc::O_RDONLY => (0, &ends.reader),
        libc::O_WRONLY => (1, &ends.writer),
        _ => return reopened(&ends.reader, flags).map(Origin::Own),
    };
    if path.is_absolute() || std::mem::replace(&mut ends.given[index], true) {
        return reopened(end, flags).map(Origin::Own);
    }
    end.try_clone().map(Origin::Own).because(|| "cannot duplicate a pipe")
}

fn anonymous() -> Result<Ends> {
    let made = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK);
    let (reader, writer) = made.because(|| "cannot make a pipe")?;
    Ok(Ends { reader, writer, given: [false; 2] })
}

/// Another without a name; where none can be made, a pipe is the same to whoever reads and writes.
fn removed_fifo(record: &Descriptor) -> Result<Ends> {
    let flags = (libc::O_RDWR | libc::O_NONBLOCK) as u32;
    let made = device::made(&Descriptor { flags, ..*record }, OsStr::new(""));
    let Ok(reader) = made else { return anonymous() };
    let writer = reader.try_clone().because(|| "cannot duplicate a pipe")?;
    Ok(Ends { reader, writer, given: [false; 2] })
}

/// Opened for both at first, a FIFO makes nobody wait (fifo(7)).
fn fifo(record: &Descriptor, path: &Path, opening: &Opening<'_>) -> Result<Ends> {
    const BOTH: u32 = (libc::O_RDWR | libc::O_NONBLOCK) as u32;
    let both = |flags| opening.by_path(&Descriptor { flags, ..*record }, path);
    // Who may only read or write it cannot have both ends.
    let reader = both(BOTH).or_else(|_| both(record.flags | libc::O_NONBLOCK as u32))?;
    let writer = reader.try_clone().because(|| "cannot duplicate a pipe")?;
    Ok(Ends { reader, writer, given: [false; 2] })
}

/// A FIFO that is opened for reading while nobody has it open for writing; what is in it stays while somebody has it open.
fn silenced(ends: Ends) -> Result<Ends> {
    let flags = (libc::O_RDONLY | libc::O_NONBLOCK) as u32;
    let holder = reopened(&ends.reader, flags)?;
    drop(ends);
    let reader = reopened(&holder, flags)?;
    let writer = reader.try_clone().because(|| "cannot duplicate a pipe")?;
    Ok(Ends { reader, writer, given: [false; 2] })
}

/// Puts the content in, unless there is some: another program may have kept a FIFO as it was.
fn fill(ends: &Ends, content: &[u8], record: &Descriptor) -> Result<()> {
    let pieces = unframed(content).ok_or_else(|| Error::new("a damaged pipe"))?;
    // Above /proc/sys/fs/pipe-max-size only root may go; then it has the usual size.
    let _ = fcntl(&ends.writer, FcntlArg::F_SETPIPE_SZ(record.value as i32));
    if pieces.is_empty() || !peek(&ends.reader)?.is_empty() {
        return Ok(());
    }
    let packets = if record.extra & PACKETS != 0 { OFlag::O_DIRECT } else { OFlag::empty() };
    let why = || "cannot fill a pipe";
    fcntl(&ends.writer, FcntlArg::F_SETFL(packets | OFlag::O_NONBLOCK)).because(why)?;
    for piece in pieces {
        let mut done = 0;
        while done < piece.len() {
            done += write(&ends.writer, &piece[done..]).because(why)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        let pieces = [b"one".to_vec(), b"".to_vec(), b"three".to_vec()];
        let framed = framed(&pieces);
        assert_eq!(unframed(&framed), Some(vec![&b"one"[..], b"", b"three"]));
        assert_eq!(unframed(&framed[..6]), None);
    }
}
