// SPDX-License-Identifier: LGPL-2.1-only
//! The program that waits for us in the C API (payload/src/api.rs): what it asks for, and our
//! answer.

use super::keeper;
use crate::error::{Because, Error, Result};
use crate::inject::region::Region;
use crate::inject::turns::own_task;
use crate::proc::{Pid, Process};
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use ckpt_abi::api::{API, Answer, Api, ERROR_LEN};
use ckpt_abi::region::{Config, Control, NAME_LEN};
use ckpt_abi::turn::Event;
use std::mem::offset_of;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the payload may take to allow us to trace it, after it has started us.
const PERMISSION: Duration = Duration::from_secs(2);

/// A process with a payload, and its part of the C API.
pub(crate) struct Caller {
    /// Its memory.
    pub memory: Memory,
    /// The payload.
    pub region: Region,
    /// What it asks for.
    pub api: Api,
}

impl Caller {
    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.memory.pid()
    }

    /// The process that has started us.
    ///
    /// # Errors
    /// It may not be traced, or has no payload.
    pub(crate) fn wait(process: &Process) -> Result<Self> {
        let pid = process.pid();
        let deadline = Instant::now() + PERMISSION;
        loop {
            match Self::find(process) {
                Ok(Some(caller)) => return Ok(caller),
                Ok(None) => return Err(Error::new(format!("process {pid} has no payload"))),
                Err(e) if Instant::now() > deadline => return Err(e),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// A process; None without a payload.
    pub(crate) fn find(process: &Process) -> Result<Option<Self>> {
        let Some((memory, region)) = Region::of(process)? else { return Ok(None) };
        let api = read(&memory, &region)?;
        Ok(Some(Self { memory, region, api }))
    }

    /// Writes the configuration.
    pub(crate) fn configure(&mut self, config: &Config) -> Result<()> {
        self.region.control.config = *config;
        self.region.set_config(&self.memory)?;
        put(&self.memory, &self.region, offset_of!(Api, values), &self.api.values)
    }

    /// Replaces the name that it has asked for.
    pub(crate) fn rename(&self, path: &Path) -> Result<()> {
        let bytes = path.as_os_str().as_bytes();
        let mut name = [0; NAME_LEN];
        let room = name[..NAME_LEN - 1].get_mut(..bytes.len());
        room.ok_or(nix::errno::Errno::ENAMETOOLONG)
            .because(|| format!("cannot execute {}", path.display()))?
            .copy_from_slice(bytes);
        put(&self.memory, &self.region, offset_of!(Api, name), &name)
    }

    /// Names the process that takes its periodic checkpoints.
    pub(crate) fn appoint(&self, monitor: u32) -> Result<()> {
        self.memory.put(self.region.base + offset_of!(Control, monitor) as u64, &monitor)
    }

    /// Sends the process away that is our parent in the program's stead, if it can be; the program stands still
    /// for that moment.
    ///
    /// # Errors
    /// The program cannot be stopped; then it reaps that process itself.
    pub(crate) fn dismiss_keeper(&self) -> Result<()> {
        let mut frozen = Frozen::freeze(self.memory.process())?;
        frozen.attend(&self.memory, &self.region.desk(), self.region.base)?;
        keeper::dismiss(&mut frozen, &self.memory, &self.region)?;
        frozen.thaw();
        Ok(())
    }

    /// Says that nothing more will be done.
    pub(crate) fn end_turn(&self) {
        let _ = self.region.step(&self.memory, self.pid(), Event::End(own_task(self.pid())));
    }

    /// Says what came of it. A process that is gone needs no word.
    pub(crate) fn answer(&self, error: Option<&Error>) {
        answer(&self.memory, &self.region, error);
    }
}

/// The C API's part of a region.
pub(crate) fn read(memory: &Memory, region: &Region) -> Result<Api> {
    memory.get(region.base + API)
}

/// Writes a field of it.
pub(crate) fn put<T: zerocopy::IntoBytes + zerocopy::Immutable>(
    memory: &Memory,
    region: &Region,
    offset: usize,
    value: &T,
) -> Result<()> {
    memory.put(region.base + API + offset as u64, value)
}

/// Tells a caller that the checkpoint is sealed, or why there is none.
pub(crate) fn answer(memory: &Memory, region: &Region, error: Option<&Error>) {
    if let Some(error) = error {
        let mut text = [0; ERROR_LEN];
        let sentence = error.to_string();
        let mut len = sentence.len().min(ERROR_LEN - 1);
        while !sentence.is_char_boundary(len) {
            len -= 1;
        }
        text[..len].copy_from_slice(&sentence.as_bytes()[..len]);
        let _ = put(memory, region, offset_of!(Api, error), &text);
        let _ = put(memory, region, offset_of!(Api, errno), &error.errno().cast_unsigned());
    }
    let answer = if error.is_some() { Answer::Failed } else { Answer::Done };
    let _ = put(memory, region, offset_of!(Api, answer), &(answer as u32));
}
