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
use crate::error::{Error, Result};
use crate::proc::fork::fork;
use crate::proc::{Pid, setting};
use crate::restart::machine::{CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN, capable};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::kill;
use nix::unistd::{Gid, Uid, getegid, geteuid};
use std::borrow::Cow;
use std::fs;

const SECOND: i64 = 1_000_000_000;
const MAY_CHOOSE: [u32; 2] = [CAP_SYS_ADMIN, CAP_CHECKPOINT_RESTORE];

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
    /// with System V objects, which need a namespace of their own in any case. `made` are those that may be counted for. If
    /// one was `taken` when it was wanted, it is not here.
    /// And what keeps it from being one where no id can be another's.
    ///
    /// # Errors
    /// Their ids are to be `kept`, or there are System V objects, and no namespaces here.
    pub(crate) fn choose(
        ids: &[Pid],
        made: Option<&[Pid]>,
        furnished: bool,
        kept: bool,
        taken: bool,
    ) -> Result<(Self, Option<Hindrance>)> {
        let is_near = || made.is_some_and(|made| made.iter().all(is_free) && is_near(made));
        let may = !taken && (!furnished || capable(MAY_CHOOSE[0]));
        if may
            && has_clone3()
            && MAY_CHOOSE.iter().any(|&capability| capable(capability))
            && ids.iter().all(is_free)
        {
            return Ok((Self::Here, None));
        }
        match offered() {
            Ok(place) => Ok((place, None)),
            Err(obstacle) if !furnished && is_near() => Ok((Self::Counted, Some(obstacle))),
            Err(obstacle) if kept || furnished => Err(obstacle.error()),
            Err(obstacle) => Ok((Self::Anew, Some(obstacle))),
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
        let mut flags = CloneFlags::empty();
        flags.set(CloneFlags::CLONE_NEWIPC, furnished);
        // Filters refuse even the call that asks for nothing.
        if !flags.is_empty() || self.is_apart() {
            self.separate(flags).map_err(|errno| Hindrance::Refused(errno).error())?;
        }
        // What counts for ids makes children that share memory, which no other time namespace allows (kernel/fork.c).
        if self != Self::Counted {
            set_clocks(ahead);
        }
        Ok(())
    }

    /// Takes this process out of namespaces.
    fn separate(self, mut flags: CloneFlags) -> nix::Result<()> {
        flags.set(CloneFlags::CLONE_NEWPID, self.is_apart());
        flags.set(CloneFlags::CLONE_NEWUSER, self == Self::AsUser);
        let (user, group) = (geteuid(), getegid());
        unshare(flags)?;
        if self == Self::AsUser { map_user(user, group) } else { Ok(()) }
    }
}

/// Why there are no namespaces for a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hindrance {
    /// The kernel refuses them.
    Refused(Errno),
    /// A filter refuses clone3(2), which alone gives ids of choice.
    Filtered,
    /// It shows no new /proc in them, where processes would find each other by their ids: it allows that to user
    /// namespaces only where nothing hides a part of the one that is there (fs/namespace.c, mount_too_revealing).
    Masked,
}

impl Hindrance {
    /// What forbids them, and what would change it.
    pub(crate) fn remedy(self) -> Cow<'static, str> {
        match self.setting() {
            Some(setting) => {
                format!("{setting} forbids namespaces here: restart it where that is otherwise")
                    .into()
            }
            None => self.usual_remedy().into(),
        }
    }

    /// The setting that forbids them, as sysctl(8) has it.
    fn setting(self) -> Option<&'static str> {
        let all: &[&str] = match self {
            Self::Refused(Errno::ENOSPC | Errno::EUSERS) => &[
                "user.max_user_namespaces=0",
                "user.max_pid_namespaces=0",
                "user.max_mnt_namespaces=0",
                "user.max_ipc_namespaces=0",
            ],
            Self::Refused(_) => &[
                "kernel.unprivileged_userns_clone=0",
                "kernel.apparmor_restrict_unprivileged_userns=1",
            ],
            _ => &[],
        };
        let is_so = |line: &&&str| {
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            setting(&name.replace('.', "/")).map(|now| now.to_string()).as_deref() == Some(value)
        };
        all.iter().find(is_so).copied()
    }

    fn usual_remedy(self) -> &'static str {
        match self {
            Self::Refused(Errno::ENOSPC | Errno::EUSERS) => {
                "the number of namespaces is limited here (max_user_namespaces and its like in /proc/sys/user)"
            }
            Self::Filtered => {
                "clone3(2), which alone gives a process an id of choice, is refused here, as by the filter of a container: restart it where that is allowed"
            }
            Self::Refused(Errno::EINVAL) => {
                "this kernel was built without them (CONFIG_PID_NS, CONFIG_USER_NS)"
            }
            NO_PROCESS => {
                "no process can be made beside it: their number is limited here (ulimit -u, or pids.max of its cgroup)"
            }
            Self::Refused(_) => {
                "user namespaces, or mounts in them, are forbidden here, as in a chroot, or by AppArmor or the filter of a container; restart it where they are allowed, or as root"
            }
            Self::Masked => {
                "parts of /proc are masked here, as in containers, and so a PID namespace could have none of its own; restart it where they are not (docker run --security-opt systempaths=unconfined, procMount: Unmasked of Kubernetes)"
            }
        }
    }

    fn error(self) -> Error {
        let why = match self {
            Self::Refused(errno) => errno.desc(),
            Self::Filtered => "the ids could not be chosen there",
            Self::Masked => "they would see no /proc of their own",
        };
        let text =
            "cannot make the namespaces in which the program's processes have their ids again";
        Error::new(format!("{text}: {why}")).hint(self.remedy())
    }
}

