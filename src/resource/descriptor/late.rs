// SPDX-License-Identifier: LGPL-2.1-only
//! Descriptors that lead to processes of the checkpoint: each process opens its own, when all are there.

use super::open::{Origin, Restored};
use super::{kind, namespace, pidfd, proc_file};
use crate::error::Result;
use crate::proc::Pid;
use crate::resource::kinship::numbers;
use ckpt_abi::image::{DescriptorKind, Text};
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Opens all, in a process that was `saved` as another id than it may have; `text` gives the strings of the image.
///
/// # Errors
/// One is not there.
pub(crate) fn open_all(
    restored: &mut [Restored],
    saved: Pid,
    text: impl Fn(Text) -> OsString,
) -> Result<()> {
    let here = |value: u64| match Pid::of_word(value as u32) {
        pid if pid == saved => Pid::own(),
        pid => numbers::here(pid),
    };
    let mut gone: HashMap<u64, Vec<&mut OwnedFd>> = HashMap::new();
    for Restored { record, origin } in restored {
        let Origin::Own(file) = origin else { continue };
        let name = || text(record.path);
        match kind(record) {
            DescriptorKind::Process if record.value == pidfd::GONE => {
                gone.entry(record.inode).or_default().push(file);
            }
            DescriptorKind::Process => *file = pidfd::late(here(record.value), record.flags)?,
            DescriptorKind::Proc => {
                *file = proc_file::late(record, here(record.value), Path::new(&name()))?;
            }
            DescriptorKind::Namespace => *file = namespace::late(record, Path::new(&name()))?,
            _ => {}
        }
    }
    gone.into_values().try_for_each(pidfd::open_gone)
}
