// SPDX-License-Identifier: LGPL-2.1-only
//! Phase 1: stop every thread of every process of the checkpoint.

use super::Demand;
use crate::error::{Error, Kind, Result};
use crate::proc::{self, Process};
use crate::ptrace::freeze::Frozen;
use crate::ptrace::sandbox;
use std::time::{Duration, Instant};

/// How long the payload may take to allow us to trace it, after it has started us, and another
/// ckpt to have done with the process.
const PERMISSION: Duration = Duration::from_secs(2);

/// The processes of the checkpoint, the one that is asked for first.
pub fn processes(request: &Demand) -> Vec<i32> {
    vec![request.pid]
}

/// Freezes a process of the checkpoint.
pub fn freeze(request: &Demand, pid: i32) -> Result<Frozen> {
    check(pid)?;
    patiently(request.triggered && pid == request.pid, || Frozen::freeze(pid))
}

/// Tries again while another ckpt traces the process (the monitor's dumper does for some
/// milliseconds each period), and where `allowed_late`: under Yama the thread that started us names
/// us as tracer only once it knows our id.
pub fn patiently(allowed_late: bool, freeze: impl Fn() -> Result<Frozen>) -> Result<Frozen> {
    let deadline = Instant::now() + PERMISSION;
    let may_pass =
        |e: &Error| e.kind() == Kind::Busy || (allowed_late && e.kind() == Kind::NotPermitted);
    loop {
        match freeze() {
            Err(e) if Instant::now() < deadline && may_pass(&e) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

/// Refuses what must not even be touched.
pub fn check(pid: i32) -> Result<()> {
    if pid == std::process::id().cast_signed() {
        return Err(Error::new("ckpt cannot save itself"));
    }
    proc::of_this_namespace()?;
    let status = proc::status(pid, pid)?;
    if status.state == 'Z' && status.threads > 1 {
        let text =
            format!("process {pid} cannot be saved: its main thread has ended while others run");
        return Err(Error::new(text).of(Kind::Obstacles).hint("it goes on unharmed"));
    }
    sandbox::refuse(&Process::open(pid)?)
}
