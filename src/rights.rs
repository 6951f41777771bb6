// SPDX-License-Identifier: LGPL-2.1-only
//! With whose rights the files of a checkpoint are touched.
//!
//! Names of checkpoints, keys and fallback files stand in the memory of the program, which may write
//! there what it likes. Whoever may do more than the program (root who saves a user's process, a
//! monitor that root has started) must not follow them with rights of its own, or the program could
//! have any file replaced. So such work is done with the file system ids, groups and capabilities of
//! the program.
//!
//! # Safety
//! The system calls that change the rights of one thread have no wrapper: the C library's change all
//! threads. Each gets plain numbers, or pointers to arrays that outlive it.
#![allow(unsafe_code)]

use crate::error::{Because, Error, Result};
use crate::proc::{Process, status::Status};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Gid, Uid, getegid, geteuid, setfsgid, setfsuid};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Who may do more: we or a process.
pub(crate) enum Compared {
    /// We may do nothing that the process may not.
    Equal,
    /// We may do more, and can do the work as the process would.
    More(Rights),
    /// We may do more, and cannot: the reason.
    Other(Error),
}

/// What a process may do with files.
#[derive(Clone)]
pub(crate) struct Rights {
    user: u32,
    group: u32,
    groups: Vec<u32>,
    capabilities: u64,
}

/// Compares our rights with those of a process.
///
/// # Errors
/// The process is gone.
pub(crate) fn compare(process: &Process) -> Result<Compared> {
    let own = Process::own()?;
    let (ours, theirs) = (own.main_status()?, process.main_status()?);
    let related = |name: &str| own.namespace(name) == process.namespace(name);
    // Capabilities of another user namespace are none in ours (user_namespaces(7)).
    let capabilities = if related("user") { theirs.capabilities } else { 0 };
    let same_user = theirs.uid == [ours.uid[1]; 4];
    if same_user && ours.capabilities & !capabilities == 0 {
        return Ok(Compared::Equal);
    }
    if let Some(why) = inimitable(process, &theirs, related("mnt")) {
        let way = format!("say where the checkpoint goes: ckpt save -n NAME {}", process.pid());
        return Ok(Compared::Other(why.hint(way)));
    }
    let Status { uid, gid, groups, .. } = theirs;
    Ok(Compared::More(Rights { user: uid[3], group: gid[3], groups, capabilities }))
}

/// Why its rights cannot be ours for a while.
fn inimitable(process: &Process, theirs: &Status, same_mounts: bool) -> Option<Error> {
    let id = |path: String| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let why = if !same_mounts || id(process.path("root")) != id("/".into()) {
        "it sees other files than we do under the same names"
    } else if theirs.uid != [theirs.uid[3]; 4] || theirs.gid != [theirs.gid[3]; 4] {
        "it has the rights of more than one user"
    } else if process.owner() != Some(theirs.uid[3]) {
        "its user may not see its memory"
    } else {
        return None;
    };
    let sentence = format!("process {} belongs to somebody else, and {why}", process.pid());
    Some(Error::new(sentence))
}

/// The user as whom this thread touches files.
pub(crate) fn file_user() -> u32 {
    // An id that is none changes nothing (setfsuid(2)). Where a filter forbids the call, the answer is none either, and it
    // is the effective one, as nobody can have changed it.
    match setfsuid(Uid::from_raw(u32::MAX)).as_raw() {
        u32::MAX => geteuid().as_raw(),
        user => user,
    }
}

/// The group as which it does.
pub(crate) fn file_group() -> u32 {
    match setfsgid(Gid::from_raw(u32::MAX)).as_raw() {
        u32::MAX => getegid().as_raw(),
        group => group,
    }
}

/// The securebits of this thread (capabilities(7)).
pub(crate) fn securebits() -> u32 {
    // SAFETY: it takes no pointer.
    let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) };
    bits.max(0).cast_unsigned()
}

