// SPDX-License-Identifier: LGPL-2.1-only
//! Where a tree can have its ids: here, or in namespaces of its own.
//!
//! In a new PID namespace every id is free (pid_namespaces(7)), and its maker may choose them (CAP_CHECKPOINT_RESTORE in
//! the user namespace that owns it). An ordinary user gets such a namespace by way of a user namespace with its own ids
//! (user_namespaces(7)). The restarter itself stays outside of the PID namespace, as the parent of the root. Where that is
//! forbidden, ids that are free are counted for ([`super::counted`]); else there are new ones.
//!
//! # Safety
//! unshare(2) changes this process alone, which has one thread.
#![allow(unsafe_code)]

use super::children::{Change, change};
use super::counted::is_near;
use super::make::end;
use crate::error::{Because, Error, Result};
use crate::proc::Pid;
use crate::proc::fork::fork;
use crate::restart::machine::capable;
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::kill;
use nix::unistd::{Gid, Uid, getegid, geteuid};
use std::fs;

const CLONE_NEWTIME: i32 = 0x80;
const SECOND: i64 = 1_000_000_000;
/// CAP_SYS_ADMIN, and CAP_CHECKPOINT_RESTORE (Linux 5.9).
const MAY_CHOOSE: [u32; 2] = [21, 40];

/// Where the processes of a tree live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the namespaces of the restarter.
    Here,
    /// In a PID namespace of their own.
    Apart,
    /// In one that a user namespace of their own owns.
    AsUser,
    /// In the namespaces of the restarter, which may choose no ids but waits until the kernel gives them.
    Counted,
    /// In the namespaces of the restarter, with new ids.
    Anew,
}

impl Place {
    /// Chooses the place that has the fewest effects, for these process and thread ids, groups and sessions; `furnished`
    /// with System V objects, which need a namespace of their own in any case.
    ///
    /// # Errors
    /// Their ids are to be `kept`, or there are System V objects, and no namespaces here.
    pub(crate) fn choose(ids: &[Pid], made: &[Pid], furnished: bool, kept: bool) -> Result<Self> {
        let may = !furnished || capable(MAY_CHOOSE[0]);
        if may
            && MAY_CHOOSE.iter().any(|&capability| capable(capability))
            && ids.iter().all(is_free)
        {
            return Ok(Self::Here);
        }
        if capable(MAY_CHOOSE[0]) {
            return Ok(Self::Apart);
        }
        match as_user() {
            Ok(()) => Ok(Self::AsUser),
            Err(_) if !furnished && made.iter().all(is_free) && is_near(made) => Ok(Self::Counted),
            Err(errno) if kept || furnished => Err(forbidden(errno)),
            Err(_) => Ok(Self::Anew),
        }
    }

    /// Whether they live in a PID namespace of their own.
    pub(crate) fn is_apart(self) -> bool {
        matches!(self, Self::Apart | Self::AsUser)
    }

    /// Makes the namespaces, for children of this process; the clocks of the tree are to be `ahead` of the first
    /// namespace's by so many nanoseconds (CLOCK_MONOTONIC, CLOCK_BOOTTIME).
    ///
    /// # Errors
    /// They are forbidden here, by what, and what helps.
    pub(crate) fn enter(self, ahead: [i64; 2], furnished: bool) -> Result<()> {
        let ipc = if furnished { CloneFlags::CLONE_NEWIPC } else { CloneFlags::empty() };
        let mut flags = CloneFlags::CLONE_NEWPID | ipc;
        match self {
            Self::Here | Self::Counted | Self::Anew => return unshare(ipc).map_err(forbidden),
            Self::Apart => {}
            Self::AsUser => flags |= CloneFlags::CLONE_NEWUSER,
        }
        let (user, group) = (geteuid(), getegid());
        unshare(flags).map_err(forbidden)?;
        if self == Self::AsUser {
            map_user(user, group).map_err(forbidden)?;
        }
        set_clocks(ahead)
    }
}

/// Whether an ordinary user gets the namespaces here, as a child tries it.
pub(crate) fn as_user() -> nix::Result<()> {
    let (user, group) = (geteuid(), getegid());
    let Some(child) = fork(libc::SIGCHLD)? else {
        let made = unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUSER);
        end(made.and_then(|()| map_user(user, group)).err().map_or(0, |errno| errno as i32))
    };
    match change(Some(child), libc::WEXITED)? {
        Some(Change::Ended(0)) => Ok(()),
        Some(Change::Ended(errno)) => Err(Errno::from_raw(errno)),
        _ => Err(Errno::EPERM),
    }
}

/// Maps one's own user and group in a user namespace that one has just made.
pub(super) fn map_user(user: Uid, group: Gid) -> nix::Result<()> {
    // Without it an ordinary user may not map a group (user_namespaces(7)).
    let _ = fs::write("/proc/self/setgroups", "deny");
    map("uid_map", user.as_raw())?;
    map("gid_map", group.as_raw())
}

/// Whether nobody here has an id, as a process, thread, group or session.
fn is_free(id: &Pid) -> bool {
    let nobody = |id: i32| kill(nix::unistd::Pid::from_raw(id), None) == Err(Errno::ESRCH);
    nobody(id.get()) && nobody(-id.get())
}

fn map(file: &str, id: u32) -> nix::Result<()> {
    fs::write(format!("/proc/self/{file}"), format!("{id} {id} 1"))
        .map_err(|error| error.raw_os_error().map_or(Errno::EPERM, Errno::from_raw))
}

/// A time namespace for the children, where the kernel has one: the clocks go on from their saved values, so that
/// every deadline holds (time_namespaces(7)).
fn set_clocks(ahead: [i64; 2]) -> Result<()> {
    if !std::path::Path::new("/proc/self/ns/time").exists() {
        return Ok(());
    }
    // SAFETY: changes the namespace of children only.
    Errno::result(unsafe { libc::unshare(CLONE_NEWTIME) }).map_err(forbidden)?;
    let line = |name: &str, offset: i64| {
        format!("{name} {} {}\n", offset.div_euclid(SECOND), offset.rem_euclid(SECOND))
    };
    let text = line("monotonic", ahead[0]) + &line("boottime", ahead[1]);
    fs::write("/proc/self/timens_offsets", text)
        .because(|| "cannot let the program's clocks go on (/proc/self/timens_offsets)")
}

/// The sentence about namespaces that are not to be had.
fn forbidden(errno: Errno) -> Error {
    let error = Error::new(format!(
        "cannot make the namespaces in which the program's processes have their ids again: {}",
        errno.desc()
    ));
    error.hint(remedy(errno))
}

/// What forbids them, and what would change it.
pub(crate) fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOSPC | Errno::EUSERS => {
            "the number of namespaces is limited here (/proc/sys/user/max_user_namespaces, max_pid_namespaces)"
        }
        Errno::EINVAL => "this kernel was built without them (CONFIG_PID_NS, CONFIG_USER_NS)",
        _ => {
            "user namespaces are forbidden here: by kernel.unprivileged_userns_clone=0, kernel.apparmor_restrict_unprivileged_userns=1, or the filters of a container; restart it where they are allowed, or as root"
        }
    }
}
