// SPDX-License-Identifier: LGPL-2.1-only
//! Memory of this process at addresses that the program will have.
//!
//! # Safety
//! Every mapping is made at addresses that were free (MAP_FIXED_NOREPLACE), belongs to the
//! [`Mapping`] that made it, and is never unmapped by it: it becomes the program's memory.
#![allow(unsafe_code)]

use crate::error::{Because, Error, Result};
use crate::resource::memory::advice::advice;
use crate::resource::sysv::calls::Attached;
use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, mprotect};
use nix::sys::signal::{SigHandler, Signal};
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

/// A mapping of this process.
pub(crate) struct Mapping {
    at: u64,
    len: u64,
    /// How it may be accessed, if that is known.
    prot: Option<u32>,
    /// The flags of the program whose advice it has got.
    told: u64,
}

impl Mapping {
    /// A mapping that another value has made, in this process or in the one that this was forked from, and has left.
    pub(super) fn of_another(at: u64, len: u64) -> Self {
        Self { at, len, prot: None, told: 0 }
    }

    /// A part of it, for itself; None where it does not have all of that.
    pub(super) fn part(&self, start: u64, end: u64) -> Option<Self> {
        let is_inside = self.at <= start && end <= self.at + self.len;
        is_inside.then_some(Self { at: start, len: end - start, ..*self })
    }

    /// Maps zeroed private memory that may be read and written.
    pub(crate) fn anonymous(at: u64, len: u64, flags: MapFlags) -> Result<Self> {
        let (addr, size) = checked(at, len)?;
        let flags = flags | MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
        let mapped = unsafe { mmap_anonymous(addr, size, read_write(), flags) };
        let prot = Some(read_write().bits().cast_unsigned());
        Ok(Self { prot, ..Self::made(at, len, mapped)? })
    }

    /// The same in huge pages of hugetlbfs, of `page` bytes each; an error of ENOMEM where not so many are free.
    pub(crate) fn huge(at: u64, len: u64, page: u64) -> Result<Self> {
        let size = (page.ilog2() as i32) << libc::MAP_HUGE_SHIFT;
        Self::anonymous(at, len, MapFlags::MAP_HUGETLB | MapFlags::from_bits_retain(size))
    }

    /// Maps memory that the kernel may take away (MAP_DROPPABLE, Linux 6.11), or ordinary memory where it
    /// does not know that.
    pub(crate) fn droppable(at: u64, len: u64) -> Result<Self> {
        const MAP_DROPPABLE: i32 = 8;
        let (addr, size) = checked(at, len)?;
        // It is a type of mapping, in the place of MAP_PRIVATE.
        let flags = MapFlags::from_bits_retain(MAP_DROPPABLE) | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
        match unsafe { mmap_anonymous(addr, size, read_write(), flags) } {
            Err(Errno::EINVAL) => Self::anonymous(at, len, MapFlags::empty()),
            mapped => Self::made(at, len, mapped),
        }
    }

    /// Maps private memory that cannot be written to and holds nothing; it counts nowhere, not even under
    /// vm.overcommit_memory=2 (the kernel's accountable_mapping).
    pub(crate) fn reservation(at: u64, len: u64, prot: u32, flags: MapFlags) -> Result<Self> {
        let (addr, size) = checked(at, len)?;
        let flags = flags | MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
        let prot = ProtFlags::from_bits_truncate(prot.cast_signed());
        // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
        let mapped = unsafe { mmap_anonymous(addr, size, prot, flags) };
        Self::made(at, len, mapped)
    }

    /// Maps a part of a file, privately or shared, with the protection given.
    pub(crate) fn file(
        at: u64,
        len: u64,
        prot: u32,
        shared: bool,
        file: impl AsFd,
        offset: u64,
    ) -> Result<Self> {
        let (addr, size) = checked(at, len)?;
        let kind = if shared { MapFlags::MAP_SHARED } else { MapFlags::MAP_PRIVATE };
        let flags = kind | MapFlags::MAP_FIXED_NOREPLACE;
        let prot = ProtFlags::from_bits_truncate(prot.cast_signed());
        // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
        let mapped = unsafe { mmap(addr, size, prot, flags, file, offset.cast_signed()) };
        Self::made(at, len, mapped)
    }

    /// Maps a part of System V shared memory.
    pub(crate) fn segment(at: u64, len: u64, writable: bool, id: i32, offset: u64) -> Result<Self> {
        let why = || format!("cannot map the System V shared memory {id}");
        let whole = Attached::new(id, 0, writable).because(why)?;
        // The part lies in the segment, and is moved to where nothing is, as this sees.
        let home = Self::anonymous(at, len, MapFlags::MAP_NORESERVE)?;
        home.replaced_by(whole.address() + offset).because(why)
    }

