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
use crate::{assist, callbacks, exclude, files, spawn, sys};
use ckpt_abi::api::{Answer, Api, Request, Visit, When};
use ckpt_abi::nr;
use ckpt_abi::region::Phase;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering};

/// How long to sleep between two looks at whether the dumper lives, in nanoseconds.
const PATIENCE: u64 = 250_000_000;

const IDLE: u32 = Phase::Idle as u32;
const WAITING: u32 = Phase::Waiting as u32;
const WRITING: u32 = Phase::Writing as u32;
const DONE: u32 = Answer::Done as u32;
const RESTARTED: u32 = Answer::Restarted as u32;

/// How long to sleep for the end of a dumper before its phase is looked at, in milliseconds.
const PAUSE: u64 = 2;

#[unsafe(no_mangle)]
extern "C" fn ckpt_handler(_signal: i32, _siginfo: u64, _ucontext: u64) {
    let page = Page::own();
    // Where somebody else answers our system calls there is nothing to be done for the program.
    if !sys::readable(page.address()) {
        return;
    }
    let holds = page.api(offset_of!(Api, holds));
    if holds.load(Ordering::Acquire) != 0 {
        let pending = page.api(offset_of!(Api, pending));
        pending.store(1, Ordering::Release);
        // The last release may just have looked.
        if holds.load(Ordering::Acquire) != 0 || pending.swap(0, Ordering::AcqRel) == 0 {
            return;
        }
    }
    checkpoint(page);
}

/// Takes a checkpoint as the signal asks for it; all signals are blocked.
pub fn checkpoint(page: Page) {
    page.handlers().fetch_add(1, Ordering::AcqRel);
    serve(page);
    page.handlers().fetch_sub(1, Ordering::AcqRel);
}

fn serve(page: Page) {
    if busy(page) {
        return;
    }
    files::keep(page);
    callbacks::run(page, When::Before);
    let waits = callbacks::any(page, When::After);
    if !claim(page, waits) {
        return;
    }
    let request = if waits { Request::Call } else { Request::Signal };
    page.api(offset_of!(Api, request)).store(request as u32, Ordering::Release);
    assist::set_name(page, core::ptr::null());
    page.target().store(sys::getpid(), Ordering::Release);
    spawn::dumper(page);
    if waits {
        conclude(page);
        return;
    }
    let dumper = page.dumper().load(Ordering::Acquire);
    // In a restarted process the phase is idle and the dumper none, wherever the freeze met us.
    if page.phase().load(Ordering::Acquire) == WAITING {
        if dumper == 0 {
            page.phase().store(IDLE, Ordering::Release);
            complain(page);
        } else {
            await_dumper(page.phase(), dumper);
        }
    }
    spawn::allow_monitor(page);
    callbacks::restarted(page);
}

/// Waits for the answer and calls the callbacks that it asks for; the answer.
pub fn conclude(page: Page) -> u32 {
    let answer = await_answer(page);
    unclaim(page);
    match answer {
        DONE => callbacks::run(page, When::After),
        RESTARTED => callbacks::restarted(page),
        _ => {}
    }
    answer
}

/// Where a dumper from outside sends the main thread, as a signal would: it calls the callbacks
/// while that waits, and goes on as after a signal.
#[unsafe(no_mangle)]
extern "C" fn ckpt_visited() {
    let page = Page::own();
    page.api(offset_of!(Api, claimant)).store(sys::getpid(), Ordering::Release);
    files::keep(page);
    callbacks::run(page, When::Before);
    let visit = page.api(offset_of!(Api, visit));
    let sent = visit.compare_exchange(
        Visit::Sent as u32,
        Visit::Ready as u32,
        Ordering::AcqRel,
        Ordering::Acquire,
    );
    if sent.is_ok() {
        conclude(page);
        visit.store(Visit::None as u32, Ordering::Release);
    } else {
        page.api(offset_of!(Api, claimant)).store(0, Ordering::Release);
    }
}

