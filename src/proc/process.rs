// SPDX-License-Identifier: LGPL-2.1-only
//! A process that is looked at more than once.

use super::forebear::{self, Ask, shape};
use super::id::{Pid, Tid};
use super::pidfd::Pidfd;
use super::stat::Stat;
use super::status::Status;
use super::text::{decimal, lines, words};
use super::{each_line_in, failed, slurp_in, slurp_piece};
use crate::error::{Because, Error, Kind, Result};
use crate::order;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fstatat};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A process by its pidfd (pidfd_open(2)) and the directory of /proc that was its when it was opened. What is read is
/// this process's, or fails: the id may be another's by then. Whoever looks at a process at more than one moment opens it
/// once and hands it on; a copy has the same descriptors.
#[derive(Clone)]
pub struct Process {
    pid: Pid,
    directory: Arc<File>,
    /// None of a thread that leads no process, and of one that was opened for a look.
    pidfd: Option<Arc<Pidfd>>,
}

/// A living thread of each process whose main thread has ended.
static HEADS: Mutex<Vec<(Pid, Pid)>> = Mutex::new(Vec::new());

fn heads() -> MutexGuard<'static, Vec<(Pid, Pid)>> {
    HEADS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The id by which a process that was opened is asked for what a thread that has ended does not have any more
/// (process_vm_readv(2), kcmp(2)).
pub(crate) fn head(pid: Pid) -> Pid {
    heads().iter().find(|(of, _)| *of == pid).map_or(pid, |(_, head)| *head)
}

impl Process {
    /// Opens a process; or a thread by its id, which then is the process it belongs to, without a pidfd.
    ///
    /// # Errors
    /// It is gone ([`Kind::Gone`]), or we have no more descriptors.
    pub fn open(pid: Pid) -> Result<Self> {
        use Errno::{EACCES, EINVAL, ENOENT, ENOSYS, EPERM, ESRCH};
        let mut process = Self::glimpse(pid)?;
        process.pidfd = match Pidfd::open(pid) {
            Ok(pidfd) => Some(Arc::new(pidfd)),
            Err(EINVAL | ENOENT | ESRCH | ENOSYS | EPERM | EACCES) => None,
            Err(e) => {
                return Err(e).because(|| format!("cannot watch process {pid}"));
            }
        };
        // The directory is the older of the two: while it is not empty, the id has been given to nobody else.
        if process.is_reaped() {
            return Err(gone(pid));
        }
        match process.lacks_main() {
            true => process.find_head(),
            // Whoever had this id before may have been entered.
            false => heads().retain(|(of, _)| *of != pid),
        }
        Ok(process)
    }

    /// Whether the thread has ended whose directory this is.
    fn lacks_main(&self) -> bool {
        matches!(self.link_of("exe"), Err(Errno::ENOENT | Errno::ESRCH))
    }

    /// Where the main thread has ended before others, files, memory and directories are those of one that lives, whose
    /// directory has all of the process, too.
    pub(crate) fn find_head(&mut self) {
        if !self.lacks_main() {
            return;
        }
        let Ok(leader) = Self::glimpse(self.pid) else { return };
        let stands_for = |tid: &Tid| {
            let lives = !matches!(leader.state(*tid), None | Some('Z' | 'X'));
            let it = Self::glimpse(tid.as_pid()).ok().filter(|_| lives);
            it.filter(|_| leader.has(*tid)).map(|it| (*tid, it.directory))
        };
        let all = leader.tasks().unwrap_or_default();
        let Some((tid, directory)) = all.iter().find_map(stands_for) else { return };
        // An id that is another's by now has led to a stranger.
        if self.pidfd.is_some() && self.has_ended() {
            return;
        }
        self.directory = directory;
        let mut heads = heads();
        heads.retain(|(pid, _)| *pid != self.pid);
        heads.push((self.pid, tid.as_pid()));
    }

    /// The process that has this id now, for a look in few system calls: without a pidfd, the end of one that nobody has
    /// waited for yet is none ([`Process::has_ended`]).
    ///
    /// # Errors
    /// As of [`Process::open`].
    pub fn glimpse(pid: Pid) -> Result<Self> {
        let path = format!("/proc/{pid}");
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = openat(AT_FDCWD, path.as_str(), flags, Mode::empty());
        let directory = match directory {
            Err(Errno::ENOENT) => return Err(gone(pid)),
            directory => directory.because(|| format!("cannot open {path}"))?,
        };
        Ok(Self { pid, directory: Arc::new(directory.into()), pidfd: None })
    }

    /// The process that asks.
    ///
    /// # Errors
    /// There is no /proc, or we have no more descriptors.
    pub fn own() -> Result<Self> {
        Self::open(Pid::own())
    }

    /// Its id, which is another's when it is gone.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The thread that it began with.
    pub fn main_thread(&self) -> Tid {
        self.pid.main_thread()
    }

    /// What the kernel says of that thread in numbers.
    ///
    /// # Errors
    /// The process is gone.
    pub fn main_stat(&self) -> Result<Stat> {
        self.stat(self.main_thread())
    }

