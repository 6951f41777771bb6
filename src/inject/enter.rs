// SPDX-License-Identifier: LGPL-2.1-only
//! Going where the processes of a restarted tree are: in a PID namespace of their own, whose ids the image has to hold.
//!
//! A dumper that works from outside enters the namespaces first, and then sees what the processes see. The owner of a
//! user namespace has every capability in it (user_namespaces(7)), so the user who restarted the tree may. The PID
//! namespace is only that of children (setns(2)), so a child works, and its maker ends as it does.
//!
//! # Safety
//! The callers have one thread; a child that is made by a bare clone(2) may do all that its maker may.
#![allow(unsafe_code)]

use super::monitors::Teller;
use crate::error::{Because, Error, Result};
use crate::image::read::Image;
use crate::proc::Pid;
use crate::proc::fork::fork;
use crate::proc::pidfd::Pidfd;
use crate::proc::tree::{INIT, WITNESS, is_named};
use crate::proc::{self, Process, front, gone, maps::Vma};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// How long a restart in progress is waited for.
const RESTART: Duration = Duration::from_secs(5);

/// Namespaces in the order in which they are entered: the first gives the right to the others.
const KINDS: [(&str, CloneFlags); 4] = [
    ("user", CloneFlags::CLONE_NEWUSER),
    ("mnt", CloneFlags::CLONE_NEWNS),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("ipc", CloneFlags::CLONE_NEWIPC),
];

/// The process that is meant by an id: of the restarter of a tree, which stands for its root, the root, as soon as it is
/// there.
///
/// # Errors
/// There is none.
pub(crate) fn meant(pid: Pid) -> Result<Process> {
    meant_by(&Process::open(pid)?)
}

/// The same of a process that is known.
///
/// # Errors
/// It is gone.
pub(crate) fn meant_by(asked: &Process) -> Result<Process> {
    let deadline = Instant::now() + RESTART;
    // Below a ckpt that stays the root may be a restarter itself.
    let mut at = asked.clone();
    loop {
        let children = at.children();
        let stands = children.iter().any(|child| is_named(*child, WITNESS));
        // Orphans that have come to it stand behind.
        let ours = |child: &Pid| proc::tree::kin(*child).is_ok_and(|kin| kin.ours);
        let root = children.iter().find(|child| !ours(child) && !is_named(**child, INIT));
        // Its namespaces are not what they will be before it is the program.
        // A restart that is stopped comes to nothing, which others say.
        let late = asked.is_stopped() || Instant::now() > deadline;
        let becomes = |process: &Process| is_stub(process, None) || is_launching(process);
        let root = root.filter(|_| stands).and_then(|root| child_of(&at, *root));
        match root {
            Some(root) => at = root,
            // Below its restarter it has no rights that we lack, but its files in /proc may be closed in between.
            None if late || !(becomes(&at) || at.pid() != asked.pid() && is_closed(&at)) => {
                return match at.is_reaped() {
                    false => Ok(at),
                    true => Process::open(at.pid()),
                };
            }
            // Who has no name yet is taken for another: all is looked at again.
            None => {
                std::thread::sleep(Duration::from_millis(1));
                at = asked.clone();
            }
        }
    }
}

/// A process that was in the list of another's children: as long as it is there and has that parent, its id is its own.
fn child_of(parent: &Process, child: Pid) -> Option<Process> {
    let child = Process::open(child).ok()?;
    let is_its = child.main_stat().is_ok_and(|stat| stat.ppid == parent.pid());
    (is_its && !parent.is_reaped()).then_some(child)
}

/// Whether the process is a restarter or a ckpt that stays, and stands for another.
pub(crate) fn stands(process: &Process) -> bool {
    process.children().iter().any(|child| is_named(*child, WITNESS))
}

/// Those who stand for a process, each for the one before.
pub(crate) struct Standing(Vec<Pidfd>);

impl Standing {
    pub(crate) fn of(process: &Process) -> Self {
        let above = |at: &Process| {
            let above = at.main_stat().and_then(|stat| Process::open(stat.ppid));
            above.ok().filter(stands)
        };
        let held = |it: Process| Pidfd::open(it.pid()).ok().filter(|_| !it.is_reaped());
        Self(std::iter::successors(above(process), above).filter_map(held).collect())
    }

    /// Has them see the end of their program: they have stopped as it had, or are about to.
    pub(crate) fn go_on(&self) {
        self.0.iter().for_each(|it| it.signal(Signal::SIGCONT));
    }
}

/// Whether a process may not be looked at: for good, or while its restart gives it its ids (PR_SET_DUMPABLE in prctl(2)).
pub(crate) fn is_closed(process: &Process) -> bool {
    process.may_be_listed().is_err_and(|error| error.is_refusal())
}

/// Whether the process is this very ckpt, which executes the program that it was given.
pub(crate) fn is_launching(process: &Process) -> bool {
    let (own, other) = ("/proc/self/exe".to_string(), process.path("exe"));
    let id = |path: &String| fs::metadata(path).map(|m| (m.dev(), m.ino(), m.len()));
    match (id(&own), id(&other)) {
        (Ok(own), Ok(other)) if own == other => true,
        (Ok((.., len)), Ok((.., there))) if len == there => {
            fs::read(&own).is_ok_and(|own| fs::read(&other).is_ok_and(|other| own == other))
        }
        _ => false,
    }
}

