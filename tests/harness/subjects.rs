// SPDX-License-Identifier: LGPL-2.1-only
//! The C subjects and the binary under test.
//!
//! Subjects are compiled when a test first asks for them, at most once for all test processes. Where
//! no compiler is (in a guest), CKPT_SUBJECTS names a directory with ready ones and CKPT_BIN the
//! binary.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};

/// How a subject is compiled and linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// Dynamic, position-independent, glibc.
    Pie,
    /// Dynamic at a fixed address, glibc.
    NoPie,
    /// Static at a fixed address, glibc.
    Static,
    /// Static, musl.
    Musl,
}

impl Build {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Pie, Self::NoPie, Self::Static, Self::Musl];

    fn suffix(self) -> &'static str {
        match self {
            Self::Pie => "pie",
            Self::NoPie => "nopie",
            Self::Static => "static",
            Self::Musl => "musl",
        }
    }

    fn compiler(self) -> Command {
        let mut command = Command::new(if self == Self::Musl { "musl-gcc" } else { "gcc" });
        match self {
            Self::Pie => command.args(["-fPIE", "-pie"]),
            Self::NoPie => command.args(["-fno-pie", "-no-pie"]),
            Self::Static | Self::Musl => command.args(["-fno-pie", "-static"]),
        };
        command.args(["-O1", "-g", "-Wall", "-Wextra", "-Werror"]);
        command
    }
}

/// The binary under test: CKPT_BIN, or what `cargo build --release` leaves.
pub(super) fn ckpt() -> PathBuf {
    if let Some(path) = std::env::var_os("CKPT_BIN") {
        return path.into();
    }
    let target =
        Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the directory of the target");
    let path = target.join("release/ckpt");
    assert!(path.exists(), "{} is missing: run cargo build --release", path.display());
    path
}

/// The path of a subject, compiled anew if its source is newer.
pub(super) fn subject(name: &str, build: Build) -> PathBuf {
    let file = format!("{name}.{}", build.suffix());
    if let Some(ready) = std::env::var_os("CKPT_SUBJECTS") {
        return Path::new(&ready).join(file);
    }
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("subjects");
    fs::create_dir_all(&directory).expect("a directory for the subjects");
    let lock = File::create(directory.join("lock")).expect("a lock file");
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).expect("the lock");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/subjects");
    let (source, header) = (sources.join(format!("{name}.c")), sources.join("subject.h"));
    let path = directory.join(file);
    if changed(&path) <= changed(&source).max(changed(&header)) {
        let mut compiler = build.compiler();
        compiler.arg(&source).arg("-o").arg(&path);
        let status = compiler.status().unwrap_or_else(|e| panic!("cannot run {compiler:?}: {e}"));
        assert!(status.success(), "{compiler:?} failed");
    }
    path
}

fn changed(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}
