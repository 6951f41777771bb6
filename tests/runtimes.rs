// SPDX-License-Identifier: LGPL-2.1-only
//! The programs that people really run: three restarts at random moments, and what they say is what an
//! uninterrupted run says.
//!
//! Each program prints a line for each step of its work. A random line is the moment of a checkpoint:
//! the programs' own progress is the clock. Those that compress are saved when a random part of their
//! result is there.

mod harness;
mod toolchains;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Instant, SystemTime};

use nix::sys::signal::Signal::SIGTSTP;

use harness::{Bench, Run, Who, until};
use toolchains::{Program, python_packages};

const RESTARTS: u64 = 3;

/// Random numbers, and the seed that a failing test names (CKPT_TEST_SEED repeats it).
struct Dice {
    seed: u64,
    state: u64,
}

impl Dice {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        let given = std::env::var("CKPT_TEST_SEED").ok().and_then(|s| s.parse().ok());
        let seed = given.unwrap_or(u64::from(now.subsec_nanos()));
        println!("CKPT_TEST_SEED={seed}");
        Self { seed, state: seed }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(0xda3e39cb);
        (self.state >> 33) % limit.max(1)
    }

    /// A moment in each third of what there is, neither at its begin nor at its end.
    fn moments(&mut self, all: u64) -> Vec<u64> {
        let part = all / (RESTARTS + 1);
        (0..RESTARTS).map(|nth| part / 2 + part * nth + self.below(part) + 1).collect()
    }
}

/// A bench with the program on it.
fn bench(program: Program, who: Who) -> Bench {
    let bench = Bench::new(who);
    for file in program.files() {
        let name = file.file_name().and_then(|n| n.to_str()).expect("utf-8");
        bench.file(name, fs::read(&file).expect("a program"));
    }
    if program.source == "openblas.py" {
        let from = python_packages();
        assert!(from.join("numpy").exists(), "numpy is missing: run scripts/install test");
        copy(&from, &bench.path("python"));
    }
    bench
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-rp").args([from, to]).status().expect("cp");
    assert!(status.success());
}

fn start(program: Program, bench: &Bench, launcher: &[&str]) -> Run {
    let words = [launcher, program.words].concat();
    bench.run(words[0], &words[1..])
}

