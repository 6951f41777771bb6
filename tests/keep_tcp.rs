// SPDX-License-Identifier: LGPL-2.1-only
//! `--keep-tcp`: connections to others go on, with what is under way in them.

mod harness;

use std::fs;
use std::process::Command;

use harness::faults::armed;
use harness::{Bench, Ended, Run, Who, status_line, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

const PYTHON: &str = "/usr/bin/python3";

/// Has the other ends. What a connection is for, its first byte says.
const OUTSIDE: &str = r#"
import ctypes, hashlib, os, socket, struct, sys, threading
def echo(s):
    while piece := s.recv(100000): s.sendall(piece)
    s.close()
def behind_gate(s):
    gate.wait(); hash, count = hashlib.md5(), 0
    while piece := s.recv(1 << 20): hash.update(piece); count += len(piece)
    s.sendall(b"%d %s" % (count, hash.hexdigest().encode())); s.close()
def tail(s):
    s.sendall(b"tail"); s.shutdown(socket.SHUT_WR)
    while s.recv(100): pass
def flood(s):
    s.sendall(b"0123456789" * 1000000); s.recv(1); s.close()
def few(s):
    s.sendall(b"0123456789" * 6000); s.recv(1); s.close()
def last(s):
    while s.recv(100): pass
    gate.wait(); s.sendall(b"last"); s.close()
def deaf(s):
    code = ctypes.create_string_buffer(b"\6\0\0\0\0\0\0\0", 8)
    s.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxP", 1, ctypes.addressof(code))); s.sendall(b"d")
    gate.wait(); s.setsockopt(socket.SOL_SOCKET, 27, 0); echo(s)
def serve(listener):
    while True:
        s = listener.accept()[0]
        work = {b"e": echo, b"g": behind_gate, b"t": tail, b"f": flood, b"q": few, b"l": last, b"d": deaf}[s.recv(1)]
        threading.Thread(target=work, args=(s,), daemon=True).start()
gate = threading.Event()
four = socket.create_server(("127.0.0.1", 0)); six = socket.create_server(("::1", 0), family=socket.AF_INET6)
for one in four, six: threading.Thread(target=serve, args=(one,), daemon=True).start()
print(four.getsockname()[1], six.getsockname()[1], flush=True)
for line in sys.stdin:
    if line == "open\n": gate.set()
    else:
        s = socket.create_connection(("127.0.0.1", int(line))); s.sendall(b"x"); threading.Thread(target=echo, args=(s,), daemon=True).start()
"#;

/// Has connections to it, in several states, one of them in a child.
const INSIDE: &str = r#"
import hashlib, os, random, select, socket, struct, sys, time
one, two = map(int, sys.argv[1:3]); much = 6000 if "quiet" in sys.argv else 1000000
def to(kind, family=socket.AF_INET, name=("127.0.0.1", one)):
    s = socket.socket(family); s.connect(name); s.sendall(kind); return s
four, six = to(b"e"), to(b"e", socket.AF_INET6, ("::1", two)); mapped = to(b"e", socket.AF_INET6, ("::ffff:127.0.0.1", one))
four.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1); six.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
mapped.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1); mapped.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
full, tail, flood, last = to(b"g"), to(b"t"), to(b"q" if much == 6000 else b"f"), to(b"l")
listener = socket.create_server(("127.0.0.1", 0)); print(listener.getsockname()[1], flush=True)
accepted = listener.accept()[0]; accepted.recv(1)
hash, count = hashlib.md5(), 0
made = random.Random(1); full.setblocking(False)
try:
    while True:
        piece = made.randbytes(100000); sent = full.send(piece); hash.update(piece[:sent]); count += sent
except BlockingIOError: pass
full.setblocking(True); last.shutdown(socket.SHUT_WR)
while len(tail.recv(9, socket.MSG_PEEK)) < 4: pass
while len(flood.recv(60000, socket.MSG_PEEK)) < 60000: pass
names = [(s.getsockname(), s.getpeername()) for s in (four, six, mapped, accepted)]
class End(Exception): pass
def ping(*all):
    for s in all:
        piece = os.urandom(50000); s.sendall(piece)
        assert s.recv(len(piece), socket.MSG_WAITALL) == piece
ask, answer = os.pipe(), os.pipe()
if os.fork() == 0:
    os.close(ask[1]); os.close(answer[0])
    own = to(b"e")
    while os.read(ask[0], 1) == b"?": ping(own); os.write(answer[1], b"!")
    os._exit(0)
print("ready", flush=True)
for line in sys.stdin:
    assert names == [(s.getsockname(), s.getpeername()) for s in (four, six, mapped, accepted)]
    assert four.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    # Who gives it back where a dumper was killed may not have run yet.
    while not six.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE): time.sleep(0.01)
    ping(four, six, mapped, accepted)
    os.write(ask[1], b"?"); assert os.read(answer[0], 1) == b"!"
    if line == "go\n": break
    print("ok", flush=True)
