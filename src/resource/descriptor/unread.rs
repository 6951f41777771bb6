// SPDX-License-Identifier: LGPL-2.1-only
//! What the program had not read yet of the pipe that was its standard input: it comes first after the
//! restart, then what the restarter's standard input has.
//!
//! A pipe takes nothing at its front, so the program gets another one, which a process of ours fills. That
//! is nobody's child but init's before the program is there, has a session of its own, and ends with either
//! side.
//!
//! # Safety
//! The process is made while this one has a single thread, and executes only system calls.
#![allow(unsafe_code)]

use super::{Origin, Restored, open, standard};
use crate::error::{Because, Result};
use crate::proc::closing::close_range;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, dup2_raw, fork, isatty, pipe2, read, setsid, write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Puts the unread bytes before the restarter's standard input.
///
/// # Errors
/// No pipe or process can be made.
pub(crate) fn put_first(
    restored: &mut [Restored],
    content: impl Fn(u32) -> Result<Vec<u8>>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    // Its further descriptors, here and in other processes, follow the first.
    let unread = |r: &&mut Restored| {
        standard::is_unread(&r.record) && matches!(r.origin, Origin::Standard(_))
    };
    for Restored { record, origin } in restored.iter_mut().filter(unread) {
        let bytes = content(record.content)?;
        let (reader, writer) = filled(&bytes)?;
        let input = match *origin {
            Origin::Standard(number) => open::standard(number).filter(|fd| !is_null(*fd)),
            _ => None,
        };
        match input {
            Some(input) if isatty(input).unwrap_or(false) || std::process::id() == 1 => {
                warnings.push(format!(
                    "the program reads the {} bytes that were in the pipe of its standard input, then its end",
                    bytes.len()
                ));
            }
            Some(input) => pump(input, writer)?,
            None => {}
        }
        *origin = Origin::Own(reader);
    }
    Ok(())
}

fn is_null(fd: BorrowedFd<'_>) -> bool {
    nix::sys::stat::fstat(fd).is_ok_and(|stat| stat.st_rdev == nix::sys::stat::makedev(1, 3))
}

fn filled(bytes: &[u8]) -> Result<(OwnedFd, OwnedFd)> {
    let why = || "cannot make a pipe for the standard input";
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).because(why)?;
    if bytes.len() > 1 << 16 {
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(bytes.len() as i32)).because(why)?;
    }
    let mut done = 0;
    while done < bytes.len() {
        done += write(&writer, &bytes[done..]).because(why)?;
    }
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).because(why)?;
    Ok((reader, writer))
}

/// Starts the process that carries what comes.
fn pump(input: BorrowedFd<'_>, output: OwnedFd) -> Result<()> {
    let why = || "cannot make a process for the standard input";
    // SAFETY: this process has one thread.
    match unsafe { fork() }.because(why)? {
        ForkResult::Parent { child } => waitpid(child, None).map(drop).because(why),
        ForkResult::Child => {
            let _ = setsid();
            // SAFETY: as above; whoever adopts the child is not the program.
            if let Ok(ForkResult::Child) = unsafe { fork() } {
                carry(input, output);
            }
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(0) }
        }
    }
}

fn carry(input: BorrowedFd<'_>, output: OwnedFd) {
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
    let _ = nix::sys::prctl::set_name(c"ckpt-input");
    let _ = nix::unistd::chdir("/");
    // SAFETY: 0 and 1 are ours alone now, and nothing that owns a descriptor here is used again.
    let (Ok(input), Ok(output)) = (unsafe { dup2_raw(input, 0) }, unsafe { dup2_raw(output, 1) })
    else {
        return;
    };
    let rest = (input.as_raw_fd().max(output.as_raw_fd()) + 1).cast_unsigned();
    close_range(rest, u32::MAX);
    let mut buffer = [0; 1 << 16];
    loop {
        let (from, to) = (PollFlags::POLLIN, PollFlags::empty());
        let mut polled = [PollFd::new(input.as_fd(), from), PollFd::new(output.as_fd(), to)];
        if poll(&mut polled, PollTimeout::NONE).is_err()
            || polled[1].revents().is_none_or(|events| !events.is_empty())
        {
            return;
        }
        let read = match read(&input, &mut buffer) {
            Err(nix::errno::Errno::EAGAIN) => continue,
            Ok(n) if n > 0 => n,
            _ => return,
        };
        let mut done = 0;
        while done < read {
            match write(&output, &buffer[done..read]) {
                Ok(n) => done += n,
                Err(_) => return,
            }
        }
    }
}
