// SPDX-License-Identifier: LGPL-2.1-only
//! A checkpoint server whose disk fails, is full or slow, whose directory is somebody else's, and whose clients say what is
//! not so: what was stored stays, what was not is no success, and room comes back.

mod harness;
mod serving;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ckpt::serve::channel::KEY;
use ckpt::serve::protocol::{Kind, Seal};
use ckpt_cipher::Digest;
use nix::sys::signal::Signal::SIGTERM;

use harness::{Bench, Run, Who, until};
use serving::{Server, answer, image, insecure, key, noise};

/// A server under which a system call of files at a path is another than it was; it lies on this bench in `store`.
fn injected(bench: &Bench, path: &str, how: &str) -> Server {
    let mut command = bench.command("strace");
    let call = how.split(':').next().unwrap_or_default();
    command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-P", path]);
    command.args(["-e", &format!("trace={call}"), "-e", &format!("inject={how}")]);
    command.arg(bench.ckpt());
    command.args(["serve", "--insecure", "-p", "0", "--listen", "127.0.0.1", "-d", "store"]);
    Server::watch(Run::start(command), bench.path("store"))
}

/// A bench with a checkpoint `job/x` of a MiB in its store, and another one in the file `new`.
fn stored() -> Bench {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &insecure());
    bench.file("old", image(noise(1 << 20, 1)));
    bench.file("new", image(noise(1 << 20, 3)));
    bench.must(&["put", "--insecure", "old", &server.name("job/x")]);
    server.stop();
    bench
}

/// Nothing takes room but what is stored there.
#[track_caller]
fn holds_only(bench: &Bench, server: &Server, file: &str) {
    let stored = server.stored(None, "job/x").expect("a checkpoint");
    assert!(stored == fs::read(bench.path(file)).expect("a file"), "it is another one");
    let room = server.room();
    assert!(room < (3 << 20) / 2, "what is gone takes room still: {room}");
}

#[test]
fn an_end_while_a_disk_is_slow_loses_no_room() {
    let bench = stored();
    // Longer than the server waits for those who are at work when it ends.
    let server = injected(&bench, &bench.name("store/job"), "fsync:delay_enter=9000000");
    let inode = || fs::metadata(server.file("job/x")).expect("a checkpoint").ino();
    let old = inode();
    let put = bench.run(bench.ckpt(), &["put", "--insecure", "new", &server.name("job/x")]);
    until("the new one", || (inode() != old).then_some(()));
    server.run.signal(SIGTERM);
    server.run.ends_well();
    put.end();
    let server = Server::start(&bench, &insecure());
    holds_only(&bench, &server, "new");
    server.stop();
}

#[test]
fn a_name_that_does_not_come_to_the_disk_is_no_success() {
    let bench = stored();
    let server = injected(&bench, &bench.name("store/job"), "fsync:error=EIO");
    let refused = bench.order(&["put", "--insecure", "new", &server.name("job/x")]);
    assert!(refused.stderr.contains("I/O error"), "{refused:?}");
    server.stop();
    // Which of both is there then is the disk's to say; it is whole, and the other one's room is free.
    let server = Server::start(&bench, &insecure());
    holds_only(&bench, &server, "new");
    server.stop();
    // Nor does a folder.
    let server = injected(&bench, &bench.name("store"), "fsync:error=EIO");
    let refused = bench.order(&["put", "--insecure", "new", &server.name("other/x")]);
    assert!(refused.stderr.contains("I/O error"), "{refused:?}");
    assert!(!server.file("other").exists());
    server.stop();
}

#[test]
fn counts_that_cannot_be_written_are_not_believed() {
    let bench = stored();
    let server = Server::start(&bench, &insecure());
    let old = fs::read(bench.path("old")).expect("a file");
    // Of the first group of slots a half stays.
    bench.file("half", image(&old[..64 * 4096]));
    bench.must(&["put", "--insecure", "half", &server.name("half")]);
    server.stop();
    let packs = fs::read_dir(bench.path("store/.ckpt-serve/packs")).expect("a folder");
    let packs = packs.map(|entry| entry.expect("an entry").path());
    let largest = packs.max_by_key(|path| {
        let is_pack =
            path.file_name().is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok());
        if is_pack { fs::metadata(path).expect("a pack").len() } else { 0 }
    });
    let pack = largest.expect("a pack");
    let server = injected(&bench, pack.to_str().expect("UTF-8"), "pwrite64:error=EIO");
    bench.must(&["rm", "--insecure", &server.name("job/x")]);
    for name in ["a", "b", "c"] {
        bench.must(&["put", "--insecure", "old", &server.name(name)]);
        assert!(server.stored(None, name).expect("a checkpoint") == old, "{name} is another one");
    }
    server.stop();
    let server = Server::start(&bench, &insecure());
    for name in ["a", "b", "c"] {
        assert!(server.stored(None, name).expect("a checkpoint") == old, "{name} is another one");
        bench.must(&["rm", "--insecure", &server.name(name)]);
    }
    assert!(server.room() < 1 << 20, "what is gone takes room still: {}", server.room());
    server.stop();
}

