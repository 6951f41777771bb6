// SPDX-License-Identifier: LGPL-2.1-only
//! A payload that is in a process already.

use crate::error::{Error, Result};
use crate::fault::{Point, reach};
use crate::proc::tree::Begun;
use crate::proc::{Pid, Process, maps::Vma};
use crate::ptrace::call::Caller;
use crate::ptrace::lend::Desk;
use crate::ptrace::memory::Memory;
use ckpt_abi::region::{Config, Control, HANDLER_MASK, MAGIC, RANGES, STACKS, is_base, next_base};
use nix::libc;
use std::mem::offset_of;
use zerocopy::FromZeros;

const SA_SIGINFO: u64 = 4;
const SA_RESTORER: u64 = 0x0400_0000;
const SA_ONSTACK: u64 = 0x0800_0000;
const SA_RESTART: u64 = 0x1000_0000;

/// What the standard streams of a process are ([`Control::standard`]).
pub(crate) fn standard(process: &Process) -> [[u64; 3]; 3] {
    [0, 1, 2].map(|number| process.open_file(number).unwrap_or_default())
}

/// The region of a payload, as read when it was found.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    /// Its first address.
    pub base: u64,
    /// Its control page.
    pub control: Control,
}

impl Region {
    /// Looks for a region in a process.
    pub(crate) fn find(memory: &Memory, vmas: &[Vma]) -> Option<Self> {
        let candidates = vmas.iter().map(|v| v.start);
        candidates.filter(|start| is_base(*start)).find_map(|base| Self::at(memory, base))
    }

    fn at(memory: &Memory, base: u64) -> Option<Self> {
        Self::read(memory, base).ok().filter(|region| region.control.magic == MAGIC)
    }

    /// The memory of a process, and the payload's region in it, if it has one.
    ///
    /// # Errors
    /// The process may not be looked at, or is gone.
    pub(crate) fn of(process: &Process) -> Result<Option<(Memory, Self)>> {
        let memory = Memory::open(process)?;
        // Nearly all lie in the first place.
        let region = match Self::at(&memory, next_base(0, 0)) {
            None => Self::find(&memory, &process.maps_below(RANGES[0][1])?),
            first => first,
        };
        Ok(region.map(|region| (memory, region)))
    }

    /// Whether it was made for this process, which has not inherited it.
    pub(crate) fn is_for(&self, process: &Process) -> bool {
        Pid::of_word(self.control.owner) == process.inner_pid()
    }

    /// The session and the process group in which the life of the process under ckpt began; None where it has inherited the region,
    /// or was configured for none.
    pub(crate) fn begun(&self, process: &Process) -> Begun {
        let config = self.control.config;
        (config.run != 0 && self.is_for(process)).then(|| config.begun.map(Pid::of_word))
    }

    /// None, for a process that has none: what one that is made for it would say of it.
    pub(crate) fn none(process: &Process, config: Config) -> Self {
        let (owner, standard) = (process.inner_pid().word(), standard(process));
        Self { base: 0, control: Control { config, owner, standard, ..Control::new_zeroed() } }
    }

    /// Whether there is one.
    pub(crate) fn is_there(&self) -> bool {
        self.base != 0
    }

    /// Reads the region at `base`.
    pub(crate) fn read(memory: &Memory, base: u64) -> Result<Self> {
        Ok(Self { base, control: memory.get(base)? })
    }

    /// What it has for threads that work for us.
    pub(crate) fn desk(&self) -> Desk {
        Desk::of(self.base, self.control.thunk, self.control.clone_thunk)
    }

    /// Whether an address belongs to the region.
    pub(crate) fn contains(&self, addr: u64) -> bool {
        (self.base..self.base + self.control.region_len).contains(&addr)
    }

    /// The address behind it, where nothing is unless the program has put it there.
    pub(crate) fn end(&self) -> u64 {
        self.base + self.control.region_len
    }

    /// Counts the checkpoints of this run and those that it came from.
    pub(crate) fn set_generation(&self, memory: &Memory, generation: u64) -> Result<()> {
        memory.put(self.base + offset_of!(Control, generation) as u64, &generation)
    }

