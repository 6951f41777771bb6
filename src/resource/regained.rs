// SPDX-License-Identifier: LGPL-2.1-only
//! What a restart gives a process again of its users, groups, capabilities and root directory.

use super::plan::{Arena, Orders, Step};
use super::privileges::{UNSEEN, seen, sets, sorted};
use crate::error::{Because, Result};
use crate::order;
use crate::proc::idmap::{IdMap, are_groups_fixed};
use crate::proc::{self, status::Status};
use crate::rights::{self, Rights};
use ckpt_abi::image::{ProcessRecord, process_flag};
use nix::libc;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What this process can give a program of its privileges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// It has them.
    Given,
    /// All but the bounding set and securebits.
    Users,
    /// All of them, but for capabilities that it lacks.
    All,
    /// None.
    Denied,
}

const CAP_SETGID: u64 = 1 << 6;
const CAP_SETUID: u64 = 1 << 7;
const CAP_SETPCAP: u64 = 1 << 8;
const NO_SETUID_FIXUP: u32 = 1 << 2;
/// All bits that forbid to change the one below them (SECURE_ALL_LOCKS).
const LOCKS: u32 = 0xaaa;

/// What this process has.
struct Ours {
    status: Status,
    securebits: u32,
}

impl Ours {
    fn now() -> Result<Self> {
        let status = proc::Process::own()?.main_status()?;
        Ok(Self { status, securebits: rights::securebits() })
    }

    fn has_users(&self, saved: &ProcessRecord, groups: &[u32]) -> bool {
        let mut groups = groups.to_vec();
        order::numbers(&mut groups);
        let own = &self.status;
        (own.uid, own.gid) == (saved.users, saved.groups) && sorted(own) == groups
    }

    fn way(&self, saved: &ProcessRecord, groups: &[u32]) -> Way {
        let own = &self.status;
        let may = |capabilities| own.capabilities & capabilities == capabilities;
        let users = self.has_users(saved, groups);
        let rest = sets(own) == saved.capabilities && self.securebits == saved.securebits;
        match () {
            () if users && rest => Way::Given,
            () if own.permitted == 0 => Way::Denied,
            () if !(users || may(CAP_SETGID | CAP_SETUID) && are_known(saved, groups)) => {
                Way::Denied
            }
            () if may(CAP_SETPCAP) && self.may_become(saved.securebits) => Way::All,
            () => Way::Users,
        }
    }

    /// Whether the securebits can be these, and let capabilities outlive a change of users before.
    fn may_become(&self, securebits: u32) -> bool {
        let fixed = NO_SETUID_FIXUP | NO_SETUID_FIXUP << 1;
        let own = self.securebits;
        own & LOCKS == 0 || (own == securebits && own & fixed != NO_SETUID_FIXUP << 1)
    }

    /// What of saved sets this process can give.
    fn part(&self, [effective, permitted, inheritable, bounding, ambient]: [u64; 5]) -> [u64; 5] {
        let own = &self.status;
        let permitted = permitted & own.permitted;
        // cap_capset in security/commoncap.c.
        let inheritable = inheritable & (own.inheritable | own.permitted & own.bounding);
        let ambient = ambient & permitted & inheritable;
        [effective & permitted, permitted, inheritable, bounding & own.bounding, ambient]
    }
}

/// Whether the change to a program's users takes away what this process may do, and nothing keeps it.
pub(crate) fn loses_all(saved: &ProcessRecord, groups: &[u32]) -> bool {
    const KEEP_CAPS: u32 = 1 << 4;
    let loses = |own: Ours| {
        let bits = own.securebits;
        own.way(saved, groups) == Way::Users
            && !own.has_users(saved, groups)
            && bits & NO_SETUID_FIXUP == 0
            && bits & (KEEP_CAPS | KEEP_CAPS << 1) == KEEP_CAPS << 1
    };
    Ours::now().is_ok_and(loses)
}

/// What can be given here of what a program had.
fn way(saved: &ProcessRecord, groups: &[u32]) -> Way {
    Ours::now().map_or(Way::Denied, |own| own.way(saved, groups))
}

/// With whose rights the files of a program are opened that becomes somebody else: it may have put others in their place.
pub(crate) fn rights(saved: &ProcessRecord, groups: &[u32]) -> Option<Rights> {
    let becomes = matches!(way(saved, groups), Way::Users | Way::All);
    let known: Vec<u32> = seen(groups).collect();
    becomes.then(|| Rights::of((saved.users[3], saved.groups[3]), known, saved.capabilities[0]))
}

