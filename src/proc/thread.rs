// SPDX-License-Identifier: LGPL-2.1-only
//! Small files of a single thread: its name, system call and scheduling.

use super::id::Tid;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::forebear::what;
use super::parsed;
use super::process::Process;
use super::text::{decimal, hex, lines, words};
use crate::error::{Error, Result};

impl Process {
    /// The name of the thread, at most 15 bytes (prctl PR_SET_NAME).
    ///
    /// # Errors
    /// The process or the thread is gone.
    pub fn comm(&self, tid: Tid) -> Result<OsString> {
        let mut name = self.thread_file(tid, "comm")?;
        // The kernel ends the line; a newline before that is a part of the name.
        if name.last() == Some(&b'\n') {
            name.pop();
        }
        Ok(OsString::from_vec(name))
    }
}

impl Process {
    /// The number of the system call that the thread is in, and its six arguments
    /// (proc_pid_syscall(5)); none while it runs or if it is stopped outside of one.
    ///
    /// # Errors
    /// The process or the thread is gone or may not be read (ptrace access, PTRACE_MODE_ATTACH), or
    /// the kernel was built without this file (CONFIG_HAVE_ARCH_TRACEHOOK).
    pub fn syscall(&self, tid: Tid) -> Result<Option<(u64, [u64; 6])>> {
        let text = self.guarded_file(tid, "syscall", what::CALL)?;
        parsed(parse_syscall(&text), || self.called(&format!("task/{tid}/syscall")))
    }
}

fn parse_syscall(text: &[u8]) -> Result<Option<(u64, [u64; 6])>> {
    let mut values = words(text);
    let first = values.next().unwrap_or_default();
    if first == b"running" {
        return Ok(None);
    }
    let number: i64 = decimal(first)?;
    let rest: Vec<u64> = values.map(hex).collect::<Result<_>>()?;
    // The last two values are the stack and the instruction pointer.
    match (u64::try_from(number), rest.as_slice()) {
        (Ok(number), &[a, b, c, d, e, f, _, _]) => Ok(Some((number, [a, b, c, d, e, f]))),
        (Err(_), &[_, _]) => Ok(None),
        _ => Err(Error::new(format!("it has {} values after {number}", rest.len()))),
    }
}

/// What the scheduler says of a thread (/proc/PID/task/TID/sched).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sched {
    /// When it was last put on a processor, or accounted for there (se.exec_start), in nanoseconds of the
    /// scheduler's clock: of a thread that sleeps, when it fell asleep.
    pub ran: u64,
    /// How often it gave up its processor by itself (nr_voluntary_switches), as a thread does that falls asleep.
    pub switches: u64,
}

impl Process {
    /// Reads that of a thread. None without the file (CONFIG_SCHED_DEBUG) or the thread.
    pub fn sched(&self, tid: Tid) -> Option<Sched> {
        parse_sched(&self.thread_file(tid, "sched").ok()?)
    }
}

fn parse_sched(text: &[u8]) -> Option<Sched> {
    let name = b"nr_voluntary_switches";
    let line = lines(text).find_map(|line| line.strip_prefix(name))?;
    let switches = decimal(line.trim_ascii().strip_prefix(b":")?.trim_ascii()).ok()?;
    Some(Sched { ran: parse_exec_start(text)?, switches })
}

/// "se.exec_start       :       1263181.514311": milliseconds with six digits after the point.
fn parse_exec_start(text: &[u8]) -> Option<u64> {
    let line = lines(text).find_map(|line| line.strip_prefix(b"se.exec_start"))?;
    let value = line.trim_ascii().strip_prefix(b":")?.trim_ascii();
    let point = value.iter().position(|&b| b == b'.')?;
    let (whole, digits) = (&value[..point], &value[point + 1..]);
    if digits.len() != 6 {
        return None;
    }
    let whole: u64 = decimal(whole).ok()?;
    whole.checked_mul(1_000_000)?.checked_add(decimal(digits).ok()?)
}

