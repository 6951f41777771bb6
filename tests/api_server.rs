// SPDX-License-Identifier: LGPL-2.1-only
//! The C API and a checkpoint server: ckpt_ckpt(3) sends there, ckpt_restart(3) fetches from there.

mod desk;
mod harness;
mod serving;

use std::path::Path;

use desk::{Desk, Libc, With};
use harness::{Run, Who};
use serving::{Server, insecure, keyed};

fn saves_and_restarts(who: Who, libc: Libc, with_key: bool) {
    let desk = Desk::new(who);
    let bench = &desk.bench;
    let options = if with_key { keyed(bench) } else { insecure() };
    let server = Server::start(bench, &options);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/served.c");
    let program = desk.compile(&source, "served", libc, With::Linked);
    let name = server.name("a folder/x");
    let mut command = bench.command(program);
    command.arg(&name).env("CKPT_CONTINUE", "1");
    match with_key {
        true => command.env("CKPT_KEY", bench.path("key")),
        false => command.env("CKPT_INSECURE", "1"),
    };
    let mut run = Run::start(command);
    run.expect("saved");
    run.expect("restarted");
    run.ends_well();
    assert!(!bench.path("served.ckpt").exists(), "a file on the client");
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let mut again = bench.run(bench.ckpt(), &[&["restart"], &options[..], &[&name]].concat());
    again.expect("restarted");
    again.ends_well();
    // Without the server, nothing is lost but this.
    drop(server);
    let mut command = bench.command(bench.path("served"));
    command.arg(&name).env("CKPT_INSECURE", "1").env("CKPT_CONTINUE", "1");
    let failed = Run::start(command).end();
    assert_eq!(failed.code(), Some(4), "{failed:?}");
    assert!(failed.stderr.contains("127.0.0.1"), "{failed:?}");
}

#[test]
fn a_linked_program_saves_itself_to_a_server_and_restarts_from_there() {
    saves_and_restarts(Who::Me, Libc::Glibc, true);
    saves_and_restarts(Who::Nobody, Libc::Musl, true);
    saves_and_restarts(Who::Nobody, Libc::Glibc, false);
}