#[test]
fn content_that_does_not_come_to_the_disk_is_stored_anew() {
    let bench = Bench::new(Who::Nobody);
    // A pack with this number, so that the first one of an upload has the next.
    bench.subdirectory("store");
    bench.subdirectory("store/.ckpt-serve");
    bench.subdirectory("store/.ckpt-serve/packs");
    bench.file("store/.ckpt-serve/packs/4000000000", []);
    let pack = bench.name("store/.ckpt-serve/packs/4000000001");
    let server = injected(&bench, &pack, "fsync:error=EIO");
    let bytes = image(noise(20 * 4096, 1));
    bench.file("in", &bytes);
    let mut other = server.begin("other");
    let pages: Vec<_> = bytes[..20 * 4096].chunks(4096).collect();
    other.piece(&bytes[..20 * 4096]);
    until("the other's content", || {
        other.channel.send(Kind::Offer, 0, &offer(&pages)).expect("sent");
        let header = other.channel.receive().expect("an answer");
        (other.channel.payload(&header) == [0; 3]).then_some(())
    });
    assert!(Path::new(&pack).exists());
    let put = || bench.order(&["put", "--insecure", "in", &server.name("x")]);
    let refused = put();
    assert!(refused.stderr.contains("I/O error"), "{refused:?}");
    let said = put();
    assert_eq!(said.code(), Some(0), "{said:?}");
    assert!(server.stored(None, "x").expect("a checkpoint") == bytes);
    drop(other);
    until("the end of the upload", || (server.partial() == 0).then_some(()));
    server.stop();
}

#[test]
fn what_a_server_of_another_user_has_stored_stays() {
    // Only root gives files away.
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    for (mode, owner) in [(0o755, 1), (0o777, 0)] {
        let bench = stored();
        let (store, folder) = (bench.path("store"), bench.path("store/job"));
        let user = fs::metadata(&folder).expect("a folder").uid();
        let give = |to: u32| {
            for path in [&folder, &folder.join("x")] {
                std::os::unix::fs::chown(path, Some(to), None).expect("chown");
            }
        };
        fs::set_permissions(&store, PermissionsExt::from_mode(mode)).expect("chmod");
        fs::remove_file(store.join(".ckpt-serve/packs/clean")).expect("it was left well");
        give(owner);
        let server = Server::start(&bench, &insecure());
        server.run.complaint("no room is given back: job: Permission denied");
        server.stop();
        give(user);
        let server = Server::start(&bench, &insecure());
        holds_only(&bench, &server, "old");
        server.stop();
    }
}

#[test]
fn a_disk_that_is_full_at_any_page_takes_checkpoints_when_it_has_room() {
    let bench = Bench::new(Who::Me);
    let store = bench.subdirectory("store");
    let script = "mount -t tmpfs -o size=1m none store && exec ./ckpt serve --insecure -p 0 --listen 127.0.0.1 -d store";
    let own = if nix::unistd::geteuid().is_root() { "-m" } else { "-mUr" };
    let mut command = bench.command("unshare");
    command.args([own, "sh", "-c", script]);
    let mut server = Server::watch(Run::start(command), PathBuf::new());
    server.store = Path::new("/proc")
        .join(server.run.pid_text())
        .join("root")
        .join(store.strip_prefix("/").expect("an absolute path"));
    let filler = server.file("filler");
    let free = || {
        let stat = nix::sys::statvfs::statvfs(&server.store).expect("a file system");
        stat.blocks_available() * stat.fragment_size()
    };
    // A first one, whose pages all others have, too.
    let common = noise(20 * 4096, 1);
    let content = |seed: u64| image([common.clone(), noise(20 * 4096, seed)].concat());
    bench.file("first", content(3));
    bench.must(&["put", "--insecure", "first", &server.name("first")]);
    bench.file("in", content(5));
    let put = || bench.order(&["put", "--insecure", "in", &server.name("x")]);
    let mut refused = 0;
    for pages in 0..30 {
        let room = free().saturating_sub(pages * 4096);
        fs::write(&filler, noise(room as usize, 7)).expect("room for that");
        refused += u32::from(put().code() != Some(0));
        fs::remove_file(&filler).expect("the filler");
        let said = put();
        assert_eq!(said.code(), Some(0), "{pages} pages were free: {said:?}");
        bench.must(&["rm", "--insecure", &server.name("x")]);
    }
    assert!(refused > 10, "the disk was full only {refused} times");
    assert!(server.stored(None, "first").expect("the first") == content(3));
    bench.must(&["rm", "--insecure", &server.name("first")]);
    assert!(free() > 900 << 10, "room is not given back: {}", free());
    server.run.signal(SIGTERM);
    server.run.ends_well();
}

