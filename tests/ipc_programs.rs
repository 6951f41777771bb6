// SPDX-License-Identifier: LGPL-2.1-only
//! Jobs whose processes talk by everything that there is: OpenMPI on one node, a database with its clients.

mod harness;

use harness::{Bench, Run, Who};
use std::process::Command;

/// Runs four ranks; what they say is that of an uninterrupted run.
fn mpi(who: Who, transport: &str) {
    let bench = Bench::new(who);
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/ring.c");
    let made = Command::new("mpicc").args(["-O1", "-o", &bench.name("ring"), source]).output();
    let made = made.expect("mpicc (scripts/install test)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let ring = bench.name("ring");
    // Ports that no run beside this one takes while nobody has them, and addresses of which nothing stays (TIME_WAIT) that a
    // restart may not end: two ranks that connect to each other close one of the connections, both at once.
    let port = (10_000 + std::process::id() % 500 * 32).to_string();
    let words = [("_min", &port[..]), ("_range", "32")];
    let ports = words.map(|(word, value)| ["v4", "v6"].map(|ip| (word, ip, value)));
    let ports = ports.as_flattened().iter();
    let ports = ports.map(|(word, ip, value)| (format!("btl_tcp_port{word}_{ip}"), *value));
    let ports: Vec<_> = ports.collect();
    let mut args = vec!["--oversubscribe", "--mca", "btl", transport];
    args.extend(["--mca", "btl_tcp_if_include", "lo"]);
    ports.iter().for_each(|(name, value)| args.extend(["--mca", name, value]));
    args.extend(["-np", "4", &ring, "60"]);
    if !bench.drops_privileges() {
        args.insert(0, "--allow-run-as-root");
    }
    let result = |run: &mut Run| run.line();
    let mut run = bench.launch(&["-n", "x.ckpt"], "mpirun", &args);
    for gate in ["20", "40", "60"] {
        run.expect(&format!("at {gate}"));
        bench.must(&["save", "--stop", &run.pid_text()]);
        run.ends_well();
        run = bench.run(bench.path("x.ckpt"), &[]);
        bench.file(&format!("gate-{gate}"), "");
    }
    let saved = result(&mut run);
    run.ends_well();
    let mut plain = bench.run("mpirun", &args);
    ["at 20", "at 40", "at 60"].iter().for_each(|line| plain.expect(line));
    assert_eq!(result(&mut plain), saved);
    plain.ends_well();
}

#[test]
fn ranks_go_on_by_shared_memory() {
    mpi(Who::Me, "vader,self");
}

#[test]
fn ranks_go_on_by_shared_memory_unprivileged() {
    mpi(Who::Nobody, "vader,self");
}

#[test]
fn ranks_go_on_by_tcp_unprivileged() {
    mpi(Who::Nobody, "tcp,self");
}

/// A server with its clients in one script, saved while they are at work: no transaction is lost, none is done twice.
#[test]
fn a_database_and_its_clients_go_on() {
    const SCRIPT: &str = r#"
        PATH=$(echo /usr/lib/postgresql/*/bin):$PATH; here=$PWD; export PGHOST=$here PGDATABASE=postgres
        initdb -D data -U "$(id -un)" --no-sync -A trust > initdb.log || exit 1
        postgres -D data -k "$here" -c listen_addresses= -c fsync=off > server.log 2>&1 < /dev/null & server=$!
        until pg_isready -q; do sleep 0.05; done
        pgbench -q -i -s 1 2> pgbench.log
        echo ready
        pgbench -n -c 2 -R 200 -t 400 > pgbench.out 2> pgbench.err || cat pgbench.err
        psql -At -c "select count(*), sum(delta) = (select sum(abalance) from pgbench_accounts) from pgbench_history"
        kill -INT $server; wait $server; echo "server $?"
    "#;
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.launch(&["-n", "x.ckpt"], "/bin/bash", &["-c", SCRIPT]);
    run.expect("ready");
    let lock = std::fs::read_to_string(bench.path("data/postmaster.pid")).expect("its lock");
    for _ in 0..3 {
        bench.must(&["save", "--stop", &run.pid_text()]);
        run.ends_well();
        run = bench.run(bench.path("x.ckpt"), &[]);
    }
    run.expect("800|t");
    run.expect("server 0");
    run.ends_well();
    // The segment of its first life stays in the kernel, as of any that is killed.
    let segment = lock.lines().nth(6).and_then(|line| line.split_whitespace().last());
    let removed = Command::new("ipcrm").args(["-m", segment.expect("a segment")]).output();
    assert!(removed.expect("ipcrm").status.success());
}
