//! A checkpoint file in the local file system.
//!
//! It has no name until it is whole and on the disk (O_TMPFILE, then linkat and rename), so that a
//! dump that dies leaves nothing. Where the file system has no such files, it gets a temporary
//! name, which goes away on failure or is swept away by the next dump to the same name.

use super::hash;
use super::write::Sink;
use crate::error::{Because, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::Mode;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Mode of a checkpoint: the memory of a program is nobody else's business.
const MODE: Mode = Mode::S_IRWXU;

/// A file in the making.
pub struct FileSink {
    file: File,
    name: PathBuf,
    temporary: PathBuf,
    linked: bool,
}

impl FileSink {
    /// Prepares a file that will be called `name` (absolute).
    pub fn create(name: &Path) -> Result<Self> {
        if fs::symlink_metadata(name).is_ok_and(|m| m.is_dir()) {
            return Err(Error::new(format!(
                "cannot save to {}: it is a directory",
                name.display()
            )));
        }
        let dir = directory(name);
        sweep(name);
        let temporary = dir.join(format!("{}{}", prefix(name), std::process::id()));
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let why = || format!("cannot save to {}", name.display());
        match nix::fcntl::open(dir, flags, MODE) {
            Ok(fd) => Ok(Self { file: fd.into(), name: name.into(), temporary, linked: false }),
            // What the kernels and file systems say that do not know O_TMPFILE (open(2)).
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
                let fd = nix::fcntl::open(&temporary, flags, MODE).because(why)?;
                Ok(Self { file: fd.into(), name: name.into(), temporary, linked: true })
            }
            Err(e) => Err(e).because(why),
        }
    }

    fn publish(&mut self) -> Result<()> {
        let why = || format!("cannot save to {}", self.name.display());
        // The umask does not count for a checkpoint.
        nix::sys::stat::fchmod(&self.file, MODE).because(why)?;
        self.file.sync_all().because(why)?;
        // Nobody may execute what somebody has open for writing (ETXTBSY), so that ends before it has
        // its name.
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        self.file = File::open(own).because(why)?;
        if !self.linked {
            let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let flags = AtFlags::AT_SYMLINK_FOLLOW;
            let link = |to: &Path| nix::unistd::linkat(AT_FDCWD, own.as_str(), AT_FDCWD, to, flags);
            match link(&self.name) {
                Ok(()) => return sync_directory(&self.name),
                Err(Errno::EEXIST) => {}
                Err(e) => return Err(e).because(why),
            }
            link(&self.temporary).because(why)?;
            self.linked = true;
        }
        fs::rename(&self.temporary, &self.name).because(why)?;
        self.linked = false;
        sync_directory(&self.name)
    }
}

impl Sink for FileSink {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, offset)
            .because(|| format!("cannot save to {}", self.name.display()))
            .map_err(|e| e.hint("free some room, raise the limit, or choose another name with -n"))
    }

    fn seal(&mut self, len: u64) -> Result<()> {
        self.file.set_len(len).because(|| format!("cannot save to {}", self.name.display()))?;
        self.publish()
    }
}

impl Drop for FileSink {
    fn drop(&mut self) {
        if self.linked {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Says why a checkpoint of this name could not be written, without leaving anything.
pub fn check(name: &Path) -> Result<()> {
    FileSink::create(name).map(drop)
}

fn directory(name: &Path) -> &Path {
    match name.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    }
}

fn sync_directory(name: &Path) -> Result<()> {
    // A directory that cannot be opened or synced (some network file systems) is no failure: the
    // file itself is on the disk.
    if let Ok(dir) = File::open(directory(name)) {
        let _ = dir.sync_all();
    }
    Ok(())
}

/// Start of the temporary names for one checkpoint on this host, whatever its number.
fn prefix(name: &Path) -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let name = name.file_name().unwrap_or(OsStr::new("")).as_bytes();
    let name: Vec<u8> = name.iter().copied().filter(|b| !b.is_ascii_digit()).collect();
    let key = [&name, &b"\0"[..], host.as_bytes()].concat();
    format!(".ckpt-{:016x}-", hash(&key))
}

/// Removes what dumps to this name that died here have left under a temporary name.
pub fn sweep(name: &Path) {
    let (dir, prefix) = (directory(name), prefix(name));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let pid = file.to_str().and_then(|f| f.strip_prefix(&prefix)?.parse::<i32>().ok());
        let dead = |pid| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None);
        if pid.is_some_and(|pid| dead(pid) == Err(Errno::ESRCH)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
