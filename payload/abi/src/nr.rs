// SPDX-License-Identifier: LGPL-2.1-only
//! The kernel's numbers that the payload uses, by name: system calls and errors of x86-64.
//!
//! The payload has no libc to take them from; the host holds each against libc's
//! (`src/ptrace/mod.rs`).

/// Declares numbers of one kind, and a macro that calls another with each name here and libc's.
macro_rules! numbers {
    ($d:tt $each:ident, $kind:literal, $ty:ty, { $($name:ident $libc:ident $value:literal,)* }) => {
        $(
            #[doc = concat!($kind, " (", stringify!($libc), ").")]
            pub const $name: $ty = $value;
        )*

        /// Calls a macro with the name here and libc's of each number.
        #[macro_export]
        macro_rules! $each {
            ($d check:ident) => { $($d check!($name, $libc);)* };
        }
    };
}

numbers! { $ each_system_call, "System call", u64, {
    READ SYS_read 0,
    WRITE SYS_write 1,
    CLOSE SYS_close 3,
    FSTAT SYS_fstat 5,
    POLL SYS_poll 7,
    LSEEK SYS_lseek 8,
    MMAP SYS_mmap 9,
    MPROTECT SYS_mprotect 10,
    MUNMAP SYS_munmap 11,
    RT_SIGACTION SYS_rt_sigaction 13,
    RT_SIGPROCMASK SYS_rt_sigprocmask 14,
    RT_SIGRETURN SYS_rt_sigreturn 15,
    IOCTL SYS_ioctl 16,
    MADVISE SYS_madvise 28,
    GETPID SYS_getpid 39,
    CLONE SYS_clone 56,
    EXECVE SYS_execve 59,
    EXIT SYS_exit 60,
    WAIT4 SYS_wait4 61,
    FCNTL SYS_fcntl 72,
    GETCWD SYS_getcwd 79,
    GETPPID SYS_getppid 110,
    SETSID SYS_setsid 112,
    PRCTL SYS_prctl 157,
    GETTID SYS_gettid 186,
    FUTEX SYS_futex 202,
    TIMER_CREATE SYS_timer_create 222,
    TIMER_DELETE SYS_timer_delete 226,
    GETDENTS64 SYS_getdents64 217,
    EXIT_GROUP SYS_exit_group 231,
    OPENAT SYS_openat 257,
    READLINKAT SYS_readlinkat 267,
    DUP3 SYS_dup3 292,
    PRLIMIT64 SYS_prlimit64 302,
    KCMP SYS_kcmp 312,
    MEMFD_CREATE SYS_memfd_create 319,
    EXECVEAT SYS_execveat 322,
    PIDFD_SEND_SIGNAL SYS_pidfd_send_signal 424,
    PIDFD_OPEN SYS_pidfd_open 434,
    CLONE3 SYS_clone3 435,
    CLOSE_RANGE SYS_close_range 436,
} }

numbers! { $ each_error, "Error number", i64, {
    ESRCH ESRCH 3,
    EINTR EINTR 4,
    EIO EIO 5,
    ECHILD ECHILD 10,
    ENOMEM ENOMEM 12,
    EINVAL EINVAL 22,
    ENOSPC ENOSPC 28,
} }
