// SPDX-License-Identifier: LGPL-2.1-only
//! Standard input that an epoll instance watches must be something that epoll knows, which files and
//! /dev/null are not: there a pipe takes its place, with what the file has, and then its end.

use super::{Origin, Restored, access, open};
use crate::error::{Because, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::unistd::{pipe2, read, write};
use std::os::fd::{BorrowedFd, OwnedFd};

/// What a pipe may hold without privilege (/proc/sys/fs/pipe-max-size).
const MOST: usize = 1 << 20;

/// Replaces the standard streams under the numbers given that cannot be watched.
///
/// # Errors
/// No pipe can be made.
pub(crate) fn make(
    restored: &mut [Restored],
    watched: impl Fn(u32) -> bool,
    warnings: &mut Vec<String>,
) -> Result<()> {
    for Restored { record, origin } in restored {
        let Origin::Standard(number) = *origin else { continue };
        let reads = access(record.flags) != libc::O_WRONLY;
        let Some(file) = open::standard(number).filter(|_| reads && watched(record.fd)) else {
            continue;
        };
        if is_pollable(file) {
            continue;
        }
        let (pipe, all) = drained(file)?;
        if !all {
            warnings.push(format!(
                "the program waits for its standard input with epoll(7), which does not know files: it gets \
                 the first {MOST} bytes; give it a pipe (cat FILE | ...)"
            ));
        }
        *origin = Origin::Own(pipe);
    }
    Ok(())
}

fn is_pollable(file: BorrowedFd<'_>) -> bool {
    let Ok(epoll) = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC) else { return true };
    epoll.add(file, EpollEvent::new(EpollFlags::EPOLLIN, 0)) != Err(Errno::EPERM)
}

/// A pipe with what can be read of a file, and whether that is all.
fn drained(file: BorrowedFd<'_>) -> Result<(OwnedFd, bool)> {
    let why = || "cannot make a pipe of standard input";
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).because(why)?;
    let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(MOST as i32));
    let mut buffer = vec![0; 4096];
    loop {
        let n = read(file, &mut buffer).because(why)?;
        if n == 0 {
            return Ok((reader, true));
        }
        if write(&writer, &buffer[..n]).is_err() {
            return Ok((reader, false));
        }
    }
}
