// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt PROGRAM`: the program runs as if it had been executed directly, and is equipped.

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal::{SIGTSTP, SIGUSR1, SIGUSR2};

use harness::{Bench, Build, Run, Way, Who, catches, status_line};

const SIGTSTP_NUMBER: i32 = 20;
const SIGUSR1_NUMBER: i32 = 10;

#[test]
fn the_binary_is_static_stripped_and_small() {
    let bench = Bench::new(Who::Me);
    let bytes = fs::read(bench.ckpt()).expect("the binary");
    assert!(bytes.len() <= 2 << 20, "{} bytes are more than 2 MiB", bytes.len());
    let elf = goblin::elf::Elf::parse(&bytes).expect("an ELF file");
    assert_eq!(elf.interpreter, None);
    assert!(elf.libraries.is_empty(), "{:?}", elf.libraries);
    assert_eq!(elf.syms.len(), 0, "the binary is not stripped");
}

#[test]
fn the_exit_status_is_the_programs() {
    for build in Build::ALL {
        let bench = Bench::new(Who::Nobody);
        let program = bench.subject("status", build);
        for code in [0, 1, 33, 125, 255] {
            let ended = bench.launch(&[], &program, &["exit", &code.to_string()]).end();
            assert_eq!(ended.code(), Some(code), "{build:?}: {ended:?}");
            assert_eq!(ended.stderr, "");
        }
        for signal in [9, 11, 15] {
            let ended = bench.launch(&[], &program, &["signal", &signal.to_string()]).end();
            assert_eq!(ended.signal(), Some(signal), "{build:?}: {ended:?}");
        }
    }
}

#[test]
fn arguments_environment_and_pid_are_the_same() {
    for build in Build::ALL {
        let bench = Bench::new(Who::Nobody);
        let program = bench.subject("status", build);
        let args = ["print", "", "a b", "-n", "--", "-c"];
        let run = bench.launch(&["-n", "x.ckpt"], &program, &args);
        let pid = format!("pid {}", run.pid());
        let launched = run.ends_well();
        assert_eq!(launched.stdout.last(), Some(&pid), "{build:?}");
        let mut direct = bench.run(&program, &args).ends_well();
        *direct.stdout.last_mut().expect("lines") = pid;
        assert_eq!(launched.stdout, direct.stdout, "{build:?}");
        assert_eq!(launched.stderr, "");
    }
}

#[test]
fn the_program_is_found_in_the_path() {
    let bench = Bench::new(Who::Nobody);
    let ended = bench.launch(&[], "expr", &["40", "+", "2"]).ends_well();
    assert_eq!(ended.stdout, ["42"]);
}

#[test]
fn options_end_at_the_program() {
    let bench = Bench::new(Who::Nobody);
    let ended = bench.order(&["-c", "echo", "-n", "x", "-c"]);
    assert_eq!(ended.stdout, ["x -c"]);
}

#[test]
fn standard_streams_are_passed_on() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.launch(&[], "sh", &["-c", "read a; echo out $a; echo err $a >&2"]);
    run.say("word");
    let ended = run.ends_well();
    assert_eq!(ended.stdout, ["out word"]);
    assert_eq!(ended.stderr, "err word\n");
}

#[test]
fn scripts_run_by_their_interpreter() {
    let bench = Bench::new(Who::Nobody);
    let script = bench.file("script", "#!/bin/sh -e\necho $0 $1; read x; echo $x; exit 7\n");
    let mut run = bench.launch(&[], &script, &["one"]);
    run.expect(&format!("{} one", script.display()));
    run.signal(SIGTSTP);
    run.ends_well();
    let mut run = bench.run(bench.path("script.ckpt"), &[]);
    run.say("two");
    run.expect("two");
    assert_eq!(run.end().code(), Some(7));
}

#[test]
fn nothing_is_left_in_the_program() {
    for (who, build) in [Who::Me, Who::Nobody].into_iter().flat_map(|w| Build::ALL.map(|b| (w, b)))
    {
        let bench = Bench::new(who);
        let mut run = bench.launch(&[], bench.subject("observer", build), &[]);
        run.expect("ready");
        seen_from_outside(&run);
        run.go();
    }
}

