// SPDX-License-Identifier: LGPL-2.1-only
//! Files of /proc about processes of the checkpoint: /proc/PID/... and /proc/PID/task/PID/... of the restarted ones, which
//! are opened when these are there. Those about others would be about whoever has their numbers then.

use super::lost::stand_in;
use super::open::{by_path, seek};
use super::{Kind, Look, Opening, Origin, Saving};
use crate::error::Result;
use crate::proc::fds::Fd;
use crate::proc::{Pid, Tid};
use ckpt_abi::image::Descriptor;
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

pub(super) const KIND: Kind = Kind { recognise, save, open };

/// What a path in /proc is about.
#[derive(Debug, PartialEq, Eq)]
enum About {
    /// The process of this number, by its rest.
    Process(Pid, PathBuf),
    /// A thread of the process.
    Thread(Pid, Tid, PathBuf),
    /// No process: /proc/meminfo and the like.
    Machine,
}

fn number<N: FromStr>(part: Option<Component<'_>>) -> Option<N> {
    part?.as_os_str().to_str()?.parse().ok()
}

fn about(path: &Path) -> About {
    let mut parts = path.strip_prefix("/proc").unwrap_or(Path::new("")).components();
    let Some(pid) = number(parts.next()) else {
        return About::Machine;
    };
    let mut inner = parts.clone();
    if inner.next().is_some_and(|part| part.as_os_str() == "task")
        && let Some(tid) = number(inner.next())
    {
        return About::Thread(pid, tid, inner.as_path().to_path_buf());
    }
    About::Process(pid, parts.as_path().to_path_buf())
}

fn recognise(fd: &Fd, look: &Look<'_>) -> bool {
    if !fd.target.as_encoded_bytes().starts_with(b"/proc/") {
        return false;
    }
    let there = statfs(look.process.fd(fd.number).as_str());
    there.is_ok_and(|fs| fs.filesystem_type() == PROC_SUPER_MAGIC)
        && about(Path::new(&fd.target)) != About::Machine
}

fn save(fd: &Fd, look: &Look<'_>, saving: &mut Saving) -> Result<()> {
    let own = |pid: Pid| pid == look.process.pid() || pid == look.inner_pid;
    let pids = look.tables.pids();
    let member = |pid: Pid| match own(pid) {
        true => Some(look.process.pid()),
        false => pids.contains(&pid).then_some(pid),
    };
    let (about, of_thread, rest) = match about(Path::new(&fd.target)) {
        About::Process(pid, rest) => (pid, false, rest),
        About::Thread(pid, tid, rest) if tid == pid.main_thread() => (pid, true, rest),
        About::Thread(pid, ..) if member(pid).is_some() => {
            saving.lose("about a thread, which may have another number after a restart");
            return Ok(());
        }
        _ => (Pid::NONE, false, PathBuf::new()),
    };
    match member(about) {
        Some(_) if !of_thread && rest.starts_with("fdinfo") => saving.lose("about a descriptor"),
        Some(pid) => {
            saving.record.value = pid.word().into();
            saving.record.extra = of_thread.into();
            saving.path = rest.into();
        }
        None => saving.lose("about another process"),
    }
    Ok(())
}

fn open(_: &Descriptor, _: &mut Opening<'_>) -> Result<Origin> {
    stand_in().map(Origin::Own)
}

/// Opens it in the process that has it, where all others are, too; `rest` is its path below that of the process it is about,
/// which has the id `pid`.
///
/// # Errors
/// There is none.
pub(super) fn late(record: &Descriptor, pid: Pid, rest: &Path) -> Result<OwnedFd> {
    let process = Path::new("/proc").join(pid.to_string());
    let place = match record.extra {
        0 => process,
        _ => process.join("task").join(pid.to_string()),
    };
    let path = if rest.as_os_str().is_empty() { place } else { place.join(rest) };
    let file = by_path(record, &path)?;
    // What these files say is made when it is read; a position that is none any more is that of the end.
    let _ = seek(&file, record, &path);
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_path_is_about() {
        let of = |path: &str| about(Path::new(path));
        assert_eq!(of("/proc/12/statm"), About::Process(Pid::new(12), "statm".into()));
        assert_eq!(of("/proc/12"), About::Process(Pid::new(12), "".into()));
        assert_eq!(of("/proc/12/task"), About::Process(Pid::new(12), "task".into()));
        assert_eq!(
            of("/proc/12/task/13/comm"),
            About::Thread(Pid::new(12), Tid::new(13), "comm".into())
        );
        assert_eq!(of("/proc/meminfo"), About::Machine);
        assert_eq!(of("/proc/sys/vm/swappiness"), About::Machine);
    }
}
