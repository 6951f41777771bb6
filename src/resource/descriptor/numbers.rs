// SPDX-License-Identifier: LGPL-2.1-only
//! Giving descriptors their numbers.
//!
//! Until the point of no return the restored descriptors have any numbers; then each is duplicated to its
//! own, in an order in which none is overwritten that is needed still, and everything else is closed. So
//! a program with many descriptors, or with high ones, needs no more room than it had.
//!
//! # Safety
//! Numbers become descriptors only for single calls or where their owner is known.
#![allow(unsafe_code)]

use super::{Origin, Restored, is_first, kind, ownership};
use crate::error::{Because, Error, Result};
use crate::order;
use crate::proc::closing::close_range;
use crate::proc::fds::UNDER_WAY;
use ckpt_abi::image::{Descriptor, DescriptorKind};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

/// Raises the limit on descriptors as far as it goes: the program's are opened beside our own. Its own limit
/// comes back with it.
///
/// # Errors
/// A number of the program's lies above even so.
pub(crate) fn check(processes: &[&[Descriptor]]) -> Result<()> {
    let limit = || getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard);
    let records = || processes.iter().copied().flatten();
    let own = records().filter(|r| r.fd & UNDER_WAY == 0);
    let highest = own.map(|r| u64::from(r.fd)).max().unwrap_or(0);
    // Both ends of a socket's connection are there until each has its own.
    let weight = |r: &Descriptor| 1 + usize::from(kind(r) == DescriptorKind::Socket);
    // With privilege the hard limit is no limit.
    let wanted = hard.max(highest + records().map(weight).sum::<usize>() as u64 + 64);
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_err() {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let opened = |(process, records): (u32, &&[Descriptor])| -> Vec<usize> {
        let opened = |r: &&Descriptor| is_first(r, process) && kind(r) != DescriptorKind::Stdio;
        records.iter().filter(opened).map(weight).collect()
    };
    let opened: Vec<usize> = (0..).zip(processes).flat_map(opened).collect();
    let needed: usize = opened.iter().sum();
    let there = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let text = match limit() {
        limit if highest >= limit => {
            format!("the program has a descriptor {highest}, and only {limit} are allowed here")
        }
        limit if (needed + there) as u64 > limit => {
            let who = match processes.len() {
                1 => "the program has".to_owned(),
                several => format!("the {several} processes have"),
            };
            let how =
                if processes.len() > 1 { ", which are opened by one of them for all" } else { "" };
            let twice = if needed > opened.len() { " (sockets count twice)" } else { "" };
            format!(
                "{who} {} open files{twice}{how}, and a process may have only {limit} here",
                opened.len()
            )
        }
        _ => return Ok(()),
    };
    let error = Error::new(text).with_errno(libc::EMFILE);
    Err(error.hint("raise the limit on open files (ulimit -Hn)"))
}

/// The lowest number from 3 on that no descriptor of the program has, nor is in `taken`.
pub(crate) fn free(records: &[Descriptor], taken: &[i32]) -> u32 {
    let used: HashSet<u32> = records.iter().map(|r| r.fd).collect();
    let mut numbers = (3..).filter(|n: &u32| !used.contains(n));
    numbers.find(|n| !taken.contains(&n.cast_signed())).unwrap_or(u32::MAX)
}

/// Moves a descriptor of ours to a number that none of the program's will have.
pub(crate) fn move_aside(file: OwnedFd, records: &[Descriptor]) -> Result<OwnedFd> {
    let used: HashSet<u32> = records.iter().map(|r| r.fd).chain(0..3).collect();
    let mut from = 3;
    loop {
        while used.contains(&from) {
            from += 1;
        }
        let moved = fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(from.cast_signed())).map(own);
        let moved = moved.because(|| "cannot duplicate a descriptor (ulimit -n)")?;
        let number = moved.as_raw_fd().cast_unsigned();
        if !used.contains(&number) {
            return Ok(moved);
        }
        from = number + 1;
    }
}

/// Gives every restored descriptor of a process, which is the only one of its image or not, its number and closes all
/// others but `kept`. From here on standard error is the program's.
pub(crate) fn install(restored: Vec<Restored>, kept: &[i32], alone: bool) {
    let by_number: HashMap<u32, i32> = restored
        .iter()
        .filter_map(|r| match &r.origin {
            Origin::Own(file) => Some((r.record.fd, file.as_raw_fd())),
            Origin::Standard(number) => Some((r.record.fd, number.cast_signed())),
            Origin::Shared(_) | Origin::Elsewhere(_) => None,
        })
        .collect();
    let mut moves = Moves::default();
    let mut records = Vec::new();
    for Restored { record, origin } in restored {
        let (leader, set) = match origin {
            Origin::Shared(leader) => (leader, 0),
            // Whoever leaves has asked for its own (`shared::of_process`).
            Origin::Elsewhere(_) => continue,
            Origin::Own(file) => {
                let _ = file.into_raw_fd();
                (record.fd, OWN)
            }
            Origin::Standard(_) => (record.fd, STANDARD),
        };
        let Some(source) = by_number.get(&leader) else { continue };
        moves.add(*source, record.fd.cast_signed(), record.cloexec != 0);
        records.push((record, set));
    }
    let sources = moves.uses.keys().copied();
    close_others(sources.chain(kept.iter().copied()).collect());
    let numbers = moves.targets.clone();
    moves.run();
    let numbers = numbers.into_iter().map(u32::cast_signed);
    close_others(numbers.chain(kept.iter().copied()).collect());
    for (record, set) in records.iter().filter(|(_, set)| *set != 0) {
        let fd = borrowed(record.fd.cast_signed());
        ownership::restore(fd, record, alone);
        restore_flags(fd, record, *set);
    }
}

