// SPDX-License-Identifier: LGPL-2.1-only
//! The embedded libckpt.so as bytes to lay into a process.

use super::{PAGE, pages};
use crate::error::{Error, Result};
use crate::object;
use crate::packed::{Packed, packed};
use ckpt_abi::region::HOLE_LEN;
use goblin::elf::Elf;
use goblin::elf::program_header::PT_LOAD;
use goblin::elf::reloc::R_X86_64_RELATIVE;
use nix::libc;
use std::sync::OnceLock;

static LIBCKPT: Packed = packed!("libckpt.so");

/// The payload's shared object.
pub(crate) struct Payload {
    file: &'static [u8],
    elf: Elf<'static>,
    len: u64,
}

impl Payload {
    /// The one this binary carries.
    pub(crate) fn embedded() -> Result<&'static Self> {
        static PAYLOAD: OnceLock<Result<Payload>> = OnceLock::new();
        PAYLOAD.get_or_init(Self::parse).as_ref().map_err(Error::clone)
    }

    fn parse() -> Result<Self> {
        let file: &'static [u8] = LIBCKPT.unpacked()?.leak();
        let elf = object::read(file)
            .map_err(|e| Error::new(format!("the libckpt.so inside this ckpt is damaged: {e}")))?;
        let ends = elf.program_headers.iter().filter(|p| p.p_type == PT_LOAD);
        let len = pages(ends.map(|p| p.p_vaddr + p.p_memsz).max().unwrap_or(0));
        Ok(Self { file, elf, len })
    }

    /// Its headers and dynamic symbols.
    pub(super) fn elf(&self) -> &Elf<'static> {
        &self.elf
    }

    /// The shared object itself.
    pub(crate) fn file(&self) -> &'static [u8] {
        self.file
    }

    /// Bytes in memory, whole pages.
    pub(crate) fn memory_len(&self) -> u64 {
        self.len
    }

    /// Offset of an exported symbol from the first byte of the image.
    pub(crate) fn symbol(&self, name: &str) -> u64 {
        let symbols = self.elf.dynsyms.iter();
        let mut named = symbols.filter(|s| self.elf.dynstrtab.get_at(s.st_name) == Some(name));
        named.next().map_or(0, |s| s.st_value)
    }

    /// The image as it has to be at `base`.
    pub(crate) fn relocated(&self, base: u64) -> Vec<u8> {
        let mut image = vec![0; self.len as usize];
        for header in self.elf.program_headers.iter().filter(|p| p.p_type == PT_LOAD) {
            let (to, from) = (header.p_vaddr as usize, header.p_offset as usize);
            let len = header.p_filesz as usize;
            image[to..to + len].copy_from_slice(&self.file[from..from + len]);
        }
        for relocation in self.elf.dynrelas.iter().filter(|r| r.r_type == R_X86_64_RELATIVE) {
            let at = relocation.r_offset as usize;
            let value = base.wrapping_add_signed(relocation.r_addend.unwrap_or(0));
            image[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        image
    }

    /// Offset, length and PROT_ bits of every segment, in whole pages.
    pub(crate) fn protections(&self) -> Vec<(u64, u64, u64)> {
        let loads = self.elf.program_headers.iter().filter(|p| p.p_type == PT_LOAD);
        loads
            .map(|p| {
                let start = p.p_vaddr & !(PAGE - 1);
                let prot = [
                    (p.is_read(), libc::PROT_READ),
                    (p.is_write(), libc::PROT_WRITE),
                    (p.is_executable(), libc::PROT_EXEC),
                ];
                let prot = prot.iter().filter(|(is, _)| *is).map(|(_, bit)| *bit as u64).sum();
                (start, pages(p.p_vaddr + p.p_memsz) - start, prot)
            })
            .collect()
    }

    /// The code for a hole and its area, for use where there is no payload yet.
    pub(crate) fn hole(&self) -> Vec<u8> {
        // It has no relocations.
        let start = self.symbol("ckpt_hole");
        let mut loads = self.elf.program_headers.iter().filter(|p| p.p_type == PT_LOAD);
        let load = loads.find(|p| p.vm_range().contains(&(start as usize)));
        let start = load.map_or(0, |p| start - p.p_vaddr + p.p_offset) as usize;
        self.file[start..start + HOLE_LEN as usize].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use goblin::elf::sym::STB_WEAK;

    #[test]
    fn every_relocation_is_relative() {
        let payload = Payload::embedded().unwrap();
        // All but the C library's functions, which only the loaded object may find.
        let elf = Elf::parse(payload.file).unwrap();
        let others = elf.dynrelas.iter().filter(|r| r.r_type != R_X86_64_RELATIVE);
        let names = others.map(|r| elf.dynsyms.get(r.r_sym).unwrap());
        let mut names: Vec<_> = names
            .map(|s| (elf.dynstrtab.get_at(s.st_name).unwrap(), s.st_bind() == STB_WEAK))
            .collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["__errno_location", "environ", "free", "malloc"].map(|name| (name, true))
        );
        assert_eq!(elf.pltrelocs.iter().count(), 0);
        assert!(elf.libraries.is_empty());
        assert_eq!(elf.dynrelas.len(), payload.elf.dynrelas.len());
    }

    #[test]
    fn the_entries_exist() {
        let payload = Payload::embedded().unwrap();
        for name in ["ckpt_thunk", "ckpt_clone_thunk", "ckpt_hole", "ckpt_rest", "ckpt_run"] {
            assert_ne!(payload.symbol(name), 0, "{name}");
        }
        for name in ["memcpy", "memset", "strlen"] {
            assert_eq!(payload.symbol(name), 0, "{name}");
        }
    }

    #[test]
    fn what_is_read_is_what_the_whole_parser_finds() {
        let file = Payload::embedded().unwrap().file;
        let (short, whole) = (object::read(file).unwrap(), Elf::parse(file).unwrap());
        assert_eq!(short.program_headers, whole.program_headers);
        assert!(short.dynsyms.iter().eq(whole.dynsyms.iter()) && !short.dynsyms.is_empty());
        assert_eq!(short.dynstrtab.to_vec().unwrap(), whole.dynstrtab.to_vec().unwrap());
        assert!(short.dynrelas.iter().eq(whole.dynrelas.iter()) && !short.dynrelas.is_empty());
    }

    #[test]
    fn rubbish_is_no_object() {
        assert!(object::read(b"no object").is_err());
        for at in 0..64 {
            let mut changed = LIBCKPT.unpacked().unwrap();
            changed[at] ^= 0xff;
            let _ = (object::read(&changed), object::read(&changed[..64 + at]));
        }
    }
}
