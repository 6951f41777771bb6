// SPDX-License-Identifier: LGPL-2.1-only
//! Whose turn it is: what a checkpoint leaves in a program, and what comes between its orders, its signals and its
//! children.

mod harness;

use std::fs;
use std::os::unix::fs::FileExt;

use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGTSTP, SIGUSR1};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use harness::{Bench, Build, Run, Who, await_stop, catches, status_line, until};

const SIGTSTP_NUMBER: i32 = SIGTSTP as i32;

#[test]
fn a_save_takes_no_signal() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("observer", Build::Pie), &[]);
    run.expect("ready");
    bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    assert!(!catches(run.pid(), SIGTSTP_NUMBER), "the signal is taken");
    // It stops the program as ever, which goes on.
    run.signal(SIGTSTP);
    await_stop(run.pid());
    run.signal(SIGCONT);
    run.check();
    let mut again = bench.run(bench.path("x.ckpt"), &[]);
    again.check();
    assert!(!catches(again.pid(), SIGTSTP_NUMBER), "the restarted program's signal is taken");
    again.go();
    // Asked for, it is taken still.
    bench.must(&["-p", &run.pid_text(), "-n", &bench.name("y.ckpt")]);
    assert!(catches(run.pid(), SIGTSTP_NUMBER));
    run.signal(SIGTSTP);
    run.ends_well();
    bench.run(bench.path("y.ckpt"), &[]).go();
}

#[test]
fn a_handler_is_replaced_only_where_it_is_named() {
    let bench = Bench::new(Who::Nobody);
    let script = "$| = 1; $SIG{TSTP} = sub { print \"mine\\n\" }; print \"ready\\n\"; \
                  while (<STDIN>) { print \"ok\\n\" }";
    for saved in [false, true] {
        let mut run = bench.run("perl", &["-e", script]);
        run.expect("ready");
        let pid = run.pid_text();
        if saved {
            bench.must(&["save", &pid, "-n", &bench.name("x.ckpt")]);
        }
        let said = bench.must(&["-p", &pid, "-n", &bench.name("x.ckpt")]);
        assert!(said.stderr.contains("SIGTSTP"), "{said:?}");
        run.signal(SIGTSTP);
        run.say("");
        let mut lines = [run.line(), run.line()];
        lines.sort();
        assert_eq!(lines, ["mine", "ok"]);
        let _ = fs::remove_file(bench.path("x.ckpt"));
        bench.must(&["-p", &pid, "-a", "TSTP", "-c"]);
        run.signal(SIGTSTP);
        until("a checkpoint", || bench.path("x.ckpt").exists().then_some(()));
        run.signal(SIGKILL);
        run.end();
    }
}

/// The children of a process's threads.
fn children(pid: u32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|t| fs::read_to_string(t.path().join("children")).unwrap_or_default());
    lists
        .flat_map(|l| l.split_whitespace().map(|c| c.parse().expect("an id")).collect::<Vec<_>>())
        .collect()
}

#[test]
fn a_child_of_vfork_leaves_the_signal_to_its_parent() {
    let bench = Bench::new(Who::Nobody);
    let gate = bench.path("gate");
    let roles = ["vfork", gate.to_str().expect("utf-8")];
    let options = ["-c", "-n", "x.ckpt"];
    let mut run = bench.launch(&options, bench.subject("family", Build::Pie), &roles);
    run.expect("ready");
    let child = until("the child", || children(run.pid()).first().copied());
    let pending = || {
        let sets = ["ShdPnd", "SigPnd"].map(|set| status_line(child.cast_unsigned(), set));
        sets.into_iter().flatten().any(|set| set.contains(|digit| digit != '0'))
    };
    for _ in 0..3 {
        kill(Pid::from_raw(child), SIGTSTP).expect("the child");
        until("the handler", || (!pending()).then_some(()));
    }
    // From outside it is not touched, for its parent would be.
    let saved = bench.order(&["save", &child.to_string(), "-n", &bench.name("y.ckpt")]);
    assert_eq!(saved.code(), Some(125), "{saved:?}");
    assert!(saved.stderr.contains("shares its memory"), "{saved:?}");
    bench.file("gate", "");
    until("the child's end", || children(run.pid()).is_empty().then_some(()));
    assert_eq!(bench.names("x.ckpt"), [""; 0]);
    run.check();
    run.signal(SIGTSTP);
    until("the parent's checkpoint", || bench.path("x.ckpt").exists().then_some(()));
    run.go();
    bench.run(bench.path("x.ckpt"), &[]).go();
}

