// SPDX-License-Identifier: LGPL-2.1-only
//! Jobs where containers forbid something: namespaces, system calls, parts of /proc; and first processes.

mod harness;

use harness::{Bench, Build, Ended, Run, Who};
use std::os::unix::process::CommandExt;

/// A shell that saves itself as often as it is told, and knows its children by their ids and by a pipe.
const JOB: &str = r#"
    gate() { until [ -e gate ]; do sleep 0.02; done; }
    (gate; exit 7) & child=$!
    (gate; echo A) | (read line; echo "got $line"; exit 5) & pipe=$!
    for generation in 1 2 3; do ./ckpt save --stop $$ -n x.ckpt; echo "generation $generation $$"; done
    : > gate
    wait $child; echo "child $?"
    wait $pipe; echo "pipe $?"
"#;

/// The first process of a new PID namespace becomes the words; with "masked" parts of /proc are hidden, as in containers.
const CONTAINER: &str = r#"
    if [ "$1" = masked ]; then
        for file in kcore keys timer_list; do [ ! -e /proc/$file ] || mount --bind /dev/null /proc/$file; done
        mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys
    fi
    shift; exec "$@"
"#;

const AS_NOBODY: [&str; 6] =
    ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"];

fn run(bench: &Bench, options: &str, words: &[&str]) -> Run {
    let mut command = bench.command("unshare");
    command.args([options, "--mount-proc", "--kill-child", "sh", "-c", CONTAINER, "sh"]);
    command.args(words).uid(0).gid(0);
    Run::start(command)
}

/// What three generations say; the process of the first has this id.
fn is_done(all: &[Ended], id: &str) {
    let said = |line: &str| all.iter().any(|ended| ended.stdout.iter().any(|it| it == line));
    let wanted = [1, 2, 3].map(|generation| format!("generation {generation} {id}"));
    for line in wanted.iter().map(String::as_str).chain(["got A", "child 7", "pipe 5"]) {
        assert!(said(line), "{line}: {all:?}");
    }
}

/// The filter of a container, and what it hides of /proc: ids are counted for from generation to generation, because ckpt
/// stays as the first process; or below one.
#[test]
fn a_job_keeps_its_ids_from_container_to_container() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    for below in [&[][..], &["sh", "-c", "\"$0\" \"$@\"; exit $?"]] {
        let bench = Bench::new(Who::Nobody);
        bench.file("job.sh", JOB);
        let filter = bench.subject("container", Build::Static);
        let filter = filter.to_str().expect("utf-8");
        let words = |last: &[&str]| {
            let words = [&["masked"][..], &AS_NOBODY, below, &[filter], last].concat();
            run(&bench, "-pfm", &words).end()
        };
        let mut all = vec![words(&["./ckpt", "sh", "job.sh"])];
        all.extend((1..=3).map(|_| words(&["./x.ckpt"])));
        is_done(&all, "333");
        assert!(!all.iter().any(|ended| ended.stderr.contains("new process ids")), "{all:?}");
    }
}

/// A container's first process with children is the first of a namespace again.
#[test]
fn the_first_process_is_one_again() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        bench.file("job.sh", JOB);
        let become_user = if who == Who::Me { &[][..] } else { &AS_NOBODY };
        let words = [&["whole"][..], become_user, &["sh", "job.sh"]].concat();
        let mut all = vec![run(&bench, "-pfm", &words).end()];
        all.extend((1..=3).map(|_| bench.run(bench.path("x.ckpt"), &[]).end()));
        is_done(&all, "1");
    }
}

/// One that is killed takes everything with it (the bench looks for what is left).
#[test]
fn a_first_process_ends_with_its_restarter() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Nobody);
    bench.file("job.sh", "sleep 1000 & ./ckpt save --stop $$ -n x.ckpt; wait\n");
    let words = [&["whole"][..], &AS_NOBODY, &["sh", "job.sh"]].concat();
    run(&bench, "-pfm", &words).end();
    let again = bench.run(bench.path("x.ckpt"), &[]);
    // It is there when that has an answer.
    bench.must(&["save", &again.pid_text(), "-n", &bench.name("y.ckpt")]);
    again.signal(nix::sys::signal::Signal::SIGKILL);
    again.end();
    bench.alone(&[]);
}

