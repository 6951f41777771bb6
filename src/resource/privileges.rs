// SPDX-License-Identifier: LGPL-2.1-only
//! What the kernel grants a process beside its files and memory. Who restarts it gives it that as far as it may; else it
//! is the restarter's, and named where a program started like this one would have something else.

use super::plan::{Arena, Orders, Step};
use super::{Common, Gathered, Target};
use crate::error::{Because, Result};
use crate::proc::{self, status::Status, tree};
use crate::proc::{Pid, Tid};
use crate::ptrace::call::Caller;
use crate::ptrace::list::{List, Question, Replies};
use crate::ptrace::raw;
use ckpt_abi::image::{ProcessRecord, process_flag, thread_flag};
use nix::libc;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whether two processes have one memory: KCMP_VM (kcmp(2)).
const KCMP_VM: i32 = 1;
const KEYCTL_GET_KEYRING_ID: u64 = 0;
const THREAD_KEYRING: i64 = -1;
const PROCESS_KEYRING: i64 = -2;

/// What is asked of privileges.
pub(crate) struct PrivilegeQuestions {
    securebits: Question,
    keyrings: [Question; 2],
}

/// Asks for what only the process can say.
pub(crate) fn ask(list: &mut List) -> PrivilegeQuestions {
    PrivilegeQuestions {
        securebits: list.call(libc::SYS_prctl, &[libc::PR_GET_SECUREBITS as u64]),
        // A session keyring, which execve(2) does not take away, is not looked for: the question gives one to a process
        // that has none (security/keys/process_keys.c, lookup_user_key).
        keyrings: [PROCESS_KEYRING, THREAD_KEYRING].map(|which: i64| {
            list.call(libc::SYS_keyctl, &[KEYCTL_GET_KEYRING_ID, which.cast_unsigned(), 0])
        }),
    }
}

/// Whether whoever saves could give a program its users, groups, capabilities and root directory again, and so whoever
/// restarts it is likely to.
pub(crate) fn are_given_again() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Saves and names what is the program's own.
pub(crate) fn save(
    asked: &PrivilegeQuestions,
    answers: &Replies,
    target: &Target<'_>,
    gathered: &mut Gathered,
    common: &mut Common,
) {
    let (pid, own) = (target.frozen.pid, &target.status);
    // Without a parent that we see there is nothing to compare with, nor is ours one.
    let above =
        if own.ppid == Pid::INIT && tree::is_made_for_a_tree() { Pid::NONE } else { own.ppid };
    let root = common.tables.root().filter(|root| *root != pid);
    let first = root.and_then(|root| common.relatives.of(root).status.clone());
    let parent = common.relatives.of(above);
    // Whoever could give it all again stands for a parent that is not seen, as of a restarted program.
    let standard = parent.status.clone().or_else(|| {
        let ours = || proc::Process::own().and_then(|own| own.main_status()).ok();
        are_given_again().then(ours).flatten()
    });
    let mut lost = Vec::new();
    if own.uid != [own.uid[0]; 4] || own.gid != [own.gid[0]; 4] {
        lost.push(format!(
            "its user and group ids, which are not all the same (user {} as {}, group {} as {}): a restart has the restarter's",
            own.uid[0], own.uid[1], own.gid[0], own.gid[1]
        ));
    }
    let same =
        |first: &Status| (first.uid, first.gid, &first.groups) == (own.uid, own.gid, &own.groups);
    if first.as_ref().is_some_and(|first| !same(first)) {
        lost.push(format!(
            "its user and group ids, which are not those of the job's first process (user {}, group {}): a restart has one user for all",
            own.uid[1], own.gid[1]
        ));
    }
    if !is_ordinary(own) || standard.as_ref().is_some_and(|it| is_limited(own, it)) {
        lost.push(format!(
            "its capabilities, which were changed for it (CapEff {:x}): a restart has the restarter's",
            own.capabilities
        ));
    }
    let others = |parent: &Status| parent.uid == own.uid && sorted(parent) != sorted(own);
    if standard.as_ref().is_some_and(others) {
        lost.push(
            "its supplementary groups, which were changed for it: a restart has the restarter's"
                .into(),
        );
    }
    let securebits = answers.result(asked.securebits).max(0);
    if securebits > 0 {
        lost.push(format!("its securebits ({securebits:#x}): a restart has the restarter's"));
    }
    if let Some(process) = &mut gathered.process {
        process.securebits = securebits as u32;
        process.flags |= if lost.is_empty() { 0 } else { process_flag::PRIVILEGES };
    }
    let lost = lost.into_iter().filter(|_| !are_given_again());
    gathered.losses.extend(lost);
    let mut say = |what: String| gathered.losses.push(what);
    let spaces = target.rest.map(|rest| rest.namespaces.unlike(&parent.namespaces));
    let spaces = spaces.unwrap_or_default();
    if !spaces.is_empty() {
        say(format!("its own namespaces ({}): a restart has the restarter's", spaces.join(", ")));
    }
    if asked.keyrings.into_iter().any(|asked| answers.result(asked) > 0) {
        say("the keys in its process or thread keyring (keyrings(7)): a restart has none".into());
    }
    let others = target.frozen.tids().into_iter().filter(|tid| *tid != pid.main_thread());
    for thread in others.chain([pid.main_thread()]) {
        if is_clamped(thread, own.ppid) {
            say(format!(
                "how much of a CPU thread {thread} is taken to use (sched_setattr(2), SCHED_FLAG_UTIL_CLAMP)"
            ));
        }
    }
}

