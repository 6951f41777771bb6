// SPDX-License-Identifier: LGPL-2.1-only
//! Fault points: the named steps at which a test ends a process of ours.
//!
//! `CKPT_FAULT=NAME` (or `NAME:N` for the N-th time) in the environment kills the dumper, the monitor, the stub or
//! the server with SIGKILL when it comes there, so that what is left can be looked at; a name that is none (`?`) is
//! answered with the list, by who comes there. `ckpt` looks at its own environment; a dumper that the program's
//! payload has started and the monitor have none, and look at the one that the program was started with
//! (/proc/PID/environ), if it is a program of the same user. A process with more rights than its caller (AT_SECURE,
//! getauxval(3)) looks at neither.
//!
//! `CKPT_FAULT=slow` kills nobody: all that is [shown](crate::progress) of what takes long is shown at once.
//!
//! `CKPT_FAULT=-NAME` ends the whole process group, as kill(2) has it; `CKPT_FAULT=+NAME` only stops the process there
//! (SIGSTOP), for something to happen meanwhile.
//!
//! A step belongs between any two effects that others can see: processes, files, the program's memory.
//!
//! # Safety
//! getauxval(3) only looks.
#![allow(unsafe_code)]

use crate::error::{Error, Result};
use crate::proc::{Pid, Process};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The variable.
const VARIABLE: &str = "CKPT_FAULT";