/// See [`super::parse_anything`].
pub(super) fn parse_anything(bytes: &[u8]) {
    let _ = parse_syscall(bytes);
    let _ = parse_sched(bytes);
    let _ = parse_exec_start(bytes);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Cat, NOBODY, Zombie, of, we};
    use super::*;
    use nix::libc;

    fn my_tid() -> Tid {
        Tid::own()
    }

    #[test]
    fn syscall_lines() {
        assert_eq!(parse_syscall(b"running\n").unwrap(), None);
        assert_eq!(parse_syscall(b"-1 0x7ffd46a7c798 0x7f63f84452ad\n").unwrap(), None);
        let line = b"257 0x3 0x7f63f82c9000 0x20000 0x0 0xffffffffffffffff 0x5 0x7ffd 0x7f63\n";
        let args = [3, 0x7f63_f82c_9000, 0x20000, 0, u64::MAX, 5];
        assert_eq!(parse_syscall(line).unwrap(), Some((257, args)));
        for wrong in [&b""[..], b"1 0x2 0x3", b"-1 0x1", b"x"] {
            assert!(parse_syscall(wrong).is_err());
        }
    }

    #[test]
    fn exec_start_is_in_nanoseconds() {
        let text = b"cat se.exec_start: 1.5 (5770, #threads: 1)\n-------\n\
            se.exec_start                                :       1263181.514311\n\
            se.vruntime                                  :            73.337255\n";
        assert_eq!(parse_exec_start(text), Some(1_263_181_514_311));
        assert_eq!(parse_exec_start(b"se.exec_start : 0.000007\n"), Some(7));
        assert_eq!(parse_exec_start(b"se.exec_start : 7\n"), None);
        assert_eq!(parse_exec_start(b"se.exec_start : 1.5\n"), None);
        assert_eq!(parse_exec_start(b""), None);
        let text = b"se.exec_start : 0.000007\nnr_switches : 5\nnr_voluntary_switches   :   3\n";
        assert_eq!(parse_sched(text), Some(Sched { ran: 7, switches: 3 }));
    }

    #[test]
    fn names_may_hold_anything() {
        let name = "a) b\n\\n (";
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let path = format!("/proc/self/task/{}/comm", my_tid());
                std::fs::write(path, name).unwrap();
                let tid = my_tid();
                let names = [
                    we().comm(tid).unwrap(),
                    we().stat(tid).unwrap().comm,
                    we().status(tid).unwrap().name,
                ];
                assert_eq!(names, [name, name, name]);
            });
            thread.join().unwrap();
        });
    }

    #[test]
    fn a_reader_sleeps_in_read() {
        let cat = Cat::new();
        let (pid, read) = (cat.pid(), u64::try_from(libc::SYS_read).unwrap());
        // The kernel shows a call only of a thread that has left the processor, and the pipe is
        // empty: once this is in a read it stays there.
        while !matches!(of(pid).syscall(pid.main_thread()).unwrap(), Some((nr, [0, ..])) if nr == read)
        {
            std::thread::yield_now();
        }
        assert_eq!(of(pid).stat(pid.main_thread()).unwrap().state, 'S');
        let slept = of(pid).sched(pid.main_thread());
        assert!(slept.is_some_and(|s| s.ran > 0 && s.switches > 0), "{slept:?}");
        assert_eq!(of(pid).sched(pid.main_thread()), slept);
        assert_eq!(we().sched(NOBODY.main_thread()), None);
    }

    #[test]
    fn we_run() {
        // A thread that asks about itself is in the read that asks.
        let (number, _) = we().syscall(my_tid()).unwrap().unwrap();
        assert_eq!(number, u64::try_from(libc::SYS_read).unwrap());
        assert_eq!(we().stat(my_tid()).unwrap().state, 'R');
        let zombie = Zombie::new();
        assert_eq!(of(zombie.pid()).stat(zombie.pid().main_thread()).unwrap().state, 'Z');
    }
}
