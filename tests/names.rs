// SPDX-License-Identifier: LGPL-2.1-only
//! What a checkpoint's name may lead to: whose rights count, and what is replaced.

mod harness;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::sys::signal::Signal::SIGTSTP;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, chown, geteuid};

use harness::{Bench, Build, Run, Who, until};

const NOBODY: u32 = 65534;

fn owner(path: &Path) -> u32 {
    fs::metadata(path).expect("a file").uid()
}

fn give(path: &Path, user: u32) {
    chown(path, Some(Uid::from_raw(user)), Some(Gid::from_raw(user))).expect("chown");
}

/// Runs `ckpt ARGS` as root in the bench of somebody else.
fn as_root(bench: &Bench, args: &[&str]) -> harness::Ended {
    let mut command = std::process::Command::new(bench.ckpt());
    command.args(args).current_dir("/").env_clear().env("PATH", "/usr/bin:/bin");
    Run::start(command).end()
}

#[test]
fn a_program_names_no_file_that_it_may_not_write() {
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Nobody);
    let (theirs, ours) = (bench.subdirectory("theirs"), bench.subdirectory("ours"));
    let mut run = bench.launch(&["-n", "theirs/x.ckpt"], bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    let pid = run.pid_text();
    let ended = as_root(&bench, &["save", &pid]);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert_eq!(owner(&theirs.join("x.ckpt")), NOBODY);
    // The name now leads to where the program may not write, as any name that it has in its memory.
    fs::remove_file(theirs.join("x.ckpt")).expect("the checkpoint");
    give(&ours, 0);
    fs::remove_dir(&theirs).expect("theirs");
    symlink("ours", &theirs).expect("a link");
    let ended = as_root(&bench, &["save", &pid]);
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("x.ckpt") && ended.stderr.contains("ermission"), "{ended:?}");
    assert_eq!(fs::read_dir(&ours).expect("ours").count(), 0);
    let own = ours.join("own.ckpt").into_os_string().into_string().expect("utf-8");
    let ended = as_root(&bench, &["save", &pid, "-n", &own]);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert_eq!(owner(Path::new(&own)), 0);
    run.check();
    run.go();
}

#[test]
fn a_monitor_of_root_writes_as_the_program_may() {
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    let name = bench.name("x.%n.ckpt");
    let ended = as_root(&bench, &["-p", &run.pid_text(), "-z", "50", "--keep", "2", "-n", &name]);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    until("the third checkpoint", || bench.path("x.3.ckpt").exists().then_some(()));
    run.check();
    run.go();
    let names = bench.names("x.");
    assert!(names.len() <= 3, "{names:?}");
    assert!(names.iter().all(|name| owner(&bench.path(name)) == NOBODY), "{names:?}");
    let refused = bench.subdirectory("ours");
    give(&refused, 0);
    let mut run = bench.run(bench.path("memory.pie"), &[]);
    run.expect("ready");
    let name = bench.name("ours/x.ckpt");
    let ended = as_root(&bench, &["-p", &run.pid_text(), "-z", "50", "-n", &name]);
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    run.go();
}

#[test]
fn only_checkpoints_are_replaced() {
    let bench = Bench::new(Who::Nobody);
    let subject = bench.subject("memory", Build::Pie);
    let data = bench.file("results.txt", "a week of work\n");
    nix::unistd::mkfifo(&bench.path("fifo"), Mode::S_IRWXU).expect("a FIFO");
    let socket = std::os::unix::net::UnixListener::bind(bench.path("socket")).expect("a socket");
    symlink("results.txt", bench.path("link")).expect("a link");
    let refused = |name: &str, why: &str| {
        let ended = bench.launch(&["-n", name], &subject, &[]).end();
        assert_eq!(ended.code(), Some(125), "{name}: {ended:?}");
        assert!(ended.stderr.contains(why), "{name}: {ended:?}");
        assert!(ended.stdout.is_empty(), "the program began: {ended:?}");
    };
    refused("results.txt", "no checkpoint");
    refused("memory.pie", "no checkpoint");
    refused("link", "no checkpoint");
    refused("/dev/null", "a device");
    refused("fifo", "a FIFO");
    refused("socket", "a socket");
    refused("no/such/directory", "No such file");
    drop(socket);
    assert_eq!(fs::read(&data).expect("the data"), b"a week of work\n");
    let mut run = bench.launch(&["-c", "-n", "x.ckpt"], &subject, &[]);
    run.expect("ready");
    let pid = run.pid_text();
    for name in ["results.txt", "/dev/null", "fifo"] {
        let ended = bench.order(&["save", &pid, "-n", name]);
        assert_eq!(ended.code(), Some(125), "{name}: {ended:?}");
    }
    bench.must(&["save", &pid]);
    bench.must(&["save", &pid]);
    // What takes the name while the program runs is safe, too.
    fs::remove_file(bench.path("x.ckpt")).expect("the checkpoint");
    bench.file("x.ckpt", "else");
    run.signal(SIGTSTP);
    run.complaint("no checkpoint");
    assert_eq!(fs::read(bench.path("x.ckpt")).expect("the file"), b"else");
    run.go();
}

