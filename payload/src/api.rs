// SPDX-License-Identifier: LGPL-2.1-only
//! The functions of ckpt.h. They run where the dynamic loader has put this object, and work on the
//! payload in the region.
//!
//! Those that the manual of the original declares as void say on standard error what is wrong; the
//! ckpt_try_ functions do the same work and return it.
//!
//! # Safety
//! Pointers come from the program as ckpt.h asks for them.
#![allow(unsafe_code)]

use crate::control::Page;
use crate::{assist, callbacks, clib, exclude, files, spawn, sys, trigger, turns};
use ckpt_abi::api::{Answer, Api, ERROR_LEN, Request, When, config_bit};
use ckpt_abi::errno;
use ckpt_abi::region::{Control, NAME_LEN};
use core::mem::offset_of;
use core::sync::atomic::Ordering;

const EDEADLK: u32 = errno::EDEADLK as u32;
const EINVAL: u32 = errno::EINVAL as u32;
const ENOMEM: u32 = errno::ENOMEM as u32;
const ENOSYS: u32 = errno::ENOSYS as u32;
const EPERM: u32 = errno::EPERM as u32;

/// struct ckptconfig.
#[repr(C)]
struct CkptConfig {
    flags: u32,
    name: [u8; NAME_LEN],
    asyncsig: u32,
    continues: u32,
    msperiod: u32,
}

/// struct ckptinfo.
#[repr(C)]
struct CkptInfo {
    generation: u64,
    restarted: i32,
    error: [u8; ERROR_LEN],
}

/// struct ckptgiven.
#[repr(C)]
struct CkptGiven {
    argc: i32,
    argv: u64,
    env: u64,
}

/// As in ckpt.h.
const _: () = {
    assert!(size_of::<CkptConfig>() == 4112 && offset_of!(CkptConfig, asyncsig) == 4100);
    assert!(size_of::<CkptInfo>() == 528 && offset_of!(CkptInfo, error) == 12);
};

/// Keeps the text of an error for ckpt_info(); its number.
fn refuse(page: Page, errno: u32, text: &[u8]) -> u32 {
    page.set_error(text);
    errno
}

/// Says why a call of this name has failed, where its caller cannot see it.
fn report(name: &[u8], result: i32) {
    if result >= 0 {
        return;
    }
    trigger::say(b"ckpt: ");
    trigger::say(name);
    trigger::say(b": ");
    match Page::find() {
        Some(page) => files::say_text(page.error() as *const u8),
        None => trigger::say(b"there is no room for ckpt in this process"),
    }
    trigger::say(b"\n");
}

/// Works on the region, or fails with ENOSYS where there is none.
fn with(work: impl FnOnce(Page) -> u32) -> i32 {
    clib::fail(Page::find().map_or(ENOSYS, work))
}