/// Not even a process can be made.
pub(crate) const NO_PROCESS: Hindrance = Hindrance::Refused(Errno::EAGAIN);

/// Whether a process can be made.
pub(crate) fn can_make_one() -> bool {
    match fork(libc::SIGCHLD) {
        Ok(None) => end(0),
        Ok(Some(child)) => ended(child).is_ok(),
        Err(_) => false,
    }
}

/// The namespaces that a tree can have here, as a child tries it.
pub(crate) fn offered() -> std::result::Result<Place, Hindrance> {
    let place = if capable(MAY_CHOOSE[0]) { Place::Apart } else { Place::AsUser };
    let attempt = || {
        let Some(child) = fork(libc::SIGCHLD)? else {
            end(match place.separate(CloneFlags::empty()) {
                Err(errno) => errno as i32,
                Ok(()) => sees_itself().unwrap_or_else(|errno| errno as i32),
            })
        };
        ended(child)
    };
    if !has_clone3() {
        return Err(Hindrance::Filtered);
    }
    match attempt().map_err(Hindrance::Refused)? {
        0 => Ok(place),
        MASKED => Err(Hindrance::Masked),
        errno => Err(Hindrance::Refused(Errno::from_raw(errno))),
    }
}

/// Whether there is clone3(2), which alone takes ids: the filters of containers refuse it.
fn has_clone3() -> bool {
    // SAFETY: the kernel reads nothing of arguments that have no size.
    let refused = Errno::result(unsafe { libc::syscall(libc::SYS_clone3, 0, 0) });
    refused == Err(Errno::EINVAL)
}

/// Not an error number.
const MASKED: i32 = 200;

/// Whether a child may show its PID namespace in /proc: 0, [`MASKED`] or an error number.
fn sees_itself() -> nix::Result<i32> {
    let Some(child) = fork(libc::SIGCHLD)? else {
        let separated = unshare(CloneFlags::CLONE_NEWNS).and_then(|()| separate_mounts());
        end(match separated.map(|()| show_proc()) {
            Ok(Ok(())) => 0,
            // Who may mount nothing at all has failed before.
            Ok(Err(Errno::EPERM)) => MASKED,
            Err(errno) | Ok(Err(errno)) => errno as i32,
        })
    };
    ended(child)
}

/// The exit status of a child.
pub(super) fn ended(child: Pid) -> nix::Result<i32> {
    match change(Some(child), libc::WEXITED)? {
        Some(Change::Ended(status)) => Ok(status),
        _ => Err(Errno::EPERM),
    }
}

/// Shows the PID namespace of this process in /proc; its mounts are its own.
pub(super) fn mount_proc() -> nix::Result<()> {
    separate_mounts().and_then(|()| show_proc())
}

/// Else what is mounted would appear in the namespace that this one is a copy of.
fn separate_mounts() -> nix::Result<()> {
    let nothing: Option<&str> = None;
    let separate =
        |place| mount(nothing, place, nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing);
    // The root directory of a chroot need not be that of a mount.
    separate("/")
        .or_else(|errno| if errno == Errno::EINVAL { separate("/proc") } else { Err(errno) })
}

fn show_proc() -> nix::Result<()> {
    let nothing: Option<&str> = None;
    let kept = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), kept, nothing)
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

/// A time namespace for the children, where one can be had (CAP_SYS_ADMIN, also that of the tree's user namespace): the clocks go on from their saved values, so that
/// every deadline holds (time_namespaces(7)). Else what ckpt gives back itself is shifted ([`crate::restart::clock`]).
fn set_clocks(ahead: [i64; 2]) {
    // SAFETY: changes the namespace of children only.
    if unsafe { libc::unshare(libc::CLONE_NEWTIME) } != 0 {
        return;
    }
    let line = |name: &str, offset: i64| {
        format!("{name} {} {}\n", offset.div_euclid(SECOND), offset.rem_euclid(SECOND))
    };
    let text = line("monotonic", ahead[0]) + &line("boottime", ahead[1]);
    let _ = fs::write("/proc/self/timens_offsets", text);
}
