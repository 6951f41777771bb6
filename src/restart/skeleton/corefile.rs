// SPDX-License-Identifier: LGPL-2.1-only
//! Who has ended by a signal may have left a core file, which wait(2) tells (WCOREDUMP; core(5)). Who ends once more in its
//! place leaves another, small one, in a file system of its own that goes with it: nobody finds it.

use super::namespaces::map_user;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{getegid, geteuid};
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that are enough for it.
const ENOUGH: u64 = 1 << 20;
/// With this limit none is made, nor handed to a program that collects them, whom 0 does not keep away (fs/coredump.c).
const NONE: u64 = 1;

/// Where the kernel puts core files; None where it hands them to a program.
fn directory() -> Option<PathBuf> {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").ok()?;
    let pattern = Path::new(pattern.trim_end());
    let parent = pattern.parent()?;
    let handed = pattern.to_string_lossy().starts_with(['|', '@']);
    let place = match parent.is_absolute() {
        true => parent,
        // Any that exists everywhere.
        false if parent.as_os_str().is_empty() => Path::new("/proc"),
        false => return None,
    };
    (!handed && !place.to_string_lossy().contains('%')).then(|| place.to_path_buf())
}

/// Whether [`leave_one`] does.
pub(crate) fn may_be_left() -> bool {
    directory().is_some()
}

/// Has this process, which ends by a signal now, leave a core file.
pub(super) fn leave_one() {
    if prepare().is_none() {
        leave_none();
    }
}

/// Has it leave none.
pub(super) fn leave_none() {
    let _ = setrlimit(Resource::RLIMIT_CORE, NONE, NONE)
        .or_else(|_| setrlimit(Resource::RLIMIT_CORE, 0, 0));
}

fn prepare() -> Option<()> {
    let place = directory()?;
    let (user, group) = (geteuid(), getegid());
    let (_, most) = getrlimit(Resource::RLIMIT_CORE).ok()?;
    setrlimit(Resource::RLIMIT_CORE, ENOUGH.min(most), most).ok()?;
    // No memory.
    fs::write("/proc/self/coredump_filter", "0").ok()?;
    let own = CloneFlags::CLONE_NEWNS;
    let as_user = || unshare(own | CloneFlags::CLONE_NEWUSER).and_then(|()| map_user(user, group));
    unshare(own).or_else(|_| as_user()).ok()?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).ok()?;
    mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::MS_NOSUID, nothing).ok()?;
    nix::unistd::chdir(&place).ok()?;
    prctl::set_dumpable(true).ok()
}
