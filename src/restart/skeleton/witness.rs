// SPDX-License-Identifier: LGPL-2.1-only
//! The witness: a process in the restarter's process group that has nothing to do but to say whether a signal that the
//! restarter got came to the whole group, and so to the root, too, or to the restarter alone.
//!
//! It is made before the namespaces, so that the tree never sees it. When the restarter is killed with SIGKILL, it
//! ends what would be left where there is no namespace that ends with its init.
//!
//! # Safety
//! The process has one thread, and only calls that look at itself, or end those it was told.
#![allow(unsafe_code)]

use super::make::{clone, end, made_or};
use crate::error::{Because, Result};
use crate::proc::{Pid, Process};
use crate::proc::{
    pidfd::Pidfd,
    stat::glance,
    tree::{self, Kin},
};
use crate::ptrace::raw::{await_signal, signal_set};
use crate::resource::descriptor::numbers::close_others;
use nix::libc;
use nix::sys::prctl;
use std::collections::{HashMap, HashSet};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::parent_id;
use std::time::Duration;

/// How long a signal to a group takes from its first member to its last.
const SPREADS: Duration = Duration::from_millis(2);
/// How long an answer is waited for until it is looked whether the witness has been stopped.
const PATIENCE: Duration = Duration::from_millis(10);
/// How long after the beginning of the tree it is looked again who else is in its group.
const LATE: Duration = Duration::from_millis(100);

/// The process.
pub(crate) struct Witness {
    pid: Pid,
    ask: PipeWriter,
    hear: PipeReader,
}

/// What it is asked.
mod question {
    /// Have you got the signal of this number, too?
    pub(super) const SIGNALS: std::ops::RangeInclusive<u8> = 1..=64;
    /// A process follows ([`super::told`]): end it if the restarter is killed.
    pub(super) const WARD: u8 = 254;
    /// Those that were named are gone.
    pub(super) const FORGET: u8 = 253;
    /// Those that were named run, since a time that follows (eight bytes, ticks since boot).
    pub(super) const RUN: u8 = 252;
}

impl Witness {
    /// Makes it; all signals are blocked in this process, and so in it.
    ///
    /// # Errors
    /// No process or pipe can be made.
    pub(crate) fn start() -> Result<Self> {
        let what = || "cannot make a process beside the program's";
        let (hears, ask) = std::io::pipe().because(what)?;
        let (hear, tells) = std::io::pipe().because(what)?;
        let restarter = std::process::id();
        let before = Process::own().map(|own| own.children()).unwrap_or_default();
        match made_or(clone(None, 0), what)? {
            Some(pid) => Ok(Self { pid, ask, hear }),
            None => {
                drop((ask, hear));
                live(restarter, &before, hears, tells)
            }
        }
    }

    /// Whether a signal came to the whole group. Where that has stopped and only the restarter was let go on, the witness
    /// is, too; its stop may come when it has been asked already.
    pub(crate) fn has_seen(&mut self, signal: i32) -> bool {
        let Some((seen, woken)) = self.asked(signal) else { return false };
        match woken {
            // The one that it has seen is from here.
            true if signal == libc::SIGCONT => false,
            true => self.asked(libc::SIGCONT).is_some() && seen,
            false => seen,
        }
    }

    /// What it says, and whether it had to be let go on for that; None where somebody has killed it.
    fn asked(&mut self, signal: i32) -> Option<(bool, bool)> {
        let (mut answer, mut woken) = ([0], false);
        if !self.tell(&[signal as u8]) {
            return None;
        }
        loop {
            if let Some(('T', _)) = glance(self.pid.main_thread()) {
                send(self.pid, libc::SIGCONT);
                woken = true;
            }
            if await_word(&self.hear, None, Some(PATIENCE)).is_some() {
                self.hear.read_exact(&mut answer).ok()?;
                return Some((answer[0] == 1, woken));
            }
        }
    }

    /// Writes to it; false where it is gone, of which no signal tells that would be handed on to the program.
    fn tell(&mut self, word: &[u8]) -> bool {
        let told = self.ask.write_all(word).is_ok();
        if !told {
            await_signal(signal_set(libc::SIGPIPE), Some(Duration::ZERO));
        }
        told
    }

    /// Its id.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// The numbers of its descriptors here.
    pub(super) fn numbers(&self) -> [i32; 2] {
        [self.ask.as_raw_fd(), self.hear.as_raw_fd()]
    }

