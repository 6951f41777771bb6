// SPDX-License-Identifier: LGPL-2.1-only
//! `--notify COMMAND`: what is run when a checkpoint has come to something.
//!
//! A process of its own waits for the outcome from before the checkpoint is begun: there are no threads yet whose locks
//! it could inherit, and from outside it is in our namespaces, not in the program's, which may end with it. It is in a session
//! of its own and the program's parent never sees it; whoever takes the checkpoint does not wait for it.
//!
//! # Safety
//! The processes are made while there is one thread, and may do all that their maker may.
#![allow(unsafe_code)]

use crate::dump::place::Whose;
use crate::dump::{Ending, Outcome};
use crate::error::{Because, Error, Result, printable};
use crate::inject::{last, monitor, region::Region};
use crate::order;
use crate::proc::closing::close_range;
use crate::proc::fork::{end, fork, helper};
use crate::proc::{Pid, Process};
use crate::ptrace::borrowed;
use crate::rights::become_one;
use crate::speech;
use crate::units::fraction;
use ckpt_abi::region::Control;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{Gid, setgroups};
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Variables that are not handed on: they would have the command's own calls of ckpt do what the program's do.
const OURS: [&[u8]; 2] = [b"CKPT_", b"LD_PRELOAD="];
/// How much of what the command says last is repeated.
const LINE: usize = 300;

/// What came of a checkpoint.
type Told<'a> = std::result::Result<&'a Outcome, &'a Error>;

/// How often, and how long after each other, it is tried to look at a process that may not be looked at.
const ATTEMPTS: usize = 100;
const MOMENT: Duration = Duration::from_millis(2);

/// One who waits for an outcome.
pub(super) struct Hook {
    tell: PipeWriter,
    done: PipeReader,
}

/// What is to be run, and for whom.
struct Task {
    command: CString,
    process: Process,
    /// User, group and groups whose rights the command has; None: ours.
    user: Option<(u32, u32, Vec<u32>)>,
    environment: Vec<CString>,
    directory: PathBuf,
    stderr: Option<monitor::Spot>,
    /// Its maker says what went wrong.
    is_watched: bool,
}

impl Hook {
    /// Gets ready for a checkpoint of a process; None if nothing is to be run. `said` is what whoever calls us wants run, else
    /// it is what the process is configured with, which then has the rights of the process. Who `waits` is told what
    /// goes wrong.
    ///
    /// # Errors
    /// It cannot be run with the rights of the process, or there can be no process.
    pub(super) fn prepare(
        process: &Process,
        said: Option<&OsStr>,
        waits: bool,
    ) -> Result<Option<Self>> {
        let own = || {
            let mut found = Region::of(process);
            // Under Yama the program lets us look at it when it has started us.
            for _ in 0..ATTEMPTS {
                if !found.as_ref().is_err_and(Error::is_refusal) {
                    break;
                }
                std::thread::sleep(MOMENT);
                found = Region::of(process);
            }
            let (_, region) = found.ok()??;
            let bytes = region.control.config.notify;
            let end = bytes.iter().position(|byte| *byte == 0)?;
            Some(OsString::from_vec(bytes[..end].to_vec()))
        };
        let command = said.map(ToOwned::to_owned).or_else(own).unwrap_or_default();
        if command.is_empty() {
            return Ok(None);
        }
        let what = "cannot run the command of --notify";
        let task = Task::of(process, &command, said.is_some(), waits).because(|| what)?;
        let (hear, tell) = std::io::pipe().because(|| what)?;
        let (done, doing) = std::io::pipe().because(|| what)?;
        match helper(|| fork(0)).because(|| what)? {
            None => task.run(hear, doing),
            Some(_) => Ok(Some(Self { tell, done })),
        }
    }

    /// Says what came of it, if that is worth a word. `pid` is what a user calls the process.
    pub(super) fn tell(self, pid: Pid, outcome: Told<'_>) -> Option<Ran> {
        let mut said = Vec::new();
        let mut put = |name: &str, value: &[u8]| {
            said.extend([b"CKPT_HOOK_", name.as_bytes(), b"=", value, b"\0"].concat());
        };
        put("PID", pid.to_string().as_bytes());
        match outcome {
            Ok(outcome) => {
                put("RESULT", b"saved");
                put("NAME", outcome.name.as_os_str().as_bytes());
                put("BYTES", outcome.bytes.to_string().as_bytes());
                put("PAUSE", fraction(outcome.pause.as_micros() as u64, 1000, 1).as_bytes());
                put("NUMBER", outcome.number.to_string().as_bytes());
                put("ENDED", if outcome.stopped { b"1" } else { b"0" });
            }
            Err(e) if last::is_news(e) => {
                put("RESULT", b"failed");
                put("REASON", e.to_string().as_bytes());
            }
            Err(_) => return None,
        }
        // Others may have this end, too: the end is a word.
        said.push(0);
        (&self.tell).write_all(&said).ok()?;
        Some(Ran(self.done))
    }
}

