// SPDX-License-Identifier: LGPL-2.1-only
//! Pseudo-terminals among the processes of a job: script, tmux, screen, expect and programs of our own.

mod harness;

use harness::faults::is_killed;
use harness::{Bench, Build, Ended, PATIENCE, Run, Way, Who, survive, until};
use std::time::Instant;

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

/// Nearly as much is shown as a line discipline takes, in pieces.
#[test]
fn much_that_is_shown_survives() {
    const SHOW: &str = r#"
import os, time, tty
ours, theirs = os.openpty()
tty.setraw(theirs)
shown = b"".join(b"%05d " % n for n in range(650))
for at in range(0, len(shown), 130): os.write(theirs, shown[at:at + 130])
print("ready", flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
os.write(theirs, b"end")
seen = b""
while not seen.endswith(b"end"): seen += os.read(ours, 500)
print(seen == shown + b"end", flush=True)
"#;
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let program = ["-c", SHOW];
        let lines = three_generations(&bench, "/usr/bin/python3", &program, "");
        assert_eq!(lines.last().map(String::as_str), Some("True"), "{lines:?}");
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
    // Other programs take numbers, too.
    let about_number = |line: &str| line.contains("what remembers its name (tty, who) is wrong");
    let complaints = ended.complaints();
    assert!(complaints.lines().all(about_number), "{complaints}");
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

/// Each command comes after the answer to the one before.
const DIALOGUE: &str = r#"
    set timeout 60
    spawn -noecho sh -c {stty -echo; echo begun; until [ -e gate ]; do sleep 0.02; done
        while read x; do echo "got <$x>"; done; exit 7}
    expect begun
    puts "ready"
    for {set i 0} {$i < 40} {incr i} {
        send "word $i\r"
        expect -re {got <word (\d+)>\r\n}
        if {$expect_out(1,string) != $i} { puts "wrong $i"; exit 1 }
    }
    send "\004"
    expect eof
    puts "status [lindex [wait] 3]"
"#;

#[test]
fn expect_goes_on() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("dialogue", DIALOGUE);
        let lines = three_generations(&bench, "expect", &["-f", "dialogue"], "");
        assert_eq!(lines.last().map(String::as_str), Some("status 7"), "{lines:?}");
    }
}

/// A server of tmux with a shell in it: another client attaches to it after each restart.
struct Tmux<'a> {
    bench: &'a Bench,
    clients: Vec<Run>,
}

impl Tmux<'_> {
    fn order(&self, args: &[&str]) -> Ended {
        let args = [&["TERM=xterm", "tmux", "-N", "-S", "socket"], args].concat();
        self.bench.run("env", &args).end()
    }

    /// Waits until the pane shows a text, which comes last.
    #[track_caller]
    fn shows(&self, text: &str) {
        let shown = || self.order(&["capture-pane", "-p", "-t", "s"]).stdout.join("\n");
        let begin = Instant::now();
        while !shown().contains(text) {
            assert!(begin.elapsed() < PATIENCE, "no {text} in {}", shown());
        }
    }

    /// Types a line in a terminal of its own.
    fn attach(&mut self, line: &str) {
        let command = "stty rows 24 cols 80; TERM=xterm exec tmux -S socket attach";
        let mut client = self.bench.run("script", &["-q", "-c", command, "/dev/null"]);
        // It has the terminal to itself when it shows the session.
        while !client.line().contains("sum ") {}
        client.say(line);
        self.clients.push(client);
    }
}

#[test]
fn tmux_is_attached_again() {
    const SHELL: &str = r#"
        while read x; do sum=$((sum + x)); echo "sum $sum."; done
    "#;
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("conf", "set -g default-shell /bin/sh\nset -g status off\n");
        bench.file("shell", SHELL);
        let args = ["-D", "-f", "conf", "-S", "socket"];
        let mut server = bench.launch(&["-n", "0.ckpt"], "tmux", &args);
        let mut tmux = Tmux { bench: &bench, clients: Vec::new() };
        let session = ["new-session", "-d", "-s", "s", "-x", "80", "-y", "24", "exec sh shell"];
        until("a session", || (tmux.order(&session).code() == Some(0)).then_some(()));
        tmux.order(&["send-keys", "-t", "s", "1", "Enter"]);
        tmux.shows("sum 1.");
        for generation in 0..3 {
            tmux.attach("2");
            tmux.shows(&format!("sum {}.", 3 + generation * 2));
            let name = format!("{generation}.ckpt");
            bench.must(&["save", "--stop", &server.pid_text(), "-n", &bench.name(&name)]);
            server.ends_well();
            tmux.clients.clear();
            server = bench.run(bench.path(&name), &[]);
            tmux.shows(&format!("sum {}.", 3 + generation * 2));
        }
        tmux.order(&["kill-server"]);
        server.ends_well();
    }
}
