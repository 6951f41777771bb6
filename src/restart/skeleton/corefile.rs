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
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes that are enough for it, and those with which it is whole if there are few mappings.
const ENOUGH: u64 = 1 << 20;
const LEAST: u64 = 1 << 18;
/// With this limit none is made, nor handed to a program that collects them, whom 0 does not keep away (fs/coredump.c).
const NONE: u64 = 1;

/// What the kernel does with core files.
fn pattern() -> Option<String> {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").ok()?;
    Some(pattern.trim_end().to_owned())
}

/// Whether it hands them to a program, by a pipe or a socket (Linux 6.16).
pub(super) fn are_handed() -> bool {
    pattern().is_some_and(|pattern| pattern.starts_with(['|', '@']))
}

/// Where it puts them; None where it hands them to a program, and where no file system can lie above that.
fn directory() -> Option<PathBuf> {
    let pattern = pattern().filter(|_| !are_handed())?;
    let place = match Path::new(&pattern).parent()? {
        // Any that exists everywhere.
        empty if empty.as_os_str().is_empty() => Path::new("/proc"),
        place if place.is_absolute() => place,
        _ => return None,
    };
    // Nobody whose root it is already sees what is mounted at it.
    let apart = place != Path::new("/") && place.is_dir();
    (apart && !place.to_string_lossy().contains('%')).then(|| place.to_path_buf())
}

/// Why [`leave_one`] leaves none, if so.
pub(crate) fn obstacle() -> Option<&'static str> {
    let (_, most) = getrlimit(Resource::RLIMIT_CORE).unwrap_or_default();
    match directory() {
        None if are_handed() => {
            Some("core files go to a program here (/proc/sys/kernel/core_pattern)")
        }
        None => Some(
            "no core file can be left out of sight where they go here (/proc/sys/kernel/core_pattern)",
        ),
        Some(_) if most < LEAST => Some("core files are limited here (ulimit -H -c)"),
        Some(_) => None,
    }
}

/// Has this process, which ends by a signal now, leave a core file.
pub(super) fn leave_one() {
    if prepare().is_none() {
        leave_none();
    }
}

/// Has it leave none. A limit that was 0 cannot become [`NONE`], and sockets ask for none: only who is not dumpable is
/// handed to nobody then. Where the limit does, it stays so, for what /proc says of it can be read by its user.
pub(super) fn leave_none() {
    let limited = setrlimit(Resource::RLIMIT_CORE, NONE, NONE);
    let by_socket = pattern().is_none_or(|pattern| pattern.starts_with('@'));
    if limited.is_err() || by_socket {
        let _ = prctl::set_dumpable(false);
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    }
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
    let device = || fs::metadata(&place).map(|place| place.dev()).ok();
    let before = device()?;
    mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::MS_NOSUID, nothing).ok()?;
    // Whoever opens the place by its name comes to it.
    device().filter(|device| *device != before)?;
    nix::unistd::chdir(&place).ok()?;
    prctl::set_dumpable(true).ok()
}
