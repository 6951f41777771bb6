// SPDX-License-Identifier: LGPL-2.1-only
//! A thread in words: /proc/PID/task/TID/status.

use super::id::{Pid, Tid};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;

use super::process::Process;
use super::text::{Fields, decimal, field, hex, missing, needed, octal, words};
use super::{parsed, piece_of};
use crate::error::{Error, Result};

/// linux/capability.h
pub(crate) const CAP_SYS_ADMIN: u32 = 21;

/// What proc_pid_status(5) tells of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The name of the thread (prctl PR_SET_NAME), at most 15 bytes.
    pub name: OsString,
    /// The process it is a thread of.
    pub tgid: Pid,
    /// The parent of the process; 0 if that is outside our pid namespace.
    pub ppid: Pid,
    /// R, S, D, T (stopped), t (stopped by a tracer), X, Z, P or I.
    pub state: char,
    /// Real, effective, saved and file system user id.
    pub uid: [u32; 4],
    /// Real, effective, saved and file system group id.
    pub gid: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The effective capabilities (CapEff) in the process's own user namespace, by their numbers.
    pub capabilities: u64,
    /// The permitted capabilities (CapPrm), by their numbers as the three below.
    pub permitted: u64,
    /// Those that stay through execve(2) if the file says so (CapInh).
    pub inheritable: u64,
    /// The most that execve(2) can give (CapBnd).
    pub bounding: u64,
    /// Those that stay through execve(2) (CapAmb).
    pub ambient: u64,
    /// The file mode creation mask; none of a zombie, and before Linux 4.7.
    pub umask: Option<u32>,
    /// How many threads the process has.
    pub threads: u32,
    /// Signals pending for this thread (SigPnd); bit N is signal N + 1, as in all five sets.
    pub pending: u64,
    /// Signals pending for the process (ShdPnd).
    pub shared_pending: u64,
    /// The signal mask of the thread (SigBlk).
    pub blocked: u64,
    /// Signals the process ignores (SigIgn).
    pub ignored: u64,
    /// Signals the process has a handler for (SigCgt).
    pub caught: u64,
    /// PR_SET_NO_NEW_PRIVS is set.
    pub no_new_privs: bool,
    /// 0 none, 1 strict, 2 filter (seccomp(2)).
    pub seccomp: u32,
    /// How much memory is locked (mlock(2)), in kB.
    pub locked: u64,
    /// How many seccomp filters it obeys; none before Linux 5.9.
    pub seccomp_filters: Option<u32>,
    /// Whether the thread's stores are never passed by loads (PR_SPEC_STORE_BYPASS).
    pub store_bypass: Mitigation,
    /// Whether the thread's indirect branches are not predicted (PR_SPEC_INDIRECT_BRANCH).
    pub indirect_branch: Mitigation,
    /// Who traces it, 0 if nobody in our pid namespace.
    pub tracer: Tid,
    /// Its id in its own PID namespace (the last of NSpid); ours where that is not told.
    pub inner_id: Pid,
    /// It has the processor ignore bits of addresses (Linux 6.4: untag_mask has zeros there).
    pub tags_addresses: bool,
}

/// Whether a thread has asked for less speculation (prctl(2), PR_SET_SPECULATION_CTRL).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mitigation {
    /// It has not, or the machine does not let it.
    #[default]
    None,
    /// It has (PR_SPEC_DISABLE).
    Asked,
    /// It has, for ever (PR_SPEC_FORCE_DISABLE).
    Forced,
}

impl Mitigation {
    /// By the words of proc_pid_status (fs/proc/array.c, task_seccomp).
    fn of(words: Option<&[u8]>) -> Self {
        match words {
            Some(b"thread mitigated" | b"conditional disabled") => Self::Asked,
            Some(b"thread force mitigated" | b"conditional force disabled") => Self::Forced,
            _ => Self::None,
        }
    }
}

impl Status {
    /// Whether it has an effective capability.
    pub(crate) fn may(&self, capability: u32) -> bool {
        self.capabilities >> capability & 1 != 0
    }

    /// The signals that wait for this thread, or for its process.
    pub fn waiting(&self) -> u64 {
        self.pending | self.shared_pending
    }
}

impl Process {
    /// The status of thread `tid` of process `pid`.
    ///
    /// # Errors
    /// The process or the thread is gone.
    pub fn status(&self, tid: Tid) -> Result<Status> {
        let text = self.thread_file(tid, "status")?;
        parsed(parse(&text), || self.called(&format!("task/{tid}/status")))
    }

    /// Opens what [`Process::status_in`] reads later with fewer system calls.
    pub(crate) fn open_status(&self, tid: Tid) -> Option<File> {
        self.open_of(tid, "status")
    }

