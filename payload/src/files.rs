//! The table of descriptors that the C API shows (ckpt_fds), and what its changes mean after a
//! restart.
//!
//! When the restart callbacks run, the host has opened again what it could, and says which files
//! it could not ([`Missing`]). What the callbacks then want otherwise is done here.
//!
//! # Safety
//! The table is memory of our own; its rows are those of the C structs in ckpt.h, and what the
//! program may write there is only compared, or given to the kernel, which answers EFAULT where
//! nothing is.
#![allow(unsafe_code)]

use crate::control::Page;
use crate::trigger::say;
use crate::{clib, sys};
use ckpt_abi::api::{Api, Missing};
use core::mem::offset_of;
use core::sync::atomic::Ordering;

const IGNORE: i32 = 0;
const RESTORE: i32 = 1;

const REGULAR: i32 = 1;
const DIRECTORY: i32 = 2;
const TERMINAL: i32 = 3;
const DEVICE: i32 = 4;
const PIPE: i32 = 5;
const SOCKET: i32 = 6;
const UNNAMED: i32 = 7;
const OTHER: i32 = 8;

const OPEN: u64 = 257;
const LSEEK: u64 = 8;
const FCNTL: u64 = 72;
const DUP3: u64 = 292;
const CLOEXEC: u64 = 0o2_000_000;
const AT_FDCWD: u64 = -100i64 as u64;
const SCRATCH: u64 = 16 << 10;

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

/// struct regular.
#[repr(C)]
#[derive(Clone, Copy)]
struct Regular {
    path: *mut u8,
    mode: i32,
    offset: i64,
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
}

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

/// Forgets the table; its paths are the program's memory and freed only where that is safe.
pub fn forget(page: Page, free: bool) {
    let Some(table) = Table::of(page) else { return };
    page.api_long(offset_of!(Api, table)).store(0, Ordering::Release);
    if free {
        each(table, |row, _| {
            // SAFETY: the row is ours.
            let row = unsafe { row.read() };
            if !row.regular.is_null() {
                // SAFETY: the structs of our own table.
                clib::free(unsafe { (*row.regular).path } as u64);
            }
        });
    }
    // SAFETY: the table is ours.
    sys::unmap(table as u64, unsafe { (*table).len });
}

/// ckpt_fds(): a new table, or null without memory. What callbacks have changed before stays.
pub fn table(page: Page) -> u64 {
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
    descriptors(scratch, |fd| add(table, describe(fd, scratch.wrapping_add(SCRATCH / 2)), old));
    for index in 0..missing {
        let missing = missing_at(page, index);
        let path = duplicate(missing.path as *const u8, usize::MAX);
        let regular = Regular { path, mode: missing.flags as i32, offset: missing.position as i64 };
        add(table, (missing.fd as i32, REGULAR, regular, missing.flags, missing.cloexec), old);
    }
    if old.is_some() {
        forget(page, false);
    }
    page.api_long(offset_of!(Api, table)).store(made, Ordering::Release);
    sys::unmap(scratch, SCRATCH);
    made
}

fn missing_at(page: Page, index: u64) -> Missing {
    let start = page.api_long(offset_of!(Api, missing)).load(Ordering::Acquire);
    let at = (start as *const Missing).wrapping_add(index as usize);
    // SAFETY: the host has written that many.
    unsafe { at.read() }
}

type Description = (i32, i32, Regular, u32, u32);