/// What this process can give a program of its privileges.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// It has them.
    Given,
    /// Its users and groups, which all else follows.
    Users,
    /// All of them.
    All,
    /// None.
    Denied,
}

/// What can be given here of what a program had.
pub(crate) fn way(saved: &ProcessRecord, groups: &[u32]) -> Way {
    // CAP_SETGID, CAP_SETUID and CAP_SETPCAP.
    const NEEDED: u64 = 1 << 6 | 1 << 7 | 1 << 8;
    let Ok(own) = proc::Process::own().and_then(|own| own.main_status()) else {
        return Way::Denied;
    };
    let [_, permitted, _, bounding, _] = saved.capabilities;
    let changed = saved.flags & process_flag::PRIVILEGES != 0;
    let has = permitted & !own.permitted == 0 && bounding & !own.bounding == 0;
    let may = own.capabilities & NEEDED == NEEDED && are_known(saved);
    let same = (own.uid, own.gid) == (saved.users, saved.groups);
    // Who saved it may have seen no other that was started like it.
    let same_groups = sorted(&own) == sorted(&Status { groups: groups.to_vec(), ..own.clone() });
    let limited = has && saved.users[1] == 0 && sets(&own) != saved.capabilities;
    match () {
        () if !changed && same && !(may && (limited || !same_groups)) => Way::Given,
        () if !may => Way::Denied,
        () if !changed && !limited => Way::Users,
        () if has => Way::All,
        () => Way::Denied,
    }
}

/// Whether the ids mean somebody in our user namespace.
fn are_known(saved: &ProcessRecord) -> bool {
    let known = |name: &str, ids: &[u32]| {
        let map = std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        ids.iter().all(|id| {
            map.lines().any(|line| {
                let words = line.split_ascii_whitespace();
                let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
                let [first, _, count] = numbers[..] else { return false };
                (first..first.saturating_add(count)).contains(&(*id).into())
            })
        })
    };
    known("uid_map", &saved.users) && known("gid_map", &saved.groups)
}

