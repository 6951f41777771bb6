// SPDX-License-Identifier: LGPL-2.1-only
//! Starting the monitor of a process, so that the process never meets it.
//!
//! The monitor is our own executable as `ckpt __monitor PID`, outside the program (its work is in
//! `command/monitor.rs`). It is started by a process that is about to become the program (the
//! launcher, a restart) or that is none of its relatives (`ckpt -p`), always by way of an
//! intermediate: that one has no exit signal, executes nothing, and is reaped with `__WCLONE`, so
//! no SIGCHLD, no zombie and no child is left when the program begins; the monitor itself becomes
//! init's. Where orphans come to the starter (the first process of a container, PR_SET_CHILD_SUBREAPER, which
//! execve(2) keeps), the intermediate stays, unseen by a plain wait(2), as long as its monitor: were the attribute
//! cleared for a moment, other orphans of that moment would be lost to the program.
//!
//! The monitor has one descriptor of ours, the end of a pipe, and waits until all others of that
//! pipe are closed: when the program has taken our place.
//!
//! # Safety
//! The children are made by a bare clone(2) in a process with one thread, so they may do all that
//! their parent may.
#![allow(unsafe_code)]

use super::monitors;
use super::region::Region;
use crate::error::{Because, Error, Result};
use crate::proc::closing::close_range;
use crate::proc::fork::fork;
use crate::proc::pidfd::Pidfd;
use crate::proc::{Pid, Process, of_this_namespace};
use crate::ptrace::call::Caller;
use crate::ptrace::memory::Memory;
use ckpt_abi::region::{Config, Control, config_flag};
use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{IsTerminal, PipeReader, PipeWriter, Read, Write};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

/// MFD_EXEC (Linux 6.3): the memfd is for executing, whatever vm.memfd_noexec prefers.
const MFD_EXEC: u32 = 16;
/// The numbers that the monitor finds its descriptors at.
const LINE: i32 = 3;
const EXECUTABLE: i32 = 4;
/// The number of a pipe's end that the monitor closes when it has the program in sight ([`in_sight`]).
const SIGHT: i32 = 5;
/// How long a program has run before a monitor that only follows it is executed.
const LATER: Duration = Duration::from_millis(20);

/// A monitor that waits for its program to begin: for the end of this value in every process.
pub(crate) struct Monitor {
    pid: u32,
    _line: PipeWriter,
}

impl Monitor {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets it trace the calling process, and what this becomes, also under Yama.
    pub(crate) fn allow(&self) {
        // SAFETY: prctl with no memory arguments.
        unsafe { libc::prctl(libc::PR_SET_PTRACER, u64::from(self.pid)) };
    }

    /// Names it in the control page of a payload, so that one that was named there before ends,
    /// and lets it trace that process, also under Yama.
    pub(crate) fn appoint(
        &self,
        caller: &mut Caller<'_>,
        memory: &Memory,
        region: &Region,
    ) -> Result<()> {
        appoint(self.pid, caller, memory, region)
    }
}

/// [`Monitor::appoint`] for one that runs already.
pub(crate) fn appoint(
    monitor: u32,
    caller: &mut Caller<'_>,
    memory: &Memory,
    region: &Region,
) -> Result<()> {
    memory.put(region.base + offset_of!(Control, monitor) as u64, &monitor)?;
    // Without Yama the option is unknown; in another namespace of process ids the number
    // means nothing, but who attaches from outside there is privileged.
    let yama = std::fs::metadata("/proc/sys/kernel/yama");
    if !yama.is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        caller.call(libc::SYS_prctl, &[libc::PR_SET_PTRACER as u64, u64::from(monitor)])?;
    }
    Ok(())
}

/// Whether a process that is configured so needs one: [`sees_the_end`], or to be followed through execve(2), which
/// takes the handler of its signal away.
pub(crate) fn is_wanted(config: &Config) -> bool {
    sees_the_end(config) || config.asyncsig != 0
}

/// Whether it needs one for periodic checkpoints, or to see how it ends.
pub(crate) fn sees_the_end(config: &Config) -> bool {
    config.msperiod != 0 || config.flags & config_flag::SET_ASIDE != 0
}

