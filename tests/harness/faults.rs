// SPDX-License-Identifier: LGPL-2.1-only
//! CKPT_FAULT: the steps at which `ckpt` can be made to kill itself, as the binary lists them.

use std::ffi::OsStr;
use std::process::Command;

use nix::sys::signal::Signal::SIGKILL;

use super::{Bench, Run, await_stop};

/// The steps of `who`: "dumper", "monitor", …
#[track_caller]
pub(crate) fn steps(bench: &Bench, who: &str) -> Vec<String> {
    let said = Run::start(armed(bench.command(bench.ckpt()), "?", &["--version"])).end().stderr;
    let list = said.split_once("one of: ").expect("a list of steps").1;
    let of = |part: &str| part.trim().strip_prefix(who)?.strip_prefix(": ").map(str::to_owned);
    let names = list.split(';').find_map(of);
    let names = names.unwrap_or_else(|| panic!("{who} has no steps: {said}"));
    names.split(", ").map(str::to_owned).collect()
}

/// The command with arguments, to be killed at a step.
pub(crate) fn armed(mut command: Command, step: &str, args: &[impl AsRef<OsStr>]) -> Command {
    command.args(args).env("CKPT_FAULT", step);
    command
}

/// `ckpt ARGS…`, which stands at a step until SIGCONT comes.
#[track_caller]
pub(crate) fn stands_at(bench: &Bench, step: &str, args: &[impl AsRef<OsStr>]) -> Run {
    let run = Run::start(armed(bench.command(bench.ckpt()), &format!("+{step}"), args));
    await_stop(run.pid());
    run
}

/// Runs `ckpt ARGS…` with a step to be killed at; whether it was. Else it must have ended well.
#[track_caller]
pub(crate) fn is_killed(bench: &Bench, step: &str, args: &[&str]) -> bool {
    let ended = Run::start(armed(bench.command(bench.ckpt()), step, args)).end();
    let killed = ended.signal() == Some(SIGKILL as i32);
    assert!(killed || ended.code() == Some(0), "{step}: {ended:?}");
    killed
}
