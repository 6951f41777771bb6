// SPDX-License-Identifier: LGPL-2.1-only
//! Pseudo-terminals among the processes of a job: script, tmux, screen, expect and programs of our own.

mod harness;

use harness::faults::is_killed;
use harness::{Bench, Build, Way, Who, survive};

/// Every state of a pseudo-terminal with what is under way in it; also of the program that goes on.
#[test]
fn pseudo_terminals_survive() {
    survive(Who::Me, Way::Save, "ptys", Build::Pie, &[]);
    survive(Who::Nobody, Way::LaunchContinue, "ptys", Build::Musl, &[]);
    survive(Who::Nobody, Way::SaveStop, "ptys", Build::Static, &["alone"]);
}

/// Whoever looks into the terminals puts back what was in them, though the dumper is killed meanwhile.
#[test]
fn nothing_is_missing_when_a_dumper_is_killed() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = bench.run(bench.subject("ptys", Build::Pie), &[]);
        run.expect("ready");
        let (pid, name) = (run.pid_text(), bench.name("x.ckpt"));
        for step in ["peeking", "gathered", "pictured"] {
            assert!(is_killed(&bench, step, &["save", &pid, "-n", &name]), "{step}");
            run.check();
        }
        bench.must(&["save", &pid, "-n", &name]);
        run.go();
        bench.run(bench.path("x.ckpt"), &[]).go();
    }
}

/// Runs a job to "ready", through three generations, opens the gate and says what came then.
fn three_generations(bench: &Bench, program: &str, args: &[&str], keys: &str) -> Vec<String> {
    let mut run = bench.launch(&["-n", "0.ckpt"], program, args);
    while !run.line().contains("ready") {}
    run.say(keys);
    for generation in 0..3 {
        let name = format!("{generation}.ckpt");
        let saved = bench.must(&["save", "--stop", &run.pid_text(), "-n", &bench.name(&name)]);
        assert_eq!(saved.complaints(), "");
        run.ends_well();
        run = bench.run(bench.path(&name), &[]);
    }
    bench.file("gate", "");
    let ended = run.ends_well();
    assert_eq!(ended.complaints(), "");
    ended.stdout.iter().map(|line| line.trim_end().to_owned()).collect()
}

/// What a shell in a terminal runs: a program that waits for the gate and reads a line, then the shell reads one.
const IN_A_TERMINAL: &str = r#"
    stty rows 33 cols 99 -echo
    sh -c 'echo ready; until [ -e gate ]; do sleep 0.02; done; read x; echo "got $x in $(tty)"'
    read y; echo "then $y, $(stty size)"
"#;

#[test]
fn script_goes_on() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("job.sh", IN_A_TERMINAL);
        let args = ["-q", "-c", "sh job.sh", "log"];
        let lines = three_generations(&bench, "script", &args, "typed ahead\nand more");
        let tty = lines.first().and_then(|line| line.strip_prefix("got typed ahead in /dev/pts/"));
        assert!(tty.is_some_and(|number| number.parse::<u32>().is_ok()), "{lines:?}");
        assert_eq!(lines[1..], ["then and more, 33 99"]);
        let log = std::fs::read_to_string(bench.path("log")).expect("a log");
        assert!(log.contains("ready") && log.contains("then and more, 33 99"), "{log}");
    }
}
