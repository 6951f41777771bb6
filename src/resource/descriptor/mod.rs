// SPDX-License-Identifier: LGPL-2.1-only
//! File descriptors.
//!
//! One file a kind of what is behind a descriptor, each with its [`Kind`]: how it is recognised, what
//! of it is saved, how it is opened again, and what can only be done when the numbers are there. An
//! open file description (open(2)) is saved once, with its own flags and offset; further descriptors
//! of it name the first.
//!
//! What was a terminal, pipe or socket under 0, 1 or 2 becomes what the restarter has there. What
//! cannot be opened again is named at the checkpoint; its number answers EBADF afterwards.

pub(crate) mod deleted;
pub(crate) mod device;
pub(crate) mod directory;
pub(crate) mod epoll;
pub(crate) mod eventfd;
pub(crate) mod fanotify;
pub(crate) mod grown;
pub(crate) mod inotify;
pub(crate) mod late;
pub(crate) mod locks;
pub(crate) mod lost;
pub(crate) mod memfd;
mod named;
pub(crate) mod names;
pub(crate) mod namespace;
pub(crate) mod numbers;
pub(crate) mod objects;
pub(crate) mod open;
pub(crate) mod ownership;
mod pidfd;
pub(crate) mod pipe;
pub(crate) mod pollable;
pub(crate) mod proc_file;
pub(crate) mod pty;
pub(crate) mod queue;
pub(crate) mod regular;
pub(crate) mod shared;
pub(crate) mod signalfd;
pub(crate) mod socket;
mod sought;
mod spot;
pub(crate) mod standard;
pub(crate) mod tables;
pub(crate) mod terminal;
pub(crate) mod timerfd;
pub(crate) mod unread;
mod watched;

use super::losses::List;
use super::{Common, Content, Gathered, Target};
use crate::error::Result;
use crate::proc::Pid;
use crate::proc::{
    Process,
    fds::{Fd, shown},
};
use crate::ptrace::raw;
use ckpt_abi::image::{Descriptor, DescriptorKind, ObjectKind};
use nix::libc;
use std::cell::OnceCell;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use zerocopy::FromZeros;

pub(crate) use open::{Missing, Opening, Origin, Restored, Sources, open_all};
pub(crate) use tables::{Place, Tables};

/// What ckpt knows about one kind of descriptor.
pub(crate) struct Kind {
    /// Whether a description is of this kind, if it is of none that [`ORDER`] has before.
    pub recognise: fn(&Fd, &Look<'_>) -> bool,
    /// Fills in the record and what travels beside it.
    pub save: fn(&Fd, &Look<'_>, &mut Saving) -> Result<()>,
    /// Makes it again.
    pub open: fn(&Descriptor, &mut Opening<'_>) -> Result<Origin>,
}

/// The kinds in the order in which they are asked: the last takes everything.
const ORDER: [DescriptorKind; 20] = {
    [
        DescriptorKind::Event,
        DescriptorKind::Signal,
        DescriptorKind::Timer,
        DescriptorKind::Epoll,
        DescriptorKind::Process,
        DescriptorKind::Inotify,
        DescriptorKind::Namespace,
        DescriptorKind::Proc,
        DescriptorKind::Queue,
        DescriptorKind::Memfd,
        DescriptorKind::Path,
        DescriptorKind::Deleted,
        DescriptorKind::Directory,
        DescriptorKind::Pty,
        DescriptorKind::Stdio,
        DescriptorKind::Terminal,
        DescriptorKind::Device,
        DescriptorKind::Pipe,
        DescriptorKind::Socket,
        DescriptorKind::Lost,
    ]
};

/// The table of kinds.
pub(crate) fn of(kind: DescriptorKind) -> &'static Kind {
    match kind {
        DescriptorKind::Stdio => &standard::KIND,
        DescriptorKind::Path => &regular::KIND,
        DescriptorKind::Deleted => &deleted::KIND,
        DescriptorKind::Memfd => &memfd::KIND,
        DescriptorKind::Lost => &lost::KIND,
        DescriptorKind::Event => &eventfd::KIND,
        DescriptorKind::Pipe => &pipe::KIND,
        DescriptorKind::Timer => &timerfd::KIND,
        DescriptorKind::Signal => &signalfd::KIND,
        DescriptorKind::Epoll => &epoll::KIND,
        DescriptorKind::Directory => &directory::KIND,
        DescriptorKind::Device => &device::KIND,
        DescriptorKind::Terminal => &terminal::KIND,
        DescriptorKind::Proc => &proc_file::KIND,
        DescriptorKind::Namespace => &namespace::KIND,
        DescriptorKind::Queue => &queue::KIND,
        DescriptorKind::Socket => &socket::KIND,
        DescriptorKind::Pty => &pty::KIND,
        DescriptorKind::Process => &pidfd::KIND,
        DescriptorKind::Inotify => &inotify::KIND,
    }
}

/// What a kind may look at when it saves.
pub(crate) struct Look<'a> {
    /// The process.
    pub process: &'a Process,
    /// Its number in its own PID namespace, as its /proc has it.
    pub inner_pid: Pid,
    /// All its descriptors.
    pub all: &'a [Fd],
    /// Those of all processes of the checkpoint.
    pub tables: &'a Tables,
    /// What the standard streams of the first process were when it began: device, inode, access mode.
    pub at_start: &'a [[u64; 3]; 3],
    /// How large a file with a name may be that travels along, in bytes; 0: none does.
    pub embed: u64,
    /// Device number of its controlling terminal, or 0.
    pub terminal: u64,
    /// A duplicate of the descriptor that is saved, if anybody has asked for it.
    taken: OnceCell<nix::Result<OwnedFd>>,
    /// Where it can be opened again, if that was looked for.
    located: OnceCell<Option<PathBuf>>,
}

impl Look<'_> {
    /// A duplicate of the descriptor that is saved.
    ///
    /// # Errors
    /// Nobody may have one.
    fn ours(&self, fd: &Fd) -> nix::Result<&OwnedFd> {
        self.taken.get_or_init(|| raw::take_of(self.process, fd.number)).as_ref().map_err(|e| *e)
    }

