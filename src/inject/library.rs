// SPDX-License-Identifier: LGPL-2.1-only
//! libckpt.so as a file for linkers and the dynamic loader: the payload, with the ckpt executable as
//! one more segment, from which the payload makes its region (payload/src/load.rs).

use super::elf::Payload;
use super::{PAGE, pages};
use crate::error::{Error, Result};
use goblin::elf::program_header::{PF_R, PT_GNU_RELRO, PT_LOAD, program_header64};

/// The file's bytes, with `executable` inside.
pub(crate) fn with(executable: &[u8]) -> Result<Vec<u8>> {
    let payload = Payload::embedded()?;
    let mut file = payload.file().to_vec();
    let damaged =
        |why: &str| Error::new(format!("the libckpt.so inside this ckpt is damaged: {why}"));
    let elf = payload.elf();
    // The loader has relocated the object when it would act on this header, and needs it no more
    // than the program does: what it would protect is never written afterwards.
    let spare = elf.program_headers.iter().position(|p| p.p_type == PT_GNU_RELRO);
    let spare = spare.ok_or_else(|| damaged("it has no program header to spare"))?;
    file.resize(pages(file.len() as u64) as usize, 0);
    let (offset, address) = (file.len() as u64, payload.memory_len() + PAGE);
    let len = executable.len() as u64;
    let mut header = [0; program_header64::SIZEOF_PHDR];
    header[..4].copy_from_slice(&PT_LOAD.to_le_bytes());
    header[4..8].copy_from_slice(&PF_R.to_le_bytes());
    for (i, value) in [offset, address, address, len, len, PAGE].iter().enumerate() {
        header[8 + 8 * i..16 + 8 * i].copy_from_slice(&value.to_le_bytes());
    }
    let at = elf.header.e_phoff as usize + spare * header.len();
    let room = file.get_mut(at..at + header.len());
    room.ok_or_else(|| damaged("its headers are elsewhere"))?.copy_from_slice(&header);
    file.extend_from_slice(executable);
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use goblin::elf::Elf;

    #[test]
    fn the_executable_is_the_last_segment() {
        let file = with(b"stub").unwrap();
        let elf = Elf::parse(&file).unwrap();
        let loads: Vec<_> = elf.program_headers.iter().filter(|p| p.p_type == PT_LOAD).collect();
        assert!(loads.windows(2).all(|pair| pair[0].p_vaddr + pair[0].p_memsz <= pair[1].p_vaddr));
        let last = loads.last().unwrap();
        assert_eq!(&file[last.file_range()], b"stub");
        assert_eq!(last.p_vaddr % PAGE, last.p_offset % PAGE);
        assert!(elf.libraries.is_empty());
    }
}
