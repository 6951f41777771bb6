// SPDX-License-Identifier: LGPL-2.1-only
//! The descriptors that this process has, one by one.
//!
//! # Safety
//! The kernel writes into scratch memory of the caller's, [`SCRATCH`] bytes, and into structs on the
//! stack; C strings are its own or the program's.
#![allow(unsafe_code)]

use crate::{clib, sys};

/// CKPT_FD_IGNORE.
pub(crate) const IGNORE: i32 = 0;
/// CKPT_FD_RESTORE.
pub(crate) const RESTORE: i32 = 1;

/// CKPT_FD_REGULAR; the others follow.
pub(crate) const REGULAR: i32 = 1;
const DIRECTORY: i32 = 2;
const TERMINAL: i32 = 3;
const DEVICE: i32 = 4;
const PIPE: i32 = 5;
const SOCKET: i32 = 6;
const UNNAMED: i32 = 7;
const OTHER: i32 = 8;

/// Bytes of the scratch memory.
pub(crate) const SCRATCH: u64 = 16 << 10;

/// struct regular.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Regular {
    /// malloc'ed.
    pub path: *mut u8,
    /// Flags for open(2).
    pub mode: i32,
    /// In bytes.
    pub offset: i64,
}

/// What there is to say about a descriptor.
pub(crate) struct Description {
    /// Its number.
    pub fd: i32,
    /// CKPT_FD_....
    pub kind: i32,
    /// What a restart does of itself.
    pub treatment: i32,
    /// For regular files.
    pub regular: Regular,
    /// Open flags.
    pub flags: u32,
    /// FD_CLOEXEC.
    pub cloexec: u32,
    /// [`identity`].
    pub identity: [u64; 2],
}

/// FNV-1a of a C string, by which a path that was overwritten in place is recognised too.
pub(crate) fn hash(path: *const u8) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut at = path;
    while !at.is_null() {
        // SAFETY: a C string of ours or of the program's.
        let byte = unsafe { at.read() };
        if byte == 0 {
            break;
        }
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        at = at.wrapping_add(1);
    }
    hash
}

/// A copy that the program may free.
pub(crate) fn duplicate(text: *const u8, most: usize) -> *mut u8 {
    let mut len = 0usize;
    // SAFETY: a C string, or `most` bytes.
    while len < most && unsafe { text.wrapping_add(len).read() } != 0 {
        len = len.wrapping_add(1);
    }
    let to = clib::malloc(len.wrapping_add(1));
    if !to.is_null() {
        // SAFETY: malloc gave that much.
        unsafe { core::ptr::copy_nonoverlapping(text, to, len) };
        // SAFETY: as above.
        unsafe { to.wrapping_add(len).write(0) };
    }
    to
}

/// Calls `visit` with every descriptor but the one that lists them.
pub(crate) fn descriptors(scratch: u64, mut visit: impl FnMut(i32)) {
    const DIRECTORY: u64 = 0o200_000;
    let list = sys::open(c"/proc/self/fd".as_ptr() as u64, DIRECTORY, 0);
    if list < 0 {
        return;
    }
    loop {
        let n = sys::entries(list, half(scratch));
        if n == 0 {
            break;
        }
        let (mut at, end) = (scratch, scratch.wrapping_add(n as u64));
        while at < end {
            // SAFETY: a struct linux_dirent64: its length at 16, its name from 19 on.
            let len = unsafe { (at.wrapping_add(16) as *const u16).read_unaligned() };
            if let Some(fd) = number(at.wrapping_add(19))
                && i64::from(fd) != list
            {
                visit(fd);
            }
            at = at.wrapping_add(u64::from(len).max(1));
        }
    }
    sys::close(list);
}

/// Half of the scratch memory.
fn half<'a>(start: u64) -> &'a mut [u8] {
    // SAFETY: the scratch memory is its caller's and outlives the call that fills it.
    unsafe { core::slice::from_raw_parts_mut(start as *mut u8, SCRATCH as usize / 2) }
}

fn number(text: u64) -> Option<i32> {
    let (mut at, mut number) = (text as *const u8, None);
    loop {
        // SAFETY: a C string from the kernel.
        let byte = unsafe { at.read() };
        match byte {
            b'0'..=b'9' => {
                let digit = i32::from(byte.wrapping_sub(b'0'));
                number = Some(number.unwrap_or(0i32).wrapping_mul(10).wrapping_add(digit));
            }
            _ => return number,
        }
        at = at.wrapping_add(1);
    }
}

/// Device and inode of what a descriptor is.
pub(crate) fn identity(fd: i32) -> [u64; 2] {
    let [device, inode, ..] = sys::stat(fd.into());
    [device, inode]
}

/// Looks at a descriptor; the second half of the scratch memory is at `scratch`.
pub(crate) fn describe(fd: i32, scratch: u64) -> Description {
    const LARGEFILE: u64 = 0o100_000;
    let number = fd as u64;
    let stat = sys::stat(fd.into());
    let kind = match (stat[3] as u32 & 0o170_000, stat[2]) {
        (0o100_000, 0) => UNNAMED,
        (0o100_000, _) => REGULAR,
        (0o040_000, _) => DIRECTORY,
        (0o020_000, _) if sys::is_terminal(fd.into()) => TERMINAL,
        (0o020_000 | 0o060_000, _) => DEVICE,
        (0o010_000, _) => PIPE,
        (0o140_000, _) => SOCKET,
        _ => OTHER,
    };
    let flags = sys::status_flags(fd.into()) as u64 & !LARGEFILE;
    let cloexec = sys::closes_on_exec(fd.into());
    let mut name = [0u8; 32];
    let link = crate::spawn::decimal(number, &mut name, b"/proc/self/fd/");
    let len = sys::read_link(link, half(scratch));
    let mut regular = Regular { path: core::ptr::null_mut(), mode: flags as i32, offset: 0 };
    if kind == REGULAR {
        regular.path = duplicate(scratch as *const u8, len);
        regular.offset = sys::offset(fd.into());
    }
    let lost = match kind {
        SOCKET => fd > 2,
        OTHER => !remade(scratch as *const u8, len),
        _ => false,
    };
    let treatment = if lost { IGNORE } else { RESTORE };
    Description {
        fd,
        kind,
        treatment,
        regular,
        flags: flags as u32,
        cloexec,
        identity: identity(fd),
    }
}

/// Whether a restart makes this kernel object again.
fn remade(link: *const u8, len: usize) -> bool {
    const REMADE: [&[u8]; 4] = [
        b"anon_inode:[eventfd]",
        b"anon_inode:[eventpoll]",
        b"anon_inode:[signalfd]",
        b"anon_inode:[timerfd]",
    ];
    REMADE.iter().any(|name| {
        let same = |(at, byte): (usize, &u8)| {
            // SAFETY: inside the link's text, whose length was compared.
            *byte == unsafe { link.wrapping_add(at).read() }
        };
        name.len() == len && name.iter().enumerate().all(same)
    })
}
