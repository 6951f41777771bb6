// SPDX-License-Identifier: LGPL-2.1-only
//! Encrypted checkpoints: in files, from commands and on a server, with keys that are right, wrong and missing.

mod harness;
mod serving;

use std::fs;
use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal::{SIGKILL, SIGTSTP};

use harness::{Bench, Build, Run, Who, until};
use serving::{Server, all, keyed};

/// A key in the bench's directory.
fn key(bench: &Bench, name: &str) -> String {
    bench.must(&["keygen", name]);
    bench.name(name)
}

fn three_generations(who: Who, more: &[&str]) {
    let bench = Bench::new(who);
    let key = key(&bench, "k");
    let line = [&["--encrypt", "--key", &key, "-n", "x.ckpt"], more].concat();
    let mut run = bench.launch(&line, bench.subject("memory", Build::Pie), &["a word of it"]);
    run.expect("ready");
    for _ in 0..3 {
        run.check();
        run.signal(SIGTSTP);
        run.ends_well();
        bench.must(&["verify", "--key", &key, "x.ckpt"]);
        let image = fs::read(bench.path("x.ckpt")).expect("the image");
        // The path of the executable is in the header.
        for (plain, times) in [("of the start", 0), ("a word of it", 0), ("memory.pie", 1)] {
            let found = image.windows(plain.len()).filter(|bytes| *bytes == plain.as_bytes());
            assert_eq!(found.count(), times, "{plain} can be read");
        }
        run = bench.run(bench.path("x.ckpt"), &["--key", &key]);
    }
    run.check();
    run.go();
}

#[test]
fn three_generations_of_nobodys() {
    three_generations(Who::Nobody, &[]);
}

#[test]
fn three_generations_of_roots_compressed() {
    three_generations(Who::Me, &["--compress"]);
}

#[test]
fn a_command_and_a_server_have_encrypted_ones() {
    let bench = Bench::new(Who::Nobody);
    let options = keyed(&bench);
    let server = Server::start(&bench, &options);
    let names = [server.name("x"), "|cat >y.part && mv y.part y.ckpt".into()];
    for (name, back) in names.iter().zip([&*server.name("x"), "|cat y.ckpt"]) {
        let line = all(&["--encrypt", "-n", name], &options);
        let mut run = bench.launch(&line, bench.subject("memory", Build::Pie), &[]);
        run.expect("ready");
        run.signal(SIGTSTP);
        run.ends_well();
        let mut line = all(&["restart"], &options);
        line.push(back);
        let mut run = bench.run(bench.ckpt(), &line);
        run.check();
        run.go();
    }
    server.stop();
}

