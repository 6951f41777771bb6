// SPDX-License-Identifier: LGPL-2.1-only
//! The table of descriptors that the C API shows (ckpt_fds), and what its changes mean after a
//! restart.
//!
//! When the restart callbacks run, the host has opened again what it could, and says which files
//! it could not ([`Unopened`]). What the callbacks then want otherwise is done here.
//!
//! # Safety
//! The table is memory of our own; its rows are those of the C structs in ckpt.h, and what the
//! program may write there is only compared, or given to the kernel, which answers EFAULT where
//! nothing is.
#![allow(unsafe_code)]

use crate::control::Page;
use crate::listing::{
    Description, IGNORE, REGULAR, RESTORE, Regular, SCRATCH, describe, descriptors, duplicate,
    hash, identity,
};
use crate::trigger::say;
use crate::{clib, sys};
use ckpt_abi::api::{Api, Unopened};
use ckpt_abi::errno;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

/// struct ckptfdtbl, and how long its mapping is.
#[repr(C)]
#[derive(Clone, Copy)]
struct Table {
    count: u32,
    rows: *mut Row,
    len: u64,
}

/// struct ckptfd; what follows `regular` are those of the rows before they were shown.
#[repr(C)]
#[derive(Clone, Copy)]
struct Row {
    fd: i32,
    treatment: i32,
    kind: i32,
    regular: *mut Regular,
}

/// A row as it was shown first.
#[repr(C)]
#[derive(Clone, Copy)]
struct Shown {
    treatment: i32,
    mode: i32,
    offset: i64,
    path: u64,
    flags: u32,
    cloexec: u32,
    identity: [u64; 2],
}

/// As in ckpt.h.
const _: () = {
    assert!(offset_of!(Table, rows) == 8);
    assert!(size_of::<Row>() == 24 && offset_of!(Row, regular) == 16);
    assert!(size_of::<Regular>() == 24 && offset_of!(Regular, offset) == 16);
    assert!(size_of::<Shown>() == 48 && offset_of!(Shown, identity) == 32);
};

const STRIDE: u64 = (size_of::<Row>() + size_of::<Regular>() + size_of::<Shown>()) as u64;

impl Table {
    fn of(page: Page) -> Option<*mut Self> {
        let at = page.api_long(offset_of!(Api, table)).load(Ordering::Acquire);
        (at != 0).then_some(at as *mut Self)
    }
}

fn room(table: u64, capacity: u64, index: u64) -> (*mut Row, *mut Regular, *mut Shown) {
    let rows = table.wrapping_add(size_of::<Table>() as u64);
    let regulars = rows.wrapping_add(capacity.wrapping_mul(size_of::<Row>() as u64));
    let shown = regulars.wrapping_add(capacity.wrapping_mul(size_of::<Regular>() as u64));
    (
        (rows as *mut Row).wrapping_add(index as usize),
        (regulars as *mut Regular).wrapping_add(index as usize),
        (shown as *mut Shown).wrapping_add(index as usize),
    )
}

fn capacity(table: *mut Table) -> u64 {
    // SAFETY: the table is ours.
    let len = unsafe { table.read() }.len;
    len.wrapping_sub(size_of::<Table>() as u64).checked_div(STRIDE).unwrap_or(0)
}

fn both(row: *mut Row, shown: *mut Shown) -> (Row, Shown) {
    // SAFETY: rows of our own table.
    let row = unsafe { row.read() };
    // SAFETY: as above.
    (row, unsafe { shown.read() })
}

/// Calls `visit` with each row.
fn each(table: *mut Table, mut visit: impl FnMut(*mut Row, *mut Shown)) {
    // SAFETY: the table is ours.
    let count = unsafe { table.read() }.count;
    let capacity = capacity(table);
    for index in 0..u64::from(count).min(capacity) {
        let (row, _, shown) = room(table as u64, capacity, index);
        visit(row, shown);
    }
}

/// Before another checkpoint: treatments stay for descriptors that are the same file still; what was
/// said of files held for the checkpoint before.
pub(crate) fn keep(page: Page) {
    let Some(table) = Table::of(page) else { return };
    each(table, |row, shown| {
        let (mut now, mut first) = both(row, shown);
        if identity(now.fd) != first.identity {
            (now.fd, now.treatment) = (-1, first.treatment);
        }
        if !now.regular.is_null() {
            // SAFETY: the struct is in our own table.
            let regular = unsafe { now.regular.read() };
            (first.path, first.mode, first.offset) =
                (hash(regular.path), regular.mode, regular.offset);
        }
        // SAFETY: a row of our own table.
        unsafe { row.write(now) };
        // SAFETY: as above.
        unsafe { shown.write(first) };
    });
}

