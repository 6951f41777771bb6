// SPDX-License-Identifier: LGPL-2.1-only
//! Sockets whose other ends are outside of the checkpoint, and ports that others have by then.

mod harness;

use harness::{Bench, Who};

const PYTHON: &str = "/usr/bin/python3";

/// Has the other ends.
const OUTSIDE: &str = r#"
import os, select, socket
four = socket.create_server(("127.0.0.1", 0)); six = socket.create_server(("::1", 0), family=socket.AF_INET6)
named = socket.socket(socket.AF_UNIX); named.bind(os.path.abspath("stream")); named.listen()
grams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); grams.bind(os.path.abspath("grams"))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in (four, six, udp)), flush=True)
kept = [four.accept()[0], six.accept()[0], four.accept()[0], four.accept()[0], named.accept()[0]]
kept[0].sendall(b"early"); kept[1].sendall(b"tail"); kept[1].shutdown(socket.SHUT_WR)
kept[3].sendall(b"x" * 50000); kept[4].sendall(b"unix")
while True:
    for s in select.select([grams, udp], [], [])[0]:
        message, whose = s.recvfrom(100)
        if message == b"again": udp.sendto(b"answer", whose)
        print(message, flush=True)
"#;

/// Has connections to it in several states, and one to itself that is being made.
const INSIDE: &str = r#"
import errno, os, select, socket, sys, time
one, two, three = map(int, sys.argv[1:])
est = socket.create_connection(("127.0.0.1", one)); cw = socket.create_connection(("::1", two))
fw = socket.create_connection(("127.0.0.1", one)); big = socket.create_connection(("127.0.0.1", one))
named = socket.socket(socket.AF_UNIX); named.connect("stream")
grams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); grams.connect("grams"); grams.send(b"one")
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.connect(("127.0.0.1", three))
full = socket.socket(); full.bind(("127.0.0.1", 0)); full.listen(0)
first = socket.create_connection(full.getsockname())
late = socket.socket(); late.setblocking(False); late.connect_ex(full.getsockname())
watch = select.epoll(); watch.register(est, select.EPOLLIN); watch.register(fw, select.EPOLLOUT)
fw.shutdown(socket.SHUT_WR); name = est.getsockname()
for s, n in (est, 5), (cw, 4), (big, 50000), (named, 4):
    while len(s.recv(n, socket.MSG_PEEK)) < n: pass
print("ready", flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
def did(act, *args):
    try: return act(*args)
    except OSError as e: return errno.errorcode[e.errno]
HUP = select.EPOLLHUP | select.EPOLLERR
print(est.getsockname() == name, [event & HUP == HUP for fd, event in watch.poll(0)])
print([did(est.recv, 10) for _ in range(3)], did(est.send, b"x"))
print(did(cw.recv, 10), did(cw.send, b"x") in ("EPIPE", "ECONNRESET"))
print(fw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET)
print(len(big.recv(60000, socket.MSG_WAITALL)), did(big.recv, 10))
print(did(named.recv, 10), did(named.recv, 10), did(named.send, b"x"))
grams.send(b"two"); udp.send(b"again"); print(udp.recv(100))
full.accept(); peer, _ = full.accept(); select.select([], [late], [])
print(late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), peer.getpeername() == late.getsockname(), flush=True)
"#;

#[test]
fn connections_to_others_are_reset_and_datagrams_go_on() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("outside.py", OUTSIDE);
        bench.file("inside.py", INSIDE);
        let mut outside = bench.run(PYTHON, &["outside.py"]);
        let ports = outside.line();
        let mut args = vec!["inside.py"];
        args.extend(ports.split(' '));
        let mut run = bench.run(PYTHON, &args);
        run.expect("ready");
        outside.expect("b'one'");
        let said = bench.must(&["save", "-n", &bench.name("1.ckpt"), "--stop", &run.pid_text()]);
        let reset =
            "connections to others, which a restart finds reset: descriptors 3 (TCP to 127.0.0.1:";
        assert!(said.stderr.contains(reset), "{said:?}");
        run.ends_well();
        run = bench.run(bench.path("1.ckpt"), &[]);
        for name in ["2.ckpt", "3.ckpt"] {
            run = bench.reborn(name, run);
        }
        bench.file("gate", "");
        for line in [
            "True [True, True]",
            "[b'early', 'ECONNRESET', b''] EPIPE",
            "b'tail' True",
            "True",
            "50000 ECONNRESET",
            "b'unix' ECONNRESET EPIPE",
            "b'answer'",
            "0 True",
        ] {
            run.expect(line);
        }
        run.ends_well();
        outside.expect("b'two'");
        outside.expect("b'again'");
    }
}

/// Listens at two ports and has a third for datagrams; a group of two shares a fourth.
const SERVER: &str = r#"
import os, socket, sys, time
def bound(kind, port=0):
    s = socket.socket(socket.AF_INET, kind)
    if kind == socket.SOCK_STREAM: s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(("127.0.0.1", port)); return s
