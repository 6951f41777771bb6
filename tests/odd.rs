// SPDX-License-Identifier: LGPL-2.1-only
//! What few programs do, and none may lose: processes in sessions that their parents have left, sockets whose names are
//! gone, that send to themselves, that are half shut down or filtered, and what waits for a process that is stopped.

mod harness;

use harness::periods::renewed;
use harness::{Bench, Build, Who, until};
use nix::sys::signal::Signal::SIGTSTP;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// Runs a python program to "ready", through three generations, opens the gate and compares what it says.
fn survives(program: &str, wanted: &str) {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("job.py", program);
        let mut run = bench.launch(&["-n", "0.ckpt"], "/usr/bin/python3", &["job.py"]);
        run.expect("ready");
        for generation in 0..3 {
            run = bench.reborn(&format!("{generation}.ckpt"), run);
        }
        bench.file("gate", "");
        run.expect(wanted);
        run.ends_well();
    }
}

/// Three processes that began sessions when their children were there; a child and a sister's child of a session whose
/// leader lives, and one of a session whose leader is gone.
const SESSIONS: &str = r#"
import ctypes, mmap, os, signal, time
libc, ids = ctypes.CDLL(None), mmap.mmap(-1, 4096)
def note(n): ids[8 * n:8 * n + 8] = os.getpid().to_bytes(8, "little")
def pid(n): return int.from_bytes(ids[8 * n:8 * n + 8], "little")
def stay(n):
    note(n)
    while True: time.sleep(1)
def until(*all):
    while not min(pid(n) for n in all): time.sleep(0.01)
def fork(live, *args, brother=False):
    made = libc.syscall(56, (0x8000 if brother else 0) | signal.SIGCHLD, 0, 0, 0, 0)
    if made == 0:
        try: live(*args)
        finally: os._exit(0)
    return made
def chain(n, last):
    if n == last: stay(n)
    fork(chain, n + 1, last)
    until(*range(n + 1, last + 1))
    os.setsid()
    stay(n)
def leads(n):
    os.setsid()
    fork(stay, n + 1, brother=True)
    until(n + 1)
    stay(n)
def gone(n):
    os.setsid()
    fork(stay, n, brother=True)
    until(n)
def state(): return [os.getsid(pid(n)) == os.getsid(0) or os.getsid(pid(n)) for n in range(1, 7)]
fork(chain, 1, 3)
fork(leads, 4)
os.waitpid(fork(gone, 6), 0)
until(*range(1, 7))
before = state()
print("ready", flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
after = state()
for n in range(1, 7): os.kill(pid(n), signal.SIGKILL)
for n in (1, 4, 5, 6): os.waitpid(pid(n), 0)
print("same" if before == after else (before, after), flush=True)
"#;

#[test]
fn sessions_that_parents_have_left_are_kept() {
    survives(SESSIONS, "same");
}

/// A socket that sends to itself, one that was shut down for one direction, sockets whose names are gone and taken, with
/// those who send to them or wait to be accepted there, and filters.
const SOCKETS: &str = r#"
import ctypes, os, socket, struct, time
UNIX, DGRAM, STREAM = socket.AF_UNIX, socket.SOCK_DGRAM, socket.SOCK_STREAM
def named(kind, name):
    s = socket.socket(UNIX, kind); s.bind(name); return s
def to(kind, name):
    s = socket.socket(UNIX, kind); s.connect(name); return s
itself = named(DGRAM, "itself"); itself.connect("itself")
os.mkdir("gone")
ghosts = []
for _ in range(2):
    s = named(DGRAM, "gone/x"); ghosts.append((s, to(DGRAM, "gone/x"))); os.unlink("gone/x")
taken = named(DGRAM, "gone/x")
listener = named(STREAM, "gone/l"); listener.listen()
client = to(STREAM, "gone/l"); server, _ = listener.accept(); waits = to(STREAM, "gone/l")
os.unlink("gone/l"); open("gone/l", "w").close()
one, two = socket.socket(socket.AF_INET, DGRAM), socket.socket(socket.AF_INET, DGRAM)
for s in (one, two): s.bind(("127.0.0.1", 0)); s.settimeout(5)
one.connect(two.getsockname()); two.connect(one.getsockname())
one.shutdown(socket.SHUT_WR); two.shutdown(socket.SHUT_RD)
pair = socket.socketpair(UNIX, DGRAM)
for s, keep in (one, 11), (pair[1], 3):
    held = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, keep) * 3)
    s.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxQ", 3, ctypes.addressof(held)))
