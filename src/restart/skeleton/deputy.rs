// SPDX-License-Identifier: LGPL-2.1-only
//! Work that others know by the id of the process that has done it: a child that has the id for that long.

use super::make::{clone_with, end};
use super::namespaces::ended;
use crate::proc::Pid;
use crate::proc::fork::helper;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Gid, Uid, getegid, geteuid, setegid, seteuid, setfsuid};

/// Has a child of this id, user and group do something with the descriptors of this process, which both have; or does it,
/// where somebody has the id.
///
/// # Errors
/// Those of the work.
pub(crate) fn act(
    [pid, user, group]: [u32; 3],
    work: &mut dyn FnMut() -> nix::Result<()>,
) -> nix::Result<()> {
    let born = || clone_with(libc::CLONE_FILES, Some(Pid::of_word(pid)), 0);
    match helper(born) {
        Ok(None) => {
            become_user(Uid::from_raw(user), Gid::from_raw(group));
            end(work().map_or_else(|errno| errno as i32, |()| 0))
        }
        Ok(Some(child)) => match ended(child)? {
            0 => Ok(()),
            errno => Err(Errno::from_raw(errno)),
        },
        Err(_) => work(),
    }
}

/// Takes the user and group that others see (kernel/cred.c, euid), where that may be; files stay ours.
fn become_user(user: Uid, group: Gid) {
    let own = geteuid();
    if (user, group) != (own, getegid()) {
        let _ = setegid(group);
        let _ = seteuid(user);
        setfsuid(own);
    }
}
