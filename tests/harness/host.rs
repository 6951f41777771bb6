// SPDX-License-Identifier: LGPL-2.1-only
//! Another host for `ckpt move`: this one, reached by a shell.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Bench, Build, Run, Who, await_stop, status_line, until};

/// A host that is reached by a shell, with a directory for what it gets.
pub(crate) struct Host {
    pub(crate) rsh: String,
    dir: PathBuf,
}

impl Host {
    pub(crate) fn new(bench: &Bench) -> Self {
        let rsh = bench.file("rsh", "#!/bin/sh\nshift\nexec sh -c \"$*\"\n");
        fs::set_permissions(&rsh, PermissionsExt::from_mode(0o755)).expect("chmod");
        Self { rsh: bench.name("rsh"), dir: bench.subdirectory("there") }
    }

    pub(crate) fn order(&self, bench: &Bench, pid: u32) -> Command {
        let mut command = bench.command(bench.ckpt());
        command.args(["move", "--rsh", &self.rsh, &pid.to_string(), "there"]);
        command.env("TMPDIR", &self.dir);
        command
    }

    pub(crate) fn moves(&self, bench: &Bench, pid: u32) -> Run {
        let mut mover = Run::start(self.order(bench, pid));
        until("the program to move", || {
            assert!(mover.lives(), "{}", mover.fate());
            mover.stderr().contains("has moved to there").then_some(())
        });
        mover
    }

    /// Moves it with a mover or a receiver that stops at a step.
    pub(crate) fn stops(&self, bench: &Bench, pid: u32, step: &str) -> Run {
        let mut order = self.order(bench, pid);
        order.env("CKPT_FAULT", format!("+{step}"));
        Run::start(order)
    }

    /// What has ckpt there.
    pub(crate) fn receiver(&self) -> Option<u32> {
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let dir = self.dir.to_string_lossy();
        pids.find(|pid| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with(&*dir) && line.contains("__receive")
        })
    }

    /// The images there.
    pub(crate) fn images(&self) -> Vec<PathBuf> {
        let list = |dir: &Path| -> Vec<PathBuf> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect()
        };
        let all = list(&self.dir).into_iter().flat_map(|dir| list(&dir));
        all.filter(|path| path.to_string_lossy().contains(".ckpt")).collect()
    }
}

/// Moves a program whose mappings change while the mover stands at a step: they are there as they are at the end.
pub(crate) fn changes_meanwhile(step: &str, seed: &str) {
    let bench = Bench::new(Who::Nobody);
    let host = Host::new(&bench);
    let mut run = bench.run(bench.subject("bounds", Build::Pie), &[seed]);
    run.expect("ready");
    let mover = host.stops(&bench, run.pid(), step);
    await_stop(mover.pid());
    run.check();
    run.check();
    resume(mover.pid());
    mover.complaint("has moved to there");
    run.check();
    run.say("go");
    mover.ends_well();
    run.ends_well();
}

/// Processes of this name that work in the bench.
pub(crate) fn called(bench: &Bench, name: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let is_here = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|at| at == bench.dir);
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        is_here && comm.trim() == name
    })
    .collect()
}

pub(crate) fn resume(pid: u32) {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGCONT).expect("it is there");
}
