// SPDX-License-Identifier: LGPL-2.1-only
//! The files of examples/ for engines of workflows: a real Snakemake, Nextflow's way to call a shell. Job files of batch systems are run by batch.rs and slurm.rs.

mod harness;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::periods::inode;
use harness::{Bench, Run, Who, until};

/// Says when it begins, and after 20 lines waits for a file.
const SIM: &str = "#!/bin/sh\n\
     echo began >> began\n\
     i=0\n\
     while [ $i -lt 40 ]; do\n\
     \x20 i=$((i+1)); echo $i\n\
     \x20 [ $i != 20 ] || until [ -e go ]; do sleep 0.02; done\n\
     done\n";

fn examples(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

fn executable(bench: &Bench, name: &str, text: impl AsRef<[u8]>) {
    let path = bench.file(name, text);
    fs::set_permissions(path, Permissions::from_mode(0o755)).expect("chmod");
}

/// A command in a session of its own, which finds this bench's ckpt.
fn command(bench: &Bench, words: &[&str]) -> Command {
    let mut command = bench.command("setsid");
    let path = format!("{}:/usr/bin:/bin", bench.dir.display());
    command.args(words).env("PATH", path).env("HOME", &bench.dir).env("CKPT_PERIOD", "100");
    command
}

/// The only checkpoint in a folder.
fn checkpoint(bench: &Bench, folder: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(bench.path(folder)).ok()?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.find(|path| path.extension().is_some_and(|e| e == "ckpt"))
}

/// Runs it until a checkpoint has the first half, kills all that belongs to it, and runs it again.
fn killed_and_run_again(bench: &Bench, start: impl Fn() -> Command, folder: &str) {
    executable(bench, "sim", SIM);
    let mut run = Run::start(start());
    until("the first half", || {
        assert!(run.lives(), "{}: {}", run.fate(), run.stderr());
        let text = fs::read_to_string(bench.path("result")).unwrap_or_default();
        text.ends_with("20\n").then_some(())
    });
    for _ in 0..2 {
        let file = until("a checkpoint", || checkpoint(bench, folder));
        let before = inode(&file);
        until("the next checkpoint", || {
            let file = checkpoint(bench, folder)?;
            (inode(&file) != before).then_some(())
        });
    }
    let session = run.pid_text();
    bench.run("pkill", &["-9", "-s", &session]).end();
    run.end();
    bench.file("go", "");
    let ended = Run::start(start()).end();
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let result = fs::read_to_string(bench.path("result")).expect("a result");
    assert_eq!(result, (1..=40).map(|i| format!("{i}\n")).collect::<String>());
    assert_eq!(fs::read_to_string(bench.path("began")).expect("a note"), "began\n");
}

#[test]
fn snakemake_goes_on_with_a_job_that_was_killed() {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("snakemake");
    if !packages.join("snakemake").exists() {
        eprintln!("SKIPPED: there is no Snakemake; scripts/install test has it");
        return;
    }
    let bench = Bench::new(Who::Me);
    executable(&bench, "bash-ckpt", fs::read(examples("snakemake/bash-ckpt")).expect("a file"));
    bench.file("Snakefile", fs::read(examples("snakemake/Snakefile")).expect("a file"));
    let start = || {
        let line = "/usr/bin/python3 -m snakemake --unlock && \
                    exec /usr/bin/python3 -m snakemake --cores 1 --rerun-incomplete";
        let mut command = command(&bench, &["sh", "-c", line]);
        command.env("PYTHONPATH", &packages).env("XDG_CACHE_HOME", bench.path("cache"));
        command
    };
    killed_and_run_again(&bench, start, ".ckpt");
}

#[test]
fn nextflow_calls_a_shell_that_goes_on() {
    let bench = Bench::new(Who::Nobody);
    let file = fs::read_to_string(examples("nextflow/nextflow.config")).expect("a file");
    let line = file.lines().find_map(|line| line.trim().strip_prefix("shell = ["));
    let line = line.expect("a shell").trim_end_matches(']').replace('\'', "").replace("10m", "100");
    let shell: Vec<&str> = line.split(", ").collect();
    // As its .command.run does, in the task's work directory.
    bench.file(".command.sh", "#!/bin/bash -ue\n./sim > result\n");
    let script = bench.name(".command.sh");
    let start = || command(&bench, &[&shell[..], &[&script]].concat());
    killed_and_run_again(&bench, start, ".");
}
