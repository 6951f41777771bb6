// SPDX-License-Identifier: LGPL-2.1-only
//! The word that says whose turn it is ([`ckpt_abi::turn`]), changed from inside.

use crate::control::Page;
use crate::{spawn, sys};
use ckpt_abi::errno;
use ckpt_abi::turn::{Denied, Event, Seen, Task, Turn, step};
use core::sync::atomic::Ordering;

/// Whose turn it is now.
pub(crate) fn now(page: Page) -> Turn {
    Turn::of(page.turn().load(Ordering::Acquire))
}

/// Whether an event is possible now.
pub(crate) fn allowed(page: Page, event: Event) -> Result<Turn, Denied> {
    let turn = now(page);
    step(turn, event, seen(page, turn))
}

fn seen(page: Page, turn: Turn) -> Seen {
    Seen {
        lives: turn.has_task() && alive(turn.task),
        ends: page.continues().load(Ordering::Acquire) == 0,
    }
}

/// Makes a step; what it leads to.
pub(crate) fn change(page: Page, event: Event) -> Result<Turn, Denied> {
    let word = page.turn();
    loop {
        let before = word.load(Ordering::Acquire);
        let turn = Turn::of(before);
        let next = step(turn, event, seen(page, turn))?;
        let changed =
            word.compare_exchange(before, next.word(), Ordering::AcqRel, Ordering::Acquire);
        if changed.is_ok() {
            sys::futex_wake(word.as_ptr().cast());
            return Ok(next);
        }
    }
}

/// Notes when the dumper was started, which only one who has its id can find out.
pub(crate) fn note_start(page: Page) {
    let word = page.turn();
    let before = word.load(Ordering::Acquire);
    let turn = Turn::of(before);
    if turn.has_task() && turn.task.start == 0 {
        let task = Task { start: start_of(turn.task.pid), ..turn.task };
        let next = Turn { task, ..turn }.word();
        let _ = word.compare_exchange(before, next, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// Sleeps while the word says this, for at most `nanoseconds`.
pub(crate) fn sleep(page: Page, turn: Turn, nanoseconds: u64) {
    sys::futex_wait(page.turn().as_ptr().cast(), turn.word() as u32, nanoseconds);
}

/// Whether the memory that this code finds itself in is the caller's own. A child of vfork(2) and its kin shares its
/// parent's: what it did there it would do to the parent, and its own checkpoint would be one of both.
///
/// A forked child has an empty page and makes it its own. Only the parent can share memory with such a one: who has
/// none of its own was made by clone(2) from one whose page it would have found full.
pub(crate) fn is_owner(page: Page) -> bool {
    let (owner, own) = (page.owner(), sys::getpid());
    match owner.load(Ordering::Acquire) {
        0 => {}
        owner => return owner == own,
    }
    if sys::share_memory(own, sys::getppid()) {
        return false;
    }
    let _ = owner.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire);
    owner.load(Ordering::Acquire) == own
}

/// Whether a task runs: kill(2) would also find a zombie that its reaper neglects, poll(2) on a
/// pidfd does not; and a number may have been given to somebody else.
pub(crate) fn alive(task: Task) -> bool {
    let fd = sys::pidfd(task.pid);
    if fd < 0 {
        // ESRCH: gone. Anything else (no free descriptor): it may live.
        return fd != -errno::ESRCH;
    }
    let gone = sys::is_readable(fd, 0);
    sys::close(fd);
    !gone && task.is(task.pid, start_of(task.pid))
}

/// When a process was started ([`Task::start`]); 0 where /proc does not tell, or is another PID namespace's.
fn start_of(pid: u32) -> u32 {
    /// Of the field that comes behind the name, which ends with the last parenthesis (proc_pid_stat(5)).
    const BEHIND_NAME: usize = 20;
    let mut own = [0u8; 16];
    let len = sys::read_link(c"/proc/self".as_ptr() as u64, &mut own);
    if number(own.iter().take(len)) != u64::from(sys::getpid()) {
        return 0;
    }
    let mut path = [0u8; 48];
    let mut name = [0u8; 32];
    spawn::decimal(pid.into(), &mut name, b"/proc/");
    let begin = name.iter().position(|byte| *byte != 0).unwrap_or(0);
    let parts = name.iter().skip(begin).take_while(|byte| **byte != 0).chain(b"/stat");
    for (to, from) in path.iter_mut().take(47).zip(parts) {
        *to = *from;
    }
    let Ok(path) = core::ffi::CStr::from_bytes_until_nul(&path) else { return 0 };
    let fd = sys::open_to_read(path);
    if fd < 0 {
        return 0;
    }
    let mut text = [0u8; 512];
    let len = sys::read(fd, &mut text);
    sys::close(fd);
    let text = text.get(..len).unwrap_or_default();
    let name_end = text.iter().rposition(|byte| *byte == b')').unwrap_or(len);
    let mut fields = text.get(name_end..).unwrap_or_default().split(|byte| *byte == b' ');
    fields.nth(BEHIND_NAME).map_or(0, |field| number(field.iter())) as u32
}

fn number<'a>(digits: impl Iterator<Item = &'a u8>) -> u64 {
    let digits = digits.take_while(|byte| byte.is_ascii_digit());
    digits
        .fold(0, |sum, byte| sum.wrapping_mul(10).wrapping_add(u64::from(byte.wrapping_sub(b'0'))))
}
