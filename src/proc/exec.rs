// SPDX-License-Identifier: LGPL-2.1-only
//! What execve(2) gave the process: its arguments, its auxiliary vector and its personality.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;

use super::process::Process;
use crate::error::Result;

impl Process {
    /// The arguments of the process as they stand in its memory now; a program may have written
    /// over them (setproctitle). None of a zombie.
    ///
    /// # Errors
    /// The process is gone.
    pub fn cmdline(&self) -> Result<Vec<OsString>> {
        Ok(parse_cmdline(&self.command_line()?))
    }

    /// The same as it stands there.
    ///
    /// # Errors
    /// The process is gone.
    pub fn command_line(&self) -> Result<Vec<u8>> {
        self.file("cmdline")
    }
}

/// Whether the program that a process executes is one of 32 bits (elf(5)); false of one whose file may not be read.
pub(crate) fn is_of_32_bits(process: &Process) -> bool {
    /// Where an executable tells its class, and that of 32 bits.
    const CLASS: usize = 4;
    const CLASS_32: u8 = 1;
    let mut begin = [0; CLASS + 1];
    let read = process.executable().and_then(|mut exe| exe.read_exact(&mut begin));
    read.is_ok() && begin.starts_with(b"\x7fELF") && begin[CLASS] == CLASS_32
}

/// Every argument ends with a null byte; the last may lack it where a program wrote over it.
fn parse_cmdline(bytes: &[u8]) -> Vec<OsString> {
    bytes
        .split_inclusive(|&b| b == 0)
        .map(|arg| OsString::from_vec(arg.strip_suffix(b"\0").unwrap_or(arg).to_vec()))
        .collect()
}

impl Process {
    /// The auxiliary vector (getauxval(3)) as prctl(PR_SET_MM_MAP) takes it: pairs of native 64-bit
    /// words, AT_NULL at the end. Empty of a zombie.
    ///
    /// # Errors
    /// The process is gone or may not be read (ptrace access, PTRACE_MODE_READ).
    pub fn auxv(&self) -> Result<Vec<u8>> {
        self.file("auxv")
    }
}

/// The first value of `kind` (AT_ constants) in an auxiliary vector.
pub fn auxv_value(auxv: &[u8], kind: u64) -> Option<u64> {
    let word = |pair: &[u8], at: usize| {
        u64::from_ne_bytes(pair[at..at + 8].try_into().expect("a word has 8 bytes"))
    };
    auxv.chunks_exact(16)
        .map(|pair| (word(pair, 0), word(pair, 8)))
        .take_while(|&(key, _)| key != 0)
        .find_map(|(key, value)| (key == kind).then_some(value))
}

/// See [`super::parse_anything`].
pub(super) fn parse_anything(bytes: &[u8]) {
    let _ = parse_cmdline(bytes);
    let _ = auxv_value(bytes, 6);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Zombie, of, we};
    use super::*;
    use nix::libc;

    #[test]
    fn arguments_end_with_null() {
        assert_eq!(parse_cmdline(b"a b\0\0c\n\0"), ["a b", "", "c\n"]);
        assert_eq!(parse_cmdline(b"nginx: worker"), ["nginx: worker"]);
        assert_eq!(parse_cmdline(b"\0"), [""]);
        assert!(parse_cmdline(b"").is_empty());
    }

    #[test]
    fn auxv_ends_at_null() {
        let words = [6u64, 4096, 9, 0xdead_beef, 9, 1, 0, 0, 33, 7];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        assert_eq!(auxv_value(&bytes, 6), Some(4096));
        assert_eq!(auxv_value(&bytes, 9), Some(0xdead_beef));
        assert_eq!(auxv_value(&bytes, 33), None);
        assert_eq!(auxv_value(&bytes, 0), None);
        assert_eq!(auxv_value(&bytes[..12], 6), None);
    }

    #[test]
    fn own_exec() {
        assert_eq!(we().cmdline().unwrap(), std::env::args_os().collect::<Vec<_>>());
        let auxv = we().auxv().unwrap();
        assert_eq!(auxv_value(&auxv, libc::AT_PAGESZ), Some(4096));
        let uid = u64::from(nix::unistd::getuid().as_raw());
        assert_eq!(auxv_value(&auxv, libc::AT_UID), Some(uid));
    }

    #[test]
    fn a_zombie_has_no_arguments() {
        let zombie = Zombie::new();
        assert!(of(zombie.pid()).cmdline().unwrap().is_empty());
    }
}
