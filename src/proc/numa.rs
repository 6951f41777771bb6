// SPDX-License-Identifier: LGPL-2.1-only
//! NUMA memory policies: /proc/PID/numa_maps (numa(7)).

use std::fs::File;
use std::io::{BufRead, BufReader};

use super::process::Process;

/// Nodes, one bit each: as many as a kernel may know (CONFIG_NODES_SHIFT).
pub(crate) type Nodes = [u64; 16];

/// The policy of memory at an address: a mode of set_mempolicy(2) with its flags, and nodes; or what the kernel writes, where
/// that is none.
pub(crate) type Placed = (u64, Result<(u32, Nodes), String>);

impl Process {
    /// The policies that hold for memory of a process, its thread's among them, by address; none where the kernel has no
    /// NUMA or does not let us see.
    ///
    /// The kernel walks all page tables for it: nothing to be done while somebody waits.
    pub(crate) fn policies(&self) -> impl Iterator<Item = Placed> + use<> {
        let file = File::open(self.path("numa_maps")).ok();
        let lines = file.into_iter().flat_map(|file| BufReader::new(file).split(b'\n'));
        let lines = lines.map_while(Result::ok);
        lines.filter_map(|line| placed(&String::from_utf8_lossy(&line)))
    }
}

/// "7f0000000000 bind:0 anon=1 dirty=1 N0=1 kernelpagesize_kB=4"
fn placed(line: &str) -> Option<Placed> {
    let (address, rest) = line.split_once(' ')?;
    let end = rest.find(' ').unwrap_or(rest.len());
    let text = || rest[..end].to_owned();
    Some((u64::from_str_radix(address, 16).ok()?, policy(rest).ok_or_else(text)))
}

/// What the kernel writes of a policy (mm/mempolicy.c, mpol_to_str), at the beginning of a text. Nodes that count from
/// those that are allowed are shown as they come out.
fn policy(text: &str) -> Option<(u32, Nodes)> {
    const MODES: [(&str, u32); 7] = [
        ("default", 0),
        ("prefer (many)", 5),
        ("prefer", 1),
        ("bind", 2),
        ("interleave", 3),
        ("local", 4),
        ("weighted interleave", 6),
    ];
    const STATIC: u32 = 1 << 15;
    const BALANCING: u32 = 1 << 13;
    let (mut mode, rest) =
        MODES.iter().find_map(|(name, mode)| Some((*mode, text.strip_prefix(name)?)))?;
    let rest = rest.split(' ').next()?;
    let (flags, list) = rest.split_once(':').unwrap_or((rest, ""));
    for flag in flags.split(['=', '|']).filter(|flag| !flag.is_empty()) {
        mode |= match flag {
            "static" => STATIC,
            "balancing" => BALANCING,
            _ => return None,
        };
    }
    Some((mode, nodes(list)?))
}

/// The nodes whose memory this process may use; None where the kernel does not tell.
pub(crate) fn allowed() -> Option<Nodes> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    nodes(status.lines().find_map(|line| line.strip_prefix("Mems_allowed_list:"))?.trim())
}

/// A list of nodes, as "0-3,8".
fn nodes(list: &str) -> Option<Nodes> {
    let mut found = Nodes::default();
    for range in list.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        for node in first.parse::<usize>().ok()?..=last.parse().ok()? {
            *found.get_mut(node / 64)? |= 1 << (node % 64);
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words() {
        let found = |line| placed(line).map(|(at, found)| (at, found.map(|it| (it.0, it.1[0]))));
        let at = 0x7f00_0000_0000;
        let some = |mode, nodes| Some((at, Ok((mode, nodes))));
        assert_eq!(found("7f0000000000 bind:0 anon=1 dirty=1"), some(2, 1));
        assert_eq!(found("7f0000000000 default file=/a/b:c mapped=2"), some(0, 0));
        assert_eq!(found("7f0000000000 prefer (many):0-2,5 heap"), some(5, 0x27));
        assert_eq!(found("7f0000000000 prefer=static:1"), some(1 | 1 << 15, 2));
        assert_eq!(found("7f0000000000 weighted interleave:0-1"), some(6, 3));
        assert_eq!(found("7f0000000000 local"), some(4, 0));
        let relative = Some((at, Err("bind=relative:0".to_owned())));
        assert_eq!(found("7f0000000000 bind=relative:0 anon=1"), relative);
        assert_eq!((found(""), found("x bind:0"), nodes("1024")), (None, None, None));
    }
}
