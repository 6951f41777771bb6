// SPDX-License-Identifier: LGPL-2.1-only
//! The control page of the region this payload lies in.
//!
//! # Safety
//! The page lives as long as this code does, and all of its words that change are only touched
//! atomically, here and by other processes.
#![allow(unsafe_code)]

use crate::sys;
use ckpt_abi::api::{API, Api, ERROR_LEN};
use ckpt_abi::region::{Control, MAGIC, NAME_LEN, PAYLOAD, next_base};
use ckpt_abi::region::{STACK_LEN, STACKS, TURNS, Turns, VERSION};
use core::mem::offset_of;
use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

unsafe extern "C" {
    /// First byte of the payload's ELF image, defined by the linker.
    static __ehdr_start: u8;
}

/// The control page.
#[derive(Clone, Copy)]
pub(crate) struct Page(u64);

impl Page {
    /// That of this payload.
    pub(crate) fn own() -> Self {
        let image = &raw const __ehdr_start;
        Self((image as u64).wrapping_sub(PAYLOAD))
    }

    /// That of the region in this process, whoever made it.
    pub(crate) fn find() -> Option<Self> {
        let mut base = next_base(0, 0);
        while base != 0 {
            if sys::readable(base) {
                let magic = (base as *const [u8; 8]).cast::<[u8; 8]>();
                // SAFETY: the kernel has just read there, and regions are never unmapped.
                let magic = unsafe { magic.read_volatile() };
                let page = Self(base);
                let version = page.word(offset_of!(Control, version));
                if magic == MAGIC && version.load(Ordering::Relaxed) == VERSION {
                    return Some(page);
                }
            }
            base = next_base(base, 0);
        }
        None
    }

    /// A word of the API's part; `offset` is that of a field of [`Api`].
    pub(crate) fn api(self, offset: usize) -> &'static AtomicU32 {
        self.word((API as usize).wrapping_add(offset))
    }

    /// A long word of the API's part.
    pub(crate) fn api_long(self, offset: usize) -> &'static AtomicU64 {
        let word = self.0.wrapping_add(API).wrapping_add(offset as u64) as *mut u64;
        // SAFETY: as in `word`.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// [`Api::name`], for one writer at a time.
    pub(crate) fn api_name(self) -> *mut u8 {
        self.0.wrapping_add(API).wrapping_add(offset_of!(Api, name) as u64) as *mut u8
    }

    /// [`Control::config`]'s name, for one writer at a time.
    pub(crate) fn config_name(self) -> *mut u8 {
        self.0.wrapping_add(offset_of!(Control, config.name) as u64) as *mut u8
    }

    /// Keeps the text of an error.
    pub(crate) fn set_error(self, text: &[u8]) {
        let at = self.0.wrapping_add(API).wrapping_add(offset_of!(Api, error) as u64) as *mut u8;
        let ends = core::iter::once(&0);
        for (i, byte) in text.iter().take(ERROR_LEN - 1).chain(ends).enumerate() {
            // SAFETY: inside the field.
            unsafe { at.wrapping_add(i).write_volatile(*byte) };
        }
    }

    /// Address of the text of the last error.
    pub(crate) fn error(self) -> u64 {
        self.0.wrapping_add(API).wrapping_add(offset_of!(Api, error) as u64)
    }

    /// A word of [`Control`] by its offset.
    pub(crate) fn control(self, offset: usize) -> &'static AtomicU32 {
        self.word(offset)
    }

    /// A long word of [`Control`] by its offset.
    pub(crate) fn control_long(self, offset: usize) -> u64 {
        self.long(offset)
    }

    /// The page at an address that [`Page::address`] gave.
    pub(crate) fn at(address: u64) -> Self {
        Self(address)
    }

    /// Its address.
    pub(crate) fn address(self) -> u64 {
        self.0
    }

    fn word(self, offset: usize) -> &'static AtomicU32 {
        let word = self.0.wrapping_add(offset as u64) as *mut u32;
        // SAFETY: see the head of this file; the fields are aligned.
        unsafe { AtomicU32::from_ptr(word) }
    }

    fn long(self, offset: usize) -> u64 {
        let word = self.0.wrapping_add(offset as u64) as *mut u64;
        // SAFETY: as in `word`.
        let word = unsafe { AtomicU64::from_ptr(word) };
        word.load(Ordering::Relaxed)
    }

    /// [`Control::monitor`].
    pub(crate) fn monitor(self) -> &'static AtomicU32 {
        self.word(offset_of!(Control, monitor))
    }

    /// [`Turns::turn`]; its low half, which changes with each step, serves as a futex.
    pub(crate) fn turn(self) -> &'static AtomicU64 {
        let word =
            self.0.wrapping_add(TURNS).wrapping_add(offset_of!(Turns, turn) as u64) as *mut u64;
        // SAFETY: as in `word`.
        unsafe { AtomicU64::from_ptr(word) }
    }

    fn turns(self, offset: usize) -> &'static AtomicU32 {
        self.word((TURNS as usize).wrapping_add(offset))
    }

    /// [`Turns::owner`].
    pub(crate) fn owner(self) -> &'static AtomicU32 {
        self.turns(offset_of!(Turns, owner))
    }

    /// [`Turns::handlers`].
    pub(crate) fn handlers(self) -> &'static AtomicU32 {
        self.turns(offset_of!(Turns, handlers))
    }

    /// [`Config::continues`](ckpt_abi::region::Config::continues).
    pub(crate) fn continues(self) -> &'static AtomicU32 {
        self.word(offset_of!(Control, config.continues))
    }

    /// [`Control::target`].
    pub(crate) fn target(self) -> &'static AtomicU32 {
        self.word(offset_of!(Control, target))
    }

    /// [`Turns::keeper`].
    pub(crate) fn keeper(self) -> &'static AtomicU32 {
        self.turns(offset_of!(Turns, keeper))
    }

    /// [`Control::spawn_error`].
    pub(crate) fn spawn_error(self) -> &'static AtomicI64 {
        let word = self.0.wrapping_add(offset_of!(Control, spawn_error) as u64) as *mut i64;
        // SAFETY: as in `word`.
        unsafe { AtomicI64::from_ptr(word) }
    }

    /// Address and length of the executable's copy.
    pub(crate) fn executable(self) -> (u64, u64) {
        let start = self.0.wrapping_add(self.long(offset_of!(Control, exe_start)));
        (start, self.long(offset_of!(Control, exe_len)))
    }

    /// The checkpoint's name, with its final NUL somewhere.
    pub(crate) fn name(self) -> [u8; NAME_LEN] {
        let name = self.0.wrapping_add(offset_of!(Control, config.name) as u64);
        let name = name as *const [u8; NAME_LEN];
        // SAFETY: as in `word`; a name that is just being changed only misleads the search for a
        // directory.
        unsafe { name.read() }
    }

    /// End of one of the small stacks.
    pub(crate) fn stack(self, index: u64) -> u64 {
        let end = STACK_LEN.wrapping_mul(index.wrapping_add(1));
        self.0.wrapping_add(STACKS).wrapping_add(end)
    }
}
