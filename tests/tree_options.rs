// SPDX-License-Identifier: LGPL-2.1-only
//! What a user says and sees of jobs of several processes: --without, --alone, --ids, info, check, and sentences.

mod harness;

use harness::{Bench, Build, Run, Who};

/// A job that waits for "go" on its standard input, with a child of another name and one of its own.
const JOB: &str = "sleep 1000 & other=$!; (until [ -e gate ]; do sleep 0.02; done; exit 3) & own=$!; \
                   echo ready $other $own; read line; wait $own; echo \"own $?\"; \
                   kill $other 2>&1 && wait $other; echo \"other $?\"";

/// The job, and the ids of its children.
fn start(bench: &Bench, options: &[&str]) -> (Run, [String; 2]) {
    let mut run = bench.launch(options, "/bin/bash", &["-c", JOB]);
    let line = run.line();
    let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
    (run, [words[1].clone(), words[2].clone()])
}

/// Ends what a checkpoint without it has left behind.
fn end(pid: &str) {
    let pid = nix::unistd::Pid::from_raw(pid.parse().expect("an id"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
}

#[test]
fn who_is_left_out_is_named_and_the_others_go_on() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let (run, [other, own]) = start(&bench, &["-n", "x.ckpt"]);
        let name = bench.name("x.ckpt");
        let said =
            bench.must(&["save", "--stop", "--without", &other, &run.pid_text(), "-n", &name]);
        let loss = format!("not saved: child processes: sleep ({other}) (a restart is without");
        assert!(said.stderr.contains(&loss), "{said:?}");
        assert!(!said.stderr.contains(&own), "{said:?}");
        end(&other);
        bench.file("gate", "");
        run.ends_well();
        let mut again = bench.run(bench.path("x.ckpt"), &[]);
        again.complaint(&loss);
        again.say("go");
        again.expect("own 3");
        assert!(again.line().contains("No such process"));
        again.expect("other 1");
        again.ends_well();
    }
}

#[test]
fn names_count_as_configured_too() {
    let bench = Bench::new(Who::Nobody);
    let (run, [other, _]) = start(&bench, &["-n", "x.ckpt", "--without", "tail,sleep"]);
    let (pid, name) = (run.pid_text(), bench.name("x.ckpt"));
    let said = bench.order(&["save", "--stop", &pid, "-n", &name]);
    assert_eq!(said.code(), Some(125), "{said:?}");
    assert!(said.stderr.contains("would end, but its checkpoint would be without"), "{said:?}");
    let said = bench.must(&["save", &pid, "-n", &name]);
    assert!(said.stderr.contains(&format!("child processes: sleep ({other}")), "{said:?}");
    let said = bench.must(&["save", "--stop", "--without=sleep", &pid, "-n", &name]);
    assert!(said.stderr.contains(&format!("child processes: sleep ({other}")), "{said:?}");
    end(&other);
    bench.file("gate", "");
    run.ends_well();
}

#[test]
fn a_job_that_is_configured_alone_does_not_end_unasked() {
    let bench = Bench::new(Who::Nobody);
    let mut run =
        bench.launch(&["-n", "x.ckpt", "--alone"], bench.subject("forked", Build::Pie), &["gate"]);
    run.line();
    let (pid, name) = (run.pid_text(), bench.name("x.ckpt"));
    let said = bench.order(&["save", "--stop", &pid, "-n", &name]);
    assert_eq!(said.code(), Some(125), "{said:?}");
    assert!(said.stderr.contains("would be without its child processes forked"), "{said:?}");
    assert!(run.lives());
    bench.must(&["save", "--stop", "--alone", &pid, "-n", &name]);
    bench.file("gate", "");
    run.ends_well();
}

/// Descriptors of many processes are one line, and what the caller has too is none.
#[test]
fn a_loss_of_many_processes_is_one_line() {
    let bench = Bench::new(Who::Nobody);
    let script = "exec 5>&- 6>&-; coproc { read x; }; for i in 1 2 3; do sleep 1000 & done; echo ready; read x; kill %2 %3 %4";
    let mut run = Run::start({
        let mut command = bench.command("/bin/bash");
        let ckpt = bench.ckpt().display().to_string();
        let line = format!("exec 9> >(cat); {ckpt} -n x.ckpt bash -c '{script}'; true");
        command.args(["-c", &line]);
        command
    });
    run.expect("ready");
    let job = harness::until("the job", || {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", run.pid()));
        let children = children.expect("its children");
        let named = |pid: &&str| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.starts_with(b"bash\0")
        };
        children.split_whitespace().find(named).map(str::to_owned)
    });
    let said = bench.must(&["save", &job, "-n", &bench.name("y.ckpt")]);
    let lines = said.stderr.lines().filter(|line| line.contains("descriptors"));
    assert_eq!(lines.count(), 0, "{said:?}");
    let said = bench.must(&["save", "--verbose", &job, "-n", &bench.name("y.ckpt")]);
    let lines: Vec<_> = said.stderr.lines().filter(|line| line.contains("descriptors")).collect();
    assert_eq!(lines.len(), 1, "{said:?}");
    assert!(lines[0].contains("of all 5 processes"), "{said:?}");
    run.say("go");
    run.ends_well();
}

