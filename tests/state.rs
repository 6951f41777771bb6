// SPDX-License-Identifier: LGPL-2.1-only
//! What the restored program finds: each subject looks at its own state, in every way of saving, as
//! the tests' user and without privileges.

mod harness;

use harness::{Bench, Build, Way, Who, survive};

macro_rules! survives {
    ($($test:ident: $subject:literal $build:ident $args:expr;)*) => {$(
        mod $test {
            use super::*;
            survives!(@ $subject $build $args;
                launch: Launch Me; launch_unprivileged: Launch Nobody;
                launch_continue: LaunchContinue Me;
                launch_continue_unprivileged: LaunchContinue Nobody;
                attach: Attach Me; attach_unprivileged: Attach Nobody;
                save: Save Me; save_unprivileged: Save Nobody;
                save_stop: SaveStop Me; save_stop_unprivileged: SaveStop Nobody;);
        }
    )*};
    (@ $subject:literal $build:ident $args:expr; $($name:ident: $way:ident $who:ident;)*) => {$(
        #[test]
        fn $name() {
            survive(Who::$who, Way::$way, $subject, Build::$build, &$args);
        }
    )*};
}

survives! {
    memory: "memory" Pie [];
    shared_memory: "shared" Pie [];
    registers: "fpu" Pie [];
    registers_of_a_spinner: "fpu" Pie ["spin"];
    signals: "signals" Pie [];
    files: "files" Pie [];
    process: "process" Pie [];
    thread: "thread" Pie [];
    vdso: "vdso" Pie [];
    observer: "observer" Pie [];
    counter: "counter" Pie ["counted"];
}

/// The builds that differ in what loads and starts the program.
#[track_caller]
fn in_build(subject: &str, build: Build) {
    survive(Who::Me, Way::Launch, subject, build, &[]);
    survive(Who::Nobody, Way::SaveStop, subject, build, &[]);
}

macro_rules! in_every_build {
    ($($subject:ident)*) => {$(
        mod $subject {
            use super::super::*;

            #[test]
            fn no_pie() {
                in_build(stringify!($subject), Build::NoPie);
            }

            #[test]
            fn static_glibc() {
                in_build(stringify!($subject), Build::Static);
            }

            #[test]
            fn static_musl() {
                in_build(stringify!($subject), Build::Musl);
            }
        }
    )*};
}

mod builds {
    in_every_build! { memory signals files process thread vdso observer }
}

/// Without ckpt every subject is content: what fails above is not the subject's own doing.
#[test]
fn subjects_work_by_themselves() {
    let plain =
        ["memory", "shared", "fpu", "signals", "files", "process", "thread", "vdso", "observer"];
    let bench = Bench::new(Who::Nobody);
    for build in Build::ALL {
        for subject in plain {
            let mut run = bench.run(bench.subject(subject, build), &[]);
            run.expect("ready");
            run.check();
            run.go();
        }
    }
}
