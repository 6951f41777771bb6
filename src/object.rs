// SPDX-License-Identifier: LGPL-2.1-only
//! Shared objects in memory (elf(5)): what their dynamic symbols and relocations say.

use goblin::container::{Container, Ctx};
use goblin::elf::section_header::{SHT_DYNSYM, SHT_RELA};
use goblin::elf::{Elf, ProgramHeader, RelocSection, SectionHeader, Symtab};
use goblin::error::Result;
use goblin::strtab::Strtab;

/// Reads an object of 64 bits that has sections: program headers, dynamic symbols with their names, and the first table of
/// relocations. The rest of `Elf` stays empty: `Elf::parse` is 20 KiB of code.
///
/// # Errors
/// The object is damaged, or none.
pub(crate) fn read(bytes: &[u8]) -> Result<Elf<'_>> {
    let ctx = Ctx::new(Container::Big, goblin::container::Endian::Little);
    let mut elf = Elf::lazy_parse(Elf::parse_header(bytes)?)?;
    let header = &elf.header;
    elf.program_headers =
        ProgramHeader::parse(bytes, header.e_phoff as usize, header.e_phnum.into(), ctx)?;
    let sections =
        SectionHeader::parse(bytes, header.e_shoff as usize, header.e_shnum.into(), ctx)?;
    if let Some(symbols) = sections.iter().find(|s| s.sh_type == SHT_DYNSYM) {
        let count = symbols.sh_size.checked_div(symbols.sh_entsize).unwrap_or(0) as usize;
        elf.dynsyms = Symtab::parse(bytes, symbols.sh_offset as usize, count, ctx)?;
        if let Some(names) = sections.get(symbols.sh_link as usize) {
            let (at, len) = (names.sh_offset as usize, names.sh_size as usize);
            elf.dynstrtab = Strtab::parse(bytes, at, len, 0)?;
        }
    }
    if let Some(table) = sections.iter().find(|s| s.sh_type == SHT_RELA) {
        let (at, len) = (table.sh_offset as usize, table.sh_size as usize);
        elf.dynrelas = RelocSection::parse(bytes, at, len, true, ctx)?;
    }
    Ok(elf)
}
