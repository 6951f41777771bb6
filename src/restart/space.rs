// SPDX-License-Identifier: LGPL-2.1-only
//! Addresses that are taken: by the stub, by the program, or by what the restart itself maps.

use super::phase1_check::Saved;
use crate::error::{Error, Result};
use crate::image::PAGE;
use crate::order;
use crate::proc::Process;

/// Ranges that are in use.
#[derive(Clone, Default)]
pub(crate) struct Space {
    taken: Vec<(u64, u64)>,
}

/// Where free ranges are looked for, far from where kernels put anything by themselves.
const SEARCH: (u64, u64) = (0x20_0000_0000, 0x4000_0000_0000);

/// Free ranges are found at multiples of this plus the wanted remainder, so that page tables can be
/// moved whole.
pub(crate) const HUGE: u64 = 2 << 20;

impl Space {
    /// What is taken in this process, and in each of those that are to be.
    ///
    /// # Errors
    /// /proc is not there.
    pub(crate) fn of_all(all: &[Saved<'_>]) -> Result<Self> {
        let mut space = Self::default();
        let own = Process::own()?.maps()?;
        own.iter().for_each(|vma| space.take(vma.start, vma.end));
        for saved in all {
            saved.vmas.iter().for_each(|vma| space.take(vma.start, vma.end));
            let region = saved.process.region;
            space.take(region, region + saved.process.region_len);
        }
        Ok(space)
    }

    /// Marks a range as taken.
    pub(crate) fn take(&mut self, start: u64, end: u64) {
        self.taken.push((start, end));
    }

    /// Marks a range as taken but for some parts of it.
    pub(crate) fn take_but(&mut self, start: u64, end: u64, parts: &[(u64, u64)]) {
        let mut inside: Vec<_> =
            parts.iter().copied().filter(|(s, e)| *s < end && start < *e).collect();
        order::numbers(&mut inside);
        let mut at = start;
        for (from, to) in inside {
            if at < from {
                self.take(at, from);
            }
            at = at.max(to);
        }
        if at < end {
            self.take(at, end);
        }
    }

    /// Whether nothing lies in a range.
    pub(crate) fn is_free(&self, start: u64, end: u64) -> bool {
        !self.taken.iter().any(|(s, e)| *s < end && start < *e)
    }

    /// Takes a free range of `len` bytes whose start has the same remainder by [`HUGE`] as `like`.
    pub(crate) fn find(&mut self, len: u64, like: u64) -> Result<u64> {
        order::numbers(&mut self.taken);
        let fit = |from: u64| (from - like % HUGE).next_multiple_of(HUGE) + like % HUGE;
        let mut at = fit(SEARCH.0);
        for (start, end) in &self.taken {
            if *start < at + len + PAGE && at < *end + PAGE {
                at = fit(*end + HUGE);
            }
        }
        if at + len > SEARCH.1 {
            return Err(Error::new(format!("no free addresses for {len} bytes")));
        }
        self.take(at, at + len);
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_free_and_congruent() {
        let mut space = Space::default();
        space.take(SEARCH.0, SEARCH.0 + 10 * HUGE);
        let before = space.clone();
        let at = space.find(5 * HUGE, 0x5555_0000_3000).unwrap();
        assert_eq!(at % HUGE, 0x5555_0000_3000 % HUGE);
        assert!(before.is_free(at, at + 5 * HUGE));
        assert!(!space.is_free(at, at + PAGE));
    }

    #[test]
    fn it_says_when_there_is_no_room() {
        let mut space = Space::default();
        space.take(SEARCH.0, SEARCH.1);
        assert!(space.find(PAGE, 0).is_err());
    }
}
