// SPDX-License-Identifier: LGPL-2.1-only
//! Starts a dumper that the program can never meet in wait(2).
//!
//! Two clones: the keeper never executes anything, so its exit signal stays 0 and only a wait with `__WCLONE` or
//! `__WALL` sees it; the dumper is its child. Once every thread stands still, the dumper ends the keeper, has it
//! reaped by a remote call, so that no other thread can do that, and is init's child (`src/dump/keeper.rs`). In a
//! process that adopts its orphans (PID 1 of a namespace, PR_SET_CHILD_SUBREAPER), and under an init that reaps
//! nothing, the keeper stays as long as its dumper, reaps it, and is reaped here. The program's own attributes never
//! change. Both share our memory until the dumper executes (CLONE_VM), so a program of any size is not copied.
//! Neither shares our descriptors: what the dumper opens and closes is its own.
//!
//! # Safety
//! The clones run on stacks of the region, one start at a time ([`crate::turns`]); the next start waits until
//! the dumper has ended, and nobody else uses these stacks while a keeper lives.
#![allow(unsafe_code)]

use crate::control::Page;
use crate::{sys, turns};
use ckpt_abi::api::{Api, Request};
use ckpt_abi::errno;
use ckpt_abi::region::{Control, NAME_LEN};
use ckpt_abi::turn::{Event, Task};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering};

const CLONE_VM: u64 = 0x100;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;
const CLONE_UNTRACED: u64 = 0x80_0000;
const FLAGS: u64 = CLONE_VM | CLONE_VFORK | CLONE_UNTRACED;

const PR_SET_CHILD_SUBREAPER: u64 = 36;
const PR_SET_PTRACER: u64 = 0x5961_6d61;

const O_TMPFILE: u64 = 0o20_200_000;
const O_RDWR: u64 = 2;
const MFD_EXEC: u64 = 16;
const EXECUTABLE_FD: u64 = 3;

/// How long a keeper that may outlive its dumper is waited for, in milliseconds.
const NOTIFIED: u64 = 50;

/// One start, on the stack of the thread that asks.
struct Start {
    page: u64,
    /// 1 as soon as the turn names the dumper. The turn itself does not tell the thread: while that was not given a
    /// processor, the dumper may have dismissed its keeper, or ended, and the turn be another thread's.
    named: AtomicU32,
    /// The keeper's id as this process sees it.
    keeper: AtomicU32,
}

impl Start {
    /// What the thread that asks has put on its stack, where it stays at least until `named` is set.
    fn at(start: u64) -> (Page, &'static Self) {
        // SAFETY: see above; who has set `named` does not come back to it.
        let start = unsafe { &*(start as *const Self) };
        (Page::at(start.page), start)
    }
}

/// Starts a dumper for this process and lets it trace us; it is named in the turn, or
/// `Control::spawn_error` says why there is none.
pub(crate) fn dumper(page: Page) {
    // The kernel writes the keeper's id before that runs.
    let flags = CLONE_VM | CLONE_UNTRACED | CLONE_PARENT_SETTID;
    let (named, keeper) = (AtomicU32::new(0), AtomicU32::new(0));
    let start = Start { page: page.address(), named, keeper };
    let tids = [start.keeper.as_ptr() as u64, 0];
    let keeper = if bears_elsewhere() {
        -errno::ESRCH
    } else {
        // SAFETY: the stack is kept for the keeper alone, and the one before was just reaped.
        unsafe { sys::clone(flags, page.stack(3), tids, keep, (&raw const start) as u64) }
    };
    if sys::failed(keeper) {
        page.spawn_error().store(keeper, Ordering::Release);
        let _ = turns::change(page, Event::Fail);
        return;
    }
    let named = || start.named.load(Ordering::Acquire) != 0;
    while !named() {
        sys::futex_wait(start.named.as_ptr(), 0, 1_000_000);
        let gone = !turns::alive(Task { pid: keeper as u32, start: 0 });
        // Dismissed by a dumper that was named, or else ended before there was one.
        if gone && !named() && !will_be_named(page) {
            break;
        }
    }
    turns::note_start(page);
    sys::prctl(PR_SET_PTRACER, u64::from(turns::now(page).task.pid));
}

