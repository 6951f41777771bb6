// SPDX-License-Identifier: LGPL-2.1-only
//! A thread in numbers: /proc/PID/task/TID/stat.

use super::id::{Pid, Tid};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::parsed;
use super::process::Process;
use super::text::{decimal, words};
use crate::error::{Error, Result};

/// What proc_pid_stat(5) tells of a thread, times in clock ticks (1/100 s on x86-64).
///
/// The addresses are those of struct mm_struct that prctl(PR_SET_MM_MAP) sets. Without ptrace
/// access to the process the kernel shows 0 or 1 in their stead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The name of the thread, at most 15 bytes, not escaped.
    pub comm: OsString,
    /// R, S, D, T (stopped), t (stopped by a tracer), X, Z, P or I.
    pub state: char,
    /// The parent of the process.
    pub ppid: Pid,
    /// Its process group.
    pub pgrp: Pid,
    /// Its session.
    pub session: Pid,
    /// The device number of the controlling terminal in the old 32-bit encoding; 0 without one.
    pub tty_nr: i32,
    /// The foreground process group of that; -1 without one.
    pub tpgid: Pid,
    /// When the thread started, after boot.
    pub starttime: u64,
    /// The nice value, -20 to 19.
    pub nice: i32,
    /// How many threads the process has.
    pub num_threads: u32,
    /// The scheduling policy (SCHED_ constants).
    pub policy: u32,
    /// The real-time priority, 1 to 99; 0 of other policies.
    pub rt_priority: u32,
    /// Where the program text begins and ends.
    pub start_code: u64,
    /// The address after the program text.
    pub end_code: u64,
    /// The bottom, that is the highest address in use, of the main stack.
    pub start_stack: u64,
    /// Where the program data begins.
    pub start_data: u64,
    /// The address after the program data.
    pub end_data: u64,
    /// Where brk(2) memory begins.
    pub start_brk: u64,
    /// Where the argument strings begin.
    pub arg_start: u64,
    /// The address after the argument strings.
    pub arg_end: u64,
    /// Where the environment strings begin.
    pub env_start: u64,
    /// The address after the environment strings.
    pub env_end: u64,
    /// The signal its parent gets when it ends; -1 of a thread that is not the leader.
    pub exit_signal: i32,
    /// The wait status (wait(2)) of one that has ended; 0 where we may not see it.
    pub wait_status: i32,
}

impl Process {
    /// The wait status of one that has ended and is there still; None where we may not see it: whose
    /// namespaces are hidden from us, of that it is (ptrace(2), PTRACE_MODE_READ).
    pub fn wait_status(&self) -> Option<i32> {
        let may = self.namespace("user").is_some();
        let over = |stat: &Stat| may && stat.has_ended();
        let stat = self.stat(self.main_thread()).ok().filter(over)?;
        Some(stat.wait_status)
    }

    /// The number of the CPU that a thread runs on or ran on last (field 39).
    pub fn last_cpu(&self, tid: Tid) -> Option<usize> {
        let text = self.thread_file(tid, "stat").ok()?;
        // The name ends with the last parenthesis; field 3 follows it.
        let rest = text.rsplitn(2, |&b| b == b')').next()?;
        let field = std::str::from_utf8(rest).ok()?.split_ascii_whitespace().nth(39 - 3)?;
        field.parse().ok()
    }
}

impl Stat {
    /// Whether this is a process that has ended: of all its threads the first does not tell.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.num_threads <= 1
    }
}

/// Whether a process is there and has not ended. It allocates no memory where the first of its threads lives.
pub(crate) fn lives(pid: Pid) -> bool {
    match glance(pid.main_thread()) {
        Some(('Z' | 'X', _)) => {
            Process::glimpse(pid).and_then(|it| it.count()).is_ok_and(|n| n > 1)
        }
        found => found.is_some(),
    }
}

