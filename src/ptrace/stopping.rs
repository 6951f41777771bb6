// SPDX-License-Identifier: LGPL-2.1-only
//! Bringing all threads of a process to a stop, and finding out that they are all.

use super::freeze::{FIRST_ATTEMPT, Frozen};
use super::interrupted;
use super::raw::{self, State};
use super::regs::Regs;
use super::seize::{Seized, deaf, is_deaf_still, seize, stubborn};
use super::thread::StoppedThread;
use super::waits::{self, Look};
use crate::error::{Because, Error, Kind, Result};
use crate::fault::{Point, reach};
use crate::proc::Tid;
use crate::proc::{self, Pid, Process, clocks, gone};
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// How many times longer than for one that sleeps those that stand still wait for a thread that is able to run: it is
/// to get a processor on a busy machine, or to come out of a long system call.
const A_TURN: u32 = 3;

/// A thread that is seized and does not stand still yet.
pub(super) struct Moving {
    pub(super) tid: Tid,
    pub(super) look: Option<Look>,
    /// Where its status is read when it stands still.
    pub(super) status: Option<File>,
    /// Born of a thread of the process, but a process of its own (clone(2) without CLONE_THREAD).
    pub(super) stranger: bool,
}

/// A round of [`Frozen::attempt`] that was begun.
pub(super) struct Round {
    listed: usize,
    has_news: bool,
    dead: bool,
}

impl Frozen {
    /// Begins to stop all threads that a list of now has.
    pub(super) fn begin_round(&mut self) -> Result<Round> {
        let tasks = self.process.tasks()?;
        let (news, dead) = self.seize_all(&tasks)?;
        self.begin(&news)?;
        Ok(Round { listed: tasks.len(), has_news: !news.is_empty(), dead })
    }

    /// Stops all threads, of which a round was begun; false when one of them does not stop while the others have waited for
    /// `patience`, or the list and the kernel's count do not agree for as long.
    pub(super) fn attempt(&mut self, mut round: Round, patience: Duration) -> Result<bool> {
        let mut news_at = Instant::now();
        loop {
            if !self.settle(patience)? || !self.leave_vdso(patience)? {
                return Ok(false);
            }
            let Round { listed, has_news, dead } = round;
            let is_old = !has_news && !dead;
            let (counted, standing) = (self.counted()?, self.threads.len());
            // Nobody is not all of a process.
            if standing == 0 && (is_old || counted == 0) {
                return Err(gone(self.pid));
            }
            // Nobody else is counted, or nobody but a leader that has ended.
            if counted == standing || is_old && counted == listed {
                return Ok(true);
            }
            if has_news {
                news_at = Instant::now();
            } else if news_at.elapsed() > patience {
                return Ok(false);
            } else {
                std::thread::sleep(Duration::from_micros(50));
            }
            round = self.begin_round()?;
        }
    }

    /// Seizes those that are not seized: who is, and whether one was dead that is not the leader. A dead leader stays in
    /// the list; in the stead of another the successor that it made may be counted, which is not listed.
    fn seize_all(&mut self, tasks: &[Tid]) -> Result<(Vec<Tid>, bool)> {
        let options = raw::OPTIONS | libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_TRACECLONE;
        let (mut news, mut dead) = (Vec::new(), false);
        for tid in tasks {
            if self.seized.contains(*tid) {
                continue;
            }
            match seize(&self.process, *tid, options) {
                Ok(Seized::Dead) => dead |= *tid != self.pid.main_thread(),
                Ok(Seized::Now | Seized::Before) => {
                    self.seized.insert(*tid);
                    news.push(*tid);
                    reach(Point::Seized);
                }
                Err(e) => {
                    // They have to be let go.
                    self.begin(&news)?;
                    return Err(e);
                }
            }
        }
        Ok((news, dead))
    }

    /// Looks at threads that are seized, and then interrupts them. Later nobody can tell how long a wait has lasted.
    pub(super) fn begin(&mut self, news: &[Tid]) -> Result<()> {
        let mut room = most_opened();
        let (mut asleep, mut running) = (Vec::new(), Vec::new());
        for &tid in news {
            let look = waits::observe(&self.process, tid);
            let status = (room > 0).then(|| self.process.open_status(tid)).flatten();
            // The lowest number that is free says how many there are, of all processes that are being stopped.
            let status = status.filter(|file| file.as_raw_fd() < room);
            room = if status.is_some() { room } else { 0 };
            self.moving.push(Moving { tid, look, status, stranger: false });
            if look == Some(Look::Runs) { &mut running } else { &mut asleep }.push(tid);
        }
        if self.threads.is_empty() {
            self.since = Instant::now();
        }
        self.interrupt(&asleep)?;
        if !running.is_empty() {
            self.meet_sleepers(asleep.len(), running.len())?;
        }
        self.interrupt(&running)
    }

