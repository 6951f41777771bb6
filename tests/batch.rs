// SPDX-License-Identifier: LGPL-2.1-only
//! The contracts of batch systems, by small stand-ins: the same command line is started again and
//! again, ended as such a system ends it, and comes to the right result. The command lines are those of
//! examples/, but for names and periods. The real Slurm is in slurm.rs, engines of workflows in examples.rs.

mod harness;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal::{SIGALRM, SIGKILL, SIGTERM, SIGTSTP, SIGUSR2};

use harness::periods::inode;
use harness::{Bench, Build, Run, Who, until};

const RESULT: &str = "result";

/// A file of examples/, for the program that there is here, and often saved.
fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    let text = fs::read_to_string(path).expect("an example");
    let changes = [("10m", "100"), ("./sim args", "./compute.pie"), ("exec ckpt ", "exec ./ckpt ")];
    changes.iter().fold(text, |text, (from, to)| text.replace(from, to))
}

/// What stands behind a word of an example, up to the end of the line.
#[track_caller]
fn behind<'a>(text: &'a str, word: &str) -> &'a str {
    let found = text.lines().find_map(|line| line.split_once(word));
    found.unwrap_or_else(|| panic!("no {word} in {text}")).1.trim()
}

fn expected() -> Vec<u8> {
    let bench = Bench::new(Who::Nobody);
    bench.run(bench.subject("compute", Build::Pie), &[]).ends_well();
    fs::read(bench.path(RESULT)).expect("a result")
}

/// Waits until the result in `dir` has more bytes than `part` of `of`, with the program alive.
#[track_caller]
fn works(run: &mut Run, dir: &Path, part: usize, of: usize, expected: &[u8]) {
    until("a part of the result", || {
        assert!(run.lives(), "too late: it {}", run.fate());
        let len = fs::metadata(dir.join(RESULT)).map_or(0, |m| m.len()) as usize;
        (len > expected.len() * part / of).then_some(())
    });
}

/// Runs the recipe in the bench's directory.
fn job(bench: &Bench, options: &[&str]) -> Run {
    let line = ["--resume", "--truncate-files", "-n", "job.ckpt"];
    bench.launch(&[&line[..], options].concat(), "./compute.pie", &[])
}

#[test]
fn htcondor_carries_the_files_to_another_place() {
    // checkpoint_exit_code = 85: the job that ends so is started anew by the same command, with
    // the files of its sandbox, in another directory or on another machine. Paths in a checkpoint
    // are absolute; the sandbox therefore has the same path each time, as in a container or with
    // MOUNT_UNDER_SCRATCH. Here everything is carried away and back.
    let expected = expected();
    let bench = Bench::new(Who::Nobody);
    bench.subject("compute", Build::Pie);
    let spool = bench.subdirectory("spool");
    let file = example("htcondor/job.sub");
    assert!(behind(&file, "executable ").ends_with("/ckpt"));
    let arguments: Vec<&str> = behind(&file, "arguments ")[1..].split_whitespace().collect();
    let carried = behind(&file, "transfer_checkpoint_files =").split(", ");
    let carried: Vec<&str> = carried.chain(["compute.pie"]).collect();
    assert_eq!(behind(&file, "kill_sig ").trim_start_matches(['=', ' ']), "SIGTSTP");
    let status = behind(&file, "checkpoint_exit_code ").trim_start_matches(['=', ' ']);
    for part in 1..=3 {
        let mut run = bench.run(bench.ckpt(), &arguments);
        works(&mut run, &bench.dir, part, 4, &expected);
        run.signal(SIGTSTP);
        assert_eq!(run.end().code(), status.parse().ok());
        for name in &carried {
            // A copy: the inode is another each time.
            fs::copy(bench.path(name), spool.join(name)).expect("to the spool");
            fs::remove_file(bench.path(name)).expect("the sandbox is emptied");
        }
        for name in &carried {
            fs::copy(spool.join(name), bench.path(name)).expect("from the spool");
            bench.give(&bench.path(name));
        }
    }
    bench.run(bench.ckpt(), &arguments).ends_well();
    assert!(fs::read(bench.path(RESULT)).expect("a result") == expected);
}

