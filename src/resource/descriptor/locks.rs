// SPDX-License-Identifier: LGPL-2.1-only
//! Locks on files: flock(2), the two kinds of fcntl(2), and leases.
//!
//! Those of a description are taken when that is opened again, once for all that have it. Those of a process go with
//! whatever descriptor of the file it closes first (fcntl_locking(2)): it takes them when it has its descriptors and
//! closes no more. Whoever waits for a lock asks again when it goes on, and finds it held. So is a lease taken, which tells
//! of the number that its descriptor has. One of flock(2) is the restarter's for lslocks(8) until its holder takes it over.
//!
//! # Safety
//! The system calls here take numbers, or a pointer to a struct flock of our own.
#![allow(unsafe_code)]

use super::open::behind;
use super::{Origin, Place, Restored, Tables, is_first, kind};
use crate::error::{Error, Result};
use crate::proc::Pid;
use crate::proc::fds::Fd;
use crate::resource::Gathered;
use crate::resource::kinship::numbers::here;
use ckpt_abi::image::{Descriptor, DescriptorKind, FileLock, LockKind};
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Saves the locks that come with the descriptors of process `number`, whose records were gathered, and names those
/// that a restart cannot take.
pub(crate) fn save(number: u32, tables: &Tables, gathered: &mut Gathered) {
    let Some(table) = tables.of.get(number as usize) else { return };
    let (pid, fds) = (table.pid.word(), &table.fds);
    for (fd, record) in fds.iter().zip(&gathered.descriptors) {
        for (_, line) in fd.extra.iter().filter(|(key, _)| key == "lock") {
            let mut parsed = parse(line, fd.number);
            let of_process = parsed.is_some_and(|lock| lock.kind == LockKind::Process as u32);
            // One of a description is its first descriptor's, and its holder's; where that has it no more the first holds it.
            let first = is_first(record, number);
            let file = parsed.as_mut().filter(|lock| lock.kind == LockKind::File as u32);
            let holds = file.is_some_and(|lock| {
                if first && !holds(tables, lock, line) {
                    lock.holder = pid;
                }
                lock.holder == pid
            });
            if !of_process && !first && !holds {
                continue;
            }
            match parsed.filter(|lock| can_lock(record) && is_to_be_had(lock, fd)) {
                Some(lock) => put(&mut gathered.locks, lock, fd, fds),
                None => gathered.losses.push(format!(
                    "the lock on {} ({})",
                    fd.target.display(),
                    called(line)
                )),
            }
        }
    }
}

/// Whether the holder of a lock is in the checkpoint, and has the description still that has the lock.
fn holds(tables: &Tables, lock: &FileLock, line: &str) -> bool {
    let has = |other: &Fd| other.extra.iter().any(|(key, lock)| key == "lock" && lock == line);
    let mut all = tables.of.iter().filter(|table| table.pid.word() == lock.holder);
    all.any(|table| table.fds.iter().any(has))
}

/// The lock of a process shows at every descriptor of the file; one that may hold it serves.
fn put(locks: &mut Vec<FileLock>, lock: FileLock, fd: &Fd, fds: &[Fd]) {
    if lock.kind == LockKind::Process as u32 {
        let other = if lock.exclusive == 1 { libc::O_RDONLY } else { libc::O_WRONLY };
        let inode =
            |number: u32| fds.iter().find(|f| f.number == number).map(|f| (f.device, f.inode));
        let same = |l: &FileLock| {
            (l.kind, l.start, l.len) == (lock.kind, lock.start, lock.len)
                && inode(l.fd) == Some((fd.device, fd.inode))
        };
        if super::access(fd.flags) == other || locks.iter().any(same) {
            return;
        }
    }
    locks.push(lock);
}

/// No lease for reading is given to who can write, as one that is just broken may become.
fn is_to_be_had(lock: &FileLock, fd: &Fd) -> bool {
    lock.kind != LockKind::Lease as u32
        || lock.exclusive == 1
        || super::access(fd.flags) == libc::O_RDONLY
}

fn can_lock(record: &Descriptor) -> bool {
    !matches!(kind(record), DescriptorKind::Stdio | DescriptorKind::Lost | DescriptorKind::Terminal)
}

