//! `ckpt check`: what this machine can do, whether checkpoints can restart here.

pub mod checkpoint;
pub mod machine;

use super::{facts, fetch};
use crate::error::Result;
use crate::restart::MapPath;
use crate::settings::server::Transfer;
use std::ffi::OsString;

/// Looks at the machine, or at what `words` name.
pub fn run(words: &[OsString], map_path: &MapPath, json: bool, transfer: &Transfer) -> Result<u8> {
    if words.is_empty() {
        return machine::check(json);
    }
    facts::each(words, json, |word| checkpoint::check(&fetch::image(word, transfer)?, map_path))
}
