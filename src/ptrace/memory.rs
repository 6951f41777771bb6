// SPDX-License-Identifier: LGPL-2.1-only
//! The memory of another process.
//!
//! # Safety
//! process_vm_readv(2) and process_vm_writev(2) touch our memory only within the slices given.
#![allow(unsafe_code)]

use super::borrowed::is_refusal;
use super::raw;
use super::seize::hinted;
use crate::error::{Because, Result};
use crate::proc::forebear::{self, what};
use crate::proc::{Pid, Process, Tid, gone, head};
use ckpt_abi::region::{Control, MAGIC};
use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::io::ErrorKind;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const PAGE: u64 = 4096;

/// Most pieces that the kernel takes at once (UIO_MAXIOV).
const VECTORS: usize = 1024;

/// A process's memory by address.
pub(crate) struct Memory {
    process: Process,
    file: File,
    began: OnceLock<u64>,
    held: Mutex<Option<Pages>>,
}

/// Pages by their address, in ascending order, as they were read while the process stands still.
type Pages = Vec<(u64, Box<[u8; PAGE as usize]>)>;

/// While one lives, and nobody of the process runs, each page is read once, of however many small values it has; until
/// something is written.
pub(crate) struct Held<'a>(&'a Memory);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.0.pages() = None;
    }
}

/// An address in another process.
fn there(at: u64) -> *mut libc::c_void {
    std::ptr::without_provenance_mut(at as usize)
}

impl Memory {
    /// Opens the memory of a process, which takes the right to trace it (ptrace(2)).
    pub(crate) fn open(process: &Process) -> Result<Self> {
        let (pid, path) = (process.pid(), process.path("mem"));
        let open = || File::options().read(true).write(true).open(&path);
        let file = open().or_else(|error| {
            // Under Yama an ancestor may.
            forebear::engage(pid);
            let opened = forebear::open(what::MEMORY, pid.get(), 0);
            opened.map_or(Err(error), |opened| opened.map(File::from).map_err(Into::into))
        });
        let refused = |error: &std::io::Error| error.kind() == ErrorKind::PermissionDenied;
        let is_refused = file.as_ref().is_err_and(refused);
        let path = || process.called("mem");
        let file = file.because(|| format!("cannot open the memory of process {pid} ({})", path()));
        let file = file.map_err(|error| if is_refused { hinted(process, error) } else { error })?;
        let (began, held) = (OnceLock::new(), Mutex::new(None));
        Ok(Self { process: process.clone(), file, began, held })
    }

    /// The process.
    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// Its id.
    pub(crate) fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Makes sure that what was read until now was this process's: the kernel's calls name it by its id.
    ///
    /// # Errors
    /// It is gone, and another may have its id.
    pub(crate) fn was_its(&self) -> Result<()> {
        match self.process.is_reaped() {
            true => Err(gone(self.pid())),
            false => Ok(()),
        }
    }

    /// Makes sure that what was read until now was all there, by the payload whose region begins at `region`. Memory that
    /// a process that was killed gives back reads as holes, or not at all; its control page goes with it.
    ///
    /// # Errors
    /// Some of it may have been gone.
    pub(crate) fn was_whole(&self, region: u64) -> Result<()> {
        let at = region + offset_of!(Control, magic) as u64;
        let mut magic = [0; MAGIC.len()];
        let is_there = self.file.read_exact_at(&mut magic, at).is_ok() && magic == MAGIC;
        match is_there && self.process.is_whole() {
            true => self.was_its(),
            false => Err(gone(self.pid())),
        }
    }