    /// Moves something of the same length here, which belongs to nobody else.
    pub(crate) fn replaced_by(self, from: u64) -> Result<Self> {
        let Self { at, len, .. } = self;
        let from: *mut c_void = std::ptr::with_exposed_provenance_mut(from as usize);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let to = self.pointer().as_ptr();
        // SAFETY: what is moved is the caller's, and what is replaced is ours.
        let moved = unsafe { libc::mremap(from, len as usize, len as usize, flags, to) };
        if moved.addr() == usize::MAX {
            return Err(Errno::last()).because(|| format!("cannot move {len} bytes to {at:#x}"));
        }
        Ok(Self::of_another(at, len))
    }

    fn made(at: u64, len: u64, mapped: nix::Result<NonNull<c_void>>) -> Result<Self> {
        let why = || format!("cannot map {len} bytes at {at:#x}");
        let mapped = match mapped {
            Err(Errno::ENOMEM) => return Err(no_memory(why())),
            mapped => mapped.because(why)?,
        };
        // Before Linux 4.17 MAP_FIXED_NOREPLACE is a hint that the kernel need not follow.
        if mapped.addr().get() as u64 != at {
            return Err(Error::new(format!("{}: the kernel put it elsewhere", why())));
        }
        Ok(Self::of_another(at, len))
    }

    /// Its first address.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Lends `len` bytes from `offset` of a mapping that may be written; None outside of it.
    ///
    /// # Safety
    /// The mapping may be written, and no two slices of the same bytes are alive at once.
    pub(crate) unsafe fn slice(&self, offset: u64, len: u64) -> Option<&'static mut [u8]> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        let start: *mut u8 = std::ptr::with_exposed_provenance_mut((self.at + offset) as usize);
        // SAFETY: the range lies in this mapping, which nobody unmaps; the rest is the caller's.
        Some(unsafe { std::slice::from_raw_parts_mut(start, len as usize) })
    }

    /// Overwrites bytes of a mapping that may be written.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: we are borrowed mutably, so nobody else has a slice from here.
        let slice = unsafe { self.slice(offset, bytes.len() as u64) };
        let slice = slice.ok_or_else(|| Error::new("a write outside of a mapping"))?;
        slice.copy_from_slice(bytes);
        Ok(())
    }

    /// Sets the final protection.
    pub(crate) fn protect(&self, prot: u32) -> Result<()> {
        if self.prot == Some(prot) {
            return Ok(());
        }
        let prot = ProtFlags::from_bits_truncate(prot.cast_signed());
        // SAFETY: the mapping is ours and no slice of it is alive.
        let result = unsafe { mprotect(self.pointer(), self.len as usize, prot) };
        result.because(|| format!("cannot protect {} bytes at {:#x}", self.len, self.at))
    }

    /// The same, with a protection key (pkeys(7)), which stays with the mapping when it is moved.
    pub(crate) fn protect_by(&self, prot: u32, key: u32) -> Result<()> {
        let (at, len) = (self.pointer().as_ptr(), self.len as usize);
        // SAFETY: the mapping is ours and no slice of it is alive.
        let result = unsafe { libc::syscall(libc::SYS_pkey_mprotect, at, len, prot, key) };
        Errno::result(result)
            .map(drop)
            .because(|| format!("cannot give {at:p} the protection key {key}"))
    }

    /// Gives advice (madvise(2)) that the kernel may not know; then it is not needed either.
    pub(crate) fn advise(&self, advice: i32) {
        // SAFETY: the advice used here changes no content.
        unsafe { libc::madvise(self.pointer().as_ptr(), self.len as usize, advice) };
    }

    /// Gives it the advice of a program's flags that it has not got yet.
    pub(super) fn tell(&mut self, flags: u64) {
        advice(flags & !self.told).for_each(|advice| self.advise(advice));
        self.told |= flags;
    }

    /// Unmaps it, in a process that inherited it and does not use it.
    pub(super) fn leave(&self) {
        // SAFETY: no slice of it is alive in that process, nor will be.
        unsafe { libc::munmap(self.pointer().as_ptr(), self.len as usize) };
    }

    /// Makes pages untouchable without a mapping of their own (MADV_GUARD_INSTALL, Linux 6.13), or
    /// with one where the kernel does not know that: then true.
    pub(crate) fn guard(&self, offset: u64, len: u64) -> Result<bool> {
        const MADV_GUARD_INSTALL: i32 = 102;
        let part = Self::of_another(self.at + offset, len);
        let at = part.pointer().as_ptr();
        // SAFETY: the pages are ours and no slice of them is alive.
        if unsafe { libc::madvise(at, len as usize, MADV_GUARD_INSTALL) } == 0 {
            return Ok(false);
        }
        part.protect(0).map(|()| true)
    }

    /// Puts nothing in the place of some pages: who touches them gets SIGBUS, as behind the end of a file.
    pub(crate) fn make_absent(&self, offset: u64, len: u64, prot: u32) -> Result<()> {
        let part = Self::of_another(self.at + offset, len);
        let why = || format!("cannot leave {len} bytes at {:#x} without memory", part.at);
        let nothing = memfd_create(c"ckpt-absent", MFdFlags::MFD_CLOEXEC).because(why)?;
        let (addr, size) = checked(part.at, len)?;
        let prot = ProtFlags::from_bits_truncate(prot.cast_signed());
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED;
        // SAFETY: the pages are ours, hold nothing, and no slice of them is alive.
        let mapped = unsafe { mmap(addr, size, prot, flags, nothing, 0) };
        mapped.map(drop).because(why)
    }

    fn pointer(&self) -> NonNull<c_void> {
        let addr = NonZeroUsize::new(self.at as usize).unwrap_or(NonZeroUsize::MIN);
        NonNull::with_exposed_provenance(addr)
    }
}

