//! The handler of the checkpoint signal.
//!
//! It starts a dumper and waits until that has taken what it came for. The dumper ends the
//! program, or lets it go on: then the handler returns, as it also does in a restarted process,
//! where the phase was set back.
//!
//! # Safety
//! The control page belongs to the payload; words that another process writes are read volatile
//! or atomically.
#![allow(unsafe_code)]

use crate::{spawn, sys};
use ckpt_abi::region::{Control, PAYLOAD, Phase};
use core::sync::atomic::{AtomicU32, Ordering};

unsafe extern "C" {
    /// First byte of the payload's ELF image, defined by the linker.
    static __ehdr_start: u8;
}

/// How long to sleep between two looks at whether the dumper lives, in nanoseconds.
const PATIENCE: u64 = 250_000_000;

fn control() -> *mut Control {
    let image = &raw const __ehdr_start;
    (image as u64).wrapping_sub(PAYLOAD) as *mut Control
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_handler(_signal: i32, _siginfo: u64, _ucontext: u64) {
    let control = control();
    // SAFETY: the word lives as long as the region.
    let phase = unsafe { AtomicU32::from_ptr(&raw mut (*control).phase) };
    if !claim(control, phase) {
        return;
    }
    // SAFETY: the phase is ours, so nobody else writes these.
    unsafe { (&raw mut (*control).target).write_volatile(sys::getpid()) };
    spawn::dumper(control);
    // SAFETY: the dumper's start is over, the word is stable.
    let dumper = unsafe { (&raw const (*control).dumper).read_volatile() };
    // In a restarted process the phase is idle and the dumper none, wherever the freeze met us.
    if phase.load(Ordering::Acquire) != Phase::Waiting as u32 {
        return;
    }
    if dumper == 0 {
        phase.store(Phase::Idle as u32, Ordering::Release);
        say(b"ckpt: no checkpoint: the dumper could not be started (memfd_create, O_TMPFILE or execveat failed, see vm.memfd_noexec and RLIMIT_NPROC); the program goes on\n");
        return;
    }
    while phase.load(Ordering::Acquire) == Phase::Waiting as u32 {
        sys::futex_wait(phase.as_ptr(), Phase::Waiting as u32, PATIENCE);
        let lost = phase.load(Ordering::Acquire) == Phase::Waiting as u32 && !alive(dumper);
        if lost {
            phase.store(Phase::Idle as u32, Ordering::Release);
            say(b"ckpt: no checkpoint: the dumper ended before it was done; the program goes on\n");
        }
    }
}

/// Makes the caller the one whose dumper comes; false while another's works.
fn claim(control: *mut Control, phase: &AtomicU32) -> bool {
    let seen = phase.load(Ordering::Acquire);
    if seen != Phase::Idle as u32 {
        // SAFETY: a stale value only makes us ask about a task that is gone.
        let dumper = unsafe { (&raw const (*control).dumper).read_volatile() };
        if dumper == 0 || alive(dumper) {
            return false;
        }
    }
    let waiting = Phase::Waiting as u32;
    let claimed = phase.compare_exchange(seen, waiting, Ordering::AcqRel, Ordering::Relaxed);
    if claimed.is_err() {
        return false;
    }
    // SAFETY: the phase is ours.
    unsafe { (&raw mut (*control).dumper).write_volatile(0) };
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

fn say(sentence: &[u8]) {
    sys::write_all(2, sentence.as_ptr(), sentence.len());
}
