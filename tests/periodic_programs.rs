//! The programs of programs.rs to their end under periodic checkpoints, with the same result.

mod harness;

use std::fs;
use std::path::{Path, PathBuf};

use harness::{Bench, Build, Run, Who};

/// The highest number of the checkpoints x.N.ckpt.
fn newest(bench: &Bench) -> Option<u64> {
    bench.names("x.").iter().filter_map(|name| name.split('.').nth(1)?.parse().ok()).max()
}

/// The programs of programs.rs, to their end under -z 200.
#[track_caller]
fn runs_to_its_end(program: &str, args: &[&str], result: &str) {
    for who in [Who::Me, Who::Nobody] {
        let prepare = || {
            let bench = Bench::new(who);
            let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
            for entry in fs::read_dir(scripts).expect("tests/programs").flatten() {
                let name = entry.file_name().into_string().expect("utf-8");
                bench.file(&name, fs::read(entry.path()).expect("a script"));
            }
            let words = (0..9_000_000_u64).map(|n| ((n * n * 7919) >> 13) as u8);
            bench.file("input", words.collect::<Vec<_>>());
            Build::ALL.into_iter().for_each(|build| drop(bench.subject("compute", build)));
            bench
        };
        let start = |bench: &Bench, launcher: &[&str]| {
            let words = [launcher, &[program], args].concat();
            let mut command = bench.command(words[0]);
            command.args(&words[1..]);
            match program {
                "bc" => {
                    let path = bench.file(result, "");
                    let output = fs::File::options().write(true).open(path).expect("the result");
                    Run::start_to(command, output.into())
                }
                _ => Run::start(command),
            }
        };
        let read = |path: PathBuf| fs::read(path).expect("a result");
        let plain = prepare();
        start(&plain, &[]).ends_well();
        let expected = read(plain.path(result));
        let bench = prepare();
        let ckpt = bench.name("ckpt");
        start(&bench, &[&ckpt, "-z", "200", "-n", "x.%n.ckpt", "--"]).ends_well();
        assert!(read(bench.path(result)) == expected, "the results differ");
        // And its newest checkpoint comes to the same end.
        // On a busy machine a short program may end before the first is whole.
        let Some(last) = newest(&bench) else { continue };
        let options = ["--truncate-files", "-z", "0"];
        bench.run(bench.path(format!("x.{last}.ckpt")), &options).ends_well();
        assert!(read(bench.path(result)) == expected, "the results differ after a restart");
    }
}

macro_rules! run_to_their_end {
    ($($test:ident: $name:literal $args:expr, $result:literal;)*) => {
        mod to_the_end {
            $(#[test]
            fn $test() {
                super::runs_to_its_end($name, &$args, $result);
            })*
        }
    };
}

run_to_their_end! {
    python: "/usr/bin/python3" ["compute.py"], "result";
    perl: "perl" ["compute.pl"], "result";
    bash: "bash" ["compute.bash"], "result";
    gawk: "gawk" ["-f", "compute.awk"], "result";
    bc: "bc" ["-lq", "compute.bc"], "result";
    xz: "xz" ["-T1", "-6", "-k", "input"], "input.xz";
    busybox_sh: "busybox" ["sh", "compute.sh"], "result";
    c_no_pie: "./compute.nopie" [], "result";
    c_static_glibc: "./compute.static" [], "result";
    c_static_musl: "./compute.musl" [], "result";
}
