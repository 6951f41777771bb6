// SPDX-License-Identifier: LGPL-2.1-only
//! A real Slurm on loopback: a job of real work is signalled, saved, requeued, resumed and finished
//! with the right result, twice. `scripts/slurm` brings it up; where it cannot be installed, the
//! test says so and shows nothing.

mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use harness::{Bench, Build, Who, until};

/// A Slurm with its state in a directory; stopped when dropped.
struct Slurm(PathBuf);

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/slurm")
}

impl Slurm {
    /// None, with a word on standard error, where there is none and none can be installed.
    #[track_caller]
    fn up(dir: PathBuf) -> Option<Self> {
        let output = Command::new(script()).arg("up").arg(&dir).output().expect("scripts/slurm");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => Some(Self(dir)),
            Some(3) => {
                eprintln!("SKIPPED: {said}");
                None
            }
            _ => panic!("scripts/slurm up: {said}"),
        }
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env("SLURM_CONF", self.0.join("slurm.conf"));
        command.output().unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    /// Runs a command of Slurm to its good end; what it prints.
    #[track_caller]
    fn order(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).expect("utf-8").trim().to_owned()
    }

    /// The value of a field of `scontrol show job`.
    fn field(&self, job: &str, name: &str) -> String {
        let text = self.order(&["scontrol", "show", "job", job]);
        let value = text.split_whitespace().find_map(|w| w.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().to_owned()
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        let _ = Command::new(script()).arg("down").arg(&self.0).status();
    }
}

/// A script of several steps, which waits for one by its process id, and hands on what it has read before.
const STEPS: &str = "touch before; first=$(tr a-z A-Z <<< steps)
    ./compute.pie & wait $! || exit 1
    [ \"$first\" = STEPS ] && ls | grep -c result | { read n; [ $n = 1 ]; } && touch after";

/// Job files: one that becomes the program, one with work before and after it, and one that is saved with all its
/// processes; what stands for `./sim args`, and how a signal reaches the program of each.
const RECIPES: [(&str, &str, &[&str]); 3] = [
    ("job.sh", "./compute.pie", &["--batch"]),
    ("steps.sh", "./compute.pie", &[]),
    ("job.sh", "/bin/bash ./steps", &["--batch"]),
];

/// The file of examples/slurm, often saved.
fn recipe(name: &str, program: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/slurm").join(name);
    let text = fs::read_to_string(path).expect("an example");
    let changes = [
        (" ckpt ", " ./ckpt "),
        ("-z 10m", "-z 300"),
        ("./sim args", program),
        ("./prepare", "touch before"),
        ("./evaluate", "touch after"),
    ];
    changes.iter().fold(text, |text, (from, to)| text.replace(from, to))
}

#[test]
fn a_job_is_requeued_twice_and_finishes() {
    let expected = {
        let bench = Bench::new(Who::Me);
        bench.run(bench.subject("compute", Build::Pie), &[]).ends_well();
        fs::read(bench.path("result")).expect("a result")
    };
    let home = Bench::new(Who::Me);
    let Some(slurm) = Slurm::up(home.path("slurm")) else { return };
    for (name, program, to) in RECIPES {
        requeued_twice(&slurm, &recipe(name, program), to, &expected);
    }
}

fn requeued_twice(slurm: &Slurm, text: &str, to: &[&str], expected: &[u8]) {
    let bench = Bench::new(Who::Me);
    bench.subject("compute", Build::Pie);
    bench.file("steps", STEPS);
    let job = bench.file("job.sh", text);
    let (dir, job) = (bench.dir.to_str().expect("utf-8"), job.to_str().expect("utf-8"));
    let options = ["--parsable", "-o", "out", "-D", dir];
    let id = slurm.order(&[&["sbatch"], &options[..], &[job]].concat());
    let result = bench.path("result");
    let length = || fs::metadata(&result).map_or(0, |m| m.len()) as usize;
    for restarts in 1..=2 {
        // More than the run before has left: then this one works.
        let mark = length().max(expected.len() * restarts / 4);
        until("a part of the result", || {
            let state = slurm.field(&id, "JobState");
            assert!(!["COMPLETED", "FAILED"].contains(&&state[..]), "{state}: {}", said(&bench));
            (length() > mark).then_some(())
        });
        slurm.order(&[&["scancel", "--signal=TSTP"], to, &[&id[..]]].concat());
        until("the job is requeued", || {
            let state = slurm.field(&id, "JobState");
            assert_ne!(state, "COMPLETED", "it ended before the signal");
            (slurm.field(&id, "Restarts") == restarts.to_string()).then_some(())
        });
        bench.must(&["verify", &bench.name("job.ckpt")]);
        // It would wait for two minutes. Not in the second in which it was requeued: slurmd tells a
        // job's credentials apart by their seconds and refuses a new one as revoked with the old.
        slurm.order(&["scontrol", "update", &format!("JobId={id}"), "StartTime=now+2"]);
        until("the job runs again", || {
            let state = slurm.field(&id, "JobState");
            assert_ne!(state, "FAILED", "{}", said(&bench));
            ["RUNNING", "COMPLETED"].contains(&&state[..]).then_some(())
        });
    }
    until("the job's end", || (slurm.field(&id, "JobState") == "COMPLETED").then_some(()));
    assert_eq!(slurm.field(&id, "ExitCode"), "0:0", "{}", said(&bench));
    assert!(fs::read(&result).expect("a result") == expected, "the results differ");
    assert_eq!(bench.path("before").exists(), bench.path("after").exists());
    // The batch system ends what a job has left, but not before that was set aside.
    until("the checkpoint is set aside", || bench.path("job.ckpt.finished").exists().then_some(()));
}

fn said(bench: &Bench) -> String {
    fs::read_to_string(bench.path("out")).unwrap_or_default()
}
