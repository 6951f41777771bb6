// SPDX-License-Identifier: LGPL-2.1-only
//! TCP and UDP among the processes of a job: connections go on, with what is under way in them.

mod harness;

use harness::faults::is_killed;
use harness::{Bench, Build, Run, Way, Who, survive};

/// Every kind and state of a socket, in a process and to its child; also of the one that goes on.
#[test]
fn tcp_and_udp_survive() {
    survive(Who::Me, Way::Save, "tcp", Build::Static, &[]);
    survive(Who::Nobody, Way::LaunchContinue, "tcp", Build::Pie, &[]);
}

/// Whoever reads has more room than before, or all that was looked at is still there.
#[test]
fn a_dumper_is_killed_while_it_looks() {
    let bench = Bench::new(Who::Nobody);
    let program = bench.subject("tcp", Build::Pie);
    let mut run = bench.run(&program, &[]);
    run.expect("ready");
    let (pid, x) = (run.pid_text(), bench.name("x.ckpt"));
    for step in ["roomy", "roomy:2", "gathered", "pictured"] {
        assert!(is_killed(&bench, step, &["save", &pid, "-n", &x]), "{step}");
        run.check();
    }
    bench.must(&["save", "--stop", &pid, "-n", &x]);
    run.ends_well();
    let mut again = bench.run(&x, &[]);
    again.check();
    again.go();
}

/// A python program at "ready".
fn python(bench: &Bench, program: &str) -> Run {
    bench.file("job.py", program);
    let mut run = bench.launch(&["-n", "0.ckpt"], "/usr/bin/python3", &["job.py"]);
    run.expect("ready");
    run
}

/// Through three generations, then the gate is opened.
fn lives_on(bench: &Bench, mut run: Run, wanted: &[&str]) {
    for name in ["1.ckpt", "2.ckpt", "3.ckpt"] {
        run = bench.reborn(name, run);
    }
    bench.file("gate", "");
    wanted.iter().for_each(|line| run.expect(line));
    run.ends_well();
}

/// All buffers are full; every checkpoint that lets the job go on makes room for more. Of all five that is less than the
/// kernel lets a reader have without privilege (half of tcp_rmem, 16 MiB): the sender's buffer does not grow.
const STREAM: &str = r#"
import hashlib, os, random, socket, time
def gate():
    while not os.path.exists("gate"): time.sleep(0.02)
listener = socket.create_server(("localhost", 0))
if os.fork() == 0:
    line, hash, left = socket.create_connection(listener.getsockname()), hashlib.md5(), 40 << 20
    line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
    made = random.Random(1)
    while left:
        piece = made.randbytes(min(left, made.randrange(1, 100000)))
        line.sendall(piece); hash.update(piece); left -= len(piece)
    line.shutdown(socket.SHUT_WR)
    os._exit(line.recv(100, socket.MSG_WAITALL) != hash.digest())
line, peer = listener.accept()
hash = hashlib.md5(line.recv(100000))
print("ready", flush=True)
gate()
while piece := line.recv(1000000): hash.update(piece)
line.sendall(hash.digest()); line.close()
print(os.wait()[1], flush=True)
"#;

#[test]
fn a_stream_is_whole() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let run = python(&bench, STREAM);
        for _ in 0..2 {
            bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
        }
        lives_on(&bench, run, &["0"]);
    }
}

/// The ends come behind bytes for which the readers have no room: of a sender that has closed, and of one that has shut.
const ENDED: &str = r#"
import os, socket, time
piece, ends = bytes(range(251)) * 1000, []
def fill(line):
    line.setblocking(False); sent = 0
    try:
        while True: sent += line.send(piece[sent % 251:])
    except BlockingIOError: return sent