    /// The status of a thread by what was opened for it, if that is still it.
    ///
    /// # Errors
    /// The process or the thread is gone.
    pub(crate) fn status_in(&self, tid: Tid, opened: Option<File>) -> Result<Status> {
        let text = opened.and_then(|mut file| piece_of(&mut file).ok()?);
        text.and_then(|text| parse(&text).ok()).map_or_else(|| self.status(tid), Ok)
    }

    /// How often a thread has given up its processor by itself (voluntary_ctxt_switches), which it does when it falls
    /// asleep; None if it is gone.
    pub fn voluntary_switches(&self, tid: Tid) -> Option<u64> {
        let text = self.thread_file(tid, "status").ok()?;
        decimal(field(&text, "voluntary_ctxt_switches")?).ok()
    }

    /// What the process calls itself: its id in its own PID namespace (NSpid); ours where that is not told.
    pub fn inner_pid(&self) -> Pid {
        let text = self.thread_file(self.main_thread(), "status").unwrap_or_default();
        inner_id(&text).unwrap_or(self.pid())
    }
}

fn inner_id(text: &[u8]) -> Option<Pid> {
    field(text, "NSpid").and_then(last_id)
}

fn last_id(ids: &[u8]) -> Option<Pid> {
    decimal(words(ids).last()?).ok()
}

/// Sets of signals, and of capabilities.
const SETS: [&str; 10] = [
    "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd",
    "CapAmb",
];

/// By fields in the order of the kernel (fs/proc/array.c, proc_pid_status): there are thousands of threads.
fn parse(text: &[u8]) -> Result<Status> {
    let its = &mut Fields::of(text);
    // Not needed(): blanks around the name are a part of it.
    let name = text
        .strip_prefix(b"Name:\t")
        .and_then(|rest| rest.split(|&b| b == b'\n').next())
        .ok_or_else(|| missing("Name"))?;
    let mut sets = [0; SETS.len()];
    for (set, key) in sets.iter_mut().zip(SETS) {
        *set = hex(needed(its, key)?)?;
    }
    let [pending, shared_pending, blocked, ignored, caught, sets @ ..] = sets;
    let [inheritable, permitted, capabilities, bounding, ambient] = sets;
    Ok(Status {
        name: OsString::from_vec(unescape(name)),
        umask: its.get("Umask").map(octal).transpose()?.map(|mask| (mask & 0o7777) as u32),
        state: char::from(needed(its, "State")?.first().copied().unwrap_or(b'?')),
        tgid: decimal(needed(its, "Tgid")?)?,
        ppid: decimal(needed(its, "PPid")?)?,
        tracer: decimal(needed(its, "TracerPid")?)?,
        uid: ids(needed(its, "Uid")?)?,
        gid: ids(needed(its, "Gid")?)?,
        groups: words(needed(its, "Groups")?).map(decimal).collect::<Result<_>>()?,
        inner_id: match its.get("NSpid").and_then(last_id) {
            Some(id) => id,
            None => decimal(needed(its, "Pid")?)?,
        },
        locked: its.get("VmLck").and_then(|kb| decimal(words(kb).next()?).ok()).unwrap_or(0),
        tags_addresses: its
            .get("untag_mask")
            .and_then(|mask| hex(mask.strip_prefix(b"0x")?).ok())
            .is_some_and(|mask| mask != u64::MAX),
        threads: decimal(needed(its, "Threads")?)?,
        pending,
        shared_pending,
        blocked,
        ignored,
        caught,
        inheritable,
        permitted,
        capabilities,
        bounding,
        ambient,
        no_new_privs: its.get("NoNewPrivs").map(decimal::<u32>).transpose()? == Some(1),
        seccomp: its.get("Seccomp").map(decimal).transpose()?.unwrap_or(0),
        seccomp_filters: its.get("Seccomp_filters").map(decimal).transpose()?,
        store_bypass: Mitigation::of(its.get("Speculation_Store_Bypass")),
        indirect_branch: Mitigation::of(its.get("SpeculationIndirectBranch")),
    })
}

fn ids(value: &[u8]) -> Result<[u32; 4]> {
    let ids: Vec<u32> = words(value).map(decimal).collect::<Result<_>>()?;
    ids.try_into().map_err(|_| Error::new("it has no four user or group ids"))
}

/// Undoes proc_task_name (fs/proc/array.c), which escapes newline and backslash in a name.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(&byte) = bytes.next() {
        plain.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => b'\n',
                Some(&other) => other,
                None => byte,
            },
            _ => byte,
        });
    }
    plain
}

