// SPDX-License-Identifier: LGPL-2.1-only
//! Monitors, and checkpoints that come by themselves.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Bench, until};

/// The living monitors of a process.
fn monitors(pid: u32) -> Vec<i32> {
    let wanted = format!("ckpt\0__monitor\0{pid}\0");
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    // A zombie has no command line.
    pids.filter(|pid| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted.as_bytes())
    })
    .collect()
}

/// The one monitor of a process, when it is there.
#[track_caller]
pub(crate) fn one_monitor(pid: u32) -> i32 {
    until("one monitor", || match monitors(pid)[..] {
        [one] => Some(one),
        _ => None,
    })
}

/// Waits until a process has no monitor.
#[track_caller]
pub(crate) fn no_monitor(pid: u32) {
    until("the monitor's end", || monitors(pid).is_empty().then_some(()));
}

/// Waits until a file is there that was not there before or is another one now.
#[track_caller]
pub(crate) fn renewed(path: &Path, before: Option<u64>) -> u64 {
    until(&format!("a new {}", path.display()), || {
        inode(path).filter(|inode| Some(*inode) != before)
    })
}

/// What a file is recognised by: another one of the same name differs in it.
pub(crate) fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|m| m.ino() ^ m.mtime_nsec().cast_unsigned() << 20)
}

/// The numbers of the checkpoints x.N.ckpt.
pub(crate) fn numbers(bench: &Bench) -> Vec<u64> {
    let names = bench.names("x.");
    let number = |name: &String| name.split('.').nth(1)?.parse().ok();
    let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}
