// SPDX-License-Identifier: LGPL-2.1-only
//! A job of several processes: saved at one moment, restarted with its ids and all that its processes share.

mod harness;

use harness::faults::stands_at;
use harness::{Bench, Build, Run, Who, until};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL};
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// Subshells in a pipeline, in the background and in a substitution, each of which waits for a gate of its own;
/// the shell waits for them by their ids.
const JOBS: &str = r#"
    gate() { until [ -e "$1" ]; do sleep 0.02; done; }
    (gate a; echo "a in a pipe"; exit 4) | (read line; echo "got $line"; exit 3) & pipe=$!
    (gate b; exit 5) & plain=$!
    (exit 6) & dead=$!
    echo ready $$
    wait $plain; echo "plain $?"
    wait $pipe; echo "pipe $?"
    wait $dead; echo "dead $?"
    x=$(gate c; echo "substituted"); echo "$x"
    echo "end $$"
"#;

fn jobs_of(who: Who, shell: &str) {
    let bench = Bench::new(who);
    let mut run = bench.launch(&["-n", "a.ckpt"], shell, &["-c", JOBS]);
    let ready = run.line();
    let id = ready.strip_prefix("ready ").expect("an id").to_owned();
    let first = bench.reborn("a.ckpt", run);
    let mut run = bench.reborn("b.ckpt", first);
    bench.file("b", "");
    run.expect("plain 5");
    let mut run = bench.reborn("c.ckpt", run);
    bench.file("a", "");
    run.expect("got a in a pipe");
    run.expect("pipe 3");
    run.expect("dead 6");
    bench.file("c", "");
    run.expect("substituted");
    run.expect(&format!("end {id}"));
    run.ends_well();
}

#[test]
fn jobs_of_bash_go_on_for_three_generations() {
    jobs_of(Who::Me, "/bin/bash");
}

#[test]
fn jobs_of_bash_go_on_unprivileged() {
    jobs_of(Who::Nobody, "/bin/bash");
}

#[test]
fn jobs_of_dash_go_on_unprivileged() {
    jobs_of(Who::Nobody, "/bin/dash");
}

/// The job goes on after a checkpoint as if nothing had been, and what was saved last comes to the same end.
#[test]
fn a_job_is_not_disturbed_by_its_checkpoints() {
    let bench = Bench::new(Who::Nobody);
    let script = "i=0; echo ready; while [ $i -lt 60 ]; do i=$((i + 1)); \
                  n=$(seq 1 2000 | sort -rn | head -1 | (read x; echo $x)); s=$((s + n)); done; \
                  read x; echo sum $s";
    let mut run = bench.launch(&["-c", "-n", "x.ckpt"], "/bin/bash", &["-c", script]);
    run.expect("ready");
    for _ in 0..8 {
        bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    }
    assert_eq!(run.go().stdout, ["sum 120000"]);
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.say("go");
    again.expect("sum 120000");
    again.ends_well();
}

/// Locks, queues and shared memory between processes of python's multiprocessing.
#[test]
fn a_pool_of_python_goes_on() {
    const POOL: &str = r#"
import multiprocessing as mp, os, time
def gate(name):
    while not os.path.exists(name): time.sleep(0.02)
def square(x):
    gate("gate"); return x * x
def count(lock, value, queue, n):
    gate("gate")
    for i in range(50):
        with lock: value.value += 1
    queue.put(n)
if __name__ == "__main__":
    queue, lock, value = mp.Queue(), mp.Lock(), mp.Value("i", 0)
    all = [mp.Process(target=count, args=(lock, value, queue, n)) for n in range(3)]
    for one in all: one.start()
    with mp.Pool(3) as pool:
        later = pool.map_async(square, range(40), chunksize=1)
        print("ready", flush=True)
        print(sum(later.get()), flush=True)
    print(sorted(queue.get() for one in all), flush=True)
    for one in all: one.join()
    print(value.value, [one.exitcode for one in all], flush=True)
"#;
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("pool.py", POOL);
        let mut run = bench.launch(&["-n", "a.ckpt"], "/usr/bin/python3", &["pool.py"]);
        run.expect("ready");
        let run = bench.reborn("a.ckpt", run);
        let mut run = bench.reborn("b.ckpt", run);
        bench.file("gate", "");
        run.expect("20540");
        run.expect("[0, 1, 2]");
        run.expect("150 [0, 0, 0]");
        run.ends_well();
    }
}

