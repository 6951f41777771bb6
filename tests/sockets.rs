// SPDX-License-Identifier: LGPL-2.1-only
//! Sockets that the processes of a job have among themselves go on, with what is under way in them.

mod harness;

use harness::{Bench, Build, Way, Who, survive};

/// Every kind and state of a unix socket, in a process and to its child; also of the one that goes on.
#[test]
fn unix_sockets_survive() {
    survive(Who::Me, Way::Save, "sockets", Build::Static, &["."]);
    survive(Who::Nobody, Way::LaunchContinue, "sockets", Build::Pie, &["."]);
}

/// A path that somebody else listens on is not taken away.
#[test]
fn a_socket_in_use_is_left_alone() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("sockets", Build::Pie), &["."]);
    run.expect("ready");
    bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    let again = bench.run(bench.path("x.ckpt"), &[]).end();
    assert_eq!(again.code(), Some(125), "{again:?}");
    assert!(again.stderr.contains("is in use by another program"), "{again:?}");
    run.check();
    run.go();
}

/// Descriptors that are under way come where they were to come, with the bytes that they were sent with.
#[test]
fn descriptors_under_way_survive() {
    survive(Who::Me, Way::Save, "flight", Build::Pie, &[]);
    survive(Who::Nobody, Way::SaveStop, "flight", Build::Musl, &[]);
    survive(Who::Nobody, Way::LaunchContinue, "flight", Build::Static, &[]);
}

/// One that is what it is by the process that has it is in the way, and nothing has happened.
#[test]
fn a_process_descriptor_under_way_is_an_obstacle() {
    const SEND: &str = "import os, socket, sys\n\
        a, b = socket.socketpair()\n\
        socket.send_fds(a, [b'one'], [os.pidfd_open(os.getpid())])\n\
        print('ready', flush=True)\n\
        sys.stdin.readline()\n\
        print(socket.recv_fds(b, 10, 5)[0], flush=True)";
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run("/usr/bin/python3", &["-c", SEND]);
    run.expect("ready");
    let refused = bench.order(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    assert_ne!(refused.code(), Some(0), "{refused:?}");
    assert!(refused.stderr.contains("descriptors (SCM_RIGHTS)"), "{refused:?}");
    run.say("go");
    run.expect("b'one'");
    run.ends_well();
}

/// epoll instances that nobody has, with watches of what the receiver has, the sender alone, and another one under way.
const EPOLLS: &str = r#"
import os, select, socket, time
def gate():
    while not os.path.exists("gate"): time.sleep(0.02)
a, b = socket.socketpair()
pid = os.fork()
if pid == 0:
    a.close(); gate()
    message, fds, _, _ = socket.recv_fds(b, 10, 5); got = [select.epoll.fromfd(fd) for fd in fds[:3]]
    seen = [sorted(one.poll(5)) for one in got]
    os.read(fds[3], 9)
    print(message, [len(one) for one in seen], [events for one in seen for _, events in one], flush=True)
    print([len(one.poll(0)) for one in got], flush=True)
    os._exit(0)
mine, other, under_way = os.pipe(), os.pipe(), os.pipe()
for _, w in (mine, other, under_way): os.write(w, b"x")
one, two, three = select.epoll(), select.epoll(), select.epoll()
one.register(mine[0], select.EPOLLIN); one.register(a, select.EPOLLOUT | select.EPOLLET)
copy = os.dup(other[0]); two.register(copy, select.EPOLLIN); os.close(copy)
three.register(under_way[0], select.EPOLLIN)
socket.send_fds(a, [b"one"], [one.fileno(), two.fileno(), three.fileno(), under_way[0]])
for it in (one, two, three): it.close()
os.close(under_way[0])
print("ready", flush=True)
gate()
os.waitpid(pid, 0)
"#;

#[test]
fn epoll_instances_under_way_survive() {
    for who in [Who::Me, Who::Nobody] {
        python(who, EPOLLS, &["b'one' [2, 1, 1] [4, 1, 1, 1]", "[1, 1, 0]"]);
    }
}

/// Runs a python program to "ready", through three generations, opens the gate and compares what it says.
fn python(who: Who, program: &str, wanted: &[&str]) {
    let bench = Bench::new(who);
    bench.file("job.py", program);
    let mut run = bench.launch(&["-n", "0.ckpt"], "/usr/bin/python3", &["job.py"]);
    run.expect("ready");
    for generation in 0..3 {
        let name = format!("{generation}.ckpt");
        run = bench.reborn(&name, run);
    }
    bench.file("gate", "");
    wanted.iter().for_each(|line| run.expect(line));
    run.ends_well();
}

/// Empty messages, also before the end of a connection whose other end is gone, and of a sender who is.
const EMPTY: &str = r#"
import os, socket, time
SEQPACKET, DGRAM, got = socket.SOCK_SEQPACKET, socket.SOCK_DGRAM, []
def pair(kind, *messages, gone=False):
    a, b = socket.socketpair(socket.AF_UNIX, kind)
    for one in messages: a.send(one)
    return b, None if gone else a
def named(family, name):
    a, b = socket.socket(family, DGRAM), socket.socket(family, DGRAM)
    b.bind(name); a.connect(b.getsockname()); a.send(b"")
    return b, a
all = [pair(DGRAM, b""), pair(SEQPACKET, b""), pair(DGRAM, b"", gone=True), pair(DGRAM, b"", b"one"),
       pair(SEQPACKET, b"one", b"", b"two", gone=True),
       named(socket.AF_UNIX, "\0empty-%d" % os.getpid()), named(socket.AF_INET, ("127.0.0.1", 0))]
print("ready", flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
for one, _ in all:
    these = []
    try:
        while len(these) < 3: these.append(one.recv(10, socket.MSG_DONTWAIT).decode())
    except BlockingIOError: pass
    got.append(these)
print(got, flush=True)
"#;

/// The second checkpoint, of what the first has looked at, has them, too, or says which may be missing: one between others.
#[test]
fn empty_messages_are_not_lost() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("job.py", EMPTY);
        let mut run = bench.launch(&["-n", "0.ckpt"], "/usr/bin/python3", &["job.py"]);
        run.expect("ready");
        let x = bench.name("x.ckpt");
        for generation in ["1.ckpt", "2.ckpt", "3.ckpt"] {
            for again in [false, true] {
                let saved = bench.must(&["save", &run.pid_text(), "-n", &x]);
                let doubted = saved.stderr.contains("an empty message that waits at");
                assert_eq!(doubted, again && generation == "1.ckpt", "{saved:?}");
            }
            run = bench.reborn(generation, run);
        }
        bench.file("gate", "");
        run.expect("[[''], [''], [''], ['', 'one'], ['one', 'two', ''], [''], ['']]");
        run.ends_well();
    }
}