/// Where nothing else is possible there are new ids, and a sentence; `keep` starts nothing.
#[test]
fn what_is_forbidden_is_said() {
    let bench = Bench::new(Who::Nobody);
    let filter = bench.subject("container", Build::Static);
    // It remembers no ids.
    let script = "$| = 1; pipe R, W; if (!fork) { close R; select undef, undef, undef, 0.02 until -e 'gate'; \
        print W qq(A\n); exit 4 } close W; print qq(ready\n); print scalar <R>; wait; print $? >> 8, qq( end\n)";
    let under = |words: &[&str]| bench.run(&filter, words);
    let mut run = under(&["./ckpt", "-n", "x.ckpt", "perl", "-e", script]);
    run.expect("ready");
    let check = under(&["./ckpt", "check"]).end();
    let line = |name: &str| check.stdout.iter().find(|line| line.starts_with(name)).cloned();
    assert!(line("user namespaces").is_some_and(|line| line.contains("no: ")), "{check:?}");
    assert!(line("ids of jobs").is_some_and(|line| line.contains("fallback")), "{check:?}");
    let saved = under(&["./ckpt", "save", &run.pid_text(), "-n", "x.ckpt"]).end();
    assert_eq!(saved.code(), Some(0), "{saved:?}");
    assert!(!saved.stderr.contains("Landlock"), "{saved:?}");
    // While the first lives no id is free.
    let kept = under(&["./x.ckpt", "--ids=keep"]).end();
    assert_eq!(kept.code(), Some(125), "{kept:?}");
    assert!(
        kept.stderr.contains("clone3(2), which alone gives a process an id of choice"),
        "{kept:?}"
    );
    let again = under(&["./x.ckpt"]);
    again.complaint("new process ids");
    bench.file("gate", "");
    for mut run in [run, again] {
        run.expect("A");
        run.expect("4 end");
        run.ends_well();
    }
}

/// An id that somebody else takes while it is counted for is a new one, unless it is to be kept.
#[test]
fn who_cannot_have_its_id_has_another() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Nobody);
    let filter = bench.subject("container", Build::Static);
    let filter = filter.to_str().expect("utf-8");
    let script = "$| = 1; pipe R, W; if (!fork) { close R; select undef, undef, undef, 0.02 until -e 'gate'; \
        print W qq(A\n); exit 4 } close W; open F, '>ready'; print scalar <R>; wait; print $? >> 8, qq( end\n)";
    let first = "true & wait; perl -e \"$0\" & perl=$!; until [ -e ready ]; do sleep 0.02; done; \
        ./ckpt save --stop $perl -n x.ckpt; wait";
    let within = |last: &[&str]| {
        let words = [&["whole"][..], &AS_NOBODY, &[filter, "/bin/sh", "-c"], last].concat();
        run(&bench, "-pfm", &words).end()
    };
    within(&[first, script]);
    bench.file("gate", "");
    // Its witness has the id of the first process.
    let kept = within(&["./x.ckpt --ids keep; echo status $?"]);
    assert_eq!(kept.stdout, ["status 125"], "{kept:?}");
    assert!(kept.stderr.contains("cannot have the process id 3 again"), "{kept:?}");
    let again = within(&["./x.ckpt; echo status $?"]);
    assert_eq!(again.stdout, ["A", "4 end", "status 0"], "{again:?}");
    assert!(again.stderr.contains("new process ids"), "{again:?}");
    assert!(again.stderr.contains("clone3(2)"), "{again:?}");
}

/// Refused mounts are not taken for a /proc that is masked.
#[test]
fn why_there_are_no_namespaces_is_true() {
    use nix::libc::{EACCES, ENOSYS, EPERM, SYS_clone3, SYS_mount};
    let bench = Bench::new(Who::Nobody);
    bench.subject("refuse", Build::Static);
    for (filter, why) in [
        ((SYS_mount, EPERM), "mounts in them, are forbidden"),
        ((SYS_mount, EACCES), "mounts in them, are forbidden"),
        (
            (SYS_clone3, ENOSYS),
            "clone3(2), which alone gives a process an id of choice, is refused",
        ),
    ] {
        let check = under(&bench, filter, &["./ckpt", "check"]).ends_well();
        let line = check.stdout.iter().find(|line| line.starts_with("user namespaces"));
        assert!(line.is_some_and(|line| line.contains(why)), "{check:?}");
    }
}

/// The words under a filter that answers one system call with an error.
fn under(bench: &Bench, (call, errno): (i64, i32), words: &[&str]) -> Run {
    let (errno, call) = (errno.to_string(), call.to_string());
    bench.run(bench.path("refuse.static"), &[&[&*errno, &*call], words].concat())
}