/// A script that waits for each of its steps, and takes what a step has written.
const STEPS: &str = r#"
    for step in 1 2 3 4; do
        (seq 3; echo $step > step; until [ -e go.$step ] || ! kill -0 $$; do sleep 0.02; done; echo "step $step") > part &
        wait $! || exit 9
        sort part >> output
    done
"#;

#[test]
fn htcondor_vacates_a_script_of_several_steps() {
    // By the signal that saves, which is the job's soft-kill signal (kill_sig), or is SIGTERM; or by a SIGTERM that
    // saves nothing, after a periodic checkpoint.
    let bench = Bench::new(Who::Nobody);
    bench.file("steps.sh", STEPS);
    let spool = bench.subdirectory("spool");
    let job = |signal: &str| {
        let options = ["--resume", "--truncate-files", "-z", "100", "-a", signal];
        let rest = ["--exit-status", "85", "-n", "job.ckpt", "sh", "steps.sh"];
        bench.run(bench.ckpt(), &[&options[..], &rest].concat())
    };
    for (step, saves, sent) in
        [("1", "TSTP", SIGTSTP), ("2", "TERM", SIGTERM), ("3", "TSTP", SIGTERM)]
    {
        let mut run = job(saves);
        until("the step", || {
            assert!(run.lives(), "too late: it {}", run.fate());
            let at = fs::read_to_string(bench.path("step")).unwrap_or_default();
            (at.trim() == step).then_some(())
        });
        for _ in 0..2 {
            let before = inode(&bench.path("job.ckpt"));
            until("a periodic checkpoint", || {
                (inode(&bench.path("job.ckpt")) != before).then_some(())
            });
        }
        run.signal(sent);
        let ended = run.end();
        let is_right =
            if step == "3" { ended.signal() == Some(15) } else { ended.code() == Some(85) };
        assert!(is_right, "{ended:?}");
        bench.alone(&[]);
        // To the spool and back.
        for name in
            bench.names("").iter().filter(|name| !["ckpt", "spool"].contains(&name.as_str()))
        {
            fs::copy(bench.path(name), spool.join(name)).expect("to the spool");
            fs::remove_file(bench.path(name)).expect("the sandbox is emptied");
            fs::rename(spool.join(name), bench.path(name)).expect("from the spool");
            bench.give(&bench.path(name));
        }
        bench.file(&format!("go.{step}"), "");
    }
    bench.file("go.4", "");
    job("TSTP").ends_well();
    let output = fs::read_to_string(bench.path("output")).expect("the output");
    assert_eq!(output, (1..=4).map(|step| format!("1\n2\n3\nstep {step}\n")).collect::<String>());
}

#[test]
fn kubernetes_sends_term_and_later_kill() {
    let expected = expected();
    let bench = Bench::new(Who::Nobody);
    bench.subject("compute", Build::Pie);
    let file = example("kubernetes/job.yaml");
    let line = behind(&file, "command: [ckpt, ").replace("./sim, args]", "./compute.pie");
    let line = line.replace("/data/", "").replace('"', "");
    let words: Vec<&str> = line.split(", ").collect();
    // Twice in peace, then twice without any grace.
    for (part, signal) in [(1, SIGTERM), (2, SIGTERM), (3, SIGKILL), (4, SIGKILL)] {
        let mut run = bench.run(bench.ckpt(), &words);
        works(&mut run, &bench.dir, part, 6, &expected);
        if signal == SIGKILL {
            let before = inode(&bench.path("job.ckpt"));
            until("a periodic checkpoint", || {
                assert!(run.lives(), "too late: it {}", run.fate());
                (inode(&bench.path("job.ckpt")) != before).then_some(())
            });
        }
        run.signal(signal);
        let ended = run.end();
        assert_eq!(ended.code(), (signal == SIGTERM).then_some(85), "{ended:?}");
    }
    bench.run(bench.ckpt(), &words).ends_well();
    assert!(fs::read(bench.path(RESULT)).expect("a result") == expected);
}

