// SPDX-License-Identifier: LGPL-2.1-only
//! Files of /proc/PID that a process may write to, each with one number.

use super::process::Process;
use super::text::{decimal, hex};

impl Process {
    /// How much it is preferred or spared when memory runs out (proc_pid_oom_score_adj(5)), from -1000 to 1000; None
    /// if it cannot be read.
    pub fn oom_score(&self) -> Option<i32> {
        decimal(self.file("oom_score_adj").ok()?.trim_ascii()).ok()
    }

    /// The control groups that it is in, as /proc tells (cgroups(7)); None if they cannot be read.
    pub(crate) fn control_groups(&self) -> Option<Vec<u8>> {
        self.file("cgroup").ok()
    }

    /// Has it end before all others when memory runs out, be it only that of its control group; whoever may not say that of
    /// it lets it be.
    pub(crate) fn ends_first(&self) {
        let _ = std::fs::write(self.path("oom_score_adj"), "1000");
    }

    /// One more than the user id of whom its session is (/proc/PID/loginuid); 0: none is set, or it cannot be read.
    pub(crate) fn login(&self) -> u32 {
        let text = self.file("loginuid").unwrap_or_default();
        decimal::<u32>(text.trim_ascii()).map_or(0, |login| login.wrapping_add(1))
    }

    /// Which mappings are in its core dumps (core(5)); None where the kernel writes none (CONFIG_ELF_CORE).
    pub fn coredump_filter(&self) -> Option<u32> {
        u32::try_from(hex(self.file("coredump_filter").ok()?.trim_ascii()).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_numbers() {
        let own = Process::own().unwrap();
        assert!(own.oom_score().is_some_and(|score| (-1000..=1000).contains(&score)));
        let told = std::fs::read_to_string("/proc/self/coredump_filter").ok();
        let told = told.map(|text| u32::from_str_radix(text.trim(), 16).unwrap());
        assert_eq!(own.coredump_filter(), told);
    }
}
