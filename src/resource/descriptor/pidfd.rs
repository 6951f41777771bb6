// SPDX-License-Identifier: LGPL-2.1-only
//! Descriptors of processes (pidfd_open(2)). Those of processes of the checkpoint are opened when all these are there, by
//! each that has them.
//!
//! # Safety
//! The system calls take numbers, and a child that is made here ends at once.
#![allow(unsafe_code)]

use super::lost::stand_in;
use super::open::owned;
use super::{Kind, Look, Opening, Origin, Saving};
use crate::error::{Because, Result};
use crate::proc::Pid;
use crate::proc::fds::Fd;
use crate::proc::tree;
use ckpt_abi::image::Descriptor;
use nix::errno::Errno;
use nix::libc;
use std::os::fd::OwnedFd;

pub(super) const KIND: Kind = Kind { recognise, save, open };

/// PIDFD_THREAD in [`Descriptor::flags`]: it stands for the thread alone (pidfd_open(2)).
const THREAD: i32 = libc::O_EXCL;

/// [`Descriptor::value`] of a process that is gone.
pub(super) const GONE: u64 = 0;

fn recognise(fd: &Fd, _: &Look<'_>) -> bool {
    fd.target == "anon_inode:[pidfd]" && fd.extra("Pid").is_some()
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    let pid = fd.extra("Pid").and_then(|v| v.trim().parse().ok()).unwrap_or(Pid::NONE);
    let pids = look.tables.pids();
    let is_dead = || tree::kin(pid).is_ok_and(|kin| kin.dead && pids.contains(&kin.parent));
    match pid {
        // We are gone at a restart, as its handler finds that looks now and then whether we live.
        _ if pid.get() <= 0 || pid == Pid::own() => saving.record.value = GONE,
        _ if pids.contains(&pid) || is_dead() => {
            saving.record.value = pid.word().into();
        }
        _ => saving.lose("a process, or a thread, that is not saved"),
    }
    Ok(())
}

fn open(_: &Descriptor, _: &mut Opening<'_>) -> Result<Origin> {
    stand_in().map(Origin::Own)
}

/// Opens one in the process that has it, which is in the PID namespace of those: to processes of another one nothing can be
/// sent (pidfd_send_signal(2)).
///
/// # Errors
/// It is not there.
pub(super) fn late(pid: Pid, flags: u32) -> Result<OwnedFd> {
    of(pid, flags.cast_signed() & THREAD)
        .because(|| format!("cannot open process {pid} (pidfd_open(2))"))
}

fn of(pid: Pid, flags: i32) -> nix::Result<OwnedFd> {
    // SAFETY: numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.get(), flags) })
}

/// Opens a process that has ended and was waited for, the same for all of these.
///
/// # Errors
/// No process can be made.
pub(super) fn open_gone(files: Vec<&mut OwnedFd>) -> Result<()> {
    // SAFETY: a fork of a process with one thread, which ends at once; without an exit signal nobody else hears of it.
    let child = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
    let why = || "cannot make a process";
    if Errno::result(child).because(why)? == 0 {
        // SAFETY: ends the child without running anything of its maker's.
        unsafe { libc::_exit(0) };
    }
    let opened: nix::Result<()> = files.into_iter().try_for_each(|file| {
        *file = of(Pid::new(child as i32), 0)?;
        Ok(())
    });
    // SAFETY: waits for the child.
    unsafe { libc::waitpid(child as i32, std::ptr::null_mut(), libc::__WALL) };
    opened.because(|| "cannot open a process that has ended (pidfd_open(2))")
}
