// SPDX-License-Identifier: LGPL-2.1-only
//! What people run: scripts of shells, make, python, perl and R, saved and restarted in the middle for three generations.

mod harness;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;

use harness::{Bench, Run, Who, until};
use nix::sys::signal::Signal::SIGKILL;

/// A job, which stops at its gates 1, 2 and 3: a shell's script finds `gate NUMBER` as a command, others `./gate`. What
/// it makes of files, its output among them, has to be what it makes without a checkpoint.
struct Job {
    words: &'static [&'static str],
    files: &'static [(&'static str, &'static str)],
}

const GATE: (&str, &str) = ("gate", "#!/bin/sh\n: > at$1; until [ -e go$1 ]; do sleep 0.02; done");
const GATES: [&str; 3] = ["1", "2", "3"];

/// A bench with the files of a job.
fn desk(who: Who, job: &Job) -> Bench {
    let bench = Bench::new(who);
    for (name, text) in job.files.iter().chain([&GATE]) {
        bench.file(name, text);
    }
    bench
}

/// Starts a program with its output in a file.
fn start(bench: &Bench, program: impl AsRef<OsStr>, words: &[&str]) -> Run {
    if !bench.path("out").exists() {
        bench.file("out", "");
    }
    let out = fs::File::options().append(true).open(bench.path("out"));
    let mut command = bench.command(program);
    // As a shell does that has job control, and a batch system.
    command.args(words).env("HOME", &bench.dir).process_group(0);
    Run::start_to(command, out.expect("a file").into())
}

/// What the job has made, by name, and how it ended.
fn made(bench: &Bench, job: &Job, run: Run) -> (Option<i32>, Vec<(String, Vec<u8>)>) {
    let ended = run.finish();
    assert_eq!(ended.complaints(), "", "{:?}", job.words);
    let given = |name: &String| job.files.iter().any(|(file, _)| file == name);
    let names = bench.names("").into_iter();
    let names = names.filter(|n| !["ckpt", "gate"].contains(&&n[..]) && !n.ends_with(".ckpt"));
    let read = |name: String| (name.clone(), fs::read(bench.path(name)).unwrap_or_default());
    (ended.code(), names.filter(|name| !given(name)).map(read).collect())
}

fn readable(made: &(Option<i32>, Vec<(String, Vec<u8>)>)) -> String {
    let text = |(name, bytes): &(String, Vec<u8>)| {
        format!("{name}:\n{}", String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]))
    };
    format!("{:?}\n{}", made.0, made.1.iter().map(text).collect::<Vec<_>>().join("\n"))
}

/// The job is saved, ended and restarted at each of its gates.
#[track_caller]
fn goes_on(who: Who, job: &Job) {
    let plain = desk(who, job);
    GATES.iter().for_each(|gate| drop(plain.file(&format!("go{gate}"), "")));
    let run = start(&plain, job.words[0], &job.words[1..]);
    let expected = made(&plain, job, run);
    let bench = desk(who, job);
    let mut run = start(&bench, bench.ckpt(), &[&["-n", "first.ckpt", "--"], job.words].concat());
    for gate in GATES {
        until(&format!("gate {gate} of {:?}", job.words), || {
            assert!(run.lives(), "{}", run.fate());
            bench.path(format!("at{gate}")).exists().then_some(())
        });
        let name = format!("{gate}.ckpt");
        let saved = bench.must(&["save", "--stop", &run.pid_text(), "-n", &bench.name(&name)]);
        assert_eq!(saved.complaints(), "", "nothing is lost of {:?}", job.words);
        run.ends_well();
        run = start(&bench, bench.path(name), &[]);
        bench.file(&format!("go{gate}"), "");
    }
    let got = made(&bench, job, run);
    let (got_text, expected_text) = (readable(&got), readable(&expected));
    assert!(got == expected, "{:?} as {who:?}: {got_text}\ninstead of {expected_text}", job.words);
}

/// A script for `sh -c` of the shell, as root and without privileges.
#[track_caller]
fn script_goes_on(shell: &'static str, script: &'static str) {
    let words = Box::leak(Box::new([shell, "./job"]));
    let files = Box::leak(Box::new([("job", script)]));
    for who in [Who::Me, Who::Nobody] {
        goes_on(who, &Job { words, files });
    }
}