/// Whether the ids mean somebody in our user namespace, and groups may be set there.
fn are_known(saved: &ProcessRecord, groups: &[u32]) -> bool {
    let (users, known) = (IdMap::users(), IdMap::groups());
    !are_groups_fixed()
        && saved.users.iter().all(|id| users.has(*id))
        && saved.groups.into_iter().chain(seen(groups)).all(|id| known.has(id))
}

/// What is said where a restart does not give a program what it had; `as_user`: in a user namespace that is made for it,
/// which has one user and where its capabilities are given up.
pub(crate) fn denied(saved: &ProcessRecord, groups: &[u32], as_user: bool) -> Option<String> {
    let own = Ours::now().ok()?;
    let Status { uid, gid, permitted, bounding, .. } = own.status;
    let mut way = own.way(saved, groups);
    let permitted = if as_user { 0 } else { permitted };
    if as_user && (way != Way::Given || saved.capabilities[1] != 0) {
        way = Way::Denied;
    }
    let (user, group) = (saved.user, saved.group_id);
    let changed = saved.flags & process_flag::PRIVILEGES != 0;
    match way {
        Way::Given => return None,
        Way::Denied if [uid[1], gid[1]] != [user, group] => {
            return Some(format!(
                "the program was user {user} and group {group}, and goes on as user {} and group {}: that of whoever restarts it",
                uid[1], gid[1]
            ));
        }
        Way::Denied => {
            return (changed || permitted != saved.capabilities[1]).then(|| {
                "the program had users, groups, capabilities or securebits of its own, and goes on with those of whoever restarts it: only root can give them".into()
            });
        }
        Way::Users | Way::All => {}
    }
    let mut lost = Vec::new();
    let lacks = saved.capabilities[1] & !permitted;
    if lacks != 0 {
        lost.push(format!("without capabilities that who restarts it lacks ({lacks:x})"));
    }
    let wider = bounding & !saved.capabilities[3] != 0;
    if way == Way::Users && (wider || own.securebits != saved.securebits) {
        lost.push("with the bounding set and securebits of whoever restarts it, who may not change them (CAP_SETPCAP)".into());
    }
    if groups.contains(&UNSEEN) {
        lost.push("without supplementary groups that could not be seen at the checkpoint (user_namespaces(7))".into());
    }
    (!lost.is_empty()).then(|| format!("the program goes on {}", lost.join(", ")))
}

fn bits(set: u64) -> impl Iterator<Item = u64> {
    (0..64).filter(move |bit| set >> bit & 1 != 0)
}

fn prctl(option: i32, value: u64) -> [u64; 5] {
    [option as u64, value, 0, 0, 0]
}

/// Arguments of capset(2) for the effective, permitted and inheritable set.
fn capset(sets: [u64; 3], arena: &mut Arena) -> Result<[u64; 2]> {
    const VERSION_3: [u32; 2] = [0x2008_0522, 0];
    let half = |set: u64, high: u32| (set >> (32 * high)) as u32;
    let halves = [0, 1].map(|high| sets.map(|set| half(set, high)));
    Ok([arena.value(&VERSION_3)?, arena.value(&halves)?])
}

/// The order that sets them.
fn set_capabilities(sets: [u64; 3], arena: &mut Arena, orders: &mut Orders) -> Result<()> {
    let args = capset(sets, arena)?;
    orders.call(Step::Process, libc::SYS_capset, &args);
    Ok(())
}