/// Starts a monitor for process `target`, which is configured so, from `executable`, our own file. The caller
/// has one thread.
///
/// # Errors
/// When no process can be made.
pub(crate) fn start(target: Pid, executable: &[u8], config: &Config) -> Result<Monitor> {
    let what = || "cannot start the monitor, which takes periodic checkpoints and sees what the program executes and how it ends";
    let (line, kept) = std::io::pipe().because(what)?;
    let (mut answer, tell) = std::io::pipe().because(what)?;
    // Who only follows begins when the program has begun: a launch does not wait for it.
    let at_once = sees_the_end(config);
    let file = at_once.then(|| executable_file(executable)).transpose().because(what)?;
    let stderr = spelled_stderr(target);
    let order = Order {
        target,
        line,
        file,
        executable,
        stderr,
        config,
        starter_adopts: adopts(),
        sight: None,
    };
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), Some(&mut before)).because(what)?;
    let child = fork(0).because(what);
    if let Ok(None) = child {
        drop((kept, answer));
        intermediate(order, tell);
    }
    drop((order, tell));
    let mut pid = [0; 4];
    let told = child.and_then(|child| {
        // Until it has us in sight: a program that is over at once would be gone before.
        let mut told = answer.read_exact(&mut pid);
        if at_once && told.is_ok() {
            told = answer.read(&mut [0]).map(drop);
        }
        let told = told.because(what);
        if !adopts() || told.is_err() {
            child.into_iter().for_each(reap);
        }
        told
    });
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None).because(what)?;
    told?;
    match u32::from_ne_bytes(pid) {
        0 => Err(Error::new(format!("{}: no more processes (RLIMIT_NPROC)", what()))),
        pid => Ok(Monitor { pid, _line: kept }),
    }
}

/// Starts one that only follows, from a process that is about to end and is no subreaper's child: that saves the launch the
/// intermediate, and the time of two more processes.
///
/// # Errors
/// As [`start`].
pub(crate) fn start_from_injector(
    target: Pid,
    executable: &[u8],
    config: &Config,
) -> Result<Monitor> {
    let what = || "cannot start the monitor, which sees what the program executes";
    let (line, kept) = std::io::pipe().because(what)?;
    let stderr = spelled_stderr(target);
    let order = Order {
        target,
        line,
        file: None,
        executable,
        stderr,
        config,
        starter_adopts: false,
        sight: None,
    };
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), Some(&mut before)).because(what)?;
    let child = fork_named(libc::SIGCHLD).because(what);
    if let Ok(None) = child {
        drop(kept);
        // SAFETY: a session of its own, as in `intermediate`.
        unsafe { libc::setsid() };
        become_monitor(order);
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None).because(what)?;
    Ok(Monitor { pid: child?.map_or(0, Pid::word), _line: kept })
}

/// [`start`] where one [`is_wanted`]. To be followed through execve(2) alone is nothing that a program must not begin without.
///
/// # Errors
/// As [`start`].
pub(crate) fn start_if_wanted(
    target: Pid,
    executable: &[u8],
    config: &Config,
) -> Result<Option<Monitor>> {
    if !is_wanted(config) {
        return Ok(None);
    }
    match start(target, executable, config) {
        Ok(monitor) => Ok(Some(monitor)),
        Err(e) if sees_the_end(config) => Err(e),
        Err(e) => {
            say_unfollowed(&e);
            Ok(None)
        }
    }
}

/// Says what is lost without a monitor that only follows.
pub(crate) fn say_unfollowed(error: &Error) {
    eprintln!("ckpt: {error}; what the program executes (exec) gets no checkpoints by a signal");
}

struct Order<'a> {
    target: Pid,
    line: PipeReader,
    /// What to execute; else the monitor makes it itself, when it is time ([`LATER`]).
    file: Option<OwnedFd>,
    executable: &'a [u8],
    /// The program's configuration, in the environment: the program may be over before its memory is read.
    config: &'a Config,
    stderr: CString,
    /// Which descriptor to close when the program is in sight.
    sight: Option<i32>,
    starter_adopts: bool,
}

/// The variable with the configuration.
const CONFIG: &str = "CKPT_MONITORED";

