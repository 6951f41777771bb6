// SPDX-License-Identifier: LGPL-2.1-only
//! Processes that have a descriptor table, or a working directory and umask, together.

mod harness;

use harness::{Bench, Build, Way, Who, survive};

#[test]
fn shared_tables_survive() {
    survive(Who::Me, Way::Save, "tables", Build::Pie, &[]);
    survive(Who::Nobody, Way::SaveStop, "tables", Build::Musl, &[]);
    survive(Who::Nobody, Way::LaunchContinue, "tables", Build::Static, &[]);
}

/// A process can be made again with what its parent has, with nobody else's; that is said, and nothing has happened.
#[test]
fn what_others_share_is_an_obstacle() {
    const ORPHAN: &str = r#"
import ctypes, os, signal, sys, time
def share():
    return ctypes.CDLL(None).syscall(56, 0x400 | signal.SIGCHLD, 0, 0, 0, 0)
if not os.fork():
    if share(): signal.pause()
    maker = os.getpid()
    if share(): os._exit(0)
    while os.getppid() == maker: time.sleep(0.01)
    print("ready", flush=True)
    signal.pause()
sys.stdin.readline()
os.killpg(0, signal.SIGKILL)
"#;
    let bench = Bench::new(Who::Nobody);
    let mut run = bench.run("setsid", &["/usr/bin/python3", "-c", ORPHAN]);
    run.expect("ready");
    let refused = bench.order(&["save", &run.pid_text(), "-n", &bench.name("x.ckpt")]);
    assert!(refused.stderr.contains("which is not its parent"), "{refused:?}");
    run.say("go");
    run.end();
}
