// SPDX-License-Identifier: LGPL-2.1-only
//! A checkpoint server under test, and clients that do not keep to the rules.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ckpt::image::write::Writer;
use ckpt::serve::channel::{Channel, KEY};
use ckpt::serve::protocol::{Checksum, Header, Kind, Seal};
use ckpt_abi::image::SectionKind;
use nix::sys::signal::Signal::SIGTERM;

use crate::harness::{Bench, Ended, Run, until};

/// A server with its directory `store` on the bench.
pub(crate) struct Server {
    pub run: Run,
    pub port: u16,
    pub store: PathBuf,
}

/// Options of a side that has the bench's key.
pub(crate) fn keyed(bench: &Bench) -> Vec<String> {
    let key = bench.path("key");
    if !key.exists() {
        bench.must(&["keygen", &bench.name("key")]);
    }
    vec!["--key".into(), bench.name("key")]
}

/// Options of a side without one.
pub(crate) fn insecure() -> Vec<String> {
    vec!["--insecure".into()]
}

impl Server {
    /// Starts `ckpt serve` on a free port of the loopback device.
    pub(crate) fn start(bench: &Bench, options: &[String]) -> Self {
        let store = bench.path("store");
        if !store.exists() {
            bench.subdirectory("store");
        }
        let mut command = bench.command(bench.ckpt());
        command.args(["serve", "-p", "0", "--listen", "127.0.0.1", "-d"]).arg(&store);
        Self::watch(
            Run::start({
                command.args(options);
                command
            }),
            store,
        )
    }

    /// A server without a key in the place of this one, which has ended.
    pub(crate) fn again(&self, bench: &Bench) -> Self {
        let mut command = bench.command(bench.ckpt());
        command.args(["serve", "--insecure", "--listen", "127.0.0.1", "-p"]);
        command.arg(self.port.to_string()).arg("-d").arg(&self.store);
        Self::watch(Run::start(command), self.store.clone())
    }

    /// Takes a server that was just started and finds out its port.
    pub(crate) fn watch(mut run: Run, store: PathBuf) -> Self {
        let port = until("the server's address", || {
            let said = run.stderr();
            assert!(run.lives(), "the server ended: {said}");
            let line = said.lines().find(|l| l.contains("serving"))?.to_owned();
            line.rsplit(':').next()?.parse().ok()
        });
        Self { run, port, store }
    }

    /// `cssrv://127.0.0.1:PORT/NAME`
    pub(crate) fn name(&self, name: &str) -> String {
        format!("cssrv://127.0.0.1:{}/{name}", self.port)
    }

    /// A stored file.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.store.join(name)
    }

    /// What the server has under a name.
    pub(crate) fn stored(&self, key: Option<&[u8; KEY]>, name: &str) -> Option<Vec<u8>> {
        let mut channel = self.channel(key);
        channel.send(Kind::Get, 0, name.as_bytes()).expect("sent");
        let mut bytes = Vec::new();
        loop {
            let header = channel.receive().expect("an answer");
            let payload = channel.payload(&header);
            match header.kind {
                Kind::Done => {
                    let len = u64::from_le_bytes(*payload.first_chunk().expect("a length"));
                    bytes.resize(len as usize, 0);
                }
                Kind::Data => {
                    bytes[header.offset as usize..][..payload.len()].copy_from_slice(payload);
                }
                Kind::Seal => return Some(bytes),
                _ => return None,
            }
        }
    }

    /// Uploads that are going on.
    pub(crate) fn partial(&self) -> usize {
        partial(&self.store)
    }

    /// Bytes that all the files of the store have on the disk.
    pub(crate) fn room(&self) -> u64 {
        fn of(dir: &Path) -> u64 {
            let entries = fs::read_dir(dir).expect("a folder").map(|e| e.expect("an entry"));
            let room = |entry: fs::DirEntry| match entry.metadata() {
                Ok(meta) if meta.is_dir() => of(&entry.path()),
                Ok(meta) => meta.blocks() * 512,
                // It is gone meanwhile.
                Err(_) => 0,
            };
            entries.map(room).sum()
        }
        of(&self.store)
    }

    /// A connection in the clear.
    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.port)
    }

    /// A connection that has been welcomed.
    pub(crate) fn channel(&self, key: Option<&[u8; KEY]>) -> Channel<TcpStream> {
        Channel::connect(self.connect(), key).expect("a welcome")
    }

    /// Begins an upload without a key.
    pub(crate) fn begin(&self, name: &str) -> Uploading {
        Uploading::begin(self.port, name)
    }

    /// Ends it with SIGTERM: status 0 and no litter.
    #[track_caller]
    pub(crate) fn stop(self) -> Ended {
        self.run.signal(SIGTERM);
        let ended = self.run.ends_well();
        assert_eq!(partial(&self.store), 0, "litter: {ended:?}");
        ended
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit");
    stream
}

fn partial(store: &Path) -> usize {
    let entries = fs::read_dir(store.join(".ckpt-serve")).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name() != "packs").count()
}

/// An upload in steps.
pub(crate) struct Uploading {
    pub channel: Channel<TcpStream>,
    pub sum: Checksum,
    pub len: u64,
}

impl Uploading {
    /// Begins one on a port of this host, without a key.
    pub(crate) fn begin(port: u16, name: &str) -> Self {
        let mut channel = Channel::connect(connect(port), None).expect("a welcome");
        channel.send(Kind::Put, 0, name.as_bytes()).expect("sent");
        assert_eq!(channel.receive().expect("an answer").kind, Kind::Done);
        Self { channel, sum: Checksum::default(), len: 0 }
    }

    /// Sends a piece behind the last.
    pub(crate) fn piece(&mut self, bytes: &[u8]) {
        self.sum.add(self.len, bytes);
        self.channel.send(Kind::Data, self.len, bytes).expect("sent");
        self.len += bytes.len() as u64;
    }

    /// Ends the image.
    pub(crate) fn seal(self) -> Header {
        let seal = Seal { len: self.len, sum: self.sum.sum() };
        self.seal_with(seal)
    }

    /// Ends the image in this way; the answer.
    pub(crate) fn seal_with(mut self, seal: Seal) -> Header {
        self.channel.send(Kind::Seal, 0, &seal.bytes()).expect("sent");
        answer(&mut self.channel).0
    }
}

/// The next answer but "wait", with its payload as text.
pub(crate) fn answer(channel: &mut Channel<TcpStream>) -> (Header, String) {
    loop {
        let header = channel.receive().expect("an answer");
        if header.kind != Kind::Wait {
            let text = String::from_utf8_lossy(channel.payload(&header)).into_owned();
            return (header, text);
        }
    }
}

/// Bytes that no compression and no rule makes shorter.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> =
        std::iter::repeat_with(&mut next).take(len.div_ceil(8)).flatten().collect();
    bytes.truncate(len);
    bytes
}

/// Reads the bench's key.
pub(crate) fn key(path: &Path) -> [u8; KEY] {
    ckpt::image::key::read(path).expect("a key")
}

/// The options in one list.
pub(crate) fn all<'a>(first: &[&'a str], options: &'a [String]) -> Vec<&'a str> {
    first.iter().copied().chain(options.iter().map(String::as_str)).collect()
}

/// A whole checkpoint with these bytes in front, where else ckpt is: clients send nothing else.
pub(crate) fn image(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut sink = Vec::new();
    let mut writer = Writer::new(&mut sink, bytes.as_ref().to_vec());
    writer.bytes(SectionKind::Strings, b"").expect("memory takes all");
    writer.seal().expect("memory takes all");
    sink
}