/// Opens a file by its name as whom it is for, if that is somebody else. What he may not is opened with our rights if it
/// is the very file of this device and inode number, and no link to it: he may have put another there.
///
/// # Errors
/// Those of `open`; we cannot act as that user.
pub(crate) fn open_for<F: AsFd>(
    rights: Option<&Rights>,
    path: &Path,
    id: (u64, u64),
    mut open: impl FnMut() -> Result<F>,
) -> Result<F> {
    let Some(rights) = rights else { return open() };
    let refused = match rights.with(&mut open)? {
        Err(error) if error.is_refusal() => error,
        done => return done,
    };
    let same = |found: Option<(u64, u64)>| found == Some(id);
    if !same(fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))) {
        return Err(refused);
    }
    let file = open()?;
    let stat = nix::sys::stat::fstat(file.as_fd()).ok();
    if same(stat.map(|stat| (stat.st_dev, stat.st_ino))) { Ok(file) } else { Err(refused) }
}

impl Rights {
    /// Those of a user and a group, with these supplementary groups and effective capabilities.
    pub(crate) fn of((user, group): (u32, u32), groups: Vec<u32>, capabilities: u64) -> Self {
        Self { user, group, groups, capabilities }
    }

    /// Whether a program that is executed can have those of their user ([`become_one`]).
    pub(crate) fn are_a_users(&self) -> bool {
        self.user != 0
    }

    /// Does something with these rights and those only; this thread's own are back afterwards. A thread
    /// that is made meanwhile keeps them.
    ///
    /// # Errors
    /// The kernel does not let us have them.
    pub(crate) fn with<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let mut before = Before::now()?;
        before.take_on(self).because(|| "cannot act as the process's user").map_err(|e| {
            e.hint("say where the checkpoint goes with -n NAME, or save as that user or root")
        })?;
        Ok(work())
    }
}

/// Becomes a user for good, whose groups this thread has already, with no capability; false where that cannot be, or he is root.
/// It makes system calls only.
pub(crate) fn become_one(user: u32, group: u32) -> bool {
    let mut sets = [CapabilitySet::default(); 2];
    let none = |it: &CapabilitySet| it.effective | it.permitted | it.inheritable == 0;
    // SAFETY: the kernel reads the header and writes the two sets.
    let got = unsafe { libc::syscall(libc::SYS_capget, &THIS_THREAD, &mut sets) };
    // A filter may forbid the calls below.
    let own = (geteuid().as_raw(), getegid().as_raw());
    if user != 0 && own == (user, group) && got == 0 && sets.iter().all(none) {
        return true;
    }
    // SECBIT_NO_SETUID_FIXUP and SECBIT_KEEP_CAPS would hold for set-user-ID programs, too. Only CAP_SETPCAP may.
    let bits = securebits();
    if bits & 0x14 != 0 {
        // SAFETY: it takes no pointer.
        unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits & !0x14, 0, 0, 0) };
    }
    // SAFETY: it takes no pointer.
    let set_group = unsafe { libc::syscall(libc::SYS_setresgid, group, group, group) };
    // SAFETY: as above.
    let set_user = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
    // The change takes capabilities from user 0 only, and execve(2) keeps ambient ones. Those go with the inheritable.
    let is_bare = set_capabilities(&[CapabilitySet::default(); 2]).is_ok();
    // SAFETY: as above.
    let got = unsafe { libc::syscall(libc::SYS_capget, &THIS_THREAD, &mut sets) };
    user != 0 && [set_group, set_user, got] == [0; 3] && is_bare && sets.iter().all(none)
}

/// Does something without CAP_SYS_ADMIN.
///
/// # Errors
/// Our capabilities cannot be found out, or given up.
pub(crate) fn as_anybody<T>(work: impl FnOnce() -> T) -> Result<T> {
    let before = Before::now()?;
    let mut sets = before.sets;
    sets[0].effective &= !(1 << 21);
    set_capabilities(&sets).because(|| "cannot give up a capability")?;
    Ok(work())
}

/// What this thread may do; it may again when this is dropped.
struct Before {
    user: u32,
    group: u32,
    groups: Vec<u32>,
    sets: [CapabilitySet; 2],
}

