// SPDX-License-Identifier: LGPL-2.1-only
//! What goes wrong: a failed checkpoint says why, leaves no file and does the program no harm; a
//! broken image is refused with a sentence.

mod harness;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use nix::sys::signal::Signal::SIGTSTP;

use harness::{Bench, Build, Run, Way, Who, until};

/// Signals the program: the checkpoint to `name` must fail for `reason`, and the program goes on.
#[track_caller]
fn fails(run: &mut Run, name: &str, reason: &str) {
    let already = run.stderr().len();
    run.signal_until(SIGTSTP, reason, |run| run.stderr()[already..].contains(reason));
    assert!(run.stderr()[already..].contains(name), "{name} is not named: {}", run.stderr());
    run.check();
}

/// Signals the program, which is saved and ends.
#[track_caller]
fn works(bench: &Bench, mut run: Run, image: &Path) {
    run.signal_until(SIGTSTP, "the checkpoint", |run| !run.lives());
    run.ends_well();
    let mut run = bench.run(image, &[]);
    run.check();
    run.go();
}

#[test]
fn no_such_directory() {
    let bench = Bench::new(Who::Nobody);
    let there = bench.subdirectory("there");
    let mut run = bench.launch(&["-n", "there/x.ckpt"], bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    fs::remove_dir(&there).expect("rmdir");
    fails(&mut run, "there", "No such file or directory");
    fails(&mut run, "there", "No such file or directory");
    let saved = bench.order(&["save", "--stop", &run.pid_text()]);
    assert_eq!(saved.code(), Some(125), "{saved:?}");
    assert!(saved.stderr.contains("there"), "{saved:?}");
    run.check();
    bench.subdirectory("there");
    works(&bench, run, &there.join("x.ckpt"));
}

#[test]
fn a_program_that_nobody_may_trace() {
    let bench = Bench::new(Who::Nobody);
    // prctl(PR_SET_DUMPABLE, 0)
    let script =
        "$| = 1; syscall(157, 4, 0, 0, 0, 0); print \"ready\\n\"; <STDIN>; print \"ok\\n\"";
    let mut run = bench.launch(&["-n", "x.ckpt"], "perl", &["-e", script]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.complaint("not dumpable");
    run.say("");
    run.expect("ok");
    run.ends_well();
    assert_eq!(bench.names("x.ckpt"), [""; 0]);
}

/// None of ckpt's processes may be the first in the PID namespace that a program has made for its children: the end of that
/// one would be the end of all forks. Nor does a signal's dumper, born there, know itself by the id that the program sees.
#[test]
fn a_pid_namespace_for_children() {
    let script = "$| = 1; syscall(272, 0x30000000) == 0 or die; print \"ready\n\"; <STDIN>; \
                  my $child = fork // die \"no fork: $!\"; exit 7 unless $child; waitpid $child, 0; print $? >> 8, \"\n\"";
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = bench.launch(&["-n", "x.ckpt"], "perl", &["-e", script]);
        run.expect("ready");
        run.signal(SIGTSTP);
        run.complaint("another PID namespace");
        let saved = bench.order(&["save", &run.pid_text()]);
        assert_eq!(saved.code(), Some(0), "{saved:?}");
        run.say("");
        run.expect("7");
        run.ends_well();
    }
}

/// Who sees no /proc finds nothing of the program, and not where it could complain.
#[test]
fn a_signal_in_a_chroot_without_proc() {
    let bench = Bench::new(Who::Me);
    bench.subdirectory("root");
    let script = "$| = 1; chroot \"root\"; print \"ready\\n\"; <STDIN>; print \"ok\\n\"";
    let mut run = bench.launch(&["-n", "x.ckpt"], "perl", &["-e", script]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.complaint("sees no /proc");
    run.say("");
    run.expect("ok");
    run.ends_well();
}

/// A dumper is executed out of a file that the limit does not allow: there is none, and the program hears of it.
#[test]
fn no_room_for_a_dumper() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let script = "ulimit -f 1000; echo ready; read line; echo ok";
        let mut run = bench.launch(&["-n", "x.ckpt"], "/bin/sh", &["-c", script]);
        run.expect("ready");
        run.signal(SIGTSTP);
        run.complaint("no checkpoint: the dumper could not be started: File too large");
        run.say("");
        run.expect("ok");
        run.ends_well();
        assert_eq!(bench.names("x.ckpt"), [""; 0]);
    }
}

#[test]
fn no_permission() {
    let bench = Bench::new(Who::Nobody);
    let there = bench.subdirectory("there");
    let mut run = bench.launch(&["-n", "there/x.ckpt"], bench.subject("signals", Build::Pie), &[]);
    run.expect("ready");
    fs::set_permissions(&there, PermissionsExt::from_mode(0o555)).expect("chmod");
    fails(&mut run, "there", "Permission denied");
    fs::set_permissions(&there, PermissionsExt::from_mode(0o755)).expect("chmod");
    assert_eq!(fs::read_dir(&there).expect("a directory").count(), 0, "a file was left");
    works(&bench, run, &there.join("x.ckpt"));
}

