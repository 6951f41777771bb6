// SPDX-License-Identifier: LGPL-2.1-only
//! What /proc says of a process; no policy.
//!
//! Every parser is a pure function over the bytes of one file; beside it stands the function
//! that reads that file of a process. Nothing here stops the process: a picture made of several
//! files is consistent only of a frozen target. Sources: proc(5) and its pages, and fs/proc of
//! the kernel.

pub(crate) mod attributes;
pub(crate) mod clocks;
pub(crate) mod closing;
pub(crate) mod exchange;
pub(crate) mod exec;
pub(crate) mod fds;
pub(crate) mod forebear;
pub(crate) mod fork;
pub(crate) mod front;
pub(crate) mod id;
pub(crate) mod idmap;
pub(crate) mod limits;
pub(crate) mod line;
pub(crate) mod links;
pub(crate) mod maps;
pub(crate) mod namespaces;
pub(crate) mod net;
pub(crate) mod numa;
pub(crate) mod pagemap;
pub(crate) mod pidfd;
pub(crate) mod process;
pub mod room;
mod scan;
mod shown;
pub(crate) mod sparse;
pub(crate) mod stat;
pub(crate) mod status;
pub(crate) mod sysv;
mod text;
pub(crate) mod thread;
pub(crate) mod timers;
pub(crate) mod tracking;
pub(crate) mod tree;
pub(crate) mod uffd;
pub(crate) mod unix;
pub(crate) mod vmflags;
mod written;

pub use clocks::{Clocks, boot_skew};
pub(crate) use clocks::{TICK, ticks, uptime};
pub use exec::auxv_value;
pub use id::{Pid, Tid};
pub use process::Process;
pub(crate) use process::{gone, head};
pub(crate) use shown::shown;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::libc;
use nix::sys::stat::Mode;

use crate::error::{Because, Error, Kind, Result};

/// Refuses a /proc of another PID namespace, in which our process ids are those of others.
///
/// # Errors
/// That, and no /proc at all.
pub fn of_this_namespace() -> Result<()> {
    let own = fs::read_link("/proc/self").because(|| "cannot read /proc/self")?;
    if own.as_os_str() == std::process::id().to_string().as_str() {
        return Ok(());
    }
    Err(Error::new("/proc is that of another PID namespace, with other process ids")
        .hint("mount one for this namespace, as `unshare --mount-proc` does"))
}

/// Reads a file whose st_size is 0, in few system calls: the kernel makes the text anew for an
/// open file, in pieces as large as the reads. Nothing of that is on the stack, which may be small.
fn slurp(path: &str) -> io::Result<Vec<u8>> {
    slurp_in(AT_FDCWD, path)
}

