// SPDX-License-Identifier: LGPL-2.1-only
//! Programs that a linked program spawns are equipped as well: the library names itself in
//! LD_PRELOAD, of which those that were preloaded have inherited it.
//!
//! # Safety
//! environ(7) points to an array of C strings that ends with a null pointer. It is replaced, never
//! changed: who reads it meanwhile sees the old array or the new one.
#![allow(unsafe_code)]

use crate::{clib, sys};
use core::sync::atomic::{AtomicU64, Ordering};

const VARIABLE: &[u8] = b"LD_PRELOAD=";
const LIBRARY: &[u8] = b"libckpt.so";
/// Longest path of the library.
const PATH: usize = 1024;

/// Has programs that this one spawns load the library whose first byte is at `image`.
pub(crate) fn equip(image: u64) {
    let place = clib::environment();
    if place == 0 {
        return;
    }
    // SAFETY: the C library's variable.
    let variable = unsafe { AtomicU64::from_ptr(place as *mut u64) };
    let old = variable.load(Ordering::Acquire);
    let mut path = [0u8; PATH];
    let len = own_path(image, &mut path);
    if old != 0
        && len != 0
        && let Some(new) = with(old, path.get(..len).unwrap_or_default())
    {
        variable.store(new, Ordering::Release);
    }
}

fn entry(array: u64, index: u64) -> u64 {
    // SAFETY: callers stop at the null pointer.
    unsafe { (array.wrapping_add(index.wrapping_mul(8)) as *const u64).read() }
}

fn byte(text: u64, at: u64) -> u8 {
    // SAFETY: callers stop at the final NUL.
    unsafe { (text.wrapping_add(at) as *const u8).read() }
}

fn starts_with(text: u64, prefix: &[u8]) -> bool {
    (0u64..).zip(prefix).all(|(at, wanted)| byte(text, at) == *wanted)
}

/// Whether the library is in a list that ld.so(8) reads.
fn contains(list: u64) -> bool {
    let mut at = list;
    loop {
        let end = (LIBRARY.len() as u64).wrapping_add(at);
        if starts_with(at, LIBRARY) && matches!(byte(end, 0), 0 | b':' | b' ') {
            return true;
        }
        if byte(at, 0) == 0 {
            return false;
        }
        at = at.wrapping_add(1);
    }
}

/// A new array with the library in LD_PRELOAD; None where it is there already, or without memory.
fn with(old: u64, path: &[u8]) -> Option<u64> {
    let (mut count, mut preload) = (0u64, None);
    loop {
        let text = entry(old, count);
        if text == 0 {
            break;
        }
        if preload.is_none() && starts_with(text, VARIABLE) {
            preload = Some((count, text.wrapping_add(VARIABLE.len() as u64)));
        }
        count = count.wrapping_add(1);
    }
    if preload.is_some_and(|(_, list)| contains(list)) {
        return None;
    }
    // SAFETY: a C string of the environment.
    let list = preload.map_or(0, |(_, list)| unsafe { crate::mem::strlen(list as *const u8) });
    let strings = count.wrapping_add(2).wrapping_mul(8);
    let lens = VARIABLE.len().wrapping_add(path.len()).wrapping_add(list).wrapping_add(2);
    let new = sys::map(strings.wrapping_add(lens as u64))?;
    let put = |index: u64, value: u64| {
        // SAFETY: one of the places of the new array, which has two more than the old one.
        unsafe { (new.wrapping_add(index.wrapping_mul(8)) as *mut u64).write(value) };
    };
    (0..count).for_each(|index| put(index, entry(old, index)));
    let text = new.wrapping_add(strings);
    put(preload.map_or(count, |(index, _)| index), text);
    let mut at = text;
    let mut write = |byte: u8| {
        // SAFETY: behind the array, where there is room for all that is written.
        unsafe { (at as *mut u8).write(byte) };
        at = at.wrapping_add(1);
    };
    VARIABLE.iter().chain(path).for_each(|byte| write(*byte));
    if let Some((_, list)) = preload.filter(|_| list != 0) {
        write(b':');
        let mut from = 0;
        while byte(list, from) != 0 {
            write(byte(list, from));
            from = from.wrapping_add(1);
        }
    }
    Some(new)
}

/// The file that is mapped at `image`, as /proc/self/maps says; its length, or 0 where ld.so(8) could
/// not read it in a list.
fn own_path(image: u64, path: &mut [u8; PATH]) -> usize {
    let fd = sys::open_to_read(c"/proc/self/maps");
    if fd < 0 {
        return 0;
    }
    let mut line = Line::default();
    let mut buffer = [0u8; 4096];
    let len = loop {
        let n = sys::read(fd, &mut buffer);
        let found = buffer.iter().take(n).find_map(|byte| line.take(*byte, image, path));
        if n == 0 || found.is_some() {
            break found.unwrap_or(0);
        }
    };
    sys::close(fd);
    len
}

/// How far a line of /proc/PID/maps (proc_pid_maps(5)) was read.
#[derive(Default)]
struct Line {
    /// 0: the start; 1: the end; 2: what follows; 3: the path.
    field: u8,
    number: u64,
    start: u64,
    end: u64,
    len: usize,
}

impl Line {
    /// The length of the path when the line that holds `image` is over.
    fn take(&mut self, byte: u8, image: u64, path: &mut [u8; PATH]) -> Option<usize> {
        match (self.field, byte) {
            (_, b'\n') => {
                let line = core::mem::take(self);
                return (line.start..line.end).contains(&image).then_some(line.len);
            }
            (0, b'-') => {
                (self.start, self.number, self.field) = (self.number, 0, 1);
            }
            (1, b' ') => {
                (self.end, self.field) = (self.number, 2);
            }
            (0 | 1, _) => {
                let digit = (byte as char).to_digit(16).unwrap_or(0);
                self.number = self.number << 4 | u64::from(digit);
            }
            (2, b'/') => {
                self.field = 3;
                self.keep(byte, path);
            }
            (3, _) => self.keep(byte, path),
            _ => {}
        }
        None
    }

    /// Takes a byte of the path. One with a separator in it ends up empty.
    fn keep(&mut self, byte: u8, path: &mut [u8; PATH]) {
        match path.get_mut(self.len) {
            Some(place) if !matches!(byte, b' ' | b':') => {
                *place = byte;
                self.len = self.len.wrapping_add(1);
            }
            _ => (self.field, self.len) = (4, 0),
        }
    }
}