/// ENOMEM from mmap(2) is mostly not about memory, but about what may be promised.
pub(super) fn no_memory(what: String) -> Error {
    let error = Error::new(format!("{what}: {}", Errno::ENOMEM.desc()));
    match crate::proc::setting("vm/overcommit_memory") {
        Some(2) => error.hint(
            "vm.overcommit_memory is 2 here, so that memory which is only reserved counts too: set it to 0 or raise vm.overcommit_ratio",
        ),
        _ => error.hint("free memory, or raise the limit on address space (ulimit -v)"),
    }
}

/// Whether anything can be mapped at an address that is free; nothing stays there.
pub(crate) fn is_possible(at: u64, len: u64) -> bool {
    let Ok((addr, size)) = checked(at, len) else { return false };
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
    let mapped = unsafe { mmap_anonymous(addr, size, ProtFlags::PROT_NONE, flags) };
    mapped.is_ok_and(|mapped| {
        // SAFETY: it was made a line above, and nobody uses it.
        let _ = unsafe { nix::sys::mman::munmap(mapped, len as usize) };
        mapped.addr().get() as u64 == at
    })
}

fn read_write() -> ProtFlags {
    ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
}

fn checked(at: u64, len: u64) -> Result<(Option<NonZeroUsize>, NonZeroUsize)> {
    let size = NonZeroUsize::new(len as usize).ok_or_else(|| Error::new("an empty mapping"))?;
    Ok((NonZeroUsize::new(at as usize), size))
}

/// Makes the restorer run on `stack` with the orders at `orders`.
///
/// # Safety
/// `run` is the payload's interpreter at its place, `stack` is free memory beside it, and nothing of
/// this program is needed again.
pub(crate) unsafe fn jump(run: u64, stack: u64, orders: u64) -> ! {
    // SAFETY: as the caller promises.
    unsafe {
        std::arch::asm!("mov rsp, {stack}", "xor ebp, ebp", "call {run}", "ud2",
                        stack = in(reg) stack, run = in(reg) run, in("rdi") orders,
                        options(noreturn));
    }
}

/// Blocks one signal (0: none), or lets it come again: the checkpoint signal waits until the program is
/// there, whose threads have their own masks.
pub(crate) fn hold_signal(signal: u32, hold: bool) {
    let Some(bit) = signal.checked_sub(1).filter(|bit| *bit < 64) else { return };
    let mask = 1u64 << bit;
    let set: *const u64 = &mask;
    let none: *mut u64 = std::ptr::null_mut();
    let how = if hold { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
    // SAFETY: the kernel reads one word.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, set, none, 8) };
}

/// Lets a file that becomes too large be an error like others, until the program's dispositions come.
pub(crate) fn ignore_file_limit() {
    // SAFETY: no handler runs.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
}

/// Blocks every signal, also those that libc would keep for itself; the mask before.
pub(crate) fn block_all_signals() -> u64 {
    set_signals(u64::MAX)
}

/// Sets the signal mask, but for one signal (0: none) that is blocked; the mask before.
pub(crate) fn set_signals_but(mask: u64, blocked: u32) -> u64 {
    set_signals(mask | blocked.checked_sub(1).map_or(0, |bit| 1u64.checked_shl(bit).unwrap_or(0)))
}

/// Sets the signal mask; that before.
pub(crate) fn set_signals(mask: u64) -> u64 {
    let mut old = 0u64;
    let (set, old_set): (*const u64, *mut u64) = (&mask, &mut old);
    // SAFETY: the kernel reads one word and writes another.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, set, old_set, 8) };
    old
}

/// Allocates protection keys, bit N being key N, before any memory has one: the kernel takes the lowest that is free for memory
/// that can only be executed.
pub(crate) fn allocate_keys(keys: u32) -> Result<()> {
    let give_back = |keys: u32| {
        for key in (1..16).filter(|key| keys >> key & 1 != 0) {
            // SAFETY: no memory has it.
            unsafe { libc::syscall(libc::SYS_pkey_free, key) };
        }
    };
    let keys = keys & !1;
    if keys == 0 {
        return Ok(());
    }
    // Those of the process that this was forked from.
    give_back(u32::MAX);
    let mut got = 0u32;
    while keys & !got != 0 {
        // SAFETY: changes only what this thread may do with memory that gets the key.
        let key = unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, 0) };
        let key = u32::try_from(key).ok().filter(|key| *key < 16).ok_or_else(|| {
            Error::new(format!("cannot have the protection keys {:x} (pkey_alloc(2))", keys & !got))
                .hint("restart it where it was saved")
        })?;
        got |= 1 << key;
    }
    give_back(got & !keys);
    Ok(())
}
