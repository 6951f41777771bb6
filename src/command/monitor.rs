// SPDX-License-Identifier: LGPL-2.1-only
//! The monitor: takes the periodic checkpoints of one process from outside.
//!
//! It sleeps on a pidfd of the program with a time-out, and looks at the payload's control page
//! once a second at least: there stand the period, which the program or `ckpt -p` may have
//! changed, and the monitor itself; one that finds another in its place ends, and so does one
//! whose period has become 0, unless it is to see how the program ends (`finish.rs`). Each checkpoint is taken by a child of its own, so that whatever
//! happens to a dumper, its tracing ends with it and the monitor goes on. It is the only parent
//! that a dumper of its has, which is also why Yama lets these dumpers trace: descendants of the
//! process that PR_SET_PTRACER names may what it may.
//!
//! # Safety
//! The monitor has one thread, so its children may do all that it may; the descriptor made from
//! a number is the one that `inject::monitor` left.
#![allow(unsafe_code)]

use super::finish::Run;
use super::follow::Follower;
use super::notify::{Hook, Shared};
use super::worker::Dumper;
use super::{dumper, follow};
use crate::dump::place::Whose;
use crate::dump::rolling::Rolling;
use crate::dump::{Demand, dump};
use crate::error::{Because, Kind, Result};
use crate::fault::{Point, reach};
use crate::image::file;
use crate::inject::enter;
use crate::inject::{last, monitor, monitors, region::Region};
use crate::proc::{Pid, Process, pidfd::Pidfd};
use crate::ptrace::memory::Memory;
use crate::ptrace::sandbox;
use crate::resource::signals;
use crate::settings::{self, Settings, Values};
use crate::speech;
use ckpt_abi::region::{Config, Control, Last};
use ckpt_abi::turn::Phase;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::cell::RefCell;
use std::collections::HashSet;
use std::io::Read;
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

/// How long the monitor sleeps at most before it looks at the configuration again.
const GLANCE: Duration = Duration::from_secs(1);
/// How long it sleeps while the program is being restarted.
const NAP: Duration = Duration::from_millis(5);
/// What the kernel may add to a nap, in nanoseconds: what a process has by itself (PR_SET_TIMERSLACK).
const SLACK: u64 = 50_000;
/// For how long checkpoints that come to nothing since others are at work are no news, and how many of them at least.
const PATIENCE: Duration = Duration::from_secs(60);
const IN_VAIN: u32 = 3;
/// Descriptor that closes when the program has begun ([`crate::inject::monitor`]).
const LINE: i32 = 3;
/// Exit status of a dumper that found another at work.
const BUSY: u8 = 3;

/// Watches over a process until it ends.
#[inline(never)]
pub(super) fn run(pid: Pid) -> Result<u8> {
    let _ = nix::sys::prctl::set_name(monitors::NAME);
    // Who has made us while something stood still may have had none.
    let _ = nix::sys::prctl::set_timerslack(SLACK);
    dumper::keep_low_descriptors();
    dumper::prepare();
    // What dumpers leave is no business of an init that may never wait for it.
    let _ = nix::sys::prctl::set_child_subreaper(true);
    let program = Pidfd::open(pid).because(|| format!("cannot watch process {pid}"))?;
    let process = opened(pid, &program)?;
    let given = Process::own().ok().and_then(|own| monitor::given(&own));
    let run = given.and_then(|config| run_of(&process, config));
    let line = line();
    monitor::in_sight();
    reach(Point::Waiting);
    while let Some(line) = &line
        && !is_ready(&[line.as_fd(), program.as_fd()], None)
    {}
    drop(line);
    // Who is gone by now is gone.
    let target = enter::meant_by(&process).unwrap_or_else(|_| process.clone());
    let mut monitor = Monitor {
        target,
        program,
        process,
        run,
        generation: 0,
        last: None,
        due: None,
        seen: None,
        standard: None,
        begun: Instant::now(),
        follower: Follower::new(),
        poked: poked().because(|| "cannot wait for a signal")?,
        uncaught: None,
        said: HashSet::new(),
        in_vain: None,
        rolling: Rolling::default(),
    };
    reach(Point::Watching);
    let is_over = monitor.watch();
    monitor.forget();
    if is_over
        && let Some(run) = monitor.run.as_ref().filter(|run| monitor::sees_the_end(&run.config))
    {
        run.settle(&monitor.program, &monitor.process);
    }
    Ok(0)
}

/// The process that `program` is, as soon as there are descriptors for it.
fn opened(pid: Pid, program: &Pidfd) -> Result<Process> {
    loop {
        match Process::open(pid) {
            Err(e) if e.kind() == Kind::Gone || is_ready(&[program.as_fd()], Some(GLANCE)) => {
                return Err(e);
            }
            Err(_) => {}
            opened => return opened,
        }
    }
}