    /// Names a process that must not be left alone.
    pub(crate) fn guard(&mut self, pid: Pid) {
        let Ok(kin) = tree::kin(pid) else { return };
        let mut word = [question::WARD; 13];
        word[1..5].copy_from_slice(&pid.get().to_ne_bytes());
        word[5..].copy_from_slice(&kin.start.to_ne_bytes());
        self.tell(&word);
    }

    /// Has it forget whom it guards: they are about to be gone, and their ids may be anybody's.
    pub(crate) fn forget(&mut self) {
        self.tell(&[question::FORGET]);
    }

    /// Tells it that those run whom it guards, and did not before a time, in ticks since boot.
    pub(crate) fn running(&mut self, since: u64) {
        let mut word = [question::RUN; 9];
        word[1..].copy_from_slice(&since.to_ne_bytes());
        self.tell(&word);
    }

    /// Ends it, be it stopped: the restarter goes, all is well.
    pub(crate) fn dismiss(self) {
        send(self.pid, libc::SIGKILL);
        // SAFETY: waits for the child that was made here.
        unsafe { libc::waitpid(self.pid.get(), std::ptr::null_mut(), libc::__WCLONE) };
    }
}

/// A process that ends with the restarter. Its id may be another's when it is gone.
struct Ward {
    pid: Pid,
    start: u64,
    process: Pidfd,
}

impl Ward {
    fn is(&self, kin: &Kin) -> bool {
        (kin.pid, kin.start) == (self.pid, self.start)
    }
}

/// The process that is named: its id (four bytes), and when it began (eight); None if it is gone.
fn told(hears: &mut PipeReader) -> Option<Ward> {
    let (mut pid, mut start) = ([0; 4], [0; 8]);
    hears.read_exact(&mut pid).and_then(|()| hears.read_exact(&mut start)).ok()?;
    let (pid, start) = (Pid::new(i32::from_ne_bytes(pid)), u64::from_ne_bytes(start));
    let ward = Ward { pid, start, process: Pidfd::open(pid).ok()? };
    tree::kin(pid).is_ok_and(|kin| ward.is(&kin)).then_some(ward)
}

fn live(restarter: u32, before: &[Pid], mut hears: PipeReader, mut tells: PipeWriter) -> ! {
    let _ = prctl::set_name(c"ckpt-witness");
    // Whoever reads from the others waits for their end.
    close_others(vec![hears.as_raw_fd(), tells.as_raw_fd()]);
    let restarter_lives = Pidfd::open(Pid::of_word(restarter)).ok();
    if parent_id() != restarter {
        end(0);
    }
    let above = tree::kin(Pid::of_word(restarter)).ok();
    let _ = std::env::set_current_dir("/");
    let mut wards = Vec::new();
    // A shell may still be making the others of a pipeline.
    let (mut alone, mut late) = (false, None);
    // A list misses who is made meanwhile, and shows whose parent ends while it is made as nobody's.
    let is_alone =
        |since| above.is_some_and(|above| (0..3).any(|_| is_alone(above, before, since)));
    // Without the restarter its tree is nobody's: what is seen then says nothing.
    let is_still_alone = |since| is_alone(since) || parent_id() != restarter;
    loop {
        let mut byte = [0];
        // The tree may have the other end of the pipe still when the restarter is gone.
        match await_word(&hears, restarter_lives.as_ref(), late.map(|_| LATE)) {
            None => {
                alone = alone && is_still_alone(late.take());
                continue;
            }
            Some(said) if said && hears.read_exact(&mut byte).is_ok() => {}
            Some(_) => {
                end_trees(&wards, above, alone);
                end(0);
            }
        }
        match byte[0] {
            signal if question::SIGNALS.contains(&signal) => {
                let seen = u8::from(got(signal.into()));
                if tells.write_all(&[seen]).is_err() {
                    end(0);
                }
            }
            question::WARD => {
                if wards.is_empty() {
                    alone = is_alone(None);
                }
                wards.extend(told(&mut hears));
            }
            question::FORGET => {
                wards.clear();
                alone = false;
            }
            question::RUN => {
                let mut since = [0; 8];
                late = hears.read_exact(&mut since).ok().map(|()| u64::from_ne_bytes(since));
                alone = alone && is_still_alone(late);
            }
            _ => end(0),
        }
        if parent_id() != restarter {
            end_trees(&wards, above, alone);
            end(0);
        }
    }
}

