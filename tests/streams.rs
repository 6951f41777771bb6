// SPDX-License-Identifier: LGPL-2.1-only
//! Checkpoints that are streams: to commands, from commands, over standard output and input.

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal::{SIGKILL, SIGTSTP};

use harness::faults::is_killed;
use harness::{Bench, Build, Run, Who, until};

/// Whole files alone: the one of that name is replaced at the command's very end.
fn keeping(name: &str) -> String {
    format!("|cat >{name}.part && chmod 700 {name}.part && mv {name}.part {name}")
}

fn three_generations(who: Who) {
    let bench = Bench::new(who);
    let name = keeping("x.ckpt");
    let mut run = bench.launch(&["-n", &name], bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    for by_command in [true, false, true] {
        run.check();
        run.signal(SIGTSTP);
        let ended = run.end();
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        bench.must(&["verify", "x.ckpt"]);
        // What is restarted is replaced by the next one.
        run = match by_command {
            true => bench.run(bench.ckpt(), &["restart", "|cat x.ckpt"]),
            false => bench.run(bench.path("x.ckpt"), &[]),
        };
    }
    run.check();
    run.go();
    assert_eq!(bench.names("x.ckpt"), ["x.ckpt"]);
}

#[test]
fn a_command_keeps_three_generations() {
    three_generations(Who::Nobody);
}

#[test]
fn a_command_keeps_three_generations_of_roots() {
    three_generations(Who::Me);
}

#[test]
fn a_stream_is_an_executable_file() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    let mut save = bench.command("sh");
    let line = format!("./ckpt save -n - {} | cat >x.ckpt", run.pid());
    let ended = Run::start({
        save.args(["-c", &line]);
        save
    })
    .end();
    assert!(ended.stderr.contains("standard output: "), "{ended:?}");
    run.check();
    run.go();
    fs::set_permissions(bench.path("x.ckpt"), PermissionsExt::from_mode(0o755)).expect("chmod");
    for _ in 0..2 {
        let mut run = bench.run(bench.path("x.ckpt"), &[]);
        run.check();
        run.go();
    }
    // What was cut off says so, wherever.
    let whole = fs::read(bench.path("x.ckpt")).expect("the image");
    for len in [100_000, whole.len() - 100_000, whole.len() - 1] {
        let cut = bench.file("cut.ckpt", &whole[..len]);
        fs::set_permissions(&cut, PermissionsExt::from_mode(0o755)).expect("chmod");
        let ended = bench.run(&cut, &[]).end();
        assert!(ended.stderr.contains("cut off"), "{len}: {ended:?}");
        for name in ["|cat cut.ckpt", "cut.ckpt"] {
            let ended = bench.order(&["restart", name]);
            assert_eq!(ended.code(), Some(125), "{len}: {ended:?}");
            assert!(
                ended.stderr.contains("cut off: its end is missing; restart an older"),
                "{ended:?}"
            );
        }
    }
    let mut bad = whole.clone();
    bad[whole.len() / 2] ^= 1;
    bench.file("bad.ckpt", &bad);
    let ended = bench.order(&["restart", "|cat bad.ckpt"]);
    assert!(ended.code() == Some(125) && ended.stderr.contains("damaged"), "{ended:?}");
}

