// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt check PID` says what a checkpoint would say, and does nothing; `--strict` makes losses obstacles.

mod harness;

use harness::{Bench, Build, Ended, Run, Who, status_line, until};

const BOTH: [Who; 2] = [Who::Me, Who::Nobody];

/// What is in the way.
const REFUSED: &[(&str, &str)] = &[
    ("uring", "it maps a kernel object"),
    ("worker", "it maps a kernel object"),
    ("closed", "it maps a kernel object"),
    ("uffd", "by itself (userfaultfd(2))"),
    ("secret", "memory that nobody else may read (memfd_secret(2))"),
    ("files", "has descriptors of its own (unshare(2)"),
    ("umask", "a umask of its own"),
    ("memory", "shares its memory (vfork(2)"),
    ("filter", "has installed seccomp filters"),
    ("traced", "traces it already"),
];

/// What a checkpoint goes without.
const DECLARED: &[(&str, &str)] = &[
    ("aio", "requests of asynchronous I/O"),
    ("watch", "what inotify descriptor"),
    ("notices", "the notices of changes in"),
    ("owner", "the user and group ids"),
    ("attributes", "the extended attributes of "),
    ("spaces", "its own namespaces (host name)"),
    ("immutable", "a restart will need chattr -i before"),
    ("appended", "a restart will need chattr -a before"),
];

/// The lines of a table under a name.
fn lines(said: &Ended, name: &str) -> Vec<String> {
    let head = format!("{name:<16} ");
    said.stdout.iter().filter_map(|line| Some(line.strip_prefix(&head)?.to_owned())).collect()
}

/// Starts the subject below ckpt, or without; None where there is no such thing.
fn start(bench: &Bench, kinds: &[&str], under_ckpt: bool) -> Option<Run> {
    let program = bench.subject("kinds", Build::Static);
    let mut run = match under_ckpt {
        true => bench.launch(&["-n", "x.ckpt"], program, kinds),
        false => bench.run(program, kinds),
    };
    match run.line().as_str() {
        "ready" => Some(run),
        other => {
            assert_eq!(other, "none");
            run.finish();
            None
        }
    }
}

/// Looks, and saves. The one that looks has not changed anything: the other finds the same.
#[track_caller]
fn agree(bench: &Bench, run: &mut Run) -> (Ended, Ended) {
    let pid = run.pid_text();
    let asked = bench.order(&["check", &pid]);
    let saved = bench.order(&["save", &pid, "-n", &bench.name("y.ckpt")]);
    let not_saved = |line: &&str| line.contains("not saved: ");
    let losses: Vec<_> = saved.stderr.lines().filter(not_saved).collect();
    match asked.code() {
        Some(2) => {
            assert_eq!(saved.code(), Some(125), "{asked:?} {saved:?}");
            for obstacle in lines(&asked, "obstacles") {
                // A process is named before it in other words.
                let what = obstacle.split_once("): ").map_or(&*obstacle, |(_, what)| what);
                assert!(saved.stderr.contains(what), "{what}: {saved:?}");
            }
        }
        status => {
            assert_eq!(saved.code(), Some(0), "{asked:?} {saved:?}");
            let known = lines(&asked, "losses");
            assert_eq!(status, Some(i32::from(!known.is_empty())), "{asked:?} {saved:?}");
            assert_eq!(known.len(), losses.len(), "{asked:?} {saved:?}");
            for (loss, known) in losses.iter().zip(known) {
                let (_, said) = loss.split_once("not saved: ").expect("a loss");
                assert!(known.starts_with(said), "{known}: {loss}");
            }
        }
    }
    run.check();
    (asked, saved)
}

#[test]
fn obstacles_are_the_same() {
    for who in BOTH {
        for (kind, sentence) in REFUSED {
            // Root saves it.
            let is_roots = who == Who::Me && nix::unistd::geteuid().is_root();
            if *kind == "filter" && is_roots {
                continue;
            }
            // A filter comes in the way of a launch's own monitor, a tracer is one of a child.
            for under_ckpt in [false, true] {
                let bench = Bench::new(who);
                let Some(mut run) = start(&bench, &[kind], under_ckpt) else { continue };
                let (asked, saved) = agree(&bench, &mut run);
                assert_eq!(asked.code(), Some(2), "{kind}: {asked:?}");
                let all = lines(&asked, "obstacles");
                assert!(all.iter().any(|it| it.contains(sentence)), "{kind}: {all:?}");
                assert!(saved.stderr.contains(sentence), "{kind}: {saved:?}");
                run.go();
            }
        }
    }
}

