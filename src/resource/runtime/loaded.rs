// SPDX-License-Identifier: LGPL-2.1-only
//! The executable of a process and its shared libraries, as the dynamic loader lists them in its memory (rtld's
//! r_debug, link.h). /proc/PID/maps tells no names of a program that was restarted.

use crate::proc;
use crate::ptrace::memory::Memory;
use goblin::elf64::dynamic::{DT_DEBUG, DT_STRSZ, DT_STRTAB};
use goblin::elf64::header::{ELFMAG, SIZEOF_EHDR};
use goblin::elf64::program_header::{PF_W, PF_X, PT_DYNAMIC, PT_LOAD};
use std::ops::Range;
use std::path::Path;
use zerocopy::IntoBytes;

const AT_PHDR: u64 = 3;
/// A list may be damaged.
const MOST: usize = 4096;
/// struct Elf64_Phdr: p_type and p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align.
type Segment = [u64; 7];

/// An executable or a library, where it lies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loaded {
    /// Its path as the loader knows it; empty for the executable.
    pub path: String,
    /// Its code.
    pub code: Vec<Range<u64>>,
    /// Its data, that without content (.bss) too.
    pub data: Vec<Range<u64>>,
    /// The names of what it exports and imports.
    pub names: Range<u64>,
    /// Its dynamic section.
    dynamic: Range<u64>,
}

impl Loaded {
    /// Whether this is a part of the C library, or its loader.
    pub(crate) fn is_c_library(&self) -> bool {
        const NAMES: [&str; 6] = ["libc.so", "libc-", "libpthread", "librt", "ld-musl", "ld-linux"];
        NAMES.iter().any(|name| self.file_name().starts_with(name))
    }

    /// The last part of its path; empty for the executable.
    pub(crate) fn file_name(&self) -> &str {
        Path::new(&self.path).file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Whether one of these is among its names.
    pub(crate) fn names(&self, memory: &Memory, wanted: &[&str]) -> bool {
        const LONGEST: u64 = 16 << 20;
        let mut names = vec![0; (self.names.end - self.names.start).min(LONGEST) as usize];
        let len = memory.read_some(self.names.start, &mut names).unwrap_or(0);
        names[..len]
            .split(|byte| *byte == 0)
            .any(|name| wanted.iter().any(|w| w.as_bytes() == name))
    }
}

/// The executable and its libraries, the executable first; empty if its memory does not tell.
pub(crate) fn all(memory: &Memory, auxv: &[u8]) -> Vec<Loaded> {
    let Some(executable) = executable(memory, auxv) else { return Vec::new() };
    // struct r_debug: version, first struct link_map.
    let first = value(&dynamic(memory, &executable.dynamic), DT_DEBUG)
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

fn executable(memory: &Memory, auxv: &[u8]) -> Option<Loaded> {
    let headers = proc::auxv_value(auxv, AT_PHDR)?;
    // They follow the ELF header at once in what all linkers make.
    at(memory, headers.checked_sub(SIZEOF_EHDR as u64)?)
}

/// What lies at an address.
fn at(memory: &Memory, start: u64) -> Option<Loaded> {
    // struct Elf64_Ehdr (elf.h): what it begins with, e_phoff, and at its end e_phentsize and e_phnum.
    let head: [u64; 8] = memory.get(start).ok()?;
    let (len, count) = ((head[6] >> 48) as u16, head[7] as u16);
    if !head[0].to_le_bytes().starts_with(ELFMAG) || usize::from(len) != size_of::<Segment>() {
        return None;
    }
    let mut headers = vec![Segment::default(); count.into()];
    memory.read(start.checked_add(head[4])?, headers.as_mut_bytes()).ok()?;
    let kind = |segment: &Segment| segment[0] as u32;
    let first = headers.iter().find(|segment| kind(segment) == PT_LOAD && segment[1] == 0)?;
    let bias = start.wrapping_sub(first[2]);
    let mut loaded = Loaded::default();
    for segment in &headers {
        let flags = (segment[0] >> 32) as u32;
        let place = bias.wrapping_add(segment[2]);
        let range = place..place.saturating_add(segment[5]);
        match kind(segment) {
            PT_LOAD if flags & PF_W != 0 => loaded.data.push(range),
            PT_LOAD if flags & PF_X != 0 => loaded.code.push(range),
            PT_DYNAMIC => loaded.dynamic = range,
            _ => {}
        }
    }
    // glibc's loader makes an address of this one, musl's does not.
    let absolute = |value: u64| if value < start { value.wrapping_add(bias) } else { value };
    let entries = dynamic(memory, &loaded.dynamic);
    if let (Some(names), Some(len)) = (value(&entries, DT_STRTAB), value(&entries, DT_STRSZ)) {
        let names = absolute(names);
        loaded.names = names..names.saturating_add(len);
    }
    Some(loaded)
}

/// The entries of a dynamic section, tag and value.
fn dynamic(memory: &Memory, section: &Range<u64>) -> Vec<[u64; 2]> {
    let len = (section.end - section.start) as usize / size_of::<[u64; 2]>();
    let mut entries = vec![[0; 2]; len.min(MOST)];
    let read = memory.read_some(section.start, entries.as_mut_bytes()).unwrap_or(0);
    entries.truncate(read / size_of::<[u64; 2]>());
    entries
}

fn value(entries: &[[u64; 2]], tag: u64) -> Option<u64> {
    entries.iter().find(|[found, _]| *found == tag).map(|[_, value]| *value)
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
    use crate::proc::Process;

    #[test]
    fn our_own_executable_is_found() {
        let own = Process::own().expect("we are");
        let memory = Memory::open(&own).expect("our own memory");
        let all = all(&memory, &own.auxv().expect("our own vector"));
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
