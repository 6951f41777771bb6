// SPDX-License-Identifier: LGPL-2.1-only
//! A checkpoint server with much to do: what several checkpoints have in common, many clients, several users, and whoever
//! wants to know of all that.

mod harness;
mod serving;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Barrier;

use ckpt::serve::protocol::Kind;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal::{SIGHUP, SIGKILL};

use harness::{Bench, Run, Who, status_line, until};
use serving::{Server, Uploading, all, image, insecure, noise};

/// The same with pages changed.
fn changed(bytes: &[u8], pages: impl Iterator<Item = usize>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    pages.for_each(|page| bytes[page * 4096 + 7] ^= 1);
    bytes
}

/// The packs of a store, the oldest first.
fn packs(server: &Server) -> Vec<PathBuf> {
    let entries = fs::read_dir(server.store.join(".ckpt-serve/packs")).expect("the packs");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok())
    });
    paths.sort();
    paths
}

#[test]
fn generations_cost_what_has_changed() {
    let bench = Bench::new(Who::Nobody);
    let mut server = Server::start(&bench, &insecure());
    // 16 MiB, of which a page of a hundred changes each time.
    let first = noise(16 << 20, 1);
    let files: Vec<_> = (0..10)
        .map(|i| image(changed(&first, (0..4096).filter(|page| i > 0 && page % 100 == i))))
        .collect();
    for (i, bytes) in files.iter().enumerate() {
        bench.file("in", bytes);
        bench.must(&["put", "--insecure", "in", &server.name(&format!("job/x.{i}"))]);
        let line = server.run.line();
        let sent =
            line.split(" bytes ").next().and_then(|l| l.rsplit(' ').next()?.parse::<u64>().ok());
        let sent = sent.expect("a number of bytes");
        // What has changed since the first, and the header.
        assert!(i == 0 || sent < 1 << 20, "{line}");
    }
    let room = server.room();
    assert!(room < (16 << 20) * 13 / 10, "ten generations take {room} bytes");
    for i in 0..9 {
        bench.must(&["rm", "--insecure", &server.name(&format!("job/x.{i}"))]);
    }
    let room = server.room();
    assert!(room < (16 << 20) * 11 / 10, "the last generation takes {room} bytes");
    assert!(server.stored(None, "job/x.9").expect("the last one") == files[9]);
    // A server that was killed counts anew, and what a client sends again is there still.
    server.run.signal(SIGKILL);
    server.run.end();
    let mut server = Server::start(&bench, &insecure());
    bench.must(&["put", "--insecure", "in", &server.name("job/y")]);
    assert!(server.run.line().contains(" put \"job/y\" 0 bytes "));
    assert!(server.stored(None, "job/y").expect("the same") == files[9]);
    for name in ["job/y", "job/x.9"] {
        bench.must(&["rm", "--insecure", &server.name(name)]);
    }
    assert!(packs(&server).is_empty());
    server.stop();
    assert!(!bench.path("store/.ckpt-serve").exists(), "an empty store has litter");
}

#[test]
fn whoever_reads_an_image_reads_all_of_it() {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &insecure());
    let bytes = image(noise(64 << 20, 3));
    bench.file("in", &bytes);
    bench.must(&["put", "--insecure", "in", &server.name("x")]);
    let mut channel = server.channel(None);
    channel.send(Kind::Get, 0, b"x").expect("sent");
    assert_eq!(channel.receive().expect("an answer").kind, Kind::Done);
    // More than sockets hold is not on its way yet.
    bench.must(&["rm", "--insecure", &server.name("x")]);
    let mut read = vec![0; bytes.len()];
    loop {
        let header = channel.receive().expect("an answer");
        match header.kind {
            Kind::Data => read[header.offset as usize..][..header.len as usize]
                .copy_from_slice(channel.payload(&header)),
            kind => break assert_eq!(kind, Kind::Seal),
        }
    }
    assert!(read == bytes, "an image changed while it was read");
    until("the room", || (server.room() < 1 << 20).then_some(()));
    server.stop();
}