for how in ("closed", "shut"):
    listener = socket.create_server(("localhost", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    sender = socket.create_connection(listener.getsockname())
    reader = listener.accept()[0]
    sent = fill(sender)
    got = len(reader.recv(100000))
    if how == "shut": sender.shutdown(socket.SHUT_WR)
    else: sender.close()
    ends.append([reader, sender, got, sent])
print("ready", flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
for reader, sender, got, sent in ends:
    while part := reader.recv(30000):
        assert part == (piece[got % 251:] + piece)[:len(part)], got
        got += len(part)
    print("all" if got == sent else f"{got} of {sent}", flush=True)
"#;

#[test]
fn what_was_sent_before_an_end_is_whole() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let run = python(&bench, ENDED);
        lives_on(&bench, run, &["all", "all"]);
    }
}

/// What the kernel keeps of a closed connection does not keep the port.
const SERVER: &str = r#"
import http.server, os, socket, threading, time, urllib.request
from multiprocessing.connection import Client, Listener
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        text = self.path.encode() * 10000
        self.send_response(200); self.send_header("Content-Length", str(len(text))); self.end_headers()
        self.wfile.write(text)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer.allow_reuse_address = False
server = http.server.ThreadingHTTPServer(("localhost", 0), Answer)
port, pipe = server.server_address[1], Listener(("localhost", 0))
serves = os.fork()
if serves == 0: server.serve_forever()
server.socket.close()
def ask(host, n):
    assert urllib.request.urlopen(f"http://{host}:{port}/{n}").read() == f"/{n}".encode() * 10000
kept = http.client.HTTPConnection("localhost", port)
kept.request("GET", "/kept"); first = kept.getresponse()
# The server closes first, without SO_REUSEADDR.
old = socket.create_connection(("localhost", port)); old.sendall(b"GET /old HTTP/1.0\r\n\r\n")
while old.recv(1 << 16): pass
old.close()
if os.fork() == 0:
    with Client(pipe.address) as line:
        line.send(list(range(100000)))
        while line.recv(): line.send("more")
    os._exit(0)
line = pipe.accept()
print("ready", flush=True)
asked = 0
while not os.path.exists("gate"):
    ask("localhost", asked); asked += 1; time.sleep(0.02)
print(len(first.read()), len(line.recv()), flush=True)
kept.request("GET", "/again"); print(len(kept.getresponse().read()), flush=True)
line.send(True); print(line.recv(), flush=True)
line.send(False); print(os.wait()[1], asked > 0, flush=True)
kept.close(); os.kill(serves, 9); os.wait()
"#;

#[test]
fn a_server_and_its_clients_go_on() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let run = python(&bench, SERVER);
        lives_on(&bench, run, &["50000 100000", "60000", "more", "0 True"]);
    }
}

/// Data that nobody has accepted the connection of are in the way, and so is somebody else at the port.
const WAITING: &str = r#"
import os, socket, time
listener = socket.create_server(("localhost", 0))
line = socket.create_connection(listener.getsockname()); line.sendall(b"early")
print("ready", flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
other, peer = listener.accept()
print(other.recv(5, socket.MSG_WAITALL), flush=True)
while not os.path.exists("end"): time.sleep(0.02)
other.sendall(b"late"); print(line.recv(4, socket.MSG_WAITALL), flush=True)
"#;

#[test]
fn what_is_in_the_way_is_named() {
    let bench = Bench::new(Who::Nobody);
    let mut run = python(&bench, WAITING);
    let order = ["save", &run.pid_text(), "-n", &bench.name("x.ckpt")];
    let refused = bench.order(&order);
    assert_ne!(refused.code(), Some(0), "{refused:?}");
    assert!(refused.stderr.contains("before it accepted the connection"), "{refused:?}");
    bench.file("gate", "");
    run.expect("b'early'");
    bench.must(&order);
    let again = bench.run(bench.path("x.ckpt"), &[]).end();
    assert_eq!(again.code(), Some(125), "{again:?}");
    assert!(again.stderr.contains("is in use by another program"), "{again:?}");
    bench.file("end", "");
    run.expect("b'late'");
    run.ends_well();
    let mut second = bench.run(bench.path("x.ckpt"), &[]);
    second.expect("b'late'");
    second.ends_well();
}
