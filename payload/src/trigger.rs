// SPDX-License-Identifier: LGPL-2.1-only
//! The handler of the checkpoint signal.
//!
//! It starts a dumper and waits until that has taken what it came for. The dumper ends the
//! program, or lets it go on: then the handler returns, as it also does in a restarted process,
//! where the phase was set back.
//!
//! # Safety
//! What is exported is entered by the kernel, as a handler, and by a thread that a dumper has sent.
#![allow(unsafe_code)]

use crate::control::Page;
use crate::{assist, callbacks, files, spawn, sys, turns};
use ckpt_abi::api::{Answer, Api, Request, Visit, When};
use ckpt_abi::errno;
use ckpt_abi::region::Control;
use ckpt_abi::turn::{By, Denied, Event, Phase, Task};
use core::mem::offset_of;
use core::sync::atomic::Ordering;

/// How long to sleep between two looks at whether the dumper lives, in nanoseconds.
const PATIENCE: u64 = 250_000_000;
/// How long to sleep for what is a matter of a moment, in nanoseconds.
const MOMENT: u64 = 1_000_000;

/// si_code of what the kernel sends (sigaction(2)).
const SI_KERNEL: i32 = 0x80;

/// How long a dumper that is done may take to end, in milliseconds.
const END: u64 = 2000;
/// How long to sleep for the end of a dumper before its phase is looked at, in milliseconds.
const PAUSE: u64 = 2;

#[unsafe(no_mangle)]
extern "C" fn ckpt_handler(_signal: i32, siginfo: u64, _ucontext: u64) {
    let page = Page::own();
    // A filter may kill for any call but those that the program makes itself, which rt_sigreturn(2) is likely one of.
    if page.control_long(offset_of!(Control, locked_in)) != 0 {
        return;
    }
    // Where somebody else answers our system calls there is nothing to be done for the program. A signal to a child that
    // shares our memory is mostly one to the whole group, and comes to its parent as well.
    if !sys::readable(page.address()) || !turns::is_owner(page) {
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
    // SAFETY: the kernel passes a siginfo_t to each handler; si_code is its third word.
    let code = unsafe { (siginfo as *const i32).wrapping_add(2).read() };
    checkpoint(page, code == SI_KERNEL);
}

/// Takes a checkpoint as the signal asks for it, which a terminal may have sent; all signals are blocked.
pub(crate) fn checkpoint(page: Page, by_terminal: bool) {
    page.handlers().fetch_add(1, Ordering::AcqRel);
    serve(page, by_terminal);
    page.handlers().fetch_sub(1, Ordering::AcqRel);
}

fn serve(page: Page, by_terminal: bool) {
    let waits = callbacks::any(page, When::After);
    let by = if waits { By::Call } else { By::Signal };
    if let Err(Denied::Busy(_)) = turns::allowed(page, Event::Ask { by, kept: waits }) {
        assist::rescue(page);
        return;
    }
    files::keep(page);
    callbacks::run(page, When::Before);
    if !claim(page, by, waits) {
        assist::rescue(page);
        return;
    }
    page.control(offset_of!(Control, by_terminal)).store(by_terminal.into(), Ordering::Release);
    let request = if waits { Request::Call } else { Request::Signal };
    page.api(offset_of!(Api, request)).store(request as u32, Ordering::Release);
    assist::set_name(page, core::ptr::null());
    page.target().store(sys::getpid(), Ordering::Release);
    spawn::dumper(page);
    if waits {
        if conclude(page) == Answer::Failed {
            assist::rescue(page);
        }
        return;
    }
    let lost = await_dumper(page);
    spawn::reap_keeper(page, END);
    spawn::allow_monitor(page);
    if lost {
        assist::rescue(page);
    }
    callbacks::restarted(page);
}

/// Waits for the answer and calls the callbacks that it asks for; the answer.
pub(crate) fn conclude(page: Page) -> Answer {
    let answer = await_answer(page);
    unclaim(page);
    match answer {
        Answer::Done => callbacks::run(page, When::After),
        Answer::Restarted => callbacks::restarted(page),
        Answer::None | Answer::Failed => {}
    }
    answer
}

/// Where a dumper from outside sends the main thread, as a signal would: it calls the callbacks
/// while that waits, and goes on as after a signal.
#[unsafe(no_mangle)]
extern "C" fn ckpt_visited() {
    let page = Page::own();
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
        unclaim(page);
    }
}

/// Waits until the process that was started has answered, or is gone.
pub(crate) fn await_answer(page: Page) -> Answer {
    /// How often to look for an answer, in nanoseconds, and after how many looks for its sender.
    const LOOK: u64 = 1_000_000;
    const LOOKS: u32 = 64;
    let answer = page.api(offset_of!(Api, answer));
    let mut looks = 0u32;
    loop {
        match Answer::try_from(answer.load(Ordering::Acquire)) {
            Ok(Answer::None) => {}
            Ok(given) => return given,
            Err(_) => return Answer::Failed,
        }
        let turn = turns::now(page);
        let gone = match turn.phase {
            Phase::Starting => false,
            _ if turn.has_task() => looks % LOOKS == LOOKS - 1 && !turns::alive(turn.task),
            _ => true,
        };
        if gone && answer.load(Ordering::Acquire) == Answer::None as u32 {
            fail(page);
            return Answer::Failed;
        }
        sys::futex_wait(answer.as_ptr(), Answer::None as u32, LOOK);
        looks = looks.wrapping_add(1);
    }
}

