// SPDX-License-Identifier: LGPL-2.1-only
//! Descriptors of every kind: what a restart finds under each number, and what a checkpoint says of those
//! that it cannot open again.

mod harness;

use std::fs;
use std::os::unix::process::CommandExt;

use harness::faults::stands_at;
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

/// Whether whoever runs the tests may have so many descriptors.
fn may_have(most: u64) -> bool {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE).is_ok_and(|(_, hard)| hard >= most)
}

#[test]
fn no_number_above_the_programs_own_limit_is_needed() {
    let limits = [("600", "1023", 1024), ("2", "255", 256), ("240", "250", 256)];
    for (count, high, most) in limits.into_iter().filter(|(_, _, most)| may_have(*most)) {
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
    if !may_have(1024) {
        return;
    }
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
    said.complaints()
}

#[test]
fn what_cannot_be_opened_again_is_named() {
    // A terminal whose other end is ours.
    let pty = nix::pty::openpty(None, None).expect("a pseudo-terminal");
    let name = nix::unistd::ttyname(&pty.slave).expect("its name");
    fs::set_permissions(&name, std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .expect("its mode");
    let terminal = format!("f = open({:?}, 'rb', 0)", name.to_str().expect("utf-8"));
    for (script, named) in [
        ("f = open('/proc/1/stat')", "about another process"),
        (
            "import os, threading; e = threading.Event(); t = threading.Thread(target=e.wait, daemon=True); \
          t.start(); f = open(f'/proc/self/task/{t.native_id}/comm')",
            "about a thread",
        ),
        (&*terminal, "a terminal that is not the program's own"),
        (
            "import socket\ndef new(*kind):\n  try: return socket.socket(*kind)\n  except OSError: pass\n\
             s = new(socket.AF_VSOCK, socket.SOCK_STREAM) or new(socket.AF_ALG, socket.SOCK_SEQPACKET)",
            "of a kind that",
        ),
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

#[test]
fn what_was_in_the_pipe_of_standard_input_is_read_first() {
    let bench = Bench::new(Who::Nobody);
    let script = "import os, sys, time; print('ready', flush=True)\n\
                  while not os.path.exists('gate'): time.sleep(0.01)\n\
                  for line in sys.stdin: print(line.strip(), flush=True); line.strip() == 'end' and sys.exit()";
    for way in [Way::SaveStop, Way::Launch] {
        let image = format!("{way:?}.ckpt");
        let mut run = way.start(&bench, &image, "/usr/bin/python3".as_ref(), &["-c", script]);
        run.expect("ready");
        run.say("one");
        run.say("two");
        if way == Way::SaveStop {
            let pid = run.pid_text();
            let said = bench.must(&["save", "--stop", &pid, "-n", &bench.name(&image)]);
            assert!(said.stderr.contains("standard input"), "{said:?}");
            run.ends_well();
        } else {
            way.save(&bench, &image, run);
        }
        // The unread bytes travel on: a second generation that has not read them either.
        let again = bench.run(bench.path(&image), &[]);
        Way::SaveStop.save(&bench, "second.ckpt", again);
        bench.file("gate", "");
        let mut third = bench.run(bench.path("second.ckpt"), &[]);
        third.say("three");
        third.say("end");
        for line in ["one", "two", "three", "end"] {
            third.expect(line);
        }
        third.ends_well();
        fs::remove_file(bench.path("gate")).expect("the gate");
    }
}

#[test]
fn a_pipe_of_the_shell_is_nobodys_loss() {
    let bench = Bench::new(Who::Nobody);
    let program = bench.subject("counter", Build::Pie);
    let shell = "exec 7< <(sleep 60); echo shell $!; (echo $BASHPID; exec \"$0\" counted <&8) & wait; kill $(jobs -p) 2>&-";
    let mut command = bench.command("bash");
    command.args(["-c", &format!("exec 8<&0; {shell}")]).arg(&program);
    let mut run = Run::start(command);
    let helper = run.line();
    let pid = run.line();
    run.expect("ready");
    let said = bench.must(&["save", "--stop", &pid, "-n", &bench.name("x.ckpt")]);
    assert_eq!(said.complaints(), "");
    let helper: i32 = helper.trim_start_matches("shell ").parse().expect("a pid");
    let helper = nix::unistd::Pid::from_raw(helper);
    nix::sys::signal::kill(helper, nix::sys::signal::Signal::SIGTERM).expect("the other end");
    run.end();
}

#[test]
fn lines_of_ckpts_own_make_no_log_grow() {
    use std::io::Write;
    let bench = Bench::new(Who::Nobody);
    let log = bench.file("log", "");
    let script = "exec 2>>log; echo first >&2; echo ready; read x; echo last >&2";
    let mut run = bench.run("bash", &["-c", script]);
    run.expect("ready");
    Way::SaveStop.save(&bench, "x.ckpt", run);
    let mut file = fs::File::options().append(true).open(&log).expect("the log");
    writeln!(file, "ckpt: not saved: something").expect("a line");
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.say("");
    assert_eq!(again.ends_well().stderr, "");
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.say("");
    let said = again.ends_well().stderr;
    let named =
        ["log is ", "was 6 at the checkpoint", "goes on writing at its end", "the last 32 bytes"];
    assert!(named.iter().all(|n| said.contains(n)), "{said}");
}

/// What a signal's dumper may not have is said once, with the way out.
#[test]
fn a_dumper_without_descriptors_is_one_sentence() {
    let bench = Bench::new(Who::Nobody);
    let mut run =
        bench.launch(&["-n", "x.ckpt"], bench.subject("edges", Build::Pie), &["nofollow"]);
    run.expect("ready");
    let mut command = bench.command("prlimit");
    command.args(["--nofile=8:8", "--pid", &run.pid_text()]);
    Run::start(command).ends_well();
    run.signal(nix::sys::signal::Signal::SIGTSTP);
    run.complaint("`ckpt save` from outside may");
    run.check();
    let said = run.stderr();
    assert_eq!(said.matches("no checkpoint: ").count(), 1, "{said}");
    run.go();
}

/// The handler of the checkpoint signal holds the dumper by a descriptor for moments, in which it may be stopped.
#[test]
fn a_descriptor_of_the_dumper_is_no_loss() {
    let bench = Bench::new(Who::Me);
    // pidfd_open(2)
    let script = "$| = 1; print \"ready\\n\"; my $fd = syscall(434, <STDIN> + 0, 0); print $fd > 2 ? \"held\\n\" : \"not\\n\"; \
                  <STDIN>; print readlink(\"/proc/self/fd/$fd\"), \"\\n\"";
    let mut run = bench.launch(&["-n", "x.ckpt"], "perl", &["-e", script]);
    run.expect("ready");
    let save = stands_at(&bench, "begun", &["save", "--stop", &run.pid_text()]);
    run.say(&save.pid_text());
    run.expect("held");
    save.signal(nix::sys::signal::Signal::SIGCONT);
    let saved = save.end();
    assert!(saved.code() == Some(0) && !saved.stderr.contains("pidfd"), "{saved:?}");
    run.end();
    let mut run = bench.run(bench.path("x.ckpt"), &[]);
    run.say("");
    run.expect("anon_inode:[pidfd]");
    run.ends_well();
}
