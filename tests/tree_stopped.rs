// SPDX-License-Identifier: LGPL-2.1-only
//! Processes of a job that are stopped: a checkpoint, its end at any step, and a restart leave them so, and their
//! parents hear of nothing.

mod harness;

use harness::faults::{armed, steps};
use harness::host::called;
use harness::{Bench, Build, Run, Who, await_stop, until, witness};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal::{SIGCONT, SIGSTOP, SIGTERM, SIGUSR1};
use nix::sys::signal::kill;
use nix::unistd::Pid;

fn halted(bench: &Bench) -> Run {
    let program = match bench.path("halted.pie") {
        program if program.exists() => program,
        _ => bench.subject("halted", Build::Pie),
    };
    let mut run = bench.run(program, &[]);
    run.expect("ready");
    run
}

fn generations(who: Who) {
    let bench = Bench::new(who);
    let mut run = halted(&bench);
    for name in ["a.ckpt", "b.ckpt", "c.ckpt"].map(|name| bench.name(name)) {
        for _ in 0..2 {
            bench.must(&["save", &run.pid_text(), "-n", &name]);
            run.check();
        }
        bench.must(&["save", "--stop", &run.pid_text(), "-n", &name]);
        run.ends_well();
        run = bench.run(&name, &[]);
        run.check();
    }
    run.go();
}

#[test]
fn stopped_children_stay_stopped_for_three_generations() {
    generations(Who::Me);
    generations(Who::Nobody);
}

/// Root saves and restarts those of another user: whoever may look at them may do so while they are stopped.
#[test]
fn stopped_children_of_another_user_may_be_looked_at() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Me);
    let program = bench.subject("halted", Build::Pie);
    std::fs::set_permissions(bench.path("."), Permissions::from_mode(0o777)).unwrap();
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    let mut run =
        bench.run("/usr/bin/setpriv", &[&user[..], &[&program.to_string_lossy()]].concat());
    run.expect("ready");
    run.check();
    bench.must(&["save", "--stop", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    run.ends_well();
    run = bench.run(bench.path("x.ckpt"), &[]);
    run.check();
    run.go();
}

/// Kills `ckpt save` at a step; whether it came there.
#[track_caller]
fn killed(bench: &Bench, step: &str, args: &[&str]) -> bool {
    let ended = Run::start(armed(bench.command(bench.ckpt()), step, args)).end();
    // One that enters a namespace waits for the dumper there.
    let killed = ended.signal() == Some(9) || ended.code() == Some(128 + 9);
    assert!(killed || ended.code() == Some(0), "{step}: {ended:?}");
    killed
}

#[test]
fn a_killed_dumper_lets_no_stopped_child_go_on() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = halted(&bench);
        let (pid, x) = (run.pid_text(), bench.name("x.ckpt"));
        let mut met = 0;
        for (step, turn) in steps(&bench, "dumper").into_iter().zip([2, 3].into_iter().cycle()) {
            if killed(&bench, &format!("{step}:{turn}"), &["save", &pid, "-n", &x]) {
                run.check();
                met += 1;
            }
        }
        assert!(met >= 10, "{met} steps");
        bench.must(&["save", "--stop", &pid, "-n", &x]);
        run.ends_well();
        let mut run = bench.run(&x, &[]);
        run.check();
        // Its stopped processes are in the restorer still.
        for step in ["frozen", "working:9", "cloned:2", "cloned:3", "pictured"] {
            let pid = run.pid_text();
            assert!(killed(&bench, step, &["save", &pid, "-n", &x]), "{step}");
            run.check();
        }
        run.go();
    }
}

/// A program that has stopped its child, and does something when told so; the child.
fn with_a_stopped_child(bench: &Bench, then: &str) -> (Run, Pid) {
    let script = format!(
        "import os, signal, subprocess; child = subprocess.Popen(['sleep', '1000']); \
         child.send_signal(signal.SIGSTOP); os.waitpid(child.pid, os.WUNTRACED); \
         print(child.pid, flush=True); input(); {then}"
    );
    let mut run = bench.run("/usr/bin/python3", &["-c", &script]);
    let child = Pid::from_raw(run.line().parse().expect("a process id"));
    (run, child)
}