#[test]
fn users_and_all_do_not_share_a_directory() {
    let bench = Bench::new(Who::Nobody);
    bench.subdirectory("keys");
    bench.must(&["keygen", &bench.name("keys/alice")]);
    let users: Vec<String> = ["--users", "keys"].map(String::from).into();
    let refused = |options: &[&str]| {
        let ended = bench.order(&[&["serve", "-p", "0", "-d", "store"], options].concat());
        assert_eq!(ended.code(), Some(125), "{ended:?}");
        assert!(ended.stderr.contains("another checkpoint server works in store"), "{ended:?}");
    };
    let server = Server::start(&bench, &users);
    refused(&["--insecure"]);
    refused(&["--insecure", "--check"]);
    server.stop();
    assert!(!bench.path("store/.ckpt-serve").exists());
    let server = Server::start(&bench, &insecure());
    refused(&["--users", "keys"]);
    refused(&["--users", "keys", "--check"]);
    server.stop();
    assert!(!bench.path("store/.ckpt-serve").exists());
}

#[test]
fn who_asks_for_metrics_slowly_is_not_waited_for() {
    let bench = Bench::new(Who::Nobody);
    bench.subdirectory("store");
    let server =
        Server::start(&bench, &[&insecure()[..], &["--metrics".into(), "0".into()]].concat());
    let said = server.run.stderr();
    let place = said.split("metrics at http://").nth(1).and_then(|l| l.split('/').next());
    let mut slow = TcpStream::connect(place.expect("an address")).expect("a connection");
    slow.set_nodelay(true).expect("nodelay");
    slow.set_read_timeout(Some(Duration::from_millis(200))).expect("a time limit");
    let ended = (0..100).any(|_| {
        slow.write(b"G").is_err()
            || match slow.read(&mut [0; 64]) {
                Ok(n) => n == 0,
                Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
            }
    });
    assert!(ended, "a slow question goes on for ever");
    server.stop();
}

/// An offer of pages.
fn offer(pages: &[&[u8]]) -> Vec<u8> {
    let mut digest = Digest::default();
    let len: usize = pages.iter().map(|page| page.len()).sum();
    let mut bytes = (len as u32).to_le_bytes().to_vec();
    bytes.extend(pages.iter().flat_map(|page| digest.of(page)));
    bytes
}

#[test]
fn offers_cost_what_they_make_the_server_write() {
    let bench = Bench::new(Who::Nobody);
    let mut options = insecure();
    options.extend(["--quota", "700K"].map(String::from));
    let server = Server::start(&bench, &options);
    let bytes = noise(500_000, 1);
    bench.file("in", image(&bytes));
    bench.must(&["put", "--insecure", "in", &server.name("x")]);
    // The same pages over and over, none beside the one before.
    let pages: Vec<_> = (0..60).map(|i| &bytes[(i * 7 % 60 + 1) * 4096..][..4096]).collect();
    let offer = offer(&pages);
    let mut upload = server.begin("y");
    let refused = (0..1000).find_map(|_| {
        upload.channel.send(Kind::Offer, 0, &offer).expect("sent");
        let header = upload.channel.receive().expect("an answer");
        let said = upload.channel.payload(&header);
        match header.kind {
            Kind::Lacks => {
                assert_eq!(said, [0; 8]);
                None
            }
            kind => Some((kind, String::from_utf8_lossy(said).into_owned())),
        }
    });
    let (kind, said) = refused.expect("offers for ever cost nothing");
    assert_eq!(kind, Kind::Refused);
    assert!(said.contains("quota of 716800 bytes"), "{said}");
    until("the end of the upload", || (server.partial() == 0).then_some(()));
    bench.file("in", image(noise(100_000, 3)));
    bench.must(&["put", "--insecure", "in", &server.name("y")]);
    server.stop();
}