/// Whether the process is a checkpoint that has not yet become the program; whatever it has of a
/// payload is not ready. The program, once there, has no mapping of its checkpoint. Its mappings are asked for where they
/// are not known and matter.
pub(crate) fn is_stub(process: &Process, vmas: Option<&[Vma]>) -> bool {
    let Ok(exe) = fs::read_link(process.path("exe")) else { return false };
    let runs = |vmas: &[Vma]| vmas.iter().any(|vma| vma.exec && vma.name == exe.as_os_str());
    process.executable().is_ok_and(|file| matches!(Image::find(&file), Ok(Some(_))))
        && vmas.map_or_else(|| process.maps().is_ok_and(|vmas| runs(&vmas)), runs)
}

/// Enters the namespaces of a process, if its PID namespace is another than ours: its id there. Where that is so, only
/// a child of the caller returns, and the caller ends with its status. The current directory stays, by its path.
///
/// # Errors
/// They may not be entered.
pub(crate) fn enter(process: Process) -> Result<Process> {
    let (own, pid) = (Process::own()?, process.pid());
    let is_elsewhere = |kind: &str| {
        let both = own.namespace(kind).zip(process.namespace(kind));
        both.map(|(own, theirs)| own != theirs)
    };
    // Of a process that we may not look at, the trace itself says why.
    if is_elsewhere("pid") != Some(true) {
        // As root with all ids free a tree may have only that; what else is in it is seen without.
        if is_elsewhere("ipc") == Some(true)
            && let Ok(namespace) = File::open(process.path("ns/ipc"))
        {
            let _ = setns(namespace, CloneFlags::CLONE_NEWIPC);
        }
        return Ok(process);
    }
    front::note(&process);
    let why = || format!("cannot enter the namespaces of process {pid}");
    let teller = Teller::of(&process).because(why)?;
    let standing = Standing::of(&process);
    // Our own number of it may be somebody else's in there.
    let inner = process.main_status()?.inner_id;
    let began = process.main_stat()?.starttime;
    let mut others = Vec::new();
    for (kind, flag) in KINDS {
        let opened = match is_elsewhere(kind) {
            Some(false) => continue,
            Some(true) => File::open(process.path(&format!("ns/{kind}"))).ok(),
            None => None,
        };
        // It leaves its namespaces before it closes its files, and is a zombie only then.
        let refused = || match process.is_ending() {
            true => gone(pid),
            false => forbidden(pid, Errno::EACCES),
        };
        others.push((opened.ok_or_else(refused)?, flag));
    }
    let here = std::env::current_dir().because(|| "cannot find out the current directory")?;
    let id = |place: &str| fs::metadata(place).map(|found| (found.dev(), found.ino())).ok();
    let (root, theirs) = (id("/"), process.path("root"));
    // Whose root directory is ours, too.
    let shared = File::open(&theirs).ok().zip(File::open("/").ok()).filter(|_| id(&theirs) == root);
    for (namespace, flag) in others {
        setns(namespace, flag).map_err(|errno| forbidden(pid, errno))?;
    }
    // A mount namespace is entered at its own root, which is not that of a chroot (setns(2)).
    if let Some((shared, left)) = shared
        && id("/") != root
    {
        let link = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::read_link(link(&left))
            .map(|left| proc::paths_begin_behind(left.into()))
            .because(why)?;
        std::env::set_current_dir(link(&shared))
            .and_then(|()| std::os::unix::fs::chroot("."))
            .because(why)?;
    }
    std::env::set_current_dir(&here)
        .because(|| format!("there is no {} where process {pid} lives", here.display()))?;
    match fork(libc::SIGCHLD).because(why)? {
        None => {
            teller.ask();
            let there = Process::open(inner)?;
            // As long as the one that was meant is there, its id in there is its own, too. The time namespace in which we
            // are told when it began is still ours.
            let is_it = there.main_stat()?.starttime == began && !process.is_reaped();
            match is_it {
                true => Ok(there),
                false => Err(gone(pid)),
            }
        }
        Some(child) => {
            teller.tell(child);
            // Nobody in there may signal them.
            if process.main_stat().is_ok_and(|stat| stat.has_ended()) || process.is_reaped() {
                standing.go_on();
            }
            wait_and_end(child)
        }
    }
}

/// What a process id that the user says is in the PID namespace of `near`: an id of ours, or one of its own.
pub(crate) fn inner(pid: Pid, near: &Process) -> Pid {
    let Ok(process) = Process::glimpse(pid) else { return pid };
    match process.namespace("pid") {
        Some(theirs) if Some(&theirs) == near.namespace("pid").as_ref() => process.inner_pid(),
        _ => pid,
    }
}

fn forbidden(pid: Pid, errno: Errno) -> Error {
    Error::new(format!("cannot enter the namespaces of process {pid}: {}", errno.desc())).hint(
        "the user who made them may, and root; a container's processes are saved from inside of it",
    )
}

/// Ends as a child does.
fn wait_and_end(child: Pid) -> ! {
    let mut status = 0;
    loop {
        // SAFETY: waits for a child of ours.
        let waited = unsafe { libc::waitpid(child.get(), &mut status, 0) };
        if Errno::result(waited) != Err(Errno::EINTR) {
            break;
        }
    }
    let status = match libc::WIFEXITED(status) {
        true => libc::WEXITSTATUS(status),
        false => 128 + libc::WTERMSIG(status),
    };
    // SAFETY: ends this process without running anything twice.
    unsafe { libc::_exit(status) }
}