fn spelled(config: &Config) -> CString {
    let mut text = format!("{CONFIG}=").into_bytes();
    let digit = |value: u8| b"0123456789abcdef"[usize::from(value)];
    text.extend(config.as_bytes().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
    CString::new(text).unwrap_or_default()
}

/// The variable with what standard error is.
const STDERR: &str = "CKPT_STDERR";

/// A file as it can be found again: its name, device and inode.
pub(crate) type Spot = (PathBuf, [u64; 2]);

/// The standard error of a process.
pub(crate) fn stderr_of(process: &Process) -> Option<Spot> {
    of_this_namespace().ok()?;
    let link = process.fd(2);
    let meta = std::fs::metadata(&link).ok()?;
    Some((std::fs::read_link(&link).ok()?, [meta.dev(), meta.ino()]))
}

/// Opens it anew, at its end, if it is a file or terminal still.
pub(crate) fn reopen_stderr((path, id): &Spot) -> Option<File> {
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let file = File::options().append(true).custom_flags(flags).open(path).ok()?;
    let meta = file.metadata().ok()?;
    let speaks = meta.is_file() || file.is_terminal();
    (speaks && [meta.dev(), meta.ino()] == *id).then_some(file)
}

/// The standard error of the process that becomes the program, in the environment of its monitor: the program may have
/// executed one that does not tell before anybody looks.
fn spelled_stderr(target: Pid) -> CString {
    let stderr = Process::glimpse(target).ok().and_then(|target| stderr_of(&target));
    let text = stderr.map(|(path, [device, inode])| {
        let mut text = format!("{STDERR}={device} {inode} ").into_bytes();
        text.extend_from_slice(path.as_os_str().as_bytes());
        text
    });
    CString::new(text.unwrap_or_default()).unwrap_or_default()
}

/// The standard error that its program had when a monitor was started.
pub(crate) fn given_stderr() -> Option<Spot> {
    let text = std::env::var_os(STDERR)?;
    let mut parts = text.as_bytes().splitn(3, |byte| *byte == b' ');
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
    let id = [number()?, number()?];
    Some((OsStr::from_bytes(parts.next()?).into(), id))
}

/// The configuration that a monitor was started with.
pub(crate) fn given(monitor: &Process) -> Option<Config> {
    let environment = monitor.environment().ok()?;
    let text = environment.strip_prefix(CONFIG.as_bytes())?.strip_prefix(b"=")?;
    let (pairs, _) = text.as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = pairs.iter().map_while(byte).collect();
    Config::read_from_bytes(&bytes).ok()
}

/// Tells whoever has started this monitor that it has the program in sight.
pub(crate) fn in_sight() {
    close_range(SIGHT as u32, SIGHT as u32);
}

/// A descriptor by which an executable in memory can be executed; nobody can write to it any more (ETXTBSY).
pub(crate) fn executable(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let file = executable_file(bytes)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::open(path).map(OwnedFd::from)
}

/// The executable in memory: the monitor outlives its file, and lets go of it.
fn executable_file(executable: &[u8]) -> std::io::Result<OwnedFd> {
    let make = |flags| memfd_create(c"ckpt", flags);
    let file = make(MFdFlags::MFD_CLOEXEC | MFdFlags::from_bits_retain(MFD_EXEC));
    let file = match file {
        // Before Linux 6.3 the flag is unknown and every memfd executable.
        Err(Errno::EINVAL) => make(MFdFlags::MFD_CLOEXEC),
        file => file,
    };
    let copied = file.map_err(std::io::Error::from).and_then(|file| {
        let mut file = File::from(file);
        file.write_all(executable).map(|()| file)
    });
    match copied {
        Ok(file) => Ok(file.into()),
        // vm.memfd_noexec forbids it, or RLIMIT_FSIZE is too small: our file as it is.
        Err(_) => File::open("/proc/self/exe").map(OwnedFd::from),
    }
}

/// Makes the monitor and says its id, or 0.
fn intermediate(mut order: Order<'_>, mut tell: PipeWriter) -> ! {
    order.sight = order.file.is_some().then(|| tell.as_raw_fd());
    // SAFETY: a session of our own, so that no terminal signal meets the monitor.
    unsafe { libc::setsid() };
    let child = fork_named(libc::SIGCHLD);
    if let Ok(None) = child {
        become_monitor(order);
    }
    let pid = child.ok().flatten().map_or(0, Pid::word);
    let told = tell.write_all(&pid.to_ne_bytes());
    if told.is_ok() && pid != 0 && order.starter_adopts {
        // No dumper takes it for one of the program's.
        let _ = nix::sys::prctl::set_name(c"ckpt-between");
        close_from(0);
        // A dumper that outlives its monitor comes here too.
        let _ = nix::sys::prctl::set_child_subreaper(true);
        // SAFETY: waits for the children of this process.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::__WALL) } > 0 {}
    }
    // SAFETY: ends the child without running anything of the parent's.
    unsafe { libc::_exit(0) }
}

/// A child that has the name of monitors from its first moment: whoever looks for it then may run before it does.
fn fork_named(exit_signal: i32) -> nix::Result<Option<Pid>> {
    let name = nix::sys::prctl::get_name();
    let _ = nix::sys::prctl::set_name(monitors::NAME);
    let child = fork(exit_signal);
    if let (Ok(Some(_)), Ok(name)) | (Err(_), Ok(name)) = (&child, name) {
        let _ = nix::sys::prctl::set_name(&name);
    }
    child
}

/// Whether orphans come to this process, and to the program that it becomes.
pub(crate) fn adopts() -> bool {
    std::process::id() == 1 || nix::sys::prctl::get_child_subreaper().unwrap_or(false)
}

fn become_monitor(order: Order<'_>) -> ! {
    let target = CString::new(order.target.to_string()).unwrap_or_default();
    // All numbers above those they get, so that none overwrites another.
    let above = |fd: i32| {
        // SAFETY: duplicates a descriptor of this process, which has its own table.
        unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, SIGHT + 1) }
    };
    let line = above(order.line.as_raw_fd());
    let file = order.file.as_ref().map(|file| above(file.as_raw_fd()));
    // Without haste nobody waits for the pipe's end, but what has its number is closed.
    let sight = above(order.sight.unwrap_or(line));
    place(line, LINE, 0);
    place(sight, SIGHT, 0);
    if let Some(file) = file {
        // ETXTBSY: a descriptor that can write to the file must not be open when it is executed.
        place(readable(file), EXECUTABLE, libc::O_CLOEXEC);
    } else {
        close_range(EXECUTABLE as u32, EXECUTABLE as u32);
    }
    close_from(SIGHT as u32 + 1);
    // The starter's streams: whoever reads from them waits for their end.
    close_range(0, 2);
    if file.is_none() {
        make_executable(order.target, order.executable);
    }
    let _ = std::env::set_current_dir("/");
    let argv = [c"ckpt".as_ptr(), c"__monitor".as_ptr(), target.as_ptr(), std::ptr::null()];
    let config = spelled(order.config);
    let envp = [config.as_ptr(), order.stderr.as_ptr(), std::ptr::null()];
    let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: the arrays end with null pointers and live until the call.
    unsafe {
        libc::syscall(libc::SYS_execveat, EXECUTABLE, path, argv.as_ptr(), envp.as_ptr(), flags)
    };
    let path = c"/proc/self/exe".as_ptr();
    // SAFETY: as above.
    unsafe { libc::execve(path, argv.as_ptr(), envp.as_ptr()) };
    // SAFETY: ends the child without running anything of the parent's.
    unsafe { libc::_exit(0) }
}

