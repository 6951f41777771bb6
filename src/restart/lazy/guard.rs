// SPDX-License-Identifier: LGPL-2.1-only
//! The pager's parent, which has the same descriptors (CLONE_FILES). When the pager has died, or has given up, the memory
//! that is missing stays so: who touches it waits, and never reads zeros in its place. All who have it are ended.
//!
//! # Safety
//! The descriptors are those of a process that has ended, so nobody else has them; what the kernel reads lives during the call.
#![allow(unsafe_code)]

use super::holders::Holders;
use super::{leash, say};
use crate::proc::pidfd::Pidfd;
use crate::proc::uffd::Uffd;
use crate::proc::{Pid, fork};
use nix::libc;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// How the pager ends that has not begun.
pub(super) const NOT_BEGUN: i32 = 2;
/// How often those are looked for who are to be ended: at first, and later.
const LOOK: Duration = Duration::from_millis(10);
const SELDOM: Duration = Duration::from_secs(5);
/// After which it is said that somebody cannot be ended.
const LONG: Duration = Duration::from_secs(10);

/// Waits for the pager, and ends all who need it if it has not done its work.
pub(super) fn watch(pager: Pid, sign: u64, nowhere: u64) -> ! {
    let mut status = 0;
    // SAFETY: the kernel writes the one word.
    unsafe { libc::waitpid(pager.get(), &mut status, 0) };
    if libc::WIFEXITED(status) && [0, NOT_BEGUN].contains(&libc::WEXITSTATUS(status)) {
        fork::end(0)
    }
    if libc::WIFSIGNALED(status) {
        say(
            "the process that brought the program's memory (--lazy) was killed, so the program is ended; restart it again",
        );
    }
    end_all(sign, nowhere);
    // With our end these would end who has executed another program meanwhile.
    own("pipe:[").into_iter().for_each(leash::loosen_end);
    fork::end(1)
}

/// Ends all who miss something, and returns when nobody does.
fn end_all(sign: u64, nowhere: u64) {
    let uffds: Vec<Uffd> = own("anon_inode:[userfaultfd]")
        .into_iter()
        // SAFETY: its owner has ended, and it is closed with this process.
        .map(|fd| Uffd::from(unsafe { OwnedFd::from_raw_fd(fd) }))
        .collect();
    let (begun, mut nap, mut is_said) = (Instant::now(), LOOK, false);
    loop {
        // Who was no holder may be one by now.
        let mut holders = Holders::new(sign, nowhere);
        let left: Vec<_> = uffds.iter().filter(|uffd| !holders.is_gone(uffd)).collect();
        if left.is_empty() {
            return;
        }
        for pid in holders.of(&left) {
            let Ok(process) = Pidfd::open(pid) else { continue };
            // By now the descriptor stands for it, or it is another.
            if holders.has(pid) {
                process.kill();
            }
        }
        if !is_said && begun.elapsed() > LONG {
            is_said = true;
            say(
                "some process of the program could not be ended: it waits for memory that nobody brings (--lazy); end it with kill -9",
            );
        }
        std::thread::sleep(nap);
        nap = (nap * 2).min(SELDOM);
    }
}

/// Our descriptors of a kind.
fn own(kind: &str) -> Vec<RawFd> {
    let is_one = |fd: &RawFd| {
        let target = std::fs::read_link(format!("/proc/self/fd/{fd}"));
        target.is_ok_and(|target| target.to_string_lossy().starts_with(kind))
    };
    let all = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    let numbers = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // Those of our standard streams are others', too.
    numbers.filter(|fd| *fd > 2 && is_one(fd)).collect()
}

/// What limits the program must not limit who brings its memory.
pub(super) fn without_limits() {
    use Resource::{RLIMIT_AS, RLIMIT_CPU, RLIMIT_DATA, RLIMIT_RTTIME};
    for one in [RLIMIT_AS, RLIMIT_CPU, RLIMIT_DATA, RLIMIT_RTTIME] {
        let _ = setrlimit(one, RLIM_INFINITY, RLIM_INFINITY);
    }
    let priority = 0;
    // SAFETY: the kernel reads the one word; the C library's function is none in musl.
    unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_OTHER, &raw const priority)
    };
    // SAFETY: of numbers.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
}
