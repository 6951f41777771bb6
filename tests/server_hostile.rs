// SPDX-License-Identifier: LGPL-2.1-only
//! Clients that mean no good: the checkpoint server refuses them, stays up, and stays small.

mod harness;
mod serving;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use ckpt::serve::channel::{Channel, KEY};
use ckpt::serve::protocol::{HEADER, Header, Kind, Mode, PIECE, Preamble};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use harness::{Bench, Build, Who, status_line, until};
use serving::{Server, all, image, insecure, key, keyed, noise};

/// The server still does its work.
#[track_caller]
fn works(bench: &Bench, server: &Server, options: &[String]) {
    let file = image("works");
    bench.file("in", &file);
    bench.must(&all(&["put", "in", &server.name("works")], options));
    bench.must(&all(&["get", &server.name("works"), "works"], options));
    assert_eq!(fs::read(bench.path("works")).expect("stored"), file);
}

/// Reads until the server closes the connection.
fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

#[test]
fn keys_that_do_not_fit() {
    let bench = Bench::new(Who::Nobody);
    let options = keyed(&bench);
    bench.must(&["keygen", &bench.name("other")]);
    let server = Server::start(&bench, &options);
    let name = server.name("x");
    bench.file("in", image("x"));
    let put = |options: &[&str]| {
        let line: Vec<_> = ["put", "in", &name].iter().chain(options).copied().collect();
        let ended = bench.order(&line);
        assert_eq!(ended.code(), Some(125), "{ended:?}");
        ended.stderr
    };
    let said = put(&["--key", "other"]);
    assert!(said.contains("has another key than ours"), "{said}");
    let said = put(&["--insecure"]);
    assert!(said.contains("refuses whoever comes without"), "{said}");
    let said = put(&[]);
    assert!(said.contains("there is no key"), "{said}");
    let said = put(&["--key", "in"]);
    assert!(said.contains("can be read by others"), "{said}");
    let said = put(&["--key", "missing"]);
    assert!(said.contains("No such file"), "{said}");
    assert!(!server.file("x").exists());
    works(&bench, &server, &options);
    server.stop();
    // A client with a key never does without.
    let server = Server::start(&bench, &insecure());
    let refused = bench.order(&all(&["put", "in", &server.name("x")], &options));
    assert!(refused.stderr.contains("is insecure"), "{refused:?}");
    assert!(!server.file("x").exists());
    server.stop();
    let again = bench.order(&["keygen", &bench.name("other")]);
    assert!(again.stderr.contains("File exists"), "{again:?}");
}

#[test]
fn a_program_with_a_wrong_key_goes_on() {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &keyed(&bench));
    bench.must(&["keygen", &bench.name("other")]);
    let (name, other) = (server.name("x"), bench.name("other"));
    let line = ["-n", &name, "--key", &other];
    let mut run = bench.launch(&line, bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    run.signal(nix::sys::signal::Signal::SIGTSTP);
    run.complaint("has another key than ours");
    run.check();
    run.go();
    server.stop();
}

/// Hands on what goes between a client and the server, and keeps what the client said.
fn wiretap(server: &Server, work: impl FnOnce(u16)) -> Vec<u8> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let theirs = server.connect();
    let tap = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let (mut from, mut to) =
            (theirs.try_clone().expect("dup"), client.try_clone().expect("dup"));
        let back = std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        let (mut said, mut piece, mut theirs) = (Vec::new(), [0; 65536], theirs);
        while let Ok(n @ 1..) = client.read(&mut piece) {
            said.extend_from_slice(&piece[..n]);
            theirs.write_all(&piece[..n]).expect("handed on");
        }
        let _ = theirs.shutdown(Shutdown::Write);
        back.join().expect("no panic");
        said
    });
    work(port);
    tap.join().expect("no panic")
}

#[test]
fn both_ciphers_are_spoken_and_a_wrong_key_opens_neither() {
    let bench = Bench::new(Who::Me);
    let server = Server::start(&bench, &keyed(&bench));
    let key = key(&bench.path("key"));
    for mode in [Mode::ChaCha, Mode::Aes] {
        let mut channel =
            Channel::connect_in(mode, server.connect(), Some(&key)).expect("a welcome");
        channel.send(Kind::List, 0, b"").expect("sent");
        assert_eq!(channel.receive().expect("an answer").kind, Kind::Done);
        assert!(Channel::connect_in(mode, server.connect(), Some(&[7; KEY])).is_err());
    }
    server.stop();
}

#[test]
fn replays_and_changes() {
    let bench = Bench::new(Who::Nobody);
    let options = keyed(&bench);
    let server = Server::start(&bench, &options);
    bench.file("in", image(noise(100_000, 5)));
    let said = wiretap(&server, |port| {
        let name = format!("cssrv://127.0.0.1:{port}/x");
        bench.must(&all(&["put", "in", &name], &options));
    });
    let secret = noise(100_000, 5);
    assert!(!said.windows(64).any(|w| w == &secret[..64]), "the image went in the clear");
    fs::remove_file(server.file("x")).expect("rm");
    let mut stream = server.connect();
    let _ = stream.write_all(&said);
    rest(stream);
    works(&bench, &server, &options);
    assert!(!server.file("x").exists(), "a replay was obeyed");
    assert_eq!(server.partial(), 0);
    server.stop();
}