#[test]
fn a_forked_child_has_a_turn_of_its_own() {
    // The parent is met in the middle of a checkpoint by its own fork, again and again.
    let bench = Bench::new(Who::Nobody);
    let script = "$| = 1; $SIG{CHLD} = 'IGNORE'; print \"ready\\n\"; while (1) { my $p = fork; \
                  if (!$p) { select undef, undef, undef, 5; exit } \
                  select undef, undef, undef, 0.02; kill 'USR1', $p; select undef, undef, undef, 0.1; kill 'KILL', $p }";
    let mut run =
        bench.launch(&["-c", "-a", "USR1", "-z", "5", "-n", "x.%n"], "perl", &["-e", script]);
    run.expect("ready");
    let childs = |name: &String| name.matches('.').count() == 2;
    until("a child's checkpoint", || bench.names("x.").iter().any(childs).then_some(()));
    run.signal(SIGKILL);
    run.end();
}

#[test]
fn no_orphan_is_lost() {
    for periodic in [false, true] {
        let bench = Bench::new(Who::Nobody);
        let subject = bench.subject("family", Build::Pie);
        let mut run = match periodic {
            true => bench.launch(&["-z", "5", "-n", "x.ckpt"], &subject, &["orphans"]),
            false => bench.run(&subject, &["orphans"]),
        };
        run.expect("ready");
        for number in 0..30 {
            let saved = bench.order(&["save", &run.pid_text(), "-n", &bench.name("y.ckpt")]);
            assert!(saved.code() == Some(0) || periodic, "{number}: {saved:?}");
        }
        run.say("go");
        run.ends_well();
    }
}

#[test]
fn no_wait_meets_a_process_of_ours() {
    let bench = Bench::new(Who::Nobody);
    let options = ["-c", "-a", "USR1", "-n", "x.ckpt"];
    let mut run = bench.launch(&options, bench.subject("family", Build::Pie), &["wall"]);
    run.expect("ready");
    for _ in 0..25 {
        let _ = fs::remove_file(bench.path("x.ckpt"));
        run.signal_until(SIGUSR1, "a checkpoint", |_| bench.path("x.ckpt").exists());
        run.check();
    }
    run.go();
}

#[test]
fn signals_end_no_dumper_that_holds_threads() {
    let bench = Bench::new(Who::Nobody);
    let options = ["-z", "15", "-c", "-a", "USR1", "-n", "x.%n"];
    let mut run = bench.launch(&options, bench.subject("family", Build::Pie), &["blocked"]);
    run.expect("ready");
    let many = bench.names("x.").len() + 30;
    until("many checkpoints", || {
        run.signal(SIGUSR1);
        run.check();
        (bench.names("x.").len() >= many).then_some(())
    });
    run.go();
}

/// A shell script that is the first process of a PID namespace, which ends with the run.
fn alone(bench: &Bench, script: &str) -> Run {
    let mut command = bench.command("unshare");
    let root = nix::unistd::geteuid().is_root();
    command.args([if root { "-pf" } else { "-Urpf" }, "--mount-proc", "--kill-child"]);
    command.args(["sh", "-c", script]);
    Run::start(command)
}

#[test]
fn a_number_that_is_given_again_blocks_nobody() {
    let bench = Bench::new(Who::Me);
    bench.subject("sparse", Build::Pie);
    // The dumper is killed while the turn is its own, and its id is given to another process.
    let script = "./ckpt -c -a USR1 -n s.ckpt sleep 1000 & P=$!
        until ./ckpt save $P -n y.ckpt >/dev/null; do sleep 0.01; done
        for step in claimed thawed; do
            CKPT_FAULT=$step ./ckpt save $P -n y.ckpt >/dev/null 2>&1 & D=$!
            wait $D; [ $? = 137 ] || { echo not killed; exit 1; }
            sleep 0.05; tries=0
            until echo $((D - 1)) > /proc/sys/kernel/ns_last_pid; sleep 1000 & [ $! = $D ]; do
                kill $!; tries=$((tries + 1)); [ $tries -lt 200 ] || { echo no such id; exit 1; }
            done
            rm -f s.ckpt; kill -USR1 $P
            n=0; until [ -e s.ckpt ]; do sleep 0.02; n=$((n + 1)); [ $n -lt 1000 ] || { echo ignored; exit 1; }; done
            # The signal's dumper has its own last moment.
            n=0; until ./ckpt save $P -n y.ckpt; do sleep 0.02; n=$((n + 1)); [ $n -lt 200 ] || exit 1; done
            kill -9 $D
        done
        kill -9 $P; exit 0";
    let ended = alone(&bench, script).end();
    assert_eq!(ended.code(), Some(0), "{ended:?}");
}

