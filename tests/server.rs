// SPDX-License-Identifier: LGPL-2.1-only
//! The checkpoint server: programs saved to it and restarted from it, its commands, its limits, and
//! what is left when something fails.

mod harness;
mod serving;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use ckpt::serve::protocol::{Kind, Seal};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM, SIGTSTP};

use harness::{Bench, Build, Run, Who, until};
use serving::{Server, all, image, insecure, keyed, noise};

/// Saves a program to the server by signal and restarts it from there, twice, and on the server.
#[track_caller]
fn saved_and_resumed(who: Who, options: impl Fn(&Bench) -> Vec<String>, more: &[&str]) {
    let bench = Bench::new(who);
    let options = options(&bench);
    let server = Server::start(&bench, &options);
    let (name, program) = (server.name("a/b/x é.ckpt"), bench.subject("memory", Build::Pie));
    let mut line = all(&["-n", &name], &options);
    line.extend(more);
    let mut run = bench.launch(&line, &program, &[]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
    let stored = server.file("a/b/x é.ckpt");
    let meta = fs::metadata(&stored).expect("the stored file");
    assert_eq!(meta.permissions().mode() & 0o777, 0o700);
    assert_eq!(bench.names("x é"), [""; 0], "a file on the client");
    bench.must(&all(&["verify", &name], &options));
    let mut line = all(&["restart"], &options);
    line.push(&name);
    for _ in 0..2 {
        let mut run = bench.run(bench.ckpt(), &line);
        run.check();
        run.go();
    }
    let mentioned = bench.run(&stored, &[]).end();
    assert_eq!(mentioned.code(), Some(126), "{mentioned:?}");
    assert!(mentioned.stderr.contains("fetch the executable file with: ckpt get"), "{mentioned:?}");
    bench.must(&all(&["get", &name, "out.ckpt"], &options));
    let mut run = bench.run(bench.path("out.ckpt"), &[]);
    run.check();
    // The resumed program knows the server and its key still.
    let before = fs::metadata(&stored).expect("the stored file").ino();
    run.signal(SIGTSTP);
    run.ends_well();
    assert_ne!(fs::metadata(&stored).expect("the stored file").ino(), before);
    let mut run = bench.run(bench.ckpt(), &line);
    run.check();
    run.go();
    server.stop();
}

#[test]
fn a_program_is_saved_with_a_key() {
    saved_and_resumed(Who::Nobody, keyed, &[]);
}

#[test]
fn a_program_is_saved_without_a_key() {
    saved_and_resumed(Who::Nobody, |_| insecure(), &[]);
}

#[test]
fn a_program_is_saved_compressed() {
    saved_and_resumed(Who::Me, keyed, &["--compress"]);
}

#[test]
fn save_and_continue() {
    let bench = Bench::new(Who::Me);
    let options = keyed(&bench);
    let server = Server::start(&bench, &options);
    let mut run = bench.run(bench.subject("memory", Build::Static), &[]);
    run.expect("ready");
    let (pid, name) = (run.pid_text(), server.name("x"));
    let said = bench.must(&all(&["save", &pid, "-n", &name], &options));
    assert!(said.stdout[0].contains("cssrv://127.0.0.1"), "{said:?}");
    run.check();
    bench.must(&all(&["-p", &pid, "-c", "-n", &name], &options));
    fs::remove_file(server.file("x")).expect("rm");
    run.signal(SIGTSTP);
    until("the second checkpoint", || server.file("x").exists().then_some(()));
    run.check();
    run.go();
    let mut line = all(&["restart"], &options);
    line.push(&name);
    let mut run = bench.run(bench.ckpt(), &line);
    run.check();
    run.go();
    server.stop();
}

#[test]
fn restart_of_a_file() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.launch(&["-n", "x.ckpt"], bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
    fs::set_permissions(bench.path("x.ckpt"), PermissionsExt::from_mode(0o400)).expect("chmod");
    let mut run = bench.run(bench.ckpt(), &["restart", "x.ckpt", "-n", "y.ckpt"]);
    run.check();
    run.signal(SIGTSTP);
    run.ends_well();
    assert!(bench.path("y.ckpt").exists());
    let missing = bench.order(&["restart", "z.ckpt"]);
    assert_eq!(missing.code(), Some(127), "{missing:?}");
    bench.file("z.ckpt", "no checkpoint");
    let other = bench.order(&["restart", "z.ckpt"]);
    assert_eq!(other.code(), Some(126), "{other:?}");
}

#[test]
fn put_ls_get_rm() {
    let bench = Bench::new(Who::Nobody);
    let options = keyed(&bench);
    let server = Server::start(&bench, &options);
    let mut bytes = vec![0; 3_000_001];
    bytes[1_000_000..1_600_000].copy_from_slice(&noise(600_000, 7));
    bytes[2_000_000..2_500_000].fill(b'x');
    let bytes = image(bytes);
    bench.file("in", &bytes);
    for name in ["a/b", "a/c"] {
        let name = server.name(name);
        bench.must(&all(&["put", "in", &name], &options));
        bench.must(&all(&["get", &name, "out"], &options));
        assert!(fs::read(bench.path("out")).expect("out") == bytes, "{name}");
        fs::remove_file(bench.path("out")).expect("rm");
    }
    assert!(server.room() < 1_300_000, "zeros are stored, or one content twice: {}", server.room());
    let names = |folder: &str| {
        let listed = bench.must(&all(&["ls", &server.name(folder)], &options));
        let last = |l: &String| l.rsplit("Z  ").next().expect("a name").to_owned();
        listed.stdout.iter().map(last).collect::<Vec<_>>()
    };
    assert_eq!(names(""), ["a/b", "a/c"]);
    assert_eq!(names("a/"), ["a/b", "a/c"]);
    bench.must(&all(&["rm", &server.name("a/b")], &options));
    assert_eq!(names("a"), ["a/c"]);
    bench.must(&all(&["rm", &server.name("a/c")], &options));
    assert!(!server.file("a").exists(), "an empty folder stays");
    let gone = bench.order(&all(&["rm", &server.name("a/c")], &options));
    assert_eq!(gone.code(), Some(125), "{gone:?}");
    assert!(gone.stderr.contains("no such checkpoint"), "{gone:?}");
    let gone = bench.order(&all(&["get", &server.name("a/c"), "out"], &options));
    assert!(gone.stderr.contains("no such checkpoint"), "{gone:?}");
    assert!(!bench.path("out").exists());
    bench.file("empty", "");
    let refused = bench.order(&all(&["put", "empty", &server.name("e")], &options));
    assert!(refused.stderr.contains("only whole checkpoints"), "{refused:?}");
    assert!(!server.file("e").exists());
    server.stop();
}

#[test]
fn many_at_once() {
    let bench = Bench::new(Who::Me);
    let server = Server::start(&bench, &keyed(&bench));
    let options = keyed(&bench);
    let files: Vec<_> = (0..16).map(|i| image(noise(4_000_000, i + 1))).collect();
    let runs: Vec<Run> = files
        .iter()
        .enumerate()
        .map(|(i, bytes)| {
            let file = bench.file(&format!("in{i}"), bytes);
            let (file, name) = (file.to_str().expect("utf-8"), server.name(&format!("{i}")));
            bench.run(bench.ckpt(), &all(&["put", file, &name], &options))
        })
        .collect();
    runs.into_iter().for_each(|run| drop(run.ends_well()));
    for (i, bytes) in files.iter().enumerate() {
        let key = serving::key(&bench.path("key"));
        assert!(server.stored(Some(&key), &i.to_string()).expect("stored") == *bytes, "{i}");
    }
    server.stop();
}

#[test]
fn the_old_one_stays_until_the_new_one_is_whole() {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &insecure());
    let mut old = server.begin("x");
    old.piece(b"old");
    assert_eq!(old.seal().kind, Kind::Done);
    let is_old = || {
        until("the end of the upload", || (server.partial() == 0).then_some(()));
        assert_eq!(server.stored(None, "x").expect("x"), b"old");
    };
    // The client dies.
    let mut new = server.begin("x");
    new.piece(&noise(1 << 20 >> 3, 3));
    until("the partial upload", || (server.partial() == 1).then_some(()));
    drop(new);
    is_old();
    // The bytes were changed on their way.
    let mut new = server.begin("x");
    new.piece(b"new");
    let seal = Seal { len: 3, sum: new.sum.sum() ^ 1 };
    assert_eq!(new.seal_with(seal).kind, Kind::Refused);
    is_old();
    let mut new = server.begin("x");
    new.piece(b"new");
    let seal = Seal { len: 2, sum: new.sum.sum() };
    assert_eq!(new.seal_with(seal).kind, Kind::Refused);
    is_old();
    // The server ends in the middle of an upload.
    let mut new = server.begin("x");
    new.piece(b"new");
    until("the partial upload", || (server.partial() == 1).then_some(()));
    server.stop();
    let server = Server::start(&bench, &insecure());
    assert_eq!(server.stored(None, "x").expect("x"), b"old");
    server.stop();
}

