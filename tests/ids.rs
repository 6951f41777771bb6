// SPDX-License-Identifier: LGPL-2.1-only
//! Process ids where a restart may not choose them: new ones, or those that the kernel gives in turn.

mod harness;

use harness::{Bench, Build, Who};
use nix::sys::signal::Signal::SIGKILL;
use std::os::unix::process::CommandExt;

/// Processes that remember no ids but by the kernel: two in a group that the first leads, one in a session of its own, which
/// a pidfd watches.
const FAMILY: &str = r#"
import os, select, sys, time
def gate():
    while not os.path.exists("gate"): time.sleep(0.02)
down, up = os.pipe()
def child(begin, status):
    pid = os.fork()
    if pid == 0:
        begin(); os.write(up, b"."); gate()
        os._exit(status if right() else 99)
    os.read(down, 1)
    return pid
right = lambda: os.getpgrp() == os.getpid()
leader = child(lambda: os.setpgid(0, 0), 3)
same, tell = os.pipe()
right = lambda: os.getpgrp() not in (os.getpid(), os.getpgid(os.getppid())) and os.getsid(0) == os.getsid(os.getppid())
child(lambda: os.setpgid(0, leader), 4)
right = lambda: os.getsid(0) == os.getpgrp() == os.getpid()
watch = os.pidfd_open(child(os.setsid, 5)) if hasattr(os, "pidfd_open") else None
print("ready", flush=True)
statuses = sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(3))
print(statuses, watch is None or select.select([watch], [], [], 0)[0] == [watch], flush=True)
"#;

#[test]
fn a_job_with_new_ids_is_related_as_it_was() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("family.py", FAMILY);
        let mut run = bench.launch(&["-n", "a.ckpt"], "/usr/bin/python3", &["family.py"]);
        run.expect("ready");
        bench.must(&["save", &run.pid_text(), "-n", &bench.name("a.ckpt")]);
        // While the first lives, so that no id is free.
        let again = bench.run(bench.path("a.ckpt"), &["--ids=new"]);
        again.complaint("the 4 processes have new process ids");
        bench.must(&["save", "--stop", &again.pid_text(), "-n", &bench.name("b.ckpt")]);
        again.ends_well();
        let mut again = bench.run(bench.path("b.ckpt"), &["--ids=new"]);
        bench.file("gate", "");
        for run in [&mut run, &mut again] {
            run.expect("[3, 4, 5] True");
        }
        run.ends_well();
        again.ends_well();
    }
}

/// Each step of the loop asks whether it is still in the process that it began in.
const LOOP: &str = "import asyncio, sys
async def main():
    print('ready', flush=True)
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    asyncio.get_running_loop()
    print('works', flush=True)
    sys.stdin.readline()
asyncio.run(main())";

fn remembers(bench: &Bench, image: &str) -> bool {
    let text = bench.must(&["info", "--json", &bench.name(image)]).stdout.concat();
    assert!(text.contains("\"remembers_its_ids\""), "{text}");
    text.contains("\"remembers_its_ids\": true") || text.contains("\"remembers_its_ids\":true")
}

#[test]
fn one_that_remembers_its_id_has_it_again() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let clocks = bench.subject("clockids", Build::Pie);
        let python = ("/usr/bin/python3".into(), vec!["-c", LOOP]);
        for (program, args) in [python, (clocks, Vec::new())] {
            let mut run = bench.run(&program, &args);
            run.expect("ready");
            for image in ["x.ckpt", "y.ckpt"] {
                let said =
                    bench.must(&["save", &run.pid_text(), "--stop", "-n", &bench.name(image)]);
                assert!(!said.stderr.contains("clocks"), "{said:?}");
                run.ends_well();
                assert!(remembers(&bench, image));
                run = bench.run(bench.path(image), &[]);
                if args.is_empty() {
                    run.check();
                }
            }
            run.say("go");
            if !args.is_empty() {
                run.expect("works");
                run.say("go");
            }
            run.ends_well();
            let again = bench.run(bench.path("y.ckpt"), &["--ids=new"]);
            again.complaint("the program has a new process id");
            again.signal(SIGKILL);
            again.end();
            if who == Who::Nobody {
                let alone = "ulimit -u 1; exec ./y.ckpt";
                let again = bench.run("/bin/bash", &["-c", alone]);
                again.complaint("no process can be made beside it");
                again.signal(SIGKILL);
                again.end();
            }
        }
    }
}