    fn interrupt(&self, tids: &[Tid]) -> Result<()> {
        for tid in tids {
            match raw::interrupt(*tid) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => {
                    return Err(e)
                        .because(|| format!("cannot stop thread {tid} of process {}", self.pid));
                }
            }
        }
        Ok(())
    }

    /// Takes the reports of those that were interrupted in their sleep, if they are many, for as long as that may take: who
    /// sleeps loses nothing by it, and the others run meanwhile.
    fn meet_sleepers(&mut self, sleepers: usize, running: usize) -> Result<()> {
        const MANY: usize = 16;
        const EACH: Duration = Duration::from_micros(20);
        let deadline = Instant::now() + (EACH * sleepers as u32).min(FIRST_ATTEMPT);
        while sleepers > MANY && self.moving.len() > running && Instant::now() < deadline {
            if !self.collect()? {
                std::thread::sleep(EACH);
            }
        }
        Ok(())
    }

    /// Waits until nobody moves; false when nothing has happened for `patience` and one of the moving sleeps on, or for
    /// [`A_TURN`] times as long. Those that only wait for a processor get it sooner while the others stand still.
    pub(super) fn settle(&mut self, patience: Duration) -> Result<bool> {
        const LONGEST_NAP: Duration = Duration::from_millis(1);
        let first_nap = Duration::from_micros(20);
        let (mut last, mut nap) = (Instant::now(), first_nap);
        while !self.moving.is_empty() {
            if self.collect()? {
                (last, nap) = (Instant::now(), first_nap);
            } else if last.elapsed() > patience && self.is_held_up(last.elapsed(), patience) {
                return Ok(false);
            } else {
                std::thread::sleep(nap);
                nap = (nap * 2).min(LONGEST_NAP);
                // A leader that has ended is reported when the others have, too (delay_group_leader).
                let (pid, process) = (self.pid, &self.process);
                self.moving.retain(|moving| moving.tid != pid.main_thread() || !is_dead(process));
            }
        }
        Ok(true)
    }

    /// Has threads that the stop has met in the vdso, where a restart cannot go on, come out of it: by a few steps at once, and
    /// where that does not do, they run for moments until another stop meets them elsewhere; false as
    /// [`Self::settle`] says. What reads a clock there begins anew whenever the kernel has moved that, some hundred
    /// times a second, and a step takes two switches: a while after the stop it would be hundreds, on a busy machine without
    /// an end.
    fn leave_vdso(&mut self, patience: Duration) -> Result<bool> {
        const STEPS: usize = 64;
        const STEPPING: Duration = Duration::from_micros(500);
        /// Only where there are many for each processor does it take more than a few milliseconds.
        const LONGEST: Duration = Duration::from_millis(200);
        let runs = |thread: &StoppedThread| {
            thread.stopped_by == 0 && interrupted::call_in_progress(&thread.regs).is_none()
        };
        if !self.threads.iter().any(runs) {
            return Ok(true);
        }
        let (begun, code) = (Instant::now(), vdso(&self.process));
        let is_inside = |thread: &StoppedThread| runs(thread) && code.contains(&thread.regs.rip);
        loop {
            let mut inside = Vec::new();
            for thread in self.threads.iter_mut().filter(|thread| is_inside(thread)) {
                let deadline = Instant::now() + STEPPING;
                let goes_on = |regs: &Regs| code.contains(&regs.rip) && Instant::now() < deadline;
                // Who has been killed meanwhile is found to be so like all others.
                let _ = thread.run_while(goes_on, STEPS);
                inside.extend(is_inside(thread).then_some(thread.tid));
            }
            if inside.is_empty() || begun.elapsed() > LONGEST {
                return Ok(true);
            }
            self.threads.retain(|thread| !is_inside(thread));
            let before = clocks::used(self.pid);
            inside.iter().for_each(|tid| raw::cont(*tid, 0).unwrap_or_default());
            await_progress(self.pid, before, inside.len());
            self.begin(&inside)?;
            if !self.settle(patience)? {
                return Ok(false);
            }
        }
    }

    /// Whether the moving threads that have reported nothing for so long keep the others waiting.
    fn is_held_up(&self, silence: Duration, patience: Duration) -> bool {
        silence > patience * A_TURN || self.moving.iter().any(|moving| sleeps_on(moving.tid))
    }

    /// Takes what the moving threads report; whether there was anything. What fails is with the moving ones still.
    fn collect(&mut self) -> Result<bool> {
        let (mut news, mut outcome) = (false, Ok(()));
        for moving in std::mem::take(&mut self.moving) {
            let tid = moving.tid;
            match raw::wait(tid, false) {
                Ok(State::Running) => self.moving.push(moving),
                Ok(state) => {
                    news = true;
                    outcome = outcome.and(self.advance(moving, state));
                }
                Err(e) => {
                    self.moving.push(moving);
                    outcome = Err(e).because(|| format!("cannot wait for thread {tid}"));
                }
            }
        }
        outcome.map(|()| news)
    }

    /// One step on the way to the stop of the last of the moving threads. Signals that it meets on the way are
    /// delivered: their handlers' first instruction is where it stops.
    fn advance(&mut self, moving: Moving, state: State) -> Result<()> {
        let tid = moving.tid;
        match state {
            State::Running => self.moving.push(moving),
            State::Ended => self.seized.remove(tid),
            State::Stopped { .. } if moving.stranger => {
                self.seized.remove(tid);
                let _ = raw::detach(tid);
            }
            State::Stopped { signal, event: raw::EVENT_STOP } => {
                match StoppedThread::read(tid, if signal == libc::SIGTRAP { 0 } else { signal }) {
                    Ok(mut thread) => {
                        thread.look_at_mask(&self.process);
                        thread.since = moving.look.map(|look| look.since(&self.process, tid));
                        thread.opened = moving.status;
                        thread.recall(self.earlier.get(&tid));
                        self.threads.push(thread);
                    }
                    Err(e) => {
                        self.moving.push(moving);
                        if e != Errno::ESRCH {
                            return Err(e)
                                .because(|| format!("cannot read the registers of thread {tid}"));
                        }
                    }
                }
            }
            State::Stopped { event: raw::EVENT_EXEC, .. } => {
                // Told once: kept, it would stand there as long as we live.
                self.seized.remove(tid);
                let deprived = deprived(&self.process);
                StoppedThread::dismiss(tid, 0);
                return Err(deprived.unwrap_or_else(|| disturbed(&self.process)));
            }
            State::Stopped { event, signal } => {
                if event == raw::EVENT_CLONE {
                    self.welcome(tid);
                }
                let signal = if event == 0 && signal & 0x80 == 0 { signal } else { 0 };
                // Any stop takes the place of the one that was asked for (kernel/signal.c, ptrace_stop).
                let _ = raw::interrupt(tid);
                let _ = raw::cont(tid, signal);
                self.moving.push(moving);
            }
        }
        Ok(())
    }

    /// Takes over what a traced thread has just made: it is traced and stops before its first instruction.
    pub(super) fn welcome(&mut self, maker: Tid) {
        let Ok(born) = raw::event_message(maker) else { return };
        let tid = Tid::new(born as i32);
        if self.seized.insert(tid) {
            let stranger = !self.process.has(tid);
            self.moving.push(Moving { tid, look: None, status: None, stranger });
        }
    }

    /// How many threads the kernel counts, while all that are stopped still are: what takes one of them from its stop is an
    /// end of the process or an execve(2), which takes all in one moment (kernel/signal.c, zap_other_threads).
    fn counted(&self) -> Result<usize> {
        let counted = self.process.count()?;
        if let Some(StoppedThread { tid, .. }) = self.threads.last() {
            let stands = raw::event_message(*tid).is_ok();
            if !stands || raw::wait(*tid, false) != Ok(State::Running) {
                return Err(disturbed(&self.process));
            }
        }
        Ok(counted as usize)
    }

    /// Waits for those whom an attempt could not stop, while the others run. One that stops is not kept waiting for
    /// the next.
    pub(super) fn await_moving(&mut self, deadline: Instant) -> Result<()> {
        while !self.settle(FIRST_ATTEMPT)? {
            self.give_up();
            if Instant::now() > deadline {
                let mut tids = self.moving.iter().map(|moving| moving.tid);
                let first = tids.clone().next().unwrap_or(self.pid.main_thread());
                let tid = tids.find(|tid| sleeps_on(*tid)).unwrap_or(first);
                return Err(stubborn(&self.process, tid));
            }
        }
        Ok(())
    }
}