#[test]
fn no_zombies_are_left_where_nobody_reaps() {
    // The first process is the program itself, or one that reaps nothing.
    let take = "n=0; rm -f s.ckpt; until [ -e s.ckpt ]; do [ $((n % 100)) != 0 ] || kill -USR1 $P; \
                sleep 0.01; n=$((n + 1)); [ $n -lt 2000 ] || exit 1; done";
    let (program, options) =
        ("perl -e 'open F, q(>), q(up); sleep 1 while 1'", "-c -a USR1 -n s.ckpt");
    let up = "until [ -e up ]; do sleep 0.01; done";
    // Those who are about to end need a moment for it: the last dumper lives when its image has its name.
    let look = "n=0; while c=$(ps -eo stat=,comm= | grep -c -e '^Z.*ckpt' -e ckpt-dump); [ $c != 0 ] && [ $n -lt 300 ]; do \
                sleep 0.01; n=$((n + 1)); done; echo $c > count; mv count seen";
    for script in [
        format!(
            "(P=1; {up}; ./ckpt -p 1 {options}; for i in 1 2 3 4 5; do {take}; done; {look}; sleep 1000) & \
             exec {program}"
        ),
        // ckpt stays as the first.
        format!(
            "(P=1; {up}; for i in 1 2 3 4 5; do {take}; done; {look}; sleep 1000) & exec ./ckpt {options} {program}"
        ),
        format!(
            "(./ckpt {options} {program} & P=$!; {up}; for i in 1 2 3 4 5; do {take}; done; {look}; sleep 1000) & \
             exec sleep 1000"
        ),
    ] {
        let bench = Bench::new(Who::Me);
        let mut run = alone(&bench, &script);
        let seen = until("the count", || fs::read_to_string(bench.path("seen")).ok());
        assert_eq!(seen.trim(), "0", "{script}; {}", run.fate());
        run.signal(SIGKILL);
        run.end();
    }
}

/// A ckpt that is about to become its program is not saved, and not traced when it needs to be by its own.
#[test]
fn a_save_meets_a_launch() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let program = bench.subject("observer", Build::Pie);
        for _ in 0..30 {
            let mut run = bench.launch(&["-n", "s.ckpt"], &program, &[]);
            bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
            run.expect("ready");
            run.go();
        }
        bench.run(bench.path("x.ckpt"), &[]).go();
    }
}

#[test]
fn a_payload_of_another_version_is_left_to_its_own_ckpt() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.launch(&["-n", "x.ckpt"], bench.subject("observer", Build::Pie), &[]);
    run.expect("ready");
    // Here it is this very ckpt, which therefore does not execute itself for ever.
    let maps = fs::read_to_string(format!("/proc/{}/maps", run.pid())).expect("maps");
    let memory =
        fs::File::options().read(true).write(true).open(format!("/proc/{}/mem", run.pid()));
    let memory = memory.expect("memory");
    let starts = maps.lines().filter_map(|l| u64::from_str_radix(l.split('-').next()?, 16).ok());
    let is_region = |at: &u64| {
        let mut magic = [0; 8];
        memory.read_exact_at(&mut magic, *at).is_ok() && magic == *b"CKPTRGN\n"
    };
    let base = starts.into_iter().find(is_region).expect("a region");
    memory.write_all_at(&[0x5a; 4], base + 8).expect("another version");
    let pid = run.pid_text();
    for order in [&["save", &pid, "-n", &bench.name("y.ckpt")][..], &["-p", &pid]] {
        let said = bench.order(order);
        assert_eq!(said.code(), Some(125), "{said:?}");
        assert!(said.stderr.contains("another version of ckpt"), "{said:?}");
    }
    run.check();
    run.go();
}