/// struct __user_cap_data_struct (capset(2)), one for the numbers below 32 and one for the rest.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct CapabilitySet {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const _: () = assert!(size_of::<CapabilitySet>() == 12);

/// The capabilities that overrule permissions of files (CAP_FS_SET of the kernel): CAP_CHOWN to
/// CAP_FSETID, CAP_LINUX_IMMUTABLE, CAP_MKNOD and CAP_MAC_OVERRIDE.
const ABOUT_FILES: u64 = 0b1_1111 | 1 << 9 | 1 << 27 | 1 << 32;

/// struct __user_cap_header_struct: _LINUX_CAPABILITY_VERSION_3, and this thread.
const THIS_THREAD: [u32; 2] = [0x2008_0522, 0];

impl Before {
    fn now() -> Result<Self> {
        let groups = nix::unistd::getgroups().because(|| "cannot find out our groups")?;
        let mut sets = [CapabilitySet::default(); 2];
        // SAFETY: the kernel reads the header and writes the two sets.
        let got = unsafe { libc::syscall(libc::SYS_capget, &THIS_THREAD, &mut sets) };
        Errno::result(got).because(|| "cannot find out our capabilities")?;
        let group = file_group();
        let groups = groups.into_iter().map(Gid::as_raw).collect();
        Ok(Self { user: file_user(), group, groups, sets })
    }

    fn take_on(&mut self, rights: &Rights) -> std::result::Result<(), Errno> {
        // In a user namespace of an ordinary user nobody may, and both have the same (user_namespaces(7)).
        if self.groups != rights.groups {
            set_groups(&rights.groups)?;
        }
        setfsgid(Gid::from_raw(rights.group));
        // Takes the capabilities that are about files with it, when it was 0 (capabilities(7)).
        setfsuid(Uid::from_raw(rights.user));
        if file_user() != rights.user || file_group() != rights.group {
            return Err(Errno::EPERM);
        }
        let mut sets = self.sets;
        let kept = rights.capabilities | !ABOUT_FILES;
        sets[0].effective &= kept as u32;
        sets[1].effective &= (kept >> 32) as u32;
        set_capabilities(&sets)
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        // First what permits the rest; last again, because the user's change alters it. What fails leaves
        // us with fewer rights.
        let _ = set_capabilities(&self.sets);
        let _ = set_groups(&self.groups);
        setfsgid(Gid::from_raw(self.group));
        setfsuid(Uid::from_raw(self.user));
        let _ = set_capabilities(&self.sets);
    }
}

fn set_groups(groups: &[u32]) -> std::result::Result<(), Errno> {
    // SAFETY: the kernel reads so many numbers.
    let set = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    Errno::result(set).map(drop)
}

fn set_capabilities(sets: &[CapabilitySet; 2]) -> std::result::Result<(), Errno> {
    // SAFETY: the kernel reads the header and the two sets.
    let set = unsafe { libc::syscall(libc::SYS_capset, &THIS_THREAD, sets) };
    Errno::result(set).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Tid;

    #[test]
    fn nobody_may_more_than_himself() {
        assert!(matches!(compare(&Process::own().unwrap()), Ok(Compared::Equal)));
    }

    #[test]
    fn rights_come_back() {
        let status = || Process::own().unwrap().status(Tid::own()).unwrap();
        let before = status();
        let (user, group) = (before.uid[3], before.gid[3]);
        let foreign = if user == 0 { 65534 } else { user };
        let rights =
            Rights { user: foreign, group, groups: before.groups.clone(), capabilities: 0 };
        match rights.with(status) {
            Ok(inside) => {
                assert_eq!((inside.uid[3], inside.uid[1]), (foreign, user));
                assert_eq!(inside.capabilities & ABOUT_FILES, 0);
            }
            Err(e) => assert!(user != 0, "{e}"),
        }
        let after = status();
        assert_eq!((after.uid, after.gid, after.groups), (before.uid, before.gid, before.groups));
        assert_eq!(after.capabilities, before.capabilities);
    }
}
