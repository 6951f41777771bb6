// SPDX-License-Identifier: LGPL-2.1-only
//! What cannot run under ckpt, found before it is executed: a program that the kernel would execute differently under a
//! tracer (it gets no rights of its file, without a word: security/commoncap.c, cap_bprm_creds_from_file), one that nobody
//! may read, which nobody may trace, and one of 32 bits. Of a script it is the interpreter that counts.
//!
//! # Safety
//! The one system call is given a path, and no buffer.
#![allow(unsafe_code)]

use super::launch::{c_string, candidates};
use crate::error::{CANNOT_EXECUTE, Error, Result};
use nix::libc;
use nix::unistd::{AccessFlags, access, getegid, geteuid};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How many interpreters of interpreters there may be (fs/exec.c, exec_binprm).
const DEEPEST: usize = 5;
/// What the kernel reads of a file to find out what it is (BINPRM_BUF_SIZE).
const BEGIN: u64 = 256;
/// ELF files tell their class behind their first four bytes (elf(5)).
const OF_32_BITS: &[u8] = b"\x7fELF\x01";

/// Refuses what cannot run under ckpt.
///
/// # Errors
/// With the status of a program that cannot be executed.
pub(crate) fn refuse(program: &OsStr) -> Result<()> {
    let candidates = candidates(program);
    let found = candidates.iter().find(|path| path.exists()).filter(|path| path.is_file());
    let Some(path) = found else { return Ok(()) };
    let mut file = path.clone();
    for _ in 0..DEEPEST {
        if access(&file, AccessFlags::X_OK).is_err() {
            return Ok(());
        }
        let begin = begin(&file);
        let next = interpreter(&begin);
        if let Some(why) = why(&file, &begin, next.is_some()) {
            let shown = path.display();
            let whose = match file == *path {
                true => format!("{shown} {why}"),
                false => format!("{shown} is executed by {}, which {why}", file.display()),
            };
            return Err(Error::new(whose)
                .hint("start it without ckpt")
                .with_status(CANNOT_EXECUTE));
        }
        match next {
            Some(next) => file = next,
            None => return Ok(()),
        }
    }
    Ok(())
}

/// Why a file cannot run; the kernel ignores whose a script is.
fn why(path: &Path, begin: &[u8], is_script: bool) -> Option<&'static str> {
    let meta = fs::metadata(path).ok()?;
    let gives = |bits: u32| meta.mode() & bits == bits && !is_script;
    if access(path, AccessFlags::R_OK).is_err() {
        Some("may be executed but not read, so it cannot be saved, and cannot run under ckpt")
    } else if begin.starts_with(OF_32_BITS) {
        Some("is a 32-bit program and cannot run under ckpt")
    } else if gives(libc::S_ISUID) {
        Some("is set-user-ID and cannot run under ckpt")
    } else if geteuid().is_root() {
        None
    } else if gives(libc::S_ISGID | libc::S_IXGRP) && meta.gid() != getegid().as_raw() {
        Some("is set-group-ID and cannot run under ckpt")
    } else if !is_script && has_capabilities(path) {
        Some("has capabilities of its own (setcap(8)) and cannot run under ckpt")
    } else {
        None
    }
}

/// The first bytes of a file; none of one that may not be read.
fn begin(path: &Path) -> Vec<u8> {
    let mut begin = Vec::new();
    let _ = File::open(path).and_then(|file| file.take(BEGIN).read_to_end(&mut begin));
    begin
}

/// Whether a file is a program in no language (elf(5)).
pub(super) fn is_binary(path: &Path) -> bool {
    begin(path).starts_with(b"\x7fELF")
}

/// The interpreter to which the kernel gives a file that begins so (execve(2)).
fn interpreter(begin: &[u8]) -> Option<PathBuf> {
    let line = begin.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?.trim_ascii_start();
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    (end > 0).then(|| OsStr::from_bytes(&line[..end]).into())
}

/// The interpreter of a script that is there, if that is missing: the kernel then says of the script that it is not found.
pub(crate) fn missing_interpreter(script: &Path) -> Option<PathBuf> {
    interpreter(&begin(script)).filter(|path| !path.exists())
}

fn has_capabilities(path: &Path) -> bool {
    let (path, name) = (c_string(path.as_os_str()), c"security.capability");
    // SAFETY: with no buffer the kernel only says how long the value is.
    unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters() {
        let of = |begin: &[u8]| interpreter(begin).map(|path| path.display().to_string());
        assert_eq!(of(b"#! /bin/sh -e\necho"), Some("/bin/sh".into()));
        assert_eq!(of(b"#!/usr/bin/env python3"), Some("/usr/bin/env".into()));
        assert_eq!(of(b"#!\n/bin/sh"), None);
        assert_eq!(of(b"\x7fELF"), None);
    }
}