pair[0].send(b"before")
print("ready", flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
said = []
itself.send(b"self"); said.append(itself.recv(9))
for a, b in ghosts: b.send(b"ghost"); said.append(a.recv(9))
said += [a.getsockname() for a, _ in ghosts] + [taken.getsockname()]
client.send(b"c"); said.append(server.recv(9))
waits.send(b"w"); said.append(listener.accept()[0].recv(9))
two.send(b"three"); said.append(one.recv(9))
try: one.send(b"no")
except OSError as e: said.append(e.errno)
pair[0].send(b"after"); said += [pair[1].recv(9), pair[1].recv(9)]
print(*(s.decode() if isinstance(s, bytes) else s for s in said), flush=True)
"#;

#[test]
fn sockets_with_names_that_are_gone_go_on() {
    survives(SOCKETS, "self ghost ghost gone/x gone/x gone/x c w thr 32 bef aft");
}

/// Options of sockets that few programs set: all that the kernel lets this user change are as they were.
const OPTIONS: &str = r#"
import os, socket, time
from socket import AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM, SOL_SOCKET
SOCKETS = (AF_INET, SOCK_STREAM), (AF_INET6, SOCK_STREAM), (AF_INET6, SOCK_DGRAM), (AF_UNIX, SOCK_STREAM), (AF_NETLINK, SOCK_RAW)
NAMES = {SOL_SOCKET: (1, 41, 43, 45, 46, 47, 49, 61, 63, 64, 65, 69, 73, 74, 75, 82, 83),
  6: (2, 10, 27, 34, 37, 44, 45, 46), 41: (2, 3, 4, 5, 8, 11, 30, 70, 72)}
all = [socket.socket(*kind) for kind in SOCKETS]
def has(s, level, name):
    try: return s.getsockopt(level, name, 16)
    except OSError: return None
def change(s, level, name):
    is_ = has(s, level, name)
    for value in (0, 1, 1000, 70000):
        try:
            s.setsockopt(level, name, value)
            if has(s, level, name) != is_: return 1
        except OSError: pass
    return 0
changed = [change(s, level, name) for s in all for level in NAMES for name in NAMES[level] if has(s, level, name) is not None]
all[0].listen()
def state(): return [(s.type, level, name, has(s, level, name)) for s in all for level in NAMES for name in NAMES[level]]
before = state()
assert sum(changed) > 30, changed
print("ready", flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
after = state()
print("same" if before == after else [it for it in zip(before, after) if it[0] != it[1]], flush=True)
"#;

#[test]
fn options_that_few_programs_set_are_kept() {
    survives(OPTIONS, "same");
}

/// What a connection that came to nothing has left in a socket is not the program's choice for the next.
const AGAIN: &str = r#"
import os, socket, time
heard = socket.socket()
heard.bind(("127.0.0.1", 0))
heard.listen()
taken = socket.socket()
taken.bind(("127.0.0.1", 0))
tried, quick = socket.socket(), socket.socket()
assert tried.connect_ex(taken.getsockname()) != 0
quick.setsockopt(socket.IPPROTO_TCP, 34, 1)
quick.connect(heard.getsockname())
print("ready", flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
other = socket.socket()
for each in tried, other: each.connect(heard.getsockname())
segments = [each.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) for each in (tried, other)]
print("same" if segments[0] == segments[1] else segments, flush=True)
"#;

#[test]
fn a_connection_that_failed_leaves_no_options() {
    survives(AGAIN, "same");
}

/// A message queue, pressure and the kernel's log: what they would have told only the one description that was asked for.
const TOLD: &str = r#"
import ctypes, os, signal, struct, sys
libc, name = ctypes.CDLL(None), b"/ckpt-odd-%d" % os.getpid()
queue = libc.mq_open(name, os.O_RDWR | os.O_CREAT, 0o600, struct.pack("8q", 0, 2, 16, 0, 0, 0, 0, 0))
assert queue >= 0 and libc.mq_notify(queue, struct.pack("Qii48x", 0, signal.SIGUSR1, 0)) == 0
def opened(path, how):
    try: return os.open(path, how) > 0
    except OSError: return False
print("ready", opened("/dev/kmsg", os.O_RDONLY), opened("/proc/pressure/memory", os.O_RDWR), flush=True)
sys.stdin.readline()
libc.mq_unlink(name)
"#;

#[test]
fn what_would_have_been_told_is_named() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("job.py", TOLD);
        let mut run = bench.run("/usr/bin/python3", &["job.py"]);
        let ready = run.line();
        let saved = bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]).stderr;
        run.say("");
        let named = |what: &str| saved.contains(what);
        assert!(named(" is to tell it (mq_notify(2))"), "{ready}: {saved}");
        assert_eq!(named("what the device /dev/kmsg"), ready.starts_with("ready True"), "{saved}");
        let pressure = named("what /proc/pressure/memory is to tell it");
        assert_eq!(pressure, ready.ends_with("True"), "{ready}: {saved}");
        run.ends_well();
    }
}