/// Adds a row, with what the program had changed in its old one.
fn add(
    table: *mut Table,
    (fd, kind, regular, flags, cloexec): Description,
    old: Option<*mut Table>,
) {
    // SAFETY: the table is ours.
    let count = unsafe { (*table).count };
    let capacity = capacity(table);
    if u64::from(count) >= capacity {
        return;
    }
    let (row, place, shown) = room(table as u64, capacity, count.into());
    let treatment = match kind {
        SOCKET | OTHER if fd > 2 => IGNORE,
        _ => RESTORE,
    };
    let regular_at = if kind == REGULAR { place } else { core::ptr::null_mut() };
    let mut first = Shown {
        treatment,
        mode: regular.mode,
        offset: regular.offset,
        path: hash(regular.path),
        flags,
        cloexec,
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

/// FNV-1a of a C string, by which a path that was overwritten in place is recognised too.
fn hash(path: *const u8) -> u64 {
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
fn duplicate(text: *const u8, most: usize) -> *mut u8 {
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
fn descriptors(scratch: u64, mut visit: impl FnMut(i32)) {
    const GETDENTS: u64 = 217;
    const DIRECTORY: u64 = 0o200_000;
    let path = c"/proc/self/fd".as_ptr() as u64;
    // SAFETY: opens a directory.
    let list = unsafe { sys::call(OPEN, &[AT_FDCWD, path, CLOEXEC | DIRECTORY, 0, 0, 0]) };
    if list < 0 {
        return;
    }
    loop {
        // SAFETY: the kernel fills half of the scratch memory.
        let n = unsafe { sys::call(GETDENTS, &[list as u64, scratch, SCRATCH / 2, 0, 0, 0]) };
        if n <= 0 {
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

fn describe(fd: i32, scratch: u64) -> Description {
    const READLINK: u64 = 267;
    const FSTAT: u64 = 5;
    const IOCTL: u64 = 16;
    const TCGETS: u64 = 0x5401;
    const F_GETFD: u64 = 1;
    const F_GETFL: u64 = 3;
    const LARGEFILE: u64 = 0o100_000;
    let number = fd as u64;
    let call = |nr: u64, a: u64, b: u64| {
        // SAFETY: looks at a descriptor; what is written goes to the scratch memory.
        unsafe { sys::call(nr, &[number, a, b, 0, 0, 0]) }
    };
    let mut stat = [0u64; 18];
    call(FSTAT, (&raw mut stat) as u64, 0);
    let kind = match (stat[3] as u32 & 0o170_000, stat[2]) {
        (0o100_000, 0) => UNNAMED,
        (0o100_000, _) => REGULAR,
        (0o040_000, _) => DIRECTORY,
        (0o020_000, _) if call(IOCTL, TCGETS, scratch) == 0 => TERMINAL,
        (0o020_000 | 0o060_000, _) => DEVICE,
        (0o010_000, _) => PIPE,
        (0o140_000, _) => SOCKET,
        _ => OTHER,
    };
    let flags = call(FCNTL, F_GETFL, 0) as u64 & !LARGEFILE;
    let cloexec = call(FCNTL, F_GETFD, 0) as u32 & 1;
    let mut regular = Regular { path: core::ptr::null_mut(), mode: flags as i32, offset: 0 };
    if kind == REGULAR {
        let mut name = [0u8; 32];
        let link = crate::spawn::decimal(number, &mut name, b"/proc/self/fd/");
        // SAFETY: the kernel fills the other half of the scratch memory.
        let len = unsafe { sys::call(READLINK, &[AT_FDCWD, link, scratch, SCRATCH / 2, 0, 0]) };
        regular.path = duplicate(scratch as *const u8, if len > 0 { len as usize } else { 0 });
        regular.offset = call(LSEEK, 0, 1);
    }
    (fd, kind, regular, flags as u32, cloexec)
}

/// Does what the table says, and ends the program with a sentence where that is impossible.
pub fn settle(page: Page) {
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
        forget(page, false);
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
        let args = [AT_FDCWD, regular.path as u64, regular.mode as u64 | CLOEXEC, 0o666, 0, 0];
        // SAFETY: opens the file that the program names.
        let opened = unsafe { sys::call(OPEN, &args) };
        if opened < 0 {
            give_up(row.fd as u64, regular.path, opened.wrapping_neg());
        }
        if opened != i64::from(row.fd) {
            let flags = if shown.cloexec != 0 { CLOEXEC } else { 0 };
            // SAFETY: the number is the program's for this file.
            unsafe { sys::call(DUP3, &[opened as u64, row.fd as u64, flags, 0, 0, 0]) };
            sys::close(opened);
        } else {
            // SAFETY: F_SETFD on the descriptor just opened.
            unsafe { sys::call(FCNTL, &[opened as u64, 2, shown.cloexec.into(), 0, 0, 0]) };
        }
    }
    // SAFETY: moves the offset of the program's file to where the program wants it.
    let moved = unsafe { sys::call(LSEEK, &[row.fd as u64, regular.offset as u64, 0, 0, 0, 0]) };
    if moved < 0 {
        give_up(row.fd as u64, regular.path, moved.wrapping_neg());
    }
}

fn say_number(number: u64) {
    let mut buffer = [0u8; 32];
    let text = crate::spawn::decimal(number, &mut buffer, b"") as *const u8;
    say_text(text);
}

fn say_text(text: *const u8) {
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
        2 => b": No such file or directory\n".as_slice(),
        13 => b": Permission denied\n",
        20 => b": Not a directory\n",
        21 => b": Is a directory\n",
        30 => b": Read-only file system\n",
        _ => b": open(2) or lseek(2) failed\n",
    });
    sys::exit_group(125)
}