#[test]
fn one_that_remembers_no_id_is_the_restarter() {
    let bench = Bench::new(Who::Nobody);
    for (build, named) in [(Build::Pie, "fpu.pie"), (Build::Static, "fpu.static")] {
        let mut run = bench.run(bench.subject("fpu", build), &[]);
        run.expect("ready");
        let pid = run.pid_text();
        bench.must(&["save", &pid, "--stop", "-n", &bench.name("x.ckpt")]);
        run.ends_well();
        assert!(!remembers(&bench, "x.ckpt"));
        let mut again = bench.run(bench.path("x.ckpt"), &[]);
        again.check();
        let name = std::fs::read_to_string(format!("/proc/{}/comm", again.pid_text()));
        assert_eq!(name.expect("a name").trim(), named);
        again.go();
    }
}

/// A parent and its child have files of /proc about themselves and each other, and the child a namespace of its own.
const WATCHERS: &str = r#"
import os, sys
def status(f): f.seek(0); return int(next(l.split()[1] for l in f if l.startswith("Pid:")))
mine, ends, up = open("/proc/self/status"), *os.pipe()
child = os.fork()
own = open("/proc/self/status")
tasks = os.open("/proc/self/task", os.O_RDONLY)
net = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
def right():
    same = os.fstat(net).st_ino == os.stat("/proc/self/ns/net").st_ino
    return same and status(own) == os.getpid() and os.path.exists(f"/proc/self/fd/{tasks}/{os.getpid()}")
if child == 0:
    os.read(ends, 1)
    os._exit(3 if right() and status(mine) == os.getppid() else 4)
theirs = open(f"/proc/{child}/status")
print("ready", flush=True)
sys.stdin.readline()
assert right() and status(mine) == os.getpid() and status(theirs) == child
os.write(up, b".")
print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"#;

#[test]
fn files_about_processes_are_about_the_same_ones() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = bench.run("/usr/bin/python3", &["-c", WATCHERS]);
        run.expect("ready");
        for image in ["x.ckpt", "y.ckpt"] {
            let said = bench.must(&["save", &run.pid_text(), "--stop", "-n", &bench.name(image)]);
            assert!(!said.stderr.contains("/proc"), "{said:?}");
            run.ends_well();
            run = bench.run(bench.path(image), &[]);
        }
        run.say("");
        run.expect("3");
        run.ends_well();
    }
}

/// Two containers without namespaces of their own: a shell's children are known by their ids in the second, too.
const CONTAINERS: &str = r#"
    inside() {
        rm -f go; mkfifo go
        unshare -U sh -c "read x < go; exec setpriv --reuid 0 --regid 0 --clear-groups unshare -pf --mount-proc sh -c '
            echo 0 > /proc/sys/user/max_user_namespaces
            echo $1 > /proc/sys/kernel/ns_last_pid
            setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all $2; exit \$?'" & u=$!
        while [ "$(readlink /proc/$u/ns/user)" = "$(readlink /proc/self/ns/user)" ]; do sleep 0.01; done
        echo '0 0 65536' > /proc/$u/uid_map; echo '0 0 65536' > /proc/$u/gid_map
        echo > go; wait $u
    }
    : > out; chmod 666 out
    inside 5000 './ckpt -n x.ckpt sh job.sh' >> out 2>&1
    : > gate
    inside 50 './x.ckpt' >> out 2>&1; echo "counted $?" >> out
    inside 6000 './x.ckpt --ids=keep' >> out 2>&1; echo "kept $?" >> out
    inside 6000 './x.ckpt' >> out 2>&1; echo "new $?" >> out
    cat out
"#;

#[test]
fn ids_are_counted_for_where_namespaces_are_forbidden() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Nobody);
    bench.file(
        "job.sh",
        "(until [ -e gate ]; do sleep 0.02; done; exit 7) & child=$!\n./ckpt save --stop $$\n\
         wait $child; echo \"child $?\"\n",
    );
    let mut command = bench.command("/bin/sh");
    command.args(["-c", CONTAINERS]).uid(0).gid(0);
    let ended = harness::Run::start(command).end();
    let after = |word: &str| ended.stdout.iter().position(|line| line == word);
    let (counted, new) = (after("counted 0"), after("new 0"));
    assert!(counted.is_some() && new.is_some(), "{ended:?}");
    let counted: Vec<_> = ended.stdout[..counted.unwrap_or(0)].iter().collect();
    assert!(counted.iter().any(|line| *line == "child 7"), "{ended:?}");
    assert!(!counted.iter().any(|line| line.contains("new process ids")), "{ended:?}");
    let why = "user.max_user_namespaces=0 forbids namespaces here";
    assert_eq!(ended.stdout.iter().filter(|line| line.contains(why)).count(), 2, "{ended:?}");
}

