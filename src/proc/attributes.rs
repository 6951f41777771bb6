// SPDX-License-Identifier: LGPL-2.1-only
//! What a file has besides its content and its mode (xattr(7)).
//!
//! # Safety
//! The calls take a C string and a buffer of ours.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whether a file has attributes that its owner has set, or an access control list (xattr(7)).
pub(crate) fn any(path: &str) -> bool {
    let Ok(path) = CString::new(path) else { return false };
    let mut names = [0u8; 4096];
    // SAFETY: the kernel reads the C string, and writes into the buffer.
    let len = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let names = names.get(..len.max(0).cast_unsigned()).unwrap_or_default();
    let own = |name: &[u8]| name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
    names.split(|byte| *byte == 0).any(own) || Errno::result(len) == Err(Errno::ERANGE)
}

/// The attribute of a file that lets nobody open it for writing with these flags (chattr(1)): `i`, or `a` without O_APPEND.
pub(crate) fn forbids(path: &Path, flags: u32) -> Option<char> {
    const IMMUTABLE: u64 = 0x10;
    const APPEND: u64 = 0x20;
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // struct statx: a mask and a block size, then the attributes.
    let mut found = [0u64; 32];
    let (no_flags, no_mask) = (0, 0);
    // SAFETY: the kernel reads the C string, and writes 256 bytes.
    let asked = unsafe {
        let to = found.as_mut_ptr();
        libc::syscall(libc::SYS_statx, libc::AT_FDCWD, path.as_ptr(), no_flags, no_mask, to)
    };
    let holds = |attribute| asked == 0 && found[1] & attribute != 0;
    match () {
        () if holds(IMMUTABLE) => Some('i'),
        () if holds(APPEND) && flags.cast_signed() & libc::O_APPEND == 0 => Some('a'),
        () => None,
    }
}
