//! The handler of the checkpoint signal.
//!
//! It starts a dumper and waits until that has taken what it came for. The dumper ends the
//! program, or lets it go on: then the handler returns, as it also does in a restarted process,
//! where the phase was set back.
//!
//! # Safety
//! The system calls made here touch only their own arguments.
#![allow(unsafe_code)]

use crate::control::Page;
use crate::{spawn, sys};
use ckpt_abi::region::Phase;
use core::sync::atomic::{AtomicU32, Ordering};

/// How long to sleep between two looks at whether the dumper lives, in nanoseconds.
const PATIENCE: u64 = 250_000_000;

const IDLE: u32 = Phase::Idle as u32;
const WAITING: u32 = Phase::Waiting as u32;

#[unsafe(no_mangle)]
extern "C" fn ckpt_handler(_signal: i32, _siginfo: u64, _ucontext: u64) {
    let page = Page::own();
    if !claim(page) {
        return;
    }
    page.target().store(sys::getpid(), Ordering::Release);
    spawn::dumper(page);
    let dumper = page.dumper().load(Ordering::Acquire);
    // In a restarted process the phase is idle and the dumper none, wherever the freeze met us.
    if page.phase().load(Ordering::Acquire) != WAITING {
        return;
    }
    if dumper == 0 {
        page.phase().store(IDLE, Ordering::Release);
        say(b"ckpt: no checkpoint: the dumper could not be started: ");
        say(reason(page.spawn_error().load(Ordering::Acquire)));
        say(b"; the program goes on\n");
        return;
    }
    await_dumper(page.phase(), dumper);
}

fn await_dumper(phase: &AtomicU32, dumper: u32) {
    while phase.load(Ordering::Acquire) == WAITING {
        sys::futex_wait(phase.as_ptr(), WAITING, PATIENCE);
        if phase.load(Ordering::Acquire) == WAITING && !alive(dumper) {
            phase.store(IDLE, Ordering::Release);
            say(b"ckpt: no checkpoint: the dumper ended before it was done; the program goes on\n");
        }
    }
}

/// Makes the caller the one whose dumper comes; false while another's works.
fn claim(page: Page) -> bool {
    let seen = page.phase().load(Ordering::Acquire);
    if seen != IDLE {
        // A stale value only makes us ask about a task that is gone.
        let dumper = page.dumper().load(Ordering::Acquire);
        if dumper == 0 || alive(dumper) {
            return false;
        }
    }
    if !spawn::reap_keeper(page) {
        return false;
    }
    let claimed = page.phase().compare_exchange(seen, WAITING, Ordering::AcqRel, Ordering::Relaxed);
    if claimed.is_err() {
        return false;
    }
    page.dumper().store(0, Ordering::Release);
    page.spawn_error().store(0, Ordering::Release);
    true
}

/// Whether a task runs: kill(2) would also find a zombie that its reaper neglects, poll(2) on a
/// pidfd does not.
fn alive(pid: u32) -> bool {
    /// pidfd_open(2).
    const PIDFD_OPEN: u64 = 434;
    /// In the upper half of a struct pollfd.
    const POLLIN: u64 = 1;
    /// poll(2).
    const POLL: u64 = 7;
    // SAFETY: opens a descriptor that is closed below.
    let fd = unsafe { sys::call(PIDFD_OPEN, &[u64::from(pid), 0, 0, 0, 0, 0]) };
    if fd < 0 {
        // ESRCH: gone. Anything else (no free descriptor): it may live.
        return fd != -3;
    }
    let request = (fd as u64) | POLLIN << 32;
    // SAFETY: `request` is one struct pollfd.
    let ready = unsafe { sys::call(POLL, &[(&raw const request) as u64, 1, 0, 0, 0, 0]) };
    sys::close(fd);
    ready != 1
}

/// The likely errors of starting a process from memory.
fn reason(error: i64) -> &'static [u8] {
    match error.wrapping_neg() {
        1 | 13 => b"Permission denied (vm.memfd_noexec forbids memfds to be executed, and the checkpoint's directory is no way out)",
        11 => b"Resource temporarily unavailable (RLIMIT_NPROC)",
        12 => b"Cannot allocate memory",
        23 | 24 => b"Too many open files",
        27 => b"File too large (RLIMIT_FSIZE is smaller than ckpt itself)",
        28 => b"No space left on device",
        _ => b"memfd_create(2), O_TMPFILE or execveat(2) failed",
    }
}

fn say(sentence: &[u8]) {
    sys::write_all(2, sentence.as_ptr(), sentence.len());
}
