// SPDX-License-Identifier: LGPL-2.1-only
//! The real programs that programs.rs and periodic_programs.rs put through checkpoints.
//!
//! Each writes its result to a file as it goes.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use super::{Bench, Build, Run, Who};

/// A program, its arguments, and the file that it writes.
#[derive(Clone, Copy)]
pub(crate) struct Program {
    /// What is executed: in PATH, or in the bench's directory.
    pub name: &'static str,
    /// Its arguments.
    pub args: &'static [&'static str],
    /// The file that it writes.
    pub result: &'static str,
}

/// Hands the list of programs to a macro that makes tests of each: `name: Program;`.
macro_rules! each_program {
    ($make:ident) => {
        $make! {
            python: "/usr/bin/python3" ["compute.py"], "result";
            perl: "perl" ["compute.pl"], "result";
            bash: "bash" ["compute.bash"], "result";
            gawk: "gawk" ["-f", "compute.awk"], "result";
            bc: "bc" ["-lq", "compute.bc"], "result";
            xz: "xz" ["-T1", "-0", "-k", "input"], "input.xz";
            busybox_sh: "busybox" ["sh", "compute.sh"], "result";
            c_no_pie: "./compute.nopie" [], "result";
            c_static_glibc: "./compute.static" [], "result";
            c_static_musl: "./compute.musl" [], "result";
        }
    };
}
pub(crate) use each_program;

/// The input of xz: 60 MB of words in an order that does not repeat.
fn input(bench: &Bench) {
    let words: Vec<_> = (0..5000_u64).map(|n| format!("{:x} ", n * n * 7919)).collect();
    let mut text = Vec::with_capacity(60_000_020);
    let mut seed = 12_345_u64;
    while text.len() < 60_000_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.extend_from_slice(words[(seed >> 40) as usize % words.len()].as_bytes());
    }
    bench.file("input", text);
}

impl Program {
    /// A bench with the scripts and, for the compiled ones, the subject.
    pub(crate) fn bench(self, who: Who) -> Bench {
        let bench = Bench::new(who);
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
        for entry in fs::read_dir(scripts).expect("tests/programs") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|n| n.to_str()).expect("utf-8");
            bench.file(name, fs::read(&path).expect("a script"));
        }
        if self.name == "xz" {
            input(&bench);
        }
        for build in Build::ALL {
            if self.name.starts_with("./") {
                bench.subject("compute", build);
            }
        }
        bench
    }

    /// Starts `LAUNCHER… PROGRAM ARGS…`; what writes to standard output writes to the result.
    pub(crate) fn start(self, bench: &Bench, launcher: &[&str]) -> Run {
        let words = [launcher, &[self.name], self.args].concat();
        let mut command = bench.command(words[0]);
        command.args(&words[1..]);
        if self.name == "bc" {
            let result = bench.file(self.result, "");
            let output = File::options().write(true).open(result).expect("the result");
            return Run::start_to(command, Stdio::from(output));
        }
        Run::start(command)
    }

    /// What an uninterrupted run leaves.
    #[track_caller]
    pub(crate) fn expected(self, who: Who) -> Vec<u8> {
        let bench = self.bench(who);
        self.start(&bench, &[]).ends_well();
        let result = fs::read(bench.path(self.result)).expect("a result");
        assert!(result.len() > 5000, "{} bytes are few", result.len());
        result
    }
}