#[test]
fn losses_are_the_same() {
    for who in BOTH {
        for (index, (kind, sentence)) in DECLARED.iter().enumerate() {
            // All of them in one way, half of them in the other.
            for under_ckpt in [false, true].into_iter().take(1 + index % 2) {
                let bench = Bench::new(who);
                let Some(mut run) = start(&bench, &[kind], under_ckpt) else { continue };
                let (asked, _) = agree(&bench, &mut run);
                let all = lines(&asked, "losses");
                assert!(all.iter().any(|it| it.contains(sentence)), "{kind}: {all:?}");
                // Who has a payload by now is asked itself.
                if !under_ckpt {
                    let again = bench.order(&["check", &run.pid_text()]);
                    assert_eq!(lines(&again, "losses"), all, "{kind}");
                    assert!(lines(&again, "not asked").is_empty(), "{again:?}");
                }
                run.go();
            }
        }
    }
}

/// What only its threads can tell is found where they can be asked, and else said to be unknown.
#[test]
fn what_only_threads_tell_is_asked() {
    for (kind, name, sentence) in [
        ("keys", "losses", "process or thread keyring"),
        ("segments", "obstacles", "memory segments of its own (modify_ldt(2))"),
        ("slots", "obstacles", "memory segments of its own (set_thread_area(2))"),
    ] {
        let bench = Bench::new(Who::Me);
        let Some(mut run) = start(&bench, &[kind], true) else { continue };
        let (asked, _) = agree(&bench, &mut run);
        assert!(lines(&asked, name).iter().any(|it| it.contains(sentence)), "{asked:?}");
        run.go();
        let Some(run) = start(&bench, &[kind], false) else { continue };
        let asked = bench.order(&["check", &run.pid_text()]);
        let said = lines(&asked, "not asked").join("");
        assert!(said.contains(&format!("kinds.static ({})", run.pid())), "{asked:?}");
        run.go();
    }
}

/// All of all processes, at once.
#[test]
fn a_tree_is_judged_as_a_whole() {
    for who in BOTH {
        let bench = Bench::new(who);
        let Some(mut run) = start(&bench, &["nothing", "secret", "umask", "files"], false) else {
            continue;
        };
        let (asked, saved) = agree(&bench, &mut run);
        for piece in ["memfd_secret(2)", "a umask of its own", "descriptors of its own"] {
            assert!(asked.stdout.join("\n").contains(piece), "{piece}: {asked:?}");
            assert!(saved.stderr.contains(piece), "{piece}: {saved:?}");
        }
        let script = "import json, subprocess, sys; o = json.loads(subprocess.run(['./ckpt', 'check', '--json', sys.argv[1]], \
                      capture_output=True).stdout)['obstacles']; print(len(o), *sorted({i['name'] for i in o}), \
                      *[i['address'][:2] for i in o if 'address' in i], all(i['process'] > 1 and i['what'] for i in o))";
        let read = bench.run("python3", &["-c", script, &run.pid_text()]).ends_well();
        assert_eq!(read.stdout, ["3 kinds.static 0x True"], "{read:?}");
        run.go();
    }
}