#[test]
fn without_its_key_nothing_is_done() {
    let bench = Bench::new(Who::Nobody);
    let (right, wrong) = (key(&bench, "right"), key(&bench, "wrong"));
    let subject = bench.subject("memory", Build::Pie);
    let line = ["--resume", "--encrypt", "-n", "x.ckpt", "--key"];
    let mut run = bench.launch(&[&line[..], &[&right]].concat(), &subject, &[]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
    let refused = |args: &[&str], why: &str| {
        let ended = bench.order(args);
        assert_eq!(ended.code(), Some(125), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(why), "{args:?}: {ended:?}");
    };
    refused(&["restart", "--key", &wrong, "x.ckpt"], "encrypted with another key");
    refused(&["restart", "x.ckpt"], "is encrypted: no key is named");
    refused(&["verify", "--key", &wrong, "x.ckpt"], "encrypted with another key");
    for options in [&["--key", &*wrong][..], &[]] {
        let ended = bench.run(bench.path("x.ckpt"), options).end();
        assert!(ended.code() == Some(125) && ended.stderr.contains("encrypted"), "{ended:?}");
        let line = [&line[..4], options].concat();
        let ended = bench.launch(&line, &subject, &[]).end();
        assert!(ended.code() == Some(125), "{ended:?}");
        assert!(!ended.stdout.contains(&"ready".into()), "{ended:?}");
    }
    let said = bench.must(&["info", "x.ckpt"]);
    assert!(said.stdout.join("\n").contains("encrypted        yes"), "{said:?}");
    let ended = bench.launch(&["--encrypt", "--key", "none"], &subject, &[]).end();
    assert!(ended.stderr.contains("cannot open the key file"), "{ended:?}");
    // What somebody has changed.
    let whole = fs::read(bench.path("x.ckpt")).expect("the image");
    let half = whole.len() - whole.len() / 4;
    let mut swapped = whole.clone();
    let (first, second) = swapped[half - 8192..].split_at_mut(8192);
    first[..4096].swap_with_slice(&mut second[..4096]);
    bench.file("y.ckpt", &swapped);
    refused(&["restart", "--key", &right, "y.ckpt"], "damaged");
    let mut run = bench.launch(&[&line[..], &[&right]].concat(), &subject, &[]);
    run.check();
    run.go();
}

#[test]
fn a_plain_one_in_its_place_is_refused() {
    let bench = Bench::new(Who::Nobody);
    let key = key(&bench, "k");
    let subject = bench.subject("memory", Build::Pie);
    let mut run = bench.launch(&["-n", "x.ckpt"], &subject, &[]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
    let demanding = |program: &str, args: &[&str]| {
        let mut command = bench.command(program);
        command.args(args).env("CKPT_ENCRYPT", "1").env("CKPT_KEY", &key);
        Run::start(command).end()
    };
    let program = subject.to_str().expect("utf-8");
    for ended in [
        demanding("./ckpt", &["restart", "x.ckpt"]),
        demanding("./ckpt", &["--resume", "-n", "x.ckpt", program]),
        demanding("./x.ckpt", &[]),
        bench.order(&["restart", "x.ckpt", "--encrypt", "--key", &key]),
        bench
            .launch(&["--resume", "--encrypt", "--key", &key, "-n", "x.ckpt"], &subject, &[])
            .end(),
        bench.run(bench.path("x.ckpt"), &["--encrypt", "--key", &key]).end(),
    ] {
        assert!(ended.code() == Some(125) && ended.stdout.is_empty(), "{ended:?}");
        assert!(ended.stderr.contains("is not encrypted"), "{ended:?}");
    }
    // It is the user's own, who has the next ones encrypted.
    let mut run = bench.run(bench.path("x.ckpt"), &[]);
    run.check();
    bench.must(&["-p", &run.pid_text(), "--encrypt", "--key", &key]);
    run.signal(SIGTSTP);
    run.ends_well();
    let mut command = bench.command("./x.ckpt");
    command.env("CKPT_ENCRYPT", "1").env("CKPT_KEY", &key);
    let mut run = Run::start(command);
    run.check();
    run.go();
}

#[test]
fn a_job_finds_its_key_at_home() {
    let bench = Bench::new(Who::Nobody);
    let home = bench.subdirectory("home");
    bench.subdirectory("home/.config");
    bench.subdirectory("home/.config/ckpt");
    let at_home = |program: &str, args: &[&str]| {
        let mut command = bench.command(program);
        command.args(args).env("HOME", &home);
        Run::start(command)
    };
    at_home("./ckpt", &["keygen", "home/.config/ckpt/key"]).ends_well();
    let job =
        "sleep 1000 & echo ready $$; while read line; do echo $line | cat; done; kill $!; echo end";
    let line = ["--encrypt", "-n", "x.ckpt", "--embed-files", "1K", "/bin/dash", "-c", job];
    let mut run = at_home("./ckpt", &line);
    let ready = run.line();
    assert!(ready.starts_with("ready "), "{ready}");
    for _ in 0..2 {
        run.say("lives");
        run.expect("lives");
        run.signal(SIGTSTP);
        run.ends_well();
        for args in [&["verify"][..], &["info", "--fds"], &["info", "--env"], &["check"]] {
            at_home("./ckpt", &[args, &["x.ckpt"]].concat()).ends_well();
        }
        at_home("./ckpt", &["core", "x.ckpt", "x.core"]).ends_well();
        for name in bench.names("x.core") {
            fs::remove_file(bench.path(name)).expect("rm");
        }
        let ended = bench.order(&["core", "x.ckpt", "x.core"]);
        assert!(ended.code() == Some(125) && ended.stderr.contains("encrypted"), "{ended:?}");
        run = at_home("./x.ckpt", &[]);
    }
    run.say("lives");
    run.expect("lives");
    let ended = run.finish();
    assert_eq!(ended.stdout, ["end"], "{ended:?}");
}

#[test]
fn periodic_ones_are_whole_and_have_keys_of_their_own() {
    let bench = Bench::new(Who::Nobody);
    let key = key(&bench, "k");
    let options = ["--encrypt", "--key", &key, "-z", "100", "-n", "x.%n.ckpt", "--incremental=2"];
    let mut run = bench.launch(&options, bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    until("three checkpoints", || (bench.names("x.").len() >= 3).then_some(()));
    run.check();
    run.go();
    let images: Vec<_> = bench
        .names("x.")
        .iter()
        .filter_map(|name| {
            bench.must(&["verify", "--key", &key, name]);
            fs::read(bench.path(name)).ok()
        })
        .collect();
    // No page of one is in another: what is in both is under other keys.
    let pages = |image: &[u8]| -> std::collections::HashSet<[u8; 64]> {
        let behind = image.len() - (128 << 10);
        image[behind..].chunks_exact(64).filter_map(|bytes| bytes.try_into().ok()).collect()
    };
    let (one, two) = (pages(&images[0]), pages(&images[1]));
    let common = one.intersection(&two).filter(|bytes| **bytes != [0; 64]).count();
    assert!(common < 20, "{common} pieces of 64 bytes are in both");
}

#[test]
fn a_passphrase_is_no_key_of_a_server() {
    let bench = Bench::new(Who::Nobody);
    bench.file("words", "correct horse\n");
    let server = Server::start(&bench, &keyed(&bench));
    let mut command = bench.command("sh");
    let subject = bench.subject("memory", Build::Pie);
    let line = format!(
        "exec ./ckpt --encrypt --passphrase-fd 3 -n {} {} 3<words",
        server.name("x"),
        subject.display()
    );
    command.args(["-c", &line]);
    let mut run = Run::start(command);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.complaint("a passphrase is no key for a checkpoint server");
    run.check();
    run.go();
    server.stop();
}

#[test]
fn a_passphrase_is_a_key() {
    let bench = Bench::new(Who::Nobody);
    bench.file("words", "correct horse\n");
    bench.file("others", "battery staple\n");
    let subject = bench.subject("memory", Build::Pie);
    let shell = |line: &str| {
        let mut command = bench.command("sh");
        command.args(["-c", line]);
        Run::start(command)
    };
    let line =
        format!("exec ./ckpt --encrypt --passphrase-fd 3 -n x.ckpt {} 3<words", subject.display());
    let mut run = shell(&line);
    run.expect("ready");
    for words in [
        "./x.ckpt --passphrase-fd 3 3<words",
        "./x.ckpt --encrypt --passphrase-fd 3 3<words",
        "./ckpt restart --passphrase-fd 3 x.ckpt 3<words",
    ] {
        bench.must(&["save", "-n", "y.ckpt", &run.pid_text()]);
        run.check();
        run.signal(SIGTSTP);
        run.ends_well();
        let ended = shell("exec ./x.ckpt --passphrase-fd 3 3<others").end();
        assert!(ended.stderr.contains("encrypted with another key"), "{ended:?}");
        let ended = shell("exec setsid -w ./x.ckpt").end();
        assert!(ended.stderr.contains("no terminal to ask for it"), "{ended:?}");
        run = shell(&format!("exec {words}"));
    }
    run.check();
    // Whoever is the installed ckpt by its executable is taken for one that starts a program.
    bench.must(&["save", "-n", "y.ckpt", &run.pid_text()]);
    run.go();
}

#[test]
fn nothing_plain_stays_beside_an_encrypted_one() {
    let bench = Bench::new(Who::Nobody);
    let key = key(&bench, "k");
    let options = ["-z", "100", "-n", "x.ckpt", "--incremental"];
    let mut run = bench.launch(&options, bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    until("one that is kept", || (bench.names(".ckpt-").len() == 1).then_some(()));
    // With the new configuration, and the monitor of before, which has the older one.
    let mut command = bench.command("./ckpt");
    command
        .args(["-p", &run.pid_text(), "--encrypt", "--key", &key])
        .env("CKPT_FAULT", "configured");
    let ended = Run::start(command).end();
    assert_eq!(ended.status.signal(), Some(SIGKILL as i32), "{ended:?}");
    let sealed = || {
        bench.order(&["verify", "--key", &key, "x.ckpt"]).code() == Some(0)
            && bench.must(&["info", "x.ckpt"]).stdout.join("\n").contains("encrypted        yes")
    };
    until("an encrypted one", || sealed().then_some(()));
    until("no plain one", || bench.names(".ckpt-").is_empty().then_some(()));
    run.check();
    run.go();
}

#[test]
fn a_program_that_executes_itself_needs_no_key_for_that() {
    let bench = Bench::new(Who::Nobody);
    bench.file("words", "correct horse\n");
    let key = key(&bench, "k");
    let subject = bench.subject("again", Build::Pie);
    let shell = |line: &str| {
        let mut command = bench.command("sh");
        command.args(["-c", line]);
        Run::start(command)
    };
    for (name, options) in
        [("x.ckpt", format!("--key {key}")), ("y.ckpt", "--passphrase-fd 3 3<words".into())]
    {
        let line = format!("exec ./ckpt --encrypt -n {name} {options} {}", subject.display());
        let mut run = shell(&line);
        run.expect("ready");
        run.signal(SIGTSTP);
        run.ends_well();
        // In a namespace it could have its own executable again (PR_SET_MM_MAP).
        let mut run = shell(&format!("exec ./{name} --ids=new {options}"));
        run.check();
        let exe = fs::read_link(format!("/proc/{}/exe", run.pid())).expect("an executable");
        assert!(exe.ends_with(name), "{exe:?}");
        run.say("go");
        run.expect("again");
        run.ends_well();
    }
}
