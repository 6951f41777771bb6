// SPDX-License-Identifier: LGPL-2.1-only
//! The system calls on System V objects.
//!
//! # Safety
//! Each call gets memory of ours, as long as the call is told.
#![allow(unsafe_code)]

use crate::proc::Pid;
use crate::resource::memory::hugetlb;
use ckpt_abi::image::SystemVKind;
use nix::Result;
use nix::errno::Errno;
use nix::libc;
use std::mem::MaybeUninit;

/// Gives copies of messages and leaves them where they are (msgop(2); CONFIG_CHECKPOINT_RESTORE).
const MSG_COPY: i32 = 0o40000;
/// Longest message that is asked for (the largest /proc/sys/kernel/msgmax that anybody sets).
const LONGEST: usize = 1 << 20;

/// Owner and permissions as the kernel holds them.
pub(super) struct Owner {
    pub(super) user: u32,
    pub(super) group: u32,
    pub(super) mode: u32,
}

/// struct semid_ds, of which only the beginning is set.
#[repr(C)]
struct Semaphores {
    perm: libc::ipc_perm,
    rest: [u64; 16],
}

// semctl(2) copies a struct semid64_ds, 104 bytes of it.
const _: () = assert!(size_of::<Semaphores>() == 176);

/// Whether we may look into a segment.
pub(super) fn segment(id: i32) -> Result<()> {
    let mut status = MaybeUninit::<libc::shmid_ds>::zeroed();
    // SAFETY: the kernel writes the structure.
    Errno::result(unsafe { libc::shmctl(id, libc::IPC_STAT, status.as_mut_ptr()) }).map(drop)
}

/// The values of a set of `count` semaphores.
pub(super) fn values(id: i32, count: usize) -> Result<Vec<u16>> {
    let mut values = vec![0u16; count];
    // SAFETY: the kernel writes as many values as the set has, which never changes.
    Errno::result(unsafe { libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()) })?;
    Ok(values)
}

/// Which process was the last to change a semaphore.
pub(super) fn last_user(id: i32, number: i32) -> Result<Pid> {
    // SAFETY: GETPID takes no argument and changes nothing.
    Errno::result(unsafe { libc::semctl(id, number, libc::GETPID) }).map(Pid::new)
}

/// How many bytes a queue takes.
pub(super) fn capacity(id: i32) -> Result<u64> {
    // SAFETY: numbers, of which zeros are some.
    let mut status: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes the structure.
    Errno::result(unsafe { libc::msgctl(id, libc::IPC_STAT, &raw mut status) })?;
    Ok(status.msg_qbytes as u64)
}

/// A copy of the message of this number in a queue: its type and its bytes; None behind the last.
pub(super) fn message(id: i32, number: i64) -> Result<Option<Vec<u8>>> {
    let mut buffer = vec![0u8; 8 + LONGEST];
    let flags = MSG_COPY | libc::IPC_NOWAIT;
    // SAFETY: the buffer has room for the type and the length that is told.
    let got = unsafe { libc::msgrcv(id, buffer.as_mut_ptr().cast(), LONGEST, number, flags) };
    match Errno::result(got) {
        Ok(len) => {
            buffer.truncate(8 + len.cast_unsigned());
            Ok(Some(buffer))
        }
        Err(Errno::ENOMSG) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// A segment that is mapped here.
pub(crate) struct Attached {
    at: *mut libc::c_void,
    len: usize,
}

impl Attached {
    /// Maps one of `len` bytes.
    pub(crate) fn new(id: i32, len: usize, writable: bool) -> Result<Self> {
        let flags = if writable { 0 } else { libc::SHM_RDONLY };
        // SAFETY: the kernel chooses a free place.
        let at = unsafe { libc::shmat(id, std::ptr::null(), flags) };
        if at.addr() == usize::MAX { Err(Errno::last()) } else { Ok(Self { at, len }) }
    }

    /// Where it is.
    pub(crate) fn address(&self) -> u64 {
        self.at.expose_provenance() as u64
    }

    /// What it holds.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the segment is as long, and who else could write to it stands still.
        unsafe { std::slice::from_raw_parts(self.at.cast(), self.len) }
    }

    /// The same, of one that is writable and nobody else has mapped.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.at.cast(), self.len) }
    }

    /// Which of its pages are there (mincore(2)).
    pub(crate) fn resident(&self) -> Vec<bool> {
        let mut pages = vec![0u8; self.len.div_ceil(4096)];
        // SAFETY: the kernel writes a byte for each page.
        let asked = unsafe { libc::mincore(self.at, self.len, pages.as_mut_ptr()) };
        let known = asked == 0;
        pages.into_iter().map(|page| !known || page & 1 != 0).collect()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: it was mapped by this value, and no slice of it is alive.
        unsafe { libc::shmdt(self.at) };
    }
}

