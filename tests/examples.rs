// SPDX-License-Identifier: LGPL-2.1-only
//! The files of examples/ for engines of workflows and for nodes that go away: a real Snakemake, Nextflow's way to call a
//! shell, metadata services of clouds by a small stand-in. Job files of batch systems are run by batch.rs and slurm.rs.

mod harness;
mod serving;

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use harness::periods::inode;
use harness::{Bench, Build, Run, Who, until};
use nix::libc;
use nix::sys::signal::Signal::SIGHUP;
use serving::{Server, image};

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

/// Where scripts/install puts packages of python.
fn packages(name: &str) -> PathBuf {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
    Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join(name)
}

#[test]
fn a_warm_start_is_measured() {
    let packages = packages("python");
    if !packages.join("numpy").exists() {
        eprintln!("SKIPPED: there is no numpy; scripts/install test has it");
        return;
    }
    let bench = Bench::new(Who::Me);
    let script = examples("warm/measure");
    let mut command = command(&bench, &["bash", script.to_str().expect("utf-8"), "1"]);
    command.env_remove("CKPT_PERIOD").env("TMPDIR", &bench.dir).env("PYTHONPATH", &packages);
    // It compares what both say, and then how long they take.
    let ended = Run::start(command).ends_well();
    let told = ended.stdout.last().expect("a line");
    assert!(told.starts_with("python3 with imports: ") && told.contains("ratio"), "{ended:?}");
}