/// Forgets the table. Its paths are the program's memory, which it may not be safe to free here.
fn forget(page: Page) {
    let Some(table) = Table::of(page) else { return };
    page.api_long(offset_of!(Api, table)).store(0, Ordering::Release);
    // SAFETY: the table is ours.
    sys::unmap(table as u64, unsafe { (*table).len });
}

/// ckpt_fds(): a new table, or null without memory. What callbacks have changed before stays.
pub(crate) fn table(page: Page) -> u64 {
    let Some(scratch) = sys::map(SCRATCH) else { return 0 };
    let missing = page.api_long(offset_of!(Api, missing_count)).load(Ordering::Acquire);
    let mut count = missing;
    descriptors(scratch, |_| count = count.wrapping_add(1));
    let len = STRIDE.wrapping_mul(count).wrapping_add(size_of::<Table>() as u64);
    let Some(made) = sys::map(len) else {
        sys::unmap(scratch, SCRATCH);
        return 0;
    };
    let table = made as *mut Table;
    let rows = room(made, count, 0).0;
    // SAFETY: fresh memory.
    unsafe { table.write(Table { count: 0, rows, len }) };
    let old = Table::of(page);
    descriptors(scratch, |fd| {
        // What stands at the number of a missing file only keeps it.
        if (0..missing).all(|index| missing_at(page, index).fd as i32 != fd) {
            add(table, describe(fd, scratch.wrapping_add(SCRATCH / 2)), old);
        }
    });
    for index in 0..missing {
        let missing = missing_at(page, index);
        let path = duplicate(missing.path as *const u8, usize::MAX);
        let regular = Regular { path, mode: missing.flags as i32, offset: missing.position as i64 };
        let (fd, flags, cloexec) = (missing.fd as i32, missing.flags, missing.cloexec);
        let kind = REGULAR;
        add(
            table,
            Description { fd, kind, treatment: RESTORE, regular, flags, cloexec, identity: [0; 2] },
            old,
        );
    }
    if old.is_some() {
        forget(page);
    }
    page.api_long(offset_of!(Api, table)).store(made, Ordering::Release);
    sys::unmap(scratch, SCRATCH);
    made
}

fn missing_at(page: Page, index: u64) -> Unopened {
    let start = page.api_long(offset_of!(Api, missing)).load(Ordering::Acquire);
    let at = (start as *const Unopened).wrapping_add(index as usize);
    // SAFETY: the host has written that many.
    unsafe { at.read() }
}

/// Adds a row, with what the program had changed in its old one.
fn add(table: *mut Table, description: Description, old: Option<*mut Table>) {
    // SAFETY: the table is ours.
    let count = unsafe { (*table).count };
    let capacity = capacity(table);
    if u64::from(count) >= capacity {
        return;
    }
    let (row, place, shown) = room(table as u64, capacity, count.into());
    let Description { fd, kind, treatment, regular, flags, cloexec, identity } = description;
    let regular_at = if kind == REGULAR { place } else { core::ptr::null_mut() };
    let mut first = Shown {
        treatment,
        mode: regular.mode,
        offset: regular.offset,
        path: hash(regular.path),
        flags,
        cloexec,
        identity,
    };
    let mut now = (Row { fd, treatment, kind, regular: regular_at }, regular);
    if let Some(old) = old {
        each(old, |row, shown| {
            let (row, shown) = both(row, shown);
            if row.fd != fd || row.kind != kind {
                return;
            }
            now.0.treatment = row.treatment;
            if row.regular.is_null() {
                return;
            }
            // SAFETY: the struct is in our own table.
            let was = unsafe { row.regular.read() };
            if changed(&was, &shown) {
                // What the row shows now is what the program wants; the new one stays comparable.
                clib::free(now.1.path as u64);
                now.1 = was;
                first.offset = if was.offset == shown.offset { was.offset } else { first.offset };
            } else {
                clib::free(was.path as u64);
            }
        });
    }
    // SAFETY: inside the table, as `capacity` says.
    unsafe { row.write(now.0) };
    // SAFETY: as above.
    unsafe { place.write(now.1) };
    // SAFETY: as above.
    unsafe { shown.write(first) };
    // SAFETY: the table is ours.
    unsafe { (*table).count = count.wrapping_add(1) };
}