    /// Writes what the standard streams were when the program began.
    pub(crate) fn set_standard(&self, memory: &Memory, standard: &[[u64; 3]; 3]) -> Result<()> {
        memory.put(self.base + offset_of!(Control, standard) as u64, standard)
    }

    /// Writes the configuration.
    pub(crate) fn set_config(&self, memory: &Memory) -> Result<()> {
        memory.put(self.base + offset_of!(Control, config) as u64, &self.control.config)?;
        memory.put(self.base + offset_of!(Control, generation) as u64, &self.control.generation)
    }

    /// Makes `config` the payload's, and its handler that of the signal in it. The new signal is taken first and the
    /// old one given back last: should we die in between, neither does to the program what it would do without us.
    ///
    /// # Errors
    /// The thread could not change a disposition, or the memory is gone.
    pub(crate) fn configure(
        &mut self,
        caller: &mut Caller<'_>,
        memory: &Memory,
        config: &Config,
    ) -> Result<()> {
        let (before, old_action) = (self.control.config.asyncsig, self.control.old_action);
        let changed = config.asyncsig != before;
        if changed && config.asyncsig != 0 {
            self.control.old_action = self.take(caller, memory, config.asyncsig)?;
            reach(Point::Taken);
        }
        self.control.config = *config;
        let at = |offset: usize| self.base + offset as u64;
        memory.put(at(offset_of!(Control, old_action)), &self.control.old_action)?;
        memory.put(at(offset_of!(Control, config)), config)?;
        reach(Point::Configured);
        if changed && before != 0 {
            self.give_back(caller, memory, before, &old_action)?;
        }
        Ok(())
    }

    /// Takes a signal; the kernel's struct sigaction of what had it before.
    fn take(&self, caller: &mut Caller<'_>, memory: &Memory, signal: u32) -> Result<[u64; 4]> {
        let (new, old) = (self.base + STACKS, self.base + STACKS + 32);
        memory.put(new, &self.action())?;
        let what = "cannot install the handler of the checkpoint signal";
        caller.expect(libc::SYS_rt_sigaction, &[signal.into(), new, old, 8], what)?;
        let had: [u64; 4] = memory.get(old)?;
        // A ckpt that died with the signal taken did not write down whose it was.
        Ok(if had[0] == self.control.handler { [0; 4] } else { had })
    }

    /// Gives a signal back to what had it before, unless the program has given it to another meanwhile.
    fn give_back(
        &self,
        caller: &mut Caller<'_>,
        memory: &Memory,
        signal: u32,
        action: &[u64; 4],
    ) -> Result<()> {
        let (new, now) = (self.base + STACKS, self.base + STACKS + 32);
        let (signal, what) = (signal.into(), "cannot give the checkpoint signal back");
        caller.expect(libc::SYS_rt_sigaction, &[signal, 0, now, 8], what)?;
        if memory.get::<u64>(now)? == self.control.handler {
            memory.put(new, action)?;
            caller.expect(libc::SYS_rt_sigaction, &[signal, new, 0, 8], what)?;
        }
        Ok(())
    }

    /// The kernel's struct sigaction for the payload's handler: [`HANDLER_MASK`] blocked while it runs,
    /// on the alternate stack where there is one (goroutine stacks are tiny), system calls
    /// restarted.
    pub(crate) fn action(&self) -> [u64; 4] {
        let flags = SA_SIGINFO | SA_RESTORER | SA_ONSTACK | SA_RESTART;
        [self.control.handler, flags, self.control.restorer, HANDLER_MASK]
    }

    /// The checkpoint's name.
    pub(crate) fn name(&self) -> Result<std::path::PathBuf> {
        use std::os::unix::ffi::OsStrExt;
        let name = &self.control.config.name;
        let len = name.iter().position(|b| *b == 0).filter(|len| *len > 0);
        let len = len.ok_or_else(|| Error::new("the payload has no checkpoint name"))?;
        Ok(std::ffi::OsStr::from_bytes(&name[..len]).into())
    }
}