fn register(when: When, function: u64, argument: u64) -> i32 {
    with(|page| {
        if function == 0 {
            return refuse(page, EINVAL, b"a callback cannot be NULL");
        }
        match callbacks::add(page, when, function, argument) {
            0 => 0,
            errno => refuse(
                page,
                errno,
                b"no room for more callbacks, of which 1024 of a kind are possible",
            ),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_try_on_preckpt(function: u64, argument: u64) -> i32 {
    register(When::Before, function, argument)
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_on_preckpt(function: u64, argument: u64) {
    report(b"ckpt_on_preckpt", register(When::Before, function, argument));
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_try_on_postckpt(function: u64, argument: u64) -> i32 {
    register(When::After, function, argument)
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_on_postckpt(function: u64, argument: u64) {
    report(b"ckpt_on_postckpt", register(When::After, function, argument));
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_try_on_restart(function: u64, argument: u64) -> i32 {
    register(When::Restart, function, argument)
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_on_restart(function: u64, argument: u64) {
    report(b"ckpt_on_restart", register(When::Restart, function, argument));
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_hold() -> i32 {
    with(|page| {
        assist::hold(page);
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_release() -> i32 {
    with(|page| match assist::release(page) {
        true => 0,
        false => refuse(page, EPERM, b"ckpt_release without a ckpt_hold"),
    })
}

fn ranges(page: Page, errno: u32) -> u32 {
    match errno {
        0 => 0,
        ENOMEM => {
            refuse(page, errno, b"no room for more excluded ranges, of which 128 are possible")
        }
        errno => refuse(page, errno, b"the range is empty or does not fit into memory"),
    }
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_exclude(address: u64, len: u64) -> i32 {
    with(|page| ranges(page, exclude::exclude(page, address, len)))
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_include(address: u64, len: u64) -> i32 {
    with(|page| ranges(page, exclude::include(page, address, len)))
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_info(to: *mut CkptInfo) -> i32 {
    with(|page| {
        if to.is_null() {
            return refuse(page, EINVAL, b"ckpt_info(NULL)");
        }
        let generation = page.control_long(offset_of!(Control, generation));
        let restarted = page.api(offset_of!(Api, restarted)).load(Ordering::Acquire);
        let from = page.error() as *const u8;
        // SAFETY: the program's struct.
        let error = unsafe { (&raw mut (*to).error).cast::<u8>() };
        // SAFETY: the text is only ever replaced by one that ends in the field too.
        unsafe { core::ptr::copy_nonoverlapping(from, error, ERROR_LEN) };
        // SAFETY: the program's struct.
        unsafe { (*to).generation = generation };
        // SAFETY: as above.
        unsafe { (*to).restarted = restarted as i32 };
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_given(to: *mut CkptGiven) -> i32 {
    with(|page| {
        if to.is_null() {
            return refuse(page, EINVAL, b"ckpt_given(NULL)");
        }
        let word = |at: usize| {
            page.api_long(offset_of!(Api, given).wrapping_add(at)).load(Ordering::Acquire)
        };
        let given = CkptGiven { argc: word(0) as i32, argv: word(8), env: word(16) };
        // SAFETY: the program's struct.
        unsafe { to.write(given) };
        0
    })
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_config(new: *const CkptConfig, old: *mut CkptConfig) {
    report(b"ckpt_config", ckpt_try_config(new, old));
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_try_config(new: *const CkptConfig, old: *mut CkptConfig) -> i32 {
    with(|page| {
        if !old.is_null() {
            current(page, old);
        }
        if new.is_null() {
            return 0;
        }
        let field = |offset: usize| {
            let at = new.cast::<u8>().wrapping_add(offset).cast::<u32>();
            // SAFETY: a word of the program's struct.
            unsafe { at.read() }
        };
        let flags = field(offset_of!(CkptConfig, flags));
        let values = [
            flags,
            field(offset_of!(CkptConfig, asyncsig)),
            field(offset_of!(CkptConfig, continues)),
            field(offset_of!(CkptConfig, msperiod)),
        ];
        if flags == 0 {
            return 0;
        }
        let named = flags & config_bit::NAME != 0;
        let there = new.cast::<u8>().wrapping_add(offset_of!(CkptConfig, name));
        let name = if named { there } else { core::ptr::null() };
        // SAFETY: as above.
        if named && !(0..NAME_LEN).any(|i| unsafe { name.wrapping_add(i).read() } == 0) {
            return refuse(page, EINVAL, b"the checkpoint name has no end");
        }
        assist::configure(page, Request::Configure, values, name)
    })
}

fn current(page: Page, to: *mut CkptConfig) {
    let word = |offset: usize| page.control(offset).load(Ordering::Acquire);
    let all = config_bit::NAME | config_bit::ASYNCSIG | config_bit::CONTINUE | config_bit::MSPERIOD;
    let values = [
        all,
        word(offset_of!(Control, config.asyncsig)),
        word(offset_of!(Control, config.continues)),
        word(offset_of!(Control, config.msperiod)),
    ];
    let offsets = [
        offset_of!(CkptConfig, flags),
        offset_of!(CkptConfig, asyncsig),
        offset_of!(CkptConfig, continues),
        offset_of!(CkptConfig, msperiod),
    ];
    for (value, offset) in values.into_iter().zip(offsets) {
        // SAFETY: the program's struct.
        unsafe { to.cast::<u8>().wrapping_add(offset).cast::<u32>().write(value) };
    }
    let name = to.cast::<u8>().wrapping_add(offset_of!(CkptConfig, name));
    // SAFETY: as above.
    unsafe { core::ptr::copy_nonoverlapping(page.config_name(), name, NAME_LEN) };
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_fds() -> u64 {
    let Some(page) = Page::find() else {
        clib::fail(ENOSYS);
        return 0;
    };
    let table = files::table(page);
    if table == 0 {
        clib::fail(refuse(page, ENOMEM, b"no memory for the table of descriptors"));
    }
    table
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_ckpt(name: *const u8) -> i32 {
    let Some(page) = Page::find() else { return clib::fail(ENOSYS) };
    if !turns::is_owner(page) {
        return clib::fail(refuse(
            page,
            EDEADLK,
            b"ckpt_ckpt in a child that shares its parent's memory",
        ));
    }
    if !lock(page) {
        return clib::fail(refuse(page, EDEADLK, b"ckpt_ckpt in a callback of ckpt_ckpt"));
    }
    files::keep(page);
    callbacks::run(page, When::Before);
    let mask = sys::set_mask(u64::MAX);
    trigger::claim_patiently(page);
    assist::set_name(page, name);
    page.api(offset_of!(Api, request)).store(Request::Call as u32, Ordering::Release);
    page.target().store(sys::getpid(), Ordering::Release);
    spawn::dumper(page);
    let answer = trigger::await_answer(page);
    let errno = page.api(offset_of!(Api, errno)).load(Ordering::Acquire);
    trigger::unclaim(page);
    sys::set_mask(mask);
    page.api(offset_of!(Api, lock_thread)).store(sys::gettid(), Ordering::Release);
    match answer {
        Answer::Done => callbacks::run(page, When::After),
        Answer::Restarted => callbacks::restarted(page),
        Answer::None | Answer::Failed => {}
    }
    page.api(offset_of!(Api, lock)).store(0, Ordering::Release);
    match answer {
        Answer::Done => 0,
        Answer::Restarted => 1,
        Answer::None | Answer::Failed => clib::fail(errno.max(1)),
    }
}

/// Waits for other threads in ckpt_ckpt(); false for a callback that calls it.
fn lock(page: Page) -> bool {
    let (word, thread) = (page.api(offset_of!(Api, lock)), page.api(offset_of!(Api, lock_thread)));
    loop {
        let (holder, own) = (word.load(Ordering::Acquire), sys::getpid());
        if holder == own {
            if thread.load(Ordering::Acquire) == sys::gettid() {
                return false;
            }
            sys::futex_wait(word.as_ptr(), holder, 1_000_000);
            continue;
        }
        // Free, or held by a thread of the process that this one was forked from.
        if word.compare_exchange(holder, own, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            thread.store(sys::gettid(), Ordering::Release);
            return true;
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_restart(name: *const u8) {
    report(b"ckpt_restart", ckpt_try_restart(name));
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_try_restart(name: *const u8) -> i32 {
    with(|page| match name.is_null() {
        true => refuse(page, EINVAL, b"ckpt_restart(NULL)"),
        false => assist::restart(page, name),
    })
}