/// Whether children of this thread come into another PID namespace (unshare(2), setns(2)), as far as /proc tells. They could
/// not trace us, and the first of them, which the program means to be another, takes the namespace along when it ends.
fn bears_elsewhere() -> bool {
    let links = [c"/proc/thread-self/ns/pid", c"/proc/thread-self/ns/pid_for_children"];
    let [own, theirs] = links.map(|link| {
        let mut told = [0u8; 32];
        sys::read_link(link.as_ptr() as u64, &mut told);
        told
    });
    own != theirs
}

/// Whether a keeper that is gone has left somebody who says so in a moment. Whoever it leaves after this finds that
/// the turn is over, and does not touch the stack of the thread that has asked.
fn will_be_named(page: Page) -> bool {
    if turns::change(page, Event::Fail).is_ok() {
        return false;
    }
    let turn = turns::now(page);
    turn.has_task() && turns::alive(turn.task)
}

/// Reaps the keeper of a dumper that has ended, or that is about to and may take so many milliseconds. One that lasts
/// longer, because a monitor is its child, is nobody's business any more; it needs no stack.
pub(crate) fn reap_keeper(page: Page, milliseconds: u64) {
    let keeper = page.keeper().swap(0, Ordering::AcqRel);
    if keeper == 0 {
        return;
    }
    // What is run of `--notify` may last, and is its child where orphans come to the program.
    let runs = page.control(offset_of!(Control, config.notify)).load(Ordering::Acquire) != 0;
    let milliseconds = if runs { milliseconds.min(NOTIFIED) } else { milliseconds };
    let fd = sys::pidfd(keeper);
    if fd >= 0 {
        sys::is_readable(fd, milliseconds);
        sys::close(fd);
    }
    // A program that may have no descriptor more waits without one; 0: it still lives.
    let (never, mut left) = (AtomicU32::new(0), if fd < 0 { milliseconds } else { 0 });
    while sys::reap_clone(keeper) == 0 && left > 0 {
        sys::futex_wait(never.as_ptr(), 0, 1_000_000);
        left = left.wrapping_sub(1);
    }
}

extern "C" fn keep(start: u64) -> ! {
    const PR_SET_NAME: u64 = 15;
    let (page, asked) = Start::at(start);
    let own = sys::getpid();
    // What `bears_elsewhere` could not see: ids by which we and the dumper know ourselves are other processes' there.
    if asked.keeper.load(Ordering::Acquire) != own {
        page.spawn_error().store(-errno::ESRCH, Ordering::Release);
        sys::exit(0);
    }
    // Before there is a dumper, which looks for it.
    page.keeper().store(own, Ordering::Release);
    sys::prctl(PR_SET_NAME, c"ckpt-keeper".as_ptr() as u64);
    // A monitor that an assistant starts may outlive that.
    sys::prctl(PR_SET_CHILD_SUBREAPER, 1);
    // SAFETY: the stack is one of the region's and nobody else's now.
    let child = unsafe { sys::clone(FLAGS, page.stack(1), [0; 2], become_dumper, start) };
    if sys::failed(child) {
        page.spawn_error().store(child, Ordering::Release);
    }
    sys::outlive_children()
}

/// Lets the monitor trace us again: under Yama there is one process that may, and that was the
/// dumper. The monitor's own dumpers may as its children (ptrace(2), PR_SET_PTRACER).
pub(crate) fn allow_monitor(page: Page) {
    let monitor = page.monitor().load(Ordering::Acquire);
    if monitor != 0 {
        sys::prctl(PR_SET_PTRACER, u64::from(monitor));
    }
}

/// Runs in the task that becomes the dumper; the thread that asked waits until it is named.
extern "C" fn become_dumper(start: u64) -> ! {
    let (page, asked) = Start::at(start);
    let own = Task { pid: sys::getpid(), start: 0 };
    if turns::change(page, Event::Start(own)).is_err() {
        sys::exit(0);
    }
    asked.named.store(1, Ordering::Release);
    sys::futex_wake(asked.named.as_ptr());
    // The program's limits are not meant for the dumper, which may need more than they leave.
    for what in [sys::RLIMIT_DATA, sys::RLIMIT_NOFILE, sys::RLIMIT_AS] {
        sys::set_limit(what, [sys::limit(what)[1]; 2]);
    }
    sys::setsid();
    let error = execute(page, memfd(page));
    execute(page, temporary(page));
    page.spawn_error().store(error, Ordering::Release);
    let _ = turns::change(page, Event::End(own));
    sys::exit(0)
}