/// One that a killed dumper has left in the payload may have a signal waiting by then, which is the program's.
#[test]
fn a_stopped_child_in_the_payload_keeps_its_signals() {
    let turns =
        [Who::Me, Who::Nobody].into_iter().flat_map(|who| (1..3).map(move |turn| (who, turn)));
    for (who, turn) in turns {
        let bench = Bench::new(who);
        let then = "child.send_signal(signal.SIGCONT); print(child.wait(), flush=True)";
        let (mut run, child) = with_a_stopped_child(&bench, then);
        let (pid, x) = (run.pid_text(), bench.name("x.ckpt"));
        bench.must(&["save", &pid, "-n", &x]);
        assert!(killed(&bench, &format!("lending:{turn}"), &["save", &pid, "-n", &x]), "{turn}");
        kill(child, SIGTERM).expect("it is there");
        bench.must(&["save", &pid, "-n", &x]);
        run.say("go");
        run.expect("-15");
        run.ends_well();
    }
}

/// What it brings home of the restorer is no change that the program has made, for which all would have to stand still again.
#[test]
fn a_stopped_child_of_a_restart_stands_still_once() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let (run, _) = with_a_stopped_child(&bench, "child.kill()");
        let x = bench.name("x.ckpt");
        bench.must(&["save", "--stop", &run.pid_text(), "-n", &x]);
        run.ends_well();
        let run = bench.run(&x, &[]);
        for _ in 0..2 {
            assert!(!killed(&bench, "thawed:3", &["save", &run.pid_text(), "-n", &x]), "a third");
        }
        run.go();
    }
}

/// Where there is no payload yet, threads work in holes; a stopped one stays there when its host dies.
#[test]
fn a_stopped_child_comes_out_of_a_hole() {
    let bench = Bench::new(Who::Nobody);
    for step in ["borrowed:2", "lending:2", "working:6", "entered:12", "mapped:3", "injected:3"] {
        let mut run = halted(&bench);
        let (pid, x) = (run.pid_text(), bench.name("x.ckpt"));
        assert!(killed(&bench, step, &["save", &pid, "-n", &x]), "{step}");
        run.check();
        bench.must(&["save", &pid, "-n", &x]);
        run.check();
        run.go();
    }
}

/// One process alone, of one thread and of many: stopped again by its restart, it can be saved again as it stands.
#[test]
fn a_stopped_program_stays_stopped_for_three_generations() {
    let crowd: (_, &[&str]) = ("crowd", &["20"]);
    for (who, (subject, args)) in
        [(Who::Me, crowd), (Who::Nobody, crowd), (Who::Nobody, ("fpu", &[]))]
    {
        let bench = Bench::new(who);
        let mut run = bench.run(bench.subject(subject, Build::Pie), args);
        run.expect("ready");
        run.signal(SIGSTOP);
        for name in ["a.ckpt", "b.ckpt", "c.ckpt"].map(|name| bench.name(name)) {
            for args in [&["save"][..], &["save", "--stop"]] {
                await_stop(run.pid());
                bench.must(&[args, &[&run.pid_text(), "-n", &name]].concat());
            }
            run.ends_well();
            run = bench.run(&name, &[]);
        }
        await_stop(run.pid());
        run.signal(SIGCONT);
        run.check();
        run.go();
    }
}

/// The restarter that stands for it has stopped as it has, and ends with it.
#[test]
fn the_end_of_a_stopped_program_is_that_of_its_restarter() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut run = bench.run("/usr/bin/sleep", &["1000"]);
        run.signal(SIGSTOP);
        for name in ["a.ckpt", "b.ckpt", "c.ckpt"].map(|name| bench.name(name)) {
            await_stop(run.pid());
            bench.must(&["save", "--stop", &run.pid_text(), "-n", &name]);
            run.ends_well();
            run = bench.run(&name, &["--ids", "keep"]);
        }
    }
}

