// SPDX-License-Identifier: LGPL-2.1-only
//! Real programs: five restarts, and the result is byte for byte what an uninterrupted run writes.
//!
//! Each program writes its result to a file as it goes, and is saved whenever the next sixth of the
//! file is there.

mod harness;

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal::SIGTSTP;

use harness::{Bench, Program, Run, Way, Who, each_program, until};

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

each_program!(go_through);