/// Waits while a thread cannot hear us, without touching any. Only for that one wait: a thread that is in the next one
/// when it is looked at again (a program that runs others all the time is in vfork(2) at any moment) could hear in
/// between, and a stop that is asked for meets it there.
pub(super) fn await_hearing(process: &Process, deadline: Instant) -> Result<()> {
    const LONGEST_NAP: Duration = Duration::from_millis(5);
    let Some(first) = deaf(process)? else { return Ok(()) };
    let mut nap = Duration::from_micros(100);
    while is_deaf_still(process, first) {
        if Instant::now() > deadline {
            return Err(stubborn(process, first.tid));
        }
        std::thread::sleep(nap);
        nap = (nap * 2).min(LONGEST_NAP);
    }
    Ok(())
}

/// Where the code of the vdso lies; the exact bounds, which only the list of all mappings has, matter to nobody here.
fn vdso(process: &Process) -> Range<u64> {
    const AT_SYSINFO_EHDR: u64 = 33;
    /// It had two pages of 4 KiB so far.
    const MOST: u64 = 4 << 12;
    let auxv = process.auxv().unwrap_or_default();
    let start = proc::auxv_value(&auxv, AT_SYSINFO_EHDR).unwrap_or(0);
    start..start.saturating_add(MOST)
}