const MANAGER: &str = r#"
import multiprocessing as mp, os, time
def gate():
    while not os.path.exists("gate"): time.sleep(0.02)
def work(shared, queue, n):
    shared[n] = "before"
    queue.put(n)
    gate()
    shared[n] = n * n
if __name__ == "__main__":
    with mp.Manager() as manager:
        shared, queue = manager.dict(), manager.Queue()
        all = [mp.Process(target=work, args=(shared, queue, n)) for n in range(3)]
        for one in all: one.start()
        for one in all: queue.get()
        print("ready", flush=True)
        gate()
        for one in all: one.join()
        print(sorted(shared.items()), flush=True)
        shared["later"] = 1
        late = mp.Process(target=work, args=(shared, queue, 7)); late.start(); late.join()
        print(shared[7], queue.get(), [one.exitcode for one in all], flush=True)
"#;

#[test]
fn a_manager_of_python_goes_on() {
    for who in [Who::Me, Who::Nobody] {
        python(who, MANAGER, &["[(0, 0), (1, 1), (2, 4)]", "49 7 [0, 0, 0]"]);
    }
}

/// The loop's own pair of sockets, a subprocess through pipes, a server and its client in one program.
const ASYNCIO: &str = r#"
import asyncio, os, sys
async def gate():
    while not os.path.exists("gate"): await asyncio.sleep(0.02)
async def serve(reader, writer):
    while line := await reader.readline():
        writer.write(line.upper())
    writer.close()
async def main():
    server = await asyncio.start_unix_server(serve, "server")
    reader, writer = await asyncio.open_unix_connection("server")
    cat = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    cat.stdin.write(b"before\n")
    print((await cat.stdout.readline()).decode().strip().replace("before", "ready"), flush=True)
    writer.write(b"one\n")
    await gate()
    writer.write(b"two\n")
    print(await reader.readline(), await reader.readline(), flush=True)
    loop = asyncio.get_running_loop()
    print(await loop.run_in_executor(None, lambda: "from a thread"), flush=True)
    cat.stdin.write(b"after\n"); cat.stdin.close()
    print(await cat.stdout.read(), await cat.wait(), flush=True)
    again, more = await asyncio.open_unix_connection("server")
    more.write(b"three\n")
    print(await again.readline(), flush=True)