assert (tail.recv(9), tail.recv(9)) == (b"tail", b"")
tail.sendall(b"x"); tail.close()
assert flood.recv(10 * much, socket.MSG_WAITALL) == b"0123456789" * much
flood.sendall(b"x"); assert flood.recv(1) == b""
full.shutdown(socket.SHUT_WR)
said = full.recv(1000, socket.MSG_WAITALL).decode(); assert said == f"{count} {hash.hexdigest()}", (said, count)
assert last.recv(9, socket.MSG_WAITALL) == b"last"
"#;

/// Has one that is to be heard every second, one to which nobody answers for a while, and a child of many threads.
const TIMED: &str = r#"
import os, socket, sys, threading
def to(kind): s = socket.create_connection(("127.0.0.1", int(sys.argv[1]))); s.sendall(kind); return s
TCP, SOCKET = socket.IPPROTO_TCP, socket.SOL_SOCKET
alive, late = to(b"e"), to(b"d")
for option in socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT: alive.setsockopt(TCP, option, 1)
alive.setsockopt(SOCKET, socket.SO_KEEPALIVE, 1)
assert late.recv(1) == b"d"
if len(sys.argv) > 3:
    ends = os.pipe()
    if os.fork() == 0:
        os.close(ends[1])
        for _ in range(40): threading.Thread(target=threading.Event().wait, daemon=True).start()
        os.close(os.open("threads", os.O_CREAT)); os.read(ends[0], 1); os._exit(0)
    while not os.path.exists("threads"): pass
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
else: late.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 4000)
late.sendall(b"late")
print("ready", flush=True)
sys.stdin.readline()
assert late.recv(4, socket.MSG_WAITALL) == b"late"
alive.sendall(b"ping"); assert alive.recv(4, socket.MSG_WAITALL) == b"ping"
assert alive.getsockopt(SOCKET, socket.SO_KEEPALIVE) == 1 and late.getsockopt(SOCKET, socket.SO_KEEPALIVE) == 0
assert late.getsockopt(TCP, socket.TCP_USER_TIMEOUT) == (0 if len(sys.argv) > 3 else 4000)
assert late.getsockopt(SOCKET, socket.SO_REUSEADDR) == 0
if len(sys.argv) > 3: os._exit(0)
"#;

/// Both at "ready".
fn begin(bench: &Bench, options: &[&str]) -> (Run, Run) {
    begin_with(bench, options, &[])
}

/// Both; those outside have nothing to send again and again, if it is to be "quiet".
fn begin_with(bench: &Bench, options: &[&str], more: &[&str]) -> (Run, Run) {
    bench.file("outside.py", OUTSIDE);
    bench.file("inside.py", INSIDE);
    let mut outside = bench.run(PYTHON, &["outside.py"]);
    let ports = outside.line();
    let mut args = vec!["inside.py"];
    args.extend(ports.split(' ').chain(more.iter().copied()));
    let mut run = match options {
        [] => bench.run(PYTHON, &args),
        options => bench.launch(options, PYTHON, &args),
    };
    outside.say(&run.line());
    run.expect("ready");
    (outside, run)
}

/// Saves a program that ends by it, with its connections.
#[track_caller]
fn saved(bench: &Bench, name: &str, run: Run) -> Ended {
    let said =
        bench.must(&["save", "--keep-tcp", "--stop", "-n", &bench.name(name), &run.pid_text()]);
    run.end();
    said
}

/// The processes of a bench that hold connections.
fn holders(bench: &Bench) -> Vec<i32> {
    let read = |path: String| fs::read_to_string(path).unwrap_or_default();
    let pids = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let ours = |pid: &i32| {
        let exe = fs::read_link(format!("/proc/{pid}/exe"));
        read(format!("/proc/{pid}/comm")) == "ckpt-tcp\n"
            && exe.is_ok_and(|exe| exe.starts_with(&bench.dir))
    };
    pids.filter(ours).collect()
}

/// Nobody holds them any more.
#[track_caller]
fn let_go(bench: &Bench, by_force: bool) {
    for pid in holders(bench).into_iter().filter(|_| by_force) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        let state = || status_line(pid.unsigned_abs(), "State");
        // Its sockets are closed behind its memory.
        until("its end", || state().is_none_or(|it| it.starts_with(['Z', 'X'])).then_some(()));
    }
    until("the holder's end", || holders(bench).is_empty().then_some(()));
}