macro_rules! points {
    ($($who:literal: { $($(#[$meta:meta])* $point:ident = $name:literal,)* })*) => {
        /// A step.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Point { $($($(#[$meta])* $point,)*)* }

        /// All of them, by who comes there.
        const BY_WHO: &[(&str, &[Point])] = &[$(($who, &[$(Point::$point),*])),*];

        impl Point {
            /// What CKPT_FAULT calls it.
            const fn name(self) -> &'static str {
                match self { $($(Self::$point => $name,)*)* }
            }
        }
    };
}

points! {
    "dumper": {
        /// The dumper begins; it has touched nothing.
        Begun = "begun",
        /// The main thread is about to be sent to the program's callbacks; the turn is not yet ours.
        Summoning = "summoning",
        /// The main thread was sent to the program's callbacks.
        Sent = "sent",
        /// A thread is traced, and runs.
        Seized = "seized",
        /// Every thread stands still.
        Frozen = "frozen",
        /// Code was written into a hole of the program's text, for the first remote call.
        Borrowed = "borrowed",
        /// A thread's state is written down; it is as it was.
        Noted = "noted",
        /// A thread is about to work for us: its registers are changed, its mask is not.
        Lending = "lending",
        /// It is about to make a system call for us.
        Working = "working",
        /// It has begun a system call for us.
        Entered = "entered",
        /// It is on its way home: its mask is back, its registers are not.
        Returning = "returning",
        /// It is as it was, and not yet said to be.
        Returned = "returned",
        /// The payload's memory is mapped, and not yet a payload.
        Mapped = "mapped",
        /// The payload is whole, and has no signal.
        Whole = "whole",
        /// The payload has its signal; the hole is not yet filled.
        Injected = "injected",
        /// The payload is this dumper's.
        Claimed = "claimed",
        /// The file or the connection for the image is open.
        Opened = "opened",
        /// What is in the pseudo-terminals is read and put back, by another process.
        Peeking = "peeking",
        /// Looks into a socket begin behind what was seen of it.
        Looking = "looking",
        /// Who reads from a TCP connection has more room than it had.
        Roomy = "roomy",
        /// All records are gathered, the last remote call was made.
        Gathered = "gathered",
        /// An area of memory is about to be read.
        Area = "area",
        /// What a snapshot does not hold is written.
        Shared = "shared",
        /// What there would be in a snapshot is held in its place.
        Held = "held",
        /// The process that made the snapshot is not reaped.
        Cloned = "cloned",
        /// The snapshot exists.
        Pictured = "pictured",
        /// It is said that the threads are let go.
        Leaving = "leaving",
        /// A thread is let go.
        Released = "released",
        /// The last thread is let go.
        Thawed = "thawed",
        /// The pages are written.
        Written = "written",
        /// TCP connections that go on hear nothing, and were looked at.
        Deafened = "deafened",
        /// The whole image has a name for a moment.
        Linked = "linked",
        /// The program's memory is being tracked from now on.
        Tracked = "tracked",
        /// What was written to is known to the dumper alone.
        Rearmed = "rearmed",
        /// An older checkpoint is about to be changed.
        Renewing = "renewing",
        /// The image has its name, and the one before a hidden one.
        Exchanged = "exchanged",
        /// The image has its name.
        Sealed = "sealed",
        /// The next checkpoint has its number; older ones are there still.
        Numbered = "numbered",
        /// The program was told to end.
        Ended = "ended",
        /// The payload does not know yet that the dump is over.
        Ending = "ending",
        /// A caller of the C API has its answer, and its turn is not over.
        Answered = "answered",
    }
    "attacher": {
        /// `ckpt -p` has written the new configuration, and the signals are those of the old.
        Configured = "configured",
        /// The new signal is taken, the old not given back.
        Taken = "taken",
        /// The monitor is appointed.
        Appointed = "appointed",
    }
    "launcher": {
        /// The injector traces ckpt, which is about to become the program.
        Tracing = "tracing",
        /// The program stands before its first instruction, without a payload.
        Executed = "executed",
        /// It has one, and is traced still.
        Equipped = "equipped",
    }
    "monitor": {
        /// The monitor waits for its program to begin.
        Waiting = "waiting",
        /// It has found its program.
        Watching = "watching",
        /// It has a dumper at work.
        Attending = "attending",
        /// Its dumper is done, and not reaped.
        Attended = "attended",
    }
    "stub": {
        /// The stub has checked its image.
        Checked = "checked",
        /// It has made the monitor.
        Watched = "watched",
        /// It has opened the program's files.
        Reopened = "reopened",
        /// It has filled the program's memory.
        Filled = "filled",
        /// The files that the image holds are as they were.
        Settled = "settled",
        /// It is about to become the program.
        Planned = "planned",
        /// The descriptors have their numbers.
        Installed = "installed",
    }
    "restarter": {
        /// The restarter of a tree has its witness.
        Witnessed = "witnessed",
        /// It has namespaces for the tree, and their first process.
        Apart = "apart",
        /// It has made the root.
        Rooted = "rooted",
        /// A member of the tree is made; those below it are not.
        Born = "born",
        /// All are made, and the restarter has named them to the witness.
        Made = "made",
        /// A member is in its group.
        Grouped = "grouped",
        /// All are in their programs.
        Standing = "standing",
    }
    "pager": {
        /// The process that brings missing memory (`--lazy`) is about to bring a piece that nobody waits for.
        Bringing = "bringing",
    }
    "mover": {
        /// The other host has ckpt, and nothing else.
        Greeted = "greeted",
        /// An image is there; the program runs here.
        Rounded = "rounded",
        /// The other host has all that it takes; the program stands still here.
        Promised = "promised",
        /// It has ended here, and waits there.
        Parted = "parted",
        /// It was told to go on there.
        Told = "told",
    }
    "receiver": {
        /// The other end of a move has a file for the image.
        Housed = "housed",
        /// It has checked an image.
        Proved = "proved",
        /// The program waits for its last steps.
        Poised = "poised",
        /// The image has its name, and nobody was told that all is ready.
        Vowing = "vowing",
        /// It was told to have the program begin.
        Ordered = "ordered",
        /// The image has lost its name, and the program waits still.
        Renamed = "renamed",
        /// The program has begun, and nobody was told.
        Began = "began",
    }
    "server": {
        /// The server has made a file for a new image.
        Uploading = "uploading",
        /// It has a new image's first bytes.
        Receiving = "receiving",
        /// It has a whole image, without a name.
        Received = "received",
        /// The folders for its name are there.
        Foldered = "foldered",
        /// It has its name, and the client does not know.
        Stored = "stored",
        /// The server is about to send an image's bytes.
        Sending = "sending",
        /// An image is removed; its folders, empty, are there.
        Removing = "removing",
        /// Nothing has its name any more; what it was made of is there.
        Releasing = "releasing",
        /// Content has its digests, and nobody means it on the disk.
        Packed = "packed",
    }
}

fn all() -> impl Iterator<Item = Point> {
    BY_WHO.iter().flat_map(|(_, points)| points.iter().copied())
}

/// All names, as the answer to one that is none.
fn list() -> String {
    let names = |points: &[Point]| points.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ");
    let lines = BY_WHO.iter().map(|(who, points)| format!("{who}: {}", names(points)));
    lines.collect::<Vec<_>>().join("; ")
}

/// The armed point as its index + 1, and how often it is still passed.
static ARMED: AtomicU32 = AtomicU32::new(0);
static LEFT: AtomicU32 = AtomicU32::new(0);
/// Whether the whole process group ends there.
static IN_GROUP: AtomicBool = AtomicBool::new(false);
/// Whether the process is only stopped there.
static STOPS: AtomicBool = AtomicBool::new(false);
/// Whether everything counts as slow.
static SLOW: AtomicBool = AtomicBool::new(false);
/// How often it was at first.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Arms what our own environment names.
///
/// # Errors
/// There is no point of that name.
pub(crate) fn arm() -> Result<()> {
    match std::env::var_os(VARIABLE) {
        Some(value) if !is_privileged() => set(&value),
        _ => Ok(()),
    }
}

/// Arms what the environment names that the program `pid` was started with.
pub(crate) fn arm_by_program(pid: Pid) {
    let Ok(program) = Process::glimpse(pid) else { return };
    if is_privileged() || program.user() != Some(nix::unistd::geteuid().as_raw()) {
        return;
    }
    let environment = program.environment().unwrap_or_default();
    let mut variables = environment.split(|byte| *byte == 0);
    let prefix = format!("{VARIABLE}=");
    if let Some(value) = variables.find_map(|v| v.strip_prefix(prefix.as_bytes())) {
        let _ = set(OsStr::from_bytes(value));
    }
}

fn set(value: &OsStr) -> Result<()> {
    let text = value.to_string_lossy();
    if text == "slow" {
        SLOW.store(true, Ordering::Relaxed);
        return Ok(());
    }
    let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
    let group = name.strip_prefix('-');
    let stop = name.strip_prefix('+');
    let name = group.or(stop).unwrap_or(name);
    let point = all().find(|point| point.name() == name);
    let (Some(point), Ok(count @ 1..)) = (point, count.parse::<u32>()) else {
        let text = format!("{VARIABLE}={text} names no step");
        return Err(Error::new(text)
            .hint(format!("NAME or NAME:N with N from 1 on, and NAME one of: {}", list())));
    };
    IN_GROUP.store(group.is_some(), Ordering::Relaxed);
    STOPS.store(stop.is_some(), Ordering::Relaxed);
    COUNT.store(count, Ordering::Relaxed);
    LEFT.store(count, Ordering::Relaxed);
    ARMED.store(point as u32 + 1, Ordering::Relaxed);
    Ok(())
}

/// Ends this process if it was armed for this step, or stops it.
pub(crate) fn reach(point: Point) {
    if ARMED.load(Ordering::Relaxed) == point as u32 + 1
        && LEFT.fetch_sub(1, Ordering::Relaxed) == 1
    {
        if IN_GROUP.load(Ordering::Relaxed) {
            let _ = kill(nix::unistd::Pid::from_raw(0), Signal::SIGKILL);
        }
        let signal = match STOPS.load(Ordering::Relaxed) {
            true => Signal::SIGSTOP,
            false => Signal::SIGKILL,
        };
        // Not raise(3): the C library remembers the id of who made a process by a bare clone(2).
        let _ = kill(getpid(), signal);
    }
}

/// Whether all counts as slow that a user would wait for.
pub(crate) fn is_slow() -> bool {
    SLOW.load(Ordering::Relaxed)
}

/// Says that a dumper made by fork(2) comes to the armed step in our stead, if it is one of a dumper's: the count is
/// that of all dumpers.
pub(crate) fn leave_to_child() {
    let armed = ARMED.load(Ordering::Relaxed);
    let dumpers = BY_WHO.first().map_or(&[][..], |(_, points)| points);
    if !dumpers.iter().any(|point| *point as u32 + 1 == armed) {
        return;
    }
    let _ = LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
}

/// Counts the processes of a tree: the first of them comes to the armed step as it is counted, the next as for the
/// next time, …
pub(crate) fn become_member(index: u32) {
    LEFT.store(COUNT.load(Ordering::Relaxed).saturating_sub(index), Ordering::Relaxed);
}

fn is_privileged() -> bool {
    // SAFETY: looks at a vector that the kernel has made.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_counted() {
        assert!(set("".as_ref()).is_err());
        assert!(set("frozen:0".as_ref()).is_err());
        let error = set("nowhere".as_ref()).expect_err("no such step").to_string();
        assert!(all().all(|point| error.contains(point.name())), "{error}");
        let numbers: Vec<_> = all().map(|point| point as usize).collect();
        assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>());
        set("frozen:3".as_ref()).expect("a step");
        reach(Point::Begun);
        leave_to_child();
        reach(Point::Frozen);
        assert_eq!(LEFT.load(Ordering::Relaxed), 1);
    }
}
