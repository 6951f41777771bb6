// SPDX-License-Identifier: LGPL-2.1-only
//! Small files of a single thread: its name, timer slack, system call and scheduling.

use super::id::Tid;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::forebear::what;
use super::process::Process;
use super::text::{decimal, hex, lines, words};
use super::{parsed, slurp};
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
    /// The timer slack of the thread in nanoseconds (prctl PR_SET_TIMERSLACK); 0 if it cannot be
    /// read, which of another process takes CAP_SYS_NICE. 0 is also what real-time threads have.
    pub fn timer_slack(&self, tid: Tid) -> u64 {
        // Below task/ there is no such file, but /proc answers to the id of any thread.
        let text = slurp(&format!("/proc/{tid}/timerslack_ns")).ok();
        // It is another's if it was not there in between.
        let text = text.filter(|_| self.has(tid));
        text.and_then(|text| decimal(text.trim_ascii()).ok()).unwrap_or(0)
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

/// Why a thread waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wchan {
    /// As in [`Stat::state`](super::stat::Stat::state); 'D' is a sleep that no signal ends.
    pub state: char,
    /// The kernel function it sleeps in; none if it does not, or if the kernel does not tell.
    pub function: Option<String>,
}

impl Process {
    /// State and wait channel of the thread: words for a report on one that will not stop.
    ///
    /// # Errors
    /// The process or the thread is gone.
    pub fn wchan_state(&self, tid: Tid) -> Result<Wchan> {
        let state = self.stat(tid)?.state;
        let function = self.thread_file(tid, "wchan").ok().and_then(|text| parse_wchan(&text));
        Ok(Wchan { state, function })
    }
}

fn parse_wchan(text: &[u8]) -> Option<String> {
    match text.trim_ascii() {
        b"" | b"0" => None,
        name => Some(String::from_utf8_lossy(name).into_owned()),
    }
}

/// See [`super::parse_anything`].
pub(super) fn parse_anything(bytes: &[u8]) {
    let _ = parse_syscall(bytes);
    let _ = parse_sched(bytes);
    let _ = parse_exec_start(bytes);
    let _ = parse_wchan(bytes);
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
    fn wait_channels() {
        assert_eq!(parse_wchan(b"0"), None);
        assert_eq!(parse_wchan(b""), None);
        assert_eq!(parse_wchan(b"pipe_read").as_deref(), Some("pipe_read"));
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
    fn own_timer_slack() {
        let slack = nix::sys::prctl::get_timerslack().unwrap();
        assert_eq!(we().timer_slack(my_tid()), u64::try_from(slack).unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                nix::sys::prctl::set_timerslack(123_456).unwrap();
                assert_eq!(we().timer_slack(my_tid()), 123_456);
            });
        });
        assert_eq!(we().timer_slack(NOBODY.main_thread()), 0);
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
        assert_eq!(of(pid).wchan_state(pid.main_thread()).unwrap().state, 'S');
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
        assert_eq!(we().wchan_state(my_tid()).unwrap(), Wchan { state: 'R', function: None });
        let zombie = Zombie::new();
        assert_eq!(of(zombie.pid()).wchan_state(zombie.pid().main_thread()).unwrap().state, 'Z');
    }
}
