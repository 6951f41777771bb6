// SPDX-License-Identifier: LGPL-2.1-only
//! Starting a program with the payload in it.
//!
//! ckpt itself becomes the program by execve(2), so the program has ckpt's process id, parent,
//! descriptors and environment. A child made before, the injector, traces it to the stop at its
//! execve (PTRACE_EVENT_EXEC), when nothing of it has run yet, injects, and ends. The program's
//! first act, in the payload's thunk, is to wait for that child, which has no exit signal: no
//! SIGCHLD and no zombie are left.
//!
//! # Safety
//! The child is made by a bare clone(2) in a process with one thread, so it may do all that its
//! parent may.
#![allow(unsafe_code)]

use super::elf::Payload;
use super::monitor::{self, Monitor};
use super::{beforehand, inject};
use crate::error::{Because, CANNOT_EXECUTE, Error, NOT_FOUND, Result};
use crate::fault::{Point, reach};
use crate::proc::fork::fork;
use crate::proc::{self, room};
use crate::proc::{Pid, Process};
use crate::ptrace::call::Caller;
use crate::ptrace::freeze::Frozen;
use crate::ptrace::memory::Memory;
use crate::ptrace::raw::{self, State};
use ckpt_abi::region::Config;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::execv;
use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Becomes `program` with the payload in it; returns only on failure.
pub(crate) fn launch(
    program: &OsStr,
    args: &[OsString],
    config: &Config,
    executable: &[u8],
) -> Result<Infallible> {
    proc::of_this_namespace()?;
    let candidates = candidates(program);
    let (mut ours, theirs) = UnixStream::pair().because(|| "cannot make a socket pair")?;
    let parent = Pid::own();
    // Before the injector, which names it to the payload.
    let from_here = monitor::sees_the_end(config) || monitor::adopts();
    let monitor = match from_here {
        true => monitor::start_if_wanted(parent, executable, config)?,
        false => None,
    };
    let follow = !from_here && monitor::is_wanted(config);
    let child = fork(0)
        .because(|| "cannot start a second process, which ckpt needs for a moment (ulimit -u)")?;
    let Some(child) = child else {
        drop(ours);
        injector(parent, theirs, Equipment { config, executable, monitor, follow });
    };
    drop(theirs);
    // Under Yama a child may trace its parent only with its leave.
    // SAFETY: prctl with no memory arguments.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, child.get()) };
    let mut answer = [1];
    let seized = ours.write_all(b"!").and_then(|()| ours.read_exact(&mut answer));
    if seized.is_err() || answer != [0] {
        reap(child);
        return Err(Error::new(format!(
            "cannot start {} under ckpt: tracing is not permitted here",
            program.display()
        ))
        .hint("`ckpt check` says why"));
    }
    Err(execute(program, args, &candidates))
}

fn reap(child: Pid) {
    // SAFETY: waits for the child that was just made.
    unsafe { libc::waitpid(child.get(), std::ptr::null_mut(), libc::__WCLONE) };
}

/// The file that [`launch`] will execute, if there is one that may be executed.
pub(crate) fn executable(program: &OsStr) -> Option<PathBuf> {
    use nix::unistd::{AccessFlags, access};
    let may = |path: &PathBuf| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    candidates(program).into_iter().find(may)
}

/// Where execvp(3) would look.
pub(super) fn candidates(program: &OsStr) -> Vec<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return vec![program.into()];
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    std::env::split_paths(&path).map(|dir| dir.join(program)).collect()
}

/// execvp(3) with musl's missing half: a file that is no program is given to the shell.
fn execute(program: &OsStr, args: &[OsString], candidates: &[PathBuf]) -> Error {
    let argv: Vec<CString> = std::iter::once(program)
        .chain(args.iter().map(OsString::as_os_str))
        .map(c_string)
        .collect();
    if let Err(e) = room::give_back() {
        return Error::new(format!("cannot give the program its resource limits: {}", e.desc()));
    }
    let mut worst = Errno::ENOENT;
    for path in candidates {
        match execv(&c_string(path.as_os_str()), &argv) {
            Ok(never) => match never {},
            Err(Errno::ENOEXEC) if beforehand::is_binary(path) => {
                let text = format!(
                    "cannot execute {}: it is of another kind of processor",
                    path.display()
                );
                return Error::new(text).with_status(CANNOT_EXECUTE);
            }
            Err(Errno::ENOEXEC) => return shell(path, &argv),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(e) => worst = e,
        }
    }
    let status = if worst == Errno::ENOENT { NOT_FOUND } else { CANNOT_EXECUTE };
    Error::new(format!("cannot execute {}: {}", program.display(), worst.desc()))
        .with_status(status)
}

