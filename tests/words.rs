// SPDX-License-Identifier: LGPL-2.1-only
//! What a new user meets: words that are nearly right, and what ckpt says of them.

mod harness;
mod serving;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use harness::{Bench, Build, Who};
use nix::sys::signal::Signal::SIGTSTP;
use serving::{Server, all, insecure};

#[test]
fn a_word_that_is_nearly_a_subcommand() {
    let bench = Bench::new(Who::Nobody);
    let ended = bench.order(&["sav", "7"]);
    assert_eq!(ended.code(), Some(127), "{ended:?}");
    assert!(ended.stderr.contains("cannot execute sav"), "{ended:?}");
    assert!(ended.stderr.contains("did you mean 'ckpt save'?"), "{ended:?}");
    let ended = bench.order(&["frobnicate"]);
    assert_eq!(ended.code(), Some(127), "{ended:?}");
    assert!(!ended.stderr.contains("did you mean"), "{ended:?}");
}

#[test]
fn a_program_of_this_directory_and_a_script_without_interpreter() {
    let bench = Bench::new(Who::Nobody);
    let script = bench.file("foo", "#! /no/such/python -u\n");
    fs::set_permissions(script, PermissionsExt::from_mode(0o755)).expect("chmod");
    let ended = bench.order(&["foo"]);
    assert_eq!(ended.code(), Some(127), "{ended:?}");
    assert!(ended.stderr.contains("'ckpt ./foo'"), "{ended:?}");
    let ended = bench.order(&["./foo"]);
    assert_eq!(ended.code(), Some(127), "{ended:?}");
    assert!(ended.stderr.contains("interpreter /no/such/python"), "{ended:?}");
}