    /// A path that leads to it ([`names::locate`]).
    fn path(&self, fd: &Fd) -> Option<&Path> {
        self.located.get_or_init(|| names::locate(fd, self)).as_deref()
    }
}

/// An open file description that is being saved.
pub(crate) struct Saving {
    /// Its record; the path is set from `path`.
    pub record: Descriptor,
    /// Where it is opened again, or what it is called.
    pub path: OsString,
    /// What travels in the image beside the record, under a number.
    pub content: Option<Content>,
    /// The file travels in the image, as an object.
    pub file: Option<ObjectKind>,
    /// What a restart goes without, one phrase each.
    pub losses: Vec<Loss>,
    /// What is in the way of a checkpoint.
    pub obstacles: Vec<String>,
    /// The same, of what usually goes by itself when the program goes on.
    pub(crate) passing: Vec<String>,
}

/// What a restart goes without; those of one sort become one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// A descriptor that will answer EBADF, and why.
    Descriptor(String),
    /// The same of one that nobody is likely to miss.
    Inherited(String),
    /// A connection that will be reset, and whose other end was outside.
    Reset(String),
    /// A file that is too large for --embed-files.
    Large(String),
    /// A sentence of its own.
    Sentence(String),
}

/// The kind of a record, if this build knows it.
pub(crate) fn kind(record: &Descriptor) -> DescriptorKind {
    DescriptorKind::try_from(record.kind).unwrap_or(DescriptorKind::Lost)
}

/// Whether a restart opens this by a path that must be there.
pub(crate) fn needs_path(record: &Descriptor) -> bool {
    match kind(record) {
        DescriptorKind::Path => record.extra != regular::EMBEDDED,
        DescriptorKind::Device => device::needs_path(record),
        DescriptorKind::Directory => true,
        DescriptorKind::Stdio
        | DescriptorKind::Deleted
        | DescriptorKind::Memfd
        | DescriptorKind::Lost
        | DescriptorKind::Event
        | DescriptorKind::Pipe
        | DescriptorKind::Timer
        | DescriptorKind::Signal
        | DescriptorKind::Epoll
        | DescriptorKind::Terminal
        | DescriptorKind::Proc
        | DescriptorKind::Namespace
        | DescriptorKind::Queue
        | DescriptorKind::Process
        | DescriptorKind::Inotify
        | DescriptorKind::Socket
        | DescriptorKind::Pty => false,
    }
}

/// Saves every descriptor of the target.
pub(crate) fn save(
    target: &Target<'_>,
    gathered: &mut Gathered,
    common: &mut Common,
) -> Result<()> {
    let number = gathered.number;
    let pid = target.frozen.pid;
    let process = target.process();
    let inner_pid = target.status.inner_id;
    let terminal = terminal::given(target.stat, &common.tables);
    let mut losses = Vec::new();
    let count = common.tables.of.get(number as usize).map_or(0, |table| table.fds.len());
    for index in 0..count {
        let Some(fd) = common.tables.of[number as usize].fds.get(index).cloned() else { break };
        if device::is_gpu(&fd.target) {
            let (path, fd) = (fd.target.display(), fd.number);
            gathered.obstacles.push(format!("it uses a GPU ({path}, descriptor {fd})"));
        }
        let leader = common.tables.leader(number, &fd);
        losses.extend(common.tables.guessed().map(Loss::Sentence));
        let record = match leader {
            Some(leader) => {
                let shared = common.tables.saved(leader).unwrap_or_else(Descriptor::new_zeroed);
                losses
                    .extend(common.tables.lost(leader).map(|loss| loss.again(leader, number, &fd)));
                shared
            }
            None => {
                let look = Look {
                    process,
                    inner_pid,
                    all: &common.tables.of[number as usize].fds,
                    tables: &common.tables,
                    at_start: &common.tables.at_start,
                    embed: common.embed,
                    terminal,
                    taken: OnceCell::new(),
                    located: OnceCell::new(),
                };
                let saved = describe(&fd, number, &look)?;
                let mut record = saved.record;
                record.path = common.strings.add(&saved.path);
                if let Some(kind) = saved.file {
                    record.content = objects::save(process, &fd, kind, record.path, common);
                }
                common.tables.keep(record, &saved.losses);
                losses.extend(saved.losses);
                gathered.obstacles.extend(saved.obstacles);
                gathered.passing.extend(saved.passing);
                let known = |c: &Content| gathered.contents.iter().any(|k| k.index == c.index);
                gathered.contents.extend(saved.content.filter(|c| !known(c)));
                record
            }
        };
        let kind = kind(&record);
        gathered.passing.extend(socket::flight::obstacle(&fd, kind, leader.is_none()));
        let closes = fd.cloexec && common.tables.ptys().closes_on_exec(pid, fd.number);
        let cloexec = u32::from(closes);
        gathered.descriptors.push(Descriptor { fd: fd.number, cloexec, ..record });
    }
    tell(losses, gathered);
    locks::save(number, &common.tables, gathered);
    Ok(())
}