/// Pipes whose writer is gone, pipes with names and without, and descriptors that only descendants have.
const PIPES: &str = r#"
    gate() { . ./gate; }
    { gate 1; cat; echo end; } <<END
in a document with $(echo a substitution)
END
    while read line; do [ "$line" = b ] && gate 2; echo "<$line>"; done <<END
a
b
c
END
    mkfifo to from gone
    { gate 3; n=0; while read line; do n=$((n + line)); done; echo "sum $n"; } < to > from &
    exec 5<> gone
    rm gone
    echo removed >&5
    seq 1 30000 > to &
    cat from
    read line <&5; echo "$line"
    wait
    rm to from
"#;

#[test]
fn pipes_of_bash() {
    script_goes_on("/bin/bash", PIPES);
}

#[test]
fn pipes_of_dash() {
    script_goes_on("/bin/dash", PIPES);
}

/// What two members hold of one file, by flock(2) on what they share and by fcntl(2) each for itself.
const LOCKS: &str = r#"
import fcntl, os, subprocess
gate = lambda n: subprocess.run(["./gate", n])
def free(how, *range):
    try: how(*range)
    except OSError: return "held"
    return "free"
part = lambda f, n: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, n)
own, whole = open("own", "w+"), open("whole", "w")
part(own, 0)
fcntl.flock(whole, fcntl.LOCK_EX)
tell, told = os.pipe()
child = os.fork()
if child == 0:
    other = open("own", "r+")
    part(other, 20)
    os.write(told, b"x")
    fcntl.lockf(other, fcntl.LOCK_EX, 10, 0)
    os._exit(3)
os.read(tell, 1)
again = open("whole")
for n in "123":
    gate(n)
    print(free(part, own, 20), free(part, own, 40), free(fcntl.flock, again, fcntl.LOCK_SH | fcntl.LOCK_NB), flush=True)
fcntl.lockf(own, fcntl.LOCK_UN, 10, 0)
print(os.wait()[1] >> 8, free(part, own, 20), free(fcntl.flock, whole, fcntl.LOCK_UN))
print(free(fcntl.flock, again, fcntl.LOCK_SH | fcntl.LOCK_NB))
"#;

#[test]
fn locks_on_files() {
    for who in [Who::Me, Who::Nobody] {
        goes_on(who, &Job { words: &["/usr/bin/python3", "./job"], files: &[("job", LOCKS)] });
    }
}

/// A lock that somebody else has taken since is a reason not to go on.
#[test]
fn a_lock_that_is_anothers_is_refused() {
    let bench = Bench::new(Who::Nobody);
    let run = |script: &str| bench.run("/bin/sh", &["-c", script]);
    let mut job = run("exec 9> l; flock 9; echo ready; read x; echo $x");
    job.expect("ready");
    bench.must(&["save", "--stop", &job.pid_text(), "-n", &bench.name("x.ckpt")]);
    let mut other = run("exec 9> l; flock 9; echo ready; read x");
    other.expect("ready");
    let refused = bench.run(bench.path("x.ckpt"), &[]).end();
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    assert!(refused.stderr.contains("/l locked, and another process has"), "{refused:?}");
    other.go();
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.say("go");
    again.expect("go");
    again.ends_well();
}

/// Who was started by a shell that has ended, and daemons of a restarted job.
const ORPHANS: &str = r#"
    gate() { . ./gate; }
    (sh -c 'until [ -e go3 ]; do sleep 0.02; done; echo orphan > first' &)
    gate 1
    gate 2
    # Nobody finds it where all are in the namespaces of the machine, so root has another.
    [ "$(id -u)" = 0 ] && own= || own=setsid
    ($own sh -c 'until [ -e go3 ]; do sleep 0.02; done; echo daemon > second' &)
    gate 3
    until [ -s first ] && [ -s second ]; do sleep 0.02; done
"#;

#[test]
fn orphans_of_a_shell() {
    script_goes_on("/bin/bash", ORPHANS);
}

