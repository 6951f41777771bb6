// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt core`, `ckpt info --maps` and its kin, `ckpt cat`.

mod harness;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use harness::{Bench, Ended, Run, Who, until};
use nix::sys::signal::Signal::SIGTSTP;

/// Threads that each stand at another depth.
const THREADS: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
volatile double sum = 1.25;
char name[] = "rubbish";
static pthread_barrier_t here;
__attribute__((noinline)) void deep(int n)
{
	if (n) {
		deep(n - 1);
		sum += n;
		return;
	}
	pthread_barrier_wait(&here);
	char line[8];
	while (read(0, line, sizeof line) > 0)
		;
}
void *thread(void *depth) { deep((long)depth); return 0; }
int main(void)
{
	pthread_t ids[3];
	strcpy(name, "changed");
	pthread_barrier_init(&here, 0, 4);
	for (long i = 0; i < 3; i++)
		pthread_create(&ids[i], 0, thread, (void *)(3 * i + 1));
	puts("ready");
	fflush(stdout);
	deep(5);
	return 0;
}
"#;

fn gdb(bench: &Bench, args: &[&str]) -> Ended {
    let options = ["-q", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-ex"];
    bench.run("gdb", &[&options[..], &["thread apply all bt"], args].concat()).end()
}

/// The functions of all stacks, by thread, without what a debugger prints of addresses, arguments and lines. A system call
/// that is begun anew stands before its instruction and not behind it, which is another line of the C library.
fn stacks(said: &Ended) -> Vec<Vec<String>> {
    let mut all: Vec<Vec<String>> = Vec::new();
    for line in &said.stdout {
        if line.starts_with("Thread ") {
            all.push(Vec::new());
        }
        let (Some(last), Some(frame)) = (all.last_mut(), line.strip_prefix('#')) else { continue };
        let words: Vec<&str> = frame.split_whitespace().collect();
        let function = match words.get(2) {
            Some(&"in") => words.get(3),
            _ => words.get(1),
        };
        last.push((*function.expect("a frame")).to_owned());
    }
    all
}

/// All that stand where the program waits: gdb is asked until the running program is there.
fn stacks_of(
    bench: &Bench,
    pid: u32,
    settled: impl Fn(&[Vec<String>]) -> bool,
) -> Vec<Vec<String>> {
    until("stacks", || {
        let found = stacks(&gdb(bench, &["-p", &pid.to_string()]));
        settled(&found).then_some(found)
    })
}

#[test]
fn a_debugger_sees_the_stacks_of_the_running_program() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let source = bench.file("stacks.c", THREADS);
        let program = bench.path("stacks");
        let built = Command::new("gcc")
            .args(["-g", "-O1", "-pthread", "-o"])
            .args([&program, &source])
            .status();
        assert!(built.expect("gcc").success());
        bench.give(&program);
        // Yama lets its parent alone look at it; that is ckpt, or us.
        let mut run = bench.launch(&["-n", "x.ckpt"], &program, &[]);
        run.expect("ready");
        let settled = |all: &[Vec<String>]| {
            let reads = |stack: &Vec<String>| {
                stack.iter().any(|it| it == "deep") && stack[0].contains("read")
            };
            all.len() == 4 && all.iter().all(reads)
        };
        let live = stacks_of(&bench, run.pid(), settled);
        // From outside, compressed, and by the signal, whose handler one thread is in then.
        let pid = run.pid_text();
        bench.must(&["save", &pid, "-n", &bench.name("outside.ckpt")]);
        bench.must(&["save", &pid, "--compress", "-n", &bench.name("small.ckpt")]);
        run.signal(SIGTSTP);
        run.ends_well();
        for image in ["outside", "small", "x"] {
            let (file, core) = (format!("{image}.ckpt"), format!("{image}.core"));
            bench.must(&["core", &file, &core]);
            let path = bench.path(&core);
            let meta = fs::metadata(&path).expect("the core file");
            assert_eq!(meta.permissions().mode() & 0o777, 0o600);
            assert!(meta.blocks() * 512 < meta.len() / 2, "it has no holes: {meta:?}");
            let program = program.to_str().expect("utf-8");
            let words = [
                "-ex",
                "p sum",
                "-ex",
                "p name",
                "-ex",
                "p $xmm0",
                "-ex",
                "info auxv",
                program,
                &core,
            ];
            let said = gdb(&bench, &words);
            assert_eq!(stacks(&said), live, "{image}: {said:?}");
            let has = |text: &str| said.stdout.iter().any(|line| line.contains(text));
            assert!(
                has("= 1.25") && has("\"changed\"") && has("v4_float") && has("AT_ENTRY"),
                "{said:?}"
            );
            assert!(
                !said.stderr.contains("too small") && !said.stderr.contains("warning: Can't"),
                "{said:?}"
            );
            // What is there is not replaced.
            assert_eq!(bench.order(&["core", &file, &core]).code(), Some(125));
        }
    }
}

