// SPDX-License-Identifier: LGPL-2.1-only
//! Executing the checkpoint file: from anywhere, any number of times, whatever has happened since.

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use nix::sys::signal::Signal::{SIGCONT, SIGSTOP, SIGTSTP, SIGUSR1};

use harness::{Bench, Build, Run, Way, Who, catches, status_line, until};

/// Launches a subject and saves it to x.ckpt by the signal.
#[track_caller]
fn image_of(bench: &Bench, subject: &str, build: Build) -> PathBuf {
    let mut run = bench.launch(&["-n", "x.ckpt"], bench.subject(subject, build), &[]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
    bench.path("x.ckpt")
}

#[test]
fn ten_generations() {
    for (who, subject) in [(Who::Me, "memory"), (Who::Nobody, "memory"), (Who::Nobody, "signals")] {
        let bench = Bench::new(who);
        let image = image_of(&bench, subject, Build::Pie);
        let mut sizes = Vec::new();
        for generation in 2..=10 {
            let mut run = bench.run(&image, &[]);
            run.check();
            assert!(run.lives(), "generation {generation}");
            run.signal(SIGTSTP);
            run.ends_well();
            sizes.push(fs::metadata(&image).expect("the image").len());
        }
        bench.run(&image, &[]).go();
        // `memory` takes 128 pages more in each generation; nothing else may pile up.
        let growth = sizes[8] - sizes[0];
        assert!(growth <= 8 * 132 * 4096, "images grow by {growth} bytes: {sizes:?}");
    }
}

#[test]
fn a_saved_program_lives_ten_generations() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("thread", Build::Static), &[]);
    run.expect("ready");
    for generation in 1..=10 {
        let name = format!("{generation}.ckpt");
        Way::SaveStop.save(&bench, &name, run);
        run = bench.run(bench.path(name), &[]);
        run.check();
    }
    run.go();
}

/// Stopped at any moment of its restart, a program is saved whole or not at all, and goes on.
#[test]
fn saving_what_is_just_being_restarted_does_no_harm() {
    let bench = Bench::new(Who::Me);
    let image = image_of(&bench, "memory", Build::Pie);
    let mut refused = 0;
    for _ in 0..20 {
        let mut run = bench.run(&image, &[]);
        run.signal(SIGSTOP);
        let ended = bench.order(&["save", &run.pid_text(), "-n", "second.ckpt"]);
        match ended.code() {
            Some(0) => bench.run(bench.path("second.ckpt"), &[]).go(),
            _ => {
                assert!(ended.stderr.contains("stopped since its restart"), "{ended:?}");
                refused += 1;
                ended
            }
        };
        run.signal(SIGCONT);
        run.check();
        run.go();
    }
    assert!(refused > 0, "each stop came too late");
}

#[test]
fn a_restart_in_progress_is_not_saved() {
    let bench = Bench::new(Who::Nobody);
    let image = image_of(&bench, "signals", Build::Static);
    // Stopped while it is still the restarter: it has no payload yet, which lies at 0x41...
    let run = until("a restarter that could be stopped", || {
        let run = bench.run(&image, &[]);
        run.signal(SIGSTOP);
        let maps = fs::read_to_string(format!("/proc/{}/maps", run.pid())).expect("maps");
        (!maps.contains("\n410000000000-") && maps.contains("x.ckpt")).then_some(run)
    });
    let refused = bench.order(&["save", &run.pid_text(), "-n", &bench.name("y.ckpt")]);
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    assert!(refused.stderr.contains("stopped since its restart"), "{refused:?}");
    run.signal(SIGCONT);
    run.go();
}