/// Whoever may belong to the job, or to whoever started that in its own process group, is named.
#[test]
fn a_doubtful_orphan_is_named() {
    let bench = Bench::new(Who::Nobody);
    let script = "(sh -c 'until [ -e end ]; do sleep 0.02; done' &); echo ready; read x";
    let mut run = bench.launch(&["-n", "x.ckpt"], "/bin/sh", &["-c", script]);
    run.expect("ready");
    let saved = bench.must(&["save", "--stop", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    assert!(saved.stderr.contains("what may belong to the job: sh ("), "{saved:?}");
    bench.file("end", "");
    run.ends_well();
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.complaint("what may belong to the job: sh (");
    again.say("go");
    again.ends_well();
}

/// Every way in which a shell waits, and what it notices of its children.
const WAITS: &str = r#"
    gate() { . ./gate; }
    trap 'echo "exit $?"' EXIT
    trap 'told=yes' USR1
    gate 1 & first=$!
    (gate 2; exit 4) & second=$!
    (exit 5) & third=$!
    (exit 6) & fourth=$!
    (gate 3; kill -9 $(sh -c 'echo $PPID')) & fifth=$!
    for id in $third $second $fifth $first; do
        wait $id; echo "$?"
    done 2> /dev/null
    wait $fourth; echo "fourth $?"
    kill -USR1 $$; echo "told $told"
    timeout 20 sh -c 'exit 7'; echo "timeout $?"
    nice -n 3 env A=b sh -c 'echo $A $(nice)'
    exit 8
"#;

#[test]
fn waits_of_bash() {
    script_goes_on("/bin/bash", WAITS);
}

#[test]
fn waits_of_dash() {
    script_goes_on("/bin/dash", WAITS);
}

/// What only bash has: coprocesses, substituted processes, `wait -n`, job control.
const BASH: &str = r#"
    gate() { . ./gate; }
    coproc SUM { while read a b; do echo $((a + b)); done; }
    sum() { echo $1 $2 >&${SUM[1]}; read answer <&${SUM[0]}; echo $answer; }
    sum 1 2
    diff <(seq 5; gate 1) <(seq 2 5) || echo "differ"
    sum 3 4
    seq 1000 | tee >(md5sum > sums) > /dev/null
    (gate 2; exit 3) & wait -n; echo "any $?"
    set -m
    sleep 100 & kill -STOP %%
    trap 'children=1' CHLD
    { gate 3; exit 4; } | cat
    echo "pipe ${PIPESTATUS[0]}"
    kill -CONT %%; kill %%; wait %% 2> /dev/null; echo "killed $?, $children"
    mapfile -t lines <<< "$(seq 3)"; echo "${lines[@]}"
    until [ -s sums ]; do sleep 0.02; done
"#;

#[test]
fn only_bash() {
    script_goes_on("/bin/bash", BASH);
}

/// Megabytes in flight in several pipes.
const FLOOD: &str = r#"
    gate() { . ./gate; }
    gen() { seq 1 300000; gate $1 >&2; seq 1 100000; }
    gen 1 | sort -n | gzip -n > flood.gz
    gen 2 | tr 0-9 a-j | (sleep 0.3; cat) | md5sum
    gen 3 | xargs -n 5000 echo | cksum
"#;

#[test]
fn a_flood_in_pipes() {
    script_goes_on("/bin/dash", FLOOD);
}

/// Many small files, with the jobserver's pipe between two makes.
const MAKE: &str = "all:\n\t+@$(MAKE) -s -f sub\n";
const SUB: &str = r#"
N := $(shell seq 1 40)
prog: $(N:%=f%.o) main.o
	@gcc -o $@ $^ && ./prog && echo right && rm -f prog *.o *.c
f%.o: f%.c
	@case $* in 10) ./gate 1;; 20) ./gate 2;; 30) ./gate 3;; esac
	@gcc -c -o $@ $<
f%.c:
	@echo "int f$*(void) { return $*; }" > $@
main.c:
	@(for i in $(N); do echo "int f$$i(void);"; done; echo 'int main(void) { int s = 0;'; \
	  for i in $(N); do echo "s += f$$i();"; done; echo 'return s != 820; }') > $@
"#;

#[test]
fn make_with_a_jobserver() {
    let words = &["/usr/bin/make", "-s", "-j3", "-f", "top"];
    goes_on(Who::Nobody, &Job { words, files: &[("top", MAKE), ("sub", SUB)] });
}