#[test]
fn standard_input_gives_a_checkpoint() {
    let bench = Bench::new(Who::Nobody);
    let program = r#"$| = 1; print "ready\n"; select(undef, undef, undef, .01) until -e "go";
                     print defined(<STDIN>) ? "more\n" : "done\n""#;
    let mut run = bench.launch(&["-n", &keeping("x.ckpt")], "perl", &["-e", program]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
    bench.file("go", "");
    let mut restart = bench.command("sh");
    restart.args(["-c", "cat x.ckpt | ./ckpt restart -"]);
    let mut run = Run::start(restart);
    run.expect("done");
    let mut nothing = bench.command("sh");
    nothing.args(["-c", "./ckpt restart - </dev/null"]);
    let ended = Run::start(nothing).end();
    assert!(ended.stderr.contains("- has given nothing"), "{ended:?}");
    let ended = bench.order(&["restart", "|exit 3"]);
    assert!(ended.stderr.contains("'exit 3' ended with status 3"), "{ended:?}");
}

/// Why commands fail.
const FAILURES: [(&str, &str); 8] = [
    ("|false", "'false' ended with status 1"),
    ("|cat >/dev/null; echo first >&2; echo no bucket >&2; exit 7", "status 7: no bucket"),
    ("|cat", "gives the image to its own standard output"),
    ("|head -c 10000 >/dev/null", "ended before it had read all"),
    ("|dd bs=1 count=0 status=none", "ended before it had read all"),
    ("|cat >/dev/null & exit 0", "ended before it had read all"),
    ("|kill -KILL $$", "was killed by signal 9"),
    ("|no-such-command", "ended with status 127"),
];

#[test]
fn a_command_that_fails_is_a_failed_checkpoint() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.launch(&["-n", "x.ckpt"], bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    for (name, why) in FAILURES {
        for stop in [&[][..], &["--stop"]] {
            let ended = bench.order(&[&["save", &run.pid_text(), "-n", name], stop].concat());
            assert_eq!(ended.code(), Some(125), "{name}: {ended:?}");
            assert!(ended.stderr.contains(why), "{name}: {ended:?}");
            run.check();
        }
    }
    // One that the program ends for, and goes on.
    let ended = bench.order(&["-p", &run.pid_text(), "-n", "|echo full >&2; exit 2"]);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    run.signal(SIGTSTP);
    run.complaint("no checkpoint: the command 'echo full >&2; exit 2' ended with status 2: full");
    run.check();
    run.go();
}

#[test]
fn the_fallback_holds_for_commands() {
    let bench = Bench::new(Who::Nobody);
    let line = ["-n", "|echo down >&2; false", "--fallback", "f.ckpt"];
    let mut run = bench.launch(&line, bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.complaint("status 1: down; saved to");
    run.ends_well();
    let mut run = bench.run(bench.path("f.ckpt"), &[]);
    run.check();
    run.go();
}

#[test]
fn a_killed_dumper_leaves_the_older_checkpoint() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    let (pid, name) = (run.pid_text(), keeping("x.ckpt"));
    bench.must(&["save", &pid, "-n", &name]);
    let older = fs::read(bench.path("x.ckpt")).expect("the first");
    for step in ["opened", "gathered", "written"] {
        assert!(is_killed(&bench, step, &["save", &pid, "-n", &name]), "{step}");
        run.check();
        // Nobody writes to it any more: the command is gone.
        until("the command's end", || {
            let all = fs::read_dir("/proc").expect("/proc").flatten();
            let here = |entry: fs::DirEntry| {
                let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
                let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
                (cwd == bench.dir && line.contains("cat")).then_some(())
            };
            all.filter_map(here).next().is_none().then_some(())
        });
        assert_eq!(fs::read(bench.path("x.ckpt")).expect("the first"), older, "{step}");
    }
    run.go();
}

#[test]
fn resume_asks_a_second_command() {
    let bench = Bench::new(Who::Nobody);
    let (subject, name) = (bench.subject("memory", Build::Pie), keeping("x.ckpt"));
    let line = ["--resume", "--exit-status", "85", "-n", &name];
    let probing = |probe| [&line[..], &["--probe", probe]].concat();
    let usual = probing("test ! -e x.ckpt || cat x.ckpt");
    let mut run = bench.launch(&usual, &subject, &[]);
    run.expect("ready");
    for _ in 0..2 {
        run.signal(SIGTSTP);
        assert_eq!(run.end().code(), Some(85));
        // Only a program that begins anew says that it is ready.
        run = bench.launch(&usual, &subject, &[]);
        run.check();
    }
    run.go();
    for (options, why) in [
        (probing("false"), "--probe: the command 'false' ended with status 1; nothing was started"),
        (line.to_vec(), "how to get back what"),
        (vec!["--resume", "-n", "x", "--probe", "true"], "--probe goes with"),
        (vec!["-n", "x", "--probe", "true"], "--probe goes with --resume"),
    ] {
        let ended = bench.launch(&options, &subject, &[]).end();
        assert!(ended.code() == Some(125) && ended.stderr.contains(why), "{options:?}: {ended:?}");
    }
    let ended = bench.launch(&["--keep=2", "-n", "|cat >x.%n"], &subject, &[]).end();
    assert!(ended.stderr.contains("--keep cannot remove"), "{ended:?}");
    let ended = bench.launch(&["-n", "-"], &subject, &[]).end();
    assert!(ended.stderr.contains("ckpt save alone"), "{ended:?}");
}

/// Fields of /proc/PID/stat from the state on, as the command has noted them.
fn stat(path: &Path) -> Vec<i32> {
    let text = fs::read_to_string(path).expect("what the command has noted");
    let fields = text.rsplit_once(')').expect("a name").1.split_whitespace();
    fields.skip(1).take(3).map(|n| n.parse().expect("a number")).collect()
}

#[test]
fn periodic_ones_are_numbered_and_apart() {
    let bench = Bench::new(Who::Nobody);
    let name = "|cat /proc/$$/stat >stat.new; env >env.new; ls /proc/self/fd >fd.new; \
                cat >/dev/null; mv stat.new stat; mv env.new env; mv fd.new fd; echo %%s >of.%n";
    let mut run =
        bench.launch(&["-z", "20ms", "-n", name], bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    // The shell makes the file before it writes the line.
    let third = || fs::read_to_string(bench.path("of.3")).ok().filter(|text| !text.is_empty());
    assert_eq!(until("the third", third), "%s\n");
    run.check();
    let [parent, group, session] = stat(&bench.path("stat"))[..] else { panic!("short") };
    let pid = run.pid().cast_signed();
    let own = stat(Path::new(&format!("/proc/{pid}/stat")));
    assert!(parent != pid && group != own[1] && session != own[2], "{parent} {group} {session}");
    let environment = fs::read_to_string(bench.path("env")).expect("an environment");
    for line in [format!("CKPT_PID={pid}"), "CKPT_TEST=of the start".into()] {
        assert!(environment.lines().any(|found| found == line), "{line}: {environment}");
    }
    // Its three streams alone, and what ls itself has open.
    assert_eq!(fs::read_to_string(bench.path("fd")).expect("descriptors"), "0\n1\n2\n3\n");
    run.signal(SIGKILL);
    run.end();
}

/// The command of a saver who is not root, but has capabilities that execve(2) keeps.
#[test]
fn a_command_has_no_capability_of_the_savers() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let bench = Bench::new(Who::Nobody);
    let name = "|cat >/dev/null; grep ^Cap /proc/self/status >caps.new && mv caps.new caps";
    let mut run = bench.launch(&["-n", name], bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    let all = "+setuid,+setgid,+sys_ptrace,+dac_override,+dac_read_search,+sys_admin,+kill";
    let mut save = std::process::Command::new("setpriv");
    save.args(["--reuid=1000", "--regid=1000", "--clear-groups"]);
    save.args([format!("--inh-caps={all}"), format!("--ambient-caps={all}")]);
    save.arg(bench.ckpt()).args(["save", &run.pid_text()]).current_dir(&bench.dir);
    let output = save.output().expect("setpriv");
    assert!(output.status.success(), "{output:?}");
    let caps = fs::read_to_string(bench.path("caps")).expect("what the command has noted");
    let is_none = |line: &&str| line.ends_with("\t0000000000000000");
    assert_eq!(caps.lines().filter(is_none).count(), 4, "all but the bounding set: {caps}");
    run.check();
    run.go();
}

/// Who saves a restarted job from outside enters its user namespace, and may do anything there; its command may not.
#[test]
fn a_restarted_job_is_given_to_commands_from_outside() {
    let bench = Bench::new(Who::Nobody);
    let name = format!(
        "{}; grep ^CapEff /proc/self/status >caps.new && mv caps.new caps",
        keeping("x.ckpt")
    );
    let script = "sleep 600 & echo ready; read x; kill $!";
    let mut run = bench.launch(&["-n", &name], "/bin/bash", &["-c", script]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
    for image in ["y.ckpt", "z.ckpt"] {
        fs::rename(bench.path("x.ckpt"), bench.path(image)).expect("the last one");
        fs::remove_file(bench.path("caps")).expect("what an earlier one has noted");
        run = bench.run(bench.path(image), &["-z", "50"]);
        let caps = until("a periodic one", || fs::read_to_string(bench.path("caps")).ok());
        assert_eq!(caps.trim_end(), "CapEff:\t0000000000000000");
        bench.must(&["save", &run.pid_text()]);
        bench.must(&["save", "--stop", &run.pid_text()]);
        run.ends_well();
        bench.must(&["verify", "x.ckpt"]);
    }
    let mut run = bench.run(bench.path("x.ckpt"), &["-z", "0"]);
    run.say("");
    run.ends_well();
    bench.alone(&[]);
}

#[test]
fn no_name_of_a_file_is_a_command() {
    let bench = Bench::new(Who::Nobody);
    let name = "|touch PWNED; true";
    bench.file(name, "no checkpoint");
    let words = |command| match command {
        "cat" => vec![command, name, "0"],
        _ => vec![command, name],
    };
    for command in ["verify", "info", "check", "core", "cat", "restart"] {
        let ended = bench.order(&words(command));
        assert_ne!(ended.code(), Some(0), "{command}: {ended:?}");
        assert!(ended.stderr.contains("is not a checkpoint"), "{command}: {ended:?}");
    }
    fs::remove_file(bench.path(name)).expect("the file");
    // Nor where it has just been taken away.
    for command in ["verify", "info", "check", "core", "cat"] {
        let ended = bench.order(&words(command));
        assert!(ended.stderr.contains("say COMMAND | ckpt"), "{command}: {ended:?}");
    }
    assert!(!bench.path("PWNED").exists());
}