#[test]
fn the_checkpoint_signal_waits_until_the_program_is_back() {
    let bench = Bench::new(Who::Nobody);
    let mut run =
        bench.launch(&["-a", "USR1", "-n", "x.ckpt"], bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    run.signal(SIGUSR1);
    run.ends_well();
    for _ in 0..3 {
        let run = bench.run(bench.path("x.ckpt"), &[]);
        until("a restarter that holds the signal back", || {
            let mask = status_line(run.pid(), "SigBlk")?;
            let held = u64::from_str_radix(&mask, 16).ok()? >> (SIGUSR1 as i32 - 1) & 1 == 1;
            (held || catches(run.pid(), SIGUSR1 as i32)).then_some(())
        });
        run.signal(SIGUSR1);
        run.ends_well();
        bench.must(&["verify", &bench.name("x.ckpt")]);
    }
    let mut run = bench.run(bench.path("x.ckpt"), &[]);
    run.check();
    run.go();
}

#[test]
fn from_any_directory_and_environment() {
    let bench = Bench::new(Who::Nobody);
    let image = image_of(&bench, "process", Build::Pie);
    let mut command = bench.command(&image);
    command.current_dir("/").env_clear().env("CKPT_TEST", "of the restart");
    command.env("CKPT_NAME", "ftp://evil").env("CKPT_ASYNCSIG", "0").env("CKPT_CONTINUE", "1");
    let mut run = Run::start(command);
    run.check();
    let before = fs::metadata(&image).expect("the image").modified().expect("a time");
    run.signal(SIGTSTP);
    run.ends_well();
    assert_ne!(fs::metadata(&image).expect("the image").modified().expect("a time"), before);
    let script = "mkdir gone; cd gone; rmdir ../gone; exec \"$0\"";
    bench.run("sh", &["-c", script, &image.display().to_string()]).go();
}

#[test]
fn any_number_of_times_at_once() {
    let bench = Bench::new(Who::Nobody);
    let image = image_of(&bench, "memory", Build::Pie);
    let mut runs: Vec<_> = (0..4).map(|_| bench.run(&image, &[])).collect();
    for run in &mut runs {
        run.check();
    }
    for run in runs {
        run.go();
    }
}

#[test]
fn renamed_and_copied() {
    let bench = Bench::new(Who::Nobody);
    let image = image_of(&bench, "observer", Build::Pie);
    let copy = bench.path("copy of it");
    fs::copy(&image, &copy).expect("a copy");
    bench.give(&copy);
    fs::rename(&image, bench.path("renamed")).expect("rename");
    bench.run(copy, &[]).go();
    bench.run(bench.path("renamed"), &[]).go();
}

#[test]
fn without_the_program() {
    for build in Build::ALL {
        let bench = Bench::new(Who::Nobody);
        let image = image_of(&bench, "memory", build);
        for name in bench.names("memory.") {
            fs::remove_file(bench.path(name)).expect("remove");
        }
        fs::remove_file(bench.ckpt()).expect("remove");
        let mut run = bench.run(&image, &[]);
        run.check();
        run.go();
    }
}

#[test]
fn with_other_libraries() {
    let bench = Bench::new(Who::Nobody);
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    assert!(!maps.contains("libc.so"), "the test itself is static");
    let libraries = bench.subdirectory("libraries");
    let original = bench.run("bash", &["-c", "grep -o '/.*libc.so.6' /proc/self/maps"]).end();
    let libc = original.stdout.first().expect("the path of libc").clone();
    fs::copy(libc, libraries.join("libc.so.6")).expect("a copy of libc");
    let mut command = bench.command(bench.ckpt());
    command.env("LD_LIBRARY_PATH", &libraries).args(["-n", "x.ckpt"]);
    command.arg(bench.subject("memory", Build::Pie));
    let mut run = Run::start(command);
    run.expect("ready");
    let maps = fs::read_to_string(format!("/proc/{}/maps", run.pid())).expect("maps");
    assert!(maps.contains(libraries.to_str().expect("utf-8")), "{maps}");
    run.signal(SIGTSTP);
    run.ends_well();
    fs::write(libraries.join("new"), "another library").expect("a file");
    fs::rename(libraries.join("new"), libraries.join("libc.so.6")).expect("rename");
    bench.file("memory.pie.new", "another program");
    fs::rename(bench.path("memory.pie.new"), bench.path("memory.pie")).expect("rename");
    let mut run = bench.run(bench.path("x.ckpt"), &[]);
    run.check();
    run.go();
}

#[test]
fn options_change_the_configuration() {
    let bench = Bench::new(Who::Nobody);
    let image = image_of(&bench, "observer", Build::Pie);
    // It remembers its id, and would be a child of the restarter.
    let mut run =
        bench.run(&image, &["--ids=new", "-n", &bench.name("y.ckpt"), "-c", "-a", "USR1"]);
    run.check();
    assert!(!catches(run.pid(), 20) && catches(run.pid(), 10));
    run.signal(SIGUSR1);
    until("y.ckpt", || bench.path("y.ckpt").exists().then_some(()));
    run.check();
    run.go();
    let refused = bench.run(&image, &["-a", "SIGNONE"]).end();
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    assert!(refused.stderr.contains("SIGNONE"), "{refused:?}");
    let mut run = bench.run(bench.path("y.ckpt"), &["--ids=new"]);
    run.check();
    assert!(catches(run.pid(), 10), "the new configuration is not in the new image");
    run.go();
}

#[test]
fn the_pid_is_the_restarters_and_comm_the_programs() {
    let bench = Bench::new(Who::Nobody);
    let image = image_of(&bench, "observer", Build::Pie);
    let mut run = bench.run(&image, &["--ids=new"]);
    run.check();
    assert_eq!(status_line(run.pid(), "Name").as_deref(), Some("observer.pie"));
    assert_eq!(status_line(run.pid(), "Threads").as_deref(), Some("1"));
    run.go();
}

#[test]
fn missing_files_stop_the_restart_and_all_are_named() {
    let bench = Bench::new(Who::Nobody);
    let image = image_of(&bench, "files", Build::Pie);
    for name in ["plain.data", "append.data"] {
        fs::rename(bench.path(name), bench.path(format!("kept {name}"))).expect("rename");
    }
    let ended = bench.run(&image, &[]).end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    for name in ["plain.data", "append.data", "No such file"] {
        assert!(ended.stderr.contains(name), "{name} is not named: {ended:?}");
    }
    assert_eq!(bench.names("plain"), [""; 0], "the restart made a file");
    for name in ["plain.data", "append.data"] {
        fs::rename(bench.path(format!("kept {name}")), bench.path(name)).expect("rename");
    }
    bench.run(&image, &[]).go();
}

#[test]
fn forbidden_files_stop_the_restart() {
    let bench = Bench::new(Who::Nobody);
    if nix::unistd::geteuid().is_root() && !bench.drops_privileges() {
        unreachable!("nobody is never root");
    }
    let image = image_of(&bench, "files", Build::Pie);
    let append = bench.path("append.data");
    fs::set_permissions(&append, PermissionsExt::from_mode(0o444)).expect("chmod");
    let ended = bench.run(&image, &[]).end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("append.data: Permission denied"), "{ended:?}");
    fs::set_permissions(&append, PermissionsExt::from_mode(0o644)).expect("chmod");
    bench.run(&image, &[]).go();
}