/// GNU parallel, which is perl, xargs, and perl's own ways to have children.
const MANY: &str = r#"
    seq 1 12 | xargs -P 3 -I N sh -c 'case N in 5) ./gate 1;; esac; echo $((N * N)) > xN'
    cat $(ls x* | sort) | cksum; rm x*
    perl -e '
        my %n; $| = 1;
        for my $n (1 .. 3) { my $p = fork // die; if (!$p) { exec "./gate", "2" if $n == 2; exit $n } $n{$p} = $n }
        my %s; while ((my $p = wait) > 0) { $s{$n{$p}} = $? >> 8 } print join(" ", map { $s{$_} } 1 .. 3), "\n";
        open my $f, "-|", "seq 3; ./gate 3; seq 2" or die; print while <$f>; close $f; print "$?\n"; '
"#;

#[test]
fn xargs_and_perl() {
    script_goes_on("/bin/sh", MANY);
}

/// Python's ways to run programs, and its executors with processes made in two ways.
const PYTHON: &str = r#"
import asyncio, concurrent.futures as futures, multiprocessing as mp, os, subprocess, time
def work(n):
    if n == 7 and not os.path.exists("at2"): subprocess.run(["./gate", "2"])
    return n * n
async def several():
    async def one(n):
        script = ("./gate 3; " if n == 1 else "") + f"echo {n}; exit {n}"
        child = await asyncio.create_subprocess_exec("sh", "-c", script, stdout=subprocess.PIPE)
        return (await child.communicate())[0], child.returncode
    return await asyncio.gather(*(one(n) for n in range(4)))
if __name__ == "__main__":
    cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    print(subprocess.run("./gate 1; seq 3; exit 4", shell=True, capture_output=True))
    for way in ["fork", "spawn"]:
        with futures.ProcessPoolExecutor(2, mp_context=mp.get_context(way)) as pool:
            print(sum(pool.map(work, range(20))))
    print(asyncio.run(several()))
    print(cat.communicate("x" * 100000)[0] == "x" * 100000, cat.returncode)
"#;

#[test]
fn pythons_children() {
    for who in [Who::Me, Who::Nobody] {
        goes_on(who, &Job { words: &["/usr/bin/python3", "./job"], files: &[("job", PYTHON)] });
    }
}

/// A SIGTERM that a member has sent to another waits there still, and is no word to the job that was ended.
const TERMINATION: &str = r#"
import os, signal, subprocess
gate = lambda n: subprocess.run(["./gate", n])
children = []
for n in range(3):
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        while not os.path.exists("free"): signal.sigtimedwait({signal.SIGUSR1}, 0.02)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os._exit(5)
    children.append(child)
os.kill(children[0], signal.SIGTERM)
gate("1")
os.kill(children[1], signal.SIGTERM)
gate("2"), gate("3")
open("free", "w").close()
print([os.waitpid(child, 0)[1] for child in children])
"#;

#[test]
fn a_sigterm_of_the_job_itself() {
    for who in [Who::Me, Who::Nobody] {
        goes_on(
            who,
            &Job { words: &["/usr/bin/python3", "./job"], files: &[("job", TERMINATION)] },
        );
    }
}

/// A signal to the restarter is the program's, with all that it bears.
#[test]
fn a_queued_signal_comes_with_its_sender() {
    const SCRIPT: &str = "import signal, subprocess\n\
                          signal.pthread_sigmask(signal.SIG_BLOCK, [40])\n\
                          sleeper = subprocess.Popen(['/bin/sleep', '600'])\n\
                          print('ready', flush=True)\n\
                          while True:\n    \
                              print(signal.sigwaitinfo([40]).si_code, flush=True)\n\
                          sleeper.kill()";
    let bench = Bench::new(Who::Me);
    let mut run = bench.run("/usr/bin/python3", &["-c", SCRIPT]);
    run.expect("ready");
    let x = bench.name("x.ckpt");
    let queue = |run: &Run| {
        bench.run("/bin/kill", &["-q", "7", "-s", "40", &run.pid_text()]).ends_well();
    };
    queue(&run);
    run.expect("-1");
    bench.must(&["save", "--stop", &run.pid_text(), "-n", &x]);
    run.ends_well();
    for _ in 0..2 {
        let mut again = bench.run(&x, &[]);
        // It is there when that has an answer.
        bench.must(&["save", &again.pid_text(), "-n", &bench.name("y.ckpt")]);
        queue(&again);
        again.expect("-1");
        again.signal(SIGKILL);
        again.end();
    }
}