/// The restarter ends as the root does, passes on what it alone is sent, and leaves nothing behind when it is killed.
#[test]
fn the_restarter_stands_for_the_root() {
    use nix::sys::signal::Signal;
    const SCRIPT: &str = "trap 'echo usr1' USR1; trap 'kill $!; trap - TERM; kill $$' TERM; \
                          sleep 1000 & echo ready; while :; do wait; done";
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.launch(&["-n", "x.ckpt"], "/bin/bash", &["-c", SCRIPT]);
    run.expect("ready");
    let mut run = bench.reborn("x.ckpt", run);
    // It is there when that has an answer.
    bench.must(&["save", &run.pid_text(), "-n", &bench.name("y.ckpt")]);
    run.signal(Signal::SIGUSR1);
    run.expect("usr1");
    run.signal(Signal::SIGTERM);
    assert_eq!(run.end().signal(), Some(Signal::SIGTERM as i32));
    let run = bench.run(bench.path("y.ckpt"), &[]);
    bench.must(&["save", &run.pid_text(), "-n", &bench.name("z.ckpt")]);
    run.signal(SIGKILL);
    assert_eq!(run.end().signal(), Some(9));
}

/// An id that is taken by somebody else is had in namespaces of the tree's own; the rest of the world is as before.
#[test]
fn a_job_restarts_beside_the_one_that_goes_on() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = bench.run(bench.subject("forked", Build::Pie), &["gate"]);
        let line = run.line();
        assert!(line.starts_with("child "), "{line}");
        bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
        let mut again = bench.run(bench.path("x.ckpt"), &[]);
        bench.must(&["save", &again.pid_text(), "-n", &bench.name("y.ckpt")]);
        bench.file("gate", "");
        for run in [&mut run, &mut again] {
            run.expect("child goes on");
            run.expect("ended 33");
        }
        run.ends_well();
        again.ends_well();
    }
}

/// With --alone the others are a loss, and named.
#[test]
fn alone_leaves_the_others_out() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("forked", Build::Pie), &["gate"]);
    run.line();
    let said = bench.must(&["save", "--alone", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    assert!(said.stderr.contains("not saved: child processes: forked"), "{said:?}");
    bench.file("gate", "");
    run.expect("child goes on");
    run.expect("ended 33");
    run.ends_well();
}

/// What workers share with the process that they were forked from lies in the image once, and in memory after a
/// restart; what each has changed is its own.
#[test]
fn workers_share_what_they_shared() {
    const POOL: &str = r#"
import hashlib, multiprocessing as mp, os, time
data = bytearray(os.urandom(32 << 20))
def changed(n):
    data[n << 20] ^= 255
    return hashlib.sha256(data).hexdigest()
def work(n, queue):
    own = changed(n)
    queue.put(None)
    while not os.path.exists("gate"): time.sleep(0.02)
    same = hashlib.sha256(data).hexdigest() == own
    lines = open("/proc/self/smaps_rollup").read().split()
    dirty = int(lines[lines.index("Private_Dirty:") + 1])
    queue.put((n, same, dirty < 24 << 10))
if __name__ == "__main__":
    before, queue = hashlib.sha256(data).hexdigest(), mp.Queue()
    all = [mp.Process(target=work, args=(n, queue)) for n in range(5)]
    for one in all: one.start()
    for one in all: queue.get()
    print("ready", flush=True)
    print(sorted(queue.get() for one in all), flush=True)
    print(hashlib.sha256(data).hexdigest() == before, flush=True)
"#;
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("pool.py", POOL);
        let mut run = bench.launch(&["-n", "a.ckpt"], "/usr/bin/python3", &["pool.py"]);
        run.expect("ready");
        let run = bench.reborn("a.ckpt", run);
        bench.must(&["save", "--stop", &run.pid_text(), "-n", &bench.name("b.ckpt")]);
        run.ends_well();
        for image in ["a.ckpt", "b.ckpt"] {
            let len = std::fs::metadata(bench.path(image)).expect("an image").len();
            assert!(len < 2 * (32 << 20), "{image}: {len} bytes");
        }
        let mut run = bench.run(bench.path("b.ckpt"), &[]);
        bench.file("gate", "");
        let all = (0..5).map(|n| format!("({n}, True, True)")).collect::<Vec<_>>();
        run.expect(&format!("[{}]", all.join(", ")));
        run.expect("True");
        run.ends_well();
    }
}

/// Tells its child's id, and kills it when told so.
const PARENT: &str = r#"
import os, subprocess
child = subprocess.Popen(["sleep", "1000"])
print(child.pid, flush=True)
while input() == "kill":
    lives = os.waitpid(child.pid, os.WNOHANG) == (0, 0)
    child.kill()
    print(lives, flush=True)
"#;

/// A parent, and its child.
fn parent(bench: &Bench) -> (Run, Pid) {
    let mut run = bench.run("/usr/bin/python3", &["-c", PARENT]);
    let child = Pid::from_raw(run.line().parse().expect("an id"));
    (run, child)
}

/// A dumper that stands at a step.
fn dumper(bench: &Bench, run: &Run, step: &str, options: &[&str]) -> Run {
    let (pid, x) = (run.pid_text(), bench.name("x.ckpt"));
    stands_at(bench, step, &[&["save"], options, &[&pid, "-n", &x]].concat())
}

#[track_caller]
fn has_both(bench: &Bench) {
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.say("kill");
    again.expect("True");
    again.go();
}

