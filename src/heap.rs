// SPDX-License-Identifier: LGPL-2.1-only
//! The allocator: the C library's, with a few blocks of each size kept for the next who needs one.
//!
//! musl maps a block of some kilobytes by itself and unmaps it when it is given back. A checkpoint reads hundreds of small
//! files for each process, each into such a block: two system calls and a page fault or more for nothing. And it has one
//! lock for all, for which threads that look at several processes wait most of the time: so small blocks come from one of
//! a few places, each thread's own as long as there are no more threads than places.
//!
//! # Safety
//! A block is in at most one place: whoever takes it out of its place has it alone (an atomic swap, or a place that is
//! locked), and it was made with the very layout that its size class has.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, UnsafeCell};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// The smallest size that is kept, as a power of two, and how many such powers are.
const FIRST: u32 = 9;
const CLASSES: usize = 9;
/// How many blocks of each size: of the smaller ones some for each of the threads that are asked abreast.
const KEPT: usize = 16;
const KEPT_OF_LARGE: usize = 4;
/// From this size on blocks are large.
const LARGE: usize = 64 << 10;
/// All blocks are aligned so.
const ALIGN: usize = 16;
/// Sizes of small blocks are multiples of [`ALIGN`] up to so many.
const SMALL: usize = 16;
const PLACES: usize = 8;
/// Small blocks are cut from pieces of so many bytes, which are never given back.
const PIECE: usize = 32 << 10;

struct Heap {
    kept: [[AtomicPtr<u8>; KEPT]; CLASSES],
    small: [Small; PLACES],
}

/// A place of small blocks. Nobody waits for it: in the child of a fork(2) it may be locked for ever.
#[repr(align(128))]
struct Small {
    locked: AtomicBool,
    blocks: UnsafeCell<Blocks>,
}

struct Blocks {
    /// By size; each begins with the address of the next.
    free: [*mut u8; SMALL],
    /// What is left of the last piece.
    piece: *mut u8,
    left: usize,
}

// SAFETY: only who has locked it looks into it.
unsafe impl Sync for Small {}

#[global_allocator]
static HEAP: Heap = Heap {
    kept: [const { [const { AtomicPtr::new(null_mut()) }; KEPT] }; CLASSES],
    small: [const {
        let blocks = Blocks { free: [null_mut(); SMALL], piece: null_mut(), left: 0 };
        Small { locked: AtomicBool::new(false), blocks: UnsafeCell::new(blocks) }
    }; PLACES],
};

thread_local! {
    /// The place that this thread looks at first.
    static OWN: Cell<usize> = const { Cell::new(usize::MAX) };
}

fn own_place() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    OWN.with(|own| {
        if own.get() == usize::MAX {
            own.set(NEXT.fetch_add(1, Ordering::Relaxed) % PLACES);
        }
        own.get()
    })
}

/// The class of a small layout.
fn small(layout: Layout) -> Option<usize> {
    (layout.size() <= SMALL * ALIGN && layout.align() <= ALIGN)
        .then(|| layout.size().div_ceil(ALIGN).saturating_sub(1))
}

fn small_layout(class: usize) -> Layout {
    let size = (class + 1) * ALIGN;
    Layout::from_size_align(size, ALIGN).unwrap_or(Layout::new::<[u128; SMALL]>())
}

impl Heap {
    /// Does something with the first place that nobody else has.
    fn with_place<T>(&self, work: impl FnOnce(&mut Blocks) -> T) -> Option<T> {
        let own = own_place();
        let mut order = (0..PLACES).map(|n| &self.small[(own + n) % PLACES]);
        let place = order.find(|place| !place.locked.swap(true, Ordering::Acquire))?;
        // SAFETY: it is locked by us.
        let done = work(unsafe { &mut *place.blocks.get() });
        place.locked.store(false, Ordering::Release);
        Some(done)
    }

    fn kept(&self, class: usize, whole: Layout) -> &[AtomicPtr<u8>] {
        let most = if whole.size() < LARGE { KEPT } else { KEPT_OF_LARGE };
        &self.kept[class][..most]
    }

