// SPDX-License-Identifier: LGPL-2.1-only
//! The namespaces of processes and threads (namespaces(7)).

use super::id::Tid;
use super::process::Process;
use std::path::PathBuf;

/// The links of /proc/PID/ns, and what they are called in sentences. Time is not among them: a restart gives a program
/// a namespace of that kind by itself.
const KINDS: [(&str, &str); 7] = [
    ("net", "network"),
    ("uts", "host name"),
    ("ipc", "IPC"),
    ("mnt", "mounts"),
    ("user", "user ids"),
    ("cgroup", "cgroups"),
    ("pid_for_children", "process ids of children"),
];
/// What a thread may have of its own while it shares its directory with the others (CLONE_FS).
const OF_THREADS: usize = 3;

/// What a link of /proc/PID/ns says; None if that is nothing: so Linux 5.10 answers who may not read it.
pub(super) fn told(link: impl Into<PathBuf>) -> Option<PathBuf> {
    Some(link.into()).filter(|link| !link.as_os_str().is_empty())
}

/// Namespaces by their numbers; None of one that may not be looked at.
#[derive(Clone, Default)]
pub(crate) struct Namespaces([Option<PathBuf>; KINDS.len()]);

impl Namespaces {
    /// Those of a process.
    pub(crate) fn of(process: &Process) -> Self {
        Self(KINDS.map(|(name, _)| process.namespace(name)))
    }

    /// Those of this process in which another differs, in words.
    pub(crate) fn unlike(&self, other: &Self) -> Vec<&'static str> {
        let both = self.0.iter().zip(&other.0).zip(KINDS);
        let different =
            both.filter(|((own, other), _)| own.is_some() && other.is_some() && own != other);
        different.map(|(_, (_, words))| words).collect()
    }

    /// Those in which a thread of the process differs, in words.
    pub(crate) fn left_by(&self, process: &Process, tid: Tid) -> Vec<&'static str> {
        let left = |own: &Option<PathBuf>, name: &str| {
            let its = process.link_of(&format!("task/{tid}/ns/{name}")).ok().and_then(told);
            its.is_some() && own.is_some() && its != *own
        };
        let kinds = self.0.iter().zip(KINDS).take(OF_THREADS);
        kinds.filter(|(own, (name, _))| left(own, name)).map(|(_, (_, words))| words).collect()
    }
}
