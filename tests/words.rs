//! What a new user meets: words that are nearly right, and what ckpt says of them.

mod harness;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use harness::{Bench, Who};

#[test]
fn a_word_that_is_nearly_a_subcommand() {
    let bench = Bench::new(Who::Nobody);
    let ended = bench.order(&["sav", "7"]);
    assert_eq!(ended.code(), Some(127), "{ended:?}");
    assert!(ended.stderr.contains("cannot execute sav"), "{ended:?}");
    assert!(ended.stderr.contains("did you mean 'ckpt save'?"), "{ended:?}");
    let ended = bench.order(&["frobnicate"]);
    assert_eq!(ended.code(), Some(127), "{ended:?}");
    assert!(!ended.stderr.contains("did you mean"), "{ended:?}");
}

#[test]
fn a_program_of_this_directory_and_a_script_without_interpreter() {
    let bench = Bench::new(Who::Nobody);
    let script = bench.file("foo", "#! /no/such/python -u\n");
    fs::set_permissions(script, PermissionsExt::from_mode(0o755)).expect("chmod");
    let ended = bench.order(&["foo"]);
    assert_eq!(ended.code(), Some(127), "{ended:?}");
    assert!(ended.stderr.contains("'ckpt ./foo'"), "{ended:?}");
    let ended = bench.order(&["./foo"]);
    assert_eq!(ended.code(), Some(127), "{ended:?}");
    assert!(ended.stderr.contains("interpreter /no/such/python"), "{ended:?}");
}