/// The status flags that fcntl(2) sets.
const OWN: i32 =
    libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME | libc::O_ASYNC;
/// Those that the program is given of the restarter's standard streams: it would have set them there without
/// ckpt, too. How a file is written is left to whoever opened it.
const STANDARD: i32 = libc::O_NONBLOCK | libc::O_ASYNC;

/// Which descriptor goes where.
#[derive(Default)]
struct Moves {
    /// By the number that it gets: where it is now, and whether it closes on exec.
    pending: HashMap<i32, (i32, bool)>,
    /// How many pending moves need what has this number.
    uses: HashMap<i32, usize>,
    /// All numbers that are somebody's in the end.
    targets: HashSet<u32>,
}

impl Moves {
    fn add(&mut self, source: i32, target: i32, cloexec: bool) {
        if self.targets.insert(target.cast_unsigned()) {
            self.pending.insert(target, (source, cloexec));
            *self.uses.entry(source).or_default() += 1;
        }
    }

    /// Moves whatever nobody stands in the way of. What is left then goes around in circles, of which one
    /// steps aside.
    fn run(mut self) {
        let mut ready: Vec<i32> =
            self.pending.keys().copied().filter(|t| self.is_free(*t)).collect();
        while !self.pending.is_empty() {
            match ready.pop() {
                Some(target) => ready.extend(self.step(target)),
                None => {
                    let Some(target) = self.pending.keys().next().copied() else { break };
                    let Some(aside) = self.step_aside(target) else { break };
                    ready.push(aside);
                }
            }
        }
    }

    /// Whether nothing is needed of what has this number now, but to stay where it is.
    fn is_free(&self, target: i32) -> bool {
        let stays = self.pending.get(&target).is_some_and(|(source, _)| *source == target);
        self.uses.get(&target).copied().unwrap_or(0) <= usize::from(stays)
    }

    /// Makes one move; the number that it sets free, if something waits for that.
    fn step(&mut self, target: i32) -> Option<i32> {
        let (source, cloexec) = self.pending.remove(&target)?;
        if source == target {
            let flags = if cloexec { FdFlag::FD_CLOEXEC } else { FdFlag::empty() };
            let _ = fcntl(borrowed(source), FcntlArg::F_SETFD(flags));
        } else {
            place(source, target, cloexec);
        }
        let left = self.uses.get_mut(&source)?;
        *left -= 1;
        if *left == 0 && !self.targets.contains(&source.cast_unsigned()) {
            close_range(source.cast_unsigned(), source.cast_unsigned());
        }
        let waits = self.pending.contains_key(&source) && self.is_free(source);
        waits.then_some(source)
    }

    /// Gives what has the number `target` another one, for all that need it.
    fn step_aside(&mut self, target: i32) -> Option<i32> {
        let aside = fcntl(borrowed(target), FcntlArg::F_DUPFD_CLOEXEC(3)).ok()?;
        let mut moved = 0;
        for (source, _) in self.pending.values_mut().filter(|(source, _)| *source == target) {
            (*source, moved) = (aside, moved + 1);
        }
        self.uses.remove(&target);
        self.uses.insert(aside, moved);
        Some(target)
    }
}

/// Has a number be another's duplicate.
pub(super) fn place(from: i32, to: i32, cloexec: bool) {
    let flags = if cloexec { OFlag::O_CLOEXEC } else { OFlag::empty() };
    let from = borrowed(from);
    let mut to = std::mem::ManuallyDrop::new(own(to));
    let _ = nix::unistd::dup3(from, &mut to, flags);
}

/// Sets the status flags of what is under way, which nobody has.
pub(super) fn mark(fd: BorrowedFd<'_>, record: &Descriptor) {
    if kind(record) != DescriptorKind::Stdio {
        restore_flags(fd, record, OWN & !libc::O_ASYNC);
    }
}

fn restore_flags(fd: BorrowedFd<'_>, record: &Descriptor, set: i32) {
    let Ok(now) = fcntl(fd, FcntlArg::F_GETFL) else { return };
    let flags = record.flags.cast_signed() & set | now & !set;
    if !super::only_names(record.flags) && flags != now {
        let _ = fcntl(fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags)));
    }
}

/// Closes every descriptor but these: of a process that uses none of its others again.
pub(crate) fn close_others(mut kept: Vec<i32>) {
    order::numbers(&mut kept);
    let mut next = 0u32;
    for fd in kept.iter().map(|fd| fd.cast_unsigned()) {
        if fd > next {
            close_range(next, fd - 1);
        }
        next = next.max(fd + 1);
    }
    close_range(next, u32::MAX);
}

fn borrowed(fd: i32) -> BorrowedFd<'static> {
    // SAFETY: used for single calls that fail with EBADF where there is no such descriptor.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn own(fd: i32) -> OwnedFd {
    // SAFETY: either fresh from fcntl, or wrapped so that it is never dropped.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Gives up ownership of a descriptor that the restorer will close.
pub(crate) fn leak(file: OwnedFd) -> i32 {
    file.into_raw_fd()
}