/// Nobody answers: it was not started, or has ended before it was done.
fn fail(page: Page) {
    let why = page.spawn_error().load(Ordering::Acquire);
    let (errno, text) = if why != 0 {
        (why.wrapping_neg() as u32, reason(why))
    } else {
        (
            errno::EIO as u32,
            b"the process that ckpt had started ended before it was done".as_slice(),
        )
    };
    page.api(offset_of!(Api, errno)).store(errno.max(1), Ordering::Release);
    page.set_error(text);
}

/// Waits until the dumper that this thread has started lets it go on; whether it was killed.
///
/// In a restarted process the turn is nobody's, wherever the freeze met us.
fn await_dumper(page: Page) -> bool {
    let own = turns::now(page);
    let mut lost = false;
    loop {
        let turn = turns::now(page);
        if turn.phase != Phase::Holding || turn.task.pid != own.task.pid {
            break;
        }
        turns::sleep(page, turn, PATIENCE);
        if turns::now(page) == turn && turns::change(page, Event::Lost).is_ok() {
            lost = true;
            say(b"ckpt: no checkpoint: the dumper was killed, has no room under this program's limits (ulimit -v, -d, \
                  -n: 16), sees no /proc (chroot(2)), or may not trace it, as only root may one that is not dumpable (prctl(2)); `ckpt save` from \
                  outside may; the program goes on\n");
        }
    }
    // Written before the turn was given back.
    let why = page.spawn_error().load(Ordering::Acquire);
    if why != 0 {
        say(b"ckpt: no checkpoint: the dumper could not be started: ");
        say(reason(why));
        say(b"; the program goes on\n");
    }
    lost || why != 0
}

/// Waits until it is the caller's turn, which lasts until [`unclaim`].
pub(crate) fn claim_patiently(page: Page) {
    while !claim(page, By::Call, true) {
        turns::sleep(page, turns::now(page), MOMENT);
    }
}

/// Lets others have the payload.
pub(crate) fn unclaim(page: Page) {
    let request = page.api(offset_of!(Api, request)).swap(Request::Signal as u32, Ordering::AcqRel);
    while turns::change(page, Event::Release) == Err(Denied::Soon) {
        turns::sleep(page, turns::now(page), MOMENT);
    }
    // An assistant that has looked at a checkpoint lasts until that is executed.
    spawn::reap_keeper(page, if request == Request::Inspect as u32 { 0 } else { END });
    spawn::allow_monitor(page);
}

/// Makes the caller the one whose dumper comes; false while another's works whose checkpoint does
/// for this signal as well.
///
/// A periodic checkpoint never does: it was begun before the signal, so its dumper is ended. Nor
/// does any other that lets the program go on when this one has to end it: that one is waited for.
/// No periodic checkpoint begins while a thread is in here ([`Page::handlers`]).
///
/// A turn that is `kept` lasts longer than its dumper, until [`unclaim`].
fn claim(page: Page, by: By, kept: bool) -> bool {
    loop {
        match turns::change(page, Event::Ask { by, kept }) {
            Ok(_) => break,
            Err(Denied::Busy(_)) => return false,
            Err(Denied::After(task, end)) => give_way(page, task, end),
            Err(_) => turns::sleep(page, turns::now(page), MOMENT),
        }
    }
    spawn::reap_keeper(page, END);
    page.spawn_error().store(0, Ordering::Release);
    // Who holds no turn writes none of this: it is read for whoever holds it.
    page.control(offset_of!(Control, by_terminal)).store(0, Ordering::Release);
    page.api(offset_of!(Api, answer)).store(Answer::None as u32, Ordering::Release);
    true
}

/// Waits until a dumper that only writes has ended, or sooner until its phase is over.
///
/// One that is to be ended is named by a descriptor (pidfd_open(2)) before the page is asked once
/// more whose process it is: in a program that was saved between the two and restarted, the number
/// may be anybody's, but the page no longer names it and the descriptor is gone.
fn give_way(page: Page, task: Task, end: bool) {
    let writes = || {
        let turn = turns::now(page);
        turn.phase == Phase::Writing && turn.task == task
    };
    let fd = sys::pidfd(task.pid);
    if fd >= 0 && end && writes() && turns::alive(task) {
        // It leaves no trace but a file without a name.
        sys::kill(fd);
    }
    while writes() && (fd < 0 || !sys::is_readable(fd, PAUSE)) && (fd >= 0 || turns::alive(task)) {
        if fd < 0 {
            turns::sleep(page, turns::now(page), PATIENCE);
        }
    }
    if fd >= 0 {
        sys::close(fd);
    }
}

/// The likely errors of starting a process from memory.
fn reason(error: i64) -> &'static [u8] {
    match error.wrapping_neg() {
        errno::EPERM | errno::EACCES => b"Permission denied (vm.memfd_noexec forbids memfds to be executed, and the checkpoint's directory is no way out)",
        errno::EAGAIN => b"Resource temporarily unavailable (RLIMIT_NPROC)",
        errno::ENOMEM => b"Cannot allocate memory",
        errno::ENFILE | errno::EMFILE => b"Too many open files",
        errno::EFBIG => b"File too large (RLIMIT_FSIZE is smaller than ckpt itself)",
        errno::ENOSPC => b"No space left on device",
        errno::ESRCH => b"children of this process get another PID namespace (unshare(2)); `ckpt save` from outside may",
        _ => b"memfd_create(2), O_TMPFILE or execveat(2) failed",
    }
}

/// Writes on standard error, if that is read: the program must not wait for who reads what we have to say.
pub(crate) fn say(sentence: &[u8]) {
    const READ: u64 = 100;
    if sys::is_writable(2, READ) {
        sys::write_all(2, sentence.as_ptr(), sentence.len());
    }
}
