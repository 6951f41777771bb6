// SPDX-License-Identifier: LGPL-2.1-only
//! Process ids of choice where clone3(2) grants none: the kernel gives ids in turn, so those before the wanted one are used
//! up, without making a process.
//!
//! A clone(2) that asks for a pidfd fails with EMFILE where no descriptor can be had (RLIMIT_NOFILE of 0), after it was
//! given an id (kernel/fork.c, copy_process): some microseconds for each id. /proc/loadavg tells the last one given. The
//! processes of a tree do so one after another.
//!
//! # Safety
//! The clone shares memory and never succeeds: no descriptor is free.
#![allow(unsafe_code)]

use super::make::{clone_with, end};
use super::rendezvous::Rendezvous;
use crate::order;
use crate::proc;
use crate::proc::Pid;
use crate::resource::kinship::plan::{Life, Node, Step};
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::kill;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Ids below are given only before the first turn (RESERVED_PIDS, kernel/pid.c).
pub(super) const FIRST: i32 = 300;
/// How many ids may be used up for a whole tree, and how long that may take.
const MOST: u32 = 200_000;
const LONGEST: Duration = Duration::from_secs(3);
/// How many are used up to see how long one takes, and how often.
const SAMPLE: u32 = 8;
const SAMPLES: u32 = 8;
/// How many are used up without a sample.
const UNTRIED: u32 = 20_000;
/// How many are for one process that may only seem to remember its id.
const AT_HAND: u32 = 2_000;
/// How often one id is tried for, when others are faster.
const TRIES: usize = 8;

/// How long one id is counted for at most: the machine may be busier than when it was tried.
const LIMIT: Duration = Duration::from_secs(15);

/// How long a process waits for those that have to be made before one of its own.
const PATIENCE: Duration = Duration::from_millis(200);

/// Where the processes take turns, and all ids in the order in which the kernel gives them; until when they are counted
/// for, if others will do. Unset where they are not.
static TURNS: OnceLock<(Rendezvous, Vec<Pid>, Option<Instant>)> = OnceLock::new();

/// The ids as the kernel gives them.
struct Kernel {
    loadavg: File,
    most: i32,
}

impl Kernel {
    fn open() -> Option<Self> {
        let most = i32::try_from(proc::setting("kernel/pid_max")?).ok()?;
        Some(Self { loadavg: File::open("/proc/loadavg").ok()?, most })
    }

    /// The last id that was given.
    fn last(&self) -> Option<Pid> {
        let mut text = [0; 128];
        let len = self.loadavg.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..len]).ok()?;
        text.split_ascii_whitespace().last()?.parse().ok()
    }

    /// How many ids are given before this one, when `last` was the last.
    fn before(&self, wanted: Pid, last: Pid) -> Option<i32> {
        let (wanted, last) = (wanted.get(), last.get());
        match wanted - last - 1 {
            ahead @ 0.. => Some(ahead),
            _ if wanted < FIRST => None,
            _ => Some((self.most - 1 - last).max(0) + wanted - FIRST),
        }
    }
}

/// Whether these lives can be counted for: a brother that got a wrong id would be left to its parent, who knows nothing
/// of it.
pub(crate) fn is_possible(members: &[Node], lives: &[Life]) -> bool {
    let has_brother = |(me, life): (usize, &Life)| {
        life.steps.iter().any(|step| match step {
            Step::MakeSibling(_) => true,
            Step::MakeSession(_, all) => all.iter().any(|one| members[*one].parent == Some(me)),
            _ => false,
        })
    };
    !lives.iter().enumerate().any(has_brother)
}

/// How many ids are given before the first of these, and before the last.
fn distances(ids: &[Pid]) -> Option<[u32; 2]> {
    let kernel = Kernel::open()?;
    let last = kernel.last()?;
    let all = ids.iter().map(|id| kernel.before(*id, last)).collect::<Option<Vec<_>>>()?;
    Some([all.iter().min()?, all.iter().max()?].map(|number| number.cast_unsigned()))
}

/// Whether these ids can be had so in a moment, for a program that may do without.
pub(crate) fn are_at_hand(ids: &[Pid]) -> bool {
    distances(ids).is_some_and(|[_, all]| all <= AT_HAND)
}

/// Whether these ids can be had so, within seconds.
pub(crate) fn is_near(ids: &[Pid]) -> bool {
    let near = || {
        let [first, all] = distances(ids)?;
        // What the samples use up must not be what is wanted.
        if all > MOST || first <= SAMPLE * SAMPLES {
            return Some(all <= UNTRIED);
        }
        let sample = |_| {
            let begun = Instant::now();
            (0..SAMPLE).for_each(|_| use_up());
            begun.elapsed()
        };
        // Others may have the processor meanwhile.
        let least = without_descriptors(|| (0..SAMPLES).map(sample).min()).ok()??;
        Some(least * (all / SAMPLE) < LONGEST)
    };
    near().unwrap_or(false)
}