    /// When the process began, in clock ticks after boot (proc_pid_stat(5), field 22), which tells a fork and a restarted
    /// program from those whose memory they have. It is looked at once.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn began(&self) -> Result<u64> {
        if let Some(began) = self.began.get() {
            return Ok(*began);
        }
        let began = self.process.main_stat()?.starttime;
        Ok(*self.began.get_or_init(|| began))
    }

    /// Says when the process began, for [`Memory::began`].
    pub(crate) fn note_began(&self, began: u64) {
        let _ = self.began.set(began);
    }

    /// Reads as much of `[addr, addr + buffer.len())` as there is from its start; the number of
    /// bytes read, short where the next page cannot be read.
    pub(crate) fn read_some(
        &self,
        addr: u64,
        buffer: &mut [u8],
    ) -> std::result::Result<usize, Errno> {
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let base = std::ptr::without_provenance_mut(addr as usize);
        let remote = libc::iovec { iov_base: base, iov_len: buffer.len() };
        // SAFETY: writes into `buffer` only.
        let n = unsafe { libc::process_vm_readv(head(self.pid()).get(), &local, 1, &remote, 1, 0) };
        match Errno::result(n) {
            // Under Yama the file may be from one who may.
            Err(errno) if is_refusal(errno) => {
                self.file.read_at(buffer, addr).map_err(|_| Errno::EFAULT)
            }
            result => result.map(|n| n as usize),
        }
    }

    fn pages(&self) -> MutexGuard<'_, Option<Pages>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the pages from which small values are read. Only while nothing of the process runs.
    pub(crate) fn hold(&self) -> Held<'_> {
        *self.pages() = Some(Vec::new());
        Held(self)
    }

    /// Reads from pages that are held; whether all of them are.
    fn read_held(&self, addr: u64, buffer: &mut [u8]) -> bool {
        let mut pages = self.pages();
        let Some(pages) = pages.as_mut().filter(|_| buffer.len() <= PAGE as usize) else {
            return false;
        };
        let (mut addr, mut rest) = (addr, buffer);
        while !rest.is_empty() {
            let (start, from) = (addr & !(PAGE - 1), (addr % PAGE) as usize);
            let at = pages.partition_point(|(page, _)| *page < start);
            if pages.get(at).is_none_or(|(page, _)| *page != start) {
                let mut page = Box::new([0; PAGE as usize]);
                if self.read_some(start, &mut page[..]) != Ok(page.len()) {
                    return false;
                }
                pages.insert(at, (start, page));
            }
            let piece = &pages[at].1[from..];
            let (now, later) = rest.split_at_mut(piece.len().min(rest.len()));
            now.copy_from_slice(&piece[..now.len()]);
            (addr, rest) = (addr.wrapping_add(now.len() as u64), later);
        }
        true
    }

    /// Reads exactly `buffer.len()` bytes, also from pages that the process itself may not read.
    pub(crate) fn read(&self, addr: u64, buffer: &mut [u8]) -> Result<()> {
        if self.read_held(addr, buffer) {
            return Ok(());
        }
        if self.read_some(addr, buffer) == Ok(buffer.len()) {
            return Ok(());
        }
        self.file.read_exact_at(buffer, addr).because(|| {
            format!("cannot read {} bytes at {addr:#x} of process {}", buffer.len(), self.pid())
        })
    }

    /// Reads as [`Memory::read_some`], through /proc/PID/mem, which ignores page protection.
    pub(crate) fn read_forced(&self, addr: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.file.read_at(buffer, addr)
    }

    /// Reads values that lie `stride` bytes apart, in one system call.
    pub(super) fn get_each<T: FromBytes + IntoBytes, const N: usize>(
        &self,
        addr: u64,
        stride: u64,
    ) -> Result<[T; N]> {
        let mut values: [T; N] = std::array::from_fn(|_| T::new_zeroed());
        let len = size_of::<T>();
        let remote: [libc::iovec; N] = std::array::from_fn(|i| {
            let base = (addr + i as u64 * stride) as usize;
            libc::iovec { iov_base: std::ptr::without_provenance_mut(base), iov_len: len }
        });
        let bytes = values.as_mut_bytes();
        let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: writes into `values` only.
        let n = unsafe {
            libc::process_vm_readv(head(self.pid()).get(), &local, 1, remote.as_ptr(), N as u64, 0)
        };
        if n.cast_unsigned() == len * N {
            return Ok(values);
        }
        for (i, value) in values.iter_mut().enumerate() {
            *value = self.get(addr + i as u64 * stride)?;
        }
        Ok(values)
    }

    /// Reads one value.
    pub(crate) fn get<T: FromBytes + IntoBytes>(&self, addr: u64) -> Result<T> {
        let mut value = T::new_zeroed();
        self.read(addr, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes to pages that the process may write; for large pieces.
    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        // Nothing is written to a stranger that has its id.
        self.was_its()?;
        self.forget();
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let base = std::ptr::without_provenance_mut(addr as usize + done);
            let local =
                libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
            let remote = libc::iovec { iov_base: base, iov_len: rest.len() };
            // SAFETY: reads from `rest` only.
            let n = unsafe {
                libc::process_vm_writev(head(self.pid()).get(), &local, 1, &remote, 1, 0)
            };
            done += match Errno::result(n) {
                Err(errno) if is_refusal(errno) => self.file.write_at(rest, addr + done as u64),
                result => result.map(|n| n as usize).map_err(Into::into),
            }
            .because(|| self.cannot_write(addr, bytes.len()))?;
        }
        Ok(())
    }

    /// Writes several pieces, in this order, to pages that the process may write.
    pub(crate) fn write_each(&self, pieces: &[(u64, &[u8])]) -> Result<()> {
        let at_once = |pieces: &[(u64, &[u8])]| {
            let vectors = pieces.iter().map(|(at, bytes)| {
                let (ours, theirs) = (bytes.as_ptr().cast_mut().cast(), there(*at));
                let vector = |iov_base| libc::iovec { iov_base, iov_len: bytes.len() };
                (vector(ours), vector(theirs))
            });
            let (ours, theirs): (Vec<_>, Vec<_>) = vectors.unzip();
            let (pid, count) = (head(self.pid()).get(), pieces.len() as u64);
            // SAFETY: reads from the pieces only, which outlive the call.
            unsafe { libc::process_vm_writev(pid, ours.as_ptr(), count, theirs.as_ptr(), count, 0) }
        };
        self.was_its()?;
        self.forget();
        for pieces in pieces.chunks(VECTORS) {
            let len: usize = pieces.iter().map(|(_, bytes)| bytes.len()).sum();
            if at_once(pieces).cast_unsigned() != len {
                pieces.iter().try_for_each(|(at, bytes)| self.write(*at, bytes))?;
            }
        }
        Ok(())
    }

    /// Reads several pieces of one length.
    pub(crate) fn read_each(&self, places: &[u64], len: usize) -> Result<Vec<Vec<u8>>> {
        let mut pieces = vec![vec![0; len]; places.len()];
        for (pieces, places) in pieces.chunks_mut(VECTORS).zip(places.chunks(VECTORS)) {
            let vector = |iov_base| libc::iovec { iov_base, iov_len: len };
            let vectors = pieces
                .iter_mut()
                .zip(places)
                .map(|(piece, at)| (vector(piece.as_mut_ptr().cast()), vector(there(*at))));
            let (ours, theirs): (Vec<_>, Vec<_>) = vectors.unzip();
            let (pid, count) = (head(self.pid()).get(), places.len() as u64);
            // SAFETY: writes into the pieces only, which outlive the call.
            let n = unsafe {
                libc::process_vm_readv(pid, ours.as_ptr(), count, theirs.as_ptr(), count, 0)
            };
            if n.cast_unsigned() != len * places.len() {
                let each = pieces.iter_mut().zip(places);
                each.into_iter().try_for_each(|(piece, at)| self.read(*at, piece))?;
            }
        }
        Ok(pieces)
    }

    /// Lets go of what is held, as it is about to change.
    fn forget(&self) {
        if let Some(pages) = self.pages().as_mut() {
            pages.clear();
        }
    }

    /// Writes one value to pages that the process may write.
    pub(crate) fn put<T: IntoBytes + Immutable>(&self, addr: u64, value: &T) -> Result<()> {
        self.write(addr, value.as_bytes())
    }

    /// Writes to pages that the process may not write (text), as its tracer.
    ///
    /// Since Linux 6.12 proc_mem.force_override can forbid this through /proc/PID/mem, then
    /// PTRACE_POKEDATA does it, word by word.
    pub(crate) fn write_forced(&self, tid: Tid, addr: u64, bytes: &[u8]) -> Result<()> {
        self.forget();
        if self.file.write_all_at(bytes, addr).is_ok() {
            return Ok(());
        }
        for (i, chunk) in bytes.chunks(8).enumerate() {
            let at = addr + 8 * i as u64;
            let mut word = [0; 8];
            if chunk.len() < 8 {
                self.read(at, &mut word)?;
            }
            word[..chunk.len()].copy_from_slice(chunk);
            raw::poke(tid, at, u64::from_ne_bytes(word))
                .because(|| self.cannot_write(at, chunk.len()))?;
        }
        Ok(())
    }

    fn cannot_write(&self, addr: u64, len: usize) -> String {
        format!("cannot write {len} bytes at {addr:#x} of process {}", self.pid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;

    fn own() -> Memory {
        Memory::open(&Process::own().unwrap()).unwrap()
    }

    fn at<T>(value: &T) -> u64 {
        std::ptr::from_ref(value).addr() as u64
    }

    #[test]
    fn pieces_are_written_and_read_in_their_order() {
        let (memory, place) = (own(), Box::new([0u64; 4]));
        let [one, two] = [1u64.to_le_bytes(), 2u64.to_le_bytes()];
        let pieces = [(at(&place[0]), &one[..]), (at(&place[3]), &two), (at(&place[0]), &two)];
        memory.write_each(&pieces).unwrap();
        assert_eq!(*black_box(place.clone()), [2, 0, 0, 2]);
        let read = memory.read_each(&[at(&place[3]), at(&place[1])], 8).unwrap();
        assert_eq!(read, [two, [0; 8]]);
        // More of them than the kernel takes at once, and one that is nowhere.
        let many = vec![at(&place[0]); VECTORS + 1];
        assert!(memory.read_each(&many, 8).unwrap().iter().all(|read| *read == two));
        assert!(memory.read_each(&[at(&place[0]), 8], 8).is_err());
        assert!(memory.write_each(&[(8, &one[..])]).is_err());
    }

    #[test]
    fn what_is_held_is_let_go_by_the_next_write() {
        let memory = own();
        let pages = vec![0u8; 3 * PAGE as usize];
        let edge = at(&pages[0]).next_multiple_of(PAGE) + PAGE - 4;
        let held = memory.hold();
        assert_eq!(memory.get::<u64>(edge).unwrap(), 0);
        memory.put(edge, &u64::MAX).unwrap();
        assert_eq!(memory.get::<u64>(edge).unwrap(), u64::MAX);
        assert_eq!(memory.get::<u16>(edge - 2).unwrap(), 0);
        assert_eq!(memory.get::<u64>(edge + 4).unwrap(), u64::from(u32::MAX));
        assert!(memory.get::<u64>(8).is_err());
        drop(held);
        memory.write_each(&[(edge, &[7])]).unwrap();
        assert_eq!(memory.get::<u8>(edge).unwrap(), 7);
        assert_eq!(black_box(&pages)[(edge - at(&pages[0])) as usize], 7);
    }
}