#[test]
fn a_vanished_working_directory_stops_the_restart() {
    let bench = Bench::new(Who::Nobody);
    let image = image_of(&bench, "process", Build::Pie);
    fs::rename(bench.path("below"), bench.path("away")).expect("rename");
    let ended = bench.run(&image, &[]).end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("below"), "{ended:?}");
    fs::rename(bench.path("away"), bench.path("below")).expect("rename");
    bench.run(&image, &[]).go();
}

#[test]
fn what_is_not_saved_is_named_and_closed_afterwards() {
    let bench = Bench::new(Who::Nobody);
    let script = "use Socket; $| = 1; socket(A, 40, SOCK_STREAM, 0); socket(B, 40, SOCK_STREAM, 0); print qq(ready\\n); \
                  $x = <STDIN>; syswrite(A, $x) or print qq(closed\\n); open(C, '<', '/dev/null'); \
                  print fileno(C) > fileno(B) ? qq(aside\\n) : qq(in its place\\n)";
    let mut run = bench.run("perl", &["-e", script]);
    run.expect("ready");
    let pid = run.pid_text();
    let said = bench.must(&["save", "--stop", &pid, "-n", &bench.name("x.ckpt")]);
    let complaints = said.complaints();
    assert_eq!(complaints.lines().count(), 1, "one line: {said:?}");
    assert!(complaints.contains("3 (socket"), "{said:?}");
    run.ends_well();
    let mut run = bench.run(bench.path("x.ckpt"), &[]);
    run.say("word");
    run.expect("closed");
    run.expect("aside");
    run.ends_well();
}