/// Waits for a word, with some patience; whether there is one, for the restarter may have ended without.
fn await_word(
    hears: &PipeReader,
    restarter: Option<&Pidfd>,
    patience: Option<Duration>,
) -> Option<bool> {
    let watch = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut both = [
        watch(hears.as_raw_fd()),
        watch(restarter.map_or(-1, |process| process.as_fd().as_raw_fd())),
    ];
    let patience = patience.map_or(-1, |patience| patience.as_millis() as i32);
    loop {
        // SAFETY: the kernel writes into the two.
        match unsafe { libc::poll(both.as_mut_ptr(), 2, patience) } {
            0 => return None,
            1.. => return Some(both[0].revents & libc::POLLIN != 0),
            _ => {}
        }
    }
}

/// Whether the restarter has begun its group, and nobody else is in it: of a pipeline all are, and what outlives the shell
/// cannot be told from an orphan of the tree when the restarter is gone. What is below the restarter is of the tree,
/// but for children from `before`, which a script has left that became the restarter; and, where the tree runs `since` a
/// time (in ticks since boot), who has begun later and lost its parent.
fn is_alone(above: Kin, before: &[Pid], since: Option<u64>) -> bool {
    if above.group != above.pid {
        return false;
    }
    let Ok(all) = tree::everybody() else { return false };
    let parents: HashMap<Pid, Pid> = all.iter().map(|kin| (kin.pid, kin.parent)).collect();
    let orphans = since.map(|_| tree::orphans(above.pid, &all)).unwrap_or_default();
    let is_orphan =
        |kin: &Kin| since.is_some_and(|since| kin.start >= since) && orphans.contains(&kin.pid);
    let is_below = |kin: &Kin| {
        let line = std::iter::successors(Some(kin.parent), |pid| parents.get(pid).copied());
        line.take(parents.len()).any(|pid| pid == above.pid)
    };
    let is_other = |kin: &&Kin| kin.group == above.pid && kin.pid != above.pid && !kin.dead;
    let is_ours =
        |kin: &Kin| kin.ours || !before.contains(&kin.pid) && is_below(kin) || is_orphan(kin);
    all.iter().filter(is_other).all(is_ours)
}

/// Ends the wards with all that descend from them. Who is stopped makes no more. The restarter, which was `above`, is put
/// in its place again: it tells whose a group is, also when the root has just ended. An orphan in its own group is the
/// tree's only where it was `alone` in it.
fn end_trees(wards: &[Ward], above: Option<Kin>, alone: bool) {
    let begun = above.map(|above| [above.session, above.group]);
    let (mut known, mut all_known): (Vec<Pid>, HashSet<Pid>) = Default::default();
    loop {
        let alive = wards.iter().filter(|ward| !ward.process.ended_within(Duration::ZERO));
        let alive = alive.map(|ward| ward.pid);
        let mut all = tree::everybody().unwrap_or_default();
        if let Some(above) = above {
            all.retain(|kin| kin.pid != above.pid);
            for kin in &mut all {
                // Init has given us an exit signal, as to all that it adopts.
                kin.ours |= kin.pid == Pid::own();
                let is_root = wards.first().is_some_and(|root| root.is(kin));
                if is_root {
                    kin.parent = above.pid;
                } else if kin.pid == Pid::own() {
                    // By its witness a restarter is known, whose group its tree's orphans are looked for in.
                    kin.parent = if alone { above.pid } else { Pid::INIT };
                }
            }
            all.push(above);
        }
        let starts = alive.chain(above.filter(|_| alone).map(|above| above.pid));
        let below = starts.flat_map(|pid| tree::below(pid, begun, &HashSet::new(), &all));
        let below = below.filter(|pid| above.is_none_or(|above| above.pid != *pid));
        let news: Vec<_> = below.filter(|pid| all_known.insert(*pid)).collect();
        if news.is_empty() {
            break;
        }
        news.iter().for_each(|pid| send(*pid, libc::SIGSTOP));
        known.extend(news);
    }
    // The root last: when a group loses with it the last parent in its session, and somebody in it is stopped and not killed,
    // all of it get SIGHUP and go on (kernel/exit.c, kill_orphaned_pgrp), the rest of a pipeline, too.
    known.into_iter().rev().for_each(|pid| send(pid, libc::SIGKILL));
}

fn send(pid: Pid, signal: i32) {
    // SAFETY: sends a signal.
    unsafe { libc::kill(pid.get(), signal) };
}

/// Whether a signal has come here, or does within [`SPREADS`]; it is taken.
fn got(signal: i32) -> bool {
    await_signal(signal_set(signal), Some(SPREADS)).is_some()
}