one, two = bound(socket.SOCK_STREAM), bound(socket.SOCK_STREAM)
udp, twin = bound(socket.SOCK_DGRAM), bound(socket.SOCK_STREAM, two.getsockname()[1])
for s in one, two, twin: s.listen()
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0); two.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
line = socket.create_connection(one.getsockname()); peer, _ = one.accept()
ports = [s.getsockname()[1] for s in (one, two, udp)]
print(*ports, flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
now = [s.getsockname()[1] for s in (one, two, udp)]
line.send(b"on"); assert peer.recv(2) == b"on" and line.getpeername()[1] == now[0]
assert twin.getsockname() == two.getsockname() and twin.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
assert not two.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
again = socket.create_connection(one.getsockname()); one.accept()
print(*[a == b for a, b in zip(ports, now)], flush=True)
while not os.path.exists("end"): time.sleep(0.02)
"#;

#[test]
fn ports_that_others_have_are_named_at_once_and_can_be_mapped() {
    let bench = Bench::new(Who::Nobody);
    bench.file("server.py", SERVER);
    let mut run = bench.run(PYTHON, &["server.py"]);
    let ports = run.line();
    let ports: Vec<&str> = ports.split(' ').collect();
    let name = bench.name("x.ckpt");
    bench.must(&["save", &run.pid_text(), "-n", &name]);
    let refused = bench.run(&name, &[]).end();
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    for port in &ports {
        let words = format!("the port of 127.0.0.1:{port} is in use by another program");
        assert!(refused.stderr.contains(&words), "{refused:?}");
    }
    assert!(refused.stderr.contains("--map-port OLD=NEW"), "{refused:?}");
    // While the first runs on, two more of them do.
    let bind = |_| std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let held: Vec<_> = (0..6).map(bind).collect();
    let free: Vec<u16> = held.iter().map(|l| l.local_addr().expect("its name").port()).collect();
    drop(held);
    let map = |at: usize| {
        let pairs = ports.iter().zip(&free[at..]).map(|(old, new)| format!("{old}={new}"));
        pairs.collect::<Vec<_>>().join(",")
    };
    let mut others = [0, 3].map(|at| bench.run(&name, &["--map-port", &map(at)]));
    bench.file("gate", "");
    run.expect("True True True");
    others.iter_mut().for_each(|other| other.expect("False False False"));
    bench.file("end", "");
    run.ends_well();
    for other in others {
        other.ends_well();
    }
    bench.run(&name, &[]).expect("True True True");
}

/// Sockets without connections, as far as one may have them.
const OTHERS: &str = r#"
import os, socket, time
net = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
net.bind((0, 1)); net.setsockopt(270, 1, 5); net.setsockopt(270, 3, 1)
all = [net]
if os.geteuid() == 0:
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    raw.bind(("127.0.0.1", 0)); raw.setsockopt(255, 1, b"\x08\0\0\0"); raw.setsockopt(0, socket.IP_TTL, 9)
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 8); packet.bind(("lo", 8))
    packet.setsockopt(263, 8, 1)
    all += [raw, packet]
def state():
    state = [s.getsockname() for s in all] + [net.getsockopt(270, n, 4) for n in (9, 3)]
    if len(all) > 1: state += [raw.getsockopt(255, 1), raw.getsockopt(0, socket.IP_TTL), packet.getsockopt(263, 8)]
    return state
before = state()
print("ready", flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
print(state() == before, before, state(), flush=True)
"#;

#[test]
fn sockets_without_connections_are_bound_again() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("others.py", OTHERS);
        let mut run = bench.run(PYTHON, &["others.py"]);
        run.expect("ready");
        for name in ["1.ckpt", "2.ckpt", "3.ckpt"] {
            run = bench.reborn(name, run);
        }
        bench.file("gate", "");
        let line = run.line();
        assert!(line.starts_with("True"), "{line}");
        run.ends_well();
    }
}

/// Sends descriptors to whoever connects, and to a socket that is connected to it.
const SENDER: &str = r#"
import os, socket
far = socket.socket(socket.AF_UNIX); far.bind(os.path.abspath("far")); far.listen()
grams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); grams.bind(os.path.abspath("far.d"))
print("listens", flush=True)
kept, _ = far.accept(); file = os.open("/etc/passwd", os.O_RDONLY)
socket.send_fds(kept, [b"hello"], [file])
grams.recv(10); grams.connect(os.path.abspath("near.d")); socket.send_fds(grams, [b"hi"], [file, file])
while True: grams.recv(10)
"#;

