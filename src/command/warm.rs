// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt warm NAME PROGRAM…`: a checkpoint of the place where a program is ready, for starts that need not load it.
//!
//! # Safety
//! Numbers of standard streams are borrowed and given to a process that is about to execute the program.
#![allow(unsafe_code)]

use super::{launch, told};
use crate::error::{Because, Error, FAILED, Result};
use crate::image::read::{Image, open};
use crate::proc::Pid;
use crate::proc::fork::{end, fork};
use crate::settings::{Name, Settings, Template, Values};
use ckpt_abi::image::header_flag;
use nix::libc;
use nix::sys::stat::fstat;
use nix::sys::wait::{WaitStatus, waitpid};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Runs a program until it saves itself.
#[inline(never)]
pub(super) fn run(settings: &Settings, program: &OsStr, args: &[OsString]) -> Result<u8> {
    let here = std::env::current_dir().because(|| "cannot find out the current directory")?;
    // Neither a signal nor a period takes it away before it is ready.
    let own = Settings {
        asyncsig: Some(0),
        msperiod: Some(0),
        continues: Some(false),
        exit_status: Some(0),
        ..settings.clone()
    };
    let own = own.resolve(&here)?;
    super::destination::open_images_with(own.transfer.key.as_ref(), false)?;
    let name = match &own.name {
        Some(Name::File(path)) => path.clone(),
        _ => {
            return Err(Error::new("a warm start is saved to a file")
                .hint("ckpt put sends it to a server afterwards"));
        }
    };
    let (streams, relays) = streams().because(|| "cannot make pipes for the program's streams")?;
    let child = fork(libc::SIGCHLD).because(|| format!("cannot start {}", program.display()))?;
    let Some(child) = child else {
        for (number, file) in &streams {
            // SAFETY: this process has its own table.
            unsafe { libc::dup2(file.as_raw_fd(), *number) };
        }
        end(i32::from(told(launch::run(&own, None, program, args, None, true))))
    };
    let path = Template::parse(&name)?.expand(&Values::of(child), 1);
    drop(streams);
    let status = loop {
        match waitpid(child.nix(), None) {
            Ok(WaitStatus::Exited(_, status)) => break status,
            Ok(WaitStatus::Signaled(_, signal, _)) => break 128 + signal as i32,
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e).because(|| "cannot wait for the program"),
        }
    };
    for relay in relays {
        let _ = waitpid(relay.nix(), None);
    }
    if status == 0 && is_of(&path, child) {
        return super::print(&format!(
            "{}: {} is ready in it\n",
            path.display(),
            program.display()
        ));
    }
    let program = program.display();
    match status {
        126 | 127 => Ok(status as u8),
        status if status == i32::from(FAILED) => Ok(FAILED),
        _ => Err(Error::new(format!(
            "{program} has ended with status {status} without a checkpoint"
        ))
        .hint("it calls ckpt_ckpt() (ckpt.h), or in Python ckpt.ready(), where it is ready")),
    }
}

/// Whether a file is the checkpoint that has ended this process.
fn is_of(path: &Path, pid: Pid) -> bool {
    use ckpt_abi::image::{ProcessRecord, SectionKind};
    let Ok(image) = open(path)
        .map_err(|e| Error::new(e.to_string()))
        .and_then(|file| Image::from_file(file, path))
    else {
        return false;
    };
    let process = image.process(0).record::<ProcessRecord>(SectionKind::Process);
    image.header().flags & header_flag::ENDED != 0
        && process.is_ok_and(|process| process.pid == pid.word())
}

/// A standard stream's number and what it is to be.
type Stream = (i32, OwnedFd);

/// Pipes for the program in place of files and devices that are its standard streams, by their numbers, and who copies:
/// so those of a restart are the restarter's, and not these files again.
fn streams() -> std::io::Result<(Vec<Stream>, Vec<Pid>)> {
    let (mut theirs, mut relays) = (Vec::new(), Vec::new());
    for number in 0..3 {
        // SAFETY: a standard stream is open for as long as this process.
        let stream = unsafe { BorrowedFd::borrow_raw(number) };
        let Ok(stat) = fstat(stream) else { continue };
        let kind = stat.st_mode & libc::S_IFMT;
        if [libc::S_IFIFO, libc::S_IFSOCK].contains(&kind) || stream.is_terminal() {
            continue;
        }
        let (reader, writer) = std::io::pipe()?;
        let own = stream.try_clone_to_owned()?;
        let (from, to, its) = match number {
            0 => (own, OwnedFd::from(writer), OwnedFd::from(reader)),
            _ => (OwnedFd::from(reader), own, OwnedFd::from(writer)),
        };
        match fork(libc::SIGCHLD)? {
            None => {
                drop(its);
                let copied = std::io::copy(&mut File::from(from), &mut File::from(to));
                end(i32::from(copied.is_err()))
            }
            Some(relay) => relays.push(relay),
        }
        theirs.push((number, its));
    }
    Ok((theirs, relays))
}
