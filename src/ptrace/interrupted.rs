// SPDX-License-Identifier: LGPL-2.1-only
//! How a thread that was stopped inside a system call goes on.
//!
//! A stop finds the thread either in user code (`orig_rax` negative) or at the end of a system
//! call that the stop cut short, with one of the kernel's internal results (include/linux/errno.h)
//! in rax. The kernel itself restarts those when the thread runs on from a signal stop with its
//! registers as they were. A few calls answer EINTR outright (signal(7), "Interruption of system
//! calls and library functions by stop signals"); giving them the internal result by hand makes
//! the kernel restart them too, unless a signal with a handler comes first, as it should be.

use super::regs::Regs;
use super::waits::{self, IO_PGETEVENTS, Interrupted};
use nix::libc;

const EINTR: i64 = -4;
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// System calls that answer EINTR to a bare stop, although nothing happened to the program: those from
/// read(2) on for a socket with SO_RCVTIMEO or SO_SNDTIMEO (include/net/sock.h, sock_intr_errno), and
/// only when they have moved no byte.
const ANSWER_EINTR: [i64; 27] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_io_getevents,
    IO_PGETEVENTS,
    libc::SYS_io_uring_enter,
    libc::SYS_fallocate,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwritev2,
    libc::SYS_splice,
    libc::SYS_sendfile,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_connect,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_accept,
    libc::SYS_accept4,
];

/// The system call that the stop found the thread in, unless it had come to its own end.
pub(crate) fn call_in_progress(regs: &Regs) -> Option<i64> {
    let call = regs.orig_rax.cast_signed();
    let result = regs.rax.cast_signed();
    let restarts =
        matches!(result, ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK);
    let cut = result == EINTR && ANSWER_EINTR.contains(&call);
    (call >= 0 && (restarts || cut)).then_some(call)
}

/// Whether the call answered EINTR to the stop, and has to be told to begin anew.
pub(crate) fn answered_eintr(regs: &Regs) -> bool {
    regs.rax.cast_signed() == EINTR && call_in_progress(regs).is_some()
}

/// Whether the kernel knows by itself how the call goes on (restart_syscall(2)), until the thread makes another or
/// returns from a handler.
pub(crate) fn has_restart_block(regs: &Regs) -> bool {
    regs.rax.cast_signed() == ERESTART_RESTARTBLOCK && call_in_progress(regs).is_some()
}

/// Registers with which the thread runs on from a signal stop as if nothing had been; a time-out
/// that begins anew has to be shortened besides ([`super::waits`]).
pub(crate) fn undisturbed(regs: &Regs) -> Regs {
    let mut regs = *regs;
    if answered_eintr(&regs) {
        regs.rax = ERESTARTNOHAND.cast_unsigned();
    }
    regs
}

/// Registers with which a call that the kernel knows how to go on with begins anew in full.
pub(crate) fn anew(regs: &Regs) -> Regs {
    Regs { rax: ERESTARTNOHAND.cast_unsigned(), ..*regs }
}

/// Registers with which the thread goes on by itself, without the kernel's help: what the kernel
/// does when no signal is pending (arch/x86/kernel/signal.c, arch_do_signal_or_restart).
pub(crate) fn rewound(regs: &Regs) -> Regs {
    let mut regs = undisturbed(regs);
    if regs.orig_rax.cast_signed() < 0 {
        return regs;
    }
    match regs.rax.cast_signed() {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
            regs.rax = regs.orig_rax;
            regs.rip -= 2;
        }
        ERESTART_RESTARTBLOCK => {
            regs.rax = libc::SYS_restart_syscall.cast_unsigned();
            regs.rip -= 2;
        }
        _ => {}
    }
    regs.orig_rax = u64::MAX;
    regs
}

/// Registers with which the thread goes on after a signal handler with SA_RESTART
/// (arch/x86/kernel/signal.c, handle_signal).
pub(crate) fn after_a_handler(regs: &Regs) -> Regs {
    let mut next = *regs;
    if regs.orig_rax.cast_signed() >= 0 {
        match regs.rax.cast_signed() {
            ERESTARTSYS | ERESTARTNOINTR => {
                next.rax = regs.orig_rax;
                next.rip -= 2;
            }
            ERESTARTNOHAND | ERESTART_RESTARTBLOCK => next.rax = EINTR.cast_unsigned(),
            _ => {}
        }
    }
    next.orig_rax = u64::MAX;
    next
}

/// Registers with which the thread goes on in another process, where the kernel knows nothing of
/// the call any more, and whether the call will fail with EINTR there, because it is not known which
/// it was or how long it still had to wait.
///
/// `slot` is the address of a struct timespec with the time left.
pub(crate) fn revived(regs: &Regs, wait: Option<&Interrupted>, slot: u64) -> (Regs, bool) {
    let mut next = rewound(regs);
    let blocked = regs.orig_rax.cast_signed() >= 0
        && (regs.rax.cast_signed() == ERESTART_RESTARTBLOCK || answered_eintr(regs));
    if !blocked {
        return (next, false);
    }
    let Some(wait) = wait else {
        next.rip = regs.rip;
        next.rax = EINTR.cast_unsigned();
        return (next, true);
    };
    next.rax = wait.call.cast_unsigned();
    if let Some((place, _)) = wait.timeout {
        waits::shorten(&mut next, place, wait.left(), slot);
    }
    (next, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(call: i64, result: i64) -> Regs {
        Regs {
            orig_rax: call.cast_unsigned(),
            rax: result.cast_unsigned(),
            rip: 0x1002,
            ..Regs::default()
        }
    }

    #[test]
    fn user_code_is_left_alone() {
        let regs = stopped(-1, ERESTARTSYS);
        assert_eq!(undisturbed(&regs), regs);
        assert_eq!(rewound(&regs), regs);
        assert_eq!(call_in_progress(&regs), None);
    }

    #[test]
    fn a_finished_call_keeps_its_result() {
        let regs = stopped(libc::SYS_read, 17);
        assert_eq!(rewound(&regs).rax, 17);
        assert_eq!(rewound(&regs).rip, 0x1002);
        assert_eq!(rewound(&stopped(libc::SYS_close, EINTR)).rax.cast_signed(), EINTR);
    }

    #[test]
    fn a_read_is_issued_again() {
        let next = rewound(&stopped(libc::SYS_read, ERESTARTSYS));
        assert_eq!((next.rax, next.rip), (libc::SYS_read.cast_unsigned(), 0x1000));
    }

    #[test]
    fn an_epoll_wait_begins_anew_unless_a_handler_runs() {
        let next = undisturbed(&stopped(libc::SYS_epoll_wait, EINTR));
        assert_eq!(next.rax.cast_signed(), ERESTARTNOHAND);
    }

    #[test]
    fn a_sleep_goes_on_elsewhere_if_its_end_is_known() {
        let regs = stopped(libc::SYS_nanosleep, ERESTART_RESTARTBLOCK);
        let (next, lost) = revived(&regs, None, 0x4100);
        assert!(lost);
        assert_eq!((next.rax.cast_signed(), next.rip), (EINTR, 0x1002));
        let place = waits::Place::Timespec(0);
        let timeout = Some((place, u64::MAX - 1));
        let wait =
            Interrupted { call: libc::SYS_nanosleep, timeout, until: None, begins_anew: false };
        let (next, lost) = revived(&regs, Some(&wait), 0x4100);
        assert!(!lost);
        assert_eq!((next.rax, next.rip), (libc::SYS_nanosleep.cast_unsigned(), 0x1000));
        assert_eq!(next.rdi, 0x4100);
    }
}