#[test]
fn the_programs_exit_status_is_the_restarters() {
    let bench = Bench::new(Who::Nobody);
    // raise(3), since `kill $$` would meet whoever has the old process id now.
    let script = "use POSIX; $| = 1; print qq(ready\\n); $x = <STDIN>; raise($x) if $x > 0; exit 7";
    let mut run = bench.run("perl", &["-e", script]);
    run.expect("ready");
    Way::SaveStop.save(&bench, "x.ckpt", run);
    let mut run = bench.run(bench.path("x.ckpt"), &[]);
    run.say("11");
    assert_eq!(run.end().signal(), Some(11));
    let mut run = bench.run(bench.path("x.ckpt"), &[]);
    run.say("0");
    assert_eq!(run.end().code(), Some(7));
}

#[test]
fn regular_files_as_standard_streams_are_reopened() {
    let bench = Bench::new(Who::Nobody);
    let input = bench.file("input", "one\ntwo\nthree\n");
    let output = bench.file("output", "");
    let gate = "while read x; do echo got $x; until test -e gate; do :; done; done";
    let mut command = bench.command("bash");
    command.args(["-c", &format!("exec <input >output; {gate}")]);
    let run = Run::start(command);
    until("the first line", || {
        (fs::read_to_string(&output).expect("output") == "got one\n").then_some(())
    });
    Way::SaveStop.save(&bench, "x.ckpt", run);
    bench.file("gate", "");
    bench.run(bench.path("x.ckpt"), &[]).ends_well();
    assert_eq!(fs::read_to_string(output).expect("output"), "got one\ngot two\ngot three\n");
    drop(input);
}

#[test]
fn here_documents_travel_in_the_image() {
    let bench = Bench::new(Who::Nobody);
    // As deleted files: newer shells put short ones into pipes.
    let body = "read a; echo $a; until test -e gate; do :; done; read b; echo $b";
    let script = format!("BASH_COMPAT=5.0; {{ {body}; }} <<END\nfirst\nsecond\nEND\n");
    let mut run = bench.run("bash", &["-c", &script]);
    run.expect("first");
    let link = fs::read_link(format!("/proc/{}/fd/0", run.pid())).expect("a link");
    assert!(link.to_str().is_some_and(|l| l.ends_with(" (deleted)")), "{link:?}");
    Way::SaveStop.save(&bench, "x.ckpt", run);
    bench.file("gate", "");
    let mut run = bench.run(bench.path("x.ckpt"), &[]);
    run.expect("second");
    run.ends_well();
}

/// A shell keeps its standard output under another number while a builtin is redirected.
#[test]
fn a_redirected_builtin_gets_its_standard_output_back() {
    let bench = Bench::new(Who::Nobody);
    let script = "{ echo inside; until test -e gate; do :; done; } >output; echo outside";
    let run = bench.launch(&["-n", "x.ckpt"], "bash", &["-c", script]);
    until("the redirection", || {
        fs::read_to_string(bench.path("output")).is_ok_and(|t| t == "inside\n").then_some(())
    });
    run.signal(SIGTSTP);
    run.ends_well();
    bench.file("gate", "");
    let mut run = bench.run(bench.path("x.ckpt"), &[]);
    run.expect("outside");
    run.ends_well();
}

/// Who saves or equips a program whose restart has just begun waits for it.
#[test]
fn a_restart_in_progress_is_waited_for() {
    let bench = Bench::new(Who::Nobody);
    let image = image_of(&bench, "memory", Build::Pie);
    for generation in 0..10 {
        let mut run = bench.run(&image, &[]);
        bench.must(&["-p", &run.pid_text(), "-n", &bench.name("other.ckpt"), "-c"]);
        bench.must(&["save", &run.pid_text()]);
        assert!(bench.path("other.ckpt").exists(), "{generation}: not equipped");
        fs::remove_file(bench.path("other.ckpt")).expect("the checkpoint");
        run.check();
        run.go();
    }
}