/// State and parent of a process or thread, dead or alive; None if there is none of that id. It allocates no memory.
pub(crate) fn glance(tid: Tid) -> Option<(char, Pid)> {
    use std::io::{Read, Write};
    // Longer than the name and the fields up to the parent.
    let (mut path, mut line) = ([0; 32], [0; 256]);
    let room = path.len();
    let mut rest = &mut path[..];
    // The other one adds up the times of all threads of its process.
    write!(rest, "/proc/{tid}/task/{tid}/stat").ok()?;
    let length = room - rest.len();
    let path = std::str::from_utf8(&path[..length]).ok()?;
    let length = std::fs::File::open(path).ok()?.read(&mut line).ok()?;
    let line = &line[..length];
    // The name ends with the last parenthesis; state and parent follow it.
    let end = line.iter().rposition(|&b| b == b')')?;
    let mut fields = std::str::from_utf8(&line[end + 1..]).ok()?.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// PF_EXITING of linux/sched.h.
const EXITING: u64 = 4;

impl Process {
    /// The state of one thread; None if it is gone. Beside [`glance`] it may allocate.
    pub fn state(&self, tid: Tid) -> Option<char> {
        let line = self.thread_file(tid, "stat").ok()?;
        let end = line.iter().rposition(|&b| b == b')')?;
        line.get(end + 2).map(|&b| b.into())
    }

    /// The CPU time that the process has used, in clock ticks (fields 14 and 15).
    pub fn cpu_time(&self) -> Option<u64> {
        self.ticks(14)
    }

    /// That of its children that it has waited for (fields 16 and 17).
    pub fn childrens_cpu_time(&self) -> Option<u64> {
        self.ticks(16)
    }

    /// The sum of two neighbouring fields.
    fn ticks(&self, field: usize) -> Option<u64> {
        let text = self.file("stat").ok()?;
        let rest = text.rsplitn(2, |&b| b == b')').next()?;
        let mut fields = std::str::from_utf8(rest).ok()?.split_ascii_whitespace().skip(field - 3);
        Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
    }

    /// Whether the process is about to end: it has given its memory back, or does so, and is not yet a zombie to
    /// those who wait for it. True of one that is gone.
    pub fn is_ending(&self) -> bool {
        let ends = |flags: Option<u64>| flags.is_none_or(|flags| flags & EXITING != 0);
        let thread = |tid: &Tid| self.flags_of(&format!("task/{tid}/stat"));
        // The main thread may end before others.
        ends(self.flags()) && self.tasks().map_or(true, |all| all.iter().all(|it| ends(thread(it))))
    }

    /// Whether it has all of its memory until now: one of its threads neither ends nor has SIGKILL before it. The OOM
    /// reaper and the end of the process take memory away long before [`Process::has_ended`] is true.
    ///
    /// A SIGKILL for the process stays in the shared set while its threads go to their end (get_signal).
    pub fn is_whole(&self) -> bool {
        const KILL: u64 = 1 << (nix::libc::SIGKILL - 1);
        let lives = |tid: Tid| {
            let status = self.status(tid);
            status.is_ok_and(|status| status.waiting() & KILL == 0)
                && self
                    .flags_of(&format!("task/{tid}/stat"))
                    .is_some_and(|flags| flags & EXITING == 0)
        };
        // To list a thousand takes longer than all else here.
        lives(self.main_thread()) || self.tasks().is_ok_and(|tids| tids.into_iter().any(lives))
    }

    /// Whether a signal has stopped it. False of one that is gone.
    pub fn is_stopped(&self) -> bool {
        self.main_stat().is_ok_and(|stat| stat.state == 'T')
    }

    /// Whether a thread is one of the kernel's that works for the process and never returns to it (io_uring's, vhost's).
    pub fn is_worker(&self, tid: Tid) -> bool {
        /// PF_IO_WORKER, and PF_USER_WORKER (Linux 6.4).
        const WORKER: u64 = 0x10 | 0x4000;
        self.flags_of(&format!("task/{tid}/stat")).is_some_and(|flags| flags & WORKER != 0)
    }

    /// Whether it is a thread of the kernel.
    pub fn is_kernels(&self) -> bool {
        const KTHREAD: u64 = 0x20_0000;
        self.flags().is_some_and(|flags| flags & KTHREAD != 0)
    }

    /// PF_* of linux/sched.h (field 9), which everybody may read.
    fn flags(&self) -> Option<u64> {
        self.flags_of("stat")
    }

    fn flags_of(&self, name: &str) -> Option<u64> {
        let text = self.file(name).ok()?;
        let rest = text.rsplitn(2, |&b| b == b')').next().unwrap_or_default();
        words(rest).nth(9 - 3).and_then(|word| decimal(word).ok())
    }

    /// The stat line of thread `tid` of process `pid`.
    ///
    /// # Errors
    /// The process or the thread is gone.
    pub fn stat(&self, tid: Tid) -> Result<Stat> {
        let line = self.thread_file(tid, "stat")?;
        parsed(parse(&line), || self.called(&format!("task/{tid}/stat")))
    }
}

pub(super) fn parse(line: &[u8]) -> Result<Stat> {
    // The name may hold anything, parentheses and newlines too; after the last ")" come only a
    // letter and numbers.
    let open = line.iter().position(|&b| b == b'(');
    let close = line.iter().rposition(|&b| b == b')');
    let (Some(open), Some(close)) = (open, close) else {
        return Err(Error::new("it has no name in parentheses"));
    };
    let rest: Vec<&[u8]> = words(&line[close + 1..]).collect();
    let fields = Fields { rest };
    Ok(Stat {
        comm: OsString::from_vec(line.get(open + 1..close).unwrap_or_default().to_vec()),
        state: char::from(fields.word(3)?[0]),
        ppid: fields.number(4)?,
        pgrp: fields.number(5)?,
        session: fields.number(6)?,
        tty_nr: fields.number(7)?,
        tpgid: fields.number(8)?,
        nice: fields.number(19)?,
        num_threads: fields.number(20)?,
        starttime: fields.number(22)?,
        start_code: fields.number(26)?,
        end_code: fields.number(27)?,
        start_stack: fields.number(28)?,
        exit_signal: fields.number(38)?,
        rt_priority: fields.number(40)?,
        policy: fields.number(41)?,
        start_data: fields.number(45)?,
        end_data: fields.number(46)?,
        start_brk: fields.number(47)?,
        arg_start: fields.number(48)?,
        arg_end: fields.number(49)?,
        env_start: fields.number(50)?,
        env_end: fields.number(51)?,
        wait_status: fields.number(52)?,
    })
}

/// The words after the name, found by their number in proc_pid_stat(5).
struct Fields<'a> {
    rest: Vec<&'a [u8]>,
}

