// SPDX-License-Identifier: LGPL-2.1-only
//! Descriptor tables and working directories that processes have together (clone(2) with CLONE_FILES, CLONE_FS). A
//! process can share them only with its maker, from birth.

use super::named;
use crate::proc::Tid;
use crate::ptrace::raw::{Share, order_of, share};
use ckpt_abi::image::{Member, member_flag};

/// Notes who shares what with its parent.
///
/// # Errors
/// Who shares something with another than its parent, a sentence each.
pub(crate) fn save(members: &mut [Member]) -> Vec<String> {
    let mut obstacles = Vec::new();
    for (what, flag, called) in [
        (Share::Files, member_flag::SHARES_FILES, "descriptors (CLONE_FILES)"),
        (Share::Directory, member_flag::SHARES_DIRECTORY, "working directory (CLONE_FS)"),
    ] {
        let mut first: Vec<usize> = Vec::new();
        for index in 0..members.len() {
            if members[index].flags & member_flag::DEAD != 0 {
                continue;
            }
            let pid = |index: usize| Tid::of_word(members[index].pid);
            // Without kcmp(2) nobody can tell.
            let order = |at: &usize| {
                order_of(pid(*at), pid(index), what).unwrap_or_else(|_| at.cmp(&index))
            };
            let at = match first.binary_search_by(order) {
                Ok(at) => at,
                Err(at) => {
                    first.insert(at, index);
                    continue;
                }
            };
            let parent = members.get(members[index].parent as usize);
            let shares =
                |parent: &Member| share(Tid::of_word(parent.pid), pid(index), what) == Ok(true);
            if parent.is_some_and(shares) {
                members[index].flags |= flag;
                continue;
            }
            let [(own, name), (other, others)] = [index, first[at]].map(|at| named(&members[at]));
            obstacles.push(format!(
                "process {own} ({name}) has its {called} together with process {other} ({others}), which is not its parent"
            ));
        }
    }
    obstacles
}

/// The flags of clone(2) with which a member is made.
pub(crate) fn flags(member: &Member) -> i32 {
    let with = |flag: u32, clone: i32| if member.flags & flag != 0 { clone } else { 0 };
    with(member_flag::SHARES_FILES, nix::libc::CLONE_FILES)
        | with(member_flag::SHARES_DIRECTORY, nix::libc::CLONE_FS)
}
