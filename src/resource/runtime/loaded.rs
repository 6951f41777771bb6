// SPDX-License-Identifier: LGPL-2.1-only
//! The executable of a process and its shared libraries, as the dynamic loader lists them in its memory (rtld's
//! r_debug, link.h). /proc/PID/maps tells no names of a program that was restarted.

use crate::proc;
use crate::ptrace::memory::Memory;
use goblin::elf64::dynamic::{DT_DEBUG, DT_NULL, DT_STRSZ, DT_STRTAB};
use goblin::elf64::header::{ELFMAG, Header, SIZEOF_EHDR};
use goblin::elf64::program_header::{PF_W, PF_X, PT_DYNAMIC, PT_LOAD, ProgramHeader};
use std::ops::Range;
use std::path::Path;

const AT_PHDR: u64 = 3;
/// A list may be damaged.
const MOST: usize = 4096;
/// Bytes of a program header.
const HEADER: usize = 56;

/// An executable or a library, where it lies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Its path as the loader knows it; empty for the executable.
    pub path: String,
    /// Its code.
    pub code: Vec<Range<u64>>,
    /// Its data, that without content (.bss) too.
    pub data: Vec<Range<u64>>,
    /// The names of what it exports and imports.
    pub names: Range<u64>,
    /// Its dynamic section.
    dynamic: u64,
}

impl Loaded {
    /// Whether this is a part of the C library, or its loader.
    pub fn is_c_library(&self) -> bool {
        const NAMES: [&str; 6] = ["libc.so", "libc-", "libpthread", "librt", "ld-musl", "ld-linux"];
        NAMES.iter().any(|name| self.file_name().starts_with(name))
    }

    /// The last part of its path; empty for the executable.
    pub fn file_name(&self) -> &str {
        Path::new(&self.path).file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Whether one of these is among its names.
    pub fn names(&self, memory: &Memory, wanted: &[&str]) -> bool {
        const LONGEST: u64 = 16 << 20;
        let mut names = vec![0; (self.names.end - self.names.start).min(LONGEST) as usize];
        let len = memory.read_some(self.names.start, &mut names).unwrap_or(0);
        names[..len]
            .split(|byte| *byte == 0)
            .any(|name| wanted.iter().any(|w| w.as_bytes() == name))
    }
}

/// The executable and its libraries, the executable first; empty if its memory does not tell.
pub fn all(memory: &Memory, pid: i32) -> Vec<Loaded> {
    let Some(executable) = executable(memory, pid) else { return Vec::new() };
    // struct r_debug: version, first struct link_map.
    let first = dynamic(memory, executable.dynamic, DT_DEBUG)
        .and_then(|debug| memory.get::<u64>(debug + 8).ok());
    let mut all = vec![executable];
    let mut next = first.unwrap_or(0);
    for _ in 0..MOST {
        // struct link_map: l_addr, l_name, l_ld, l_next.
        let Some([base, name, _, after]) = memory.get::<[u64; 4]>(next).ok().filter(|_| next != 0)
        else {
            break;
        };
        next = after;
        let path = text(memory, name);
        // The first is the executable, without a name.
        if !path.is_empty()
            && let Some(library) = at(memory, base)
        {
            all.push(Loaded { path, ..library });
        }
    }
    all
}

fn executable(memory: &Memory, pid: i32) -> Option<Loaded> {
    let headers = proc::auxv_value(&proc::auxv(pid).ok()?, AT_PHDR)?;
    // They follow the ELF header at once in what all linkers make.
    at(memory, headers.checked_sub(SIZEOF_EHDR as u64)?)
}

/// What lies at an address.
fn at(memory: &Memory, start: u64) -> Option<Loaded> {
    let head = Header::from_bytes(&memory.get::<[u8; SIZEOF_EHDR]>(start).ok()?).to_owned();
    if head.e_ident[..4] != ELFMAG[..] || usize::from(head.e_phentsize) != HEADER {
        return None;
    }
    let mut bytes = vec![0; HEADER * usize::from(head.e_phnum)];
    memory.read(start.checked_add(head.e_phoff)?, &mut bytes).ok()?;
    let headers = ProgramHeader::from_bytes(&bytes, head.e_phnum.into());
    let first = headers.iter().find(|h| h.p_type == PT_LOAD && h.p_offset == 0)?;
    let bias = start.wrapping_sub(first.p_vaddr);
    let mut loaded = Loaded::default();
    for header in &headers {
        let place = bias.wrapping_add(header.p_vaddr);
        let range = place..place.saturating_add(header.p_memsz);
        match header.p_type {
            PT_LOAD if header.p_flags & PF_W != 0 => loaded.data.push(range),
            PT_LOAD if header.p_flags & PF_X != 0 => loaded.code.push(range),
            PT_DYNAMIC => loaded.dynamic = place,
            _ => {}
        }
    }
    // glibc's loader makes an address of this one, musl's does not.
    let absolute = |value: u64| if value < start { value.wrapping_add(bias) } else { value };
    let value = |tag| dynamic(memory, loaded.dynamic, tag);
    if let (Some(names), Some(len)) = (value(DT_STRTAB).map(absolute), value(DT_STRSZ)) {
        loaded.names = names..names.saturating_add(len);
    }
    Some(loaded)
}

/// The value of an entry of a dynamic section.
fn dynamic(memory: &Memory, section: u64, tag: u64) -> Option<u64> {
    let entries = (0..MOST as u64).map(|i| memory.get::<[u64; 2]>(section + 16 * i).ok());
    let known = entries.map_while(|entry| entry.filter(|[tag, _]| *tag != DT_NULL));
    known.into_iter().find(|[found, _]| *found == tag && section != 0).map(|[_, value]| value)
}

fn text(memory: &Memory, address: u64) -> String {
    let mut bytes = [0; 512];
    let len = memory.read_some(address, &mut bytes).unwrap_or(0);
    let end = bytes[..len].iter().position(|byte| *byte == 0).unwrap_or(len);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_executable_is_found() {
        let own = std::process::id().cast_signed();
        let memory = Memory::open(own).expect("our own memory");
        let all = all(&memory, own);
        let here = our_own_executable_is_found as *const () as u64;
        assert!(all[0].code.iter().any(|code| code.contains(&here)), "{all:?}");
        static mut WORD: u32 = 1;
        let word = (&raw mut WORD) as u64;
        assert!(all[0].data.iter().any(|data| data.contains(&word)), "{all:?}");
    }

    #[test]
    fn parts_of_the_c_library_are_known() {
        let named = |path: &str| Loaded { path: path.into(), ..Loaded::default() }.is_c_library();
        assert!(named("/lib/x86_64-linux-gnu/libc.so.6") && named("/lib/ld-musl-x86_64.so.1"));
        assert!(!named("") && !named("/usr/lib/libcurl.so.4") && !named("/lib/libm.so.6"));
    }
}