/// [`slurp`] of a file in a directory.
fn slurp_in(directory: impl AsFd, name: &str) -> io::Result<Vec<u8>> {
    let mut file = open_in(directory, name)?;
    let mut piece = vec![0; 1 << 14];
    let mut bytes = Vec::new();
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(bytes),
            Ok(len) => bytes.extend_from_slice(&piece[..len]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Gives the lines of a file below a directory to `each`, until that wants no more. Only a piece of it is in memory at a time.
fn each_line_in(
    directory: impl AsFd,
    name: &str,
    each: &mut dyn FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    let mut file = open_in(directory, name)?;
    let (mut piece, mut len) = (vec![0; 1 << 14], 0);
    loop {
        if len == piece.len() {
            piece.resize(2 * len, 0);
        }
        let end = match file.read(&mut piece[len..]) {
            Ok(0) => break,
            Ok(more) => len + more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let whole = piece[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if !text::lines(&piece[..whole]).all(&mut *each) {
            return Ok(());
        }
        piece.copy_within(whole..end, 0);
        len = end - whole;
    }
    text::lines(&piece[..len]).all(each);
    Ok(())
}

/// As [`slurp_in`], of a file that the kernel makes as one piece: what is shorter than the room for it is all.
fn slurp_piece(directory: impl AsFd + Copy, name: &str) -> io::Result<Vec<u8>> {
    piece_of(&mut open_in(directory, name)?)?.map_or_else(|| slurp_in(directory, name), Ok)
}

/// All of such a file; None if it is longer.
fn piece_of(file: &mut fs::File) -> io::Result<Option<Vec<u8>>> {
    let mut piece = vec![0; 1 << 12];
    let len = file.read(&mut piece)?;
    let is_all = len < piece.len();
    piece.truncate(len);
    Ok(is_all.then_some(piece))
}

/// Opens a file of /proc for reading: in one system call, where open(3) of musl makes two, and from the directory of a
/// process, which spares the kernel the way there.
fn open_in(directory: impl AsFd, name: &str) -> io::Result<fs::File> {
    Ok(openat(directory, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?.into())
}

/// The sentence for `path` of a process (and its thread `tid`) that could not be read.
///
/// ENOENT and ESRCH have two meanings, so they are told apart by what is still in /proc: the
/// process or thread has vanished, or it is there but has no such file or no memory.
fn failed(process: &Process, tid: Option<Tid>, path: &str, error: &io::Error) -> Error {
    let pid = process.pid();
    let code = error.raw_os_error().unwrap_or(0);
    if matches!(code, libc::ENOENT | libc::ESRCH) {
        if process.is_reaped() {
            return gone(pid);
        }
        if let Some(tid) = tid.filter(|tid| !process.has(*tid)) {
            return Error::new(format!("thread {tid} of process {pid} is gone")).of(Kind::Gone);
        }
        if code == libc::ESRCH {
            return Error::new(format!(
                "cannot read {path}: process {pid} has no memory of its own (a zombie or a \
                 kernel thread)"
            ));
        }
    }
    let reason = match code {
        0 => error.to_string(),
        n => nix::errno::Errno::from_raw(n).desc().to_owned(),
    };
    let sentence = Error::new(format!("cannot read {path}: {reason}"));
    match code {
        libc::EACCES | libc::EPERM => {
            sentence.hint(format!("only root and the user of process {pid} may"))
        }
        libc::EMFILE => sentence.hint(crate::error::OPEN_FILES),
        _ => sentence,
    }
}

/// Adds to a parser's complaint which file it was about.
fn parsed<T>(result: Result<T>, path: impl FnOnce() -> String) -> Result<T> {
    result.because(|| format!("cannot understand {}", path()))
}

/// Has every parser read the same bytes: they must come back from any, and take no memory for what a text
/// only claims.
pub fn parse_anything(bytes: &[u8]) {
    clocks::parse_anything(bytes);
    exec::parse_anything(bytes);
    fds::parse_anything(bytes);
    limits::parse_anything(bytes);
    maps::parse_anything(bytes);
    net::parse_anything(bytes);
    stat::parse_anything(bytes);
    status::parse_anything(bytes);
    sysv::parse_anything(bytes);
    thread::parse_anything(bytes);
    timers::parse_anything(bytes);
    let _ = split_deleted(bytes.to_vec());
}

/// What paths begin with that lead through a mount namespace whose root directory we have left, which was not its own:
/// no root of ours ends them there (fs/d_path.c, prepend_path).
static BEFORE: OnceLock<Vec<u8>> = OnceLock::new();

/// Takes this off all paths that are read from now on.
pub(crate) fn paths_begin_behind(root: OsString) {
    let _ = BEFORE.set(root.into_vec());
}

/// The kernel's mark of an unlinked file.
const DELETED: &str = " (deleted)";

/// Takes the kernel's mark of an unlinked file off a name: the name and whether it was there.
///
/// d_path (fs/d_path.c) adds " (deleted)" only to paths, which begin with a slash. The name of a
/// file that exists may end so too: see [`confirmed`].
fn split_deleted(mut name: Vec<u8>) -> (OsString, bool) {
    if let Some(rest) = BEFORE.get().and_then(|before| name.strip_prefix(&before[..]))
        && matches!(rest.first(), None | Some(b'/'))
    {
        name = if rest.is_empty() { b"/".to_vec() } else { rest.to_vec() };
    }
    let deleted = name.starts_with(b"/") && name.ends_with(DELETED.as_bytes());
    if deleted {
        name.truncate(name.len() - DELETED.len());
    }
    (OsString::from_vec(name), deleted)
}

/// Corrects what [`split_deleted`] made of a name, by looking whether the file with this inode
/// number stands at the name with the suffix, which then is a part of the name.
///
/// Only the inode number is compared: on btrfs and overlayfs the device that /proc/PID/maps
/// shows is another than the one of stat(2).
fn confirmed(bare: OsString, deleted: bool, inode: u64) -> (OsString, bool) {
    if !deleted {
        return (bare, false);
    }
    let mut whole = bare.clone();
    whole.push(DELETED);
    match fs::symlink_metadata(&whole) {
        Ok(file) if file.ino() == inode => (whole, false),
        _ => (bare, true),
    }
}

/// A number that a file of /proc/sys holds.
pub fn setting(name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Above every pid_max, so it never names a process.
    pub(super) const NOBODY: Pid = Pid::new(i32::MAX);

    pub(super) fn me() -> Pid {
        Pid::own()
    }

    pub(super) fn we() -> Process {
        of(me())
    }

    pub(super) fn of(pid: Pid) -> Process {
        Process::open(pid).unwrap()
    }

    /// A directory that vanishes with the value.
    pub(super) struct Scratch(pub std::path::PathBuf);

    impl Scratch {
        pub(super) fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ckpt-proc-{name}-{}", me()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// A child that has exited and is not waited for until the value is dropped.
    pub(super) struct Zombie(std::process::Child);

    impl Zombie {
        pub(super) fn new() -> Self {
            use nix::sys::wait::{Id, WaitPidFlag, waitid};
            let child = std::process::Command::new("true").spawn().unwrap();
            let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
            waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
            Self(child)
        }

        pub(super) fn pid(&self) -> Pid {
            Pid::of_word(self.0.id())
        }
    }

    impl Drop for Zombie {
        fn drop(&mut self) {
            let _ = self.0.wait();
        }
    }

    /// A child (cat) that waits for input until the value is dropped.
    pub(super) struct Cat(std::process::Child);

    impl Cat {
        pub(super) fn new() -> Self {
            Self::start(&mut std::process::Command::new("cat"))
        }

        /// `command` must be one that runs cat. It has begun to copy when this returns: spawn
        /// alone comes back in the middle of execve(2), with half of the mappings made.
        pub(super) fn start(command: &mut std::process::Command) -> Self {
            use std::io::Write;
            use std::process::Stdio;
            let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
            let mut cat = Self(spawned.unwrap());
            cat.0.stdin.as_mut().unwrap().write_all(b"x").unwrap();
            cat.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            cat
        }

        pub(super) fn pid(&self) -> Pid {
            Pid::of_word(self.0.id())
        }
    }

    impl Drop for Cat {
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            let _ = self.0.wait();
        }
    }

    #[test]
    fn tasks_lists_every_thread() {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            tell.send(Tid::own()).unwrap();
            ended.recv().unwrap_err();
        });
        let tid = told.recv().unwrap();
        let tids = we().tasks().unwrap();
        assert!(tids.contains(&tid) && tids.contains(&me().main_thread()), "{tid} in {tids:?}");
        assert!(tids.is_sorted());
        drop(end);
        thread.join().unwrap();
    }

    #[test]
    fn the_dead_have_ended() {
        let zombie = Zombie::new();
        assert!(of(zombie.pid()).has_ended() && !we().has_ended());
    }

    #[test]
    fn a_vanished_process_is_gone() {
        let gone = |pid: Pid| format!("process {pid} is gone");
        assert_eq!(Process::open(NOBODY).err().unwrap().to_string(), gone(NOBODY));
        let zombie = Zombie::new();
        let (pid, process) = (zombie.pid(), Process::open(zombie.pid()).unwrap());
        drop(zombie);
        assert!(process.is_reaped() && process.has_ended());
        let all = [
            process.tasks().unwrap_err(),
            process.maps().unwrap_err(),
            process.maps_with_flags().unwrap_err(),
            process.main_status().unwrap_err(),
            process.main_stat().unwrap_err(),
            process.fds().err().unwrap(),
            pagemap::Pagemap::of(&process).unwrap_err(),
            process.exe().unwrap_err(),
            process.cmdline().unwrap_err(),
            process.limits().unwrap_err(),
            process.posix_timers().unwrap_err(),
            process.syscall(Tid::new(1)).unwrap_err(),
        ];
        for error in all {
            assert_eq!(error.to_string(), gone(pid));
        }
    }

    #[test]
    fn a_vanished_thread_is_named() {
        let sentence = we().status(NOBODY.main_thread());
        let sentence = sentence.unwrap_err().to_string();
        assert_eq!(sentence, format!("thread {NOBODY} of process {} is gone", me()));
    }

    #[test]
    fn a_file_that_is_not_there_is_no_vanished_process() {
        let sentence = we().file("nonsense").unwrap_err().to_string();
        assert_eq!(
            sentence,
            format!("cannot read /proc/{}/nonsense: No such file or directory", me())
        );
    }

    #[test]
    fn refused_access_says_who_may() {
        let error = io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!(
            failed(&Process::own().unwrap(), None, "/proc/7/maps", &error).to_string(),
            format!(
                "cannot read /proc/7/maps: Permission denied; only root and the user of process {} may",
                me()
            )
        );
    }

    #[test]
    fn deleted_is_split_off_paths_only() {
        let split = |name: &[u8]| split_deleted(name.to_vec());
        assert_eq!(split(b"/tmp/a (deleted)"), ("/tmp/a".into(), true));
        assert_eq!(split(b"/tmp/a (deleted) "), ("/tmp/a (deleted) ".into(), false));
        assert_eq!(split(b"/a (deleted) (deleted)"), ("/a (deleted)".into(), true));
        assert_eq!(split(b"x (deleted)"), ("x (deleted)".into(), false));
        assert_eq!(split(b""), ("".into(), false));
    }
}
