// SPDX-License-Identifier: LGPL-2.1-only
//! execve(2) is followed: what a program with a monitor executes is equipped as the program was.

use crate::dump::{phase1_freeze, phase2_equip};
use crate::error::{Error, Kind, Result};
use crate::image::stub;
use crate::inject::monitors::Found;
use crate::inject::{self, enter, last, monitor, monitors, region::Region};
use crate::proc::exec::is_of_32_bits;
use crate::proc::{Pid, Process};
use crate::ptrace::borrowed;
use crate::ptrace::call::Caller;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use crate::ptrace::sandbox;
use crate::resource::signals;
use ckpt_abi::region::{Config, Last};
use nix::libc;
use std::fs::File;
use std::time::{Duration, Instant};

/// How long a program has to be there before it is touched. A wrapper executes the next one at once, and a process that
/// is traced gets no rights of a set-user-ID file, without a word (execve(2)).
pub(super) const SETTLED: Duration = Duration::from_millis(20);
/// When to look again at a program that cannot be equipped: it may execute one that can.
const REFUSED: Duration = Duration::from_secs(1);
/// How long `ckpt save` waits for the monitor.
const PATIENCE: Duration = Duration::from_secs(5);
/// Exit status of a child that has to try again.
const AGAIN: u8 = 3;
/// Exit status of a child that has a sentence to say.
const NEVER: u8 = 4;

/// What a monitor knows of a program that it has not equipped.
pub(super) struct Follower {
    newcomer: Option<Newcomer>,
    /// The program's standard error, which set-user-ID programs do not let us have.
    stderr: Option<monitor::Spot>,
}

struct Newcomer {
    /// Its memory: that of this program only, which its next execve(2) empties.
    memory: Memory,
    /// An address in it.
    first: u64,
    since: Instant,
    refused: bool,
}

impl Newcomer {
    fn of(process: &Process) -> Option<Self> {
        let memory = Memory::open(process).ok()?;
        let first = process.maps().ok()?.iter().find(|vma| vma.read)?.start;
        let new = Self { memory, first, since: Instant::now(), refused: false };
        new.is_there().then_some(new)
    }

    fn is_there(&self) -> bool {
        self.memory.get::<u8>(self.first).is_ok()
    }
}

impl Follower {
    /// With what the monitor was given.
    pub(super) fn new() -> Self {
        Self { newcomer: None, stderr: monitor::given_stderr() }
    }

    /// How long to wait before the program is equipped; None: it is time.
    pub(super) fn nap(&mut self, program: &Process) -> Option<Duration> {
        match self.newcomer.as_ref().filter(|new| new.is_there()) {
            Some(new) if new.refused => Some(REFUSED),
            Some(new) => Some(SETTLED.saturating_sub(new.since.elapsed())).filter(|d| !d.is_zero()),
            None => {
                self.newcomer = Newcomer::of(program);
                Some(SETTLED)
            }
        }
    }

    /// Leaves this one alone.
    pub(super) fn refuse(&mut self) {
        if let Some(new) = &mut self.newcomer {
            new.refused = true;
        }
    }

    /// Remembers where the program says what goes wrong.
    pub(super) fn note_stderr(&mut self, program: &Process) {
        self.stderr = monitor::stderr_of(program);
    }

    /// The program's standard error; of one that may not be looked at, the terminal or file that it was.
    pub(super) fn stderr(&self, program: &Process) -> Option<File> {
        // What was taken by the id is the program's if that is there still.
        if let Ok(fd) = borrowed::take(program.pid(), 2)
            && !program.is_reaped()
        {
            return Some(fd.into());
        }
        monitor::reopen_stderr(self.stderr.as_ref()?)
    }
}

/// Why there are no checkpoints of a program whose memory may not be looked at.
pub(super) fn out_of_reach(program: &Process, error: &Error) -> String {
    let why =
        "it has other rights than we (set-user-ID, a file that may not be read, another user)";
    no_checkpoints(program, &format!("{why}: {error}"))
}

fn no_checkpoints(program: &Process, why: &str) -> String {
    let (pid, name) = (program.pid(), program.name().unwrap_or_default());
    let name = name.to_string_lossy();
    format!("no checkpoints of {name}, which process {pid} has executed: {why}")
}

/// What is carried over an execve(2).
pub(super) struct Before {
    /// The configuration.
    pub config: Config,
    /// How many checkpoints there were.
    pub generation: u64,
    /// What became of the last.
    pub last: Option<Last>,
    /// What the standard streams were at the very beginning: descendants may have them still.
    pub standard: Option<[[u64; 3]; 3]>,
}