/// What ps shows of a program with one thread and nothing else.
#[track_caller]
fn seen_from_outside(run: &Run) {
    let pid = run.pid();
    let read = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).expect("a directory");
    let mut fds: Vec<_> = read("fd").map(|e| e.expect("an entry").file_name()).collect();
    fds.sort();
    assert_eq!(fds, ["0", "1", "2"]);
    assert_eq!(read("task").count(), 1);
    assert_eq!(status_line(pid, "Threads").as_deref(), Some("1"));
    assert_eq!(status_line(pid, "TracerPid").as_deref(), Some("0"));
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    assert_eq!(children.unwrap_or_default(), "");
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(|e| e.ok());
    for other in processes.filter_map(|e| e.file_name().to_str()?.parse().ok()) {
        assert_ne!(status_line(other, "PPid"), Some(pid.to_string()), "{other} is a child");
    }
}

#[test]
fn a_restarted_program_shows_nothing_either() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.launch(&[], bench.subject("observer", Build::Pie), &[]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
    // It remembers its id, and would be a child of the restarter.
    let mut run = bench.run(bench.path("observer.pie.ckpt"), &["--ids=new"]);
    run.check();
    seen_from_outside(&run);
    run.go();
}

/// "ready", the signal, the end, and the restart of `image`.
#[track_caller]
fn saved_by_signal(bench: &Bench, mut run: Run, image: &str) -> Run {
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
    bench.run(bench.path(image), &[])
}

#[test]
fn the_default_name_is_the_programs_in_the_starting_directory() {
    let bench = Bench::new(Who::Nobody);
    // The subject changes its working directory before it is ready.
    let run = bench.launch(&[], bench.subject("process", Build::Pie), &[]);
    saved_by_signal(&bench, run, "process.pie.ckpt").go();
    assert!(bench.names("below").len() == 1 && !bench.path("below/process.pie.ckpt").exists());
}

#[test]
fn names_come_from_options_and_environment() {
    let bench = Bench::new(Who::Nobody);
    let program = bench.subject("process", Build::Pie);
    let launch = |variables: &[(&str, &str)], options: &[&str]| {
        let mut command = bench.command(bench.ckpt());
        command.envs(variables.iter().copied()).args(options).arg(&program);
        Run::start(command)
    };
    saved_by_signal(&bench, launch(&[], &["-n", "option"]), "option").go();
    saved_by_signal(&bench, launch(&[], &["-n", "file://local"]), "local").go();
    saved_by_signal(&bench, launch(&[("CKPT_NAME", "variable")], &[]), "variable").go();
    let both = launch(&[("CKPT_NAME", "loser")], &["-n", "winner"]);
    saved_by_signal(&bench, both, "winner").go();
    assert!(!bench.path("loser").exists());
}

#[test]
fn signals_go_by_number_and_name() {
    let bench = Bench::new(Who::Nobody);
    let program = bench.subject("observer", Build::Pie);
    for signal in ["10", "SIGUSR1", "USR1", "usr1", "sigusr1"] {
        let mut run = bench.launch(&["-a", signal], &program, &[]);
        run.expect("ready");
        assert!(catches(run.pid(), SIGUSR1_NUMBER), "-a {signal}");
        assert!(!catches(run.pid(), SIGTSTP_NUMBER), "-a {signal}");
        run.signal(SIGUSR1);
        run.ends_well();
        bench.run(bench.path("observer.pie.ckpt"), &[]).go();
    }
    let mut command = bench.command(bench.ckpt());
    command.env("CKPT_ASYNCSIG", "USR1").args(["-a", "usr2"]).arg(&program);
    let mut run = Run::start(command);
    run.expect("ready");
    assert!(!catches(run.pid(), SIGUSR1_NUMBER));
    run.signal(SIGUSR2);
    run.ends_well();
}

#[test]
fn no_signal_is_taken_with_asyncsig_0() {
    let bench = Bench::new(Who::Nobody);
    let mut command = bench.command(bench.ckpt());
    command.env("CKPT_ASYNCSIG", "0").arg(bench.subject("observer", Build::Pie));
    let mut run = Run::start(command);
    run.expect("ready");
    assert!(!catches(run.pid(), SIGTSTP_NUMBER));
    Way::SaveStop.save(&bench, "x.ckpt", run);
    let mut run = bench.run(bench.path("x.ckpt"), &[]);
    run.check();
    assert!(!catches(run.pid(), SIGTSTP_NUMBER));
    run.go();
}