#[test]
fn garbage() {
    let bench = Bench::new(Who::Nobody);
    let options = keyed(&bench);
    let server = Server::start(&bench, &options);
    let hello = Preamble { version: 1, mode: Mode::ChaCha, welcome: 0 }.bytes();
    let newer = Preamble { version: 2, mode: Mode::ChaCha, welcome: 0 }.bytes();
    let noise = noise(200_000, 9);
    for parts in [
        &[&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..]][..],
        &[&noise],
        &[&hello, &noise],
        &[&hello, &[48, 0], &noise],
        &[&hello, &[0xff; 2000]],
        &[&newer],
        &[&hello[..15]],
        &[],
    ] {
        let mut stream = server.connect();
        for part in parts {
            let _ = stream.write_all(part);
        }
        let _ = stream.shutdown(Shutdown::Write);
        assert!(rest(stream).len() <= 16 + 50);
    }
    works(&bench, &server, &options);
    server.stop();
}

#[test]
fn impossible_claims() {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &insecure());
    let hello = Preamble { version: 1, mode: Mode::Plain, welcome: 0 }.bytes();
    let header = |kind, len: u32, offset| Header { kind, len, offset }.bytes();
    for bad in [
        header(Kind::Data, 0, 0),
        header(Kind::Put, u32::MAX, 0),
        header(Kind::Get, PIECE as u32 + 1, 0),
        [0xff; HEADER],
        [0; HEADER],
    ] {
        let mut stream = server.connect();
        stream.write_all(&hello).expect("sent");
        stream.write_all(&bad).expect("sent");
        let said = rest(stream);
        assert_eq!(said.get(16), Some(&(Kind::Refused as u8)), "{said:?}");
    }
    for offset in [1 << 63, u64::MAX, u64::MAX - 4] {
        let mut upload = server.begin("x");
        upload.channel.send(Kind::Data, offset, b"12345").expect("sent");
        let (header, said) = serving::answer(&mut upload.channel);
        assert_eq!(header.kind, Kind::Refused, "{offset}: {said}");
    }
    let upload = server.begin("x");
    let seal = ckpt::serve::protocol::Seal { len: 1 << 63, sum: upload.sum.sum() };
    assert_eq!(upload.seal_with(seal).kind, Kind::Refused);
    until("the end of the uploads", || (server.partial() == 0).then_some(()));
    works(&bench, &server, &insecure());
    server.stop();
}

#[test]
fn silent_and_slow_clients() {
    let bench = Bench::new(Who::Nobody);
    let mut options = insecure();
    options.extend(["--timeout", "1"].map(String::from));
    let server = Server::start(&bench, &options);
    // Silent from the start, after the greeting, and in the middle of an upload.
    let silent = server.connect();
    let mut greeted = server.channel(None);
    let mut upload = server.begin("x");
    upload.piece(b"some");
    rest(silent);
    // Where there is an end, there is no hanging.
    assert!(greeted.receive().is_err());
    assert!(upload.channel.receive().is_err());
    until("the end of the upload", || (server.partial() == 0).then_some(()));
    works(&bench, &server, &insecure());
    // A byte from time to time does not make the greeting longer.
    let mut slow = server.connect();
    slow.set_nodelay(true).expect("nodelay");
    slow.set_read_timeout(Some(Duration::from_millis(200))).expect("a time limit");
    let ended = (0..60).any(|_| {
        let written = slow.write(b"C").is_err();
        written
            || matches!(slow.read(&mut [0; 64]), Ok(0))
            || slow.take_error().is_ok_and(|e| e.is_some())
    });
    assert!(ended, "a slow greeting goes on for ever");
    server.stop();
}

#[test]
fn ten_thousand_connections() {
    let bench = Bench::new(Who::Nobody);
    let mut options = insecure();
    options.extend(["--timeout", "2", "--max-clients", "50"].map(String::from));
    let server = Server::start(&bench, &options);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    let (mut open, mut turned_away) = (Vec::new(), 0);
    for _ in 0..10_000 {
        match TcpStream::connect(("127.0.0.1", server.port)) {
            Ok(stream) => open.push(stream),
            // Where we may not have so many at a time, the eldest go.
            Err(_) => drop(open.drain(..open.len().min(100))),
        }
    }
    for stream in &mut open {
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit");
        let mut said = [0; 16];
        let busy = stream.read_exact(&mut said).is_ok() && said[11] == 4;
        turned_away += usize::from(busy);
    }
    assert!(turned_away > open.len() / 2, "{turned_away} of {}", open.len());
    let peak = status_line(server.run.pid(), "VmHWM").expect("the server lives");
    let peak: u64 = peak.trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < 64 << 10, "the server has grown to {peak} KiB");
    let threads = status_line(server.run.pid(), "Threads").expect("the server lives");
    assert!(threads.parse::<u32>().expect("a number") <= 60, "{threads} threads");
    drop(open);
    until("a free place", || {
        let put = bench.order(&["ls", "--insecure", &server.name("")]);
        (put.code() == Some(0)).then_some(())
    });
    works(&bench, &server, &insecure());
    server.stop();
}

#[test]
fn only_friends_hear_names() {
    let bench = Bench::new(Who::Me);
    let options = keyed(&bench);
    let server = Server::start(&bench, &options);
    let key = key(&bench.path("key"));
    let mut channel = server.channel(Some(&key));
    channel.send(Kind::List, 0, b"").expect("sent");
    assert_eq!(serving::answer(&mut channel).0.kind, Kind::Done);
    let mut stream = server.connect();
    stream
        .write_all(&Preamble { version: 1, mode: Mode::Plain, welcome: 0 }.bytes())
        .expect("sent");
    let said = rest(stream);
    assert_eq!((said.len(), said[11]), (16, 2));
    server.stop();
}