/// Holds an id as that of a session, whose leader and group are gone: who looks for it finds nobody (kill(2)), and yet it
/// cannot be had, as if somebody had taken it since.
const HOLDER: &str = r#"
import os, sys, time
wanted = int(sys.argv[1])
ends, holds = os.pipe()
def next_is(number): open("/proc/sys/kernel/ns_last_pid", "w").write(str(number - 1))
while True:
    # What comes behind it is wanted, too.
    behind = os.getpid() + 1000
    next_is(wanted)
    child = os.fork()
    next_is(behind)
    if not child:
        if os.getpid() != wanted: os._exit(1)
        os.close(holds)
        os.setsid()
        if not os.fork():
            os.setpgid(0, 0)
            print("ready", flush=True)
            os.read(ends, 1)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0: break
sys.stdin.readline()
"#;

/// Of two restarts of one image, one after the other may find an id taken that was free when it looked.
#[test]
fn a_job_goes_elsewhere_when_an_id_is_taken_behind_its_look() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let job = "sh -c 'echo $$; until [ -e gate ]; do sleep 0.02; done; exit 7' & child=$!\n\
               read begun idle </proc/uptime; echo $$; echo ready; wait $child; status=$?\n\
               read now idle </proc/uptime; begun=${begun%.*}${begun#*.}; now=${now%.*}${now#*.}\n\
               [ $now -ge $begun ] && echo \"child $status\" || echo \"back from $begun to $now\"\n";
    bench.file("job.sh", job);
    let mut run = bench.launch(&["-n", "a.ckpt"], "/bin/sh", &["job.sh"]);
    let mut ids: Vec<String> = Vec::new();
    while !ids.iter().any(|line| line == "ready") || ids.len() < 3 {
        ids.push(run.line());
    }
    bench.must(&["save", "--stop", &run.pid_text(), "-n", &bench.name("a.ckpt")]);
    run.ends_well();
    // So that a clock that is set back twice is behind what the job has seen.
    std::thread::sleep(std::time::Duration::from_secs(1));
    for id in ids.iter().filter(|line| *line != "ready") {
        let mut holder = bench.run("/usr/bin/python3", &["-c", HOLDER, id]);
        holder.expect("ready");
        let mut again = bench.run(bench.path("a.ckpt"), &["--ids=keep"]);
        bench.file("gate", "");
        again.expect("child 7");
        again.ends_well();
        std::fs::remove_file(bench.path("gate")).expect("the gate is there");
        holder.say("go");
        holder.ends_well();
    }
}

/// Four processes, each of whom writes one line; the id of the last child is told.
const BROTHERS: &str = r#"
import os, time
def life():
    while not os.path.exists("gate"): time.sleep(0.02)
    with open("lines", "a") as lines: lines.write("line\n")
children = []
for _ in range(3):
    children.append(os.fork())
    if not children[-1]:
        life()
        os._exit(0)
print(children[-1], flush=True)
life()
for child in children: os.waitpid(child, 0)
"#;

/// A process in a group whose leader is gone; the id of that is told.
const LEADERLESS: &str = r#"
import os, time
leader = os.fork()
if not leader:
    os.setpgid(0, 0)
    time.sleep(600)
os.setpgid(leader, leader)
child = os.fork()
if not child:
    os.setpgid(0, leader)
    while not os.path.exists("gate"): time.sleep(0.02)
    with open("lines", "a") as lines: lines.write("line\n" * (os.getpgrp() == leader))
    os._exit(0)
while os.getpgid(child) != leader: time.sleep(0.02)
os.kill(leader, 9)
os.waitpid(leader, 0)
print(leader, flush=True)
os.waitpid(child, 0)
"#;

/// Whoever was made before somebody found an id taken ends before it becomes the program: nobody is there twice. And the
/// id may be that of a group, which begins again when all are made.
#[test]
fn a_job_that_goes_elsewhere_is_there_once() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    for (job, lines) in [(BROTHERS, 4), (LEADERLESS, 1)] {
        let bench = Bench::new(Who::Me);
        bench.file("job.py", job);
        let mut run = bench.launch(&["-n", "a.ckpt"], "/usr/bin/python3", &["job.py"]);
        let id = run.line();
        bench.must(&["save", "--stop", &run.pid_text(), "-n", &bench.name("a.ckpt")]);
        run.ends_well();
        let mut holder = bench.run("/usr/bin/python3", &["-c", HOLDER, &id]);
        holder.expect("ready");
        let again = bench.run(bench.path("a.ckpt"), &["--ids=keep"]);
        bench.file("gate", "");
        let ended = again.end();
        holder.say("go");
        holder.ends_well();
        bench.alone(&[]);
        let written = std::fs::read_to_string(bench.path("lines")).unwrap_or_default();
        assert!(
            ended.code() == Some(0) && written.lines().count() == lines,
            "{ended:?}\n{written}"
        );
    }
}