fn describe(fd: &Fd, number: u32, look: &Look<'_>) -> Result<Saving> {
    let record = Descriptor {
        fd: fd.number,
        flags: fd.flags,
        position: fd.position,
        shared_with: fd.number,
        shared_process: number,
        mode: fd.mode,
        rdev: fd.rdev,
        size: fd.size,
        mtime: fd.mtime_ns,
        inode: fd.inode,
        device: fd.device,
        owner_type: ownership::NOBODY,
        ..Descriptor::new_zeroed()
    };
    let path = fd.target.clone();
    let mut saving = Saving {
        record,
        path,
        content: None,
        file: None,
        losses: Vec::new(),
        obstacles: Vec::new(),
        passing: Vec::new(),
    };
    let found = ORDER.into_iter().find(|kind| (of(*kind).recognise)(fd, look));
    let kind = found.unwrap_or(DescriptorKind::Lost);
    saving.record.kind = kind as u32;
    (of(kind).save)(fd, look, &mut saving)?;
    if kind != DescriptorKind::Lost {
        ownership::save(fd, look, &mut saving);
    }
    Ok(saving)
}

impl Saving {
    /// Gives up: the descriptor will answer EBADF.
    pub(crate) fn lose(&mut self, why: &str) {
        self.record.kind = DescriptorKind::Lost as u32;
        (self.content, self.file) = (None, None);
        let (fd, path) = (shown(self.record.fd), self.path.display());
        self.losses.push(Loss::Descriptor(format!("{fd} ({path}: {why})")));
    }

    /// Names a loss.
    pub(crate) fn say(&mut self, sentence: String) {
        self.losses.push(Loss::Sentence(sentence));
    }
}

impl Loss {
    /// The same of a further descriptor of what `leader` names first.
    fn again(&self, leader: Place, number: u32, fd: &Fd) -> Self {
        let what = |what: &String| match leader.process == number {
            true => shown(fd.number),
            false => {
                let why = what.split_once(' ').map_or("", |(_, why)| why);
                format!("{} {why}", shown(fd.number))
            }
        };
        match self {
            Self::Inherited(text) => Self::Inherited(what(text)),
            Self::Descriptor(text) => Self::Descriptor(what(text)),
            Self::Reset(text) => Self::Reset(what(text)),
            other => other.clone(),
        }
    }
}

/// Says what the process goes without.
fn tell(losses: Vec<Loss>, gathered: &mut Gathered) {
    for loss in losses {
        match loss {
            Loss::Descriptor(what) => gathered.lists.push((List::Lost, what)),
            Loss::Inherited(what) => gathered.lists.push((List::Inherited, what)),
            Loss::Reset(what) => gathered.lists.push((List::Reset, what)),
            Loss::Large(what) => gathered.lists.push((List::Large, what)),
            Loss::Sentence(what) if gathered.losses.contains(&what) => {}
            Loss::Sentence(what) => gathered.losses.push(what),
        }
    }
}

/// Whether a descriptor of process `number` is the first of its description.
pub(crate) fn is_first(record: &Descriptor, number: u32) -> bool {
    (record.shared_process, record.shared_with) == (number, record.fd)
}

/// The type of a file, of a mode as stat(2) has it.
pub(crate) fn file_type(mode: u32) -> u32 {
    mode & libc::S_IFMT
}

/// How a description was opened: O_RDONLY, O_WRONLY or O_RDWR.
pub(crate) fn access(flags: u32) -> i32 {
    flags.cast_signed() & libc::O_ACCMODE
}

/// Whether a description only names a file (O_PATH).
pub(crate) fn only_names(flags: u32) -> bool {
    flags.cast_signed() & libc::O_PATH != 0
}