/// The work of a monitor's child: equips the program as it was before. The exit status, and what there is to say.
pub(super) fn equip(program: &Process, before: &Before, monitor: u32) -> (u8, String) {
    match equipped(program, before, monitor) {
        Ok(sentence) => (0, sentence.unwrap_or_default()),
        Err(e) if matches!(e.kind(), Kind::Busy | Kind::Gone) => (AGAIN, String::new()),
        Err(e) => (NEVER, no_checkpoints(program, &e.to_string())),
    }
}

fn equipped(outer: &Process, before: &Before, monitor: u32) -> Result<Option<String>> {
    if is_of_32_bits(outer) {
        return Err(Error::new("it is a 32-bit program"));
    }
    let executable = stub::own()?;
    let process = enter::enter(outer.clone())?;
    phase1_freeze::check(&process)?;
    sandbox::refuse(&process)?;
    phase2_equip::await_restart(&process)?;
    let mut frozen = phase1_freeze::patiently(false, || Frozen::freeze_one(&process))?;
    let memory = Memory::open(&process)?;
    let vmas = process.maps()?;
    if enter::is_stub(&process, Some(&vmas)) || Region::find(&memory, &vmas).is_some() {
        return Ok(None);
    }
    let (config, sentence) = unused_signal(&process, outer.pid(), &before.config)?;
    let region = inject::inject(&mut frozen.threads[0], &memory, &vmas, &config, &executable)?;
    region.set_generation(&memory, before.generation)?;
    if let Some(last) = &before.last {
        last::put(&memory, region.base, last)?;
    }
    if let Some(standard) = before.standard {
        region.set_standard(&memory, &standard)?;
    }
    frozen.attend(&memory, &region.desk(), region.base)?;
    let mut caller = Caller::new(&mut frozen.threads[0], &memory, &region.desk())?;
    monitor::appoint(monitor, &mut caller, &memory, &region)?;
    frozen.thaw();
    Ok(sentence)
}

/// The configuration without its signal, if the program has one use or another for that: what it has done so far it has
/// done without us.
fn unused_signal(
    process: &Process,
    outer: Pid,
    config: &Config,
) -> Result<(Config, Option<String>)> {
    let status = process.main_status()?;
    let Some(bit) = config.asyncsig.checked_sub(1) else { return Ok((*config, None)) };
    // Valgrind reads its program's handlers from the kernel when it begins, and cannot translate one that it has not seen mapped.
    let environment = process.environment().unwrap_or_default();
    let tool = process.exe().is_ok_and(|exe| exe.path.iter().any(|part| part == "valgrind"));
    if tool && environment.split(|byte| *byte == 0).any(|it| it.starts_with(b"VALGRIND_LAUNCHER="))
    {
        let sentence = format!(
            "no checkpoints by the signal: process {outer} runs under valgrind, which would take our handler for its program's; \
             use ckpt save {outer}"
        );
        return Ok((Config { asyncsig: 0, ..*config }, Some(sentence)));
    }
    let handler = match ((status.ignored >> bit) & 1, (status.caught >> bit) & 1) {
        (0, 0) => return Ok((*config, None)),
        (1, _) => libc::SIG_IGN as u64,
        _ => u64::MAX,
    };
    let sentence = signals::verdict(outer, config.asyncsig, handler, false);
    Ok((Config { asyncsig: 0, ..*config }, Some(sentence)))
}

/// Has the monitor of a process equip what that has executed, and waits for it. `meant` is the process, or that which
/// `asked` stands for.
pub(super) fn summon(asked: &Process, meant: &Process) {
    if is_equipped(meant) {
        return;
    }
    let deadline = Instant::now() + PATIENCE;
    let watches = |found: &Found| found.watches(asked) || found.watches(meant);
    let found = loop {
        // Asked first: it may be executed meanwhile, and is found then.
        let may_come = monitors::is_one_on_its_way(meant) && Instant::now() < deadline;
        match monitors::all().into_iter().find(watches) {
            Some(found) => break found,
            None if may_come => std::thread::sleep(Duration::from_millis(1)),
            None => return,
        }
    };
    found.poke();
    while !is_equipped(meant) && !enter::stands(meant) && Instant::now() < deadline {
        if found.ends_within(Duration::from_millis(1)) {
            return;
        }
    }
}

/// Whether there is a payload in it, or nobody can say.
fn is_equipped(process: &Process) -> bool {
    Region::of(process).map_or(true, |found| found.is_some())
}
