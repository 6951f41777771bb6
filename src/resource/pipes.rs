//! Pipes both of whose ends are in the program, with what is in them.

use crate::error::{Because, Result};
use crate::proc::fds::Fd;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use nix::libc;
use nix::unistd::{pipe2, read, write};
use std::collections::HashMap;
use std::os::fd::OwnedFd;

/// Whether the program holds both ends of the pipe behind `fd`.
pub fn is_whole(fd: &Fd, all: &[Fd]) -> bool {
    let access = |f: &Fd| f.flags as i32 & libc::O_ACCMODE;
    let end = |mode| all.iter().any(|f| f.inode == fd.inode && access(f) == mode);
    end(libc::O_RDONLY)
        && end(libc::O_WRONLY)
        && !all.iter().any(|f| f.number < 3 && f.inode == fd.inode)
}

/// Copies what is in a pipe, which stays in it; `ours` is a duplicate of its reading end.
pub fn peek(ours: &OwnedFd) -> Result<(Vec<u8>, u64)> {
    let why = || "cannot look into a pipe";
    let capacity = fcntl(ours, FcntlArg::F_GETPIPE_SZ).because(why)?;
    let (copy, into) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).because(why)?;
    fcntl(&into, FcntlArg::F_SETPIPE_SZ(capacity)).because(why)?;
    let size = capacity.unsigned_abs() as usize;
    let copied = match tee(ours, &into, size, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Ok(copied) => copied,
        Err(nix::errno::Errno::EAGAIN) => 0,
        Err(e) => return Err(e).because(why),
    };
    let mut bytes = vec![0; copied];
    let mut done = 0;
    while done < copied {
        done += read(&copy, &mut bytes[done..]).because(why)?;
    }
    Ok((bytes, capacity.unsigned_abs().into()))
}

/// The pipes that a restart has made so far, by their saved inode number: reading and writing end.
pub type Made = HashMap<u64, (OwnedFd, OwnedFd)>;

/// Makes a pipe with something in it.
pub fn make(content: &[u8], capacity: u64) -> Result<(OwnedFd, OwnedFd)> {
    let why = || "cannot make a pipe";
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).because(why)?;
    // Above /proc/sys/fs/pipe-max-size only root may go; then it has the usual size.
    let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(capacity as i32));
    let mut done = 0;
    while done < content.len() {
        done += write(&writer, &content[done..]).because(|| "cannot fill a pipe")?;
    }
    Ok((reader, writer))
}