/// Orders that give each thread that runs them what the program had; what depends on its user comes behind them.
pub(crate) fn restore(saved: &ProcessRecord, groups: &[u32], arena: &mut Arena) -> Result<Orders> {
    const AMBIENT_RAISE: u64 = 2;
    const AMBIENT_CLEAR_ALL: u64 = 4;
    const JOIN_SESSION_KEYRING: u64 = 1;
    let own = Ours::now()?;
    let way = own.way(saved, groups);
    if matches!(way, Way::Given | Way::Denied) {
        return Ok(Orders::default());
    }
    let (step, mut orders) = (Step::Process, Orders::default());
    let [effective, permitted, inheritable, bounding, ambient] = own.part(saved.capabilities);
    let ours = &own.status;
    if ours.ambient != 0 {
        let clear = [libc::PR_CAP_AMBIENT as u64, AMBIENT_CLEAR_ALL, 0, 0, 0];
        orders.call(step, libc::SYS_prctl, &clear);
    }
    // Nothing can become inheritable that is not in the bounding set.
    set_capabilities([ours.capabilities, ours.permitted, inheritable], arena, &mut orders)?;
    if way == Way::All {
        for bit in bits(ours.bounding & !bounding) {
            orders.call(step, libc::SYS_prctl, &prctl(libc::PR_CAPBSET_DROP, bit));
        }
        let kept = if own.securebits & LOCKS == 0 { 0 } else { own.securebits };
        let keep = prctl(libc::PR_SET_SECUREBITS, (kept | NO_SETUID_FIXUP).into());
        orders.call(step, libc::SYS_prctl, &keep);
    } else {
        orders.try_call(step, libc::SYS_prctl, &prctl(libc::PR_SET_KEEPCAPS, 1));
    }
    if !own.has_users(saved, groups) {
        let known: Vec<u32> = seen(groups).collect();
        let list = arena.value(&known[..])?;
        orders.call(step, libc::SYS_setgroups, &[known.len() as u64, list]);
        for (number, ids, fs) in [
            (libc::SYS_setresgid, saved.groups, libc::SYS_setfsgid),
            (libc::SYS_setresuid, saved.users, libc::SYS_setfsuid),
        ] {
            let [real, effective, set, file] = ids.map(u64::from);
            orders.call(step, number, &[real, effective, set]);
            orders.try_call(step, fs, &[file]);
        }
        // The keys of whoever restarts it are not its user's.
        orders.try_call(step, libc::SYS_keyctl, &[JOIN_SESSION_KEYRING, 0]);
    }
    for bit in bits(ambient) {
        let raise = [libc::PR_CAP_AMBIENT as u64, AMBIENT_RAISE, bit, 0, 0];
        orders.call(step, libc::SYS_prctl, &raise);
    }
    if way == Way::All {
        let secure = prctl(libc::PR_SET_SECUREBITS, saved.securebits.into());
        orders.call(step, libc::SYS_prctl, &secure);
    } else {
        // A change of users has left them permitted only, and filters may come before the last order.
        let kept = [ours.capabilities & ours.permitted, ours.permitted, inheritable];
        let args = capset(kept, arena)?;
        orders.try_call(step, libc::SYS_capset, &args);
        orders.try_call(step, libc::SYS_prctl, &prctl(libc::PR_SET_KEEPCAPS, 0));
    }
    set_capabilities([effective, permitted, inheritable], arena, &mut orders)?;
    Ok(orders)
}

/// Orders by which a thread in a user namespace that was made for its restart gives up what it was allowed there, and
/// what the program had given up.
pub(crate) fn give_up(saved: &ProcessRecord, arena: &mut Arena, orders: &mut Orders) -> Result<()> {
    let own = Ours::now()?;
    for bit in bits(own.status.bounding & !saved.capabilities[3]) {
        orders.try_call(Step::Process, libc::SYS_prctl, &prctl(libc::PR_CAPBSET_DROP, bit));
    }
    if own.securebits != saved.securebits {
        let secure = prctl(libc::PR_SET_SECUREBITS, saved.securebits.into());
        orders.try_call(Step::Process, libc::SYS_prctl, &secure);
    }
    set_capabilities([0; 3], arena, orders)
}

/// Sees whether a root directory can be had, `as_user` in [`denied`]; a sentence where that takes other rights.
///
/// # Errors
/// It is not there.
pub(crate) fn find_root(root: &Path, as_user: bool) -> Result<Option<String>> {
    if root.as_os_str().is_empty() {
        return Ok(None);
    }
    if as_user || !may_change_root() {
        let root = root.display();
        return Ok(Some(format!(
            "the program had the root directory {root}, and goes on without: only root can give it"
        )));
    }
    let why = || format!("cannot change to the program's root directory {}", root.display());
    std::fs::read_dir(root).because(why)?;
    Ok(None)
}

fn may_change_root() -> bool {
    const CAP_SYS_CHROOT: u32 = 18;
    let own = proc::Process::own().and_then(|own| own.main_status());
    own.is_ok_and(|own| own.may(CAP_SYS_CHROOT))
}

/// The order that changes to the root directory: behind all that needs a path.
pub(crate) fn restore_root(root: &Path, arena: &mut Arena, orders: &mut Orders) -> Result<()> {
    if !root.as_os_str().is_empty() && may_change_root() {
        let path = arena.bytes(&[root.as_os_str().as_bytes(), b"\0"].concat())?;
        orders.call(Step::Process, libc::SYS_chroot, &[path]);
    }
    Ok(())
}
