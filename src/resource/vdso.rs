// SPDX-License-Identifier: LGPL-2.1-only
//! The vdso and its data pages.
//!
//! The kernel maps a fresh vdso where the program expects it (arch_prctl(ARCH_MAP_VDSO_64), which
//! needs the old one gone). That is all when both are the same. Otherwise the saved code stays at
//! its place, with every entry point turned into a jump to the function of the same name in the
//! new one, which then lies elsewhere.

use crate::error::{Error, Result};
use crate::object;
use crate::proc::maps::Vma;

/// Where the kernel put a vdso.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// First byte of the data pages, which come first.
    pub vvar: u64,
    /// Their length.
    pub vvar_len: u64,
    /// First byte of the code.
    pub vdso: u64,
    /// Its length.
    pub vdso_len: u64,
}

impl Place {
    /// Finds vdso and data pages among the mappings of a process.
    pub(crate) fn find(vmas: &[Vma]) -> Self {
        let mut place = Self::default();
        for vma in vmas {
            if vma.name == "[vdso]" {
                (place.vdso, place.vdso_len) = (vma.start, vma.len());
            }
            if vma.name == "[vvar]" || vma.name == "[vvar_vclock]" {
                if place.vvar_len == 0 {
                    place.vvar = vma.start;
                }
                place.vvar_len = vma.end - place.vvar;
            }
        }
        place
    }

    /// First address of both.
    pub(crate) fn start(&self) -> u64 {
        if self.vvar_len == 0 { self.vdso } else { self.vvar }
    }

    /// Length of both.
    pub(crate) fn len(&self) -> u64 {
        self.vdso + self.vdso_len - self.start()
    }

    /// Whether there is no vdso (kernel command line vdso=0).
    pub(crate) fn is_empty(&self) -> bool {
        self.vdso == 0
    }
}

/// Turns the entry points of a saved vdso into jumps to those of another that will lie at `there`, or
/// into system calls where that is empty (kernel command line vdso=0).
///
/// # Errors
/// When one of them is not an ELF object.
pub(crate) fn redirect(saved: &mut [u8], other: &[u8], there: u64) -> Result<()> {
    let targets = if other.is_empty() { Vec::new() } else { functions(other)? };
    for (name, offset) in functions(saved)? {
        let target = targets.iter().find(|(n, _)| *n == name).map(|(_, at)| there + at);
        let code = match target {
            Some(target) => jump(target),
            None => fallback(&name),
        };
        let at = offset as usize;
        if let Some(entry) = saved.get_mut(at..at + code.len()) {
            entry.copy_from_slice(&code);
        }
    }
    Ok(())
}

/// Name and offset of every function.
fn functions(vdso: &[u8]) -> Result<Vec<(String, u64)>> {
    let elf =
        object::read(vdso).map_err(|e| Error::new(format!("the vdso is no ELF object: {e}")))?;
    let symbols = elf.dynsyms.iter().filter(|s| s.is_function() && s.st_value != 0);
    let named = symbols.filter_map(|s| {
        let name = elf.dynstrtab.get_at(s.st_name)?;
        // Weak aliases without the prefix lie at the same offsets.
        name.starts_with("__vdso_").then(|| (name.to_string(), s.st_value))
    });
    Ok(named.collect())
}

/// movabs $target, %rax; jmp *%rax
fn jump(target: u64) -> Vec<u8> {
    let mut code = vec![0x48, 0xb8];
    code.extend_from_slice(&target.to_le_bytes());
    code.extend_from_slice(&[0xff, 0xe0]);
    code
}

/// The system call of the same name, for what the other kernel's vdso does not have; C libraries
/// then see what a kernel without the vdso function would have given them.
fn fallback(name: &str) -> Vec<u8> {
    const CALLS: [(&str, u32); 6] = [
        ("__vdso_clock_gettime", 228),
        ("__vdso_gettimeofday", 96),
        ("__vdso_time", 201),
        ("__vdso_getcpu", 309),
        ("__vdso_clock_getres", 229),
        ("__vdso_getrandom", 318),
    ];
    let number = CALLS.iter().find(|(n, _)| *n == name).map(|(_, number)| *number);
    // mov $number, %eax; syscall; ret
    let mut code = vec![0xb8];
    code.extend_from_slice(&number.unwrap_or(u32::MAX).to_le_bytes());
    code.extend_from_slice(&[0x0f, 0x05, 0xc3]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::Process;

    /// The vdso of this machine.
    fn own() -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let own = Process::own().unwrap();
        let place = Place::find(&own.maps().unwrap());
        let mut bytes = vec![0; place.vdso_len as usize];
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        memory.read_exact_at(&mut bytes, place.vdso).unwrap();
        bytes
    }

    #[test]
    fn entry_points_become_jumps_or_system_calls() {
        let whole = own();
        let functions = functions(&whole).unwrap();
        let at = |name: &str| functions.iter().find(|(n, _)| n == name).unwrap().1 as usize;
        let time = at("__vdso_time");
        let mut jumps = whole.clone();
        redirect(&mut jumps, &whole, 0x7000_0000).unwrap();
        assert_eq!(&jumps[time..time + 12], jump(0x7000_0000 + time as u64));
        let mut calls = whole.clone();
        redirect(&mut calls, &[], 0).unwrap();
        assert_eq!(&calls[time..time + 8], [0xb8, 201, 0, 0, 0, 0x0f, 0x05, 0xc3]);
        assert!(redirect(&mut calls, &[0; 8], 0).is_err());
    }
}