#[test]
fn what_is_being_read_takes_its_room_still() {
    let bench = Bench::new(Who::Nobody);
    let mut options = insecure();
    options.extend(["--whole", "--quota", "30M"].map(String::from));
    let server = Server::start(&bench, &options);
    bench.file("in", image(vec![1; 24 << 20]));
    bench.must(&["put", "--insecure", "in", &server.name("x")]);
    let mut channel = server.channel(None);
    channel.send(Kind::Get, 0, b"x").expect("sent");
    assert_eq!(channel.receive().expect("an answer").kind, Kind::Done);
    // More than sockets hold is not on its way yet.
    bench.must(&["rm", "--insecure", &server.name("x")]);
    let put = || bench.order(&["put", "--insecure", "in", &server.name("y")]);
    let refused = put();
    assert!(refused.stderr.contains("quota"), "{refused:?}");
    drop(channel);
    until("the room", || (put().code() == Some(0)).then_some(()));
    server.stop();
}

#[test]
fn nobody_stores_what_says_where_content_lies() {
    let bench = stored();
    let server = Server::start(&bench, &["--insecure", "--whole"].map(String::from));
    let recipe = fs::read(server.file("job/x")).expect("a file");
    for len in [recipe.len(), recipe.len() - 1] {
        let mut upload = server.begin("y");
        upload.piece(&recipe[..len]);
        assert_eq!(upload.seal().kind, Kind::Refused);
    }
    server.stop();
    // What tells the packs from others' is not less than the content.
    fs::write(bench.path("store/.ckpt-serve/packs/id"), [7; 16]).expect("a file");
    let _ = fs::remove_file(bench.path("store/.ckpt-serve/packs/clean"));
    let server = Server::start(&bench, &insecure());
    server
        .run
        .complaint("no room is given back: job/x: its content is in the directory of another");
    assert!(server.room() > 1 << 20, "what could not be seen is gone");
    server.stop();
}

#[test]
fn a_digest_opens_nothing() {
    let bench = Bench::new(Who::Me);
    bench.subdirectory("keys");
    for user in ["alice", "bob"] {
        bench.must(&["keygen", &bench.name(&format!("keys/{user}"))]);
    }
    let server = Server::start(&bench, &["--users", "keys"].map(String::from));
    let bytes = image(noise(20 * 4096, 1));
    bench.file("in", &bytes);
    let alice = key(&bench.path("keys/alice"));
    let bob = key(&bench.path("keys/bob"));
    let put = |user: &str| {
        let line = ["put", "in", &server.name("x"), "--key", &bench.name(&format!("keys/{user}"))];
        bench.must(&line);
    };
    put("alice");
    let begin = |key: &[u8; KEY]| {
        let mut channel = server.channel(Some(key));
        channel.send(Kind::Put, 0, b"y").expect("sent");
        assert_eq!(answer(&mut channel).0.kind, Kind::Done);
        channel
    };
    let pages: Vec<_> = bytes[..20 * 4096].chunks(4096).collect();
    let offer = offer(&pages);
    let offered = |key: &[u8; KEY]| {
        let mut channel = begin(key);
        channel.send(Kind::Offer, 0, &offer).expect("sent");
        let header = answer(&mut channel).0;
        assert_eq!(header.kind, Kind::Lacks);
        (channel.payload(&header).to_vec(), channel)
    };
    // What another one has is not there.
    assert_eq!(offered(&alice).0, [0, 0, 0]);
    let (lacks, mut channel) = offered(&bob);
    assert_eq!(lacks, [0xff, 0xff, 0xf]);
    // Nor is what comes the content of the digest before it.
    channel.send(Kind::Data, 0, &noise(20 * 4096, 3)).expect("sent");
    channel.send(Kind::Seal, 0, &Seal { len: 20 * 4096, sum: 0 }.bytes()).expect("sent");
    let (header, said) = answer(&mut channel);
    assert_eq!(header.kind, Kind::Refused, "{said}");
    assert!(said.contains("checksum"), "{said}");
    drop(channel);
    assert_eq!(offered(&bob).0, [0xff, 0xff, 0xf]);
    put("bob");
    assert!(server.stored(Some(&bob), "x").expect("bob's") == bytes);
    server.stop();
}