/// Waits until the process that was started has answered, or is gone.
pub fn await_answer(page: Page) -> u32 {
    /// How often to look for an answer, in nanoseconds, and after how many looks for its sender.
    const LOOK: u64 = 1_000_000;
    const LOOKS: u32 = 64;
    let answer = page.api(offset_of!(Api, answer));
    let mut looks = 0u32;
    loop {
        let given = answer.load(Ordering::Acquire);
        if given != Answer::None as u32 {
            return given;
        }
        let dumper = page.dumper().load(Ordering::Acquire);
        let gone = dumper == 0 || (looks % LOOKS == LOOKS - 1 && !alive(dumper));
        if gone && answer.load(Ordering::Acquire) == Answer::None as u32 {
            fail(page, dumper);
            return Answer::Failed as u32;
        }
        sys::futex_wait(answer.as_ptr(), Answer::None as u32, LOOK);
        looks = looks.wrapping_add(1);
    }
}

/// Nobody answers: it was not started, or has ended before it was done.
fn fail(page: Page, dumper: u32) {
    const EIO: u32 = 5;
    let why = page.spawn_error().load(Ordering::Acquire);
    let (errno, text) = if dumper == 0 {
        (why.wrapping_neg() as u32, reason(why))
    } else {
        (EIO, b"the process that ckpt had started ended before it was done".as_slice())
    };
    page.api(offset_of!(Api, errno)).store(errno.max(1), Ordering::Release);
    page.set_error(text);
}

fn complain(page: Page) {
    say(b"ckpt: no checkpoint: the dumper could not be started: ");
    say(reason(page.spawn_error().load(Ordering::Acquire)));
    say(b"; the program goes on\n");
}

fn await_dumper(phase: &AtomicU32, dumper: u32) {
    while phase.load(Ordering::Acquire) == WAITING {
        sys::futex_wait(phase.as_ptr(), WAITING, PATIENCE);
        if phase.load(Ordering::Acquire) == WAITING && !alive(dumper) {
            phase.store(IDLE, Ordering::Release);
            say(b"ckpt: no checkpoint: the dumper ended before it was done (a program that is not dumpable, \
                  prctl(2), only root can save); the program goes on\n");
        }
    }
}

/// Whether another's dumper works that will not give way ([`claim`]).
fn busy(page: Page) -> bool {
    let dumper = page.dumper().load(Ordering::Acquire);
    let phase = page.phase().load(Ordering::Acquire);
    phase != IDLE && !gives_way(page, phase, dumper) && (dumper == 0 || alive(dumper))
}

fn gives_way(page: Page, phase: u32, dumper: u32) -> bool {
    let periodic = page.periodic().load(Ordering::Acquire) != 0;
    let ends = page.continues().load(Ordering::Acquire) == 0;
    phase == WRITING && dumper != 0 && (periodic || ends)
}

/// Waits until it is the caller's turn, which lasts until [`unclaim`].
pub fn claim_patiently(page: Page) {
    while !claim(page, true) {
        sys::futex_wait(page.phase().as_ptr(), page.phase().load(Ordering::Acquire), 1_000_000);
    }
}

/// Lets others have the payload.
pub fn unclaim(page: Page) {
    exclude::alone(page, offset_of!(Api, claim_lock), || {
        page.api(offset_of!(Api, request)).store(Request::Signal as u32, Ordering::Release);
        page.api(offset_of!(Api, claimant)).store(0, Ordering::Release);
        page.phase().store(IDLE, Ordering::Release);
    });
    spawn::allow_monitor(page);
}

/// What became of an attempt to have one's turn.
enum Turn {
    /// It is the caller's.
    Own,
    /// Another's checkpoint does as well.
    Served,
    /// This dumper has to give way first.
    After(u32),
    /// Something ends in a moment.
    Soon(u32),
}