#[test]
fn a_server_that_was_killed_leaves_nothing_for_long() {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &insecure());
    let mut old = server.begin("x");
    old.piece(b"old");
    old.seal();
    let mut new = server.begin("x");
    new.piece(b"new");
    until("the partial upload", || (server.partial() == 1).then_some(()));
    server.run.signal(SIGKILL);
    server.run.end();
    let server = Server::start(&bench, &insecure());
    assert_eq!(server.partial(), 0);
    assert_eq!(server.stored(None, "x").expect("x"), b"old");
    let second = bench.order(&["serve", "-p", "0", "--insecure", "-d", "store"]);
    assert!(second.stderr.contains("another checkpoint server"), "{second:?}");
    server.stop();
}

#[test]
fn the_last_complete_upload_wins() {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &insecure());
    let (mut a, mut b) = (server.begin("x/y"), server.begin("x/y"));
    for _ in 0..50 {
        a.piece(&[b'a'; 5000]);
        b.piece(&[b'b'; 4000]);
    }
    assert_eq!(b.seal().kind, Kind::Done);
    assert!(server.stored(None, "x/y").expect("b") == [b'b'; 200_000]);
    assert_eq!(a.seal().kind, Kind::Done);
    assert!(server.stored(None, "x/y").expect("a") == [b'a'; 250_000]);
    server.stop();
}

