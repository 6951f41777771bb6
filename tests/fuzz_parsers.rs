// SPDX-License-Identifier: LGPL-2.1-only
//! The seeds of `fuzz/corpus` with mistakes in them, read by what reads images, /proc and names.
//! `CKPT_SOAK_SECONDS=600 cargo test --release --test fuzz_parsers` goes on for longer.

#[path = "../fuzz/dice.rs"]
mod dice;
mod harness;
#[path = "../fuzz/readers.rs"]
mod readers;

use std::fs;
use std::path::Path;

use dice::Dice;
use harness::rounds;

/// Inputs in a usual run.
const ROUNDS: usize = 500;

fn try_all(target: &str, read: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&corpus).expect("a corpus").map(|entry| entry.expect("an entry"));
    let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).expect("a seed")).collect();
    assert!(!seeds.is_empty(), "no seeds in {}", corpus.display());
    seeds.iter().for_each(|seed| read(seed));
    let mut number = 0;
    for round in rounds(ROUNDS) {
        let mut dice = Dice(round as u64);
        let mut input = seeds[dice.below(seeds.len() as u64) as usize].clone();
        let mistakes = 1 + dice.below(8);
        dice.spoil(&mut input, mistakes);
        read(&input);
        number += 1;
    }
    println!("{number} inputs from {} seeds", seeds.len());
}

#[test]
fn images() {
    try_all("image", readers::image);
}

#[test]
fn files_of_proc() {
    try_all("proc", readers::proc);
}

#[test]
fn names_of_checkpoints() {
    try_all("names", readers::names);
}
