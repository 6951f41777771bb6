// SPDX-License-Identifier: LGPL-2.1-only
//! Functions of the program that are called around checkpoints.
//!
//! # Safety
//! The table is private memory of this process that only grows: a pair is whole once its function
//! is stored, which happens last.
#![allow(unsafe_code)]

use crate::control::Page;
use crate::{files, sys};
use ckpt_abi::api::{Api, CALLBACKS, When};
use ckpt_abi::errno;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

const PAIR: u64 = 16;
const KINDS: u64 = 3;

fn count(page: Page, when: When) -> u32 {
    let offset = offset_of!(Api, counts).wrapping_add((when as usize).wrapping_mul(4));
    page.api(offset).load(Ordering::Acquire).min(CALLBACKS)
}

/// Whether any function is registered for this.
pub(crate) fn any(page: Page, when: When) -> bool {
    count(page, when) != 0
}

fn word(address: u64) -> &'static AtomicU64 {
    // SAFETY: see the head of this file.
    unsafe { AtomicU64::from_ptr(address as *mut u64) }
}

/// The address of the table, mapped on first use; None without memory.
fn table(page: Page) -> Option<u64> {
    let place = page.api_long(offset_of!(Api, callbacks));
    let there = place.load(Ordering::Acquire);
    if there != 0 {
        return Some(there);
    }
    let len = u64::from(CALLBACKS).wrapping_mul(PAIR * KINDS);
    let made = sys::map(len)?;
    match place.compare_exchange(0, made, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(made),
        Err(theirs) => {
            sys::unmap(made, len);
            Some(theirs)
        }
    }
}

fn pair(table: u64, when: When, index: u32) -> u64 {
    let row = u64::from(CALLBACKS).wrapping_mul(when as u64).wrapping_add(index.into());
    table.wrapping_add(row.wrapping_mul(PAIR))
}

/// Registers `function`; 0, or the error number ENOMEM.
pub(crate) fn add(page: Page, when: When, function: u64, argument: u64) -> u32 {
    let Some(table) = table(page) else { return errno::ENOMEM as u32 };
    let offset = offset_of!(Api, counts).wrapping_add((when as usize).wrapping_mul(4));
    let next = |n: u32| (n < CALLBACKS).then(|| n.wrapping_add(1));
    let Ok(index) = page.api(offset).fetch_update(Ordering::AcqRel, Ordering::Acquire, next) else {
        return errno::ENOMEM as u32;
    };
    let pair = pair(table, when, index);
    word(pair.wrapping_add(8)).store(argument, Ordering::Release);
    word(pair).store(function, Ordering::Release);
    0
}

/// Calls the functions, in the order in which they were registered; for a restart in the reverse.
pub(crate) fn run(page: Page, when: When) {
    let count = count(page, when);
    let table = page.api_long(offset_of!(Api, callbacks)).load(Ordering::Acquire);
    let mut done = 0u32;
    while table != 0 && done < count {
        let last = count.wrapping_sub(1).wrapping_sub(done);
        let pair = pair(table, when, if when == When::Restart { last } else { done });
        let (function, argument) = (
            word(pair).load(Ordering::Acquire),
            word(pair.wrapping_add(8)).load(Ordering::Acquire),
        );
        if function != 0 {
            let function = function as *const ();
            // SAFETY: the program registered a function of this type.
            let function: extern "C" fn(u64) = unsafe { core::mem::transmute(function) };
            function(argument);
        }
        done = done.wrapping_add(1);
    }
}

/// Does once in a restarted process what is due: the callbacks, then the descriptors.
pub(crate) fn restarted(page: Page) {
    if page.api(offset_of!(Api, restart_due)).swap(0, Ordering::AcqRel) != 0 {
        run(page, When::Restart);
        files::settle(page);
    }
}
