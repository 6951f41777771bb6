// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt save --all`: each program by a `ckpt save PID` of its own, so that whatever becomes of one leaves the others alone.
//!
//! # Safety
//! A child is made by a bare clone(2) and does nothing but three system calls with what was made before.
#![allow(unsafe_code)]

use super::running::{self, Running};
use crate::error::{Because, Error, Result, printable};
use crate::proc::fork::{end, fork};
use crate::proc::{self, Pid};
use crate::settings::Settings;
use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

/// How often it is looked for who came meanwhile (a launch, a restart).
const ROUNDS: usize = 5;
/// The status when some are not saved.
const UNSAFE: u8 = 1;

/// Saves all that runs under ckpt here, `jobs` at a time; the status says whether all of it is saved.
#[inline(never)]
pub(super) fn run(stop: bool, jobs: Option<usize>, settings: &Settings) -> Result<u8> {
    proc::of_this_namespace()?;
    let named = settings.name.as_ref().map(|name| name.written());
    if named.is_some_and(|name| !name.as_bytes().windows(2).any(|two| two == b"%p")) {
        let text =
            "with --all the checkpoints of all programs would get the one name of -n (CKPT_NAME)";
        return Err(Error::new(text)
            .hint("put %p into it, which stands for the process id, or leave it to each program"));
    }
    let jobs = jobs.or_else(|| std::thread::available_parallelism().ok().map(Into::into));
    let options = settings.words().unwrap_or_default();
    let (mut done, mut names) = (Vec::new(), Vec::<(String, Pid)>::new());
    let (mut saved, mut failed) = (0, 0);
    for _ in 0..ROUNDS {
        let mut todo = running::all()?;
        todo.retain(|it| it.within.is_none() && !done.contains(&(it.pid, it.start)));
        done.extend(todo.iter().map(|it| (it.pid, it.start)));
        if todo.is_empty() {
            break;
        }
        todo.reverse();
        let mut at_work: Vec<Job> = Vec::new();
        while !todo.is_empty() || !at_work.is_empty() {
            if at_work.len() < jobs.unwrap_or(1).max(1)
                && let Some(next) = todo.pop()
            {
                let own = settings.name.is_none().then(|| next.name()).flatten();
                let other = names.iter().find(|(name, _)| Some(name) == own.as_ref());
                let started = match other {
                    Some((_, other)) => Err(same_name(*other)),
                    None => Job::start(&next, stop, &options),
                };
                names.extend(own.map(|name| (name, next.pid)));
                match started {
                    Ok(job) => at_work.push(job),
                    Err(e) => {
                        failed += 1;
                        eprintln!("ckpt: {} {}: not saved: {e}", next.pid, next.program());
                    }
                }
                continue;
            }
            let (child, status) = wait().because(|| "cannot wait for our own processes")?;
            let Some(at) = at_work.iter().position(|job| job.child == child) else { continue };
            match at_work.swap_remove(at).tell(status) {
                true => saved += 1,
                false => failed += 1,
            }
        }
    }
    let all = saved + failed;
    super::print(&match (all, failed) {
        (0, _) => "nothing runs under ckpt here\n".to_owned(),
        (_, 0) => format!("all {all} saved\n"),
        _ => format!("{failed} of {all} NOT saved\n"),
    })?;
    Ok(if failed == 0 { 0 } else { UNSAFE })
}

/// Why a program is not saved whose checkpoint would take the place of another's.
fn same_name(other: Pid) -> Error {
    Error::new(format!("its checkpoint has the name of that of process {other}"))
        .hint("give it another one: ckpt save -n NAME, or -n '%p.ckpt' with --all")
}

/// One at work.
struct Job {
    child: Pid,
    called: String,
    output: File,
}

impl Job {
    fn start(running: &Running, stop: bool, options: &[std::ffi::OsString]) -> Result<Self> {
        let what = || "cannot start what saves it";
        let output = File::from(memfd_create(c"ckpt", MFdFlags::MFD_CLOEXEC).because(what)?);
        let pid = running.pid.to_string();
        let words = ["ckpt", "save"].map(CString::new).into_iter();
        let words = words.chain(stop.then(|| CString::new("--stop")));
        let words = words.chain(options.iter().map(|word| CString::new(word.as_bytes())));
        let words: Vec<_> = words.chain([CString::new(pid.as_str())]).flatten().collect();
        let argv: Vec<_> = words.iter().map(|w| w.as_ptr()).chain([std::ptr::null()]).collect();
        let (fd, path) = (output.as_raw_fd(), c"/proc/self/exe".as_ptr());
        match fork(libc::SIGCHLD).because(what).map_err(Error::of_making)? {
            None => {
                // SAFETY: the child has a table of its own.
                unsafe { libc::dup2(fd, 1) };
                // SAFETY: as above.
                unsafe { libc::dup2(fd, 2) };
                // SAFETY: the strings and the list, which ends with a null pointer, were made before.
                unsafe { libc::execv(path, argv.as_ptr()) };
                end(i32::from(crate::error::FAILED))
            }
            Some(child) => {
                Ok(Self { child, called: format!("{pid} {}", running.program()), output })
            }
        }
    }

    /// Says what became of it; whether it is saved.
    fn tell(self, status: i32) -> bool {
        let is_saved = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
        let len = self.output.metadata().map_or(0, |meta| meta.len());
        let mut text = vec![0; len as usize];
        let _ = self.output.read_exact_at(&mut text, 0);
        let text = String::from_utf8_lossy(&text);
        let said = match text.lines().next() {
            Some(_) => text.as_ref(),
            None => "ended without a word",
        };
        for line in said.lines() {
            let line = format!("{}: {}", self.called, line.strip_prefix("ckpt: ").unwrap_or(line));
            if is_saved {
                let _ = super::print(&format!("{}\n", printable(&line)));
            } else {
                eprintln!("ckpt: {}", printable(&line));
            }
        }
        is_saved
    }
}

/// Waits for any child of ours.
fn wait() -> nix::Result<(Pid, i32)> {
    let mut status = 0;
    loop {
        // SAFETY: the kernel writes the one word.
        match Errno::result(unsafe { libc::waitpid(-1, &mut status, 0) }) {
            Err(Errno::EINTR) => {}
            waited => return waited.map(|child| (Pid::new(child), status)),
        }
    }
}
