//! The control page of the region this payload lies in.
//!
//! # Safety
//! The page lives as long as this code does, and all of its words that change are only touched
//! atomically, here and by other processes.
#![allow(unsafe_code)]

use ckpt_abi::region::{Control, NAME_LEN, PAYLOAD, STACK_LEN, STACKS};
use core::mem::offset_of;
use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

unsafe extern "C" {
    /// First byte of the payload's ELF image, defined by the linker.
    static __ehdr_start: u8;
}

/// The control page.
#[derive(Clone, Copy)]
pub struct Page(u64);

impl Page {
    /// That of this payload.
    pub fn own() -> Self {
        let image = &raw const __ehdr_start;
        Self((image as u64).wrapping_sub(PAYLOAD))
    }

    /// The page at an address that [`Page::address`] gave.
    pub fn at(address: u64) -> Self {
        Self(address)
    }

    /// Its address.
    pub fn address(self) -> u64 {
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

    /// [`Control::phase`].
    pub fn phase(self) -> &'static AtomicU32 {
        self.word(offset_of!(Control, phase))
    }

    /// [`Control::dumper`].
    pub fn dumper(self) -> &'static AtomicU32 {
        self.word(offset_of!(Control, dumper))
    }

    /// [`Control::monitor`].
    pub fn monitor(self) -> &'static AtomicU32 {
        self.word(offset_of!(Control, monitor))
    }

    /// [`Control::periodic`].
    pub fn periodic(self) -> &'static AtomicU32 {
        self.word(offset_of!(Control, periodic))
    }

    /// [`Control::handlers`].
    pub fn handlers(self) -> &'static AtomicU32 {
        self.word(offset_of!(Control, handlers))
    }

    /// [`Config::continues`](ckpt_abi::region::Config::continues).
    pub fn continues(self) -> &'static AtomicU32 {
        self.word(offset_of!(Control, config.continues))
    }

    /// [`Control::target`].
    pub fn target(self) -> &'static AtomicU32 {
        self.word(offset_of!(Control, target))
    }

    /// [`Control::keeper`].
    pub fn keeper(self) -> &'static AtomicU32 {
        self.word(offset_of!(Control, keeper))
    }

    /// [`Control::spawn_error`].
    pub fn spawn_error(self) -> &'static AtomicI64 {
        let word = self.0.wrapping_add(offset_of!(Control, spawn_error) as u64) as *mut i64;
        // SAFETY: as in `word`.
        unsafe { AtomicI64::from_ptr(word) }
    }

    /// Address and length of the executable's copy.
    pub fn executable(self) -> (u64, u64) {
        let start = self.0.wrapping_add(self.long(offset_of!(Control, exe_start)));
        (start, self.long(offset_of!(Control, exe_len)))
    }

    /// The checkpoint's name, with its final NUL somewhere.
    pub fn name(self) -> [u8; NAME_LEN] {
        let name = self.0.wrapping_add(offset_of!(Control, config.name) as u64);
        let name = name as *const [u8; NAME_LEN];
        // SAFETY: as in `word`; a name that is just being changed only misleads the search for a
        // directory.
        unsafe { name.read() }
    }

    /// End of one of the small stacks.
    pub fn stack(self, index: u64) -> u64 {
        let end = STACK_LEN.wrapping_mul(index.wrapping_add(1));
        self.0.wrapping_add(STACKS).wrapping_add(end)
    }
}