#[test]
fn one_process_keeps_its_id_where_it_is_asked_for() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let script = "echo ready $$; read x; echo $x $BASHPID $(ps -o pid= -p $$)";
        let mut run = bench.launch(&["-n", "a.ckpt"], "/bin/bash", &["-c", script]);
        let id = run.line()["ready ".len()..].to_owned();
        bench.must(&["save", &run.pid_text(), "-n", &bench.name("a.ckpt")]);
        let again = bench.run(bench.path("a.ckpt"), &["--ids", "keep"]);
        bench.must(&["save", "--stop", &again.pid_text(), "-n", &bench.name("b.ckpt")]);
        again.ends_well();
        for (ids, kept) in [("keep", true), ("new", false), ("auto", true)] {
            let mut again = bench.run(bench.path("b.ckpt"), &["--ids", ids]);
            again.say("go");
            let line = again.line();
            let same = line.split_whitespace().skip(1).all(|word| word == id);
            assert_eq!(same, kept, "{ids}: {line} was {id}");
            again.ends_well();
        }
        run.say("go");
        run.ends_well();
    }
}

#[test]
fn several_processes_keep_their_ids() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("forked", Build::Pie), &["gate"]);
    run.line();
    bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    bench.file("gate", "");
    let mut again = bench.run(bench.path("x.ckpt"), &["--ids=keep"]);
    for run in [&mut run, &mut again] {
        run.expect("child goes on");
        run.expect("ended 33");
    }
    run.ends_well();
    again.ends_well();
}

/// `ckpt info` shows every process, and sums up all; `ckpt check` knows them before and after.
#[test]
fn a_job_is_shown_as_a_tree() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("forked", Build::Pie), &["gate"]);
    let child = run.line()["child ".len()..].to_owned();
    let pid = run.pid_text();
    let said = bench.order(&["check", &pid]);
    assert_eq!(said.code(), Some(1), "{said:?}");
    let descendants = format!("descendants      forked.pie ({child})");
    assert!(said.stdout.contains(&descendants), "{said:?}");
    bench.must(&["save", &pid, "-n", &bench.name("x.ckpt")]);
    let said = bench.must(&["info", "x.ckpt"]);
    let has = |line: &str| said.stdout.iter().any(|known| known == line);
    assert!(has("processes        2") && has("threads          2"), "{said:?}");
    let lines: Vec<_> = said.stdout.iter().filter(|line| line.starts_with("tree ")).collect();
    assert_eq!(lines.len(), 2, "{said:?}");
    let line =
        format!("pid {child}, parent {pid}, name forked.pie, state alive, threads 1, memory ");
    assert!(lines[1].contains(&line), "{said:?}");
    let said = bench.must(&["info", "--json", "x.ckpt"]);
    let json = said.stdout.join(" ");
    assert!(json.contains("\"tree\": [{"), "{json}");
    assert!(json.contains(&format!("\"pid\": {child},")), "{json}");
    bench.must(&["check", "x.ckpt"]);
    let said = bench.must(&["check"]);
    assert!(said.stdout.iter().any(|line| line.starts_with("ids of jobs      yes")), "{said:?}");
    bench.file("gate", "");
    run.expect("child goes on");
    run.expect("ended 33");
    run.ends_well();
}

/// One process of a parallel program is not saved by itself.
#[test]
fn ckpt_below_mpirun_is_refused() {
    let bench = Bench::new(Who::Nobody);
    let mut command = bench.command(bench.ckpt());
    command.args(["/bin/true"]).env("OMPI_COMM_WORLD_SIZE", "2");
    let ended = Run::start(command).finish();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("ckpt mpirun -np 2 /bin/true"), "{ended:?}");
}

/// A process that goes on, and executes another program or ends at once, has still been saved.
#[test]
fn short_lives_do_not_spoil_a_checkpoint() {
    let bench = Bench::new(Who::Nobody);
    let script = "echo ready; until [ -e gate ]; do sleep 0.001; done; echo end";
    let mut run = bench.launch(&["-n", "x.ckpt"], "/bin/bash", &["-c", script]);
    run.expect("ready");
    for _ in 0..60 {
        bench.must(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    }
    bench.file("gate", "");
    run.expect("end");
    run.ends_well();
}
