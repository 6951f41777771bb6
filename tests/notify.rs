// SPDX-License-Identifier: LGPL-2.1-only
//! `--notify`: a command after each checkpoint.

mod harness;

use std::collections::BTreeMap;
use std::fs;

use harness::{Bench, Build, Run, Who, until};
use nix::sys::signal::Signal::SIGTSTP;

/// Writes what it is told to a file of its own, which gets its name when it is whole.
const HOOK: &str = "#!/bin/sh
{ env | grep ^CKPT_; grep -E '^(Uid|PPid|SigBlk)' /proc/self/status; echo CHILDREN=$(ps -o comm= --ppid $CKPT_HOOK_PID); } > told.$$.part
mv told.$$.part told.$$.txt
";

fn with_hook(who: Who) -> Bench {
    let bench = Bench::new(who);
    let hook = bench.file("hook.sh", HOOK);
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    bench
}

/// What the next call was told.
fn told(bench: &Bench) -> BTreeMap<String, String> {
    let name =
        until("the command", || bench.names("told.").into_iter().find(|it| it.ends_with(".txt")));
    let text = fs::read_to_string(bench.path(&name)).expect("what was told");
    fs::remove_file(bench.path(&name)).expect("removed");
    let pair = |line: &str| {
        let (name, value) = line.split_once(['=', ':']).expect("a pair");
        (name.to_owned(), value.trim().to_owned())
    };
    text.lines().map(pair).collect()
}

/// Whether the command, or who runs it, is a child of the program.
fn is_child(facts: &BTreeMap<String, String>) -> bool {
    let ours = ["sh", "hook.sh", "ckpt-notify"];
    facts["CHILDREN"].split_whitespace().any(|name| ours.contains(&name))
}

#[test]
fn every_kind_of_checkpoint_is_told() {
    for who in [Who::Me, Who::Nobody] {
        let bench = with_hook(who);
        let options = ["--notify", "./hook.sh", "-n", "x.ckpt"];
        let mut run = bench.launch(&options, bench.subject("observer", Build::Pie), &[]);
        run.expect("ready");
        let pid = run.pid_text();
        let said = bench.must(&["save", &pid]);
        let facts = told(&bench);
        assert_eq!(facts["CKPT_HOOK_RESULT"], "saved", "{facts:?}");
        assert_eq!(facts["CKPT_HOOK_NAME"], bench.name("x.ckpt"));
        assert_eq!(facts["CKPT_HOOK_NUMBER"], "1");
        assert_eq!((&facts["CKPT_HOOK_PID"], &facts["CKPT_HOOK_ENDED"]), (&pid, &"0".to_owned()));
        assert!(facts["CKPT_HOOK_PROGRAM"].ends_with("observer.pie"), "{facts:?}");
        assert!(
            said.stdout[0].contains(&format!(" {} ms", facts["CKPT_HOOK_PAUSE"])),
            "{said:?} {facts:?}"
        );
        let bytes = fs::metadata(bench.path("x.ckpt")).expect("the image").len();
        assert_eq!(facts["CKPT_HOOK_BYTES"], bytes.to_string());
        assert!(!is_child(&facts), "it is a child of the program: {facts:?}");
        assert_eq!(facts["SigBlk"].trim_start_matches('0'), "");
        // Only what it is told.
        assert!(
            facts.keys().all(|name| !name.starts_with("CKPT_") || name.starts_with("CKPT_HOOK_")),
            "{facts:?}"
        );
        run.check();
        run.signal(SIGTSTP);
        run.ends_well();
        let facts = told(&bench);
        assert_eq!(
            (facts["CKPT_HOOK_ENDED"].as_str(), facts["CKPT_HOOK_NUMBER"].as_str()),
            ("1", "2")
        );
        // Restarted it is as it was; by a period, too.
        let mut run = bench.run(bench.path("x.ckpt"), &["-z", "50"]);
        let pid = run.pid_text();
        let facts = told(&bench);
        assert_eq!(
            (&facts["CKPT_HOOK_PID"], &facts["CKPT_HOOK_RESULT"]),
            (&pid, &"saved".to_owned())
        );
        assert!(!is_child(&facts), "{facts:?}");
        run.check();
        // One that fails says why.
        bench.order(&["save", &pid, "-n", "/nonexistent/x"]);
        until("the failure", || {
            let facts = told(&bench);
            (facts["CKPT_HOOK_RESULT"] == "failed"
                && facts["CKPT_HOOK_REASON"].contains("/nonexistent/x"))
            .then_some(())
        });
        run.go();
    }
}