#[test]
fn without_a_server_the_program_goes_on() {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &insecure());
    let name = server.name("x");
    let options = ["-n", &name, "--insecure"];
    let mut run = bench.launch(&options, bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    let store = server.store.clone();
    server.stop();
    run.signal(SIGTSTP);
    run.complaint("cannot reach the checkpoint server 127.0.0.1");
    run.check();
    let saved = bench.order(&["save", &run.pid_text(), "--stop"]);
    assert_eq!(saved.code(), Some(125), "{saved:?}");
    assert!(saved.stderr.contains("Connection refused"), "{saved:?}");
    run.check();
    bench.must(&["-p", &run.pid_text(), "--fallback", &bench.name("local.ckpt")]);
    run.signal(SIGTSTP);
    let ended = run.ends_well();
    assert!(ended.stderr.contains("local.ckpt instead"), "{ended:?}");
    assert!(!store.join("x").exists());
    let mut run = bench.run(bench.path("local.ckpt"), &[]);
    run.check();
    run.go();
}

#[test]
fn a_server_that_dies_meanwhile() {
    let bench = Bench::new(Who::Nobody);
    // Not a server: it takes the connection and never says a word, then it is gone.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let name = format!("cssrv://{}/x", silent.local_addr().expect("an address"));
    let line = ["-c", "-n", &name, "--insecure", "--fallback", "there.ckpt"];
    let mut run = bench.launch(&line, bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    run.signal(SIGTSTP);
    let (stream, _) = silent.accept().expect("the dumper");
    // The program runs while the dumper waits for an answer.
    run.check();
    drop((stream, silent));
    run.complaint("there.ckpt instead");
    run.check();
    run.go();
    let mut run = bench.run(bench.path("there.ckpt"), &[]);
    run.check();
    run.go();
}

#[test]
fn a_full_disk() {
    let bench = Bench::new(Who::Nobody);
    let store = bench.subdirectory("store");
    fs::write(store.join("x"), "old").expect("a file");
    bench.give(&store.join("x"));
    bench.file("in", image(noise(900_000, 1)));
    let mut command = bench.command("prlimit");
    command.arg("--fsize=500000").arg(bench.ckpt());
    command.args(["serve", "--insecure", "-p", "0", "--listen", "127.0.0.1", "-d", "store"]);
    let server = Server::watch(Run::start(command), store);
    let refused = bench.order(&["put", "--insecure", "in", &server.name("x")]);
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    assert!(refused.stderr.contains("File too large"), "{refused:?}");
    assert_eq!((server.stored(None, "x").expect("x"), server.partial()), (b"old".into(), 0));
    server.stop();
}

#[test]
fn names_that_lead_out() {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &insecure());
    let outside = bench.subdirectory("outside");
    bench.file("outside/secret", "secret");
    symlink(&outside, server.file("out")).expect("a link");
    symlink(bench.path("outside/secret"), server.file("file")).expect("a link");
    symlink("/proc/self/root", server.file("magic")).expect("a link");
    let long = "x".repeat(256);
    let longer = "x/".repeat(600) + "x";
    let names = [
        "",
        "/etc/x",
        "../x",
        "a/../../x",
        "a/./b",
        "..",
        ".",
        "a//b",
        "a/",
        "a\0b",
        "a\nb",
        ".ckpt-serve/0",
        "a/.ckpt-serve",
        &long,
        &longer,
        "out/secret",
        "out/new",
        "file/x",
        "magic/tmp/x",
    ];
    for name in names {
        for kind in [Kind::Put, Kind::Get, Kind::Remove] {
            let mut channel = server.channel(None);
            channel.send(kind, 0, name.as_bytes()).expect("sent");
            let (header, said) = serving::answer(&mut channel);
            assert_eq!(header.kind, Kind::Refused, "{kind:?} {name:?}: {said}");
        }
    }
    for kind in [Kind::Put, Kind::Get] {
        let mut channel = server.channel(None);
        channel.send(kind, 0, b"file").expect("sent");
        assert_eq!(serving::answer(&mut channel).0.kind, Kind::Refused, "{kind:?}");
    }
    assert_eq!(fs::read(bench.path("outside/secret")).expect("secret"), b"secret");
    assert_eq!(fs::read_dir(&outside).expect("outside").count(), 1);
    server.stop();
}