/// A hook that whoever comes first takes: who hears that the program is about to end, or who has the outcome.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Option<Hook>>>, Pid);

impl Shared {
    /// Of a process that a user calls so.
    pub(super) fn of(hook: Option<Hook>, pid: Pid) -> Self {
        Self(Arc::new(Mutex::new(hook)), pid)
    }

    /// Says what came of it, if nobody has.
    pub(super) fn tell(&self, outcome: Told<'_>) -> Option<Ran> {
        let hook = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        hook?.tell(self.1, outcome)
    }

    /// Says of a checkpoint that ends the program that there is one, and gives the command some time if it ends as well.
    pub(super) fn ending(&self, limit: Option<Duration>) -> Ending {
        let own = self.clone();
        Box::new(move |outcome| {
            let ran = own.tell(Ok(outcome));
            ran.zip(limit).map(|(ran, limit)| ran.done_within(limit));
        })
    }
}

/// One who has the command run.
pub(super) struct Ran(PipeReader);

impl Ran {
    /// Whether it is done in time.
    pub(super) fn done_within(&self, limit: Duration) -> bool {
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut polled, limit), Ok(1..))
    }
}

impl Task {
    fn of(process: &Process, command: &OsStr, ours: bool, is_watched: bool) -> Result<Self> {
        let text = |bytes: &[u8]| CString::new(bytes).unwrap_or_default();
        let status = process.main_status()?;
        let user = match Whose::of(process, ours)? {
            Whose::Its(Some(_)) if status.uid[0] == 0 => {
                return Err(Error::new("its user is root, with fewer rights than ours"));
            }
            Whose::Its(Some(_)) => Some((status.uid[0], status.gid[0], status.groups)),
            _ => None,
        };
        let environment = match ours {
            true => std::env::vars_os()
                .map(|(name, value)| [name, value].join(OsStr::new("=")).into_vec())
                .collect(),
            // That of a process which may not be looked at is its own affair.
            false => process
                .environment()
                .unwrap_or_default()
                .split(|b| *b == 0)
                .map(Vec::from)
                .collect::<Vec<_>>(),
        };
        let is_handed_on =
            |it: &&Vec<u8>| !it.is_empty() && !OURS.iter().any(|prefix| it.starts_with(prefix));
        let mut environment: Vec<_> =
            environment.iter().filter(is_handed_on).map(|it| text(it)).collect();
        let program = process.cmdline().ok().and_then(|words| words.into_iter().next());
        let program = program.unwrap_or_default();
        let program = [b"CKPT_HOOK_PROGRAM=", program.as_bytes()].concat();
        environment.push(text(&program));
        Ok(Self {
            command: text(command.as_bytes()),
            process: process.clone(),
            user,
            environment,
            directory: if ours {
                ".".into()
            } else {
                process.cwd().map_or("/".into(), |it| it.path)
            },
            stderr: monitor::stderr_of(process),
            is_watched,
        })
    }