/// What there is to know of the program if it ends now.
fn run_of(process: &Process, config: Config) -> Option<Run> {
    let whose = Whose::of(process, false).ok()?;
    Some(Run { config, whose, values: Values::of(process.pid()) })
}

struct Monitor {
    /// The process that is saved: the one that was named, or the root for which that stands.
    target: Process,
    /// The one that was named, to be heard of and to be looked at.
    program: Pidfd,
    process: Process,
    /// As it was seen last.
    run: Option<Run>,
    /// How many checkpoints there were of it.
    generation: u64,
    /// What became of the last.
    last: Option<Last>,
    /// When the next one is due, as the control page says.
    due: Option<Instant>,
    /// The program's memory and the payload in it.
    seen: Option<(Memory, u64)>,
    /// What its standard streams were when it began.
    standard: Option<[[u64; 3]; 3]>,
    /// When the program that runs was first seen.
    begun: Instant,
    follower: Follower,
    /// Tells of [`monitors::LOOK`].
    poked: SignalFd,
    /// Since when the program does not catch the checkpoint signal.
    uncaught: Option<Instant>,
    /// Sentences that are not said twice.
    said: HashSet<String>,
    /// Since when checkpoints have come to nothing quietly, and how many.
    in_vain: Option<(Instant, u32)>,
    /// What the next checkpoint may go by.
    rolling: Rolling,
}

/// What the control page says.
enum Word {
    /// Take a checkpoint each so often.
    Period(Duration),
    /// Take none, but see how the program ends.
    Watch,
    /// It has executed another program, which has not been equipped.
    Another,
    /// Ask again later.
    Later,
    /// We are not needed any more.
    Leave,
}

impl Monitor {
    /// Until the program has ended (true), or another monitor has its place.
    fn watch(&mut self) -> bool {
        let mut last = Instant::now();
        loop {
            let nap = match self.ask() {
                Word::Leave => return false,
                Word::Another => match self.follow() {
                    Some(nap) => nap,
                    None => return false,
                },
                Word::Watch => self.glance(),
                Word::Later => {
                    last = Instant::now();
                    NAP
                }
                Word::Period(period) => {
                    let due = last + period;
                    let is_new = self.due.replace(due) != Some(due);
                    if let Some((memory, base)) = self.seen.as_ref().filter(|_| is_new) {
                        last::put_due(memory, *base, due);
                    }
                    let due = due.saturating_duration_since(Instant::now());
                    if due.is_zero() {
                        last = self.checkpoint(period);
                        continue;
                    }
                    due.min(self.glance())
                }
            };
            if self.ended_within(Some(nap)) {
                return true;
            }
        }
    }

    /// Reads the control page. A program that executed another has none any more.
    fn ask(&mut self) -> Word {
        if self.seen.is_none() {
            self.target.find_head();
            self.seen = match Region::of(&self.target) {
                Ok(Some((memory, region))) => Some((memory, region.base)),
                Ok(None) => return Word::Another,
                Err(_) if self.ended_within(Some(Duration::ZERO)) || self.target.is_ending() => {
                    return Word::Later;
                }
                Err(e) if e.is_refusal() => {
                    self.say(&follow::out_of_reach(&self.target, &e));
                    self.ended_within(Some(GLANCE));
                    return Word::Later;
                }
                // Who ends loses its memory before it can be waited for.
                Err(_) => return Word::Later,
            };
        }
        let Some((memory, base)) = &self.seen else { return Word::Leave };
        let Ok(Region { control, .. }) = Region::read(memory, *base) else {
            (self.seen, self.due) = (None, None);
            return self.ask();
        };
        let turn = Region { base: *base, control }.turn(memory);
        if turn.is_ok_and(|turn| turn.phase == Phase::Restoring) {
            return Word::Later;
        }
        if control.magic != ckpt_abi::region::MAGIC || control.monitor != std::process::id() {
            return Word::Leave;
        }
        self.run = run_of(&self.target, control.config).or(self.run.take());
        self.generation = control.generation;
        self.last = last::of(&control);
        self.standard = Some(control.standard);
        self.follower.note_stderr(&self.target);
        self.look_for_sandbox(&control);
        if monitor::sees_the_end(&control.config) {
            self.look_at_signal(&control);
        }
        match control.config.msperiod {
            0 if monitor::is_wanted(&control.config) => Word::Watch,
            0 => Word::Leave,
            period => Word::Period(Duration::from_millis(period.into())),
        }
    }