const RECEIVER: &str = r#"
import os, socket, time
far = socket.socket(socket.AF_UNIX); far.connect(os.path.abspath("far"))
grams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); grams.bind(os.path.abspath("near.d"))
grams.connect(os.path.abspath("far.d")); grams.send(b"go")
far.recv(1, socket.MSG_PEEK); grams.recv(1, socket.MSG_PEEK)
print("ready", flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
print(socket.recv_fds(far, 10, 4)[:2], socket.recv_fds(grams, 10, 4)[:2], flush=True)
"#;

#[test]
fn descriptors_that_others_have_sent_are_a_named_loss() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("sender.py", SENDER);
        bench.file("receiver.py", RECEIVER);
        let mut sender = bench.run(PYTHON, &["sender.py"]);
        sender.expect("listens");
        let mut run = bench.run(PYTHON, &["receiver.py"]);
        run.expect("ready");
        let said = bench.must(&["save", "-n", &bench.name("1.ckpt"), "--stop", &run.pid_text()]);
        for fd in [3, 4] {
            let lost = format!("descriptors that others have sent to descriptor {fd}");
            assert!(said.stderr.contains(&lost), "{said:?}");
        }
        run.ends_well();
        run = bench.run(bench.path("1.ckpt"), &[]);
        for name in ["2.ckpt", "3.ckpt"] {
            run = bench.reborn(name, run);
        }
        bench.file("gate", "");
        run.expect("(b'hello', []) (b'hi', [])");
        run.ends_well();
    }
}

/// A socket of any address, and two that share a port, but no address.
const DATAGRAMS: &str = r#"
import os, socket, time
def bound(at): s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(at); return s
wide = bound(("0.0.0.0", 0)); one = bound(("127.0.0.1", 0)); two = bound(("127.0.0.2", one.getsockname()[1]))
print(wide.getsockname()[1], one.getsockname()[1], flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
"#;

/// Sends as from another machine, then takes a port with the willingness to share it.
const MEDDLER: &str = r#"
import socket, struct, sys
wide, port = map(int, sys.argv[1:])
udp = struct.pack("!4H", wide, wide, 15, 0) + b"strange"
ends = socket.inet_aton("198.51.100.9") + socket.inet_aton("127.0.0.1")
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
s.sendto(struct.pack("!2B3H2BH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + ends + udp, ("127.0.0.1", 0))
print("sent", flush=True)
sys.stdin.readline()
t = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
t.bind(("127.0.0.1", port)); print("bound", flush=True)
sys.stdin.readline()
"#;

/// A stranger's datagram is a named loss also where its port is that of a socket of ours; and a port is not shared with one.
#[test]
fn strangers_with_the_ports_of_ours_are_told_apart() {
    let bench = Bench::new(Who::Me);
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    bench.file("job.py", DATAGRAMS);
    bench.file("meddler.py", MEDDLER);
    let mut run = bench.run(PYTHON, &["job.py"]);
    let ports = run.line();
    let ports: Vec<&str> = ports.split(' ').collect();
    let mut meddler = bench.run(PYTHON, &["meddler.py", ports[0], ports[1]]);
    meddler.expect("sent");
    let saved = bench.must(&["save", "-n", &bench.name("1.ckpt"), "--stop", &run.pid_text()]);
    assert!(saved.stderr.contains("1 messages of others that wait at 0.0.0.0:"), "{saved:?}");
    run.ends_well();
    meddler.say("bind");
    meddler.expect("bound");
    let refused = bench.run(bench.path("1.ckpt"), &[]).end();
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    assert!(refused.stderr.contains("is in use by another program"), "{refused:?}");
    meddler.say("end");
    meddler.ends_well();
    bench.file("gate", "");
    bench.run(bench.path("1.ckpt"), &[]).ends_well();
}

/// Is in groups of both families, and hears what is sent there.
const GROUPS: &str = r#"
import os, socket, struct, time
four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); four.bind(("", 0))
four.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.7.7.7") + socket.inet_aton("127.0.0.1"))
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); six.bind(("::", 0)); lo = socket.if_nametoindex("lo")
six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, "ff01::7:7") + struct.pack("I", lo))
print("ready", flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
import sys
for s, level, filter, group in (four, 0, 42, b"\0\0" + socket.inet_aton("239.7.7.7")), (six, 41, 42, b"\0" * 6 + socket.inet_pton(socket.AF_INET6, "ff01::7:7")):
    try: s.setsockopt(level, filter, struct.pack("IxxxxH", lo, s.family) + group.ljust(126, b"\0")); print("was not there")
    except OSError as e: print(e.errno == 98)
sys.stdout.flush()
"#;

#[test]
fn multicast_groups_are_joined_again() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("job.py", GROUPS);
        let mut run = bench.launch(&["-n", "0.ckpt"], PYTHON, &["job.py"]);
        run.expect("ready");
        for name in ["1.ckpt", "2.ckpt", "3.ckpt"] {
            run = bench.reborn(name, run);
        }
        bench.file("gate", "");
        run.expect("True");
        run.expect("True");
        run.ends_well();
    }
}