/// A job that is a group of its own, to which it sends the checkpoint signal itself: its child has no handler, and must answer
/// all the same, and wait(2) knows nothing of it.
const GROUP: &str = r#"
import os, signal, subprocess, sys
child = subprocess.Popen([sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
halted = subprocess.Popen(["sleep", "1000"])
os.kill(halted.pid, signal.SIGSTOP)
os.waitpid(halted.pid, os.WUNTRACED)
def ask():
    child.stdin.write(b"x\n")
    child.stdin.flush()
    child.stdout.readline()
ask()
print("ready", flush=True)
for line in sys.stdin:
    if line == "group\n":
        os.killpg(0, signal.SIGTSTP)
    ask()
    # A moment after it was held it stops again.
    state = "R"
    while state != "T":
        with open(f"/proc/{halted.pid}/stat") as stat:
            state = stat.read().rsplit(")")[1].split()[0].upper()
    print(state, os.waitpid(-1, os.WNOHANG | os.WUNTRACED), flush=True)
    if line == "go\n":
        break
halted.kill()
child.stdin.close()
sys.exit(child.wait())
"#;

/// A child of a fork, which has the handler, too, gets the signal, and its parent some time later: there is one checkpoint,
/// of both.
const FORKED: &str = r#"
import os, signal, sys
ask, asked = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    os.close(ask[1])
    while os.read(ask[0], 1):
        os.write(asked[1], b"y")
    os._exit(7)
os.close(ask[0])
os.close(asked[1])
print("ready", flush=True)
for line in sys.stdin:
    if line == "go\n":
        break
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTSTP])
    os.killpg(0, signal.SIGTSTP)
    os.write(ask[1], b"x")
    answer = os.read(asked[0], 1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTSTP])
    print(answer, flush=True)
os.close(ask[1])
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"#;

const STOPPED: &str = r#"
import os, subprocess, sys
child = subprocess.Popen(["/bin/sh", "-c", "kill -STOP $$; exit 7"])
os.waitpid(child.pid, os.WUNTRACED)
print("ready", flush=True)
sys.stdin.readline()
print(child.wait(), flush=True)
sys.stdin.readline()
"#;

/// Somebody lets the whole group go on, again and again, while a job with a stopped process is restarted.
#[test]
fn who_is_let_go_on_in_a_restart_keeps_nobody_waiting() {
    let bench = Bench::new(Who::Me);
    let mut run = grouped(&bench, "/usr/bin/python3", &["-c", STOPPED], "");
    run.expect("ready");
    let x = bench.name("x.ckpt");
    bench.must(&["save", "--stop", &run.pid_text(), "-n", &x]);
    run.ends_well();
    for _ in 0..5 {
        let mut again = grouped(&bench, &x, &[], "");
        let group = Pid::from_raw(-again.pid().cast_signed());
        again.say("");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let _ = kill(group, SIGCONT);
                }
            });
            let line = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| again.line()));
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(line.expect("the child's status"), "7");
        });
        again.say("");
        again.ends_well();
    }
}

/// The restarter is the program to whoever knows its id: stopped with its group, it goes on by itself.
#[test]
fn a_restarter_goes_on_without_its_group() {
    let bench = Bench::new(Who::Me);
    let script = "sleep 600 & echo ready; read x; echo works; read x; kill $!";
    let mut run = bench.run("/bin/bash", &["-c", script]);
    run.expect("ready");
    let x = bench.name("x.ckpt");
    bench.must(&["save", "--stop", &run.pid_text(), "-n", &x]);
    run.ends_well();
    let mut again = grouped(&bench, &x, &[], "");
    again.say("");
    again.expect("works");
    let pid = Pid::from_raw(again.pid().cast_signed());
    kill(Pid::from_raw(-pid.as_raw()), SIGSTOP).expect("its group");
    // Whoever stops only when the rest has ended is let go on by nobody.
    let all = || ["bash", "sleep"].map(|name| called(&bench, name)).concat();
    let all = until("both", || Some(all()).filter(|all| all.len() == 2));
    all.into_iter().chain([again.pid(), witness(again.pid())]).for_each(await_stop);
    kill(pid, SIGCONT).expect("the restarter");
    again.say("");
    until("its end", || (!again.lives()).then_some(()));
    kill(Pid::from_raw(-pid.as_raw()), SIGCONT).unwrap_or_default();
    again.end();
    bench.alone(&[]);
}