    /// Waits for an outcome, runs the command, and says how it failed.
    fn run(mut self, mut hear: PipeReader, doing: PipeWriter) -> ! {
        let _ = nix::sys::prctl::set_name(c"ckpt-notify");
        let _ = nix::unistd::setsid();
        let own = (self.is_watched).then(|| nix::unistd::dup(std::io::stderr()).ok()).flatten();
        // What others wait for the end of, or look at, must not last as long as the command.
        let mut kept = vec![hear.as_raw_fd(), doing.as_raw_fd()];
        kept.extend(own.as_ref().map(AsRawFd::as_raw_fd));
        order::by_key(&mut kept, |fd| (*fd as u64, 0));
        let mut first = 0;
        for fd in kept {
            (fd > first).then(|| close_range(first as u32, fd as u32 - 1));
            first = fd + 1;
        }
        close_range(first as u32, u32::MAX);
        super::dumper::keep_low_descriptors();
        let Ok(process) = Process::open(self.process.pid()) else { end(0) };
        // Its descriptors are closed.
        std::mem::forget(std::mem::replace(&mut self.process, process));
        let (mut said, mut piece) = (Vec::new(), [0; 4096]);
        while !said.ends_with(&[0, 0]) {
            match hear.read(&mut piece) {
                Ok(len @ 1..) => said.extend(&piece[..len]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                _ => end(0),
            }
        }
        let told = said.split(|byte| *byte == 0).filter(|it| !it.is_empty());
        self.environment.extend(told.filter_map(|it| CString::new(it).ok()));
        let Err(why) = self.execute() else { end(0) };
        let sentence = format!("the command of --notify {why}; the checkpoint is not affected");
        let output = match own {
            Some(own) => Some(File::from(own)),
            None if self.was_told() => None,
            None => {
                let taken = borrowed::take(self.process.pid(), 2).map(File::from).ok();
                let taken = taken.filter(|_| !self.process.has_ended());
                taken.or_else(|| monitor::reopen_stderr(self.stderr.as_ref()?))
            }
        };
        output.map(|output| speech::say(output.as_fd(), &sentence));
        end(1)
    }

    /// Whether it was said of an earlier one of this process that it failed; it is by now.
    fn was_told(&self) -> bool {
        let Ok(Some((memory, region))) = Region::of(&self.process) else { return false };
        let at = region.base + offset_of!(Control, notify_failed) as u64;
        region.control.notify_failed != 0 || memory.put(at, &1u32).is_err()
    }

    /// Runs the command; how it failed.
    fn execute(&self) -> std::result::Result<(), String> {
        let argv = [c"sh".as_ptr(), c"-c".as_ptr(), self.command.as_ptr(), std::ptr::null()];
        let envp = self.environment.iter().map(|it| it.as_ptr());
        let envp: Vec<_> = envp.chain([std::ptr::null()]).collect();
        let words = super::fetch::memory().map_err(|e| e.to_string())?;
        let child = fork(libc::SIGCHLD).map_err(|e| format!("was not run: {}", e.desc()))?;
        let Some(child) = child else {
            let _ = self.become_it(&words);
            // SAFETY: the lists end with null pointers, and their strings live until the call.
            unsafe { libc::execve(c"/bin/sh".as_ptr(), argv.as_ptr(), envp.as_ptr()) };
            end(127)
        };
        let mut status = 0;
        // SAFETY: the kernel writes the one word.
        while unsafe { libc::waitpid(child.get(), &mut status, 0) } < 0
            && Errno::last() == Errno::EINTR
        {}
        let how = match (libc::WIFSIGNALED(status), libc::WEXITSTATUS(status)) {
            (true, _) => format!("was ended by signal {}", libc::WTERMSIG(status)),
            (_, 0) => return Ok(()),
            (_, status) => format!("ended with status {status}"),
        };
        let mut text = vec![0; LINE];
        let len = words.metadata().map_or(0, |meta| meta.len());
        let read = words.read_at(&mut text, len.saturating_sub(LINE as u64)).unwrap_or(0);
        let text = String::from_utf8_lossy(&text[..read]);
        match text.lines().rfind(|line| !line.trim().is_empty()) {
            Some(line) => Err(format!("{how} ({})", printable(line))),
            None => Err(how),
        }
    }

    /// Makes this process what the command shall be run in: with the rights of its user first of all.
    fn become_it(&self, words: &File) -> Option<()> {
        if let Some((user, group, groups)) = &self.user {
            let groups: Vec<Gid> = groups.iter().map(|it| Gid::from_raw(*it)).collect();
            if setgroups(&groups).is_err() || !become_one(*user, *group) {
                end(126)
            }
        }
        let _ = std::env::set_current_dir(&self.directory);
        let null = File::options().read(true).write(true).open("/dev/null").ok()?;
        for (file, number) in [(&null, 0), (&null, 1), (words, 2)] {
            // SAFETY: this process has its own table, and uses nothing else of it again.
            unsafe { libc::dup2(file.as_raw_fd(), number) };
        }
        close_range(3, u32::MAX);
        for signal in [Signal::SIGXFSZ, Signal::SIGPIPE] {
            // SAFETY: no handler of ours is replaced, and none is installed.
            let _ =
                unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) };
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).ok()
    }
}
