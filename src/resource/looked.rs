// SPDX-License-Identifier: LGPL-2.1-only
//! What /proc and the memory of a process that stands still tell by themselves.
//!
//! Nothing here needs a traced thread, so several processes are looked at abreast. All of it stays as it is until the
//! process goes on: its threads, which we let work for us, only ask.

use super::memory;
use super::runtime::loaded::{self, Loaded};
use crate::error::Result;
use crate::proc::Process;
use crate::proc::fds::Fd;
use crate::proc::limits::Limit;
use crate::proc::links::Link;
use crate::proc::maps::Vma;
use crate::proc::namespaces::Namespaces;
use crate::proc::stat::Stat;
use crate::ptrace::memory::Memory;
use std::ffi::OsString;

/// What was seen of one process.
pub(crate) struct Looked {
    /// Its descriptors.
    pub fds: Vec<Fd>,
    /// Its mappings with their flags.
    pub vmas: Vec<Vma>,
    /// What of these is in the way.
    pub obstacles: Vec<String>,
    /// What the kernel says of it, in numbers.
    pub stat: Stat,
    /// The rest, if nothing is in the way of looking at its memory.
    pub rest: Option<Rest>,
}

/// What is only looked at where nothing is in the way.
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
}

impl Looked {
    /// Looks at a process that stands still.
    ///
    /// # Errors
    /// It is gone, or may not be looked at.
    pub(crate) fn at(process: &Process, memory: &Memory) -> Result<Self> {
        let (fds, vmas) = (process.fds()?, process.maps_with_flags()?);
        let obstacles = memory::obstacles(&vmas);
        let rest = match obstacles.is_empty() {
            true => Some(Rest::of(process, memory)?),
            false => None,
        };
        let stat = process.stat(process.main_thread())?;
        Ok(Self { fds, vmas, obstacles, stat, rest })
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
            namespaces: Namespaces::of(process.pid()),
            cpu_time: process.cpu_time().unwrap_or(0),
        })
    }
}
