// SPDX-License-Identifier: LGPL-2.1-only
//! Conversations with the checkpoint server that a generator made up: well-formed frames with
//! mistakes in them. `CKPT_SOAK_SECONDS=600 cargo test --release --test fuzz` goes on for longer.

#[path = "../fuzz/conversation.rs"]
mod conversation;
#[path = "../fuzz/dice.rs"]
mod dice;
mod harness;

use ckpt::serve::protocol::{Checksum, Header, Kind, Mode, Preamble, Seal};
use conversation::House;
use dice::Dice;
use harness::rounds;

/// Conversations in a usual run.
const ROUNDS: usize = 3000;

fn name(dice: &mut Dice) -> Vec<u8> {
    let parts: [&[u8]; 12] = [
        b"a",
        b"b",
        b"c",
        b"..",
        b".",
        b"",
        b"up",
        b".ckpt-serve",
        b"\xc3\xa9",
        b"\xff",
        b"\0",
        b"0",
    ];
    let mut name = Vec::new();
    let common = dice.below(4) != 0;
    for at in 0..=dice.below(4) {
        if at > 0 {
            name.push(b'/');
        }
        let which = dice.below(if common { 3 } else { parts.len() as u64 });
        name.extend(parts[which as usize]);
    }
    if dice.one_in(50) {
        name.resize(dice.below(5000) as usize, b'x');
    }
    name
}

fn frame(out: &mut Vec<u8>, kind: Kind, offset: u64, payload: &[u8]) {
    let len = payload.len() as u32;
    out.extend(Header { kind, len, offset }.bytes());
    out.extend(payload);
}

fn conversation(dice: &mut Dice) -> Vec<u8> {
    let mode = if dice.one_in(8) { Mode::ChaCha } else { Mode::Plain };
    let mut said = Preamble { version: 1, mode, welcome: 0 }.bytes().to_vec();
    let kinds = [Kind::Put, Kind::Put, Kind::Put, Kind::Get, Kind::List, Kind::Remove, Kind::Data];
    let kind = kinds[dice.below(kinds.len() as u64) as usize];
    let name = name(dice);
    frame(&mut said, kind, 0, &name);
    if kind == Kind::Put {
        upload(dice, &mut said);
    }
    let mistakes = if dice.one_in(2) { 0 } else { dice.below(4) };
    dice.spoil(&mut said, mistakes);
    said
}

fn upload(dice: &mut Dice, said: &mut Vec<u8>) {
    let (mut sum, mut end) = (Checksum::default(), 0);
    for _ in 0..dice.below(6) {
        let most = if dice.one_in(10) { 250_000 } else { 3000 };
        let piece = dice.bytes(most);
        let far = [1 << 20, 1 << 63, u64::MAX];
        let offset =
            if dice.one_in(20) { far[dice.below(3) as usize] } else { dice.below(100_000) };
        sum.add(offset, &piece);
        end = end.max(offset.saturating_add(piece.len() as u64));
        frame(said, Kind::Data, offset, &piece);
    }
    let len = if dice.one_in(10) { dice.next() } else { end };
    let seal = Seal { len, sum: sum.sum() };
    frame(said, Kind::Seal, 0, &seal.bytes());
}

#[test]
fn made_up_conversations() {
    let house = House::new();
    let (mut number, mut most) = (0, 0);
    for round in rounds(ROUNDS) {
        let mut dice = Dice(round as u64);
        let said = conversation(&mut dice);
        house.answer(&said);
        if round % 100 == 0 {
            most = most.max(house.stored().1);
        }
        number += 1;
    }
    // The generator is good enough if uploads get through.
    assert!(most > 3, "only {most} images were ever stored");
    println!("{number} conversations, at most {most} images");
}