#[test]
fn job_files_are_saved_by_the_signal_of_their_system() {
    // Grid Engine (-notify) sends USR2 and queues a job that ends with 99 again; LSF sends the signal of -wa and does so
    // for the statuses of -Q; PBS sends TERM, and begins the job that waits for a bad end of this one.
    let expected = expected();
    let (sge, lsf, pbs) = (example("sge/job.sh"), example("lsf/job.sh"), example("pbs/job.sh"));
    assert!(behind(&sge, "#$ ").contains(" -notify "));
    assert!(behind(&lsf, "#BSUB ").contains(" -wa TSTP ") && lsf.contains(" -Q 85\n"));
    for (name, file, signal, status) in
        [("sge", &sge, SIGUSR2, 99), ("lsf", &lsf, SIGTSTP, 85), ("pbs", &pbs, SIGTERM, 85)]
    {
        let bench = Bench::new(Who::Nobody);
        bench.subject("compute", Build::Pie);
        bench.file("job.sh", file);
        let qsub = bench.file("qsub", "#!/bin/sh\necho \"$@\" >> queued\n");
        fs::set_permissions(&qsub, Permissions::from_mode(0o755)).expect("chmod");
        let turn = || {
            let mut sh = bench.command("/bin/sh");
            let path = format!("{}:/usr/bin:/bin", bench.dir.display());
            sh.arg("job.sh").env("PATH", path).env("PBS_O_WORKDIR", ".").env("PBS_JOBID", "7.host");
            Run::start(sh)
        };
        for part in 1..=2 {
            let mut run = turn();
            works(&mut run, &bench.dir, part, 4, &expected);
            run.signal(signal);
            assert_eq!(run.end().code(), Some(status), "{name}");
        }
        turn().ends_well();
        assert!(fs::read(bench.path(RESULT)).expect("a result") == expected, "{name}");
        let queued = fs::read_to_string(bench.path("queued")).unwrap_or_default();
        let each = "-W depend=afternotok:7.host job.sh\n";
        assert_eq!(queued, if name == "pbs" { each.repeat(3) } else { String::new() });
    }
}

#[test]
fn timeout_ends_each_turn() {
    // `timeout` passes the exit status of the program on with --preserve-status. Its time is up when
    // its timer sends it SIGALRM: here that comes when the turn has done its part of the work, however
    // fast the machine is.
    let expected = expected();
    let bench = Bench::new(Who::Nobody);
    bench.subject("compute", Build::Pie);
    let turn = || {
        let options = ["--preserve-status", "--signal=USR1", "--kill-after=60", "3600", "./ckpt"];
        let job = ["--resume", "--truncate-files", "-a", "USR1", "--exit-status", "85"];
        let program = ["-n", "job.ckpt", "./compute.pie"];
        bench.run("timeout", &[&options[..], &job, &program].concat())
    };
    for part in 1..=3 {
        let mut run = turn();
        works(&mut run, &bench.dir, part, 4, &expected);
        run.signal(SIGALRM);
        assert_eq!(run.end().code(), Some(85));
    }
    turn().ends_well();
    assert!(fs::read(bench.path(RESULT)).expect("a result") == expected);
}

#[test]
fn a_spot_node_has_two_minutes() {
    // A watcher polls for the notice and saves from outside; then the node goes away, at any moment.
    let expected = expected();
    let bench = Bench::new(Who::Nobody);
    bench.subject("compute", Build::Pie);
    let watcher = "until [ -e notice ]; do sleep 0.05; done; kill -TSTP $1";
    for part in 1..=3 {
        let mut run = job(&bench, &["-a", "TSTP", "-z", "100"]);
        let watching = bench.run("sh", &["-c", watcher, "sh", &run.pid_text()]);
        works(&mut run, &bench.dir, part, 5, &expected);
        bench.file("notice", "");
        watching.ends_well();
        assert_eq!(run.end().code(), Some(0));
        bench.must(&["verify", &bench.name("job.ckpt")]);
        fs::remove_file(bench.path("notice")).expect("the notice");
    }
    job(&bench, &["-z", "100"]).ends_well();
    assert!(fs::read(bench.path(RESULT)).expect("a result") == expected);
}