/// "1: POSIX  ADVISORY  WRITE 5797 fe:00:24 0 EOF" (proc_locks(5)).
fn parse(line: &str, fd: u32) -> Option<FileLock> {
    let mut words = line.split_whitespace();
    let kind = match words.nth(1)? {
        "FLOCK" => LockKind::File,
        "POSIX" => LockKind::Process,
        "OFDLCK" => LockKind::Description,
        "LEASE" => LockKind::Lease,
        _ => return None,
    };
    // Of a lease that is just broken it is what that comes to; nothing can be taken back.
    let exclusive = match words.nth(1)? {
        "WRITE" => 1,
        "READ" => 0,
        _ => return None,
    };
    let holder = words.next()?.parse().unwrap_or(0);
    let start: u64 = words.nth(1)?.parse().ok()?;
    let len = match words.next()? {
        "EOF" => 0,
        end => end.parse::<u64>().ok()?.checked_sub(start)?.checked_add(1)?,
    };
    Some(FileLock { fd, kind: kind as u32, exclusive, holder, start, len })
}

fn called(line: &str) -> &'static str {
    match line.split_whitespace().nth(1) {
        Some("FLOCK") => "flock(2)",
        Some("OFDLCK") => "fcntl(2), F_OFD_SETLK",
        Some("LEASE") if line.contains(" BREAK") => "a lease that is just broken",
        Some("LEASE" | "DELEG") => "a lease, fcntl(2), F_SETLEASE",
        _ => "fcntl(2), F_SETLK",
    }
}

/// Takes the locks of descriptions, and looks whether those of processes can be had; by process. `name` tells a
/// descriptor's file.
///
/// # Errors
/// All that somebody else has.
pub(crate) fn take(
    all: &[Vec<Restored>],
    locks: &[&[FileLock]],
    name: impl Fn(&Descriptor) -> String,
) -> Result<()> {
    let mut failures = Vec::new();
    for (process, lock) in
        (0..).zip(locks).flat_map(|(process, locks)| locks.iter().map(move |lock| (process, lock)))
    {
        let Some((record, fd)) = behind(all, Place { process, fd: lock.fd }) else { continue };
        if let Err(e) = set(fd, lock, Moment::Opened) {
            failures.push(format!("the program had {} locked, {}", name(record), refusal(e)));
        }
    }
    failures.dedup();
    if failures.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!("cannot restart: {}", failures.join("; ")))
        .hint("lslocks(8) shows who holds a lock: wait for its end; nothing has been changed"))
}

/// Whether a description has a lease.
pub(super) fn is_leased(fd: &Fd) -> bool {
    fd.extra.iter().any(|(key, line)| key == "lock" && line.contains(" LEASE "))
}

fn refusal(e: Errno) -> String {
    match e {
        Errno::EAGAIN => "and another process has locked it since".to_owned(),
        e => format!("and it cannot be locked: {}", e.desc()),
    }
}

/// Takes this process's own locks; descriptors have the numbers of the program, and none is closed after this.
///
/// # Errors
/// Somebody else has one of them.
pub(crate) fn take_own(locks: &[FileLock]) -> Result<()> {
    let is_own = |lock: &&FileLock| {
        matches!(LockKind::try_from(lock.kind), Ok(LockKind::Process | LockKind::Lease))
    };
    for lock in locks.iter().filter(is_own) {
        // SAFETY: borrowed for the calls of `set`, which fail with EBADF where there is no such descriptor.
        let fd = unsafe { BorrowedFd::borrow_raw(lock.fd.cast_signed()) };
        set(fd, lock, Moment::Installed).map_err(|e| lost(lock, e))?;
    }
    Ok(())
}

/// Makes this process the holder of the locks of flock(2) that the restarter has taken for it. The kernel notes a new
/// holder only with another kind of lock, and while that is there others may come first: so all this is before anything
/// of the program's is given up.
///
/// # Errors
/// Somebody has come first.
pub(crate) fn take_over(restored: &[Restored], locks: &[FileLock]) -> Result<()> {
    let is_own = |lock: &&FileLock| {
        lock.kind == LockKind::File as u32 && here(Pid::of_word(lock.holder)) == Pid::own()
    };
    for lock in locks.iter().filter(is_own) {
        let Some(fd) = own(restored, lock.fd) else { continue };
        if !is_awaited(fd) {
            set(fd, lock, Moment::TakenOver).map_err(|e| lost(lock, e))?;
        }
    }
    Ok(())
}

