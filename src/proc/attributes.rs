// SPDX-License-Identifier: LGPL-2.1-only
//! What a file has besides its content and its mode (xattr(7)).
//!
//! # Safety
//! The call takes a C string and a buffer of ours.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;
use std::ffi::CString;

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
