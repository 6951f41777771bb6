// SPDX-License-Identifier: LGPL-2.1-only
//! `ckpt check`: what this machine can do, whether checkpoints can restart here, how processes are saved.

pub(super) mod checkpoint;
pub(super) mod machine;
pub(super) mod process;
mod seen;

use super::{facts, fetch};
use crate::error::Result;
use crate::proc::Process;
use crate::restart::MapPath;
use crate::settings::parse_pid;
use crate::settings::server::Transfer;
use std::ffi::OsString;
use std::path::Path;

/// The processes that words name.
pub(super) fn processes(words: &[OsString]) -> Vec<Process> {
    words.iter().filter_map(|word| parse_pid(word).and_then(Process::open).ok()).collect()
}

/// Looks at the machine, or at what `words` name: a number is a process if it is no file.
#[inline(never)]
pub(super) fn run(
    words: &[OsString],
    map_path: &MapPath,
    json: bool,
    transfer: &Transfer,
) -> Result<u8> {
    if words.is_empty() {
        return machine::check(json);
    }
    // Where a restarted job has namespaces of its own, the one that looks goes there for good.
    let alone = words.len() == 1;
    facts::each(words, json, |word| match parse_pid(word) {
        Ok(pid) if !Path::new(word).exists() => process::check(pid, alone),
        _ => checkpoint::check(&fetch::image(word, transfer)?, map_path),
    })
}