/// Makes what a monitor without haste executes, some time after its program has begun; many a program has ended by then.
fn make_executable(target: Pid, executable: &[u8]) {
    if Pidfd::open(target).is_ok_and(|program| program.ended_within(LATER)) {
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(0) };
    }
    // No low number is free but those of the streams, below the executable's.
    if let Ok(file) = executable_file(executable) {
        let above = SIGHT + 1;
        // SAFETY: duplicates a descriptor of this process, which has its own table.
        let file = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) };
        place(readable(file), EXECUTABLE, libc::O_CLOEXEC);
    }
    close_from(SIGHT as u32 + 1);
    close_range(0, 2);
}

/// The same file opened for reading, or as it is where that fails.
fn readable(file: i32) -> i32 {
    let path = format!("/proc/self/fd/{file}");
    match nix::fcntl::open(
        path.as_str(),
        nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    ) {
        Ok(again) => std::os::fd::IntoRawFd::into_raw_fd(again),
        Err(_) => file,
    }
}

fn place(from: i32, to: i32, flags: i32) {
    // SAFETY: this process owns its table and nothing else in it is used again.
    unsafe { libc::dup3(from, to, flags) };
}

/// Closes all descriptors from `first` on.
fn close_from(first: u32) {
    close_range(first, u32::MAX);
}

fn reap(child: Pid) {
    // SAFETY: waits for the child that was just made.
    unsafe { libc::waitpid(child.get(), std::ptr::null_mut(), libc::__WCLONE) };
}
