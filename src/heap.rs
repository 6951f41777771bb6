// SPDX-License-Identifier: LGPL-2.1-only
//! The allocator: the C library's, with a few blocks of each size kept for the next who needs one.
//!
//! musl maps a block of some kilobytes by itself and unmaps it when it is given back. A checkpoint reads hundreds of small
//! files for each process, each into such a block: two system calls and a page fault or more for nothing.
//!
//! # Safety
//! A block is in at most one place: whoever takes it out of its place has it alone (an atomic swap), and it was made with
//! the very layout that its size class has.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The smallest size that is kept, as a power of two, and how many such powers are.
const FIRST: u32 = 9;
const CLASSES: usize = 9;
/// How many blocks of each size.
const KEPT: usize = 4;
/// All blocks are aligned so.
const ALIGN: usize = 16;

struct Heap {
    kept: [[AtomicPtr<u8>; KEPT]; CLASSES],
}

#[global_allocator]
static HEAP: Heap =
    Heap { kept: [const { [const { AtomicPtr::new(null_mut()) }; KEPT] }; CLASSES] };

/// The class of a layout, and the layout that all of its blocks have.
fn class(layout: Layout) -> Option<(usize, Layout)> {
    let size = layout.size().next_power_of_two();
    let class = size.trailing_zeros().checked_sub(FIRST)? as usize;
    let whole = Layout::from_size_align(size, ALIGN).ok()?;
    (class < CLASSES && layout.align() <= ALIGN).then_some((class, whole))
}

// SAFETY: blocks come from the system's allocator with the layout of their class, and only with that go back.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((class, whole)) = class(layout) else {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc(layout) };
        };
        let kept = self.kept[class].iter();
        let taken = kept.map(|place| place.swap(null_mut(), Ordering::Acquire));
        match taken.into_iter().find(|block| !block.is_null()) {
            Some(block) => block,
            // SAFETY: it is not smaller than the caller's, who has promised that that is not empty.
            None => unsafe { System.alloc(whole) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if class(layout).is_none() {
            // What is mapped for a large block is zero, and costs nothing before somebody writes to it.
            // SAFETY: the caller's promise.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: the caller's promise.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: the block has so many bytes, and nobody else has it.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some((class, whole)) = class(layout) else {
            // SAFETY: the caller's promise.
            return unsafe { System.dealloc(block, layout) };
        };
        for place in &self.kept[class] {
            let (success, failure) = (Ordering::Release, Ordering::Relaxed);
            if place.compare_exchange(null_mut(), block, success, failure).is_ok() {
                return;
            }
        }
        // SAFETY: it was made with this layout, and the caller uses it no more.
        unsafe { System.dealloc(block, whole) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(size, layout.align()) else { return null_mut() };
        match (class(layout), class(new)) {
            (Some((old, _)), Some((class, _))) if old == class => block,
            // SAFETY: the caller's promise; neither is of a class.
            (None, None) => unsafe { System.realloc(block, layout, size) },
            _ => {
                // SAFETY: as the caller has promised of `size`.
                let moved = unsafe { self.alloc(new) };
                if !moved.is_null() {
                    let len = layout.size().min(size);
                    // SAFETY: both have so many bytes, and nobody else has either.
                    unsafe { std::ptr::copy_nonoverlapping(block, moved, len) };
                    // SAFETY: the caller's promise.
                    unsafe { self.dealloc(block, layout) };
                }
                moved
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn blocks_keep_what_is_in_them() {
        std::thread::scope(|scope| {
            for seed in 0..4u32 {
                scope.spawn(move || {
                    let mut all: Vec<Vec<u32>> = Vec::new();
                    for round in 0..2000u32 {
                        let len = (round * 37 + seed * 101) % 9000;
                        let mut block = Vec::new();
                        (0..len).for_each(|i| block.push(i ^ seed ^ round));
                        assert!((0..).zip(&block).all(|(i, word)| *word == i ^ seed ^ round));
                        all.push(block);
                        if all.len() > 7 {
                            all.swap_remove((round % 7) as usize);
                        }
                    }
                });
            }
        });
    }
}
