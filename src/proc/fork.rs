// SPDX-License-Identifier: LGPL-2.1-only
//! A process that is made by a bare clone(2), and goes on where its maker was.
//!
//! fork(3) gives neither the exit signal nor the id of choice, and a bare call leaves in the C library's memory the
//! thread id of its maker. musl takes its lock on the list of threads with it, and another process may have that id: a
//! thread that gets it in a new PID namespace would hold the same lock. So the kernel writes the new id there.
//!
//! # Safety
//! The caller has one thread, so that nothing is locked, and its child may do all that it may.
#![allow(unsafe_code)]

use super::id::{Pid, Tid};
use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl::{get_name, set_name};
use std::ptr::NonNull;

/// Offset of `tid` in musl's struct pthread (src/internal/pthread_impl.h, x86-64).
pub(crate) const MUSL_TID: usize = 0x30;

/// Where the C library keeps the id of this thread, if it is there.
pub(crate) fn own_id() -> Option<NonNull<i32>> {
    // SAFETY: without arguments.
    let thread = unsafe { libc::pthread_self() } as usize;
    let word = NonNull::new(std::ptr::with_exposed_provenance_mut::<i32>(thread + MUSL_TID))?;
    // SAFETY: struct pthread is larger, and lives as long as the thread.
    let known = unsafe { word.read_volatile() };
    (known == Tid::own().get()).then_some(word)
}

/// fork(2) with an exit signal of choice; None in the child.
///
/// # Errors
/// Those of clone(2).
pub(crate) fn fork(exit_signal: i32) -> nix::Result<Option<Pid>> {
    let word = own_id();
    let flags = word.map_or(0, |_| libc::CLONE_CHILD_SETTID) | exit_signal;
    let at: *mut i32 = word.map_or(std::ptr::null_mut(), NonNull::as_ptr);
    // SAFETY: as the file's beginning says; the kernel writes the child's own copy of the word.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, at, 0) };
    Errno::result(child).map(|child| (child != 0).then_some(Pid::new(child as i32)))
}

/// Makes a helper, which has a name of ours from its birth: whoever looks for a restart's root among our children has to know
/// it. None in the helper.
pub(crate) fn helper(make: impl FnOnce() -> nix::Result<Option<Pid>>) -> nix::Result<Option<Pid>> {
    let own = get_name();
    let _ = set_name(c"ckpt-deputy");
    let made = make();
    if made != Ok(None) {
        let _ = own.and_then(|own| set_name(&own));
    }
    made
}

/// Ends this process without running anything of its maker's.
pub(crate) fn end(status: i32) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

    #[test]
    fn a_child_knows_its_id() {
        assert!(own_id().is_some());
        let Some(child) = fork(0).unwrap() else {
            let knows = own_id().is_some();
            // SAFETY: ends the child without running anything of the test's.
            unsafe { libc::_exit(i32::from(!knows)) }
        };
        assert_ne!(child, Pid::own());
        let child = child.nix();
        let ended = waitpid(child, Some(WaitPidFlag::__WALL));
        assert_eq!(ended, Ok(WaitStatus::Exited(child, 0)));
    }
}