#[test]
fn links_are_followed_where_nobody_else_has_put_them() {
    let bench = Bench::new(Who::Nobody);
    let subject = bench.subject("memory", Build::Pie);
    bench.subdirectory("far");
    symlink("far/x.ckpt", bench.path("x.ckpt")).expect("a link");
    let mut run = bench.launch(&["-c", "-n", "x.ckpt"], &subject, &[]);
    run.expect("ready");
    bench.must(&["save", &run.pid_text()]);
    bench.must(&["save", &run.pid_text()]);
    assert!(fs::symlink_metadata(bench.path("x.ckpt")).expect("the link").is_symlink());
    bench.must(&["verify", "far/x.ckpt"]);
    let shared = bench.subdirectory("shared");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).expect("chmod");
    symlink("../far/x.ckpt", shared.join("x.ckpt")).expect("a link");
    let ended = bench.order(&["save", &run.pid_text(), "-n", "shared/x.ckpt"]);
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("symbolic link"), "{ended:?}");
    run.go();
}

#[test]
fn names_that_others_take_are_no_obstacle() {
    let bench = Bench::new(Who::Nobody);
    let mut run =
        bench.launch(&["-c", "-n", "x.%n.ckpt"], bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    // A number that no checkpoint has, and files that are none, neither count nor go.
    for name in ["x.18446744073709551615.ckpt", "x.900.ckpt", "x.901.ckpt"] {
        bench.file(name, "not ours");
    }
    bench.must(&["-p", &run.pid_text(), "--keep", "1"]);
    bench.must(&["save", &run.pid_text()]);
    bench.must(&["save", &run.pid_text()]);
    let expected =
        ["x.18446744073709551615.ckpt", "x.900.ckpt", "x.901.ckpt", "x.903.ckpt"].map(String::from);
    assert_eq!(bench.names("x."), expected);
    run.go();
}

/// Saves a subject and ends it; the file belongs to the bench's owner.
fn saved(bench: &Bench, options: &[&str], args: &[&str]) {
    let mut run = bench.launch(options, bench.path("memory.pie"), args);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
}

#[test]
fn checkpoints_of_others_are_not_resumed() {
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Nobody);
    let subject = bench.subject("memory", Build::Pie);
    let shared = bench.subdirectory("shared");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).expect("chmod");
    saved(&bench, &["-n", "shared/x.%n.ckpt"], &[]);
    fs::copy(shared.join("x.1.ckpt"), shared.join("x.999.ckpt")).expect("a copy");
    give(&shared.join("x.999.ckpt"), 12345);
    let line = ["--resume", "-n", "shared/x.%n.ckpt"];
    let mut run = bench.launch(&line, &subject, &[]);
    run.complaint("passed over");
    run.check();
    run.go();
    fs::rename(shared.join("x.999.ckpt"), shared.join("y.ckpt")).expect("rename");
    fs::set_permissions(shared.join("y.ckpt"), fs::Permissions::from_mode(0o755)).expect("chmod");
    let refused = |options: &[&str], why: &str| {
        let ended = bench.launch(options, &subject, &[]).end();
        assert_eq!(ended.code(), Some(125), "{ended:?}");
        assert!(ended.stderr.contains(why), "{ended:?}");
        assert!(ended.stdout.is_empty(), "the program began: {ended:?}");
    };
    refused(&["--resume", "-n", "shared/y.ckpt"], "another user (12345)");
    let line = ["--resume", "--keep-finished", "--trust", "-n", "shared/y.ckpt"];
    let mut run = bench.launch(&line, &subject, &[]);
    run.check();
    run.go();
    give(&shared.join("y.ckpt"), NOBODY);
    fs::set_permissions(shared.join("y.ckpt"), fs::Permissions::from_mode(0o722)).expect("chmod");
    refused(&["--resume", "-n", "shared/y.ckpt"], "written by others");
    fs::set_permissions(shared.join("y.ckpt"), fs::Permissions::from_mode(0o700)).expect("chmod");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).expect("chmod");
    refused(&["--resume", "-n", "shared/y.ckpt"], "replaced by others");
    // Root is asked before it executes what a user has made.
    let name = bench.name("shared/y.ckpt");
    let ended = as_root(&bench, &["restart", &name]);
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("--trust"), "{ended:?}");
}