#[test]
fn snakemake_goes_on_with_a_job_that_was_killed() {
    let packages = packages("snakemake");
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

/// A metadata service on loopback, which has a notice once it is told so.
struct Metadata {
    address: String,
    notice: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Metadata {
    /// `answer` has the headers and path of a question, and whether there is a notice: what is answered, if anything is.
    fn serve(answer: fn(&str, bool) -> Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let (notice, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (there, count) = (notice.clone(), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let lines = BufReader::new(&stream).lines().map_while(Result::ok);
                let question: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
                let text = question.join("\n");
                let (status, body) = match answer(&text, there.load(Ordering::SeqCst)) {
                    Some(body) => ("200 OK", body),
                    None => ("404 Not Found", ""),
                };
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                );
                let _ = stream.write_all(format!("{head}{body}").as_bytes());
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { address, notice, asked }
    }
}

/// What each service answers, as its documentation says.
fn aws(question: &str, notice: bool) -> Option<&'static str> {
    if question.starts_with("PUT /latest/api/token ") {
        return question.contains("X-aws-ec2-metadata-token-ttl-seconds: ").then_some("TOKEN");
    }
    let asked = question.starts_with("GET /latest/meta-data/spot/instance-action ");
    assert!(asked && question.contains("X-aws-ec2-metadata-token: TOKEN"), "{question}");
    notice.then_some(r#"{"action": "terminate", "time": "2026-11-27T08:22:00Z"}"#)
}

fn gcp(question: &str, notice: bool) -> Option<&'static str> {
    assert!(question.starts_with("GET /computeMetadata/v1/instance/preempted "), "{question}");
    assert!(question.contains("Metadata-Flavor: Google"), "{question}");
    Some(if notice { "TRUE" } else { "FALSE" })
}

fn azure(question: &str, notice: bool) -> Option<&'static str> {
    assert!(question.starts_with("GET /metadata/scheduledevents?api-version="), "{question}");
    assert!(question.contains("Metadata: true"), "{question}");
    Some(if notice {
        r#"{"DocumentIncarnation": 2, "Events": [{"EventId": "1", "EventType": "Preempt", "EventStatus": "Scheduled"}]}"#
    } else {
        r#"{"DocumentIncarnation": 1, "Events": []}"#
    })
}

/// All that runs under ckpt where the test runs is others' too; so this ckpt only notes what it is asked for.
const NOTING: &str = "#!/bin/sh\necho \"$@\" >> asked\nexit 3\n";

/// What the examples for nodes that go away have in common.
const SAVE_ALL: &str = "save --stop --all --jobs 4\n";

#[test]
fn a_notice_of_a_cloud_saves_all() {
    let unit = fs::read_to_string(examples("systemd/ckpt-spot@.service")).expect("a file");
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/"));
    let line = format!("./{}", line.expect("a command line"));
    for (cloud, answer) in [("aws", aws as fn(&str, bool) -> _), ("gcp", gcp), ("azure", azure)] {
        let bench = Bench::new(Who::Me);
        fs::remove_file(bench.ckpt()).expect("the bench's own");
        executable(&bench, "ckpt", NOTING);
        executable(&bench, "ckpt-spot", fs::read(examples("spot/ckpt-spot")).expect("a file"));
        let service = Metadata::serve(answer);
        let line = line.replace("%i", cloud);
        let mut command = command(&bench, &line.split(' ').collect::<Vec<_>>());
        command.env("CKPT_METADATA", &service.address).env("CKPT_POLL", "0.05");
        let mut run = Run::start(command);
        // Each question is one or two requests.
        until("questions", || (service.asked.load(Ordering::SeqCst) > 4).then_some(()));
        assert!(run.lives() && !bench.path("asked").exists(), "{cloud}: {}", run.stderr());
        service.notice.store(true, Ordering::SeqCst);
        let ended = run.end();
        assert_eq!(ended.code(), Some(3), "the status of ckpt save: {ended:?}");
        assert_eq!(fs::read_to_string(bench.path("asked")).expect("asked"), SAVE_ALL, "{cloud}");
    }
}

#[test]
fn a_node_that_goes_down_saves_all() {
    let unit = fs::read_to_string(examples("systemd/ckpt-shutdown.service")).expect("a file");
    let line = format!("ExecStop=/usr/bin/ckpt {SAVE_ALL}");
    assert!(unit.contains(&line) && unit.contains("\nRemainAfterExit=yes\n"), "{unit}");
    let bench = Bench::new(Who::Me);
    fs::remove_file(bench.ckpt()).expect("the bench's own");
    executable(&bench, "ckpt", NOTING);
    executable(&bench, "prolog.sh", fs::read(examples("slurm/prolog.sh")).expect("a file"));
    for (partition, status) in [("main", 0), ("maintenance", 3)] {
        assert!(!bench.path("asked").exists());
        let mut command = command(&bench, &["./prolog.sh"]);
        command.env("SLURM_JOB_PARTITION", partition);
        assert_eq!(Run::start(command).end().code(), Some(status), "{partition}");
    }
    assert_eq!(fs::read_to_string(bench.path("asked")).expect("asked"), SAVE_ALL);
}

/// What systemd refuses a service that may not make system calls of @privileged and @resources, as far as a server has any
/// use for them.
const REFUSED: [libc::c_long; 20] = [
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setuid,
    libc::SYS_setreuid,
    libc::SYS_setresuid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_chroot,
    libc::SYS_chown,
    libc::SYS_fchown,
    libc::SYS_lchown,
    libc::SYS_fchownat,
    libc::SYS_open_by_handle_at,
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setscheduler,
    libc::SYS_setpriority,
    libc::SYS_setrlimit,
];

#[test]
fn a_server_may_do_what_its_unit_lets_it() {
    let unit = fs::read_to_string(examples("systemd/ckpt-serve.service")).expect("a file");
    assert!(unit.contains("\nSystemCallFilter=~@privileged @resources\n"), "{unit}");
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/ckpt "));
    let line = line.expect("a command line").replace("/var/lib/ckpt-serve/", "");
    let line = line.replace("--metrics 10302", "--metrics 127.0.0.1:0 --listen 127.0.0.1 -p 0");
    let bench = Bench::new(Who::Nobody);
    for folder in ["data", "keys"] {
        bench.subdirectory(folder);
    }
    bench.must(&["keygen", &bench.name("keys/alice")]);
    bench.file("in", image("x"));
    let numbers = REFUSED.map(|number| number.to_string());
    let filter = numbers.iter().flat_map(|number| [number, "-1", "0"]);
    let words: Vec<&str> = filter.chain(["--", "./ckpt"]).chain(line.split(' ')).collect();
    let run = bench.run(bench.subject("deny", Build::Static), &words);
    let server = Server::watch(run, bench.path("data"));
    let (name, key) = (server.name("x"), bench.name("keys/alice"));
    for words in [&["put", "in", &name][..], &["ls", &server.name("")], &["get", &name, "out"]] {
        bench.must(&[words, &["--key", &key]].concat());
    }
    server.run.signal(SIGHUP);
    server.run.complaint("1 users are known");
    bench.must(&["rm", &name, "--key", &key]);
    server.stop();
}

/// An object store of one folder, by the words of aws-cli that the example uses.
const STORE: &str = "#!/bin/sh\n\
     for word in \"$@\"; do case $word in s3://*) file=store/${word##*/} ;; esac; done\n\
     case \"$1 $2 $*\" in\n\
     \x20 's3 ls '*) [ -e \"$file\" ] && echo \"$file\" ;;\n\
     \x20 's3 cp '*' -') exec cat \"$file\" ;;\n\
     \x20 's3 cp '*) cat > \"$file.part\" && mv \"$file.part\" \"$file\" ;;\n\
     esac\n";

#[test]
fn kubernetes_needs_no_volume() {
    let bench = Bench::new(Who::Nobody);
    let file = fs::read_to_string(examples("kubernetes/job-s3.yaml")).expect("a file");
    let list = file.split_once("        command:\n").expect("a command").1;
    let words = list.lines().map_while(|line| line.strip_prefix("        - "));
    let words: Vec<String> = words
        .map(|word| word.trim_matches('"').replace("/tmp/there", "there").replace("10m", "100"))
        .filter(|word| word != "args")
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    executable(&bench, "aws", STORE);
    // dash gives TERM back to the kernel when it begins.
    let sim = SIM.replace("/bin/sh", "/bin/bash").replace("began\n", "began; exec > result\n");
    executable(&bench, "sim", sim);
    bench.subdirectory("store");
    let start = || {
        let mut command = command(&bench, &words);
        command.env("TMPDIR", &bench.dir);
        Run::start(command)
    };
    for _ in 0..2 {
        let mut run = start();
        until("the first half", || {
            assert!(run.lives(), "{}: {}", run.fate(), run.stderr());
            let text = fs::read_to_string(bench.path("result")).unwrap_or_default();
            text.ends_with("20\n").then_some(())
        });
        run.signal(nix::sys::signal::Signal::SIGTERM);
        let ended = run.end();
        assert_eq!(ended.code(), Some(85), "{ended:?}");
        // The pod's files are gone.
        for name in ["result", "there"] {
            fs::remove_file(bench.path(name)).expect("a file");
        }
    }
    bench.file("go", "");
    let ended = start().end();
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let result = fs::read_to_string(bench.path("result")).expect("a result");
    assert_eq!(result, (1..=40).map(|i| format!("{i}\n")).collect::<String>());
    assert_eq!(fs::read_to_string(bench.path("began")).expect("a note"), "began\n");
}