    /// How long to sleep. Whoever executes another program mostly does so soon.
    fn glance(&self) -> Duration {
        (self.begun.elapsed() / 8).clamp(follow::SETTLED, GLANCE)
    }

    /// Equips what the program has executed as it was itself; when to look again, or never.
    fn follow(&mut self) -> Option<Duration> {
        // That no file can be opened for a moment says nothing of other monitors.
        let Ok(own) = Process::own() else { return Some(GLANCE) };
        let Some(config) = self.run.as_ref().map(|run| run.config) else { return Some(GLANCE) };
        if let Some(nap) = self.follower.nap(&self.target) {
            return Some(nap);
        }
        let is_newer =
            |found: &monitors::Found| found.watches(&self.target) && found.is_younger_than(&own);
        if monitors::all().iter().any(is_newer) {
            return None;
        }
        let Self { generation, last, standard, .. } = *self;
        let before = follow::Before { config, generation, last, standard };
        let told = match Dumper::start(&self.target, |_| {
            follow::equip(&self.target, &before, own.pid().word())
        }) {
            Ok(dumper) => self.attend(&dumper),
            Err(e) => Told { quiet: true, sentences: format!("{e}\n") },
        };
        for sentence in told.sentences.lines() {
            self.say(sentence);
        }
        if told.quiet && !told.sentences.is_empty() {
            self.follower.refuse();
        }
        self.begun = Instant::now();
        Some(follow::SETTLED)
    }

    /// Says when the program does not catch the checkpoint signal any more; that it has a handler of its own for it is
    /// found by the next checkpoint. It has to last: whoever changes the configuration does so in two steps.
    fn look_at_signal(&mut self, control: &Control) {
        let signal = control.config.asyncsig;
        let Some(bit) = signal.checked_sub(1) else { return };
        let Ok(status) = self.target.main_status() else { return };
        if status.caught >> bit & 1 == 1 {
            self.uncaught = None;
            return;
        }
        let since = *self.uncaught.get_or_insert_with(Instant::now);
        if since.elapsed() >= GLANCE {
            let handler =
                if status.ignored >> bit & 1 == 1 { libc::SIG_IGN } else { libc::SIG_DFL };
            self.say(&signals::verdict(self.target.pid(), signal, handler as u64, false));
        }
    }

    /// Keeps the handler of the checkpoint signal from making system calls that could kill the program.
    fn look_for_sandbox(&mut self, control: &Control) {
        let Some((memory, base)) = &self.seen else { return };
        if control.config.asyncsig == 0 || control.locked_in != 0 {
            return;
        }
        let Some(why) = sandbox::obstacle(&self.target) else { return };
        let at = base + offset_of!(Control, locked_in) as u64;
        if memory.put(at, &1u64).is_ok() {
            self.say(&format!("no checkpoints by the signal: {why}"));
        }
    }

    /// Takes a checkpoint; from when on the next period counts. A checkpoint that gave way to another is
    /// followed by a whole period, one that took longer than the period by a rest as long as it
    /// took: else a program with a very short period would do little but be copied.
    fn checkpoint(&mut self, period: Duration) -> Instant {
        let (start, target) = (Instant::now(), self.target.clone());
        let told = match Dumper::start(&self.target, |line| {
            take(&self.process, target, std::mem::take(&mut self.rolling), line)
        }) {
            Ok(dumper) => {
                reach(Point::Attending);
                let told = self.attend(&dumper);
                // What one did that was killed nobody knows.
                let known = self.touch(|_| Rolling::take(&dumper.known)).flatten();
                known.is_none().then(|| self.forget());
                self.rolling = known.unwrap_or_default();
                told
            }
            Err(e) => Told { quiet: false, sentences: format!("no checkpoint: {e}") },
        };
        let (since, times) = self.in_vain.take().unwrap_or((start, 0));
        if told.quiet {
            self.in_vain = Some((since, times + 1));
            // What does not pass is no other checkpoint's turn.
            if times + 1 < IN_VAIN || since.elapsed() < PATIENCE {
                return Instant::now();
            }
        }
        for sentence in told.sentences.lines() {
            self.say(sentence);
        }
        let took = start.elapsed();
        match took < period && !told.quiet {
            true => start,
            false => Instant::now() + took.saturating_sub(period),
        }
    }

    /// Does something to the program's checkpoints, as whoever named them may.
    fn touch<T>(&mut self, work: impl FnOnce(&mut Rolling) -> T) -> Option<T> {
        let whose = self.run.as_ref()?.whose.clone();
        whose.touch(|| work(&mut self.rolling)).ok()
    }

    /// Removes the checkpoint that was kept for the next one.
    fn forget(&mut self) {
        self.touch(Rolling::remove_older);
        self.sweep();
    }