#[test]
fn another_runs_checkpoint_is_not_resumed() {
    let bench = Bench::new(Who::Nobody);
    let subject = bench.subject("memory", Build::Pie);
    saved(&bench, &["-n", "x.ckpt"], &["a"]);
    let resumed = |options: &[&str], args: &[&str]| {
        bench.launch(&[&["--resume", "-n", "x.ckpt"], options].concat(), &subject, args)
    };
    let refused = |run: Run, why: &str| {
        let ended = run.end();
        assert_eq!(ended.code(), Some(125), "{ended:?}");
        assert!(ended.stderr.contains(why) && ended.stderr.contains("--resume=any"), "{ended:?}");
    };
    refused(resumed(&[], &["b"]), "command line");
    refused(resumed(&[], &[]), "command line");
    let mut command = bench.command(bench.ckpt());
    command.current_dir("/").args(["--resume", "-n", &bench.name("x.ckpt"), "--"]);
    command.arg(&subject).arg("a");
    refused(Run::start(command), "directory");
    let mut run = resumed(&[], &["a"]);
    run.check();
    run.signal(SIGTSTP);
    run.ends_well();
    // Another program of the same name, as after a new build.
    fs::copy(bench.subject("memory", Build::Static), &subject).expect("another program");
    refused(resumed(&[], &["a"]), "was changed");
    let mut command = bench.command(bench.ckpt());
    command.args(["--resume=any", "-n", "x.ckpt", "--"]).arg(&subject).arg("b");
    let mut run = Run::start(command);
    run.check();
    run.go();
}

#[test]
fn a_default_name_is_of_one_command_line() {
    let bench = Bench::new(Who::Nobody);
    let subject = bench.subject("memory", Build::Pie);
    saved(&bench, &[], &["a"]);
    let ended = bench.launch(&[], &subject, &["b"]).end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("memory.pie a"), "{ended:?}");
    assert!(ended.stderr.contains("--replace"), "{ended:?}");
    saved(&bench, &[], &["a"]);
    saved(&bench, &["-n", "b.ckpt"], &["b"]);
    saved(&bench, &["--replace"], &["b"]);
    let ended = bench.launch(&[], &subject, &["a"]).end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    bench.launch(&["--replace"], &subject, &["a"]).go();
}

#[test]
fn an_emptied_output_is_not_filled_with_zeros() {
    let bench = Bench::new(Who::Nobody);
    let out = bench.file("out", "");
    let mut command = bench.command("/bin/bash");
    let ckpt = bench.name("ckpt");
    let script = format!("exec {ckpt} -n x.ckpt -- bash -c 'echo begun; read x; echo done' > out");
    command.args(["-c", &script]);
    let run = Run::start(command);
    until("the first line", || (!fs::read(&out).expect("out").is_empty()).then_some(()));
    run.signal(SIGTSTP);
    run.ends_well();
    fs::write(&out, "").expect("an empty file");
    let ended = bench.run(bench.path("x.ckpt"), &[]).end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("goes on at byte 6"), "{ended:?}");
    fs::write(&out, "begun\n").expect("its content");
    let mut run = bench.run(bench.path("x.ckpt"), &[]);
    run.say("");
    run.ends_well();
    assert_eq!(fs::read(&out).expect("out"), b"begun\ndone\n");
}

#[test]
fn what_was_cut_off_says_so() {
    let bench = Bench::new(Who::Nobody);
    bench.subject("memory", Build::Pie);
    saved(&bench, &["-n", "x.ckpt"], &[]);
    let bytes = fs::read(bench.path("x.ckpt")).expect("the checkpoint");
    let cut = bench.file("cut.ckpt", &bytes[..bytes.len() - 5000]);
    let (name, data) = (bench.name("cut.ckpt"), bench.file("data", "no checkpoint"));
    for args in
        [vec!["verify", &name], vec!["info", &name], vec!["restart", &name], vec!["check", &name]]
    {
        let ended = bench.order(&args);
        assert!(ended.code() != Some(0) && ended.stderr.contains("cut off"), "{args:?}: {ended:?}");
    }
    let ended = bench.run(&cut, &[]).end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("cut off"), "{ended:?}");
    for file in [&cut, &data] {
        let file = file.to_str().expect("utf-8");
        let ended = bench.order(&["put", file, "--insecure", "cssrv://localhost:1/x"]);
        assert!(ended.stderr.contains("only whole checkpoints"), "{ended:?}");
    }
    // It may be replaced all the same.
    saved(&bench, &["-n", "cut.ckpt"], &[]);
    bench.must(&["verify", &name]);
}

#[test]
fn names_do_not_drive_the_terminal() {
    let bench = Bench::new(Who::Nobody);
    let evil = bench.path("\u{1b}[31mevil\u{202e}");
    fs::copy(bench.subject("memory", Build::Pie), &evil).expect("a copy");
    let mut run = bench.launch(&["-n", "x.ckpt"], &evil, &["\u{1b}]0;title\u{7}"]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
    for args in [&["info", "x.ckpt"][..], &["info", "--json", "x.ckpt"], &["check", "x.ckpt"]] {
        let ended = bench.order(args);
        let said = ended.stdout.concat() + &ended.stderr;
        assert!(!said.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{args:?}: {ended:?}");
    }
    let ended = bench.order(&["verify", "\u{1b}[2J"]);
    assert!(!ended.stderr.contains('\u{1b}'), "{ended:?}");
}
