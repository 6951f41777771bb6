// SPDX-License-Identifier: LGPL-2.1-only
//! What the kernel grants a process beside its files and memory. Who restarts it gives it that as far as it may
//! ([`super::regained`]); else it is the restarter's, and named where a program started like this one would have
//! something else.

use super::{Common, Gathered, Target};
use crate::error::Result;
use crate::order;
use crate::proc::idmap::IdMap;
use crate::proc::{self, status::Status, tree};
use crate::proc::{Pid, Tid};
use crate::ptrace::call::Caller;
use crate::ptrace::list::{List, Question, Replies};
use crate::ptrace::raw;
use ckpt_abi::image::{process_flag, thread_flag};
use nix::libc;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

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
#[inline(never)]
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
    let jobs = root.map(|root| common.relatives.of(root));
    let first = jobs.and_then(|jobs| jobs.status.clone());
    let theirs = jobs.and_then(|jobs| jobs.control_groups.as_ref());
    let groups = || proc::Process::glimpse(pid).ok()?.control_groups();
    let moved = theirs.is_some_and(|theirs| groups().is_some_and(|own| own != *theirs));
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
    if moved {
        say("its own control groups (cgroups(7)): a restart has the restarter's".into());
    }
    if asked.keyrings.into_iter().any(|asked| answers.result(asked) > 0) {
        say("the keys in its process or thread keyring (keyrings(7)): a restart has none".into());
    }
    // Where the kernel has no clamps (CONFIG_UCLAMP_TASK), they are zeros, which are not the defaults of one that has.
    if clamps(Tid::of_word(0)).is_none_or(|own| own == [0; 2]) {
        return;
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

/// Stands for a group that the user namespace of the checkpoint does not map, and so nobody could see.
pub(crate) const UNSEEN: u32 = u32::MAX;

/// The groups of a process, as they are saved.
pub(crate) fn seen_groups(status: &Status) -> Vec<u32> {
    if status.groups.is_empty() {
        return Vec::new();
    }
    let map = IdMap::groups();
    status.groups.iter().map(|id| if map.has(*id) { *id } else { UNSEEN }).collect()
}

pub(crate) fn seen(groups: &[u32]) -> impl Iterator<Item = u32> {
    groups.iter().copied().filter(|group| *group != UNSEEN)
}

/// The groups of an image.
pub(crate) fn groups(text: OsString) -> Vec<u32> {
    text.as_bytes().as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
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
    // Of a main thread that has ended nothing is known.
    if !gathered.threads.iter().any(|thread| thread.flags & thread_flag::NO_NEW_PRIVS != 0) {
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

pub(crate) fn sorted(status: &Status) -> Vec<u32> {
    let mut groups = status.groups.clone();
    order::numbers(&mut groups);
    groups
}

fn is_limited(own: &Status, parent: &Status) -> bool {
    own.bounding != parent.bounding || (own.ambient != parent.ambient && own.ambient != 0)
}

fn clamps(thread: Tid) -> Option<[u32; 2]> {
    raw::scheduling(thread).map(|attr| attr.clamps).ok()
}

/// Whether a thread has clamps that are neither the default nor those of the process that made its own.
fn is_clamped(tid: Tid, parent: Pid) -> bool {
    const DEFAULTS: [[u32; 2]; 3] = [[0, 0], [0, 1024], [1024, 1024]];
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