#[test]
fn the_name_is_a_directorys() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.launch(&["-n", "x.ckpt"], bench.subject("observer", Build::Pie), &[]);
    run.expect("ready");
    let there = bench.subdirectory("x.ckpt");
    fails(&mut run, "x.ckpt", "irectory");
    assert_eq!(bench.names("x.ckpt"), ["x.ckpt"], "a file was left");
    fs::remove_dir(&there).expect("rmdir");
    works(&bench, run, &there);
}

#[test]
fn the_old_image_survives_a_failure() {
    let bench = Bench::new(Who::Nobody);
    let there = bench.subdirectory("there");
    let image = there.join("x.ckpt");
    let program = bench.subject("memory", Build::Pie);
    let mut run = bench.launch(&["-c", "-n", "there/x.ckpt"], program, &[]);
    run.expect("ready");
    run.signal(SIGTSTP);
    until("the first image", || image.exists().then_some(()));
    run.check();
    let old = fs::read(&image).expect("the image");
    fs::set_permissions(&there, PermissionsExt::from_mode(0o555)).expect("chmod");
    fails(&mut run, "there", "Permission denied");
    assert!(fs::read(&image).expect("the image") == old, "the old image changed");
    fs::set_permissions(&there, PermissionsExt::from_mode(0o755)).expect("chmod");
    run.go();
    bench.run(image, &[]).go();
}

#[test]
fn file_size_limit() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let program = bench.subject("memory", Build::Pie);
        let mut command = bench.command("prlimit");
        command.arg("--fsize=100000:unlimited").arg(bench.ckpt()).args(["-n", "x.ckpt"]);
        command.arg(program);
        let mut run = Run::start(command);
        run.expect("ready");
        fails(&mut run, "x.ckpt", "File too large");
        assert_eq!(bench.names("x.ckpt"), [""; 0], "a file was left");
        let names = bench.names("");
        assert_eq!(names, ["ckpt", "memory.pie"], "a temporary file was left");
        let lift = bench.run("prlimit", &["--fsize=unlimited", "--pid", &run.pid_text()]);
        lift.ends_well();
        works(&bench, run, &bench.path("x.ckpt"));
    }
}

/// A small tmpfs in a mount namespace of its own, which goes away with the program.
#[test]
fn disk_full() {
    let bench = Bench::new(Who::Me);
    let small = bench.subdirectory("small");
    let program = bench.subject("sparse", Build::Pie);
    let mut command = bench.command("unshare");
    let script = "mount -t tmpfs -o size=4m none small && exec ./ckpt -n small/x.ckpt \"$0\" 16";
    // Without privileges a user namespace of our own may mount a tmpfs as well.
    let own = if nix::unistd::geteuid().is_root() { "-m" } else { "-mUr" };
    command.args([own, "sh", "-c", script]).arg(program);
    let mut run = Run::start(command);
    run.expect("ready");
    fails(&mut run, "small/x.ckpt", "No space left on device");
    let inside = Path::new("/proc")
        .join(run.pid_text())
        .join("root")
        .join(small.strip_prefix("/").expect("an absolute path"));
    assert_eq!(fs::read_dir(&inside).expect("the tmpfs").count(), 0, "a file was left");
    let pid = run.pid_text();
    let enter = ["-m", "-U", "-t", &pid, "mount", "-o", "remount,size=64m"];
    let enter = if own == "-m" { [&enter[..1], &enter[2..]].concat() } else { enter.to_vec() };
    let mut command = bench.command("nsenter");
    command.args(enter).arg(&small);
    Run::start(command).ends_well();
    // The tmpfs ends with the program, so the image is taken while it lives.
    bench.must(&["-p", &pid, "-c"]);
    run.signal(SIGTSTP);
    until("the image", || inside.join("x.ckpt").exists().then_some(()));
    fs::copy(inside.join("x.ckpt"), bench.path("x.ckpt")).expect("a copy");
    run.go();
    bench.run(bench.path("x.ckpt"), &[]).go();
}

/// An image, its bytes and the length of its stub.
fn broken_bench() -> (Bench, Vec<u8>, usize) {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("observer", Build::Musl), &[]);
    run.expect("ready");
    Way::SaveStop.save(&bench, "x.ckpt", run);
    let bytes = fs::read(bench.path("x.ckpt")).expect("the image");
    let stub = fs::metadata(bench.ckpt()).expect("ckpt").len() as usize;
    assert!(bytes.len() > stub + 4096, "{} bytes", bytes.len());
    (bench, bytes, stub)
}

