// SPDX-License-Identifier: LGPL-2.1-only
//! The state of a process, one file a kind: how it is saved and, beside it, how it is restored.
//!
//! Saving reads a frozen [`Target`] into a [`Gathered`]. Restoring turns the records of an image
//! into descriptors and mappings of the restarting process and into [`plan`] orders for what can
//! only be done when nothing of the stub is left.

pub(crate) mod attributes;
pub(crate) mod cpu;
pub(crate) mod descriptor;
pub(crate) mod frame;
pub(crate) mod headless;
pub(crate) mod kinds;
pub(crate) mod kinship;
pub(crate) mod looked;
pub(crate) mod losses;
pub(crate) mod memory;
pub(crate) mod plan;
pub(crate) mod presumed;
pub(crate) mod privileges;
pub(crate) mod process;
pub(crate) mod regained;
pub(crate) mod relatives;
pub(crate) mod resolver;
mod rseq;
pub(crate) mod runtime;
pub(crate) mod scheduling;
pub(crate) mod seccomp;
pub(crate) mod signals;
pub(crate) mod sysv;
pub(crate) mod threads;
pub(crate) mod timers;
pub(crate) mod unsaved;
pub(crate) mod vdso;
pub(crate) mod written;
pub(crate) mod xstate;

use crate::image::strings::Strings;
use crate::inject::region::Region;
use crate::proc::Clocks;
use crate::proc::maps::Vma;
use crate::proc::stat::Stat;
use crate::proc::status::Status;
use crate::proc::{Process, Tid};
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use ckpt_abi::image as rec;
use looked::Rest;
use relatives::Relatives;
use runtime::loaded::Loaded;
use std::cell::OnceCell;
use std::path::PathBuf;
use std::rc::Rc;

/// A frozen process with the payload in it.
pub(crate) struct Target<'a> {
    /// Its stopped threads.
    pub frozen: &'a mut Frozen,
    /// Its memory.
    pub memory: &'a Memory,
    /// Its mappings with their flags.
    pub vmas: &'a [Vma],
    /// Its executable and libraries.
    pub loaded: &'a [Loaded],
    /// The payload.
    pub region: &'a Region,
    /// What the kernel says of its first thread, in words and in numbers.
    pub status: Rc<Status>,
    pub(crate) stat: &'a Stat,
    /// That thread.
    pub(crate) first: Tid,
    /// What else was seen of it, if nothing is in the way.
    pub(crate) rest: Option<&'a Rest>,
}

impl Target<'_> {
    /// What /proc says of it.
    pub(crate) fn process(&self) -> &Process {
        self.frozen.process()
    }
}

/// What travels in the image for a descriptor of a small kind.
pub(crate) struct Content {
    /// [`rec::Descriptor::content`]: the descriptor's number.
    pub index: u32,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A file whose content has to be written.
pub(crate) struct Stream {
    /// The object that it is.
    pub object: u32,
    /// A path by which we can open it for reading.
    pub path: PathBuf,
    /// The process by way of which the path leads there, if one does: as long as it is open here.
    pub _by: Option<Process>,
    /// System V shared memory, which has none.
    pub segment: Option<Segment>,
}

/// A segment of System V shared memory.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    /// Its identifier.
    pub id: i32,
    /// It has pages that are not in memory, so which there are cannot be asked.
    pub whole: bool,
}

/// What the processes of a checkpoint have in common: each refers to it.
#[derive(Default)]
pub(crate) struct Common {
    /// Strings that the records refer to.
    pub strings: Strings,
    /// Files whose content is in the image, and memory that mappings share.
    pub objects: Vec<rec::Object>,
    /// The files among the objects.
    pub streams: Vec<Stream>,
    /// The descriptors of all processes.
    pub tables: descriptor::Tables,
    /// Files of at most so many bytes travel along: as the first process is configured, whoever has them.
    pub embed: u64,
    /// What the image as a whole goes without, in sentences.
    pub losses: Vec<String>,
    /// The first process's clocks at the moment that the image shows: all that is left of its waits and timers was read before,
    /// so none of them ends early.
    pub clocks: Clocks,
    /// How the processes are related, if there are several.
    pub members: Vec<rec::Member>,
    /// Their terminal, if it is somebody else's and they are in its foreground.
    pub screen: Option<rec::Screen>,
    /// The System V objects that are theirs.
    pub systemv: Vec<rec::SystemV>,
    /// What is in them.
    pub messages: Vec<u8>,
    /// Read when it is first asked for.
    pub semaphores: OnceCell<Vec<(u32, Vec<u16>)>>,
    /// Rings of asynchronous I/O of which none is filled.
    pub quiet: memory::ring::Quiet,
    /// The parents.
    pub(crate) relatives: Relatives,
}

impl Common {
    /// The sets of System V semaphores that the processes have changed last, with their values.
    pub(crate) fn semaphores(&self) -> &[(u32, Vec<u16>)] {
        self.semaphores.get_or_init(|| sysv::semaphores(&self.tables.pids()))
    }
}

/// Everything that the image says of one process beside its pages.
#[derive(Default)]
pub(crate) struct Gathered {
    /// Which process of the image it is, from 0.
    pub number: u32,
    /// Threads, the main one first.
    pub threads: Vec<rec::Thread>,
    /// Their extended states.
    pub xstate: Vec<u8>,
    /// Robust mutexes that they hold.
    pub owners: Vec<rec::Owner>,
    /// Mappings.
    pub vmas: Vec<rec::VmaRecord>,
    /// Guard pages.
    pub guards: Vec<rec::Guard>,
    /// Shared memory that guards hide, by address.
    pub hidden: Vec<(u64, Vec<u8>)>,
    /// The files that mappings show.
    pub files: Option<memory::Files>,
    /// What it is to give back of semaphores.
    pub undo: Vec<rec::Undo>,
    /// Descriptors.
    pub descriptors: Vec<rec::Descriptor>,
    /// Locks on the files behind them.
    pub locks: Vec<rec::FileLock>,
    /// NUMA policies.
    pub policies: Vec<rec::NumaPolicy>,
    /// No memory has one.
    pub has_no_policies: bool,
    /// Filters of system calls, each behind those before it.
    pub filters: Vec<rec::Filter>,
    /// Their programs.
    pub filter_code: Vec<u8>,
    /// What is in descriptors of small kinds.
    pub contents: Vec<Content>,
    /// Signal dispositions.
    pub actions: Vec<rec::SignalAction>,
    /// Queued signals.
    pub pending: Vec<rec::PendingSignal>,
    /// Resource limits.
    pub limits: Vec<rec::LimitRecord>,
    /// The auxiliary vector.
    pub auxv: Vec<u8>,
    /// Interval and POSIX timers.
    pub timers: Vec<rec::Timer>,
    /// The process as a whole, but for its generation, which is the checkpoint's.
    pub process: Option<rec::ProcessRecord>,
    /// What is in the way of a checkpoint, all of it.
    pub obstacles: Vec<String>,
    /// The same, of what usually goes by itself when the program goes on.
    pub(crate) passing: Vec<String>,
    /// What the image goes without, in sentences.
    pub losses: Vec<String>,
    /// The same of what comes in numbers.
    pub lists: Vec<(losses::List, String)>,
}
