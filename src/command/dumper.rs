// SPDX-License-Identifier: LGPL-2.1-only
//! The dumper that the payload starts: it has no terminal, no descriptors and an empty environment,
//! and speaks through the program's own standard error.
//!
//! # Safety
//! Ignoring a signal installs no code, and reading the time stamp counter harms no memory.
#![allow(unsafe_code)]

use super::notify::{Hook, Shared};
use crate::dump::{Demand, Tell, dump};
use crate::error::{Kind, Result};
use crate::inject::monitor;
use crate::proc::{Pid, Process, tree};
use crate::progress::Screen;
use crate::ptrace::borrowed;
use crate::settings::Settings;
use crate::speech;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::time::Duration;

/// How long a program that ends what the command of `--notify` lives in waits for that.
const LAST: Duration = Duration::from_secs(10);

/// With fewer descriptors no checkpoint is taken from inside.
const LEAST: u64 = 16;

/// Saves the process that started us.
#[inline(never)]
pub(super) fn run(pid: Pid) -> Result<u8> {
    let error_output = begin(pid, c"ckpt-dump");
    // The program says what is missing, as nobody answers it.
    if getrlimit(Resource::RLIMIT_NOFILE).is_ok_and(|(_, hard)| hard < LEAST) {
        return Ok(1);
    }
    let say = |sentence: &str| say(error_output.as_ref(), sentence);
    let hook = super::named(pid).and_then(|process| Hook::prepare(&process, None, false));
    let hook = hook.unwrap_or_else(|e| {
        say(&e.to_string());
        None
    });
    let hook = Shared::of(hook, pid);
    // With a namespace's first process all in it end.
    let is_last = pid == Pid::INIT || tree::is_made_for_a_tree();
    let request = |process| Demand {
        process,
        settings: Settings::default(),
        stop: None,
        triggered: true,
        periodic: false,
        open: super::destination::open,
        prune: super::destination::prune,
        screen: error_output.as_ref().and_then(|file| file.try_clone().ok()).map(Screen::Of),
        tell: error_output
            .as_ref()
            .and_then(|file| file.try_clone().ok())
            .map(|file| -> Tell { Box::new(move |sentence| self::say(Some(&file), sentence)) }),
        ending: Some(hook.ending(is_last.then_some(LAST))),
        ended: None,
        rolling: None,
    };
    let result = super::named(pid).and_then(|process| dump(&request(process)));
    let _ = hook.tell(result.as_ref());
    match result {
        Ok(outcome) => {
            outcome.sentences().for_each(|sentence| say(&sentence));
            if outcome.stopped && error_output.as_ref().is_some_and(File::is_terminal) {
                say(&format!("saved to {}", outcome.name.display()));
            }
            Ok(0)
        }
        Err(e) if e.kind() == Kind::Superseded => Ok(0),
        Err(e) => {
            say(&format!("no checkpoint: {e}"));
            Ok(e.status())
        }
    }
}

/// Makes us what the payload starts: named, and ready for what may come; the program's standard
/// error, taken now, because a program that was ended has none any more.
pub(super) fn begin(pid: Pid, name: &std::ffi::CStr) -> Option<File> {
    keep_low_descriptors();
    prepare();
    // A thread without RDTSC (PR_SET_TSC) made us, and clock_gettime(2) of the vdso needs it.
    // SAFETY: it changes no memory.
    let _ = unsafe { libc::prctl(libc::PR_SET_TSC, libc::PR_TSC_ENABLE) };
    let _ = nix::sys::prctl::set_name(name);
    let taken = borrowed::take(pid, 2).ok().map(File::from);
    taken.or_else(|| monitor::reopen_stderr(&monitor::stderr_of(&Process::open(pid).ok()?)?))
}

/// Writes a sentence where the program writes its own.
pub(super) fn say(output: Option<&File>, sentence: &str) {
    output.map(|file| speech::say(file.as_fd(), sentence));
}

/// Limits on files answer with errors instead of ending us.
pub(super) fn prepare() {
    for number in [Signal::SIGXFSZ, Signal::SIGPIPE] {
        ignore(number);
    }
}

fn ignore(number: Signal) {
    // SAFETY: no handler of ours is replaced, and none is installed.
    let _ = unsafe { signal(number, SigHandler::SigIgn) };
}

/// Occupies 0, 1 and 2, so that no file of ours is taken for a standard stream.
pub(super) fn keep_low_descriptors() {
    while let Ok(file) = File::options().read(true).write(true).open("/dev/null") {
        use std::os::fd::{AsRawFd, IntoRawFd};
        if file.as_raw_fd() > 2 {
            break;
        }
        let _ = file.into_raw_fd();
    }
}
