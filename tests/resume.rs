// SPDX-License-Identifier: LGPL-2.1-only
//! `--resume` with servers, with fallback files, and with files that cannot be read.

mod harness;
mod serving;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal::{SIGKILL, SIGTSTP};
use nix::sys::stat::Mode;

use harness::{Bench, Build, Run, Who, until};
use serving::{Server, all, insecure, keyed};

#[test]
fn resume_takes_the_newest_of_a_server() {
    let bench = Bench::new(Who::Nobody);
    let options = keyed(&bench);
    // A whole file, for it is damaged below.
    let server = Server::start(&bench, &[&options[..], &["--whole".into()]].concat());
    let subject = bench.subject("memory", Build::Pie);
    let saved = |mut run: Run| {
        run.check();
        run.signal(SIGTSTP);
        assert_eq!(run.end().code(), Some(85));
    };
    for name in ["job/x.%n", "plain"] {
        let name = server.name(name);
        let line = all(&["--resume", "--exit-status", "85", "-n", &name], &options);
        let mut run = bench.launch(&line, &subject, &[]);
        run.expect("ready");
        saved(run);
        // Only a program that begins anew says that it is ready.
        saved(bench.launch(&line, &subject, &[]));
    }
    let newest = server.file("job/x.2");
    let mut bytes = fs::read(&newest).expect("the second checkpoint");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, bytes).expect("the second checkpoint");
    let name = server.name("job/x.%n");
    let mut line = all(&["--resume", "-n", &name], &options);
    let mut run = bench.launch(&line, &subject, &[]);
    run.complaint("resuming the one before it");
    run.check();
    run.go();
    server.stop();
    let ended = bench.launch(&line, &subject, &[]).end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("cannot reach the checkpoint server"), "{ended:?}");
    line[0] = "-c";
    bench.launch(&line, &subject, &[]).go();
}

#[test]
fn resume_passes_over_what_the_server_says_is_damaged() {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &insecure());
    let subject = bench.subject("memory", Build::Pie);
    let name = server.name("job/x.%n");
    let line = ["--resume", "--insecure", "-n", &name];
    let mut run = bench.launch(&["-c", "--insecure", "-n", &name], &subject, &[]);
    run.expect("ready");
    bench.must(&["save", &run.pid_text()]);
    bench.must(&["save", &run.pid_text()]);
    run.check();
    run.go();
    // Neither where its content lies is known then, nor that it is a checkpoint.
    let flip = |name: &str| {
        let path = server.file(name);
        let mut bytes = fs::read(&path).expect("a checkpoint");
        bytes[530] ^= 1;
        fs::write(&path, bytes).expect("a checkpoint");
    };
    flip("job/x.2");
    let mut run = bench.launch(&line, &subject, &[]);
    run.complaint("the file that says where its content lies is damaged");
    run.complaint("resuming the one before it");
    run.check();
    run.go();
    // Where there is no other, nothing begins anew by itself.
    flip("job/x.1");
    let ended = bench.launch(&line, &subject, &[]).end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("nothing was started"), "{ended:?}");
    server.stop();
}

#[test]
fn resume_takes_the_fallback_where_it_is_newer() {
    let bench = Bench::new(Who::Nobody);
    let mut server = Server::start(&bench, &insecure());
    let subject = bench.subject("memory", Build::Pie);
    let (name, fallback) = (server.name("x"), bench.name("fallback.ckpt"));
    let line = ["--resume", "--insecure", "--fallback", &fallback, "-n", &name];
    let mut run = bench.launch(&line, &subject, &[]);
    run.expect("ready");
    run.check();
    server.run.signal(SIGKILL);
    until("the server's end", || (!server.run.lives()).then_some(()));
    run.signal(SIGTSTP);
    run.complaint("saved to");
    assert!(run.end().code() == Some(0));
    let server = server.again(&bench);
    let mut run = bench.launch(&line, &subject, &[]);
    run.check();
    run.signal(SIGTSTP);
    run.ends_well();
    fs::remove_file(bench.path("fallback.ckpt")).expect("the fallback");
    let mut run = bench.launch(&line, &subject, &[]);
    run.check();
    run.go();
    server.stop();
}

#[test]
fn a_checkpoint_that_cannot_be_read_starts_nothing() {
    let bench = Bench::new(Who::Nobody);
    let subject = bench.subject("memory", Build::Pie);
    let path = bench.path("x.ckpt");
    bench.file("x.ckpt", "");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("chmod");
    let resumed = || bench.launch(&["--resume", "-n", "x.ckpt"], &subject, &[]);
    let ended = resumed().end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("cannot open") && ended.stderr.contains("x.ckpt"), "{ended:?}");
    let folder = bench.path("folder");
    fs::create_dir(&folder).expect("mkdir");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o333)).expect("chmod");
    let ended = bench.launch(&["--resume", "-n", "folder/x.%n"], &subject, &[]).end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("cannot look for checkpoints in"), "{ended:?}");
    // What is readable and no checkpoint does not make us wait, and is not replaced either.
    fs::remove_file(&path).expect("x.ckpt");
    nix::unistd::mkfifo(&path, Mode::S_IRWXU | Mode::S_IRWXO).expect("a FIFO");
    let ended = resumed().end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("x.ckpt is not a checkpoint"), "{ended:?}");
    assert!(ended.stderr.contains("it is a FIFO"), "{ended:?}");
}