/// Waits until so many threads, which are all of the process that run, have had a processor for some instructions since it had
/// `used` so much time: on a busy machine they have to wait for one.
fn await_progress(pid: Pid, used: i64, threads: usize) {
    /// Nanoseconds, among them those of the way from a stop.
    const EACH: i64 = 8_000;
    const AT_ONCE: Duration = Duration::from_micros(100);
    const LONGEST: Duration = Duration::from_millis(2);
    let begun = Instant::now();
    while clocks::used(pid) - used < EACH * threads as i64 && begun.elapsed() < LONGEST {
        if begun.elapsed() > AT_ONCE {
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

/// Below which number files of threads may be open for a moment: a quarter of what may be open in all.
fn most_opened() -> i32 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| (soft / 4).min(1 << 20) as i32)
}

/// Whether a thread sleeps where no stop wakes it. Any other that has been asked to stop does so as soon as it gets a
/// processor.
fn sleeps_on(tid: Tid) -> bool {
    proc::stat::glance(tid).is_some_and(|(state, _)| state == 'D')
}

fn is_dead(process: &Process) -> bool {
    process.stat(process.main_thread()).map_or(true, |stat| matches!(stat.state, 'Z' | 'X'))
}

/// Threads that stood still have ended: the process has, or one of its threads has executed another program.
fn disturbed(process: &Process) -> Error {
    let pid = process.pid();
    if is_dead(process) {
        return gone(pid);
    }
    Error::new(format!("process {pid} has just ended or executed another program")).of(Kind::Gone)
}

/// What there is to say of a process that has just executed a file while it was traced: where we have no privilege, the
/// kernel gives it no rights of the file's owner or group (execve(2)), and nobody can give it those later.
fn deprived(process: &Process) -> Option<Error> {
    let pid = process.pid();
    let file = std::fs::metadata(process.path("exe")).ok()?;
    let status = process.status(pid.main_thread()).ok()?;
    let set = |bits: u32| file.mode() & bits == bits;
    let user = set(libc::S_ISUID) && status.uid[1] != file.uid();
    let group = set(libc::S_ISGID | libc::S_IXGRP) && status.gid[1] != file.gid();
    if status.no_new_privs || !(user || group) {
        return None;
    }
    let name = status.name.display();
    let text = format!(
        "process {pid} ({name}) was executed without its set-user-ID or set-group-ID rights, since it was being \
         stopped for a checkpoint in that moment: what it was to do may fail"
    );
    Some(
        Error::new(text)
            .of(Kind::NotPermitted)
            .hint("save jobs that execute such programs as root"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::SigSet;
    use std::io::{BufReader, Read};
    use std::process::{Command, Stdio};

    const SPINS: &str = "CKPT_TEST_SPINS";

    /// The program of the test below, which ends it.
    #[test]
    fn spins() {
        if std::env::var_os(SPINS).is_some() {
            SigSet::all().thread_block().unwrap();
            println!("x");
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(60) {}
        }
    }

    /// Where it reads the clock all the time, most stops meet it there.
    #[test]
    fn a_thread_is_met_outside_of_the_vdso() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "ptrace::stopping::tests::spins", "--nocapture"]);
        let mut child = command.env(SPINS, "1").stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        assert!(said.bytes().any(|byte| byte.is_ok_and(|byte| byte == b'x')));
        let process = Process::open(Pid::of_word(child.id())).unwrap();
        let code = vdso(&process);
        let blocks = |thread: &StoppedThread| thread.mask & raw::signal_set(libc::SIGTRAP) != 0;
        let stops = (0..20).map(|_| {
            let frozen = Frozen::freeze(&process).unwrap();
            let is_inside = |thread: &StoppedThread| code.contains(&thread.regs.rip);
            (frozen.threads.iter().any(blocks), frozen.threads.iter().any(is_inside))
        });
        let stops: Vec<_> = stops.collect();
        child.kill().unwrap();
        child.wait().unwrap();
        let inside = stops.iter().filter(|(_, is_inside)| *is_inside).count();
        assert!(!code.is_empty() && inside < 6, "{inside}");
        assert!(stops.iter().all(|(blocks, _)| *blocks));
    }
}
