// SPDX-License-Identifier: LGPL-2.1-only
//! Periodic checkpoints on a server that comes and goes, and which of them stay.

mod harness;
mod serving;

use std::fs;

use harness::{Bench, Build, Who, until};
use serving::{Server, insecure};

#[test]
fn a_server_that_was_away_gets_the_next_checkpoint() {
    for who in [Who::Me, Who::Nobody] {
        let bench = Bench::new(who);
        let mut server = Server::start(&bench, &insecure());
        let name = server.name("job/x");
        let options = ["--insecure", "-z", "50", "-n", &name];
        let mut run = bench.launch(&options, bench.subject("memory", Build::Pie), &[]);
        run.expect("ready");
        until("a checkpoint on the server", || server.file("job/x").exists().then_some(()));
        run.check();
        server.run.signal(nix::sys::signal::Signal::SIGKILL);
        until("the server's end", || (!server.run.lives()).then_some(()));
        run.complaint("cannot reach the checkpoint server");
        run.check();
        fs::remove_file(server.file("job/x")).expect("the first checkpoint");
        let server = server.again(&bench);
        until("a checkpoint on the next server", || server.file("job/x").exists().then_some(()));
        run.check();
        run.go();
        let words = ["restart", "--insecure", &name, "-z", "0"];
        let mut restarted = bench.run(bench.ckpt(), &words);
        restarted.check();
        restarted.go();
        server.stop();
    }
}

#[test]
fn only_the_last_ones_are_kept() {
    let bench = Bench::new(Who::Nobody);
    let server = Server::start(&bench, &insecure());
    let name = server.name("job/x.%n");
    let line = ["-c", "--insecure", "--keep", "2", "-n", &name];
    let mut run = bench.launch(&line, bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    // What another run left counts for nothing, and stays.
    fs::create_dir_all(server.file("job")).expect("a folder");
    bench.give(&server.file("job"));
    for other in ["x.900", "y.1"] {
        fs::write(server.file("job").join(other), "another's").expect("a file");
    }
    for _ in 0..4 {
        bench.must(&["save", &run.pid_text()]);
    }
    let entries = fs::read_dir(server.file("job")).expect("the folder");
    let mut names: Vec<_> =
        entries.map(|e| e.expect("an entry").file_name().into_string().expect("utf-8")).collect();
    names.sort();
    assert_eq!(names, ["x.3", "x.4", "x.900", "y.1"]);
    run.go();
    server.stop();
}