fn shell(path: &Path, argv: &[CString]) -> Error {
    let mut line = vec![c"/bin/sh".to_owned(), c_string(path.as_os_str())];
    line.extend_from_slice(&argv[1..]);
    let error = match execv(c"/bin/sh", &line) {
        Ok(never) => match never {},
        Err(e) => e,
    };
    Error::new(format!("cannot execute {}: {}", path.display(), error.desc()))
        .with_status(CANNOT_EXECUTE)
}

pub(super) fn c_string(text: &OsStr) -> CString {
    // Arguments came from argv and cannot hold a NUL.
    CString::new(text.as_bytes()).unwrap_or_default()
}

/// What the injector gives the program.
struct Equipment<'a> {
    config: &'a Config,
    executable: &'a [u8],
    monitor: Option<Monitor>,
    /// It has yet to get a monitor, while it executes the program.
    follow: bool,
}

/// The child: waits for the exec, injects, ends.
fn injector(parent: Pid, mut line: UnixStream, mut equipment: Equipment<'_>) -> ! {
    // By that a dumper knows one of ours: stopped as a child of the program, which waits for its end, it would keep both.
    let _ = nix::sys::prctl::set_name(c"ckpt-injector");
    let mut start = [0];
    let seized = line.read_exact(&mut start).is_ok()
        && raw::seize(parent.main_thread(), raw::OPTIONS | libc::PTRACE_O_TRACEEXEC).is_ok();
    reach(Point::Tracing);
    let told = line.write_all(&[u8::from(!seized)]);
    drop(line);
    if seized && told.is_ok() && equipment.follow {
        let Equipment { config, executable, .. } = equipment;
        match monitor::start_from_injector(parent, executable, config) {
            Ok(monitor) => equipment.monitor = Some(monitor),
            Err(e) => monitor::say_unfollowed(&e),
        }
    }
    // While the program is executed.
    let _ = Payload::embedded();
    if seized
        && told.is_ok()
        && wait_for_exec(parent)
        && let Err(e) = equip(parent, &equipment)
    {
        eprintln!("ckpt: {e}");
    }
    exit()
}

fn exit() -> ! {
    // SAFETY: ends the child without running anything of the parent's.
    unsafe { libc::_exit(0) }
}

/// Waits for the successful execve; false when the parent ended instead.
fn wait_for_exec(parent: Pid) -> bool {
    loop {
        match raw::wait(parent.main_thread(), true) {
            Ok(State::Stopped { event: raw::EVENT_EXEC, .. }) => return true,
            Ok(State::Stopped { signal, event: 0 }) => {
                let _ = raw::cont(parent.main_thread(), signal & 0x7f);
            }
            Ok(State::Stopped { .. }) => {
                let _ = raw::cont(parent.main_thread(), 0);
            }
            _ => return false,
        }
    }
}

/// Injects into the program at its exec stop and makes it wait for us before it begins. When that
/// fails the program is killed (SIGKILL) before its first instruction.
fn equip(pid: Pid, equipment: &Equipment<'_>) -> Result<()> {
    let Equipment { config, executable, monitor, .. } = equipment;
    // Without us it would go on as a program without a payload, and with a dead child that `__WALL` finds.
    let _ = raw::set_options(
        pid.main_thread(),
        raw::OPTIONS | libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_EXITKILL,
    );
    reach(Point::Executed);
    let injected = (|| {
        let process = Process::open(pid)?;
        let adopted = Frozen::adopt(&process);
        let mut frozen = adopted.map_err(|e| e.hint("a 32-bit program cannot run under ckpt"))?;
        let memory = Memory::open(&process)?;
        let vmas = process.maps()?;
        let region = inject(&mut frozen.threads[0], &memory, &vmas, config, executable)?;
        if let Some(monitor) = monitor {
            let mut caller = Caller::new(&mut frozen.threads[0], &memory, &region.desk())?;
            monitor.appoint(&mut caller, &memory, &region)?;
        }
        reach(Point::Equipped);
        frozen.leave_waiting(&region.desk(), &memory, Pid::own())
    })();
    if injected.is_err() {
        end(pid);
    }
    injected
}

fn end(pid: Pid) {
    let _ = nix::sys::signal::kill(pid.nix(), nix::sys::signal::Signal::SIGKILL);
}
