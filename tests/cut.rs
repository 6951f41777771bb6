// SPDX-License-Identifier: LGPL-2.1-only
//! Checkpoints that were cut off, and ones that are given to ckpt as programs.

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal::SIGTSTP;

use harness::{Bench, Build, Who};

/// A checkpoint x.ckpt; its length.
fn saved(bench: &Bench) -> usize {
    let mut run = bench.launch(&["-n", "x.ckpt"], bench.subject("memory", Build::Pie), &[]);
    run.expect("ready");
    run.signal(SIGTSTP);
    run.ends_well();
    fs::metadata(bench.path("x.ckpt")).expect("the checkpoint").len() as usize
}

/// The end of the program headers: what is shorter the kernel does not execute.
fn refused_below(bytes: &[u8]) -> usize {
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]) as usize;
    word(32) + word(54) * word(56)
}

#[test]
fn a_cut_off_checkpoint_says_so_wherever_it_was_cut() {
    let bench = Bench::new(Who::Nobody);
    let len = saved(&bench);
    let bytes = fs::read(bench.path("x.ckpt")).expect("the checkpoint");
    let (cut, first) = (bench.path("cut.ckpt"), refused_below(&bytes));
    assert!(first < 4096, "{first}");
    let pages = (1..len / 4096).step_by(37).flat_map(|page| [page * 4096, page * 4096 - 1]);
    let ends = [first, first + 1, 4095, 4096, 4097, len - 4096, len - 65, len - 64, len - 1];
    for to in ends.into_iter().chain(pages) {
        put(&cut, &bytes[..to]);
        let ended = bench.run(&cut, &[]).end();
        assert_eq!(ended.code(), Some(125), "cut to {to}: {ended:?}");
        let sentence = "cut.ckpt was cut off: its end is missing";
        assert!(ended.stderr.contains(sentence), "cut to {to}: {ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "cut to {to}: {ended:?}");
    }
    for to in [64, 200, first - 1] {
        put(&cut, &bytes[..to]);
        let mut command = bench.command(&cut);
        let error = command.status().expect_err("the kernel refuses it");
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENOEXEC), "cut to {to}");
    }
    // Whoever names it gets no control characters of it.
    put(&cut, &bytes[..len / 2]);
    let script = "exec -a $'a\\033[2Jb' ./cut.ckpt";
    let ended = bench.run("bash", &["-c", script]).end();
    assert!(ended.stderr.starts_with("ckpt: a?[2Jb was cut off"), "{ended:?}");
}

fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
}

#[test]
fn a_checkpoint_is_no_program() {
    let bench = Bench::new(Who::Nobody);
    let len = saved(&bench);
    let bytes = fs::read(bench.path("x.ckpt")).expect("the checkpoint");
    put(&bench.path("half.ckpt"), &bytes[..len / 2]);
    for line in [&[][..], &["--resume", "-n", "y.ckpt"], &["-z", "10m"]] {
        for name in ["./x.ckpt", "./half.ckpt"] {
            let ended = bench.launch(line, name, &["argument"]).end();
            assert_eq!(ended.code(), Some(126), "{ended:?}");
            let way_out = format!("run it directly: {name} [OPTIONS...]");
            assert!(ended.stderr.contains(&way_out), "{ended:?}");
            assert!(ended.stderr.contains("is a checkpoint"), "{ended:?}");
        }
    }
    let mut run = bench.run("./x.ckpt", &["-z", "0"]);
    run.check();
    run.go();
}