#[test]
fn a_check_names_what_is_damaged() {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &insecure());
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        bench.file(name, image(noise(1 << 20, seed)));
        bench.must(&["put", "--insecure", name, &server.name(name)]);
    }
    let running = bench.order(&["serve", "--check", "-d", "store"]);
    assert!(running.stderr.contains("another checkpoint server works"), "{running:?}");
    let (pack, recipe) = (packs(&server)[1].clone(), server.file("c"));
    server.stop();
    let check = || bench.order(&["serve", "--check", "-d", "store"]);
    let whole = check();
    assert_eq!(whole.code(), Some(0), "{whole:?}");
    assert!(
        whole.stdout[0].contains("3 checkpoints of") && whole.stdout[0].contains(" 0 damaged"),
        "{whole:?}"
    );
    let flip = |path: &PathBuf, at: u64| {
        let file = fs::File::options().read(true).write(true).open(path).expect("a file");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("a byte");
        file.write_all_at(&[byte[0] ^ 1], at).expect("a byte");
    };
    flip(&pack, 100 * 4096 + 5);
    flip(&recipe, 530);
    for _ in 0..2 {
        let damaged = check();
        assert_eq!(damaged.code(), Some(125), "{damaged:?}");
        let said = &damaged.stderr;
        assert!(
            said.contains(": b is damaged: a part of its content is lost or damaged"),
            "{said}"
        );
        assert!(said.contains(": c is damaged: the file that says where"), "{said}");
        assert!(!said.contains(": a is"), "{said}");
    }
    // What is damaged is nothing that a new upload is made of.
    let server = Server::start(&bench, &insecure());
    let refused = bench.order(&["verify", "--insecure", &server.name("b")]);
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    bench.must(&["put", "--insecure", "b", &server.name("new")]);
    bench.must(&["verify", "--insecure", &server.name("new")]);
    let refused = bench.order(&["get", "--insecure", &server.name("c"), "out"]);
    assert!(
        refused.stderr.contains("the file that says where its content lies is damaged"),
        "{refused:?}"
    );
    // Nor is it good in another store.
    fs::copy(server.file("a"), server.file("copy")).expect("a copy");
    server.stop();
    let other = bench.subdirectory("other");
    fs::copy(bench.path("store/a"), other.join("a")).expect("a copy");
    bench.give(&other.join("a"));
    let line = ["serve", "--insecure", "-p", "0", "--listen", "127.0.0.1", "-d", "other"];
    let server = Server::watch(bench.run(bench.ckpt(), &line), other);
    let refused = bench.order(&["get", "--insecure", &server.name("a"), "out"]);
    assert!(refused.stderr.contains("in the directory of another server"), "{refused:?}");
    server.stop();
}

