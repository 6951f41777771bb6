// SPDX-License-Identifier: LGPL-2.1-only
//! libFuzzer's way to the checkpoint server's parser.
#![no_main]

mod conversation;

use std::sync::LazyLock;

use conversation::House;
use libfuzzer_sys::fuzz_target;

static HOUSE: LazyLock<House> = LazyLock::new(House::new);

fuzz_target!(|input: &[u8]| HOUSE.answer(input));