#[test]
fn the_first_start_makes_a_key() {
    let bench = Bench::new(Who::Nobody);
    bench.subdirectory("store");
    let at_home = |args: &[&str]| {
        let mut command = bench.command(bench.ckpt());
        command.env("HOME", &bench.dir).args(args);
        Run::start(command)
    };
    let serve = ["serve", "-p", "0", "--listen", "127.0.0.1", "-d", "store"];
    let server = Server::watch(at_home(&serve), bench.path("store"));
    let said = server.run.stderr();
    assert!(said.contains("made the key") && said.contains("scp"), "{said}");
    let key = bench.path(".config/ckpt/key");
    assert_eq!(fs::metadata(&key).expect("the key").mode() & 0o777, 0o600);
    let name = server.name("x");
    let mut run =
        at_home(&["-n", &name, bench.subject("memory", Build::Pie).to_str().expect("utf-8")]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
    let mut run = at_home(&["restart", &name]);
    run.check();
    run.go();
    fs::set_permissions(&key, PermissionsExt::from_mode(0o640)).expect("chmod");
    let refused = at_home(&["ls", &name]).end();
    assert!(refused.stderr.contains("can be read by others"), "{refused:?}");
    let refused = at_home(&serve).end();
    assert!(refused.stderr.contains("can be read by others"), "{refused:?}");
    fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).expect("chmod");
    server.stop();
    let server = Server::watch(at_home(&serve), bench.path("store"));
    assert!(!server.run.stderr().contains("made the key"));
    server.stop();
}

#[test]
fn ckptsrv_is_as_in_the_manual() {
    let bench = Bench::new(Who::Nobody);
    symlink("ckpt", bench.path("ckptsrv")).expect("a link");
    let store = bench.subdirectory("store");
    let run = bench.run(bench.path("ckptsrv"), &["-p", "0", "-d", "store"]);
    let server = Server::watch(run, store);
    assert!(server.run.stderr().contains("simple insecure server"));
    bench.file("in", image("x"));
    bench.must(&["put", "--insecure", "in", &server.name("x")]);
    server.stop();
    let server = Server::watch(bench.run(bench.path("ckptsrv"), &["-p", "0"]), "/tmp".into());
    assert!(server.run.stderr().contains("serving /tmp on"));
    server.run.signal(SIGTERM);
    server.run.ends_well();
}

#[test]
fn a_line_for_each_request() {
    let bench = Bench::new(Who::Nobody);
    let mut options = insecure();
    let mut server = Server::start(&bench, &options);
    let file = image("12345");
    bench.file("in", &file);
    bench.must(&["put", "--insecure", "in", &server.name("a b")]);
    let line = server.run.line();
    assert!(line.contains(" 127.0.0.1:") && line.contains(" put \"a b\" "), "{line}");
    assert!(file.len() > 5 && line.contains(" bytes "), "{line}");
    assert!(line.ends_with(" s: ok"), "{line}");
    server.stop();
    options.push("--json".into());
    let mut server = Server::start(&bench, &options);
    bench.order(&["get", "--insecure", &server.name("c")]);
    let line = server.run.line();
    for part in ["{\"time\":\"", "\"what\":\"get\",\"name\":\"c\",\"bytes\":0,", "\"ok\":false,"] {
        assert!(line.contains(part), "{line}");
    }
    server.stop();
}

#[test]
fn hosts_by_name_and_address() {
    let bench = Bench::new(Who::Nobody);
    let store = bench.subdirectory("store");
    let line = ["serve", "--insecure", "-p", "0", "--listen", "::1", "-d", "store"];
    let server = Server::watch(bench.run(bench.ckpt(), &line), store);
    bench.file("in", image("x"));
    let name = format!("cssrv://[::1]:{}/x", server.port);
    bench.must(&["put", "--insecure", "in", &name]);
    server.stop();
    let server = Server::start(&bench, &insecure());
    let name = format!("cssrv://localhost:{}/x", server.port);
    bench.must(&["get", "--insecure", &name, "out"]);
    let unknown = bench.order(&["ls", "--insecure", "cssrv://no.such.host.invalid"]);
    assert!(unknown.stderr.contains("cannot reach"), "{unknown:?}");
    server.stop();
}