#[test]
fn connections_go_on() {
    if !geteuid().is_root() {
        return;
    }
    // Held by a process, and made anew: what is sent where nobody holds it, would be answered with a reset.
    for (more, ways) in [(&[][..], &[false, false][..]), (&["quiet"], &[true, false, true])] {
        let bench = Bench::new(Who::Me);
        let (mut outside, mut run) = begin_with(&bench, &[], more);
        for (number, by_force) in (1..).zip(ways) {
            let name = format!("{number}");
            let said = saved(&bench, &name, run);
            assert!(!said.stderr.contains("connections"), "{said:?}");
            assert_eq!(holders(&bench).len(), 1);
            if *by_force {
                let_go(&bench, true);
            }
            run = bench.run(bench.path(&name), &[]);
            run.check();
            let_go(&bench, false);
        }
        outside.say("open");
        let ended = run.go();
        assert_eq!(ended.stderr, "", "{ended:?}");
    }
}

#[test]
fn a_restart_that_fails_can_be_tried_again() {
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let (mut outside, run) = begin(&bench, &["--keep-tcp", "-n", "1"]);
    run.signal(Signal::SIGTSTP);
    run.end();
    // What is sent meanwhile is no harm, nor is a restarter that is killed.
    for step in ["reopened", "filled", "planned"] {
        let ended = Run::start(armed(bench.command(bench.path("1")), step, &[] as &[&str])).end();
        assert_ne!(ended.code(), Some(0), "{step}: {ended:?}");
    }
    let mut run = bench.run(bench.path("1"), &[]);
    run.check();
    outside.say("open");
    run.go();
}

/// Saved, with its connections: its other ends.
#[track_caller]
fn timed(bench: &Bench, more: &[&str]) -> Run {
    bench.file("outside.py", OUTSIDE);
    bench.file("timed.py", TIMED);
    let mut outside = bench.run(PYTHON, &["outside.py"]);
    let ports = outside.line();
    let args = ["timed.py"].into_iter().chain(ports.split(' ')).chain(more.iter().copied());
    let mut run = bench.run(PYTHON, &args.collect::<Vec<_>>());
    run.expect("ready");
    saved(bench, "1", run);
    outside
}

/// Its time-outs are those of a connection that hears something.
#[test]
fn nothing_ends_what_is_held() {
    const LONGER: std::time::Duration = std::time::Duration::from_secs(5);
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let mut outside = timed(&bench, &[]);
    outside.say("open");
    let ended = Run::start(armed(bench.command(bench.path("1")), "planned", &[""; 0])).end();
    assert_ne!(ended.code(), Some(0), "{ended:?}");
    std::thread::sleep(LONGER);
    bench.run(bench.path("1"), &[]).go();
}

/// Without the rights of its restarter, it lets its connections go only when nobody fails any more.
#[test]
fn a_tree_that_fails_late_can_be_tried_again() {
    let group = format!("/sys/fs/cgroup/pids/ckpt-test-{}", std::process::id());
    let group = std::path::Path::new(&group);
    if !geteuid().is_root() || fs::create_dir(group).is_err() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let mut outside = timed(&bench, &["tree"]);
    fs::write(group.join("pids.max"), "24").expect("pids.max");
    let script = "echo $$ > $0/cgroup.procs && exec ./1";
    let ended = bench.run("sh", &["-c", script, &group.to_string_lossy()]).end();
    assert!(ended.stderr.contains("create a thread"), "{ended:?}");
    outside.say("open");
    bench.run(bench.path("1"), &[]).go();
    until("the end of all", || fs::remove_dir(group).ok());
}

/// The program goes on as if nothing had been.
#[test]
fn a_dumper_is_killed() {
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let (mut outside, mut run) = begin(&bench, &[]);
    let (pid, name) = (run.pid_text(), bench.name("1"));
    for step in ["written", "deafened", "sealed", "linked", "-deafened"] {
        let args = ["save", "--keep-tcp", "--stop", "-n", &name, &pid];
        let mut command = bench.command(bench.ckpt());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let ended = Run::start(armed(command, step, &args)).end();
        assert_eq!(ended.signal(), Some(Signal::SIGKILL as i32), "{step}: {ended:?}");
        // Until they are given back, options are not as they were.
        let_go(&bench, false);
        run.check();
    }
    outside.say("open");
    run.go();
}

