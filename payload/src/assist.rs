// SPDX-License-Identifier: LGPL-2.1-only
//! What the C API leaves to a process of ours: reading configurations and looking at checkpoints.
//!
//! The assistant is started as a dumper is, works through the memory of this process, and answers
//! in the API's part of the region.
//!
//! # Safety
//! The name's field is written by the one who has claimed the payload.
#![allow(unsafe_code)]

use crate::control::Page;
use crate::{signals, spawn, sys, trigger};
use ckpt_abi::api::{Answer, Api, Request};
use ckpt_abi::region::{Control, NAME_LEN};
use core::mem::offset_of;
use core::sync::atomic::Ordering;

/// Starts the assistant and waits for it; 0 or a positive error number. `then` looks at what it
/// has left in the region.
fn ask(page: Page, request: Request, name: *const u8, then: impl FnOnce()) -> u32 {
    hold(page);
    let mask = sys::set_mask(u64::MAX);
    trigger::claim_patiently(page);
    set_name(page, name);
    page.api(offset_of!(Api, request)).store(request as u32, Ordering::Release);
    page.target().store(sys::getpid(), Ordering::Release);
    spawn::dumper(page);
    let answer = trigger::await_answer(page);
    let errno = page.api(offset_of!(Api, errno)).load(Ordering::Acquire);
    then();
    trigger::unclaim(page);
    sys::set_mask(mask);
    release(page);
    if answer == Answer::Failed { errno.max(1) } else { 0 }
}

/// Lets go on what the checkpoint signal has stopped in other processes, where no dumper has come of it that does so: it
/// was killed, or another was at work already.
pub(crate) fn rescue(page: Page) {
    /// SIGTSTP, SIGTTIN and SIGTTOU.
    const STOPS: core::ops::RangeInclusive<u32> = 20..=22;
    let signal = page.control(offset_of!(Control, config.asyncsig)).load(Ordering::Acquire);
    if STOPS.contains(&signal) {
        ask(page, Request::Rescue, core::ptr::null(), || {});
    }
}

/// Becomes the checkpoint `name`; an error number where that is impossible. The assistant looks at
/// it before anything is lost, and says which file to execute.
pub(crate) fn restart(page: Page, name: *const u8) -> u32 {
    let mut path = [0u8; NAME_LEN];
    let errno = ask(page, Request::Inspect, name, || {
        // SAFETY: the field of that length, which the assistant has written.
        path = unsafe { page.api_name().cast::<[u8; NAME_LEN]>().read() };
    });
    match errno {
        0 => {
            let failed = spawn::restart(path.as_ptr() as u64);
            page.set_error(b"the checkpoint cannot be executed");
            failed.wrapping_neg() as u32
        }
        errno => errno,
    }
}

/// Reads the environment, or checks and takes over `values` and `name`; 0 or a positive error
/// number.
///
/// What is wrong in an environment leaves the rest of it in force.
pub(crate) fn configure(
    page: Page,
    request: Request,
    mut values: [u32; 4],
    name: *const u8,
) -> u32 {
    let current = page.control(offset_of!(Control, config.asyncsig));
    let partly = request == Request::Environment;
    if partly {
        values[1] = current.load(Ordering::Acquire);
    }
    for (i, value) in values.iter().enumerate() {
        let offset = offset_of!(Api, values).wrapping_add(i.wrapping_mul(4));
        page.api(offset).store(*value, Ordering::Release);
    }
    let mask = sys::set_mask(u64::MAX);
    let errno = ask(page, request, name, || {});
    let signal = page.api(offset_of!(Api, values) + 4).load(Ordering::Acquire);
    if (errno == 0 || partly) && signal != current.load(Ordering::Acquire) {
        let before = signals::Disposition::of(page);
        current.store(signal, Ordering::Release);
        signals::take(page);
        before.give_back();
    }
    sys::set_mask(mask);
    errno
}

/// Puts a C string, or the empty one for null, into [`Api::name`].
pub(crate) fn set_name(page: Page, name: *const u8) {
    let to = page.api_name();
    let mut at = 0usize;
    while at < NAME_LEN - 1 && !name.is_null() {
        // SAFETY: the caller of the API gave a C string, which has not ended yet.
        let byte = unsafe { name.wrapping_add(at).read() };
        if byte == 0 {
            break;
        }
        // SAFETY: inside the field.
        unsafe { to.wrapping_add(at).write(byte) };
        at = at.wrapping_add(1);
    }
    // SAFETY: inside the field.
    unsafe { to.wrapping_add(at).write(0) };
}

/// No asynchronous checkpoint until the matching [`release`].
pub(crate) fn hold(page: Page) {
    page.api(offset_of!(Api, holds)).fetch_add(1, Ordering::AcqRel);
}

/// Ends a [`hold`] and takes the checkpoint that was asked for meanwhile; false without a hold.
pub(crate) fn release(page: Page) -> bool {
    let holds = page.api(offset_of!(Api, holds));
    let less = |n: u32| n.checked_sub(1);
    let Ok(before) = holds.fetch_update(Ordering::AcqRel, Ordering::Acquire, less) else {
        return false;
    };
    if before == 1 && page.api(offset_of!(Api, pending)).swap(0, Ordering::AcqRel) != 0 {
        let mask = sys::set_mask(u64::MAX);
        trigger::checkpoint(page, false);
        sys::set_mask(mask);
    }
    true
}