asyncio.run(main())
"#;

#[test]
fn asyncio_goes_on() {
    let wanted = [r"b'ONE\n' b'TWO\n'", "from a thread", r"b'after\n' 0", r"b'THREE\n'"];
    for who in [Who::Me, Who::Nobody] {
        python(who, ASYNCIO, &wanted);
    }
}

const FUTURES: &str = r#"
import concurrent.futures as futures, multiprocessing, os, subprocess, sys, time
def gate():
    while not os.path.exists("gate"): time.sleep(0.02)
def cube(n):
    gate(); return n ** 3
if __name__ == "__main__":
    sums = []
    spawn = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(2) as one, futures.ProcessPoolExecutor(2, mp_context=spawn) as two:
        all = [pool.submit(cube, n) for pool in (one, two) for n in range(6)]
        sort = subprocess.Popen(["sort"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        sort.stdin.write("b\na\n"); sort.stdin.flush()
        print("ready", flush=True)
        print(sum(one.result() for one in all), flush=True)
        print(sort.communicate("0\n")[0].split(), sort.returncode, flush=True)
"#;

#[test]
fn executors_of_python_go_on() {
    for who in [Who::Me, Who::Nobody] {
        python(who, FUTURES, &["450", "['0', 'a', 'b'] 0"]);
    }
}

/// A client that has left its message in a listener's queue and is gone, as of python's forkserver: what it sent is in
/// nobody's hands until it is accepted, and a checkpoint waits for that or says so.
#[test]
fn a_client_that_is_gone_before_it_was_accepted_is_waited_for() {
    const UNIX: &str = r#"
import os, socket, sys
listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
listener.bind("\0ckpt %d" % os.getpid())
listener.listen(8)
client.connect(listener.getsockname())
read, write = os.pipe()
socket.send_fds(client, [b"x"], [write])
client.close()
os.close(write)
print("ready", flush=True)
sys.stdin.readline()
server, _ = listener.accept()
text, all, _, _ = socket.recv_fds(server, 10, 4)
print("accepted", flush=True)
sys.stdin.readline()
os.write(all[0], b"through it")
print(text, os.read(read, 10), flush=True)
"#;
    const TCP: &str = r#"
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
client.send(b"last words")
client.close()
print("ready", flush=True)
sys.stdin.readline()
server, _ = listener.accept()
print("accepted", flush=True)
sys.stdin.readline()
print(server.recv(20), server.recv(20), flush=True)
"#;
    for (server, last) in [(UNIX, "b'x' b'through it'"), (TCP, "b'last words' b''")] {
        let bench = Bench::new(Who::Nobody);
        bench.file("server.py", server);
        let mut run = bench.launch(&["-n", "a.ckpt"], "/usr/bin/python3", &["server.py"]);
        run.expect("ready");
        let refused = bench.order(&["save", &run.pid_text(), "-n", &bench.name("a.ckpt")]);
        assert_eq!(refused.code(), Some(125), "{refused:?}");
        assert!(refused.stderr.contains("gone before it was accepted"), "{refused:?}");
        run.say("go");
        run.expect("accepted");
        let mut run = bench.reborn("a.ckpt", run);
        run.say("go");
        run.expect(last);
        run.ends_well();
    }
}

/// Who has made a pair, connected, listened and sent, in every kind; some have ended by then.
const PEERS: &str = r#"
import os, socket, struct, time
STREAM, SEQ, DGRAM = socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM
def peer(s): return struct.unpack("3i", s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
def drop():
    if os.getuid() == 0: os.setgroups([]); os.setresgid(*[65533] * 3); os.setresuid(*[65534] * 3)
def pair(kind): return socket.socketpair(socket.AF_UNIX, kind)
def gate():
    while not os.path.exists("gate"): time.sleep(0.02)
def child(work):
    pid = os.fork()
    if pid == 0: os._exit(0 if work() else 1)
    return pid
root, (line, far), (r, w) = os.getpid(), pair(DGRAM), os.pipe()
held = [end for kind in (STREAM, SEQ, DGRAM) for end in pair(kind)]
names = [(kind, name + str(kind)) for kind in (STREAM, SEQ) for name in (os.getcwd() + "/meet", "\0peers-%s" % root)]
reads = [pair(kind) for kind in (STREAM, SEQ, DGRAM)]
for a, b in reads: b.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1); a.send(b"root")
def made():
    drop()
    ends = [end for kind in (STREAM, SEQ, DGRAM) for end in pair(kind)]
    for a, _ in reads: a.send(b"gone")
    socket.send_fds(line, [b"x"], [end.fileno() for end in ends])
    return True
gone = child(made); os.waitpid(gone, 0)
held += [socket.socket(fileno=fd) for fd in socket.recv_fds(far, 1, 9)[1]]
def connect(name):
    s = socket.socket(socket.AF_UNIX, name[0]); s.connect(name[1]); return s
def listens():
    ears = []
    for kind, name in names:
        ear = socket.socket(socket.AF_UNIX, kind); ear.bind(name); ear.listen(3); ears.append(ear)
        if name[0] == "/": os.chmod(name, 0o777)
    os.write(w, b"x")
    took = [ear.accept()[0] for ear in ears]
    before = [peer(s) for s in took]; os.write(w, b"y"); gate()
    return [peer(s) for s in took] + [peer(ear.accept()[0]) for ear in ears] == before + [me] * len(names)
def connects():
    drop()
    ends = [connect(name) for name in names]
    for a, _ in reads: a.send(b"kid")
    os.write(w, b"y"); gate()
    return [peer(s) for s in ends] == [(server, *me[1:])] * len(names)
me = (root, os.getuid(), os.getgid()); other = (65534, 65533) if me[1] == 0 else me[1:]
server = child(listens); os.read(r, 1)
client = child(connects); seen = b""
while len(seen) < 2: seen += os.read(r, 9)
queued = [connect(name) for name in names]
print("ready", flush=True)
gate()
print([peer(s) for s in held + queued] == [me] * 6 + [(gone, *other)] * 6 + [(server, *me[1:])] * len(names), flush=True)
told = []
for _, b in reads:
    for _ in range(3):
        message, control, _, _ = b.recvmsg(99, 99, socket.MSG_DONTWAIT)
        told.append((message, struct.unpack("3i", control[0][2])))
print(told == [(b"root", me), (b"gone", (gone, *other)), (b"kid", (client, *other))] * 3, flush=True)
print([os.waitpid(pid, 0)[1] for pid in (server, client)], flush=True)
"#;

#[test]
fn others_learn_the_same_ids() {
    for who in [Who::Me, Who::Nobody] {
        python(who, PEERS, &["True", "True", "[0, 0]"]);
    }
}

/// Has many connections to itself at two names, and one at each that waits to be accepted.
const CROWD: &str = r#"
import os, socket, sys, time
def line(name):
    ear = socket.socket(socket.AF_UNIX); ear.bind(name); ear.listen(1); ends = []
    for _ in range(41):
        c = socket.socket(socket.AF_UNIX); c.connect(name); ends.append((c, ear.accept()[0] if len(ends) < 40 else None))
    return ear, ends
both = [line(os.path.abspath("meet")), line("\0" + sys.argv[1])]
print("ready", flush=True)
while not os.path.exists("gate"): time.sleep(0.02)
said = set()
for ear, ends in both:
    for c, s in ends:
        c.send(b"ours")
        while s is None:
            other = ear.accept()[0]
            if other.recv(4, socket.MSG_PEEK) == b"ours": s = other
        said.add(s.recv(4))
print(said, flush=True)
"#;

/// Strangers who fill the queues of listeners that are being made neither come between nor hinder.
#[test]
fn a_crowd_does_not_come_between() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};
    let bench = Bench::new(Who::Nobody);
    bench.file("crowd.py", CROWD);
    let name = format!("ckpt-crowd-{}", std::process::id());
    let mut run = bench.run("/usr/bin/python3", &["crowd.py", &name]);
    run.expect("ready");
    bench.must(&["save", "-n", &bench.name("1.ckpt"), "--stop", &run.pid_text()]);
    run.ends_well();
    let path = SocketAddr::from_pathname(bench.path("meet")).expect("an address");
    let hidden = SocketAddr::from_abstract_name(&name).expect("an address");
    let over = AtomicBool::new(false);
    let deadline = Instant::now() + Duration::from_secs(20);
    let meddle = |at: &SocketAddr| {
        while !over.load(Ordering::Relaxed) && Instant::now() < deadline {
            // What is closed stays in the queue.
            drop(UnixStream::connect_addr(at));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| meddle(&path));
        scope.spawn(|| meddle(&hidden));
        let mut run = bench.run(bench.path("1.ckpt"), &[]);
        bench.file("gate", "");
        let line = run.line();
        over.store(true, Ordering::Relaxed);
        // Whoever waits in a full queue.
        drop((UnixStream::connect_addr(&path), UnixStream::connect_addr(&hidden)));
        assert_eq!(line, "{b'ours'}");
        run.ends_well();
    });
}