/// No checkpoint that would lose anything: by order, by signal, by period, and in the next generation.
#[test]
fn a_strict_job_loses_nothing() {
    use nix::sys::signal::Signal::SIGTSTP;
    const SENTENCE: &str = "--strict (CKPT_STRICT=1) forbids that: ";
    for who in BOTH {
        let bench = Bench::new(who);
        let Some(mut run) = start(&bench, &["notices", "watch"], false) else { continue };
        let pid = run.pid_text();
        let saved = bench.order(&["save", "--strict", "--stop", &pid, "-n", &bench.name("y.ckpt")]);
        assert_eq!(saved.code(), Some(125), "{saved:?}");
        for piece in [SENTENCE, "the notices of changes", "what inotify descriptor"] {
            assert!(saved.stderr.contains(piece), "{piece}: {saved:?}");
        }
        assert!(!bench.path("y.ckpt").exists());
        run.check();
        run.go();

        let bench = Bench::new(who);
        let program = bench.subject("kinds", Build::Static);
        let mut run = bench.launch(&["--strict", "-n", "x.ckpt"], &program, &["nothing"]);
        run.expect("ready");
        let pid = run.pid_text();
        // What the harness writes to it is lost.
        run.signal(SIGTSTP);
        run.complaint(SENTENCE);
        run.check();
        assert_eq!(bench.order(&["save", &pid]).code(), Some(125));
        let mut command = bench.command("sh");
        let line = format!("CKPT_STRICT=0 ./ckpt save --stop {pid}");
        command.args(["-c", &line]);
        let ended = Run::start(command).ends_well();
        assert!(ended.stderr.contains("not saved: what is written"), "{ended:?}");
        run.end();

        // It stays so from generation to generation.
        for _ in 0..3 {
            let mut again = bench.run(bench.path("x.ckpt"), &["-z", "50"]);
            again.check();
            again.complaint(SENTENCE);
            again.check();
            let pid = again.pid_text();
            assert_eq!(bench.order(&["save", &pid]).code(), Some(125));
            let mut command = bench.command("sh");
            let line = format!("CKPT_STRICT=0 ./ckpt save --stop {pid} -n x.ckpt");
            command.args(["-c", &line]);
            Run::start(command).ends_well();
            again.end();
        }
        bench.run(bench.path("x.ckpt"), &[]).go();
    }
}

/// Nothing has happened to who was looked at: neither a signal nor a mapping, and no call has ended.
#[test]
fn nothing_is_done_to_a_process() {
    for who in BOTH {
        let bench = Bench::new(who);
        let script = "import os, sys, threading\n\
                      r, w = os.pipe()\n\
                      n = []\n\
                      t = threading.Thread(target=lambda: n.append(os.write(w, bytes(1 << 20))))\n\
                      t.start()\n\
                      print('ready', flush=True)\n\
                      sys.stdin.readline()\n\
                      left = 1 << 20\n\
                      while left: left -= len(os.read(r, left))\n\
                      t.join()\n\
                      print(*n, flush=True)\n";
        let mut run = bench.run("/usr/bin/python3", &["-c", script]);
        run.expect("ready");
        let pid = run.pid();
        let maps = || std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("mappings");
        let before = maps();
        until("a writer that waits", || {
            let asked = bench.order(&["check", &run.pid_text()]);
            assert!(matches!(asked.code(), Some(0 | 1)), "{asked:?}");
            Some(())
        });
        for _ in 0..5 {
            bench.order(&["check", &run.pid_text()]);
        }
        assert_eq!(before, maps());
        assert_eq!(status_line(pid, "TracerPid").as_deref(), Some("0"));
        run.say("go");
        run.expect("1048576");
        run.ends_well();
    }
}

/// Who is just being saved has snapshots, which are none of its processes and no daemon.
#[test]
fn what_another_dumper_makes_is_none_of_the_job() {
    for who in BOTH {
        let bench = Bench::new(who);
        let scale = bench.subject("scale", Build::Static);
        let mut run = bench.launch(&["-z", "20", "-n", "x.ckpt"], scale, &["5", "2", "1"]);
        run.expect("ready");
        for _ in 0..15 {
            let asked = bench.order(&["check", &run.pid_text()]);
            let all = asked.stdout.join("\n");
            assert!(!all.contains("ckpt-snapshot") && !all.contains("ckpt-dump"), "{asked:?}");
        }
        run.go();
    }
}

