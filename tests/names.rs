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