#[test]
fn what_cannot_be_seen_is_not_given_back() {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &insecure());
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        bench.file(name, image(noise(1 << 20, seed)));
        bench.must(&["put", "--insecure", name, &server.name(&format!("{name}/x"))]);
    }
    // A closed folder, and two recipes with one wrong bit each.
    let closed = server.file("a");
    fs::set_permissions(&closed, PermissionsExt::from_mode(0o0)).expect("chmod");
    let flips = [(server.file("b/x"), 3), (server.file("c/x"), 530)];
    let flip = || {
        for (path, at) in &flips {
            let file = fs::File::options().read(true).write(true).open(path).expect("a file");
            let mut byte = [0];
            file.read_exact_at(&mut byte, *at).expect("a byte");
            file.write_all_at(&[byte[0] ^ 1], *at).expect("a byte");
        }
    };
    flip();
    let again = |server: Server| {
        server.run.signal(SIGKILL);
        server.run.end();
        Server::start(&bench, &insecure())
    };
    let server = again(server);
    server.run.complaint("no room is given back");
    let refused = bench.order(&["get", "--insecure", &server.name("b/x"), "out"]);
    assert!(refused.stderr.contains("is damaged"), "{refused:?}");
    // Uploads go on.
    bench.file("d", image(noise(1 << 20, 4)));
    bench.must(&["put", "--insecure", "d", &server.name("d")]);
    bench.must(&["verify", "--insecure", &server.name("d")]);
    // Once all can be seen again, all is there.
    flip();
    fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).expect("chmod");
    let server = again(server);
    for name in ["a", "b", "c"] {
        let stored = server.stored(None, &format!("{name}/x")).expect("it");
        assert!(stored == fs::read(bench.path(name)).expect("a file"), "{name}");
    }
    // A copy that was made by hand is refused when the original is gone.
    fs::copy(server.file("d"), server.file("copy")).expect("a copy");
    bench.give(&server.file("copy"));
    bench.must(&["rm", "--insecure", &server.name("d")]);
    fs::copy(server.file("a/x"), server.file("part")).expect("a copy");
    bench.give(&server.file("part"));
    bench.file("f", image(changed(&noise(1 << 20, 1), 100..101)));
    bench.must(&["put", "--insecure", "f", &server.name("f")]);
    bench.must(&["rm", "--insecure", &server.name("a/x")]);
    let refused = bench.order(&["get", "--insecure", &server.name("part"), "out"]);
    assert!(refused.stderr.contains("a part of its content is lost"), "{refused:?}");
    let refused = bench.order(&["get", "--insecure", &server.name("copy"), "out"]);
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    server.stop();
}

#[test]
fn whole_files_and_parts_are_read_by_either() {
    let bench = Bench::new(Who::Nobody);
    let bytes = image(noise(300_000, 5));
    bench.file("in", &bytes);
    let mut whole = insecure();
    whole.push("--whole".into());
    let server = Server::start(&bench, &whole);
    bench.must(&["put", "--insecure", "in", &server.name("old")]);
    assert!(fs::read(server.file("old")).expect("a file") == bytes);
    server.stop();
    let server = Server::start(&bench, &insecure());
    assert!(server.stored(None, "old").expect("the old one") == bytes);
    bench.must(&["put", "--insecure", "in", &server.name("new")]);
    let listed = bench.must(&["ls", "--insecure", &server.name("")]);
    let sizes: Vec<_> = listed.stdout.iter().map(|line| &line[..10]).collect();
    assert_eq!(sizes[0], sizes[1], "{listed:?}");
    server.stop();
    let server = Server::start(&bench, &whole);
    assert!(server.stored(None, "new").expect("the new one") == bytes);
    server.stop();
}

#[test]
fn limits() {
    let bench = Bench::new(Who::Nobody);
    for how in ["--insecure", "--whole"] {
        let mut options = insecure();
        options.extend(["--max-bytes", "1M", "--quota", "2M", how].map(String::from));
        let server = Server::start(&bench, &options);
        for (name, size) in
            [("one", 900_000), ("two", 900_001), ("three", 900_002), ("large", 1_100_000)]
        {
            bench.file(name, image(noise(size, 2 * size as u64)));
        }
        let put =
            |file: &str, name: &str| bench.order(&["put", "--insecure", file, &server.name(name)]);
        let refused = put("large", "a");
        assert!(refused.stderr.contains("at most 1048576 bytes"), "{refused:?}");
        assert_eq!(put("one", "a").code(), Some(0));
        assert_eq!(put("two", "b").code(), Some(0));
        let refused = put("three", "c");
        assert!(refused.stderr.contains("quota of 2097152 bytes"), "{refused:?}");
        // What is there already costs nothing.
        assert_eq!(put("one", "c").code() == Some(0), how != "--whole");
        bench.must(&["rm", "--insecure", &server.name("a")]);
        bench.order(&["rm", "--insecure", &server.name("c")]);
        assert_eq!(put("three", "c").code(), Some(0));
        assert_eq!(server.partial(), 0);
        server.stop();
        // What is there counts from the start.
        let server = Server::start(&bench, &options);
        let refused = bench.order(&["put", "--insecure", "one", &server.name("d")]);
        assert!(refused.stderr.contains("quota"), "{refused:?}");
        for name in ["b", "c"] {
            bench.must(&["rm", "--insecure", &server.name(name)]);
        }
        assert!(server.room() < 100_000, "room is not given back: {}", server.room());
        server.stop();
        assert!(!bench.path("store/.ckpt-serve").exists());
    }
}