/// Makes an object that is not there yet: a segment of `size` bytes, a set of so many semaphores, or a queue.
pub(super) fn make(kind: SystemVKind, key: i32, size: u64) -> Result<i32> {
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | 0o600;
    Errno::result(match kind {
        // SAFETY: numbers only.
        SystemVKind::Segment => unsafe { libc::shmget(key, size as usize, flags) },
        // SAFETY: numbers only.
        SystemVKind::Semaphores => unsafe { libc::semget(key, size as i32, flags) },
        // SAFETY: numbers only.
        SystemVKind::Messages => unsafe { libc::msgget(key, flags) },
    })
}

/// Makes a segment in huge pages, if they are free.
pub(super) fn huge(key: i32, size: u64, page: u64) -> Option<i32> {
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | 0o600;
    let flags = flags | libc::SHM_HUGETLB | hugetlb::flag(page).cast_signed();
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::shmget(key, size as usize, flags) }).ok()
}

/// Removes one.
pub(super) fn remove(kind: SystemVKind, id: i32) {
    match kind {
        // SAFETY: numbers only.
        SystemVKind::Segment => unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) },
        // SAFETY: numbers only.
        SystemVKind::Semaphores => unsafe { libc::semctl(id, 0, libc::IPC_RMID) },
        // SAFETY: numbers only.
        SystemVKind::Messages => unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) },
    };
}

/// Keeps a segment in memory.
pub(super) fn lock(id: i32) {
    // SAFETY: numbers only.
    unsafe { libc::shmctl(id, libc::SHM_LOCK, std::ptr::null_mut()) };
}

/// Sets the values of all semaphores of a set.
pub(super) fn set_values(id: i32, values: &[u16]) -> Result<()> {
    // SAFETY: there are as many as the set has.
    Errno::result(unsafe { libc::semctl(id, 0, libc::SETALL, values.as_ptr()) }).map(drop)
}

/// Sends a message, its type first.
pub(super) fn send(id: i32, message: &[u8]) -> Result<()> {
    let len = message.len().saturating_sub(8);
    // SAFETY: the buffer holds the type and `len` bytes.
    let sent = unsafe { libc::msgsnd(id, message.as_ptr().cast(), len, libc::IPC_NOWAIT) };
    Errno::result(sent).map(drop)
}

/// Sets owner and permissions, and how much a queue takes.
pub(super) fn own(kind: SystemVKind, id: i32, owner: &Owner, capacity: u64) -> Result<()> {
    let set = |perm: &mut libc::ipc_perm| {
        (perm.uid, perm.gid, perm.mode) = (owner.user, owner.group, owner.mode as _);
    };
    let done = match kind {
        SystemVKind::Segment => {
            // SAFETY: numbers, of which zeros are some.
            let mut status: libc::shmid_ds = unsafe { std::mem::zeroed() };
            set(&mut status.shm_perm);
            // SAFETY: the kernel reads the structure.
            unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut status) }
        }
        SystemVKind::Semaphores => {
            // SAFETY: numbers, of which zeros are some.
            let mut status: Semaphores = unsafe { std::mem::zeroed() };
            set(&mut status.perm);
            // SAFETY: the kernel reads the structure.
            unsafe { libc::semctl(id, 0, libc::IPC_SET, &raw mut status) }
        }
        SystemVKind::Messages => {
            // SAFETY: numbers, of which zeros are some.
            let mut status: libc::msqid_ds = unsafe { std::mem::zeroed() };
            set(&mut status.msg_perm);
            status.msg_qbytes = capacity as _;
            // SAFETY: the kernel reads the structure.
            unsafe { libc::msgctl(id, libc::IPC_SET, &raw mut status) }
        }
    };
    Errno::result(done).map(drop)
}

/// Changes a semaphore in several steps at once (semop(2)).
pub(super) fn change(id: i32, steps: &mut [libc::sembuf]) -> Result<()> {
    // SAFETY: the kernel reads as many steps.
    Errno::result(unsafe { libc::semop(id, steps.as_mut_ptr(), steps.len()) }).map(drop)
}