/// See [`super::parse_anything`].
pub(super) fn parse_anything(bytes: &[u8]) {
    let _ = parse(bytes);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Zombie, me, of, we};
    use super::*;

    const STATUS: &[u8] = b"\
Name:\t Pid: 7)\\n\\\\n\xff
Umask:\t0027
State:\tt (tracing stop)
Tgid:\t5766
Ngid:\t0
Pid:\t5768
PPid:\t5761
TracerPid:\t99
Uid:\t1000\t1001\t1002\t4294967295
Gid:\t0\t1\t2\t3
FDSize:\t256
Groups:\t4 20 
NStgid:\t5766\t5
NSpid:\t5768\t7
Kthread:\t0
VmPeak:\t    3060 kB
Threads:\t3
SigQ:\t0/96365
SigPnd:\t0000000000000200
ShdPnd:\t8000000000000000
SigBlk:\tfffffffe7ffbfeff
SigIgn:\t0000000000001000
SigCgt:\t0000000180004202
CapInh:\t0000000000000001
CapPrm:\t0000000000000002
CapEff:\t000001ffffffffff
CapBnd:\t0000000000000003
CapAmb:\t0000000000000004
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t4
Speculation_Store_Bypass:\tthread mitigated
SpeculationIndirectBranch:\tconditional force disabled
untag_mask:\t0x7fffffffffffffff
";

    #[test]
    fn every_field() {
        let status = parse(STATUS).unwrap();
        assert_eq!(
            status,
            Status {
                name: OsString::from_vec(b" Pid: 7)\n\\n\xff".to_vec()),
                tgid: Pid::new(5766),
                ppid: Pid::new(5761),
                state: 't',
                uid: [1000, 1001, 1002, u32::MAX],
                gid: [0, 1, 2, 3],
                groups: vec![4, 20],
                capabilities: 0x1ff_ffff_ffff,
                permitted: 2,
                inheritable: 1,
                bounding: 3,
                ambient: 4,
                umask: Some(0o27),
                threads: 3,
                pending: 1 << 9,
                shared_pending: 1 << 63,
                blocked: 0xffff_fffe_7ffb_feff,
                ignored: 0x1000,
                caught: 0x1_8000_4202,
                no_new_privs: true,
                locked: 0,
                seccomp: 2,
                seccomp_filters: Some(4),
                store_bypass: Mitigation::Asked,
                indirect_branch: Mitigation::Forced,
                tracer: Tid::new(99),
                inner_id: Pid::new(7),
                tags_addresses: true,
            }
        );
    }

    #[test]
    fn a_missing_line_is_named() {
        let text = String::from_utf8_lossy(STATUS).replace("SigBlk", "SigBlah");
        assert_eq!(parse(text.as_bytes()).unwrap_err().to_string(), "it has no line \"SigBlk\"");
        let text = String::from_utf8_lossy(STATUS).replace("\t3\n", "\n");
        assert!(parse(text.as_bytes()).is_err());
    }

    #[test]
    fn own_status() {
        use nix::sys::signal::{SigSet, Signal};
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGUSR2);
        let before = SigSet::thread_get_mask().unwrap();
        mask.thread_block().unwrap();
        let tid = Tid::own();
        let status = we().status(tid);
        before.thread_set_mask().unwrap();
        let status = status.unwrap();
        assert_eq!(status.tgid, me());
        assert_eq!(status.ppid.nix(), nix::unistd::getppid());
        assert_eq!(status.state, 'R');
        assert_eq!(status.uid[0], nix::unistd::getuid().as_raw());
        assert_eq!(status.gid[1], nix::unistd::getegid().as_raw());
        assert!(status.blocked & 1 << (Signal::SIGUSR2 as u64 - 1) != 0);
        assert!(status.umask.is_some());
    }

    #[test]
    fn what_was_opened_before_tells_the_same_while_the_thread_lives() {
        let own = we();
        let see = || (Tid::own(), own.open_status(Tid::own()));
        let (tid, opened) = see();
        assert!(opened.is_some());
        assert_eq!(own.status_in(tid, opened).unwrap(), own.status(tid).unwrap());
        let (tid, opened) = std::thread::scope(|scope| scope.spawn(see).join().unwrap());
        assert!(opened.is_some());
        // The thread may be in the list for a moment longer.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while own.has(tid) && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(own.status_in(tid, opened).is_err());
    }

    #[test]
    fn a_zombie_has_no_umask() {
        let zombie = Zombie::new();
        let status = of(zombie.pid()).status(zombie.pid().main_thread()).unwrap();
        assert_eq!((status.state, status.umask), ('Z', None));
        assert_eq!((status.name.to_str(), status.ppid), (Some("true"), me()));
    }
}
