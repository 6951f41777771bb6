// SPDX-License-Identifier: LGPL-2.1-only
//! A temporary directory with `ckpt` in it, and somebody who works there.
//!
//! # Safety
//! The one unsafe block looks at descriptors of this process by number, only to mark them
//! close-on-exec; none is closed, so that no owner loses one.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{F_GETFD, F_SETFD, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, chown, geteuid};

use super::{Build, Ended, PATIENCE, Run, subjects, until};

/// User and group id of the tests without privileges.
const NOBODY: u32 = 65534;

/// Who works on a bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// The user who runs the tests.
    Me,
    /// Uid 65534 where root runs the tests; else the same as `Me`, who has no privileges then.
    Nobody,
}

/// A temporary directory with a copy of `ckpt`; removed when dropped.
pub(crate) struct Bench {
    /// The directory. Programs start in it.
    pub dir: PathBuf,
    /// Who runs the programs and owns the directory.
    pub who: Who,
    /// Whether ckpt stays as the parent of programs, as under Yama; `CKPT_STAY` in the tests' own environment has it so
    /// in all of them.
    pub stays: bool,
}

impl Bench {
    /// A new bench for `who`.
    pub(crate) fn new(who: Who) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        keep_descriptors_to_ourselves();
        let own = std::process::id();
        let dir = loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let dir = std::env::temp_dir().join(format!("ckpt-test-{own}-{count}"));
            match fs::create_dir(&dir) {
                Ok(()) => break dir,
                // Left by a test with this id that was killed.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => panic!("no temporary directory {}: {e}", dir.display()),
            }
        };
        let bench = Self { dir, who, stays: std::env::var_os("CKPT_STAY").is_some() };
        bench.give(&bench.dir);
        fs::copy(subjects::ckpt(), bench.ckpt()).expect("a copy of ckpt");
        fs::set_permissions(bench.ckpt(), PermissionsExt::from_mode(0o755)).expect("chmod");
        bench
    }

    /// The path of the copy of ckpt.
    pub(crate) fn ckpt(&self) -> PathBuf {
        self.path("ckpt")
    }

    /// A path in the directory.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// The same as an argument.
    pub(crate) fn name(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().expect("utf-8")
    }

    /// A directory in the directory, which `who` owns.
    pub(crate) fn subdirectory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).expect("a directory");
        self.give(&path);
        path
    }

    /// A file in the directory, which `who` owns.
    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        if path.exists() {
            fs::write(&path, bytes).expect("a file");
            self.give(&path);
            return path;
        }
        // Whole at once: a program that waits for it may remove it again.
        let new = self.path(format!("{name}.new"));
        fs::write(&new, bytes).expect("a file");
        self.give(&new);
        fs::rename(&new, &path).expect("rename");
        path
    }

    /// A fresh copy of a subject, named `NAME.BUILD`.
    pub(crate) fn subject(&self, name: &str, build: Build) -> PathBuf {
        let from = subjects::subject(name, build);
        let to = self.path(from.file_name().expect("a file name"));
        fs::copy(&from, &to).expect("a copy of the subject");
        fs::set_permissions(&to, PermissionsExt::from_mode(0o755)).expect("chmod");
        to
    }

    /// A command that `who` runs in the directory, with a small environment and null streams.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.dir).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("LC_ALL", "C").env("CKPT_TEST", "of the start").stdin(Stdio::null());
        if self.stays {
            command.env("CKPT_STAY", "1");
        }
        if self.drops_privileges() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Runs PROGRAM ARGS… without ckpt.
    pub(crate) fn run(&self, program: impl AsRef<OsStr>, args: &[&str]) -> Run {
        let mut command = self.command(program);
        command.args(args);
        Run::start(command)
    }

    /// Runs `ckpt OPTIONS… -- PROGRAM ARGS…`.
    pub(crate) fn launch(
        &self,
        options: &[&str],
        program: impl AsRef<OsStr>,
        args: &[&str],
    ) -> Run {
        let mut command = self.command(self.ckpt());
        command.args(options).arg("--").arg(program).args(args);
        Run::start(command)
    }

    /// Runs `ckpt ARGS…` to its end.
    #[track_caller]
    pub(crate) fn order(&self, args: &[&str]) -> Ended {
        self.run(self.ckpt(), args).end()
    }

    /// Runs `ckpt ARGS…` to its end, which must be a good one.
    #[track_caller]
    pub(crate) fn must(&self, args: &[&str]) -> Ended {
        let ended = self.order(args);
        assert_eq!(ended.code(), Some(0), "ckpt {args:?}: {ended:?}");
        ended
    }

    /// The names in the directory that begin with `prefix`, sorted.
    pub(crate) fn names(&self, prefix: &str) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).expect("the directory");
        let names = entries.map(|e| e.expect("an entry").file_name().into_string().expect("utf-8"));
        let mut names: Vec<_> = names.filter(|n| n.starts_with(prefix)).collect();
        names.sort();
        names
    }

    /// Whether programs run as another user than the test.
    pub(crate) fn drops_privileges(&self) -> bool {
        self.who == Who::Nobody && geteuid().is_root()
    }

    /// Makes `who` the owner of a file.
    pub(crate) fn give(&self, path: &Path) {
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("chmod");
        if self.drops_privileges() {
            let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
            chown(path, Some(uid), Some(gid)).expect("chown");
        }
    }

    /// Waits until no processes are here but these.
    #[track_caller]
    pub(crate) fn alone(&self, but: &[u32]) {
        let left =
            || self.processes().into_iter().filter(|(pid, _)| !but.contains(&pid.cast_unsigned()));
        until("others to end", || (left().next().is_none()).then_some(()));
    }

    /// Processes whose program or working directory lies in the directory.
    fn processes(&self) -> Vec<(i32, String)> {
        let inside = |pid: i32, link: &str| {
            fs::read_link(format!("/proc/{pid}/{link}")).is_ok_and(|to| to.starts_with(&self.dir))
        };
        let entries = fs::read_dir("/proc").expect("/proc");
        let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|&pid| inside(pid, "exe") || inside(pid, "cwd"))
            .map(|pid| {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                (pid, name.trim().to_owned())
            })
            .collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let begin = Instant::now();
        let grace = if std::thread::panicking() { Duration::ZERO } else { PATIENCE / 6 };
        let mut left = self.processes();
        while !left.is_empty() && begin.elapsed() < grace {
            std::thread::sleep(Duration::from_millis(5));
            left = self.processes();
        }
        for (pid, _) in &left {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        let _ = fs::remove_dir_all(&self.dir);
        if !std::thread::panicking() {
            assert!(left.is_empty(), "processes were left behind: {left:?}");
        }
    }
}

/// Marks what this process inherited beyond its standard streams close-on-exec: programs under test
/// must see the descriptors 0 to 2 only.
fn keep_descriptors_to_ourselves() {
    for entry in fs::read_dir("/proc/self/fd").expect("/proc/self/fd") {
        let name = entry.expect("an entry").file_name();
        let Some(number) = name.to_str().and_then(|n| n.parse().ok()).filter(|&n| n > 2) else {
            continue;
        };
        // SAFETY: the borrow lasts for two fcntl calls, which answer EBADF for a closed number and
        // change nothing but the flag that this process wants on every descriptor anyway.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        if let Ok(flags) = fcntl(fd, F_GETFD) {
            let flags = FdFlag::from_bits_truncate(flags) | FdFlag::FD_CLOEXEC;
            let _ = fcntl(fd, F_SETFD(flags));
        }
    }
}