#[test]
fn a_job_that_ends_with_its_namespace_is_told_of() {
    for who in [Who::Me, Who::Nobody] {
        let bench = with_hook(who);
        let job = "sleep 1000 & echo ready; wait";
        let options = ["--notify", "./hook.sh", "-n", "x.ckpt"];
        let mut run = bench.launch(&options, "/bin/bash", &["-c", job]);
        run.expect("ready");
        run.signal(SIGTSTP);
        run.ends_well();
        assert_eq!(told(&bench)["CKPT_HOOK_ENDED"], "1");
        for stop in [false, true] {
            let run = bench.run(bench.path("x.ckpt"), &[]);
            let pid = run.pid_text();
            // It is there when that has an answer.
            bench.must(&["save", &pid]);
            let facts = told(&bench);
            assert_eq!((&facts["CKPT_HOOK_PID"], facts["CKPT_HOOK_ENDED"].as_str()), (&pid, "0"));
            if stop {
                bench.must(&["save", "--stop", &pid]);
            } else {
                run.signal(SIGTSTP);
            }
            run.ends_well();
            assert_eq!(told(&bench)["CKPT_HOOK_ENDED"], "1");
        }
    }
}

#[test]
fn failures_are_said_once_and_nobody_waits() {
    let bench = Bench::new(Who::Nobody);
    let options = ["-c", "-n", "x.%n.ckpt", "--notify", "echo too bad >&2; exit 3"];
    let mut run = bench.launch(&options, bench.subject("observer", Build::Pie), &[]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.complaint("the command of --notify ended with status 3 (too bad)");
    for number in 2..=3 {
        let image = bench.path(format!("x.{number}.ckpt"));
        run.signal_until(SIGTSTP, "a checkpoint", |_| image.exists());
        run.check();
    }
    let ended = run.go();
    assert_eq!(ended.stderr.matches("--notify").count(), 1, "{ended:?}");

    // One that does not end keeps neither the program's checkpoints nor its end.
    bench.file("running", "");
    let options =
        ["-z", "50", "-n", "y.%n.ckpt", "--notify", "while [ -e running ]; do sleep 0.1; done"];
    let mut run = bench.launch(&options, bench.subject("observer", Build::Pie), &[]);
    run.expect("ready");
    until("checkpoints", || bench.path("y.4.ckpt").exists().then_some(()));
    run.check();
    run.go();
    fs::remove_file(bench.path("running")).expect("removed");
}

#[test]
fn it_has_the_rights_of_the_program_or_of_the_caller() {
    let bench = with_hook(Who::Nobody);
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let options = ["--notify", "./hook.sh", "-n", "x.ckpt"];
    let mut run = bench.launch(&options, bench.subject("observer", Build::Pie), &[]);
    run.expect("ready");
    let save = |options: &[&str]| {
        let mut command = std::process::Command::new(bench.ckpt());
        command.current_dir(bench.path(".")).arg("save").args(options).arg(run.pid_text());
        let mut run = Run::start(command);
        run.lives();
        run.ends_well();
    };
    save(&[]);
    assert_eq!(told(&bench)["Uid"], "65534\t65534\t65534\t65534");
    save(&["--notify", "./hook.sh"]);
    assert_eq!(told(&bench)["Uid"], "0\t0\t0\t0");
    run.go();
}
