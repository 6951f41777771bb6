// SPDX-License-Identifier: LGPL-2.1-only
//! Memory that checkpoints leave out.
//!
//! The ranges lie in the region, where the dumper reads them. A spinning word guards them: what is
//! done under it takes no longer than a look at each.

use crate::control::Page;
use crate::sys;
use ckpt_abi::api::{Api, EXCLUDED};
use ckpt_abi::errno;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

const ENOMEM: u32 = errno::ENOMEM as u32;
const EINVAL: u32 = errno::EINVAL as u32;

fn slot(page: Page, index: usize) -> [&'static AtomicU64; 2] {
    let offset = offset_of!(Api, excluded).wrapping_add(index.wrapping_mul(16));
    [page.api_long(offset), page.api_long(offset.wrapping_add(8))]
}

fn range(page: Page, index: usize) -> (u64, u64) {
    let [start, end] = slot(page, index);
    (start.load(Ordering::Acquire), end.load(Ordering::Acquire))
}

fn set(page: Page, index: usize, start: u64, end: u64) {
    let [from, to] = slot(page, index);
    // Empty while it changes: a dump in between leaves nothing out that it should not.
    to.store(0, Ordering::Release);
    from.store(start, Ordering::Release);
    to.store(end, Ordering::Release);
}

/// Works while no other thread does under the same lock, a word of [`Api`] at `offset`, with all
/// signals blocked.
pub(crate) fn alone<T>(page: Page, offset: usize, work: impl FnOnce() -> T) -> T {
    let mask = sys::set_mask(u64::MAX);
    let word = page.api(offset);
    let own = sys::getpid();
    loop {
        let holder = word.load(Ordering::Acquire);
        // A forked child may have inherited another thread's lock.
        let free = holder == 0 || holder != own;
        if free && word.compare_exchange(holder, own, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            break;
        }
        sys::futex_wait(word.as_ptr(), own, 100_000);
    }
    let result = work();
    word.store(0, Ordering::Release);
    sys::set_mask(mask);
    result
}

fn locked(page: Page, work: impl FnOnce() -> u32) -> u32 {
    alone(page, offset_of!(Api, exclude_lock), work)
}

fn put(page: Page, start: u64, end: u64) -> u32 {
    let empty = (0..EXCLUDED).find(|i| {
        let (start, end) = range(page, *i);
        start >= end
    });
    match empty {
        Some(index) => {
            set(page, index, start, end);
            0
        }
        None => ENOMEM,
    }
}

/// Leaves a range out; 0 or an error number.
pub(crate) fn exclude(page: Page, start: u64, len: u64) -> u32 {
    match start.checked_add(len) {
        Some(end) if len != 0 => locked(page, || put(page, start, end)),
        _ => EINVAL,
    }
}

/// Takes a range in again, whatever had excluded it; 0 or an error number.
pub(crate) fn include(page: Page, start: u64, len: u64) -> u32 {
    let Some(end) = start.checked_add(len).filter(|_| len != 0) else { return EINVAL };
    locked(page, || {
        let mut result = 0;
        for index in 0..EXCLUDED {
            let (from, to) = range(page, index);
            if from >= to || from >= end || to <= start {
                continue;
            }
            set(page, index, from, start.min(to).max(from));
            if to > end {
                if from >= start {
                    set(page, index, end, to);
                } else {
                    result = put(page, end, to);
                }
            }
        }
        result
    })
}
