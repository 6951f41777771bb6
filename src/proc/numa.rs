// SPDX-License-Identifier: LGPL-2.1-only
//! NUMA memory policies: /proc/PID/numa_maps (numa(7)).

use std::fs::File;
use std::io::{BufRead, BufReader};

use super::process::Process;

impl Process {
    /// The policies other than the default one that hold for memory of a process, each once, as the kernel writes
    /// them ("bind:0"); none where the kernel has no NUMA or does not let us see.
    ///
    /// The kernel walks all page tables for it: nothing to be done while somebody waits.
    pub fn policies(&self) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        let Ok(file) = File::open(self.path("numa_maps")) else { return found };
        for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
            let policy = policy(&line);
            if policy != "default"
                && !policy.is_empty()
                && found.iter().all(|known| *known != policy)
            {
                found.push(policy.into_owned());
            }
        }
        found
    }
}

/// "7f0000000000 bind:0 anon=1 dirty=1 N0=1 kernelpagesize_kB=4"
fn policy(line: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(line.split(|b| *b == b' ').nth(1).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_the_second_word() {
        assert_eq!(policy(b"7f0000000000 bind:0 anon=1 dirty=1"), "bind:0");
        assert_eq!(policy(b"7f0000000000 default file=/a/b mapped=2"), "default");
        assert_eq!(policy(b""), "");
    }
}