#[test]
fn continue_comes_from_option_and_environment() {
    let bench = Bench::new(Who::Nobody);
    let program = bench.subject("observer", Build::Pie);
    for (variable, options) in [("0", &["-c"][..]), ("1", &[])] {
        let mut command = bench.command(bench.ckpt());
        command.env("CKPT_CONTINUE", variable).args(options).arg(&program);
        let mut run = Run::start(command);
        run.expect("ready");
        for name in ["first", "second"] {
            let image = bench.path("observer.pie.ckpt");
            run.signal_until(SIGTSTP, "the checkpoint", |_| image.exists());
            run.check();
            fs::rename(image, bench.path(name)).expect("rename");
        }
        run.go();
        for name in ["first", "second"] {
            let mut run = bench.run(bench.path(name), &[]);
            // The image may have been taken while the subject had read a part of a line.
            run.say("");
            run.expect("ok");
            run.go();
        }
    }
}

#[test]
fn bad_values_are_refused_with_the_value() {
    let bench = Bench::new(Who::Nobody);
    let values = [
        ("CKPT_NAME", "ftp://there", "ftp://"),
        ("CKPT_ASYNCSIG", "SIGNONE", "SIGNONE"),
        ("CKPT_ASYNCSIG", "99", "99"),
        ("CKPT_ASYNCSIG", "KILL", "KILL"),
        ("CKPT_CONTINUE", "perhaps", "perhaps"),
        ("CKPT_MSPERIOD", "-5", "-5"),
    ];
    for (name, value, named) in values {
        let mut command = bench.command(bench.ckpt());
        let ended = Run::start({
            command.env(name, value).args(["echo", "ran"]);
            command
        });
        refused(&ended.end(), named);
    }
    for args in [&["-n", "ftp://there"][..], &["-a", "SIGNONE"], &["-a", "65"], &["-a", "9"]] {
        refused(&bench.order(&[args, &["echo", "ran"]].concat()), args[1]);
    }
    refused(&bench.order(&["--no-such-option", "echo"]), "--no-such-option");
    refused(&bench.order(&["-n"]), "-n");
    refused(&bench.order(&["-p", "12x"]), "12x");
}

/// Status 125, a sentence that names the value, and nothing done.
#[track_caller]
fn refused(ended: &harness::Ended, named: &str) {
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.starts_with("ckpt: "), "{ended:?}");
    assert!(ended.stderr.contains(named), "{named} is not named: {ended:?}");
    assert!(ended.stdout.is_empty(), "{ended:?}");
}

#[test]
fn programs_that_cannot_run() {
    let bench = Bench::new(Who::Nobody);
    let missing = bench.launch(&[], "no-such-program", &[]).end();
    assert_eq!(missing.code(), Some(127), "{missing:?}");
    assert!(missing.stderr.contains("no-such-program"), "{missing:?}");
    let plain = bench.file("plain", "text\n");
    fs::set_permissions(&plain, PermissionsExt::from_mode(0o644)).expect("chmod");
    let forbidden = bench.launch(&[], &plain, &[]).end();
    assert_eq!(forbidden.code(), Some(126), "{forbidden:?}");
    assert!(forbidden.stderr.contains("plain: Permission denied"), "{forbidden:?}");
    let directory = bench.launch(&[], &bench.dir, &[]).end();
    assert_eq!(directory.code(), Some(126), "{directory:?}");
    let lost = bench.file("lost", "#!/no/such/interpreter\n");
    let ended = bench.launch(&[], &lost, &[]).end();
    assert!(matches!(ended.code(), Some(126 | 127)), "{ended:?}");
    assert!(ended.stderr.contains("lost"), "{ended:?}");
}

#[test]
fn help_and_version() {
    let bench = Bench::new(Who::Nobody);
    let help = bench.must(&["--help"]).stdout.join("\n");
    for word in ["ckpt", "-n", "-c", "-a", "-p", "save", "verify", "help"] {
        assert!(help.contains(word), "{word} is missing in {help}");
    }
    let save = bench.must(&["help", "save"]).stdout.join("\n");
    assert!(save.contains("--stop") && save.contains("-n"), "{save}");
    let version = bench.must(&["--version"]).stdout;
    assert_eq!(version, [format!("ckpt {}", env!("CARGO_PKG_VERSION"))]);
    refused(&bench.order(&["help", "no-such-command"]), "no-such-command");
    assert_eq!(bench.order(&[]).code(), Some(125), "no arguments");
}
