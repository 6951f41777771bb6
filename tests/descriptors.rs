//! Descriptors of every kind: what a restart finds under each number, and what a checkpoint says of those
//! that it cannot open again.

mod harness;

use std::fs;
use std::os::unix::process::CommandExt;

use harness::{Bench, Build, Run, Way, Who, survive};

macro_rules! survives {
    ($($subject:ident)*) => {$(
        mod $subject {
            use super::*;

            #[test]
            fn saved() {
                survive(Who::Me, Way::Save, stringify!($subject), Build::Pie, &[]);
            }

            #[test]
            fn launched_unprivileged() {
                survive(Who::Nobody, Way::Launch, stringify!($subject), Build::Pie, &[]);
            }
        }
    )*};
}

survives! { nameless ends hangup }

/// A command under a limit on descriptors that it cannot raise.
fn limited(bench: &Bench, program: &std::path::Path, args: &[&str], most: u64) -> Run {
    let mut command = bench.command("sh");
    let script = format!("ulimit -n {most}; exec \"$0\" \"$@\"");
    command.args(["-c", &script]).arg(program).args(args);
    command.arg0("sh");
    Run::start(command)
}

#[test]
fn no_number_above_the_programs_own_limit_is_needed() {
    for (count, high, most) in [("600", "1023", 1024), ("2", "255", 256), ("240", "250", 256)] {
        let bench = Bench::new(Who::Nobody);
        let mut run = limited(&bench, &bench.subject("many", Build::Pie), &[count, high], most);
        run.expect("ready");
        run.check();
        Way::SaveStop.save(&bench, "x.ckpt", run);
        let mut again = limited(&bench, &bench.path("x.ckpt"), &[], most);
        again.check();
        again.go();
    }
}

#[test]
fn a_number_above_the_limit_is_refused_with_the_way_out() {
    let bench = Bench::new(Who::Nobody);
    let run = bench.run(bench.subject("many", Build::Pie), &["3", "500"]);
    let mut run = run;
    run.expect("ready");
    Way::SaveStop.save(&bench, "x.ckpt", run);
    if !bench.drops_privileges() && nix::unistd::geteuid().is_root() {
        return;
    }
    let ended = limited(&bench, &bench.path("x.ckpt"), &[], 100).end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("500") && ended.stderr.contains("ulimit"), "{ended:?}");
}

/// Saves a program of the shell or another language with `--stop`; what was said of it.
#[track_caller]
fn losses(bench: &Bench, program: &str, script: &str) -> String {
    let flag = if program == "python3" { "-c" } else { "-e" };
    let mut run = bench.run(program, &[flag, script]);
    run.expect("ready");
    let said = bench.must(&["save", "--stop", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    run.ends_well();
    said.stderr
}

#[test]
fn what_cannot_be_opened_again_is_named() {
    for (script, named) in [
        ("import fcntl; f = open('lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX)", "the lock on"),
        ("import fcntl; f = open('lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX)", "the lock on"),
        ("f = open('/proc/1/stat')", "about another process"),
        (
            "import os, threading; e = threading.Event(); t = threading.Thread(target=e.wait, daemon=True); \
          t.start(); f = open(f'/proc/self/task/{t.native_id}/comm')",
            "about a thread",
        ),
        ("import os; m, s = os.openpty()", "a terminal that is not the program's own"),
        (
            "import os; os.mkdir('d'); f = os.open('d', os.O_RDONLY); os.rmdir('d')",
            "a directory that was removed",
        ),
        ("import socket; a, b = socket.socketpair()", "a connection"),
    ] {
        let bench = Bench::new(Who::Nobody);
        let whole = format!("{script}\nprint('ready', flush=True)\ninput()");
        let said = losses(&bench, "python3", &whole);
        assert!(said.contains("not saved") && said.contains(named), "{script}: {said}");
        let mut run = bench.run(bench.path("x.ckpt"), &[]);
        run.say("");
        run.ends_well();
    }
}

#[test]
fn a_file_of_ones_own_is_opened_whatever_its_mode() {
    let bench = Bench::new(Who::Nobody);
    let script = "import os; f = os.open('out', os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444); \
                  os.write(f, b'one '); print('ready', flush=True); input(); os.write(f, b'two')";
    let said = losses(&bench, "python3", script);
    assert_eq!(said, "");
    let mut run = bench.run(bench.path("x.ckpt"), &[]);
    run.say("");
    run.ends_well();
    assert_eq!(fs::read_to_string(bench.path("out")).expect("the file"), "one two");
    let mode = fs::metadata(bench.path("out")).expect("the file").permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o444);
}

#[test]
fn another_file_under_the_name_is_not_the_programs() {
    let bench = Bench::new(Who::Nobody);
    let script = "import os; f = open('data', 'w+'); f.write('mine'); f.flush(); os.rename('data', 'moved'); \
                  g = open('data', 'w'); g.write('other'); g.close(); os.unlink('moved'); \
                  print('ready', flush=True); input(); f.seek(0); print(f.read(), flush=True)";
    losses(&bench, "python3", script);
    let mut run = bench.run(bench.path("x.ckpt"), &[]);
    run.say("");
    run.expect("mine");
    run.ends_well();
    assert_eq!(fs::read_to_string(bench.path("data")).expect("the file"), "other");
}

#[test]
fn a_set_that_watches_standard_input_meets_dev_null() {
    let bench = Bench::new(Who::Nobody);
    let script = "import select, os; e = select.epoll(); e.register(0, select.EPOLLIN); \
                  print('ready', flush=True); e.poll(60); print(len(os.read(0, 10)), flush=True)";
    losses(&bench, "python3", script);
    let mut command = bench.command("sh");
    command.args(["-c", "exec ./x.ckpt </dev/null"]);
    let mut run = Run::start(command);
    run.expect("0");
    run.ends_well();
}
