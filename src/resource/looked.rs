// SPDX-License-Identifier: LGPL-2.1-only
//! What /proc and the memory of a process that stands still tell by themselves.
//!
//! Nothing here needs a traced thread, so several processes are looked at abreast. All of it stays as it is until the
//! process goes on: its threads, which we let work for us, only ask.

use super::memory;
use super::presumed::{Before, has_userfaultfd};
use super::runtime::loaded::{self, Loaded};
use crate::error::Result;
use crate::inject::region::Region;
use crate::proc::fds::Fd;
use crate::proc::limits::Limit;
use crate::proc::links::Link;
use crate::proc::maps::Vma;
use crate::proc::namespaces::Namespaces;
use crate::proc::stat::Stat;
use crate::proc::{Pid, Process, Tid};
use crate::ptrace::memory::Memory;
use crate::ptrace::raw::{self, Share};
use std::ffi::OsString;

/// What was seen of one process.
pub(crate) struct Looked {
    /// What the kernel says of its first thread.
    pub first: Stat,
    /// Its children.
    pub children: Vec<Pid>,
    /// Its descriptors.
    pub fds: Vec<Fd>,
    /// Its mappings with their flags.
    pub vmas: Vec<Vma>,
    /// These were read [before](super::presumed) it stood still.
    pub presumed: bool,
    /// What of these is in the way.
    pub obstacles: Vec<String>,
    /// The rest, if its memory can be looked at.
    pub rest: Option<Rest>,
}

/// What is only looked at where its memory can be.
pub(crate) struct Rest {
    /// Its executable and libraries.
    pub loaded: Vec<Loaded>,
    pub(crate) auxv: Vec<u8>,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) exe: Link,
    pub(crate) cwd: Link,
    pub(crate) root: Link,
    pub(crate) limits: [Limit; 16],
    pub(crate) oom_score: Option<i32>,
    pub(crate) coredump_filter: Option<u32>,
    pub(crate) namespaces: Namespaces,
    /// Its CPU time in clock ticks.
    pub(crate) cpu_time: u64,
    /// That of its children that it has waited for.
    pub(crate) childrens_cpu_time: u64,
}

impl Looked {
    /// Looks at a process that stands still, of whose mappings something may be known from before, and maybe that it has
    /// no children.
    ///
    /// # Errors
    /// It is gone, or may not be looked at.
    pub(crate) fn at(
        process: &Process,
        memory: &Memory,
        (before, is_childless): (Option<&Before>, bool),
    ) -> Result<Self> {
        let first = process.stat(process.main_thread())?;
        let fds = process.fds()?;
        let presumed = before.and_then(|before| before.presume(process, &fds));
        let is_presumed = presumed.is_some();
        let mut vmas = presumed.map_or_else(|| process.maps_with_flags(), Ok)?;
        // With one of its own it may ask what was written to, as we do: whoever asks first has the answer.
        let ours = !has_userfaultfd(&fds) && vmas.iter().any(|vma| vma.flags.has("uw"));
        if ours && is_tracked_by_us(memory, &vmas) {
            vmas.iter_mut().for_each(|vma| vma.flags = vma.flags.without("uw"));
        }
        let obstacles = memory::obstacles(&vmas);
        // To read what a handler of the program has to fill first would be to wait for it.
        let rest = match vmas.iter().any(memory::is_filled) {
            true => None,
            false => Some(Rest::of(process, memory)?),
        };
        let children = if is_childless { Vec::new() } else { process.children() };
        let presumed = is_presumed;
        Ok(Self { first, children, fds, vmas, presumed, obstacles, rest })
    }
}

/// Whether what is write-protected of a process is so for its periodic checkpoints.
fn is_tracked_by_us(memory: &Memory, vmas: &[Vma]) -> bool {
    Region::find(memory, vmas).is_some_and(|region| region.control.tracked != 0)
}

/// What was seen of one thread.
pub(crate) struct LookedThread {
    /// Its id.
    pub tid: Tid,
    /// The namespaces that it has of its own, in words.
    pub(crate) left: Vec<&'static str>,
    /// Whether it has descriptors of its own, and a working directory. Where the kernel has no kcmp(2), nobody can tell.
    pub(crate) apart: [bool; 2],
}

impl LookedThread {
    /// Looks at a thread of a process that has these namespaces, if they were looked at.
    pub(crate) fn at(process: &Process, tid: Tid, namespaces: Option<&Namespaces>) -> Self {
        let main = process.main_thread();
        let (mut left, mut apart) = (Vec::new(), [false; 2]);
        if let Some(namespaces) = namespaces.filter(|_| tid != main) {
            left = namespaces.left_by(process, tid);
            let own = |what| raw::share(main, tid, what) == Ok(false);
            apart = [Share::Files, Share::Directory].map(own);
        }
        Self { tid, left, apart }
    }
}

impl Rest {
    fn of(process: &Process, memory: &Memory) -> Result<Self> {
        let auxv = process.auxv()?;
        Ok(Self {
            loaded: loaded::all(memory, &auxv),
            auxv,
            arguments: process.cmdline()?,
            exe: process.exe()?,
            cwd: process.cwd()?,
            root: process.root()?,
            limits: process.limits()?,
            oom_score: process.oom_score(),
            coredump_filter: process.coredump_filter(),
            namespaces: Namespaces::of(process),
            cpu_time: process.cpu_time().unwrap_or(0),
            childrens_cpu_time: process.childrens_cpu_time().unwrap_or(0),
        })
    }
}