/// What becomes a descriptor of this process.
fn own(restored: &[Restored], number: u32) -> Option<BorrowedFd<'_>> {
    match &restored.iter().find(|r| r.record.fd == number)?.origin {
        Origin::Own(file) => Some(file.as_fd()),
        Origin::Shared(leader) => own(restored, *leader),
        Origin::Standard(_) | Origin::Elsewhere(_) => None,
    }
}

/// Whether somebody waits for a lock on that file (proc_locks(5)): he would have it. Then the restarter stays its holder.
fn is_awaited(fd: BorrowedFd<'_>) -> bool {
    let Ok(file) = nix::sys::stat::fstat(fd) else { return false };
    let inode = format!(":{} ", file.st_ino);
    let all = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    all.lines().any(|line| line.contains(": -> FLOCK ") && line.contains(&inode))
}

fn lost(lock: &FileLock, e: Errno) -> Error {
    Error::new(format!("the lock of descriptor {} is lost, {}", lock.fd, refusal(e)))
}

/// When a lock is dealt with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    Opened,
    TakenOver,
    Installed,
}

fn set(fd: BorrowedFd<'_>, lock: &FileLock, moment: Moment) -> nix::Result<()> {
    let call = |command: i32, arg: i32| {
        // SAFETY: numbers only.
        Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), command, arg) }).map(drop)
    };
    let exclusive = lock.exclusive == 1;
    let how = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    let (command, may) = match (LockKind::try_from(lock.kind), moment) {
        (Ok(LockKind::Lease), _) => {
            call(libc::F_SETLEASE, how)?;
            return match moment {
                Moment::Opened => call(libc::F_SETLEASE, libc::F_UNLCK),
                Moment::TakenOver | Moment::Installed => Ok(()),
            };
        }
        (Ok(LockKind::File), _) => {
            let call = |how: i32| {
                // SAFETY: numbers only.
                Errno::result(unsafe { libc::flock(fd.as_raw_fd(), how | libc::LOCK_NB) }).map(drop)
            };
            let mut kinds = [libc::LOCK_SH, libc::LOCK_EX];
            kinds.rotate_left(exclusive.into());
            if moment == Moment::TakenOver {
                // One is put in the place of the other under a spin lock (fs/locks.c, flock_lock_inode): whoever waits for
                // the kind in between alone may come first.
                let _ = call(kinds[1]);
            }
            return call(kinds[0]);
        }
        (Ok(LockKind::Process), Moment::Opened) => (libc::F_GETLK, libc::F_UNLCK),
        (Ok(LockKind::Process), _) => (libc::F_SETLK, how),
        _ => (libc::F_OFD_SETLK, how),
    };
    let mut range = libc::flock {
        l_type: how as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: lock.start.cast_signed(),
        l_len: lock.len.cast_signed(),
        l_pid: 0,
    };
    let at: *mut libc::flock = &mut range;
    // SAFETY: the kernel reads and writes struct flock.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), command, at) })?;
    if i32::from(range.l_type) == may { Ok(()) } else { Err(Errno::EAGAIN) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let lock = parse("1: POSIX  ADVISORY  WRITE 5797 fe:00:24 100 199", 7).unwrap();
        assert_eq!((lock.fd, lock.exclusive, lock.start, lock.len), (7, 1, 100, 100));
        let lock = parse("12: FLOCK  ADVISORY  READ 5797 fe:00:24 0 EOF", 3).unwrap();
        assert_eq!((lock.kind, lock.exclusive, lock.len), (LockKind::File as u32, 0, 0));
        let lease = parse("1: LEASE  BREAKING  READ 5797 fe:00:24 0 EOF", 3).unwrap();
        assert_eq!((lease.kind, lease.exclusive), (LockKind::Lease as u32, 0));
        assert!(parse("1: LEASE  BREAKING  UNLCK 5797 fe:00:24 0 EOF", 3).is_none());
        assert!(parse("1: POSIX  ADVISORY  WRITE 5797 fe:00:24 9 1", 3).is_none());
    }
}
