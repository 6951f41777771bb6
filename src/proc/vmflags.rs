//! The flags of a VMA as /proc/PID/smaps spells them.

use std::fmt;

/// One bit a pair of small letters, and one for every other spelling.
const CODES: usize = 26 * 26 + 1;
const OTHER: usize = CODES - 1;

/// A set of the two-letter codes of a VmFlags line (proc_pid_smaps(5); show_smap_vma_flags in
/// fs/proc/task_mmu.c): "rd", "gd", "lo", "dd" ...
///
/// It holds every code, also those newer than this program, so that a caller can see which it
/// does not know. Flags that the kernel itself has no name for it spells "??".
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct VmFlags([u64; CODES.div_ceil(64)]);

impl VmFlags {
    /// Whether the set has this code. Any spelling but two small letters means "??".
    pub fn has(&self, code: &str) -> bool {
        let bit = bit(code.as_bytes());
        self.0[bit / 64] >> (bit % 64) & 1 == 1
    }

    /// The codes in the set, in alphabetical order, "??" last.
    pub fn codes(&self) -> impl Iterator<Item = String> + '_ {
        let letters = (b'a'..=b'z').flat_map(|a| (b'a'..=b'z').map(move |b| [a, b]));
        letters
            .chain([*b"??"])
            .map(|code| code.iter().map(|&b| char::from(b)).collect::<String>())
            .filter(|code| self.has(code))
    }

    pub(super) fn insert(&mut self, code: &[u8]) {
        let bit = bit(code);
        self.0[bit / 64] |= 1 << (bit % 64);
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
        let mut flags = VmFlags::default();
        assert_eq!(flags.codes().count(), 0);
        assert!(!flags.has("??") && !flags.has("aa"));
        for code in [&b"zz"[..], b"gd", b"aa", b"??"] {
            flags.insert(code);
        }
        assert_eq!(flags.codes().collect::<Vec<_>>(), ["aa", "gd", "zz", "??"]);
        assert!(flags.has("gd") && !flags.has("dg"));
        assert_eq!(format!("{flags:?}"), r#"{"aa", "gd", "zz", "??"}"#);
    }

    #[test]
    fn every_code_has_a_bit_of_its_own() {
        for a in b'a'..=b'z' {
            for b in b'a'..=b'z' {
                let mut flags = VmFlags::default();
                flags.insert(&[a, b]);
                assert_eq!(flags.codes().collect::<String>().as_bytes(), [a, b]);
            }
        }
    }
}