    fn take(&self, class: usize) -> *mut u8 {
        let taken = self.with_place(|blocks| blocks.take(class)).unwrap_or(null_mut());
        match taken.is_null() {
            // SAFETY: no class is empty.
            true => unsafe { System.alloc(small_layout(class)) },
            false => taken,
        }
    }
}

impl Blocks {
    fn take(&mut self, class: usize) -> *mut u8 {
        let block = self.free[class];
        if !block.is_null() {
            // SAFETY: it is free, so it begins with such an address.
            self.free[class] = unsafe { block.cast::<*mut u8>().read() };
            return block;
        }
        let size = small_layout(class).size();
        if self.left < size {
            let Ok(piece) = Layout::from_size_align(PIECE, ALIGN) else { return null_mut() };
            // SAFETY: it is not empty.
            self.piece = unsafe { System.alloc(piece) };
            self.left = if self.piece.is_null() { 0 } else { PIECE };
        }
        if self.left < size {
            return null_mut();
        }
        let block = self.piece;
        // SAFETY: so much is left of the piece.
        self.piece = unsafe { block.add(size) };
        self.left -= size;
        block
    }

    fn put(&mut self, class: usize, block: *mut u8) {
        // SAFETY: it has room for an address, and nobody else has it.
        unsafe { block.cast::<*mut u8>().write(self.free[class]) };
        self.free[class] = block;
    }
}

/// The class of a layout, and the layout that all of its blocks have.
fn class(layout: Layout) -> Option<(usize, Layout)> {
    let size = layout.size().next_power_of_two();
    let class = size.trailing_zeros().checked_sub(FIRST)? as usize;
    let whole = Layout::from_size_align(size, ALIGN).ok()?;
    (class < CLASSES && layout.align() <= ALIGN).then_some((class, whole))
}

// SAFETY: blocks come from the system's allocator with the layout of their class, or are cut from one of it that is never
// given back; only those that are not small go back to it.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(class) = small(layout) {
            return self.take(class);
        }
        let Some((class, whole)) = class(layout) else {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc(layout) };
        };
        let kept = self.kept(class, whole).iter();
        let mut taken = kept.map(|place| place.swap(null_mut(), Ordering::Acquire));
        match taken.find(|block| !block.is_null()) {
            Some(block) => block,
            // SAFETY: it is not smaller than the caller's, who has promised that that is not empty.
            None => unsafe { System.alloc(whole) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if small(layout).is_none() && class(layout).is_none() {
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
        if let Some(class) = small(layout) {
            // Where others have all places, it is nobody's from now on.
            let _ = self.with_place(|blocks| blocks.put(class, block));
            return;
        }
        let Some((class, whole)) = class(layout) else {
            // SAFETY: the caller's promise.
            return unsafe { System.dealloc(block, layout) };
        };
        for place in self.kept(class, whole) {
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
        let [old_class, new_class] = [layout, new].map(class);
        match ([layout, new].map(small), old_class, new_class) {
            ([Some(old), Some(class)], ..) if old == class => block,
            ([None, None], Some((old, _)), Some((class, _))) if old == class => block,
            // SAFETY: the caller's promise; neither is of a class.
            ([None, None], None, None) => unsafe { System.realloc(block, layout, size) },
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
    use std::sync::mpsc::channel;

    /// Some are given back by other threads, and grow there.
    #[test]
    fn blocks_of_threads_that_come_and_go_are_one_heap() {
        let (send, receive) = channel::<(u8, Vec<u8>)>();
        std::thread::scope(|scope| {
            for seed in 0..12u8 {
                let send = send.clone();
                scope.spawn(move || {
                    for len in 1..1500usize {
                        send.send((seed, vec![seed; len % 300 + 1])).unwrap();
                    }
                });
            }
            drop(send);
            let mut held = Vec::new();
            for (seed, mut block) in receive {
                block.extend_from_slice(&[seed; 40]);
                held.push((seed, block));
                if held.len() > 100 {
                    let (seed, block) = held.swap_remove(held.len() % 17);
                    assert!(block.iter().all(|byte| *byte == seed));
                }
            }
        });
    }

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
