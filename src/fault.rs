// SPDX-License-Identifier: LGPL-2.1-only
//! Fault points: the named steps at which a test ends a process of ours.
//!
//! `CKPT_FAULT=NAME` (or `NAME:N` for the N-th time) in the environment kills the dumper, the monitor, the stub or
//! the server with SIGKILL when it comes there, so that what is left can be looked at. `ckpt save`, a restart and
//! `ckpt serve` look at their own environment; a dumper that the program's payload has started and the monitor have
//! none, and look at the one that the program was started with (/proc/PID/environ). A process with more rights than
//! its caller (AT_SECURE, getauxval(3)), and one that works on another user's program, look at neither.
//!
//! # Safety
//! getauxval(3) only looks.
#![allow(unsafe_code)]

use crate::error::{Error, Result};
use nix::libc;
use nix::sys::signal::{Signal, raise};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, Ordering};

/// The variable.
const VARIABLE: &str = "CKPT_FAULT";

macro_rules! points {
    ($($(#[$meta:meta])* $point:ident = $name:literal,)*) => {
        /// A step. One in the life of a dumper is reached by each kind of dumper.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point { $($(#[$meta])* $point,)* }

        impl Point {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$point,)*];

            /// What CKPT_FAULT calls it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$point => $name,)* }
            }
        }
    };
}

points! {
    /// The dumper begins; it has touched nothing.
    Begun = "begun",
    /// The main thread was sent to the program's callbacks.
    Sent = "sent",
    /// Every thread stands still.
    Frozen = "frozen",
    /// Code was written into a hole of the program's text, for the first remote call.
    Borrowed = "borrowed",
    /// A thread is about to work for us: its registers are changed, its mask is not.
    Lending = "lending",
    /// It is about to make a system call for us.
    Working = "working",
    /// It is on its way home: its mask is back, its registers are not.
    Returning = "returning",
    /// The payload's memory is mapped, and not yet a payload.
    Mapped = "mapped",
    /// The payload is whole; the hole is not yet filled.
    Injected = "injected",
    /// The payload is this dumper's.
    Claimed = "claimed",
    /// The file or the connection for the image is open.
    Opened = "opened",
    /// All records are gathered, the last remote call was made.
    Gathered = "gathered",
    /// What a snapshot does not hold is written.
    Shared = "shared",
    /// The snapshot exists.
    Pictured = "pictured",
    /// It is said that the threads are let go.
    Leaving = "leaving",
    /// The last thread is let go.
    Thawed = "thawed",
    /// The pages are written.
    Written = "written",
    /// The image has its name.
    Sealed = "sealed",
    /// The payload does not know yet that the dump is over.
    Ending = "ending",
    /// The monitor has found its program.
    Watching = "watching",
    /// The monitor has a dumper at work.
    Attending = "attending",
    /// The stub has checked its image.
    Checked = "checked",
    /// The stub has opened the program's files.
    Reopened = "reopened",
    /// The stub has filled the program's memory.
    Filled = "filled",
    /// The stub is about to become the program.
    Planned = "planned",
    /// The server has a new image's first bytes.
    Receiving = "receiving",
    /// The server has a whole image, without a name.
    Received = "received",
}

/// The armed point as its index + 1, and how often it is still passed.
static ARMED: AtomicU32 = AtomicU32::new(0);
static LEFT: AtomicU32 = AtomicU32::new(0);

/// Arms what our own environment names; `pid` is the program that is worked on, if there is one.
///
/// # Errors
/// There is no point of that name.
pub fn arm(pid: Option<i32>) -> Result<()> {
    match std::env::var_os(VARIABLE) {
        Some(value) if !is_privileged() && pid.is_none_or(is_ours) => set(&value),
        _ => Ok(()),
    }
}

/// Arms what the environment names that the program `pid` was started with.
pub fn arm_by_program(pid: i32) {
    if is_privileged() || !is_ours(pid) {
        return;
    }
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mut variables = environment.split(|byte| *byte == 0);
    let prefix = format!("{VARIABLE}=");
    if let Some(value) = variables.find_map(|v| v.strip_prefix(prefix.as_bytes())) {
        let _ = set(OsStr::from_bytes(value));
    }
}

fn set(value: &OsStr) -> Result<()> {
    let text = value.to_string_lossy();
    let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
    let point = Point::ALL.iter().position(|point| point.name() == name);
    let (Some(point), Ok(count @ 1..)) = (point, count.parse::<u32>()) else {
        let names: Vec<_> = Point::ALL.iter().map(|point| point.name()).collect();
        return Err(Error::new(format!("{VARIABLE}={text} names no step")).hint(format!(
            "NAME or NAME:N with N from 1 on, and NAME one of {}",
            names.join(", ")
        )));
    };
    LEFT.store(count, Ordering::Relaxed);
    ARMED.store(point as u32 + 1, Ordering::Relaxed);
    Ok(())
}

/// Ends this process if it was armed for this step.
pub fn reach(point: Point) {
    if ARMED.load(Ordering::Relaxed) == point as u32 + 1
        && LEFT.fetch_sub(1, Ordering::Relaxed) == 1
    {
        let _ = raise(Signal::SIGKILL);
    }
}

/// Says that a child made by fork(2) comes to the armed step in our stead: the count is that of all children.
pub fn leave_to_child() {
    let _ = LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
}

fn is_privileged() -> bool {
    // SAFETY: looks at a vector that the kernel has made.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

fn is_ours(pid: i32) -> bool {
    let user = nix::unistd::geteuid().as_raw();
    std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|entry| entry.uid() == user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_counted() {
        assert!(set("".as_ref()).is_err());
        assert!(set("frozen:0".as_ref()).is_err());
        let error = set("nowhere".as_ref()).expect_err("no such step").to_string();
        assert!(Point::ALL.iter().all(|point| error.contains(point.name())), "{error}");
        set("frozen:3".as_ref()).expect("a step");
        reach(Point::Begun);
        leave_to_child();
        reach(Point::Frozen);
        assert_eq!(LEFT.load(Ordering::Relaxed), 1);
    }
}
