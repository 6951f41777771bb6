// SPDX-License-Identifier: LGPL-2.1-only
//! The ways in which a program comes under ckpt and is saved, and the round that every subject makes.

use std::path::Path;

use nix::sys::signal::Signal::SIGTSTP;

use super::{Bench, Build, Run, Who, until};

/// How a program comes under ckpt and how it is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// `ckpt PROGRAM`, then the signal.
    Launch,
    /// `ckpt -c PROGRAM`, then the signal: the program goes on.
    LaunchContinue,
    /// `ckpt -p PID`, then the signal.
    Attach,
    /// `ckpt save --stop PID`.
    SaveStop,
    /// `ckpt save PID`: the program goes on.
    Save,
}

impl Way {
    /// Whether the program goes on after the checkpoint.
    pub(crate) fn continues(self) -> bool {
        matches!(self, Self::LaunchContinue | Self::Save)
    }

    /// Starts the program in this way, to be saved as `image`.
    pub(crate) fn start(self, bench: &Bench, image: &str, program: &Path, args: &[&str]) -> Run {
        let image = bench.name(image);
        match self {
            Self::Launch => bench.launch(&["-n", &image], program, args),
            Self::LaunchContinue => bench.launch(&["-c", "-n", &image], program, args),
            Self::Attach | Self::SaveStop | Self::Save => bench.run(program, args),
        }
    }

    /// Saves a program that this way has started; gives it back if it goes on.
    #[track_caller]
    pub(crate) fn save(self, bench: &Bench, image: &str, run: Run) -> Option<Run> {
        let (pid, path, name) = (run.pid_text(), bench.path(image), bench.name(image));
        // What it has said itself may be the reason.
        let must = |args: &[&str]| {
            let ended = bench.order(args);
            assert_eq!(ended.code(), Some(0), "ckpt {args:?}: {ended:?}; it: {}", run.stderr());
        };
        match self {
            Self::Launch | Self::LaunchContinue => run.signal(SIGTSTP),
            Self::Attach => {
                must(&["-p", &pid, "-n", &name]);
                run.signal(SIGTSTP);
            }
            Self::SaveStop => must(&["save", &pid, "--stop", "-n", &name]),
            Self::Save => must(&["save", &pid, "-n", &name]),
        }
        if self.continues() {
            until(&format!("{image} ({})", run.stderr()), || path.exists().then_some(()));
            return Some(run);
        }
        run.ends_well();
        assert!(path.exists(), "{image} is missing");
        None
    }
}

impl Bench {
    /// Saves a program by `ckpt save --stop` as `image`, and restarts it.
    #[track_caller]
    pub(crate) fn reborn(&self, image: &str, run: Run) -> Run {
        Way::SaveStop.save(self, image, run);
        self.run(self.path(image), &[])
    }

    /// The rounds of a running subject: three times it is saved, ends, and is restarted with these options, and looks at its
    /// state.
    #[track_caller]
    pub(crate) fn three_generations(&self, mut run: Run, options: &[&str]) {
        for image in ["1.ckpt", "2.ckpt", "3.ckpt"] {
            Way::SaveStop.save(self, image, run);
            run = self.run(self.path(image), options);
            run.check();
        }
        run.go();
    }
}

/// The round of a subject: start, "ready", checkpoint, perhaps "ok" from the one that goes on;
/// restart, two checks, and a second generation in another way.
#[track_caller]
pub(crate) fn survive(who: Who, way: Way, name: &str, build: Build, args: &[&str]) {
    let bench = Bench::new(who);
    let mut run = way.start(&bench, "first.ckpt", &bench.subject(name, build), args);
    run.expect("ready");
    if let Some(mut original) = way.save(&bench, "first.ckpt", run) {
        original.check();
        original.go();
    }
    let mut second = bench.run(bench.path("first.ckpt"), &[]);
    second.check();
    second.check();
    let then = if way.continues() { Way::SaveStop } else { Way::Attach };
    then.save(&bench, "second.ckpt", second);
    let mut third = bench.run(bench.path("second.ckpt"), &[]);
    third.check();
    third.go();
}

/// Saves a running program again and again, and restarts the last `restarted` of the checkpoints.
#[track_caller]
pub(crate) fn saved_often(bench: &Bench, mut run: Run, saves: usize, restarted: usize) {
    let images: Vec<String> = (0..saves).map(|i| format!("{}.ckpt", i % restarted)).collect();
    for image in &images {
        bench.must(&["save", &run.pid_text(), "-n", &bench.name(image)]);
    }
    run.check();
    run.go();
    for image in &images[..restarted] {
        let mut again = bench.run(bench.path(image), &[]);
        again.check();
        again.go();
    }
}
