// SPDX-License-Identifier: LGPL-2.1-only
//! The checkpoint server between two hosts (network namespaces of scripts/two-hosts): another
//! machine, a network that is cut, that loses packets, that resets connections; and programs that move from one to
//! the other. Needs root; without it only says so.

mod harness;
mod serving;

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal::SIGTSTP;
use nix::unistd::geteuid;

use harness::host::{called, resume};
use harness::{Bench, Build, Run, Who, await_stop, ssh, until};
use serving::{Server, image, keyed, noise};

/// Two hosts; gone when dropped.
struct Hosts {
    pair: String,
}

impl Hosts {
    /// None where there can be none.
    fn up(pair: &str) -> Option<Self> {
        if !geteuid().is_root() {
            println!("not root: no network namespaces, nothing was tested");
            return None;
        }
        let hosts = Self { pair: format!("{pair}{}", std::process::id()) };
        hosts.order(&["down"]);
        hosts.order(&["up"]);
        Some(hosts)
    }

    fn script(&self) -> Command {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/two-hosts");
        let mut command = Command::new(script);
        command.env("CKPT_HOSTS", &self.pair);
        command
    }

    fn order(&self, words: &[&str]) {
        let output = self.script().args(words).output().expect("bash");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// What runs words that follow on a host, in the bench's directory.
    fn command(&self, bench: &Bench, host: &str) -> Command {
        let mut command = self.script();
        command.current_dir(&bench.dir).args(["run", host]);
        command
    }

    /// `ckpt ARGS…` there.
    fn ckpt(&self, bench: &Bench, host: &str, args: &[impl AsRef<OsStr>]) -> Run {
        let mut command = self.command(bench, host);
        command.arg(bench.ckpt()).args(args);
        Run::start(command)
    }

    /// Any other command there.
    fn run(&self, bench: &Bench, host: &str, words: &[&str]) -> Run {
        let mut command = self.command(bench, host);
        command.args(words);
        Run::start(command)
    }

    /// A server on B.
    fn server(&self, bench: &Bench) -> Server {
        let store = bench.path("store");
        if !store.exists() {
            bench.subdirectory("store");
        }
        let mut line = vec!["serve", "--listen", "10.78.0.2", "-p", "0", "-d", "store"];
        line.extend(["--timeout", "3", "--key", "key"]);
        keyed(bench);
        Server::watch(self.ckpt(bench, "B", &line), store)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = self.script().arg("down").output();
    }
}

fn name(server: &Server, name: &str) -> String {
    format!("cssrv://10.78.0.2:{}/{name}", server.port)
}

/// A program on A that saves itself to the server and goes on.
fn program(hosts: &Hosts, bench: &Bench, server: &Server, more: &[&str]) -> Run {
    let subject = bench.subject("memory", Build::Pie);
    let (name, key) = (name(server, "x"), bench.name("key"));
    let mut line = vec!["-c", "-n", &name, "--key", &key];
    line.extend(more);
    line.push(subject.to_str().expect("utf-8"));
    let mut run = hosts.ckpt(bench, "A", &line);
    run.expect("ready");
    run
}

#[test]
fn from_one_host_to_the_other() {
    let Some(hosts) = Hosts::up("t") else { return };
    let bench = Bench::new(Who::Me);
    let server = hosts.server(&bench);
    let mut run = program(&hosts, &bench, &server, &[]);
    run.signal(SIGTSTP);
    until("the checkpoint", || server.file("x").exists().then_some(()));
    run.check();
    run.go();
    let name = name(&server, "x");
    let mut run = hosts.ckpt(&bench, "B", &["restart", "--key", "key", &name]);
    run.check();
    run.go();
    server.stop();
}

#[test]
fn a_lossy_network() {
    let Some(hosts) = Hosts::up("l") else { return };
    let bench = Bench::new(Who::Me);
    let server = hosts.server(&bench);
    hosts.order(&["loss", "5"]);
    let bytes = image(noise(3_000_000, 4));
    bench.file("in", &bytes);
    let name = name(&server, "x");
    hosts.ckpt(&bench, "A", &["put", "--key", "key", "in", &name]).ends_well();
    hosts.ckpt(&bench, "A", &["get", "--key", "key", &name, "out"]).ends_well();
    assert!(fs::read(bench.path("out")).expect("out") == bytes);
    hosts.order(&["heal"]);
    server.stop();
}

/// Cuts the network in the middle of an upload: the old checkpoint stays, the client says a sentence.
#[track_caller]
fn cut(pair: &str, how: &str) {
    let Some(hosts) = Hosts::up(pair) else { return };
    let bench = Bench::new(Who::Me);
    let server = hosts.server(&bench);
    let old = image("old");
    bench.file("old", &old);
    let name = name(&server, "x");
    hosts.ckpt(&bench, "A", &["put", "--key", "key", "old", &name]).ends_well();
    // A file with no end in sight: sent slowly through a pipe it would be a FIFO, so it is large.
    bench.file("large", image(noise(1 << 20, 8).repeat(300)));
    let put = hosts.ckpt(&bench, "A", &["put", "--key", "key", "large", &name]);
    until("the upload", || (server.partial() == 1).then_some(()));
    hosts.order(&[how]);
    let ended = put.end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("was lost with 'x' on its way"), "{ended:?}");
    until("the end of the upload", || (server.partial() == 0).then_some(()));
    hosts.order(&["heal"]);
    hosts.ckpt(&bench, "A", &["get", "--key", "key", &name, "back"]).ends_well();
    assert!(fs::read(bench.path("back")).expect("back") == old);
    hosts.ckpt(&bench, "A", &["put", "--key", "key", "old", &name]).ends_well();
    server.stop();
}