#[test]
fn python_and_each_process_of_a_job() {
    let bench = Bench::new(Who::Nobody);
    let program = "
import os, sys
def inner():
    print('ready', flush=True)
    sys.stdin.readline()
def outer(): inner()
outer()
";
    let python = "/usr/bin/python3";
    let mut run = bench.launch(&["-n", "x.ckpt"], python, &["-c", program]);
    run.expect("ready");
    let reads = |all: &[Vec<String>]| all.len() == 1 && all[0][0].contains("read");
    let live = stacks_of(&bench, run.pid(), reads);
    bench.must(&["save", &run.pid_text()]);
    bench.must(&["core", "x.ckpt"]);
    let said = gdb(&bench, &[python, "-c", "core"]);
    assert_eq!(stacks(&said), live, "{said:?}");
    run.say("");
    run.end();

    let job = "sleep 1000 & echo ready; wait";
    let mut run = bench.launch(&["-n", "job.ckpt"], "/bin/bash", &["-c", job]);
    run.expect("ready");
    let pid = run.pid_text();
    let two = || bench.must(&["save", "--stop", &pid]);
    two();
    run.end();
    let cores = bench.must(&["core", "job.ckpt", "job"]).stdout;
    assert_eq!(cores.len(), 2, "{cores:?}");
    for line in &cores {
        let core = line.split(':').next().expect("a name");
        let said = gdb(&bench, &["-c", core]);
        assert!(
            said.stderr.is_empty() || !said.stderr.contains("not in executable format"),
            "{said:?}"
        );
        assert_eq!(bench.path(core).extension().map(|it| it.is_empty()), Some(false));
        assert_eq!(stacks(&said).len(), 1, "{said:?}");
    }
}

#[test]
fn tables_and_files_of_a_checkpoint() {
    let bench = Bench::new(Who::Nobody);
    let program = "
import os, sys, tempfile
deleted = open('deleted', 'w+b'); deleted.write(b'deleted'); deleted.seek(100000); deleted.write(b'end'); deleted.flush(); os.unlink('deleted')
small = open('small', 'r')
memory = os.memfd_create('some'); os.write(memory, b'in memory')
print('ready', deleted.fileno(), small.fileno(), memory, flush=True)
sys.stdin.readline()
";
    bench.file("small", "embedded\n");
    let mut command = bench.command("./ckpt");
    command.args(["-n", "x.ckpt", "--embed-files", "1K", "/usr/bin/python3", "-c", program]);
    command.env("SECRET", "a\u{1b}[31m");
    let mut run = Run::start(command);
    let ready = run.line();
    let fds: Vec<&str> = ready.split(' ').skip(1).collect();
    bench.must(&["save", &run.pid_text()]);
    run.say("");
    run.end();
    let cat = |fd: &str| {
        let mut command = Command::new(bench.ckpt());
        let output = command.current_dir(bench.path(".")).args(["cat", "x.ckpt", fd]).output();
        output.expect("ckpt cat")
    };
    let deleted = cat(fds[0]).stdout;
    assert!(
        deleted.len() == 100_003
            && deleted.starts_with(b"deleted\0")
            && deleted.ends_with(b"\0end")
    );
    assert_eq!(cat(fds[1]).stdout, b"embedded\n");
    assert_eq!(cat(fds[2]).stdout, b"in memory");
    for (fd, why) in [("0", "is not in"), ("99", "has no descriptor"), ("x", "is not the number")] {
        let said = cat(fd);
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.code() == Some(125) && text.contains(why), "{text}");
    }
    let table = |flag: &str| bench.must(&["info", "x.ckpt", flag]).stdout;
    let maps = table("--maps");
    assert!(maps.iter().any(|line| line.contains("[stack]") && line.contains("rw-p")), "{maps:?}");
    let fds_shown = table("--fds");
    assert!(
        fds_shown.iter().any(|line| line.contains("Deleted") && line.contains("yes")),
        "{fds_shown:?}"
    );
    assert_eq!(table("--threads").len(), 2);
    let env = table("--env");
    assert!(
        env.iter().any(|line| line.starts_with("SECRET") && line.contains("\\u{1b}[31m")),
        "{env:?}"
    );
    let json = bench.must(&["info", "x.ckpt", "--fds", "--json"]).stdout.join("\n");
    assert!(json.starts_with("[{") && json.contains("\"embedded\": true"), "{json}");
    assert!(Path::new(&bench.path("x.ckpt")).exists());
}