    /// What the kernel says of that thread.
    ///
    /// # Errors
    /// The process is gone.
    pub fn main_status(&self) -> Result<Status> {
        self.status(self.main_thread())
    }

    /// Its name: that of the main thread, at most 15 bytes.
    ///
    /// # Errors
    /// The process is gone.
    pub fn name(&self) -> Result<OsString> {
        self.comm(self.main_thread())
    }

    /// Where a file of it is found, by way of our descriptor of its directory.
    pub fn path(&self, name: &str) -> String {
        format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd())
    }

    /// Its effective user, which its directory belongs to whatever else holds (task_dump_owner in fs/proc/base.c).
    pub fn user(&self) -> Option<u32> {
        self.stat_of(".").ok().map(|entry| entry.st_uid)
    }

    /// Whom its other files in /proc belong to: its user, or root if that may not look at it (PR_SET_DUMPABLE).
    pub fn owner(&self) -> Option<u32> {
        self.stat_of("environ").ok().map(|entry| entry.st_uid)
    }

    /// The environment that it was executed with, as it stands in its memory now: NAME=VALUE with a null byte behind each.
    ///
    /// # Errors
    /// It is gone or may not be looked at.
    pub fn environment(&self) -> Result<Vec<u8>> {
        self.file("environ")
    }

    /// The file that it executes.
    ///
    /// # Errors
    /// It is gone or may not be looked at.
    pub fn executable(&self) -> io::Result<File> {
        File::open(self.path("exe"))
    }

    /// Where what a descriptor of it shows can be opened, by way of our descriptor of its directory.
    pub fn fd(&self, number: u32) -> String {
        match super::fds::holder(self.pid, number) {
            (_, here) if here != number => format!("/proc/self/fd/{here}"),
            _ => self.path(&format!("fd/{number}")),
        }
    }

    /// What `name` is called in sentences.
    pub fn called(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.pid)
    }

    /// Whether it was waited for, and its id may be another's.
    pub fn is_reaped(&self) -> bool {
        self.stat_of("stat").is_err()
    }

    /// Whether it has a thread of this id, dead or alive.
    pub fn has(&self, tid: Tid) -> bool {
        self.stat_of(&format!("task/{tid}")).is_ok()
    }

    /// Whether all of it has ended (pidfd_open(2): the descriptor is readable then).
    pub fn has_ended(&self) -> bool {
        match &self.pidfd {
            Some(pidfd) => pidfd.ended_within(Duration::ZERO),
            None => self.is_reaped(),
        }
    }

    /// Whether it is held by a descriptor of its own, and not by its id.
    pub(crate) fn is_held(&self) -> bool {
        self.pidfd.is_some()
    }

    /// That descriptor.
    pub(crate) fn pidfd(&self) -> Option<&Pidfd> {
        self.pidfd.as_deref()
    }

    /// Ends it (SIGKILL), if it is held.
    pub(crate) fn kill(&self) {
        self.pidfd.iter().for_each(|pidfd| pidfd.kill());
    }

    /// Frees its memory, if it is ending: two do that in half the time.
    pub(crate) fn free(&self) {
        self.pidfd.iter().for_each(|pidfd| pidfd.free());
    }

    /// The ids of its threads in our own PID namespace, the leader's among them, in ascending order.
    ///
    /// The list of a running process is old when it arrives: ask again until nothing is new.
    ///
    /// # Errors
    /// The process is gone.
    pub fn tasks(&self) -> Result<Vec<Tid>> {
        // A leader that has ended while others run is counted.
        if self.count()? == 1 {
            return Ok(vec![self.main_thread()]);
        }
        Ok(self.numbered("task")?.into_iter().map(Tid::of_word).collect())
    }

    /// How many threads it has: as many links more than any directory of it has the one of its threads (fs/proc/base.c,
    /// proc_task_getattr).
    ///
    /// # Errors
    /// The process is gone.
    pub fn count(&self) -> Result<u32> {
        const OF_ITS_OWN: u64 = 2;
        let links = self.stat_of("task").map_err(io::Error::from);
        let links = links.map_err(|e| failed(self, None, &self.called("task"), &e))?.st_nlink;
        Ok(links.saturating_sub(OF_ITS_OWN) as u32)
    }

    /// Its children, of all of its threads; none where the kernel does not tell (CONFIG_PROC_CHILDREN).
    pub fn children(&self) -> Vec<Pid> {
        /// So many threads' lists take longer than a look at as many processes.
        const MANY: usize = 16;
        let tasks = self.tasks().unwrap_or_default();
        let parents = || {
            let all = super::tree::pids().ok()?;
            (all.contains(&Pid::INIT) && all.len() < tasks.len()).then_some(all)
        };
        let is_child = |pid: &Pid| {
            super::stat::glance(pid.main_thread()).is_some_and(|(_, parent)| parent == self.pid)
        };
        // Only the lists have them in the order in which it has them, and those whom /proc hides (hidepid, proc(5)).
        if tasks.len() > MANY && parents().is_some_and(|all| !all.iter().any(is_child)) {
            return Vec::new();
        }
        let lists = tasks.into_iter();
        let lists = lists.filter_map(|tid| self.thread_file(tid, "children").ok());
        lists
            .flat_map(|list| words(&list).filter_map(|w| decimal(w).ok()).collect::<Vec<_>>())
            .collect()
    }

    /// Which namespace of a kind it is in, as the text "pid:[4026531836]" (namespaces(7)); None if that may not be
    /// read.
    pub fn namespace(&self, kind: &str) -> Option<std::path::PathBuf> {
        self.link_of(&format!("ns/{kind}")).ok().and_then(super::namespaces::told)
    }

    /// Where a link of /proc/PID leads.
    pub(super) fn link_of(&self, name: &str) -> nix::Result<OsString> {
        readlinkat(&*self.directory, name)
    }

    /// What stat(2) says of /proc/PID/`name`, or of what it leads to.
    pub(super) fn stat_of(&self, name: &str) -> nix::Result<FileStat> {
        fstatat(&*self.directory, name, AtFlags::empty())
    }

    /// The device and the inode of the file that a descriptor shows, and how it may be accessed (O_ACCMODE), which the
    /// permissions of the link tell (proc_pid_fd(5)); None if it is not open.
    pub(crate) fn open_file(&self, number: u32) -> Option<[u64; 3]> {
        let link = format!("fd/{number}");
        let file = self.stat_of(&link).ok()?;
        let mode =
            fstatat(&*self.directory, link.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).ok()?.st_mode;
        let access = match (mode & libc::S_IRUSR != 0, mode & libc::S_IWUSR != 0) {
            (_, false) => libc::O_RDONLY,
            (false, true) => libc::O_WRONLY,
            (true, true) => libc::O_RDWR,
        };
        Some([file.st_dev, file.st_ino, access as u64])
    }

    /// How many bytes of it are in memory (proc_pid_statm(5)).
    pub(crate) fn resident(&self) -> Option<u64> {
        const PAGE: u64 = 4096;
        let text = self.text("statm").ok()?;
        decimal::<u64>(words(&text).nth(1)?).ok().map(|pages| pages * PAGE)
    }

    /// The same, of pages that several have in common a part (Pss of /proc/PID/smaps_rollup).
    pub(crate) fn proportional(&self) -> Option<u64> {
        let text = self.text("smaps_rollup").ok()?;
        let line = lines(&text).find_map(|line| line.strip_prefix(b"Pss:"))?;
        decimal::<u64>(words(line).next()?).ok().map(|kib| kib << 10)
    }

    /// Reads /proc/PID/`name`.
    pub(super) fn text(&self, name: &str) -> io::Result<Vec<u8>> {
        // Their entries come in any number of pieces.
        const LISTS: [&str; 2] = ["timers", "children"];
        match LISTS.iter().any(|list| name.ends_with(list)) {
            true => slurp_in(&*self.directory, name),
            false => slurp_piece(&*self.directory, name),
        }
    }

    /// The numeric names in the directory /proc/PID/`name`, in ascending order.
    pub(super) fn numbered(&self, name: &str) -> Result<Vec<u32>> {
        let failed = |e| failed(self, None, &self.called(name), &e);
        let mut numbers = Vec::new();
        for entry in fs::read_dir(self.path(name)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Some(number) = entry.file_name().to_str().and_then(|n| n.parse().ok()) {
                numbers.push(number);
            }
        }
        order::numbers(&mut numbers);
        Ok(numbers)
    }

    /// All of /proc/PID/`name`.
    pub(super) fn file(&self, name: &str) -> Result<Vec<u8>> {
        self.text(name).map_err(|e| failed(self, None, &self.called(name), &e))
    }

    /// Gives each line of /proc/PID/`name` to `each`, until that wants no more.
    pub(super) fn each_line(&self, name: &str, each: &mut dyn FnMut(&[u8]) -> bool) -> Result<()> {
        each_line_in(&*self.directory, name, each)
            .map_err(|e| failed(self, None, &self.called(name), &e))
    }

    /// All of /proc/PID/task/TID/`name`.
    pub(super) fn thread_file(&self, tid: Tid, name: &str) -> Result<Vec<u8>> {
        let name = format!("task/{tid}/{name}");
        self.text(&name).map_err(|e| failed(self, Some(tid), &self.called(&name), &e))
    }

    /// Opens a file of a thread.
    pub(super) fn open_of(&self, tid: Tid, name: &str) -> Option<File> {
        super::open_in(&*self.directory, &format!("task/{tid}/{name}")).ok()
    }

    /// The same of a file that only a tracer may read: by way of a forebear, if there is one.
    pub(super) fn guarded_file(&self, tid: Tid, name: &str, what: u32) -> Result<Vec<u8>> {
        let mut text = vec![0; 256];
        let ask = Ask { what, id: tid.get(), shape: shape::OUT, len: 256, ..Ask::default() };
        match forebear::ask(&ask, &mut text) {
            Some(Ok(answer)) => text.truncate(answer.result as usize),
            _ => return self.thread_file(tid, name),
        }
        Ok(text)
    }
}

/// What is said of a process that is not there any more.
pub(crate) fn gone(pid: Pid) -> Error {
    Error::new(format!("process {pid} is gone")).of(Kind::Gone)
}