/// What a filter may refuse is done in another way: with ckpt's monitor, a checkpoint of what goes on, three generations.
#[test]
fn what_filters_refuse_is_done_in_another_way() {
    use nix::libc::{
        ENOSYS, EPERM, SYS_close_range, SYS_memfd_create, SYS_pidfd_open, SYS_process_vm_readv,
        SYS_process_vm_writev,
    };
    let script = "import mmap, os, sys\nm = mmap.mmap(-1, 4096)\nr, w = os.pipe()\n\
        if not os.fork():\n  os.close(w); os.read(r, 1); m[:3] = b'two'; os._exit(0)\n\
        os.close(r)\nopen = lambda: len(os.listdir('/proc/self/fd'))\nbefore = open()\n\
        print('ready', flush=True)\nsys.stdin.readline()\n\
        os.close(w); os.wait(); print(m[:3].decode(), open() - before, flush=True)";
    for filter in [
        (SYS_process_vm_readv, EPERM),
        (SYS_process_vm_writev, ENOSYS),
        (SYS_memfd_create, EPERM),
        (SYS_close_range, ENOSYS),
        (SYS_pidfd_open, EPERM),
    ] {
        let bench = Bench::new(Who::Nobody);
        bench.subject("refuse", Build::Static);
        let start = ["./ckpt", "-z", "60000", "-n", "x.ckpt", "/usr/bin/python3", "-c", script];
        let mut run = under(&bench, filter, &start);
        run.expect("ready");
        let went_on = under(&bench, filter, &["./ckpt", "save", &run.pid_text(), "-n", "y.ckpt"]);
        went_on.ends_well();
        for _ in 0..2 {
            let words = ["./ckpt", "save", "--stop", &run.pid_text(), "-n", "x.ckpt"];
            let saved = under(&bench, filter, &words).ends_well();
            assert!(!saved.stderr.contains("not saved: descriptors"), "{filter:?}: {saved:?}");
            assert_eq!(run.end().code(), Some(0));
            run = under(&bench, filter, &["./x.ckpt"]);
        }
        for mut run in [run, under(&bench, filter, &["./y.ckpt"])] {
            run.say("go");
            run.expect("two -1");
            run.ends_well();
        }
    }
}

/// What looks the same is not the same: event descriptors without kcmp(2).
#[test]
fn event_descriptors_are_told_apart_without_kcmp() {
    let bench = Bench::new(Who::Nobody);
    let filter = bench.subject("container", Build::Static);
    let script = "import ctypes, os, select, sys\nlibc = ctypes.CDLL(None)\n\
        a, b = libc.eventfd(0, 0), libc.eventfd(0, 0)\nc = os.dup(a)\np, q = select.epoll(), select.epoll()\n\
        print('ready', flush=True)\nsys.stdin.readline()\n\
        os.write(c, (5).to_bytes(8, 'little')); os.write(b, (1).to_bytes(8, 'little'))\np.register(a, select.EPOLLIN)\n\
        print(os.read(a, 8)[0], os.read(b, 8)[0], len(q.poll(0)), flush=True)";
    let words = ["./ckpt", "-n", "x.ckpt", "/usr/bin/python3", "-c", script];
    let mut run = bench.run(&filter, &words);
    run.expect("ready");
    run.signal(nix::sys::signal::Signal::SIGTSTP);
    assert_eq!(run.end().code(), Some(0));
    let mut again = bench.run(&filter, &["./x.ckpt"]);
    again.say("");
    again.expect("5 1 0");
    again.ends_well();
}

/// Two looks at one file from its begin may be one or two descriptions: who cannot ask says so.
#[test]
fn files_that_may_be_opened_apart_are_named_without_kcmp() {
    let bench = Bench::new(Who::Nobody);
    bench.file("data", "one\ntwo\n");
    let filter = bench.subject("container", Build::Static);
    let script = "import os, sys\na, b = os.open('data', os.O_RDONLY), os.open('data', os.O_RDONLY)\n\
        if len(sys.argv) > 1: os.read(b, 4)\nprint('ready', flush=True)\nsys.stdin.readline()\n\
        print(os.read(b, 3).decode(), flush=True)";
    // A pipe of the one who runs the tests could not be opened anew.
    let to_file = "exec 2> err; exec \"$@\"";
    let start =
        ["/bin/sh", "-c", to_file, "sh", "./ckpt", "-n", "x.ckpt", "/usr/bin/python3", "-c"];
    for (words, is_said) in [(&[script][..], true), (&[script, "apart"], false)] {
        let mut run = bench.run(&filter, &[&start[..], words].concat());
        run.expect("ready");
        run.signal(nix::sys::signal::Signal::SIGTSTP);
        assert_eq!(run.end().code(), Some(0));
        let said = std::fs::read_to_string(bench.path("err")).expect("what was said");
        let is = said.contains("data) was opened apart from descriptor 3 of process");
        assert_eq!(is, is_said, "{said}");
        let mut again = bench.run(&filter, &["./x.ckpt"]);
        again.say("");
        again.expect(if is_said { "one" } else { "two" });
        again.ends_well();
    }
}

/// Without a /proc nothing works, which is said with what helps.
#[test]
fn there_is_no_proc() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let mut command = bench.command("unshare");
    let script = "mount --bind /mnt /proc && ./ckpt true";
    command.args(["-m", "sh", "-c", script]);
    let ended = Run::start(command).end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("mount -t proc proc /proc"), "{ended:?}");
}