#[test]
fn a_partition_in_the_middle() {
    cut("p", "partition");
}

#[test]
fn a_reset_in_the_middle() {
    cut("r", "reset");
}

#[test]
fn a_program_survives_a_partition() {
    let Some(hosts) = Hosts::up("s") else { return };
    let bench = Bench::new(Who::Me);
    let server = hosts.server(&bench);
    let mut run = program(&hosts, &bench, &server, &[]);
    hosts.order(&["partition"]);
    run.signal(SIGTSTP);
    run.check();
    run.complaint("no checkpoint: cannot reach the checkpoint server");
    run.check();
    hosts.order(&["heal"]);
    run.signal(SIGTSTP);
    until("the checkpoint", || server.file("x").exists().then_some(()));
    run.check();
    hosts.order(&["partition"]);
    bench.must(&["-p", &run.pid_text(), "--fallback", &bench.name("local.ckpt")]);
    run.signal(SIGTSTP);
    run.complaint("local.ckpt instead");
    run.check();
    run.go();
    let mut run = bench.run(bench.path("local.ckpt"), &[]);
    run.check();
    run.go();
    hosts.order(&["heal"]);
    server.stop();
}

/// A program on A, an sshd on B, and what moves the first there; it stops at this step, if one is named.
fn moving(hosts: &Hosts, bench: &Bench, step: Option<&str>) -> (Run, Run, Run) {
    let at = "10.78.0.2:2222".parse().expect("an address");
    let (sshd, rsh) = ssh::start(bench, at, |words| hosts.run(bench, "B", words));
    let subject = bench.subject("memory", Build::Pie);
    let mut run = hosts.run(bench, "A", &[subject.to_str().expect("utf-8")]);
    run.expect("ready");
    run.check();
    let mut order = hosts.command(bench, "A");
    order.arg(bench.ckpt()).args(["move", "--rsh", &rsh, &run.pid_text(), "10.78.0.2"]);
    if let Some(step) = step {
        order.env("CKPT_FAULT", format!("+{step}"));
    }
    (run, Run::start(order), sshd)
}

#[test]
fn a_program_moves_to_the_other_host() {
    let Some(hosts) = Hosts::up("m") else { return };
    let bench = Bench::new(Who::Me);
    let network = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let (mut run, mover, sshd) = moving(&hosts, &bench, None);
    let here = network(run.pid()).expect("it lives");
    mover.complaint("has moved to 10.78.0.2");
    run.check();
    let there = called(&bench, "memory.pie").into_iter().filter_map(network).find(|it| *it != here);
    assert_eq!(there, network(sshd.pid()), "the network of the moved program");
    run.say("go");
    mover.ends_well();
    run.ends_well();
}

#[test]
fn a_program_stays_when_the_network_is_cut_in_a_round() {
    let Some(hosts) = Hosts::up("c") else { return };
    let bench = Bench::new(Who::Me);
    let (mut run, mover, sshd) = moving(&hosts, &bench, Some("rounded"));
    await_stop(mover.pid());
    hosts.order(&["partition"]);
    resume(mover.pid());
    let ended = mover.end();
    assert_eq!(ended.code(), Some(125), "{ended:?}");
    assert!(ended.stderr.contains("stays where it was"), "{ended:?}");
    run.check();
    // The other end notices as well, and leaves nothing.
    hosts.order(&["heal"]);
    bench.alone(&[run.pid(), sshd.pid()]);
    run.check();
    run.go();
}