/// Who goes on first kills another that still stands: the checkpoint is of before, and not taken once more.
#[test]
fn who_is_killed_as_all_go_on_is_in_the_checkpoint() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let (mut run, _) = parent(&bench);
        let save = dumper(&bench, &run, "thawed", &[]);
        run.say("kill");
        run.expect("True");
        save.signal(SIGCONT);
        save.ends_well();
        run.go();
        has_both(&bench);
    }
}

/// Who is killed before a whole checkpoint has ended it is in that: of the others none goes on, and none is taken after it.
#[test]
fn who_is_killed_before_its_end_is_in_the_checkpoint() {
    for (who, step) in [(Who::Me, "sealed"), (Who::Nobody, "sealed"), (Who::Nobody, "written")] {
        let bench = Bench::new(who);
        let (run, child) = parent(&bench);
        let save = dumper(&bench, &run, step, &["--stop"]);
        kill(child, SIGKILL).expect("it is there");
        save.signal(SIGCONT);
        save.ends_well();
        run.ends_well();
        has_both(&bench);
    }
    // One process alone is no other than that.
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run("/bin/cat", &[]);
    run.say("here");
    run.expect("here");
    let save = dumper(&bench, &run, "sealed", &["--stop"]);
    run.signal(SIGKILL);
    save.signal(SIGCONT);
    save.ends_well();
}

/// A checkpoint that has ended a restarted job is where the next `--resume` goes on, also where the dumper lives in the
/// job's namespaces and cannot speak with its monitor.
#[test]
fn what_has_ended_a_restarted_job_stays() {
    const SCRIPT: &str = "sleep 1000 & echo ready; read line; kill $!; echo \"got $line\"";
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let job = || bench.launch(&["--resume", "-n", "x.ckpt"], "/bin/sh", &["-c", SCRIPT]);
        let mut run = job();
        run.expect("ready");
        for _ in 0..2 {
            bench.must(&["save", "--stop", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
            run.ends_well();
            assert_eq!(bench.names("x.ckpt"), ["x.ckpt"]);
            run = job();
        }
        run.say("go");
        run.expect("got go");
        run.ends_well();
        until("the end of the job", || {
            (bench.names("x.ckpt") == ["x.ckpt.finished"]).then_some(())
        });
    }
}

/// A container's first process with children: that a restart needs namespaces for it is said when it is saved.
#[test]
fn the_first_process_of_a_container_is_told_what_its_restart_needs() {
    let bench = Bench::new(Who::Nobody);
    let script = "sleep 1000 & echo ready $$; read line; kill $!";
    let options = ["--user", "--map-root-user", "--pid", "--fork", "--mount-proc"];
    let mut run = bench.run("unshare", &[&options[..], &["/bin/sh", "-c", script]].concat());
    run.expect("ready 1");
    let children = format!("/proc/{0}/task/{0}/children", run.pid());
    let first = std::fs::read_to_string(children).unwrap();
    let saved = bench.must(&["save", first.trim(), "-n", &bench.name("x.ckpt")]);
    assert!(saved.stderr.contains("its process id 1"), "{saved:?}");
    run.say("go");
    run.ends_well();
    let mut again = bench.run(bench.name("x.ckpt"), &[]);
    again.say("go");
    again.ends_well();
}

/// A root that ends is gone for who comes to save it, also while it closes its files: its memory and the namespaces that a
/// restart gave it are no more.
#[test]
fn a_root_that_is_just_ending_is_gone() {
    const CLOSES_LONG: &str = r#"
import ctypes, os, subprocess
libc = ctypes.CDLL(None)
child = subprocess.Popen(["sleep", "1000"])
print("ready", flush=True)
input()
for one in range(100): libc.inotify_add_watch(libc.inotify_init(), b".", 1)
print("open", flush=True)
input()
child.kill()
os._exit(0)
"#;
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.launch(&["-n", "a.ckpt"], "/usr/bin/python3", &["-c", CLOSES_LONG]);
    run.expect("ready");
    bench.must(&["save", "--stop", &run.pid_text()]);
    run.ends_well();
    let text = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let is_root = |child: &&str| text(format!("/proc/{child}/comm")).starts_with("python");
    // How long the kernel takes for such files varies.
    for round in 0..12 {
        let mut run = match round % 2 {
            0 => bench.run(bench.path("a.ckpt"), &[]),
            _ => bench.run("/usr/bin/python3", &["-c", CLOSES_LONG]),
        };
        let own = run.pid_text();
        run.say("go");
        while run.line() != "open" {}
        let children = text(format!("/proc/{own}/task/{own}/children"));
        let root = children.split_whitespace().find(is_root).unwrap_or(&own);
        run.say("end");
        while std::fs::read_link(format!("/proc/{root}/ns/mnt")).is_ok() {}
        let refused = bench.order(&["save", &own]);
        let is_told = ["is gone", "has ended"].iter().any(|it| refused.stderr.contains(it));
        assert!(is_told, "{round}: {refused:?}");
        run.ends_well();
    }
}