/// A child that is just giving its memory back can be looked at by nobody, and is in nobody's way.
#[test]
fn children_come_and_go() {
    const SCRIPT: &str = r#"
import mmap, os, threading
memory = mmap.mmap(-1, 128 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
memory.write(b'x' * len(memory))
def forks():
    while True:
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
threading.Thread(target=forks, daemon=True).start()
print('ready', flush=True)
input()
os._exit(0)
"#;
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.launch(&["-n", "x.ckpt"], "/usr/bin/python3", &["-c", SCRIPT]);
    run.expect("ready");
    for _ in 0..20 {
        let asked = bench.order(&["check", &run.pid_text()]);
        assert_eq!(lines(&asked, "obstacles"), [""; 0], "{asked:?}");
        assert!(asked.code().is_some_and(|code| code < 2), "{asked:?}");
    }
    run.say("");
    run.ends_well();
}

/// What cannot be told apart without kcmp(2) is named before it is saved.
#[test]
fn guesses_are_named() {
    for who in BOTH {
        let bench = Bench::new(who);
        bench.file("data", "one\ntwo\n");
        let deny = bench.subject("deny", Build::Static);
        let script = "a, b = open('data'), open('data')\nprint('ready', flush=True)\ninput()";
        let mut run = bench.run("/usr/bin/python3", &["-c", script]);
        run.expect("ready");
        let pid = run.pid_text();
        for (refused, is_said) in [("312", true), ("1000", false)] {
            let asked = bench.run(&deny, &[refused, "-1", "0", "--", "./ckpt", "check", &pid]);
            let all = lines(&asked.finish(), "losses");
            let said = |it: &String| it.contains("data) was opened apart from descriptor");
            assert_eq!(all.iter().any(said), is_said, "{all:?}");
        }
        run.say("");
        run.ends_well();
    }
}

/// Nobody waits for a thread that does not stop: what it would be asked is unknown, and it is in the way for a moment.
#[test]
fn who_does_not_stop_is_not_waited_for() {
    use std::io::Write;
    for who in BOTH {
        let bench = Bench::new(who);
        let gate = bench.path("gate");
        nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::from_bits_truncate(0o666))
            .expect("a FIFO");
        bench.give(&gate);
        let program = bench.subject("vfork", Build::Static);
        let mut run = bench.launch(&["-n", "x.ckpt"], program, &["gate"]);
        run.expect("ready");
        until("the thread in vfork", || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", run.pid())).ok()?;
            let children =
                |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children"));
            tasks
                .flatten()
                .any(|task| children(task).is_ok_and(|ids| !ids.is_empty()))
                .then_some(())
        });
        let asked = bench.order(&["check", &run.pid_text()]);
        assert_eq!(asked.code(), Some(2), "{asked:?}");
        assert!(asked.stdout.join("\n").contains("vfork(2)"), "{asked:?}");
        run.check();
        std::fs::File::options()
            .write(true)
            .open(&gate)
            .and_then(|mut f| f.write_all(b"x"))
            .expect("a byte");
        run.go();
    }
}

/// What is no program is named as what it is.
#[test]
fn what_is_no_program_is_refused() {
    let bench = Bench::new(Who::Me);
    // kthreadd, where this is the namespace of the machine.
    let kernels = std::fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n");
    let mut child = std::process::Command::new("true").spawn().expect("a child");
    let zombie = child.id();
    until("a zombie", || status_line(zombie, "State")?.starts_with('Z').then_some(()));
    let all = [(zombie, "it is a zombie"), (2, "is a thread of the kernel")];
    for (pid, sentence) in all.into_iter().take(1 + usize::from(kernels)) {
        let pid = pid.to_string();
        let asked = bench.order(&["check", &pid]);
        assert_eq!(asked.code(), Some(2), "{asked:?}");
        assert!(asked.stdout.join("\n").contains(sentence), "{asked:?}");
        for args in [&["save", &pid][..], &["-p", &pid]] {
            let ended = bench.order(args);
            assert_eq!(ended.code(), Some(125), "{ended:?}");
            assert!(ended.stderr.contains(sentence), "{ended:?}");
        }
    }
    child.wait().expect("a child of ours");
}

/// Whose it is, and what would help.
#[test]
fn a_stranger_is_told_why_he_may_not() {
    let bench = Bench::new(Who::Nobody);
    if !bench.drops_privileges() {
        return;
    }
    let own = std::process::id().to_string();
    for args in [["save", &own], ["-p", &own]] {
        let ended = bench.order(&args);
        assert_eq!(ended.code(), Some(125), "{ended:?}");
        assert!(
            ended.stderr.contains("it is of user 0, and only that user or root may"),
            "{ended:?}"
        );
    }
    let asked = bench.order(&["check", &own]);
    assert_eq!(asked.code(), Some(2), "{asked:?}");
}
