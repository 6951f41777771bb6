// SPDX-License-Identifier: LGPL-2.1-only
//! An sshd of the test's own, for `ckpt move`.

use std::fs;
use std::net::SocketAddr;

use nix::unistd::geteuid;

use super::{Bench, Run};

/// Both ends of a connection that is cut notice it after so many seconds without an answer, so many times.
const NOTICE: [u32; 2] = [2, 4];

/// Starts one at an address, and says how it is reached. `run` runs a line of words where it is to be.
pub(crate) fn start(
    bench: &Bench,
    at: SocketAddr,
    run: impl FnOnce(&[&str]) -> Run,
) -> (Run, String) {
    for key in ["key", "host"] {
        let args = ["-q", "-t", "ed25519", "-N", "", "-f", &bench.name(key)];
        bench.run("ssh-keygen", &args).ends_well();
    }
    let [seconds, times] = NOTICE;
    let lines = format!(
        "ListenAddress {at}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n\
         ClientAliveInterval {seconds}\nClientAliveCountMax {times}\n",
        bench.name("host"),
        bench.name("key.pub")
    );
    let file = bench.file("sshd", lines);
    if geteuid().is_root() {
        let _ = fs::create_dir("/run/sshd");
    }
    let file = file.to_str().expect("utf-8");
    let sshd = run(&["/usr/sbin/sshd", "-D", "-e", "-f", file]);
    sshd.complaint("Server listening");
    let quiet = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR";
    let notice = format!("-o ServerAliveInterval={seconds} -o ServerAliveCountMax={times}");
    (sshd, format!("ssh -F none -p {} -i {} {quiet} {notice}", at.port(), bench.name("key")))
}
