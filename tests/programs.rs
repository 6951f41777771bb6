//! Real programs: five restarts, and the result is byte for byte what an uninterrupted run writes.
//!
//! Each program writes its result to a file as it goes, and is saved whenever the next sixth of the
//! file is there.

mod harness;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::Signal::SIGTSTP;

use harness::{Bench, Build, Run, Way, Who, until};

/// A program, its arguments, and the file that it writes.
#[derive(Clone, Copy)]
struct Program {
    name: &'static str,
    args: &'static [&'static str],
    result: &'static str,
}

/// How the program comes under ckpt.
#[derive(Clone, Copy)]
enum Series {
    /// `ckpt PROGRAM`; five times saved by the signal, and restarted.
    Launched,
    /// Five times `ckpt save --stop`, and restarted.
    Saved,
    /// `ckpt -c PROGRAM`, the signal; the original goes on to its end, then its image does.
    Continued,
    /// Five times `ckpt -p PID` and the signal, and restarted.
    Attached,
}

const RESTARTS: u64 = 5;

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
    fn bench(self, who: Who) -> Bench {
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
    fn start(self, bench: &Bench, launcher: &[&str]) -> Run {
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
    fn expected(self, who: Who) -> Vec<u8> {
        let bench = self.bench(who);
        self.start(&bench, &[]).ends_well();
        let result = fs::read(bench.path(self.result)).expect("a result");
        assert!(result.len() > 5000, "{} bytes are few", result.len());
        result
    }
}

/// Waits until the result has so many bytes.
#[track_caller]
fn reached(result: &Path, run: &mut Run, bytes: u64) {
    until(&format!("{bytes} bytes of {}", result.display()), || {
        assert!(run.lives(), "before {bytes} bytes it {}", run.fate());
        (fs::metadata(result).map_or(0, |m| m.len()) >= bytes).then_some(())
    });
}

#[track_caller]
fn goes_through(program: Program, series: Series, who: Who) {
    let expected = program.expected(who);
    let bench = program.bench(who);
    let image = bench.path("x.ckpt");
    let course = Course { result: bench.path(program.result), bench: &bench, expected };
    let ckpt = bench.name("ckpt");
    match series {
        Series::Launched => {
            let run = program.start(&bench, &[&ckpt, "-n", "x.ckpt", "--"]);
            course.restarts(run, Way::Launch);
        }
        Series::Saved => course.restarts(program.start(&bench, &[]), Way::SaveStop),
        Series::Continued => {
            let mut run = program.start(&bench, &[&ckpt, "-c", "-n", "x.ckpt", "--"]);
            reached(&course.result, &mut run, course.mark(3));
            run.signal(SIGTSTP);
            until("the image", || image.exists().then_some(()));
            run.ends_well();
            course.is_right();
            bench.run(&image, &[]).ends_well();
            course.is_right();
        }
        Series::Attached => course.restarts(program.start(&bench, &[]), Way::Attach),
    }
}

/// One program on its way to the expected result.
struct Course<'a> {
    bench: &'a Bench,
    result: PathBuf,
    expected: Vec<u8>,
}

impl Course<'_> {
    /// The bytes of the result at which the nth checkpoint is taken.
    fn mark(&self, nth: u64) -> u64 {
        self.expected.len() as u64 * nth / (RESTARTS + 1)
    }

    #[track_caller]
    fn restarts(&self, mut run: Run, way: Way) {
        for nth in 1..=RESTARTS {
            reached(&self.result, &mut run, self.mark(nth));
            way.save(self.bench, "x.ckpt", run);
            run = self.bench.run(self.bench.path("x.ckpt"), &[]);
        }
        run.ends_well();
        self.is_right();
    }

    #[track_caller]
    fn is_right(&self) {
        let result = fs::read(&self.result).expect("the result");
        let differs = result.iter().zip(&self.expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "the results differ");
        assert_eq!(result.len(), self.expected.len());
    }
}

macro_rules! go_through {
    ($($test:ident: $name:literal $args:expr, $result:literal;)*) => {$(
        mod $test {
            use super::*;
            const PROGRAM: Program = Program { name: $name, args: &$args, result: $result };

            #[test]
            fn launched() {
                goes_through(PROGRAM, Series::Launched, Who::Me);
            }

            #[test]
            fn launched_unprivileged() {
                goes_through(PROGRAM, Series::Launched, Who::Nobody);
            }

            #[test]
            fn saved() {
                goes_through(PROGRAM, Series::Saved, Who::Me);
            }

            #[test]
            fn saved_unprivileged() {
                goes_through(PROGRAM, Series::Saved, Who::Nobody);
            }

            #[test]
            fn attached() {
                goes_through(PROGRAM, Series::Attached, Who::Me);
            }

            #[test]
            fn attached_unprivileged() {
                goes_through(PROGRAM, Series::Attached, Who::Nobody);
            }

            #[test]
            fn continued() {
                goes_through(PROGRAM, Series::Continued, Who::Me);
            }

            #[test]
            fn continued_unprivileged() {
                goes_through(PROGRAM, Series::Continued, Who::Nobody);
            }
        }
    )*};
}

go_through! {
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
