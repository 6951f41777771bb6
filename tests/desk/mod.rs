// SPDX-License-Identifier: LGPL-2.1-only
//! Programs with the C API: what `ckpt sdk` writes, and C sources compiled with it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Bench, Run, Who};

/// A C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Libc {
    Glibc,
    Musl,
}

/// How a program gets the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum With {
    /// Linked with -lckpt.
    Linked,
    /// Compiled with CKPT_OPTIONAL, and started with LD_PRELOAD.
    Preloaded,
    /// Linked with -lckpt, and started by `ckpt`.
    Launched,
}

/// All pairs.
pub(crate) const ALL: [(Libc, With); 6] = [
    (Libc::Glibc, With::Linked),
    (Libc::Glibc, With::Preloaded),
    (Libc::Glibc, With::Launched),
    (Libc::Musl, With::Linked),
    (Libc::Musl, With::Preloaded),
    (Libc::Musl, With::Launched),
];

/// A bench with what `ckpt sdk` writes.
pub(crate) struct Desk {
    /// Its directory.
    pub bench: Bench,
}

impl Desk {
    /// A bench of somebody's, with the kit.
    pub(crate) fn new(who: Who) -> Self {
        let bench = Bench::new(who);
        bench.must(&["sdk", &bench.name("sdk")]);
        Self { bench }
    }

    /// The preloadable library.
    pub(crate) fn library(&self) -> String {
        self.bench.name("sdk/lib/libckpt.so")
    }

    /// Compiles `source` as `name`.
    pub(crate) fn compile(&self, source: &Path, name: &str, libc: Libc, with: With) -> PathBuf {
        let program = self.bench.path(name);
        let mut compiler = Command::new(if libc == Libc::Musl { "musl-gcc" } else { "gcc" });
        compiler.args(["-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]);
        compiler.arg("-I").arg(self.bench.path("sdk/include"));
        if with == With::Preloaded {
            compiler.arg("-DCKPT_OPTIONAL");
        }
        compiler.arg(source).arg("-o").arg(&program);
        if with != With::Preloaded {
            compiler.arg("-L").arg(self.bench.path("sdk/lib")).arg("-lckpt");
            compiler.arg(format!("-Wl,-rpath,{}", self.bench.name("sdk/lib")));
        }
        let status = compiler.status().expect("the compiler runs");
        assert!(status.success(), "{compiler:?}");
        program
    }

    /// Starts a part of tests/api/calls.c.
    pub(crate) fn start(&self, libc: Libc, with: With, part: &str) -> Run {
        self.begin("calls", libc, with, part)
    }

    /// Starts a part of a source in tests/api.
    pub(crate) fn begin(&self, name: &str, libc: Libc, with: With, part: &str) -> Run {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api");
        let program = self.compile(&sources.join(format!("{name}.c")), name, libc, with);
        let mut command = match with {
            With::Launched => {
                let mut command = self.bench.command(self.bench.ckpt());
                command.args(["-n", "launched.ckpt", "--"]).arg(program);
                command
            }
            With::Linked | With::Preloaded => self.bench.command(program),
        };
        if with == With::Preloaded {
            command.env("LD_PRELOAD", self.library());
        }
        command.arg(part);
        Run::start(command)
    }

    /// Executes a checkpoint.
    pub(crate) fn resume(&self, image: &str) -> Run {
        self.bench.run(self.bench.path(image), &[])
    }

    /// The text of a file.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.bench.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }
}

/// Runs a part in every way.
pub(crate) fn everywhere(test: impl Fn(&Desk, Libc, With)) {
    for who in [Who::Me, Who::Nobody] {
        for (libc, with) in ALL {
            println!("{who:?}, {libc:?}, {with:?}");
            test(&Desk::new(who), libc, with);
        }
    }
}