/// Saves the program, which ends; what it has said before.
#[track_caller]
fn save(bench: &Bench, run: Run, launched: bool) -> Vec<String> {
    if launched {
        run.signal(SIGTSTP);
    } else {
        bench.must(&["save", "--stop", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    }
    run.ends_well().stdout
}

#[track_caller]
fn goes_through(program: Program, who: Who) {
    let expected = {
        let bench = bench(program, who);
        start(program, &bench, &[]).ends_well().stdout
    };
    assert!(expected.len() > 50, "{expected:?}");
    let bench = bench(program, who);
    let mut dice = Dice::new();
    let (ckpt, mut said) = (bench.name("ckpt"), Vec::new());
    // Root launches and sends the signal, the other saves from outside.
    let launched = who == Who::Me;
    let launcher = [&ckpt[..], "-n", "x.ckpt", "--"];
    let mut run = start(program, &bench, if launched { &launcher } else { &[] });
    for moment in dice.moments(expected.len() as u64) {
        // At least one line: the first says that a restart is over.
        loop {
            said.push(run.line());
            if said.len() as u64 >= moment {
                break;
            }
        }
        said.extend(save(&bench, run, launched));
        run = bench.run(bench.path("x.ckpt"), &[]);
    }
    let ended = run.ends_well();
    said.extend(ended.stdout);
    let differs = said.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "seed {}: {:?}, not {:?}", dice.seed, said, expected);
    assert_eq!(said.len(), expected.len(), "seed {}: {said:?}", dice.seed);
}

/// To its end with checkpoints at every quarter of it (at most every 200 ms), and from the newest one to the same end.
#[track_caller]
fn goes_on_periodically(program: Program, who: Who) {
    let plain = bench(program, who);
    let begin = Instant::now();
    let expected = start(program, &plain, &[]).ends_well().stdout;
    // Some programs take 200 ms on a fast machine. The first run is slower than the others where nothing is cached.
    let period = (begin.elapsed().as_millis() / 4).clamp(10, 200).to_string();
    // A checkpoint that is not on the disk when the program ends is dropped.
    let bench = (0..10).map(|_| bench(program, who)).find(|bench| {
        let launcher = [&bench.name("ckpt")[..], "-z", &period, "-n", "x.ckpt", "--"];
        assert_eq!(start(program, bench, &launcher).ends_well().stdout, expected);
        bench.path("x.ckpt").exists()
    });
    let bench = bench.expect("a checkpoint in ten runs");
    let said = bench.run(bench.path("x.ckpt"), &["-z", "0"]).ends_well().stdout;
    assert!(expected.ends_with(&said), "{said:?} is not the end of {expected:?}");
}

macro_rules! go_through {
    ($($test:ident: $source:literal [$($compiler:literal)*] -> [$($made:literal)*] $words:expr;)*) => {$(
        mod $test {
            use super::*;
            const PROGRAM: Program = Program {
                source: $source,
                compiler: &[$($compiler),*],
                made: &[$($made),*],
                words: &$words,
            };

            #[test]
            fn saved_three_times() {
                goes_through(PROGRAM, Who::Me);
            }

            #[test]
            fn saved_three_times_unprivileged() {
                goes_through(PROGRAM, Who::Nobody);
            }

            #[test]
            fn under_periodic_checkpoints() {
                goes_on_periodically(PROGRAM, Who::Me);
            }

            #[test]
            fn under_periodic_checkpoints_unprivileged() {
                goes_on_periodically(PROGRAM, Who::Nobody);
            }
        }
    )*};
}

go_through! {
    python: "threads.py" [] -> [] ["/usr/bin/python3", "threads.py"];
    numpy: "openblas.py" [] -> [] ["/usr/bin/python3", "openblas.py"];
    java: "Threads.java" ["javac" "-d" "DIRECTORY" "SOURCE"] -> ["Threads.class"]
        ["java", "-Xmx256m", "Threads"];
    node: "threads.js" [] -> [] ["node", "threads.js"];
    go: "threads.go" ["go" "build" "-o" "OUT" "SOURCE"] -> ["threads.go.bin"] ["./threads.go.bin"];
    rust: "threads.rs" ["rustc" "--edition" "2024" "-O" "--target" "x86_64-unknown-linux-gnu" "-o" "OUT" "SOURCE"]
        -> ["threads.gnu"] ["./threads.gnu"];
    rust_musl: "threads.rs" ["rustc" "--edition" "2024" "-O" "--target" "x86_64-unknown-linux-musl" "-o" "OUT" "SOURCE"]
        -> ["threads.musl"] ["./threads.musl"];
    cpp: "threads.cc" ["g++" "-std=c++17" "-O1" "-pthread" "-Wall" "-o" "OUT" "SOURCE"]
        -> ["threads.cc.bin"] ["./threads.cc.bin"];
    openmp_c: "openmp.c" ["gcc" "-O1" "-fopenmp" "-Wall" "-o" "OUT" "SOURCE"]
        -> ["openmp.c.bin"] ["./openmp.c.bin"];
    openmp_fortran: "openmp.f90" ["gfortran" "-O1" "-fopenmp" "-o" "OUT" "SOURCE"]
        -> ["openmp.f90.bin"] ["./openmp.f90.bin"];
}

/// 12 MB of words in an order that does not repeat.
fn input(bench: &Bench) {
    let words: Vec<_> = (0..5000_u64).map(|n| format!("{:x} ", n * n * 7919)).collect();
    let (mut text, mut dice) = (Vec::new(), Dice { seed: 0, state: 12_345 });
    while text.len() < 12_000_000 {
        text.extend_from_slice(words[dice.below(5000) as usize].as_bytes());
    }
    bench.file("input", text);
}

/// Compressors say nothing; the length of their result is their progress. The result must be
/// decompressed to the input, and be the same as without ckpt.
#[track_caller]
fn compresses(who: Who, words: &[&str], result: &str) {
    let bench = Bench::new(who);
    input(&bench);
    bench.run(words[0], &words[1..]).ends_well();
    let expected = fs::read(bench.path(result)).expect("a result");
    fs::remove_file(bench.path(result)).expect("a result");
    let mut dice = Dice::new();
    let launched = who == Who::Me;
    let ckpt = bench.name("ckpt");
    let launcher = [&ckpt[..], "-n", "x.ckpt", "--"];
    let all = if launched { [&launcher[..], words].concat() } else { words.to_vec() };
    let mut run = bench.run(all[0], &all[1..]);
    let mut before = 0;
    for moment in dice.moments(expected.len() as u64 / 2) {
        // One byte more says that a restart is over.
        let moment = moment.max(before + 1);
        until(&format!("{moment} bytes of {result}"), || {
            let length = fs::metadata(bench.path(result)).map_or(0, |m| m.len());
            assert!(run.lives(), "seed {}: {}", dice.seed, run.fate());
            (length >= moment).then_some(())
        });
        save(&bench, run, launched);
        before = fs::metadata(bench.path(result)).expect("a result").len();
        run = bench.run(bench.path("x.ckpt"), &[]);
    }
    run.ends_well();
    let now = fs::read(bench.path(result)).expect("a result");
    assert!(
        now == expected,
        "seed {}: {} bytes differ from {}",
        dice.seed,
        now.len(),
        expected.len()
    );
}

const XZ: [&str; 6] = ["xz", "-T2", "-1", "--block-size=512KiB", "-k", "input"];
const ZSTD: [&str; 7] = ["zstd", "-T2", "-q", "-6", "-B512KiB", "-k", "input"];

/// To the end under -z 200, with the same result.
#[track_caller]
fn compresses_periodically(words: &[&str], result: &str) {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        input(&bench);
        bench.run(words[0], &words[1..]).ends_well();
        let expected = fs::read(bench.path(result)).expect("a result");
        fs::remove_file(bench.path(result)).expect("a result");
        let ckpt = bench.name("ckpt");
        let options = ["-z", "200", "-n", "x.ckpt", "--"];
        bench.run(&ckpt, &[&options[..], words].concat()).ends_well();
        assert!(fs::read(bench.path(result)).expect("a result") == expected, "it differs");
    }
}

#[test]
fn compressors_under_periodic_checkpoints() {
    compresses_periodically(&XZ, "input.xz");
    compresses_periodically(&ZSTD, "input.zst");
}

#[test]
fn xz_with_two_threads() {
    compresses(Who::Me, &XZ, "input.xz");
}

#[test]
fn xz_with_two_threads_unprivileged() {
    compresses(Who::Nobody, &XZ, "input.xz");
}

#[test]
fn zstd_with_two_threads() {
    compresses(Who::Me, &ZSTD, "input.zst");
}

#[test]
fn zstd_with_two_threads_unprivileged() {
    compresses(Who::Nobody, &ZSTD, "input.zst");
}