/// Copies the executable into `fd`; the descriptor, or a negative error number.
///
/// A limit on the size of files (RLIMIT_FSIZE) counts for memfds too. The soft one is set aside
/// meanwhile: it is meant for what the dumper writes, not for the dumper.
fn copy_executable(page: Page, fd: i64) -> i64 {
    // That of this task, which has its own: CLONE_THREAD was not asked for.
    let limit = sys::limit(sys::RLIMIT_FSIZE);
    sys::set_limit(sys::RLIMIT_FSIZE, [limit[1]; 2]);
    let (start, len) = page.executable();
    let written = sys::write_all(fd, start as *const u8, len as usize);
    sys::set_limit(sys::RLIMIT_FSIZE, limit);
    if written < 0 { written } else { fd }
}

fn memfd(page: Page) -> i64 {
    let mut fd = sys::memfd(c"ckpt", MFD_EXEC);
    if fd == -errno::EINVAL {
        // Before Linux 6.3 MFD_EXEC is unknown and every memfd executable.
        fd = sys::memfd(c"ckpt", 0);
    }
    if fd < 0 { fd } else { copy_executable(page, fd) }
}

/// A file without a name in the directory of the checkpoint, for systems where
/// vm.memfd_noexec forbids to execute a memfd.
fn temporary(page: Page) -> i64 {
    let mut path = [0u8; NAME_LEN];
    let name = page.name();
    let (mut len, mut slash) = (0usize, 0usize);
    for (to, from) in path.iter_mut().zip(&name) {
        if *from == 0 {
            break;
        }
        *to = *from;
        len = len.wrapping_add(1);
        if *from == b'/' {
            slash = len;
        }
    }
    if let Some(end) = path.get_mut(slash) {
        *end = 0;
    }
    let fd = sys::open(path.as_ptr() as u64, O_TMPFILE | O_RDWR, 0o700);
    if fd < 0 {
        return fd;
    }
    let copied = copy_executable(page, fd);
    if copied < 0 {
        return copied;
    }
    // Executing a file that somebody may write is ETXTBSY: change to a descriptor that only reads.
    let mut link = [0u8; 32];
    let start = decimal(fd as u64, &mut link, b"/proc/self/fd/");
    let readable = sys::open(start, 0, 0);
    sys::close(fd);
    readable
}

/// Writes `prefix` and the number as a C string that ends with the buffer; its address.
pub(crate) fn decimal(mut number: u64, buffer: &mut [u8; 32], prefix: &[u8]) -> u64 {
    let mut digits = 0usize;
    for byte in buffer.iter_mut().rev().skip(1) {
        *byte = b'0'.wrapping_add((number % 10) as u8);
        number /= 10;
        digits = digits.wrapping_add(1);
        if number == 0 {
            break;
        }
    }
    for (to, from) in buffer.iter_mut().rev().skip(digits.wrapping_add(1)).zip(prefix.iter().rev())
    {
        *to = *from;
    }
    let length = digits.wrapping_add(prefix.len()).wrapping_add(1);
    (buffer.as_ptr() as u64).wrapping_add(32).wrapping_sub(length as u64)
}

/// Executes `fd` as `ckpt __dump PID` or `ckpt __assist PID`, with an empty environment and no
/// other descriptor.
fn execute(page: Page, fd: i64) -> i64 {
    if fd < 0 {
        return fd;
    }
    if fd as u64 != EXECUTABLE_FD {
        sys::duplicate(fd, EXECUTABLE_FD, sys::CLOEXEC);
    }
    sys::close_range(0, EXECUTABLE_FD - 1);
    sys::close_range(EXECUTABLE_FD + 1, u32::MAX.into());
    let target = page.target().load(Ordering::Acquire);
    let mut number = [0u8; 32];
    let pid = decimal(u64::from(target), &mut number, b"");
    let request = page.api(offset_of!(Api, request)).load(Ordering::Acquire);
    let word = if request > Request::Call as u32 { c"__assist" } else { c"__dump" };
    let argv = [c"ckpt".as_ptr() as u64, word.as_ptr() as u64, pid, 0];
    let (empty, envp) = (c"".as_ptr() as u64, (&raw const argv[3]) as u64);
    sys::execute(EXECUTABLE_FD as i64, empty, (&raw const argv) as u64, envp)
}

/// Executes the checkpoint file at `path`, a C string; a negative error number.
pub(crate) fn restart(path: u64) -> i64 {
    let argv = [path, 0];
    let envp = (&raw const argv[1]) as u64;
    sys::execute_path(path, (&raw const argv) as u64, envp)
}