impl<'a> Fields<'a> {
    fn word(&self, number: usize) -> Result<&'a [u8]> {
        let word = self.rest.get(number - 3).copied();
        word.ok_or_else(|| Error::new(format!("it has no field {number}")))
    }

    fn number<N: TryFrom<i128>>(&self, number: usize) -> Result<N> {
        decimal(self.word(number)?)
    }
}

/// See [`super::parse_anything`].
pub(super) fn parse_anything(bytes: &[u8]) {
    let _ = parse(bytes);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Zombie, me, of, we};
    use super::*;

    const REST: &str = "S 5761 5762 4525 34816 -1 4194304 102 0 0 0 0 0 0 0 20 -5 3 0 126322 \
        3133440 383 18446744073709551615 94860161884160 94860161904041 140730789554928 0 0 0 0 0 \
        0 0 0 0 17 1 50 2 0 0 0 94860161920048 94860161921664 94860646547456 140730789558981 \
        140730789559019 140730789559020 140730789560299 0\n";

    #[test]
    fn every_field() {
        let stat = parse(format!("5766 (cat) {REST}").as_bytes()).unwrap();
        assert_eq!(
            stat,
            Stat {
                comm: "cat".into(),
                state: 'S',
                ppid: Pid::new(5761),
                pgrp: Pid::new(5762),
                session: Pid::new(4525),
                tty_nr: 34816,
                tpgid: Pid::new(-1),
                starttime: 126_322,
                nice: -5,
                num_threads: 3,
                policy: 2,
                rt_priority: 50,
                start_code: 94_860_161_884_160,
                end_code: 94_860_161_904_041,
                start_stack: 140_730_789_554_928,
                start_data: 94_860_161_920_048,
                end_data: 94_860_161_921_664,
                start_brk: 94_860_646_547_456,
                arg_start: 140_730_789_558_981,
                arg_end: 140_730_789_559_019,
                env_start: 140_730_789_559_020,
                env_end: 140_730_789_560_299,
                exit_signal: 17,
                wait_status: 0,
            }
        );
    }

    #[test]
    fn nasty_names() {
        for name in ["", " ", ") R 1 2 (", "a b) (c", "x\ny", "((", "))"] {
            let stat = parse(format!("1 ({name}) {REST}").as_bytes()).unwrap();
            assert_eq!((stat.comm.to_str(), stat.ppid), (Some(name), Pid::new(5761)));
        }
    }

    #[test]
    fn a_short_line_is_refused() {
        let short = "1 (a) S 1 2 3 4 5 6";
        assert_eq!(parse(short.as_bytes()).unwrap_err().to_string(), "it has no field 19");
        assert!(parse(b"1 a S").is_err());
        assert!(parse(b")(").is_err());
        assert!(parse(b"1 (a)").is_err());
    }

    #[test]
    fn own_stat() {
        let stat = we().stat(me().main_thread()).unwrap();
        let environ = std::env::vars_os().count();
        assert_eq!(stat.ppid.nix(), nix::unistd::getppid());
        assert_eq!(stat.pgrp.nix(), nix::unistd::getpgrp());
        assert!(stat.env_end - stat.env_start >= environ as u64 && stat.arg_end > stat.arg_start);
        let code = own_stat as *const () as u64;
        assert!(stat.start_code <= code && code < stat.end_code);
        assert!(stat.start_stack > stat.start_code && stat.start_brk > 0);
    }

    #[test]
    fn a_zombie_has_no_addresses() {
        let zombie = Zombie::new();
        let stat = of(zombie.pid()).stat(zombie.pid().main_thread()).unwrap();
        assert_eq!((stat.state, stat.start_brk, stat.ppid), ('Z', 0, me()));
        assert_eq!(glance(zombie.pid().main_thread()), Some(('Z', me())));
        assert_eq!(glance(super::super::tests::NOBODY.main_thread()), None);
        assert_eq!(stat.exit_signal, nix::libc::SIGCHLD);
    }
}