fn changed(regular: &Regular, shown: &Shown) -> bool {
    hash(regular.path) != shown.path || regular.mode != shown.mode || regular.offset != shown.offset
}

/// Does what the table says, and ends the program with a sentence where that is impossible.
pub(crate) fn settle(page: Page) {
    let table = Table::of(page);
    let missing = page.api_long(offset_of!(Api, missing_count));
    for index in 0..missing.load(Ordering::Acquire) {
        let missing = missing_at(page, index);
        let mut wanted = true;
        if let Some(table) = table {
            each(table, |row, shown| {
                let (row, shown) = both(row, shown);
                // SAFETY: the struct is in our own table.
                let other = || changed(unsafe { &*row.regular }, &shown);
                if row.fd == missing.fd as i32 && !row.regular.is_null() {
                    wanted = row.treatment != IGNORE && !other();
                }
            });
        }
        if wanted {
            give_up(missing.fd.into(), missing.path as *const u8, missing.errno.into());
        }
    }
    if let Some(table) = table {
        each(table, |row, shown| {
            let (row, shown) = both(row, shown);
            obey(&row, &shown);
        });
        forget(page);
    }
    let (start, len) = (
        page.api_long(offset_of!(Api, missing)).swap(0, Ordering::AcqRel),
        page.api_long(offset_of!(Api, missing_len)).swap(0, Ordering::AcqRel),
    );
    missing.store(0, Ordering::Release);
    if len != 0 {
        sys::unmap(start, len);
    }
}

fn obey(row: &Row, shown: &Shown) {
    if row.treatment == IGNORE {
        if shown.treatment != IGNORE {
            sys::close(row.fd.into());
        }
        return;
    }
    if row.regular.is_null() {
        if shown.treatment == IGNORE {
            say(b"ckpt: cannot restart: a callback asks to restore descriptor ");
            say_number(row.fd as u64);
            say(b", which is no regular file; set its treatment to CKPT_FD_IGNORE\n");
            sys::exit_group(125);
        }
        return;
    }
    // SAFETY: the struct is in our own table.
    let regular = unsafe { row.regular.read() };
    if !changed(&regular, shown) {
        return;
    }
    if hash(regular.path) != shown.path || regular.mode != shown.mode {
        let opened = sys::open(regular.path as u64, regular.mode as u64, 0o666);
        if opened < 0 {
            give_up(row.fd as u64, regular.path, opened.wrapping_neg());
        }
        if opened != i64::from(row.fd) {
            let flags = if shown.cloexec != 0 { sys::CLOEXEC } else { 0 };
            sys::duplicate(opened, row.fd as u64, flags);
            sys::close(opened);
        } else {
            sys::set_close_on_exec(opened, shown.cloexec);
        }
    }
    let moved = sys::seek(row.fd.into(), regular.offset);
    if moved < 0 {
        give_up(row.fd as u64, regular.path, moved.wrapping_neg());
    }
}

pub(crate) fn say_number(number: u64) {
    let mut buffer = [0u8; 32];
    let text = crate::spawn::decimal(number, &mut buffer, b"") as *const u8;
    say_text(text);
}

/// Writes a C string on standard error.
pub(crate) fn say_text(text: *const u8) {
    let mut len = 0usize;
    // SAFETY: a C string.
    while !text.is_null() && unsafe { text.wrapping_add(len).read() } != 0 {
        len = len.wrapping_add(1);
    }
    sys::write_all(2, text, len);
}

fn give_up(fd: u64, path: *const u8, errno: i64) -> ! {
    say(b"ckpt: cannot restart: descriptor ");
    say_number(fd);
    say(b": cannot open ");
    say_text(path);
    say(match errno {
        errno::ENOENT => b": No such file or directory\n".as_slice(),
        errno::EACCES => b": Permission denied\n",
        errno::ENOTDIR => b": Not a directory\n",
        errno::EISDIR => b": Is a directory\n",
        errno::EROFS => b": Read-only file system\n",
        _ => b": open(2) or lseek(2) failed\n",
    });
    sys::exit_group(125)
}