/// The image is refused by `ckpt verify` and, unless its stub is broken, by itself.
#[track_caller]
fn is_refused(bench: &Bench, what: &str, runs: bool) {
    println!("{what}");
    let name = bench.name("broken.ckpt");
    let verified = bench.order(&["verify", &name]);
    assert_eq!(verified.code(), Some(125), "verify, {what}: {verified:?}");
    assert!(verified.stderr.starts_with("ckpt: "), "verify, {what}: {verified:?}");
    assert!(verified.stderr.contains("broken.ckpt"), "verify, {what}: {verified:?}");
    if runs {
        let ended = bench.run(&name, &[]).end();
        assert_eq!(ended.code(), Some(125), "{what}: {ended:?}");
        assert!(ended.stderr.contains(": "), "{what}: {ended:?}");
        assert!(ended.stdout.is_empty(), "{what}: it resumed: {ended:?}");
    }
}

#[test]
fn truncated_images_are_refused() {
    let (bench, bytes, stub) = broken_bench();
    let broken = bench.file("broken.ckpt", b"");
    let near = [0, 1, 63, 64, 1000, 4095, 4096, 8192].map(|n| stub + n);
    let end = [1, 2, 8, 16, 63, 64, 65, 4096, 4097].map(|n| bytes.len() - n);
    let spread = (1..40).map(|i| stub + (bytes.len() - stub) * i / 40);
    for length in near.into_iter().chain(end).chain(spread) {
        fs::write(&broken, &bytes[..length]).expect("a file");
        is_refused(&bench, &format!("{length} of {} bytes", bytes.len()), length > stub + 8);
    }
    for length in [0, 1, 100, stub / 2, stub - 1] {
        fs::write(&broken, &bytes[..length]).expect("a file");
        is_refused(&bench, &format!("{length} bytes of the stub"), false);
    }
    let mut longer = bytes.clone();
    longer.extend_from_slice(&[0; 100]);
    fs::write(&broken, &longer).expect("a file");
    is_refused(&bench, "100 bytes too many", true);
}

#[test]
fn corrupted_images_are_refused() {
    let (bench, bytes, stub) = broken_bench();
    let broken = bench.file("broken.ckpt", &bytes);
    // Opened anew for each byte: a file that is open for writing cannot be executed.
    let set = |at: usize, byte: u8| {
        let file = fs::OpenOptions::new().write(true).open(&broken).expect("the file");
        file.write_all_at(&[byte], at as u64).expect("a byte");
    };
    let spread = (0..60).map(|i| stub + 64 + (bytes.len() - stub - 64) * i / 60);
    let begin = (0..96).step_by(5).map(|n| stub.next_multiple_of(4096) + n);
    let end = (1..=160).step_by(5).map(|n| bytes.len() - n);
    for at in spread.chain(begin).chain(end) {
        for flip in [1, 0x80] {
            set(at, bytes[at] ^ flip);
            // What only fills up the stub's last page does not reach the resumed program.
            let runs = at >= stub.next_multiple_of(4096);
            is_refused(&bench, &format!("bit {flip} of byte {at} of {}", bytes.len()), runs);
        }
        set(at, bytes[at]);
    }
    for at in (0..24).map(|i| 64 + (stub - 64) * i / 24) {
        set(at, bytes[at] ^ 1);
        is_refused(&bench, &format!("byte {at} of the stub"), false);
        set(at, bytes[at]);
    }
    bench.must(&["verify", &bench.name("broken.ckpt")]);
    bench.run(&broken, &[]).go();
}

#[test]
fn other_files_are_no_images() {
    let bench = Bench::new(Who::Nobody);
    bench.file("broken.ckpt", "plain text\n");
    is_refused(&bench, "text", false);
    let ckpt = bench.order(&["verify", &bench.name("ckpt")]);
    assert_eq!(ckpt.code(), Some(125), "the binary itself: {ckpt:?}");
    let none = bench.order(&["verify", &bench.name("absent")]);
    assert_eq!(none.code(), Some(125), "{none:?}");
    assert!(none.stderr.contains("absent: No such file or directory"), "{none:?}");
}

/// In a PID namespace with the /proc of another, process ids are those of strangers.
#[test]
fn a_foreign_proc() {
    let bench = Bench::new(Who::Me);
    let program = bench.subject("memory", Build::Pie);
    let own = if nix::unistd::geteuid().is_root() { "-pf" } else { "-prUf" };
    let script = "./ckpt -n x.ckpt \"$0\"; echo $?; ./ckpt save $$; echo $?";
    let mut command = bench.command("unshare");
    command.args([own, "sh", "-c", script]).arg(program);
    let ended = Run::start(command).end();
    assert_eq!(ended.stdout, ["125", "125"], "{ended:?}");
    assert_eq!(
        ended.stderr.matches("/proc is that of another PID namespace").count(),
        2,
        "{ended:?}"
    );
}