/// The groups of an image.
pub(crate) fn groups(text: OsString) -> Vec<u32> {
    text.as_bytes().as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

/// What is said where a restart does not give a program what it had.
pub(crate) fn denied(saved: &ProcessRecord, groups: &[u32]) -> Option<String> {
    use nix::unistd::{getegid, geteuid};
    if way(saved, groups) != Way::Denied {
        return None;
    }
    let own = [geteuid().as_raw(), getegid().as_raw()];
    let (user, group) = (saved.user, saved.group_id);
    if own != [user, group] {
        return Some(format!(
            "the program was user {user} and group {group}, and goes on as user {} and group {}: that of whoever restarts it",
            own[0], own[1]
        ));
    }
    (saved.flags & process_flag::PRIVILEGES != 0).then(|| {
        "the program had users, groups, capabilities or securebits of its own, and goes on with those of whoever restarts it: only root can give them".into()
    })
}

/// Orders that give each thread that runs them what the program had; what depends on its user comes behind them.
pub(crate) fn restore(saved: &ProcessRecord, groups: &[u32], arena: &mut Arena) -> Result<Orders> {
    const VERSION_3: [u32; 2] = [0x2008_0522, 0];
    const NO_SETUID_FIXUP: u64 = 1 << 2;
    const AMBIENT_RAISE: u64 = 2;
    let way = way(saved, groups);
    if matches!(way, Way::Given | Way::Denied) {
        return Ok(Orders::default());
    }
    let (step, mut orders) = (Step::Process, Orders::default());
    let bits = |set: u64| (0..64).filter(move |bit| set >> bit & 1 != 0);
    let [effective, permitted, inheritable, bounding, ambient] = saved.capabilities;
    let prctl = |option: i32, value: u64| [option as u64, value, 0, 0, 0];
    if way == Way::All {
        let own = proc::Process::own()?.main_status()?;
        for bit in bits(own.bounding & !bounding) {
            orders.call(step, libc::SYS_prctl, &prctl(libc::PR_CAPBSET_DROP, bit));
        }
        let keep = prctl(libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP);
        orders.call(step, libc::SYS_prctl, &keep);
    }
    let list = arena.value(groups)?;
    orders.call(step, libc::SYS_setgroups, &[groups.len() as u64, list]);
    for (number, ids, fs) in [
        (libc::SYS_setresgid, saved.groups, libc::SYS_setfsgid),
        (libc::SYS_setresuid, saved.users, libc::SYS_setfsuid),
    ] {
        let [real, effective, set, file] = ids.map(u64::from);
        orders.call(step, number, &[real, effective, set]);
        orders.try_call(step, fs, &[file]);
    }
    if way == Way::All {
        let secure = prctl(libc::PR_SET_SECUREBITS, saved.securebits.into());
        orders.call(step, libc::SYS_prctl, &secure);
        let halves = |set: u64, high: u32| (set >> (32 * high)) as u32;
        let sets = [0, 1].map(|h| [effective, permitted, inheritable].map(|set| halves(set, h)));
        let args = [arena.value(&VERSION_3)?, arena.value(&sets)?];
        orders.call(step, libc::SYS_capset, &args);
        for bit in bits(ambient) {
            let raise = [libc::PR_CAP_AMBIENT as u64, AMBIENT_RAISE, bit, 0, 0];
            orders.try_call(step, libc::SYS_prctl, &raise);
        }
    }
    Ok(orders)
}

/// Sees whether a root directory can be had; a sentence where that takes other rights.
///
/// # Errors
/// It is not there.
pub(crate) fn find_root(root: &Path) -> Result<Option<String>> {
    if root.as_os_str().is_empty() {
        return Ok(None);
    }
    if !may_change_root() {
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
    own.is_ok_and(|own| own.capabilities >> CAP_SYS_CHROOT & 1 != 0)
}

/// The order that changes to the root directory: behind all that needs a path.
pub(crate) fn restore_root(root: &Path, arena: &mut Arena, orders: &mut Orders) -> Result<()> {
    if !root.as_os_str().is_empty() && may_change_root() {
        let path = arena.bytes(&[root.as_os_str().as_bytes(), b"\0"].concat())?;
        orders.call(Step::Process, libc::SYS_chroot, &[path]);
    }
    Ok(())
}

/// The sets of capabilities: effective, permitted, inheritable, bounding, ambient.
pub(crate) fn sets(status: &Status) -> [u64; 5] {
    let Status { permitted, capabilities, inheritable, bounding, ambient, .. } = *status;
    [capabilities, permitted, inheritable, bounding, ambient]
}

/// Names a sandbox of its own (Landlock(7)). Nothing shows it but what it forbids: to look at an equal outside (kcmp(2)).
/// Whoever may do more than the program is no equal.
pub(crate) fn name_sandbox(
    target: &Target<'_>,
    caller: &mut Caller<'_>,
    gathered: &mut Gathered,
) -> Result<()> {
    let process = target.process();
    if gathered.threads.first().is_none_or(|main| main.flags & thread_flag::NO_NEW_PRIVS == 0) {
        return Ok(());
    }
    let own = &target.status;
    let mut compares = |other: &proc::Process| {
        let ids = [process.inner_pid().get(), other.inner_pid().get(), KCMP_VM];
        let args = ids.map(|id| i64::from(id).cast_unsigned());
        caller.call(libc::SYS_kcmp, &args)
    };
    // A filter refuses it to look at oneself, too.
    if compares(process)? != 0 {
        return Ok(());
    }
    for other in [Pid::own(), own.ppid] {
        let Ok(other) = proc::Process::glimpse(other) else { continue };
        let same = |kind| process.namespace(kind) == other.namespace(kind);
        let equal = other.main_status().is_ok_and(|it| {
            (it.uid, it.gid) == (own.uid, own.gid) && it.permitted & !own.permitted == 0
        });
        if equal && same("pid") && same("user") && compares(&other)? == -i64::from(libc::EPERM) {
            let text =
                "the sandbox that it has locked itself in (Landlock(7)): a restart is not in it";
            gathered.losses.push(text.into());
            break;
        }
    }
    Ok(())
}

/// Whether it has what execve(2) gives to a program without capabilities in its file (capabilities(7)).
fn is_ordinary(own: &Status) -> bool {
    let (real, effective) = (own.uid[0], own.uid[1]);
    let permitted =
        if real == 0 || effective == 0 { own.inheritable | own.bounding } else { own.ambient };
    let active = if effective == 0 { permitted } else { own.ambient };
    (own.permitted, own.capabilities) == (permitted, active)
}

fn sorted(status: &Status) -> Vec<u32> {
    let mut groups = status.groups.clone();
    groups.sort_unstable();
    groups
}

fn is_limited(own: &Status, parent: &Status) -> bool {
    own.bounding != parent.bounding || (own.ambient != parent.ambient && own.ambient != 0)
}

/// Whether a thread has clamps that are neither the default nor those of the process that made its own.
fn is_clamped(tid: Tid, parent: Pid) -> bool {
    const DEFAULTS: [[u32; 2]; 3] = [[0, 0], [0, 1024], [1024, 1024]];
    let clamps = |tid| raw::scheduling(tid).map(|attr| attr.clamps).ok();
    let own = clamps(tid);
    own.is_some_and(|own| !DEFAULTS.contains(&own)) && own != clamps(parent.main_thread())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_capabilities() {
        let user = Status {
            uid: [1000; 4],
            permitted: 0,
            inheritable: 8,
            capabilities: 0,
            ambient: 0,
            bounding: 7,
            ..proc::Process::own().and_then(|own| own.main_status()).unwrap()
        };
        let root = Status { uid: [0; 4], permitted: 15, capabilities: 15, ..user.clone() };
        assert!(is_ordinary(&user) && is_ordinary(&root));
        assert!(!is_ordinary(&Status { permitted: 1, ..user.clone() }));
        assert!(!is_ordinary(&Status { permitted: 7, ..root.clone() }));
        assert!(!is_ordinary(&Status { capabilities: 0, ..root.clone() }));
        assert!(!is_limited(&user, &root));
        assert!(is_limited(&Status { bounding: 3, ..user }, &root));
    }
}