/// A child that the job has moved to a control group of its own.
const MOVED: &str =
    "mkdir d && mount -t cgroup -o none,name=ckpt-odd x d && mkdir d/one || { echo none; exit; }
    sleep 1000 & echo $! > d/one/cgroup.procs
    echo ready; read line; kill $!; wait $!; rmdir d/one && umount d";

#[test]
fn control_groups_of_the_jobs_own_are_named() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let mut run = bench.run("/usr/bin/unshare", &["-m", "/bin/sh", "-c", MOVED]);
    if run.line() == "none" {
        return;
    }
    let saved = bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]).stderr;
    run.say("");
    assert_eq!(saved.matches("its own control groups").count(), 1, "{saved}");
    run.ends_well();
}

/// Memory that a fork does not inherit is not lost, a file without a name was not opened as one, a directory that was
/// removed is one, one of /proc is no copy, and who was stopped by a signal of the terminal was not by another.
const STATE: &str = r#"
import fcntl, mmap, os, signal, time
gate = os.path.abspath("gate")
memory = mmap.mmap(-1, 8192, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(18)
memory[5000:5005] = b"fives"
file = os.open("file", os.O_RDWR | os.O_CREAT); os.unlink("file")
machine = os.open("/proc/uptime", os.O_RDONLY)
os.mkdir("directory"); directory = os.open("directory", os.O_RDONLY)
os.chdir("directory"); os.rmdir("../directory")
def wait():
    while not os.path.exists(gate): time.sleep(0.02)
def told(child): return os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOWAIT).si_status
def leads(end):
    os.setpgid(0, 0)
    child = os.fork()
    if not child: time.sleep(1000)
    os.kill(child, signal.SIGTTIN)
    os.write(end, b"%d " % told(child))
    wait()
    os.write(end, b"%d" % told(child))
    os.kill(child, signal.SIGKILL)
    os._exit(0)
here, there = os.pipe()
if not os.fork(): leads(there)
assert os.read(here, 9) == b"21 "
def state():
    at, same = os.stat("."), os.fstat(directory)
    try: where = os.getcwd()
    except OSError as e: where = e.errno
    flags = hex(fcntl.fcntl(file, fcntl.F_GETFL))
    named = os.readlink("/proc/self/fd/%d" % machine)
    return bytes(memory[5000:5005]), flags, named, at.st_ino == same.st_ino, same.st_nlink, where
before = state()
print("ready", flush=True)
wait()
if not os.fork(): os._exit(memory[5000])
said = os.read(here, 9), os.wait()[1], os.wait()[1], state()
print("same" if said == (b"21", 0, 0, before) else (before, said), flush=True)
"#;

#[test]
fn what_is_seldom_seen_is_kept() {
    survives(STATE, "same");
}