/// Makes the checkpoint NAME of a program.
fn save(bench: &Bench, name: &str) {
    let mut run = bench.launch(&["-n", name], bench.subject("memory", Build::Static), &[]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
}

#[test]
fn several_checkpoints_at_once_also_on_a_server() {
    let bench = Bench::new(Who::Nobody);
    let options = insecure();
    let server = Server::start(&bench, &options);
    save(&bench, "a.ckpt");
    let b = server.name("b");
    bench.must(&all(&["put", "a.ckpt", &b], &options));
    let mut bytes = fs::read(bench.path("a.ckpt")).expect("the checkpoint");
    let middle = bytes.len() - 5000;
    bytes[middle] ^= 1;
    bench.file("broken.ckpt", bytes);

    let whole = bench.must(&all(&["verify", "a.ckpt", &b], &options));
    assert_eq!(whole.stdout.len(), 2, "{whole:?}");
    assert!(
        whole.stdout.iter().all(|l| l.contains(": whole, ") && l.contains(" MiB)")),
        "{whole:?}"
    );
    let mixed = bench.order(&all(&["verify", "gone.ckpt", "broken.ckpt", &b], &options));
    assert_eq!(mixed.code(), Some(125), "{mixed:?}");
    assert!(mixed.stdout.len() == 1 && mixed.stdout[0].starts_with(&b), "{mixed:?}");
    assert!(
        mixed.stderr.contains("gone.ckpt") && mixed.stderr.contains("broken.ckpt"),
        "{mixed:?}"
    );

    let info = bench.must(&all(&["info", "a.ckpt", &b], &options)).stdout;
    assert!(info[0] == "a.ckpt:" && info.contains(&format!("{b}:")), "{info:?}");
    assert!(info.iter().any(|l| l.starts_with("bytes ") && l.ends_with(" MiB)")), "{info:?}");
    let check = bench.must(&all(&["check", "a.ckpt", &b], &options)).stdout;
    assert_eq!(
        check.iter().filter(|l| l.starts_with("can restart here yes")).count(),
        2,
        "{check:?}"
    );
    let damaged = bench.order(&["check", "broken.ckpt"]);
    assert_eq!(damaged.code(), Some(125), "{damaged:?}");

    let listed = bench.must(&all(&["ls", &server.name("")], &options)).stdout;
    assert!(listed[0].contains(" MiB  ") && listed[0].ends_with("Z  b"), "{listed:?}");
    let script = "import json; o = json.load(open('x.json')); print(*(i.get('name', i.get('program')) for i in o)); \
                  print(*(i['bytes'] for i in o))";
    let read = |line: &[&str]| {
        let text = bench.must(&all(line, &options)).stdout.join("\n");
        bench.file("x.json", text);
        bench.run("python3", &["-c", script]).ends_well().stdout
    };
    let len = fs::metadata(bench.path("a.ckpt")).expect("the checkpoint").len();
    let read_list = read(&["ls", "--json", &server.name("")]);
    assert_eq!(read_list, [b.clone(), len.to_string()]);
    let read_info = read(&["info", "--json", "a.ckpt", &b]);
    assert_eq!(read_info[1], format!("{len} {len}"), "{read_info:?}");
    server.stop();
}

/// The value of a line of `ckpt check`.
fn value(lines: &[String], name: &str) -> String {
    let line = lines.iter().find_map(|line| line.strip_prefix(&format!("{name:<16} ")));
    line.unwrap_or_else(|| panic!("no {name}: {lines:?}")).to_owned()
}

#[test]
fn a_process_is_asked_whether_its_signal_saves_it() {
    let bench = Bench::new(Who::Nobody);
    let script = "import signal,sys\n\
                  print('ready', flush=True)\n\
                  for line in sys.stdin:\n\
                  \x20   if line == 'take\\n': signal.signal(signal.SIGUSR1, lambda *_: print('mine', flush=True))\n\
                  \x20   if line == 'default\\n': signal.signal(signal.SIGUSR1, signal.SIG_DFL)\n\
                  \x20   if line == 'ignore\\n': signal.signal(signal.SIGUSR1, signal.SIG_IGN)\n\
                  \x20   if line == 'go\\n': break\n\
                  \x20   print('done', flush=True)\n";
    let options = ["-n", "x.ckpt", "-a", "USR1", "-z", "90m"];
    let mut run = bench.launch(&options, "/usr/bin/python3", &["-c", script]);
    run.expect("ready");
    let pid = run.pid_text();
    let sound = bench.order(&["check", &pid]).stdout;
    assert_eq!(value(&sound, "signal"), "SIGUSR1 makes a checkpoint");
    let arrangement = value(&sound, "arrangement");
    let name = bench.name("x.ckpt");
    assert!(arrangement.contains(&format!("to {name} on SIGUSR1, and ends")), "{arrangement}");
    assert!(arrangement.contains("each 90m, and goes on"), "{arrangement}");
    for (word, part) in [
        ("take", "takes it for itself"),
        ("ignore", "ignores it"),
        ("default", "has given it back"),
    ] {
        run.say(word);
        run.expect("done");
        let asked = bench.order(&["check", &pid]);
        assert_eq!(asked.code(), Some(1), "{asked:?}");
        let said = value(&asked.stdout, "signal");
        assert!(said.contains(part) && said.contains(&format!("ckpt save {pid}")), "{said}");
    }
    let attached = bench.must(&["-p", &pid, "-a", "USR2", "-z", "0"]).stdout;
    assert_eq!(attached, [format!("process {pid}: is saved to {name} on SIGUSR2, and ends")]);
    let sound = bench.order(&["check", &pid]).stdout;
    assert_eq!(value(&sound, "signal"), "SIGUSR2 makes a checkpoint");
    run.say("go");
    run.ends_well();
}

#[test]
fn a_process_without_ckpt_is_asked() {
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run(bench.subject("memory", Build::Static), &[]);
    run.expect("ready");
    let pid = run.pid_text();
    let asked = bench.order(&["check", &pid]);
    // What the harness may yet write to it.
    assert_eq!(asked.code(), Some(1), "{asked:?}");
    let said = asked.stdout;
    assert_eq!(value(&said, "under ckpt"), "no");
    assert!(value(&said, "arrangement").contains(&format!("ckpt save {pid}")), "{said:?}");
    run.go();
    let gone = bench.order(&["check", &pid]);
    assert_eq!(gone.code(), Some(125), "{gone:?}");
}