/// Counts for ids of choice from now on, in this process and those that it makes: each as long as it takes, or all of them
/// for [`LIMIT`], where others will do (`kept`).
pub(crate) fn begin(rendezvous: Rendezvous, mut ids: Vec<Pid>, kept: bool) {
    let last = Kernel::open().and_then(|kernel| Some((kernel.last()?, kernel)));
    let before = |id: Pid| last.as_ref().and_then(|(last, kernel)| kernel.before(id, *last));
    order::by_key(&mut ids, |id| before(*id).map_or((0, 0), |n| (1, n.cast_unsigned().into())));
    let _ = TURNS.set((rendezvous, ids, (!kept).then(|| Instant::now() + LIMIT)));
}

/// Waits until those are there that come before this one: it would take a whole turn to go back to them.
fn await_others(ids: &[Pid], wanted: Pid) {
    let begun = Instant::now();
    let before = ids.iter().take_while(|id| **id != wanted);
    for id in before {
        while kill(id.nix(), None) == Err(Errno::ESRCH) && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Uses up the ids that are given once: what is made next can have its id again.
pub(super) fn pass_reserved() {
    // A restarter needs some for its own.
    const ENOUGH: i32 = FIRST + 32;
    let last = Kernel::open().and_then(|kernel| kernel.last()).map_or(ENOUGH, Pid::get);
    let _ = without_descriptors(|| (last..ENOUGH).for_each(|_| use_up()));
}

/// Whether ids are counted for.
pub(super) fn is_begun() -> bool {
    TURNS.get().is_some()
}

/// Whether the restart has failed, so that no id is of use.
pub(super) fn are_vain() -> bool {
    TURNS.get().is_some_and(|(turns, ..)| turns.is_vain())
}

/// Makes a process with an id; None in the process itself.
pub(super) fn clone_as(flags: i32, wanted: Pid, exit_signal: i32) -> nix::Result<Option<Pid>> {
    let (turns, ids, until) = TURNS.get().ok_or(Errno::EPERM)?;
    let kernel = Kernel::open().ok_or(Errno::ENOSYS)?;
    await_others(ids, wanted);
    let until = until.unwrap_or_else(|| Instant::now() + LIMIT);
    let is_vain = || turns.is_vain() || Instant::now() > until;
    if !turns.take_turn(is_vain) {
        return Err(Errno::EEXIST);
    }
    let mut made = Err(Errno::EEXIST);
    for _ in 0..TRIES {
        made = kernel.count_to(wanted, is_vain).and_then(|()| clone_with(flags, None, exit_signal));
        match made {
            Ok(None) if Pid::own() != wanted => end(0),
            // Its maker has the turn.
            Ok(None) => return made,
            Ok(Some(child)) if child != wanted => {
                // SAFETY: waits for the child that was just made.
                unsafe { libc::waitpid(child.get(), std::ptr::null_mut(), libc::__WALL) };
                made = Err(Errno::EEXIST);
            }
            _ => break,
        }
    }
    turns.give_turn();
    made
}

impl Kernel {
    /// Uses up all ids before this one, unless that has become vain.
    fn count_to(&self, wanted: Pid, is_vain: impl Fn() -> bool) -> nix::Result<()> {
        without_descriptors(|| self.count(wanted, is_vain)).flatten()
    }

    fn count(&self, wanted: Pid, is_vain: impl Fn() -> bool) -> nix::Result<()> {
        // Others take some meanwhile.
        const CARE: i32 = 32;
        loop {
            if is_vain() {
                return Err(Errno::EEXIST);
            }
            let last = self.last().ok_or(Errno::ENOSYS)?;
            let left = self.before(wanted, last).filter(|left| left.cast_unsigned() <= MOST);
            match left.ok_or(Errno::EEXIST)? {
                0 => return Ok(()),
                few @ ..=CARE => (0..few).for_each(|_| use_up()),
                many => (CARE..many).for_each(|_| use_up()),
            }
        }
    }
}

/// Works where no descriptor can be had.
fn without_descriptors<T>(work: impl FnOnce() -> T) -> nix::Result<T> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard)?;
    let done = work();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    Ok(done)
}

/// Has the kernel give an id to nobody.
fn use_up() {
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD;
    let mut pidfd = 0i32;
    let at: *mut i32 = &mut pidfd;
    // SAFETY: it fails, as there is no descriptor for it.
    unsafe { libc::syscall(libc::SYS_clone, flags, 0, at, 0, 0) };
}