/// A stop that comes to the witness at any time, also when it has been asked, keeps no signal from the program.
#[test]
fn a_restarter_goes_on_without_its_witness() {
    let bench = Bench::new(Who::Me);
    let script = "import os, signal, subprocess, sys\n\
                  sleeper = subprocess.Popen(['/bin/sleep', '600'])\n\
                  signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b'signal\\n'))\n\
                  print('ready', flush=True)\n\
                  while sys.stdin.readline() != 'go\\n': print('ok', flush=True)\n\
                  sleeper.kill()";
    let mut run = bench.run("/usr/bin/python3", &["-c", script]);
    run.expect("ready");
    let x = bench.name("x.ckpt");
    bench.must(&["save", "--stop", &run.pid_text(), "-n", &x]);
    run.ends_well();
    let mut again = bench.run(&x, &[]);
    again.check();
    let witness = Pid::from_raw(witness(again.pid()).cast_signed());
    for wait in (0..40).map(|i| Duration::from_micros(i * 50)) {
        again.signal(SIGUSR1);
        std::thread::sleep(wait);
        kill(witness, SIGSTOP).expect("the witness");
        again.expect("signal");
    }
    kill(witness, SIGSTOP).expect("the witness");
    await_stop(witness.as_raw().cast_unsigned());
    again.go();
    bench.alone(&[]);
}

/// Runs a program in a group of its own.
fn grouped(bench: &Bench, program: &str, args: &[&str], step: &str) -> Run {
    let mut command = bench.command(bench.path(program));
    command.args(args).process_group(0);
    Run::start(if step.is_empty() { command } else { armed(command, step, &[""; 0]) })
}

fn job(bench: &Bench, options: &[&str], step: &str, child: &str) -> Run {
    let job = ["-n", "x.ckpt", "--", "/usr/bin/python3", "-c", GROUP, child];
    let args = [options, &job].concat();
    let mut run = grouped(bench, "ckpt", &args, step);
    run.expect("ready");
    run
}

#[test]
fn a_signal_to_the_group_stops_nobody() {
    for who in [Who::Me, Who::Nobody] {
        stops_nobody(&Bench::new(who), "cat");
    }
}

/// Not even who has a handler by which it stops itself.
#[test]
fn a_signal_to_the_group_lets_who_stops_itself_go_on() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        stops_nobody(&bench, bench.subject("stopper", Build::Pie).to_str().expect("utf-8"));
    }
}

fn stops_nobody(bench: &Bench, child: &str) {
    let mut run = job(bench, &["-c"], "", child);
    for _ in 0..3 {
        run.say("group");
        run.expect("T (0, 0)");
    }
    run.say("go");
    run.expect("T (0, 0)");
    run.ends_well();
    let mut run = grouped(bench, "x.ckpt", &[], "");
    run.expect("T (0, 0)");
    run.say("group");
    run.expect("T (0, 0)");
    run.say("go");
    run.expect("T (0, 0)");
    run.ends_well();
    // Saved and ended.
    let mut run = job(bench, &[], "", child);
    for _ in 0..3 {
        run.say("group");
        run.ends_well();
        run = grouped(bench, "x.ckpt", &[], "");
        run.expect("T (0, 0)");
    }
    run.say("go");
    run.expect("T (0, 0)");
    run.ends_well();
}

/// Nor does it end a child of a fork alone.
#[test]
fn a_signal_to_the_group_is_one_checkpoint() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let args = ["-n", "x.ckpt", "--", "/usr/bin/python3", "-c", FORKED];
        let mut run = grouped(&bench, "ckpt", &args, "");
        run.expect("ready");
        for _ in 0..3 {
            run.say("group");
            run.ends_well();
            run = grouped(&bench, "x.ckpt", &[], "");
            run.expect("b'y'");
        }
        run.say("go");
        let ended = run.finish();
        assert_eq!((ended.code(), &ended.complaints()[..]), (Some(7), ""));
        let of_child = bench.names("x.ckpt.");
        assert!(of_child.is_empty(), "{of_child:?}");
    }
}

/// Nor does it when there comes no checkpoint of it.
#[test]
fn a_signal_to_the_group_stops_nobody_whose_dumper_is_killed() {
    let bench = Bench::new(Who::Nobody);
    for step in ["begun", "seized:2", "frozen", "claimed", "cloned:2", "pictured"] {
        let mut run = job(&bench, &["-c"], step, "cat");
        run.say("group");
        run.expect("T (0, 0)");
        run.say("go");
        run.expect("T (0, 0)");
        run.ends_well();
    }
}
