// SPDX-License-Identifier: LGPL-2.1-only
//! The error numbers that the payload knows (include/uapi/asm-generic/errno-base.h and errno.h), by name.
//!
//! They are held against libc's as the system calls are.

numbers! { $ each_error, errno, "Error number", i64, {
    EPERM EPERM 1,
    ENOENT ENOENT 2,
    ESRCH ESRCH 3,
    EINTR EINTR 4,
    EIO EIO 5,
    ECHILD ECHILD 10,
    EAGAIN EAGAIN 11,
    ENOMEM ENOMEM 12,
    EACCES EACCES 13,
    EEXIST EEXIST 17,
    ENOTDIR ENOTDIR 20,
    EISDIR EISDIR 21,
    EINVAL EINVAL 22,
    ENFILE ENFILE 23,
    EMFILE EMFILE 24,
    EFBIG EFBIG 27,
    ENOSPC ENOSPC 28,
    EROFS EROFS 30,
    EDEADLK EDEADLK 35,
    ENOSYS ENOSYS 38,
    ECANCELED ECANCELED 125,
} }
