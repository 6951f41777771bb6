// SPDX-License-Identifier: LGPL-2.1-only
//! Programs in many languages, compiled at most once for all test processes.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};

/// How a program comes about and is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    /// Its source in tests/runtimes, or a file that it compresses.
    pub source: &'static str,
    /// The command line of its compiler; `SOURCE` and `OUT` stand for paths. Empty: none is needed.
    pub compiler: &'static [&'static str],
    /// The files that it runs with, beside its source, in the directory where it runs.
    pub made: &'static [&'static str],
    /// Its command line.
    pub words: &'static [&'static str],
}

/// Where numpy lies if scripts/install has put it there.
pub(crate) fn python_packages() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).ancestors().nth(2).expect("the target").join("python")
}

impl Program {
    /// Its source.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runtimes").join(self.source)
    }

    /// The files to be copied to where it runs.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        if self.compiler.is_empty() {
            return vec![self.path()];
        }
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("runtimes");
        fs::create_dir_all(&directory).expect("a directory for the programs");
        let lock = File::create(directory.join("lock")).expect("a lock file");
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).expect("the lock");
        let files: Vec<_> = self.made.iter().map(|name| directory.join(name)).collect();
        if files.iter().any(|file| changed(file) <= changed(&self.path())) {
            self.compile(&directory, &files[0]);
        }
        files
    }

    fn compile(&self, directory: &Path, out: &Path) {
        let source = self.path();
        let word = |word: &&str| match *word {
            "SOURCE" => source.clone().into_os_string(),
            "OUT" => out.to_owned().into_os_string(),
            "DIRECTORY" => directory.to_owned().into_os_string(),
            other => other.into(),
        };
        let mut compiler = Command::new(self.compiler[0]);
        compiler.args(self.compiler[1..].iter().map(word));
        compiler.env("GOCACHE", directory.join("go")).env("GO111MODULE", "off");
        let done = compiler.output().unwrap_or_else(|e| panic!("cannot run {compiler:?}: {e}"));
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{compiler:?} failed: {said}");
    }
}

fn changed(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}