#[test]
fn a_thousand_clients_of_which_a_hundred_vanish() {
    const CLIENTS: usize = 1000;
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &insecure());
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("as many files as there may be");
    // A third of each is what all have.
    let common = noise(100_000, 7);
    let content = |i: usize| [common.clone(), noise(200_000, i as u64 + 100)].concat();
    let together = Barrier::new(CLIENTS);
    std::thread::scope(|scope| {
        for i in 0..CLIENTS {
            let (port, together, content) = (server.port, &together, &content);
            let client = move || {
                let mut upload = Uploading::begin(port, &format!("n/{i}"));
                together.wait();
                let content = content(i);
                // Some leave with what they have said, somewhere.
                let leaves = i % 10 == 3;
                for (n, piece) in content.chunks(50_000).enumerate() {
                    if leaves && n == i % 7 {
                        return;
                    }
                    upload.piece(piece);
                }
                if !leaves {
                    assert_eq!(upload.seal().kind, Kind::Done, "{i}");
                }
            };
            let thread = std::thread::Builder::new().stack_size(256 << 10);
            thread.spawn_scoped(scope, client).expect("a thread");
        }
    });
    let peak = status_line(server.run.pid(), "VmHWM").expect("the server lives");
    let peak: u64 = peak.trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < 512 << 10, "the server has grown to {peak} KiB");
    until("the end of the uploads", || (server.partial() == 0).then_some(()));
    for i in 0..CLIENTS {
        let stored = server.stored(None, &format!("n/{i}"));
        assert!(stored == (i % 10 != 3).then(|| content(i)), "{i}");
    }
    println!("{CLIENTS} clients: at most {peak} KiB, {} KiB on the disk", server.room() >> 10);
    server.stop();
    let line = bench.must(&["serve", "--check", "-d", "store"]);
    assert!(line.stdout[0].contains("900 checkpoints"), "{line:?}");
}

#[test]
fn each_user_has_what_is_his() {
    let bench = Bench::new(Who::Nobody);
    bench.subdirectory("keys");
    for user in ["alice", "bob"] {
        bench.must(&["keygen", &bench.name(&format!("keys/{user}"))]);
    }
    bench.must(&["keygen", &bench.name("stranger")]);
    let mut options: Vec<String> = ["--users", "keys", "--quota", "1M"].map(String::from).into();
    let server = Server::start(&bench, &options);
    bench.file("in", image(noise(600_000, 1)));
    bench.file("other", image(noise(600_000, 2)));
    let order = |word: &str, more: &[&str], name: &str, user: &str| {
        let name = server.name(name);
        let key = bench.name(user);
        let line: Vec<_> = [&[word][..], more, &[&name, "--key", &key]].concat();
        bench.order(&line)
    };
    assert_eq!(order("put", &["in"], "x", "keys/alice").code(), Some(0));
    let names = |user| order("ls", &[], "", user).stdout;
    assert_eq!((names("keys/alice").len(), names("keys/bob").len()), (1, 0));
    let not_his = order("get", &[], "x", "keys/bob");
    assert!(not_his.stderr.contains("no such checkpoint"), "{not_his:?}");
    assert_eq!(order("rm", &[], "x", "keys/bob").code(), Some(125));
    let stranger = order("ls", &[], "", "stranger");
    assert!(stranger.stderr.contains("has another key than ours"), "{stranger:?}");
    // The quota is for each.
    let full = order("put", &["other"], "y", "keys/alice");
    assert!(full.stderr.contains("quota of 1048576 bytes"), "{full:?}");
    assert_eq!(order("put", &["other"], "y", "keys/bob").code(), Some(0));
    assert!(server.file("alice/x").exists() && server.file("bob/y").exists());
    fs::rename(bench.path("stranger"), bench.path("keys/carol")).expect("a new user");
    fs::remove_file(bench.path("keys/bob")).expect("one user less");
    server.run.signal(SIGHUP);
    server.run.complaint("2 users are known");
    assert_eq!(names("keys/carol"), [""; 0]);
    assert_eq!(names("keys/alice").len(), 1);
    fs::copy(bench.path("keys/carol"), bench.path("keys/dave")).expect("a copy");
    bench.give(&bench.path("keys/dave"));
    fs::set_permissions(bench.path("keys/dave"), PermissionsExt::from_mode(0o600)).expect("chmod");
    server.run.signal(SIGHUP);
    server.run.complaint("have the same key");
    assert_eq!(names("keys/alice").len(), 1);
    server.stop();
    options.push("--insecure".into());
    let refused = bench.order(&all(&["serve"], &options));
    assert!(refused.stderr.contains("exclude each other"), "{refused:?}");
    fs::remove_file(bench.path("keys/dave")).expect("rm");
    let line = bench.must(&["serve", "--check", "-d", "store", "--users", "keys"]);
    assert_eq!(line.stdout.len(), 2, "{line:?}");
}

