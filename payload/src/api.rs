//! The functions of ckpt.h. They run where the dynamic loader has put this object, and work on the
//! payload in the region.
//!
//! # Safety
//! Pointers come from the program as ckpt.h asks for them.
#![allow(unsafe_code)]

use crate::control::Page;
use crate::{assist, callbacks, clib, exclude, files, spawn, sys, trigger};
use ckpt_abi::api::{Answer, Api, ERROR_LEN, Request, When, config_bit};
use ckpt_abi::region::{Control, NAME_LEN};
use core::mem::offset_of;
use core::sync::atomic::Ordering;

const EDEADLK: u32 = 35;
const EINVAL: u32 = 22;
const ENOMEM: u32 = 12;
const ENOSYS: u32 = 38;
const EPERM: u32 = 1;

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

/// Works on the region, or fails with ENOSYS where there is none.
fn with(work: impl FnOnce(Page) -> u32) -> i32 {
    clib::fail(Page::find().map_or(ENOSYS, work))
}

fn register(when: When, function: u64, argument: u64) -> i32 {
    with(|page| if function == 0 { EINVAL } else { callbacks::add(page, when, function, argument) })
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_on_preckpt(function: u64, argument: u64) -> i32 {
    register(When::Before, function, argument)
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_on_postckpt(function: u64, argument: u64) -> i32 {
    register(When::After, function, argument)
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_on_restart(function: u64, argument: u64) -> i32 {
    register(When::Restart, function, argument)
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
    with(|page| if assist::release(page) { 0 } else { EPERM })
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_exclude(address: u64, len: u64) -> i32 {
    with(|page| exclude::exclude(page, address, len))
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_include(address: u64, len: u64) -> i32 {
    with(|page| exclude::include(page, address, len))
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_info(to: *mut CkptInfo) -> i32 {
    with(|page| {
        if to.is_null() {
            return EINVAL;
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
extern "C" fn ckpt_config(new: *const CkptConfig, old: *mut CkptConfig) -> i32 {
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
            return EINVAL;
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
        clib::fail(ENOMEM);
    }
    table
}

#[unsafe(no_mangle)]
extern "C" fn ckpt_ckpt(name: *const u8) -> i32 {
    let Some(page) = Page::find() else { return clib::fail(ENOSYS) };
    if !lock(page) {
        return clib::fail(EDEADLK);
    }
    files::forget(page, true);
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
    if answer == Answer::Done as u32 {
        callbacks::run(page, When::After);
    } else if answer == Answer::Restarted as u32 {
        callbacks::restarted(page);
    }
    page.api(offset_of!(Api, lock)).store(0, Ordering::Release);
    match answer {
        a if a == Answer::Done as u32 => 0,
        a if a == Answer::Restarted as u32 => 1,
        _ => clib::fail(errno.max(1)),
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
extern "C" fn ckpt_restart(name: *const u8) -> i32 {
    let Some(page) = Page::find() else { return clib::fail(ENOSYS) };
    if name.is_null() {
        return clib::fail(EINVAL);
    }
    let errno = assist::inspect(page, name);
    if errno != 0 {
        return clib::fail(errno);
    }
    clib::fail(spawn::restart(name).wrapping_neg() as u32)
}
