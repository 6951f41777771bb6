// SPDX-License-Identifier: LGPL-2.1-only
//! The programs of programs.rs to their end under periodic checkpoints, with the same result.

mod harness;

use std::fs;

use harness::{Bench, Program, Who, each_program};

/// The highest number of the checkpoints x.N.ckpt.
fn newest(bench: &Bench) -> Option<u64> {
    bench.names("x.").iter().filter_map(|name| name.split('.').nth(1)?.parse().ok()).max()
}

/// To its end under -z 200, and from its newest checkpoint to the same end.
#[track_caller]
fn runs_to_its_end(program: Program) {
    for who in [Who::Me, Who::Nobody] {
        let expected = program.expected(who);
        // A checkpoint that is not on the disk when the program ends is dropped; on a busy disk that
        // may be all of a short run's.
        let (bench, last) = (0..10)
            .find_map(|_| {
                let bench = periodically(program, who, &expected);
                newest(&bench).map(|last| (bench, last))
            })
            .expect("a checkpoint in ten runs");
        let options = ["--truncate-files", "-z", "0"];
        bench.run(bench.path(format!("x.{last}.ckpt")), &options).ends_well();
        let result = fs::read(bench.path(program.result)).expect("a result");
        assert!(result == expected, "the results differ after a restart");
    }
}

#[track_caller]
fn periodically(program: Program, who: Who, expected: &[u8]) -> Bench {
    let bench = program.bench(who);
    let ckpt = bench.name("ckpt");
    let options = ["-z", "200", "-n", "x.%n.ckpt", "--keep", "3", "--"];
    program.start(&bench, &[&[&*ckpt], &options[..]].concat()).ends_well();
    let result = fs::read(bench.path(program.result)).expect("a result");
    assert!(result == expected, "the results differ");
    bench
}

macro_rules! run_to_their_end {
    ($($test:ident: $name:literal $args:expr, $result:literal;)*) => {
        mod to_the_end {
            $(#[test]
            fn $test() {
                super::runs_to_its_end(super::Program {
                    name: $name,
                    args: &$args,
                    result: $result,
                });
            })*
        }
    };
}

each_program!(run_to_their_end);