#[test]
fn names_by_pattern() {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &insecure());
    bench.file("in", image("x"));
    for name in ["run-1/a.1", "run-1/a.2", "run-2/b.1", "other/a.1"] {
        bench.must(&["put", "--insecure", "in", &server.name(name)]);
    }
    let names = |pattern: &str| {
        let listed = bench.must(&["ls", "--insecure", &server.name(pattern)]);
        let last = |l: &String| l.rsplit("Z  ").next().expect("a name").to_owned();
        listed.stdout.iter().map(last).collect::<Vec<_>>()
    };
    assert_eq!(names("run-?"), ["run-1/a.1", "run-1/a.2", "run-2/b.1"]);
    assert_eq!(names("*/a.1"), ["other/a.1", "run-1/a.1"]);
    assert_eq!(names("run-1/*.2"), ["run-1/a.2"]);
    assert_eq!(names("nothing*"), [""; 0]);
    server.stop();
}

#[test]
fn a_page_of_metrics() {
    let bench = Bench::new(Who::Nobody);
    let store = bench.subdirectory("store");
    let line = [
        "serve",
        "--insecure",
        "-p",
        "0",
        "--listen",
        "127.0.0.1",
        "--metrics",
        "0",
        "-d",
        "store",
    ];
    let run: Run = bench.run(bench.ckpt(), &line);
    let server = Server::watch(run, store);
    let said = server.run.stderr();
    let place = said.split("metrics at http://").nth(1).and_then(|l| l.split('/').next());
    let place = place.expect("an address").to_owned();
    assert!(place.starts_with("127.0.0.1:"), "{place}");
    bench.file("in", image(noise(10_000, 1)));
    bench.must(&["put", "--insecure", "in", &server.name("x")]);
    bench.order(&["get", "--insecure", &server.name("y"), "out"]);
    let ask = |request: &str| {
        let mut stream = std::net::TcpStream::connect(&place).expect("a connection");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("an answer");
        said
    };
    let page = until("both requests", || {
        let page = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        page.contains("request=\"get\",result=\"failed\"} 1\n").then_some(page)
    });
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    for line in [
        "ckpt_requests_total{request=\"put\",result=\"ok\"} 1\n",
        "ckpt_requests_total{request=\"put\",result=\"failed\"} 0\n",
        "ckpt_checkpoints 1\n",
        "# TYPE ckpt_oldest_timestamp_seconds gauge\nckpt_oldest_timestamp_seconds 1",
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
    assert!(ask("POST / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    let head = ask("HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    server.stop();
}