/// Where another user could put something else in the place of what root makes: removed directories of one name stay
/// two with modes of their own, a link in their place leads to nothing, and sockets have their owner and mode.
const OTHERS: &str = r#"
import os, socket, stat, time
os.mkdir("theirs"); os.chmod("theirs", 0o777)
if os.getuid() == 0: os.chown("theirs", 65534, 65534)
here = os.path.abspath("theirs")
gone = []
for mode in 0o751, 0o715:
    os.mkdir("theirs/gone"); os.chmod("theirs/gone", mode)
    gone.append(os.open("theirs/gone", os.O_RDONLY)); os.rmdir("theirs/gone")
open("victim", "w").close(); os.chmod("victim", 0o600); os.symlink("../victim", "theirs/gone")
s = socket.socket(socket.AF_UNIX); s.bind(here + "/socket"); s.listen()
if os.getuid() == 0: os.chown("theirs/socket", 65534, 65533)
os.chmod("theirs/socket", 0o640)
def state():
    all = [os.fstat(fd) for fd in gone]
    modes = [oct(it.st_mode) for it in all] + [it.st_nlink for it in all]
    name = os.lstat("theirs/socket")
    named = oct(name.st_mode), name.st_uid, name.st_gid, s.getsockname()
    return modes, all[0].st_ino == all[1].st_ino, named, oct(os.stat("victim").st_mode), sorted(os.listdir(here))
def led(): return os.getuid() == 0 and any(os.readlink("/proc/self/fd/%d" % fd).startswith(here) for fd in gone)
before = state()
print("ready", flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
after = state(), led()
print("same" if (before, False) == after else (before, after), flush=True)
"#;

#[test]
fn what_others_could_replace_is_made_safely() {
    survives(OTHERS, "same");
}

/// A FIFO that is full and stays so: nobody reads it.
fn full(bench: &Bench, name: &str) -> fs::File {
    let path = bench.path(name);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("a FIFO");
    bench.give(&path);
    let mut options = fs::File::options();
    let options = options.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK);
    let mut fifo = options.open(path).expect("both ends");
    while fifo.write(&[0; 4096]).is_ok() {}
    while fifo.write(&[0]).is_ok() {}
    fifo
}

/// What ckpt has to say, it says where the program does: nobody waits for who reads that.
#[test]
fn what_nobody_reads_keeps_nobody_waiting() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.subject("waiter", Build::Pie);
        let _full = full(&bench, "full");
        // The other end of a pipe that is not with the program is not saved, which is said.
        let (_other, outside) = nix::unistd::pipe().expect("a pipe");
        let script = format!("exec ./ckpt \"$@\" ./waiter.pie 9<&{} 2>full", outside.as_raw_fd());
        let start = |options: &[&str]| {
            let mut run = bench.run("/bin/bash", &[&["-c", &script, ""][..], options].concat());
            run.expect("ready");
            run
        };
        let mut run = start(&["-c", "-n", "a.ckpt"]);
        let told = bench.order(&["check", &run.pid_text()]);
        assert!(told.code() == Some(1), "it loses nothing: {told:?}");
        let mut before = None;
        for _ in 0..3 {
            run.signal(SIGTSTP);
            before = Some(renewed(&bench.path("a.ckpt"), before));
            run.check();
        }
        run.go();
        bench.alone(&[]);
        let run = start(&["-n", "b.ckpt"]);
        run.signal(SIGTSTP);
        run.ends_well();
        let mut again = bench.run(bench.path("b.ckpt"), &[]);
        again.check();
        again.go();
        bench.subdirectory("away");
        let run = start(&["-z", "50", "-n", "away/c.ckpt"]);
        let before = renewed(&bench.path("away/c.ckpt"), None);
        fs::rename(bench.path("away"), bench.path("there")).expect("away");
        until("a checkpoint that fails", || {
            let told = bench.must(&["ps", "--json"]).stdout.concat();
            told.contains("No such file").then_some(())
        });
        fs::rename(bench.path("there"), bench.path("away")).expect("back");
        renewed(&bench.path("away/c.ckpt"), Some(before));
        run.go();
        bench.alone(&[]);
    }
}