/// Without the option, of a checkpoint after which the program goes on, and where that is asked for at the restart.
#[test]
fn what_is_not_kept_is_reset() {
    const RESET: &str = "connections to others, which a restart finds reset: descriptors ";
    const RIGHT: &str = "to keep them (--keep-tcp) takes the capability NET_ADMIN";
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let (_outside, mut run) = begin(&bench, &[]);
        let (pid, name) = (run.pid_text(), bench.name("1"));
        let said = bench.must(&["save", "--keep-tcp", "-n", &name, &pid]);
        assert!(said.stderr.contains(RESET), "{said:?}");
        run.check();
        let said = saved(&bench, "1", run);
        let may = geteuid().is_root() && who == Who::Me;
        assert_eq!(said.stderr.contains(RESET), !may, "{said:?}");
        assert_eq!(said.stderr.contains(RIGHT), !may, "{said:?}");
        let image = bench.name("1");
        let powerless = ["--bounding-set=-net_admin", "--inh-caps=-net_admin", &image];
        for args in [Some(&powerless[..]), None] {
            let mut run = match args {
                Some(_) if !may => continue,
                Some(args) => bench.run("setpriv", args),
                None => bench.run(&image, &["--keep-tcp=0"]),
            };
            run.say("check");
            let ended = run.end();
            assert!(ended.stderr.contains("not connected"), "{ended:?}");
            assert_eq!(ended.stderr.contains("holds them still"), args.is_some(), "{ended:?}");
        }
        // The other ends have heard of it.
        let_go(&bench, false);
    }
}

/// In a network of its own, whose address goes and comes back.
#[test]
fn the_address_has_to_be_there() {
    const SCRIPT: &str = r#"
        ip link set lo up && ip address add 10.88.0.1/32 dev lo
        python3 -c '
import socket
s = socket.create_server(("10.88.0.1", 7001)).accept()[0]
while piece := s.recv(10): s.sendall(piece)' &
        python3 -c '
import os, socket, time
while True:
    try: s = socket.create_connection(("10.88.0.1", 7001), source_address=("10.88.0.1", 7002)); break
    except OSError: time.sleep(0.02)
open("ready", "w").close()
while not os.path.exists("gate"): time.sleep(0.02)
s.sendall(b"ping"); print(s.recv(4), flush=True)' &
        job=$!
        until [ -e ready ]; do sleep 0.02; done
        ./ckpt save --keep-tcp --stop -n x $job
        ip address del 10.88.0.1/32 dev lo; ./x; echo $?
        ip address add 10.88.0.1/32 dev lo; touch gate; ./x; echo $?; wait"#;
    if !geteuid().is_root() || Command::new("ip").arg("-V").output().is_err() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let ended = bench.run("unshare", &["-n", "sh", "-c", SCRIPT]).end();
    let absent =
        "this machine has not the address of the connection from 10.88.0.1:7002 to 10.88.0.1:7001";
    assert!(ended.stderr.contains(absent), "{ended:?}");
    assert_eq!(ended.stdout[1..], ["125", "b'ping'", "0"], "{ended:?}");
}

/// Somebody outside goes on with it.
#[test]
fn what_others_have_too_is_reset() {
    const OTHER: &str = r#"
import socket, sys
t = socket.create_server(("127.0.0.1", 0)); u = socket.socket(socket.AF_UNIX); u.bind("q"); u.listen()
print(t.getsockname()[1], flush=True)
c, l = t.accept()[0], u.accept()[0]
kept = socket.recv_fds(l, 1, 1); l.close(); print("has", flush=True)
sys.stdin.readline()
"#;
    const SENDS: &str = r#"
import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1]))); u = socket.socket(socket.AF_UNIX); u.connect("q")
socket.send_fds(u, [b"x"], [s.fileno()]); u.close(); print("ready", flush=True)
sys.stdin.readline()
"#;
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let mut other = bench.run(PYTHON, &["-c", OTHER]);
    let port = other.line();
    let mut run = bench.run(PYTHON, &["-c", SENDS, &port]);
    run.expect("ready");
    other.expect("has");
    let said = saved(&bench, "1", run);
    assert!(said.stderr.contains("other processes have it, too"), "{said:?}");
    other.go();
}

/// A dumper that was killed together with whoever would have given the connections back has left one deaf: it hears again
/// behind the next checkpoint.
#[test]
fn what_was_left_deaf_hears_again() {
    const PROGRAM: &str = r#"
import ctypes, socket, struct, sys
listener = socket.create_server(("127.0.0.1", 0))
one = socket.create_connection(listener.getsockname()); other = listener.accept()[0]
code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0xc7, 0x4b, 0))
one.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 1, ctypes.addressof(code))); one.settimeout(10)
print("ready", flush=True)
for line in sys.stdin:
    other.sendall(b"x"); assert one.recv(1) == b"x"
    if line == "go\n": break
    print("ok", flush=True)
"#;
    // Some kernels let nobody else have a filter.
    if !geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    bench.file("deaf.py", PROGRAM);
    let mut run = bench.run(PYTHON, &["deaf.py"]);
    run.expect("ready");
    bench.must(&["save", "-n", &bench.name("1"), &run.pid_text()]);
    run.check();
    run.go();
}
