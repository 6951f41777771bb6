// SPDX-License-Identifier: LGPL-2.1-only
//! libFuzzer's way to readers.rs.
#![no_main]

mod readers;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| readers::names(input));