/// Makes the caller the one whose dumper comes; false while another's works whose checkpoint does
/// for this signal as well.
///
/// A periodic checkpoint never does: it was begun before the signal, so its dumper is ended. Nor
/// does any other that lets the program go on when this one has to end it: that one is waited for.
/// No periodic checkpoint begins while a thread is in here ([`Page::handlers`]).
///
/// The turn of a caller that `keeps` it lasts longer than its dumper, until [`unclaim`].
fn claim(page: Page, keeps: bool) -> bool {
    loop {
        match exclude::alone(page, offset_of!(Api, claim_lock), || attempt(page, keeps)) {
            Turn::Own => return true,
            Turn::Served => return false,
            Turn::After(dumper) => {
                give_way(page, dumper, page.periodic().load(Ordering::Acquire) != 0);
            }
            Turn::Soon(seen) => sys::futex_wait(page.phase().as_ptr(), seen, 1_000_000),
        }
    }
}

fn attempt(page: Page, keeps: bool) -> Turn {
    let seen = page.phase().load(Ordering::Acquire);
    // A stale value only makes us ask about a task that is gone.
    let dumper = page.dumper().load(Ordering::Acquire);
    if seen != IDLE && (dumper == 0 || alive(dumper)) {
        return if gives_way(page, seen, dumper) { Turn::After(dumper) } else { Turn::Served };
    }
    let (claimant, own) = (page.api(offset_of!(Api, claimant)), sys::getpid());
    if claimant.load(Ordering::Acquire) == own || !spawn::reap_keeper(page) {
        // Its thread looks at the answer, or the keeper ends as its dumper has.
        return Turn::Soon(seen);
    }
    // A dumper from outside may just have come.
    let phase = page.phase();
    if phase.compare_exchange(seen, WAITING, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return Turn::Soon(seen);
    }
    claimant.store(if keeps { own } else { 0 }, Ordering::Release);
    page.periodic().store(0, Ordering::Release);
    page.dumper().store(0, Ordering::Release);
    page.spawn_error().store(0, Ordering::Release);
    page.api(offset_of!(Api, answer)).store(Answer::None as u32, Ordering::Release);
    Turn::Own
}

/// Waits until a dumper that only writes has ended, or sooner until its phase is over.
///
/// One that is to be ended is named by a descriptor (pidfd_open(2)) before the page is asked once
/// more whose process it is: in a program that was saved between the two and restarted, the number
/// may be anybody's, but the page no longer names it and the descriptor is gone.
fn give_way(page: Page, dumper: u32, end: bool) {
    const SIGKILL: u64 = 9;
    let fd = pidfd(dumper);
    if fd >= 0 && end && page.dumper().load(Ordering::Acquire) == dumper {
        // SAFETY: ends a process of ours, which leaves no trace but a file without a name.
        unsafe { sys::call(nr::PIDFD_SEND_SIGNAL, &[fd as u64, SIGKILL, 0, 0, 0, 0]) };
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
        return fd != -nr::ESRCH;
    }
    let gone = ended(fd, 0);
    sys::close(fd);
    !gone
}

/// pidfd_open(2).
fn pidfd(pid: u32) -> i64 {
    // SAFETY: opens a descriptor that the caller closes.
    unsafe { sys::call(nr::PIDFD_OPEN, &[u64::from(pid), 0, 0, 0, 0, 0]) }
}

/// Whether the process of a pidfd has ended, or does within some milliseconds.
fn ended(fd: i64, milliseconds: u64) -> bool {
    /// In the upper half of a struct pollfd.
    const POLLIN: u64 = 1;
    let request = (fd as u64) | POLLIN << 32;
    // SAFETY: `request` is one struct pollfd.
    let ready =
        unsafe { sys::call(nr::POLL, &[(&raw const request) as u64, 1, milliseconds, 0, 0, 0]) };
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

/// Writes on standard error.
pub fn say(sentence: &[u8]) {
    sys::write_all(2, sentence.as_ptr(), sentence.len());
}
