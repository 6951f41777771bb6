// SPDX-License-Identifier: LGPL-2.1-only
//! The ELF section table at the end of a checkpoint, by which readelf and objcopy see the image.

use super::PAGE;
use super::source::Source;
use goblin::elf64::header::{ELFMAG, Header as ElfHeader};
use goblin::elf64::section_header::{SHT_NULL, SHT_PROGBITS, SHT_STRTAB, SectionHeader};

const NAMES: &[u8] = b"\0.ckpt.image\0.shstrtab\0";
const HEADERS: usize = 3;

/// Bytes of the table with its names, padded to 8.
pub(crate) const LEN: u64 =
    (NAMES.len().next_multiple_of(8) + HEADERS * size_of::<SectionHeader>()) as u64;

/// What tells a checkpoint from the ckpt executable, also where its end is missing: the bytes of the ELF
/// header that mean nothing (EI_PAD, elf(5)). To a shell that takes a file which the kernel does not
/// execute for a script, they are a line that ends it.
const MARK: [u8; 7] = *b"\nexit;#";
/// EI_PAD.
const MARK_AT: usize = 9;

/// Makes a stub the ckpt executable: without a reference to a section table, and no checkpoint.
pub(crate) fn forget_sections(stub: &mut [u8]) {
    refer(stub, 0, 0, 0);
    put(stub, MARK_AT, &[0; MARK.len()]);
}

/// Makes the ELF header of a stub refer to a table that starts at `offset` of the file, and the
/// file a checkpoint.
pub(crate) fn refer_to_table(stub: &mut [u8], offset: u64) {
    let headers = offset + NAMES.len().next_multiple_of(8) as u64;
    refer(stub, headers, HEADERS as u16, HEADERS as u16 - 1);
    mark(stub);
}

/// Makes a file that begins with the stub a checkpoint.
pub(crate) fn mark(stub: &mut [u8]) {
    put(stub, MARK_AT, &MARK);
}

/// Whether a file begins as a checkpoint does.
pub(crate) fn is_marked(file: &dyn Source) -> bool {
    let mut head = [0; MARK_AT + MARK.len()];
    file.read_at(0, &mut head).is_ok() && head.starts_with(ELFMAG) && head.ends_with(&MARK)
}

fn put(stub: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(field) = stub.get_mut(at..at + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}

fn refer(stub: &mut [u8], offset: u64, count: u16, names: u16) {
    use std::mem::offset_of;
    let mut put = |at, bytes: &[u8]| put(stub, at, bytes);
    put(offset_of!(ElfHeader, e_shoff), &offset.to_le_bytes());
    put(offset_of!(ElfHeader, e_shentsize), &(size_of::<SectionHeader>() as u16).to_le_bytes());
    put(offset_of!(ElfHeader, e_shnum), &count.to_le_bytes());
    put(offset_of!(ElfHeader, e_shstrndx), &names.to_le_bytes());
}

/// The table for an image in `[image, end)` of the file, to be written at `offset`.
pub(crate) fn table(image: u64, end: u64, offset: u64) -> Vec<u8> {
    let name = |name: &[u8]| {
        NAMES.windows(name.len()).position(|window| window == name).unwrap_or(0) as u32
    };
    let section = |sh_name, sh_type, sh_offset, sh_size, sh_addralign| SectionHeader {
        sh_name,
        sh_type,
        sh_flags: 0,
        sh_addr: 0,
        sh_offset,
        sh_size,
        sh_link: 0,
        sh_info: 0,
        sh_addralign,
        sh_entsize: 0,
    };
    let headers = [
        section(0, SHT_NULL, 0, 0, 0),
        section(name(b".ckpt.image"), SHT_PROGBITS, image, end - image, PAGE),
        section(name(b".shstrtab"), SHT_STRTAB, offset, NAMES.len() as u64, 1),
    ];
    let mut table = NAMES.to_vec();
    table.resize(NAMES.len().next_multiple_of(8), 0);
    for header in &headers {
        table.extend_from_slice(&bytes(header));
    }
    table
}

fn bytes(header: &SectionHeader) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of::<SectionHeader>());
    bytes.extend_from_slice(&header.sh_name.to_le_bytes());
    bytes.extend_from_slice(&header.sh_type.to_le_bytes());
    for field in [header.sh_flags, header.sh_addr, header.sh_offset, header.sh_size] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes.extend_from_slice(&header.sh_link.to_le_bytes());
    bytes.extend_from_slice(&header.sh_info.to_le_bytes());
    bytes.extend_from_slice(&header.sh_addralign.to_le_bytes());
    bytes.extend_from_slice(&header.sh_entsize.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goblin_reads_the_table() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let headers = goblin::elf::Elf::parse(&own).unwrap().header.e_phoff as usize + 56 * 64;
        let mut file = own[..headers.next_multiple_of(4096)].to_vec();
        let offset = file.len() as u64;
        refer_to_table(&mut file, offset);
        let table = table(4096, offset, offset);
        assert_eq!(table.len() as u64, LEN);
        file.extend_from_slice(&table);
        let elf = goblin::elf64::header::Header::from_bytes(file[..64].try_into().unwrap());
        let sections =
            SectionHeader::from_bytes(&file[elf.e_shoff as usize..], elf.e_shnum as usize);
        assert_eq!(sections[1].sh_offset, 4096);
        assert_eq!(sections[1].sh_size, offset - 4096);
        let name = sections[2].sh_offset as usize + sections[1].sh_name as usize;
        assert_eq!(&file[name..name + 12], b".ckpt.image\0");
    }
}