    /// Waits for a dumper. If the program ends first, the dumper ends too: should the program be
    /// restarted at once, it must not replace a checkpoint by one of a run that is over.
    fn attend(&mut self, dumper: &Dumper) -> Told {
        let mut sentences = String::new();
        while !is_ready(&[dumper.line.as_fd(), self.program.as_fd()], None) {}
        if is_ready(&[self.program.as_fd()], Some(Duration::ZERO)) {
            dumper.kill();
            dumper.reap();
            self.sweep();
            return Told { quiet: true, sentences };
        }
        let _ = (&dumper.line).read_to_string(&mut sentences);
        reach(Point::Attended);
        Told { quiet: dumper.reap() != Some(0), sentences }
    }

    /// Removes what a killed dumper may have left that has a name.
    fn sweep(&self) {
        let Some(Run { config, whose, values }) = &self.run else { return };
        if let Ok(template) = settings::template(config) {
            let _ = whose.touch(|| file::sweep(&template.expand(values, 1)));
        }
    }

    /// Speaks through the program's standard error, once.
    fn say(&mut self, sentence: &str) {
        if !self.said.contains(sentence)
            && let Some(file) = self.follower.stderr(&self.target)
            && speech::say(file.as_fd(), sentence)
        {
            self.said.insert(sentence.to_owned());
        }
    }

    /// Whether the program has ended, or does in time, which is over when we are to look.
    fn ended_within(&self, limit: Option<Duration>) -> bool {
        is_ready(&[self.program.as_fd(), self.poked.as_fd()], limit);
        while let Ok(Some(_)) = self.poked.read_signal() {}
        is_ready(&[self.program.as_fd()], Some(Duration::ZERO))
    }
}

/// What a dumper said.
struct Told {
    /// It found another at work, or was ended by a signal's dumper.
    quiet: bool,
    sentences: String,
}

/// One checkpoint: the exit status and what there is to say.
fn take(named: &Process, target: Process, rolling: Rolling, line: &UnixDatagram) -> (u8, String) {
    let (hook, told) = match Hook::prepare(&target, None, false) {
        Ok(hook) => (hook, String::new()),
        Err(e) => (None, format!("{e}\n")),
    };
    let hook = Shared::of(hook, named.pid());
    let process = match enter::enter(target) {
        Ok(process) => process,
        Err(e) => {
            let _ = hook.tell(Err(&e));
            return (0, format!("no checkpoint: {e}\n"));
        }
    };
    let request = Demand {
        process,
        settings: Settings::default(),
        stop: None,
        triggered: false,
        periodic: true,
        open: super::destination::open,
        prune: super::destination::prune,
        screen: None,
        tell: None,
        ending: Some(hook.ending(None)),
        ended: None,
        rolling: Some(RefCell::new(rolling)),
    };
    let result = dump(&request);
    if let Some(rolling) = &request.rolling {
        let _ = rolling.borrow().give(line);
    }
    let _ = hook.tell(result.as_ref());
    let (status, sentences) = match result {
        Ok(outcome) => (0, outcome.sentences().map(|sentence| format!("{sentence}\n")).collect()),
        // The end of the program is no news; it may be a while before the monitor hears of it.
        Err(e) if e.kind() == Kind::Gone && request.process.is_ending() => (BUSY, String::new()),
        Err(e)
            if e.kind() == Kind::Busy || crate::dump::phase2_equip::is_busy(&request.process) =>
        {
            (BUSY, format!("no checkpoint: {e}\n"))
        }
        Err(e) => (0, format!("no checkpoint: {e}\n")),
    };
    (status, told + &sentences)
}

/// What becomes readable with [`monitors::LOOK`], which is blocked as all signals are.
fn poked() -> nix::Result<SignalFd> {
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&SigSet::from_iter([monitors::LOOK]), flags)
}

/// The pipe whose other ends close when the program has begun.
fn line() -> Option<OwnedFd> {
    let is_pipe = std::fs::read_link(format!("/proc/self/fd/{LINE}"))
        .is_ok_and(|to| to.as_os_str().to_string_lossy().starts_with("pipe:"));
    // SAFETY: `inject::monitor` left it here, and nobody else owns it.
    is_pipe.then(|| unsafe { OwnedFd::from_raw_fd(LINE) })
}

/// Whether one of the descriptors becomes readable or is hung up in time (None: for ever).
fn is_ready(fds: &[BorrowedFd<'_>], limit: Option<Duration>) -> bool {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let limit = limit.map_or(PollTimeout::NONE, |limit| {
        // Rounded up: a sleep of 0 would spin.
        let milliseconds = limit.as_micros().div_ceil(1000);
        PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
    });
    matches!(poll(&mut polled, limit), Ok(1..))
}
