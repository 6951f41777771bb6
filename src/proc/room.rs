// SPDX-License-Identifier: LGPL-2.1-only
//! Room for ckpt itself, whatever resource limits it was started under (getrlimit(2)).
//!
//! The limits of the shell that restarts a program are not the program's, which come back at the end; and a
//! program that ckpt starts gets those that ckpt had.

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use std::sync::OnceLock;

/// What counts against us: data, address space, descriptors (several for each process of a job), and the size of a memfd
/// or a file.
const COUNTED: [Resource; 4] =
    [Resource::RLIMIT_DATA, Resource::RLIMIT_AS, Resource::RLIMIT_NOFILE, Resource::RLIMIT_FSIZE];

/// As many descriptors as the kernel allows anybody, unless somebody has changed that (fs.nr_open, proc_sys_fs(5)).
const MOST_OPEN: u64 = 1 << 20;

/// Bytes of data and address space without which nothing can be done.
const LEAST: u64 = 16 << 20;

/// Bytes of stack that the deepest calls need, generously.
pub const STACK: u64 = 1 << 20;

static BEFORE: OnceLock<[(u64, u64); 4]> = OnceLock::new();

/// Raises our limits as far as we may, before the first allocation; a sentence where that is too little.
///
/// # Errors
/// Data or address space do not suffice to go on.
pub fn make() -> Result<(), &'static [u8]> {
    BEFORE.get_or_init(|| COUNTED.map(|r| getrlimit(r).unwrap_or((RLIM_INFINITY, RLIM_INFINITY))));
    for resource in COUNTED {
        let Ok((_, hard)) = getrlimit(resource) else { continue };
        let most = match resource {
            Resource::RLIMIT_NOFILE => hard.max(MOST_OPEN),
            _ => RLIM_INFINITY,
        };
        if setrlimit(resource, most, most).is_err() {
            let _ = setrlimit(resource, hard, hard);
        }
    }
    let suffices = |resource| getrlimit(resource).map_or(true, |(soft, _)| soft >= LEAST);
    if !suffices(Resource::RLIMIT_DATA) {
        return Err(b"ckpt: it needs 16 MiB of data at least, and the limit is lower; raise it (ulimit -d)\n");
    }
    if !suffices(Resource::RLIMIT_AS) {
        return Err(b"ckpt: it needs 16 MiB of addresses at least, and the limit is lower; raise it (ulimit -v)\n");
    }
    Ok(())
}

/// Gives the limits back that we were started with: to a program that takes our place.
///
/// # Errors
/// Those of setrlimit(2).
pub fn give_back() -> Result<(), Errno> {
    let before = BEFORE.get().into_iter().flatten();
    COUNTED.iter().zip(before).try_for_each(|(resource, (soft, hard))| {
        if getrlimit(*resource) == Ok((*soft, *hard)) {
            return Ok(());
        }
        setrlimit(*resource, *soft, *hard)
    })
}

/// Lets the limit on the size of files (RLIMIT_FSIZE) that we were started with count again: it is meant for what
/// we write for the program, and not for the memfds that we need.
pub fn keep_files_small() {
    if let Some([.., (soft, _)]) = BEFORE.get()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_FSIZE)
    {
        let _ = setrlimit(Resource::RLIMIT_FSIZE, *soft, hard);
    }
}

/// Whether our stack may grow as far as we need.
pub fn has_stack() -> bool {
    getrlimit(Resource::RLIMIT_STACK).map_or(true, |(soft, _)| soft >= STACK)
}
