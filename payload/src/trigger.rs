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
const WRITING: u32 = Phase::Writing as u32;

/// How long to sleep for the end of a dumper before its phase is looked at, in milliseconds.
const PAUSE: u64 = 2;

#[unsafe(no_mangle)]
extern "C" fn ckpt_handler(_signal: i32, _siginfo: u64, _ucontext: u64) {
    let page = Page::own();
    page.handlers().fetch_add(1, Ordering::AcqRel);
    checkpoint(page);
    page.handlers().fetch_sub(1, Ordering::AcqRel);
}

fn checkpoint(page: Page) {
    if !claim(page) {
        return;
    }
    page.target().store(sys::getpid(), Ordering::Release);
    spawn::dumper(page);
    let dumper = page.dumper().load(Ordering::Acquire);
    // In a restarted process the phase is idle and the dumper none, wherever the freeze met us.
    if page.phase().load(Ordering::Acquire) == WAITING {
        if dumper == 0 {
            page.phase().store(IDLE, Ordering::Release);
            say(b"ckpt: no checkpoint: the dumper could not be started: ");
            say(reason(page.spawn_error().load(Ordering::Acquire)));
            say(b"; the program goes on\n");
        } else {
            await_dumper(page.phase(), dumper);
        }
    }
    spawn::allow_monitor(page);
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

/// Makes the caller the one whose dumper comes; false while another's works whose checkpoint does
/// for this signal as well.
///
/// A periodic checkpoint never does: it was begun before the signal, so its dumper is ended. Nor
/// does any other that lets the program go on when this one has to end it: that one is waited for.
/// No periodic checkpoint begins while a thread is in here ([`Page::handlers`]).
fn claim(page: Page) -> bool {
    loop {
        let seen = page.phase().load(Ordering::Acquire);
        // A stale value only makes us ask about a task that is gone.
        let dumper = page.dumper().load(Ordering::Acquire);
        if seen != IDLE && (dumper == 0 || alive(dumper)) {
            let periodic = page.periodic().load(Ordering::Acquire) != 0;
            let ends = page.continues().load(Ordering::Acquire) == 0;
            if seen != WRITING || dumper == 0 || !(periodic || ends) {
                return false;
            }
            give_way(page, dumper, periodic);
            continue;
        }
        if !spawn::reap_keeper(page) {
            // It ends as soon as the dumper that it waited for has.
            sys::futex_wait(page.phase().as_ptr(), seen, 1_000_000);
            continue;
        }
        let phase = page.phase();
        let claimed = phase.compare_exchange(seen, WAITING, Ordering::AcqRel, Ordering::Relaxed);
        if claimed.is_ok() {
            page.periodic().store(0, Ordering::Release);
            page.dumper().store(0, Ordering::Release);
            page.spawn_error().store(0, Ordering::Release);
            return true;
        }
    }
}

/// Waits until a dumper that only writes has ended, or sooner until its phase is over.
///
/// One that is to be ended is named by a descriptor (pidfd_open(2)) before the page is asked once
/// more whose process it is: in a program that was saved between the two and restarted, the number
/// may be anybody's, but the page no longer names it and the descriptor is gone.
fn give_way(page: Page, dumper: u32, end: bool) {
    /// pidfd_send_signal(2).
    const PIDFD_SEND_SIGNAL: u64 = 424;
    const SIGKILL: u64 = 9;
    let fd = pidfd(dumper);
    if fd >= 0 && end && page.dumper().load(Ordering::Acquire) == dumper {
        // SAFETY: ends a process of ours, which leaves no trace but a file without a name.
        unsafe { sys::call(PIDFD_SEND_SIGNAL, &[fd as u64, SIGKILL, 0, 0, 0, 0]) };
    }
    while page.phase().load(Ordering::Acquire) == WRITING
        && page.dumper().load(Ordering::Acquire) == dumper
        && (fd < 0 || !ended(fd, PAUSE))
        && (fd >= 0 || alive(dumper))
    {
        if fd < 0 {
            sys::futex_wait(page.phase().as_ptr(), WRITING, PATIENCE);
        }
    }
    if fd >= 0 {
        sys::close(fd);
    }
}

/// Whether a task runs: kill(2) would also find a zombie that its reaper neglects, poll(2) on a
/// pidfd does not.
fn alive(pid: u32) -> bool {
    let fd = pidfd(pid);
    if fd < 0 {
        // ESRCH: gone. Anything else (no free descriptor): it may live.
        return fd != -3;
    }
    let gone = ended(fd, 0);
    sys::close(fd);
    !gone
}

/// pidfd_open(2).
fn pidfd(pid: u32) -> i64 {
    const PIDFD_OPEN: u64 = 434;
    // SAFETY: opens a descriptor that the caller closes.
    unsafe { sys::call(PIDFD_OPEN, &[u64::from(pid), 0, 0, 0, 0, 0]) }
}

/// Whether the process of a pidfd has ended, or does within some milliseconds.
fn ended(fd: i64, milliseconds: u64) -> bool {
    /// In the upper half of a struct pollfd.
    const POLLIN: u64 = 1;
    /// poll(2).
    const POLL: u64 = 7;
    let request = (fd as u64) | POLLIN << 32;
    // SAFETY: `request` is one struct pollfd.
    let ready =
        unsafe { sys::call(POLL, &[(&raw const request) as u64, 1, milliseconds, 0, 0, 0]) };
    ready == 1
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
