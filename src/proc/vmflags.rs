// SPDX-License-Identifier: LGPL-2.1-only
//! The flags of a VMA as /proc/PID/smaps spells them.

use std::fmt;
use std::sync::{Mutex, PoisonError};

/// One bit a pair of small letters, and one for every other spelling.
const CODES: usize = 26 * 26 + 1;
const OTHER: usize = CODES - 1;

/// A set of the two-letter codes of a VmFlags line (proc_pid_smaps(5); show_smap_vma_flags in
/// fs/proc/task_mmu.c): "rd", "gd", "lo", "dd" ...
///
/// It holds every code, also those newer than this program, so that a caller can see which it
/// does not know. Flags that the kernel itself has no name for it spells "??"; which one that is, only the order
/// can tell, which is that of the bits ([`VmFlags::of_line`]).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VmFlags(&'static Set);

type Set = [u64; CODES.div_ceil(64)];

/// The sets that there are. A process has tens of thousands of mappings with a few of them, which stay to the end.
static KNOWN: Mutex<Vec<&'static Set>> = Mutex::new(Vec::new());

impl Default for VmFlags {
    fn default() -> Self {
        Self(&[0; CODES.div_ceil(64)])
    }
}

impl VmFlags {
    /// Whether the set has this code. Any spelling but two small letters means "??".
    pub fn has(&self, code: &str) -> bool {
        let bit = bit(code.as_bytes());
        self.0[bit / 64] >> (bit % 64) & 1 == 1
    }

    /// The set without a code.
    pub fn without(self, code: &str) -> Self {
        if !self.has(code) {
            return self;
        }
        let (mut set, bit) = (*self.0, bit(code.as_bytes()));
        set[bit / 64] &= !(1 << (bit % 64));
        Self::of(&set)
    }

    fn of(set: &Set) -> Self {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().find(|one| **one == set).copied();
        Self(found.unwrap_or_else(|| {
            let new: &'static Set = Box::leak(Box::new(*set));
            known.push(new);
            new
        }))
    }

    /// The codes in the set, in alphabetical order, "??" last.
    pub fn codes(&self) -> impl Iterator<Item = String> + '_ {
        let letters = (b'a'..=b'z').flat_map(|a| (b'a'..=b'z').map(move |b| [a, b]));
        letters
            .chain([*b"??"])
            .map(|code| code.iter().map(|&b| char::from(b)).collect::<String>())
            .filter(|code| self.has(code))
    }

    /// The codes of a line, in the order in which the kernel tells them. Older ones (5.10, for one) have no name for
    /// VM_LOCKONFAULT, but for all bits between VM_LOCKED and that: a nameless flag right after these is it.
    pub(super) fn of_line<'a>(codes: impl Iterator<Item = &'a [u8]>) -> Self {
        /// Those from VM_LOCKED to the bit below VM_LOCKONFAULT (include/linux/mm.h).
        const BELOW: [&[u8]; 6] = [b"lo", b"io", b"sr", b"rr", b"dc", b"de"];
        let (mut set, mut is_locked) = (Set::default(), false);
        let mut last: &[u8] = b"";
        for code in codes {
            let on_fault = code == b"??" && is_locked && BELOW.contains(&last);
            is_locked |= code == b"lo";
            let bit = bit(if on_fault { b"lf" } else { code });
            set[bit / 64] |= 1 << (bit % 64);
            last = code;
        }
        Self::of(&set)
    }
}

fn bit(code: &[u8]) -> usize {
    match code {
        [a @ b'a'..=b'z', b @ b'a'..=b'z'] => usize::from(a - b'a') * 26 + usize::from(b - b'a'),
        _ => OTHER,
    }
}

impl fmt::Debug for VmFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.codes()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_codes() {
        let none = VmFlags::default();
        assert_eq!(none.codes().count(), 0);
        assert!(!none.has("??") && !none.has("aa"));
        let of = |codes: [&'static [u8]; 4]| VmFlags::of_line(codes.into_iter());
        let flags = of([b"zz", b"gd", b"aa", b"??"]);
        assert_eq!(flags, of([b"aa", b"gd", b"??", b"zz"]));
        assert_eq!(flags.without("gd").codes().collect::<Vec<_>>(), ["aa", "zz", "??"]);
        assert_eq!(flags.codes().collect::<Vec<_>>(), ["aa", "gd", "zz", "??"]);
        assert!(flags.has("gd") && !flags.has("dg"));
        assert_eq!(format!("{flags:?}"), r#"{"aa", "gd", "zz", "??"}"#);
    }

    #[test]
    fn older_kernels_have_no_name_for_lock_on_fault() {
        let of = |line: &str| VmFlags::of_line(line.split(' ').map(str::as_bytes));
        for line in ["rd wr mr mw me lo ?? ac sd", "rd mr mw me lo sr dc ?? sd", "rd wr lo lf ac"] {
            assert!(of(line).has("lf") && of(line).has("lo") && !of(line).has("??"), "{line}");
        }
        for line in ["rd wr mr mw me lo ac ?? sd", "rd mr ?? lo ac", "rd wr mr dc de ht ??"] {
            assert!(!of(line).has("lf") && of(line).has("??"), "{line}");
        }
        let both = of("rd lo ?? ac ??");
        assert!(both.has("lf") && both.has("??"));
    }

    #[test]
    fn every_code_has_a_bit_of_its_own() {
        for a in b'a'..=b'z' {
            for b in b'a'..=b'z' {
                let flags = VmFlags::of_line([&[a, b][..]].into_iter());
                assert_eq!(flags.codes().collect::<String>().as_bytes(), [a, b]);
            }
        }
    }
}
