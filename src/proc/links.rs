// SPDX-License-Identifier: LGPL-2.1-only
//! The links of /proc/PID to files: exe, cwd and root.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::process::Process;
use super::{confirmed, failed, split_deleted};
use crate::error::Result;

/// Where a link leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The path as seen from our own root directory, without " (deleted)".
    pub path: PathBuf,
    /// The file or directory was unlinked.
    pub deleted: bool,
}

impl Process {
    /// The file that the process executes.
    ///
    /// # Errors
    /// The process is gone, is a kernel thread or a zombie (which have none), or may not be read
    /// (ptrace access, PTRACE_MODE_READ).
    pub fn exe(&self) -> Result<Link> {
        self.link("exe")
    }
}

impl Process {
    /// The working directory of the process.
    ///
    /// # Errors
    /// As [`Process::exe`].
    pub fn cwd(&self) -> Result<Link> {
        self.link("cwd")
    }
}

impl Process {
    /// The root directory of the process (chroot(2)).
    ///
    /// # Errors
    /// As [`Process::exe`].
    pub fn root(&self) -> Result<Link> {
        self.link("root")
    }
}

impl Process {
    fn link(&self, name: &str) -> Result<Link> {
        let target = self.link_of(name).map_err(io::Error::from);
        let target = target.map_err(|e| failed(self, None, &self.called(name), &e))?;
        let (path, deleted) = split_deleted(target.into_vec());
        let inode = if deleted { self.stat_of(name).map_or(0, |file| file.st_ino) } else { 0 };
        let (path, deleted) = confirmed(path, deleted, inode);
        Ok(Link { path: path.into(), deleted })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Cat, Scratch, Zombie, of, we};
    use super::*;
    use std::fs;

    #[test]
    fn own_links() {
        assert_eq!(we().exe().unwrap().path, std::env::current_exe().unwrap());
        assert_eq!(
            we().cwd().unwrap(),
            Link { path: std::env::current_dir().unwrap(), deleted: false }
        );
        assert_eq!(we().root().unwrap(), Link { path: "/".into(), deleted: false });
    }

    #[test]
    fn a_removed_directory_is_deleted() {
        let scratch = Scratch::new("links");
        let path = scratch.0.join("sub");
        fs::create_dir(&path).unwrap();
        let cat = Cat::start(std::process::Command::new("cat").current_dir(&path));
        fs::remove_dir(&path).unwrap();
        assert_eq!(of(cat.pid()).cwd().unwrap(), Link { path, deleted: true });
    }

    #[test]
    fn a_zombie_has_no_exe() {
        let zombie = Zombie::new();
        let sentence = of(zombie.pid()).exe().unwrap_err().to_string();
        assert!(sentence.starts_with(&format!("cannot read /proc/{}/exe", zombie.pid())));
    }
}
