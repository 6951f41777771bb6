// SPDX-License-Identifier: LGPL-2.1-only
//! The VMAs of a process: /proc/PID/maps and /proc/PID/smaps.

use std::ffi::OsString;

use nix::libc;

use super::process::Process;
use super::text::{cut, decimal, hex, hex_pair, lines, mapped_name, words};
use super::{confirmed, parsed, split_deleted};
use crate::error::{Error, Result};

pub(crate) use super::vmflags::VmFlags;

/// One mapping, as a line of /proc/PID/maps tells it (proc_pid_maps(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vma {
    /// Its first address.
    pub start: u64,
    /// The address after its last byte.
    pub end: u64,
    /// PROT_READ.
    pub read: bool,
    /// PROT_WRITE.
    pub write: bool,
    /// PROT_EXEC.
    pub exec: bool,
    /// MAP_SHARED rather than MAP_PRIVATE.
    pub shared: bool,
    /// Where in the file it begins, in bytes; 0 of anonymous memory.
    pub offset: u64,
    /// The device of the file as makedev(3) makes it of "major:minor"; on btrfs and overlayfs
    /// not what stat(2) gives as st_dev.
    pub device: u64,
    /// The inode number of the file; 0 of anonymous memory.
    pub inode: u64,
    /// A path, a name in brackets (`[heap]`, `[anon:...]`), another name of the kernel's
    /// (`anon_inode:[...]`), or empty. Without the " (deleted)" of an unlinked file.
    ///
    /// The kernel writes a newline as `\012` and leaves a backslash as it is, so a name that
    /// itself has the four characters `\012` cannot be told from one with a newline.
    pub name: OsString,
    /// The file was unlinked, or never had a name (memfd, SysV and MAP_SHARED anonymous memory).
    pub deleted: bool,
    /// Flags of the VmFlags line; empty when read from maps.
    pub flags: VmFlags,
    /// The memory protection key (pkeys(7)); 0 without one, or when read from maps.
    pub protection_key: u32,
    /// The size of its pages in bytes (KernelPageSize): more than 4096 of hugetlb mappings only,
    /// transparent huge pages do not count. 4096 when read from maps.
    pub page_size: u64,
    /// Bytes of it that are in memory or swapped out (Rss, Swap and hugetlb pages of smaps);
    /// `u64::MAX` when read from maps.
    pub populated: u64,
    /// Bytes of it that are swapped out (Swap of smaps, also of shared memory).
    pub swapped: u64,
}

impl Vma {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether it has no bytes; the kernel shows no such mapping.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// The PROT_ bits, as mmap(2) takes them.
    pub fn prot(&self) -> i32 {
        let bit = |set, bit| if set { bit } else { 0 };
        bit(self.read, libc::PROT_READ)
            | bit(self.write, libc::PROT_WRITE)
            | bit(self.exec, libc::PROT_EXEC)
    }
}

impl Process {
    /// The mappings of the process in order of address, from /proc/PID/maps.
    ///
    /// Cheap: the kernel walks the VMAs and no page. Of a zombie some kernels give an empty list,
    /// others an error.
    ///
    /// # Errors
    /// The process is gone or may not be read (ptrace access, PTRACE_MODE_READ).
    pub fn maps(&self) -> Result<Vec<Vma>> {
        all(self, "maps")
    }

    /// Those of them that begin below an address: of tens of thousands the kernel tells no more than that takes.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn maps_below(&self, end: u64) -> Result<Vec<Vma>> {
        let mut vmas = Vec::new();
        load(self, "maps", &mut |vma| {
            let is_below = vma.start < end;
            vmas.extend(Some(vma).filter(|_| is_below));
            is_below
        })?;
        Ok(vmas)
    }

    /// Makes sure that its mappings may be listed.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn may_be_listed(&self) -> Result<()> {
        self.each_line("maps", &mut |_| false)
    }
}

impl Process {
    /// [`Process::maps`] with flags, protection keys and page sizes, from /proc/PID/smaps.
    ///
    /// Costs more: the kernel walks all page tables to count pages.
    ///
    /// # Errors
    /// As there.
    pub fn maps_with_flags(&self) -> Result<Vec<Vma>> {
        all(self, "smaps")
    }

    /// The same of a process whose first thread may have ended, with which nothing is mapped any more; none if it is gone.
    pub(crate) fn maps_of_any_thread(&self) -> Vec<Vma> {
        let vmas = self.maps_with_flags().unwrap_or_default();
        if !vmas.is_empty() {
            return vmas;
        }
        let threads = self.tasks().unwrap_or_default().into_iter().skip(1);
        let each = threads.map(|tid| all(self, &format!("task/{tid}/smaps")).unwrap_or_default());
        each.into_iter().find(|vmas| !vmas.is_empty()).unwrap_or_default()
    }

    /// The same one by one: there may be tens of thousands.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn each_map_with_flags(&self, each: &mut dyn FnMut(Vma) -> bool) -> Result<()> {
        load(self, "smaps", each)
    }
}

fn all(process: &Process, file: &str) -> Result<Vec<Vma>> {
    let mut vmas = Vec::new();
    load(process, file, &mut |vma| {
        vmas.push(vma);
        true
    })?;
    Ok(vmas)
}

/// Gives the mappings to `each`, until that wants no more.
fn load(process: &Process, file: &str, each: &mut dyn FnMut(Vma) -> bool) -> Result<()> {
    let mut each = |mut vma: Vma| {
        let name = std::mem::take(&mut vma.name);
        (vma.name, vma.deleted) = confirmed(name, vma.deleted, vma.inode);
        each(vma)
    };
    let (mut begun, mut understood, mut goes_on) = (None, Ok(()), true);
    process.each_line(file, &mut |line| {
        match parse(line, &mut begun) {
            Ok(whole) => goes_on = whole.is_none_or(&mut each),
            Err(error) => understood = Err(error),
        }
        goes_on && understood.is_ok()
    })?;
    begun.filter(|_| goes_on).map(each);
    parsed(understood, || process.called(file))
}

/// Parses a line of maps as well as of smaps, which is maps with lines "Key: value" after each line; the mapping that has
/// begun before, when another begins.
///
/// A key begins with a capital, an address with a small hexadecimal digit, and a name has no
/// newline: no name can pass for a line.
fn parse(line: &[u8], begun: &mut Option<Vma>) -> Result<Option<Vma>> {
    if line.first().is_some_and(u8::is_ascii_uppercase) {
        return begun.as_mut().map_or(Ok(()), |vma| parse_detail(line, vma)).map(|()| None);
    }
    let vma = parse_line(line)
        .ok_or_else(|| Error::new(format!("{:?} is no mapping", String::from_utf8_lossy(line))))?;
    Ok(begun.replace(vma))
}

/// "7f0000000000-7f0000001000 rw-p 00002000 fe:00 247282      /some/name"
fn parse_line(line: &[u8]) -> Option<Vma> {
    let (range, rest) = cut(line, b' ')?;
    let (mode, rest) = cut(rest, b' ')?;
    let (offset, rest) = cut(rest, b' ')?;
    let (device, rest) = cut(rest, b' ')?;
    let (inode, name) = cut(rest, b' ').unwrap_or((rest, b""));
    let (start, end) = hex_pair(range, b'-')?;
    let &[r, w, x, s] = mode else { return None };
    let offset = hex(offset).ok()?;
    let (major, minor) = hex_pair(device, b':')?;
    let inode = decimal(inode).ok()?;
    let (name, deleted) = split_deleted(mapped_name(name));
    if end < start {
        return None;
    }
    Some(Vma {
        start,
        end,
        read: r == b'r',
        write: w == b'w',
        exec: x == b'x',
        shared: s == b's',
        offset,
        device: libc::makedev(major.try_into().ok()?, minor.try_into().ok()?),
        inode,
        name,
        deleted,
        flags: VmFlags::default(),
        protection_key: 0,
        page_size: 4096,
        populated: u64::MAX,
        swapped: 0,
    })
}

/// Takes from a line of smaps what belongs into the VMA.
fn parse_detail(line: &[u8], vma: &mut Vma) -> Result<()> {
    let mut values = words(line);
    match values.next() {
        Some(b"VmFlags:") => vma.flags = VmFlags::of_line(values),
        Some(b"ProtectionKey:") => {
            vma.protection_key = decimal(values.next().unwrap_or_default())?;
        }
        Some(b"KernelPageSize:") => {
            vma.page_size = decimal::<u64>(values.next().unwrap_or_default())? << 10;
        }
        Some(key @ (b"Rss:" | b"Swap:" | b"Shared_Hugetlb:" | b"Private_Hugetlb:")) => {
            let bytes = decimal::<u64>(values.next().unwrap_or_default())? << 10;
            vma.populated = bytes + if vma.populated == u64::MAX { 0 } else { vma.populated };
            if key == b"Swap:" {
                vma.swapped = bytes;
            }
        }
        _ => {}
    }
    Ok(())
}

/// See [`super::parse_anything`].
pub(super) fn parse_anything(bytes: &[u8]) {
    let mut begun = None;
    let _ = lines(bytes).try_for_each(|line| parse(line, &mut begun).map(drop));
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Cat, Scratch, Zombie, of, we};
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    const MAPS: &[u8] =
        br"55be260a7000-55be260a9000 r--p 00000000 fe:00 247282                     /usr/bin/head
55be260a9000-55be260af000 r-xp 00002000 fe:00 247282                     /usr/bin/head (deleted)
55be30000000-55be30021000 rw-p 00000000 00:00 0                          [heap]
7f052c9ca000-7f052c9cb000 rw-s 00000000 00:01 1025                       /memfd:a b\012c (deleted)
7f052c9cb000-7f052c9cc000 rw-p 00000000 00:00 0 
7f052c9cc000-7f052c9cd000 ---p 7fffffffff000 103:0a 18446744073709551615 /a\040b (deleted) 
7f052c9cd000-7f052c9ce000 rw-p 00000000 00:00 0                          [anon:my (deleted)]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    fn parse(text: &[u8]) -> Result<Vec<Vma>> {
        let (mut begun, mut all) = (None, Vec::new());
        for line in lines(text) {
            all.extend(super::parse(line, &mut begun)?);
        }
        all.extend(begun);
        Ok(all)
    }

    #[test]
    fn maps_lines() {
        let vmas = parse(MAPS).unwrap();
        assert_eq!(vmas.len(), 8);
        let names: Vec<_> = vmas.iter().map(|v| (v.name.to_str().unwrap(), v.deleted)).collect();
        assert_eq!(
            names,
            [
                ("/usr/bin/head", false),
                ("/usr/bin/head", true),
                ("[heap]", false),
                ("/memfd:a b\nc", true),
                ("", false),
                (r"/a\040b (deleted) ", false),
                ("[anon:my (deleted)]", false),
                ("[vsyscall]", false),
            ]
        );
        assert_eq!(vmas[1].start, 0x55be_260a_9000);
        assert_eq!(vmas[1].len(), 0x6000);
        assert_eq!(vmas[1].offset, 0x2000);
        assert_eq!(vmas[1].device, libc::makedev(0xfe, 0));
        assert_eq!(vmas[1].inode, 247_282);
        assert_eq!(vmas[1].prot(), libc::PROT_READ | libc::PROT_EXEC);
        assert!(!vmas[1].shared && vmas[3].shared && !vmas[3].is_empty());
        assert_eq!(vmas[3].prot(), libc::PROT_READ | libc::PROT_WRITE);
        assert_eq!(vmas[5].device, libc::makedev(0x103, 10));
        assert_eq!(vmas[5].inode, u64::MAX);
        assert_eq!(vmas[5].prot(), libc::PROT_NONE);
        assert_eq!(vmas[7].end, 0xffff_ffff_ff60_1000);
    }

    #[test]
    fn smaps_details_belong_to_the_line_above() {
        let text = b"\
7f0000000000-7f0000200000 rw-p 00000000 00:0f 4242                       /anon_hugepage (deleted)
Size:               2048 kB
KernelPageSize:     2048 kB
MMUPageSize:        2048 kB
THPeligible:           0
ProtectionKey:         3
VmFlags: rd wr mr mw me dc de ht ?? zz 
7ffd46a70000-7ffd46a91000 rw-p 00000000 00:00 0                          [stack]
KernelPageSize:        4 kB
VmFlags: rd wr mr mw me gd ac 
";
        let vmas = parse(text).unwrap();
        assert_eq!(vmas.len(), 2);
        assert_eq!((vmas[0].page_size, vmas[0].protection_key), (2 << 20, 3));
        assert_eq!((vmas[1].page_size, vmas[1].protection_key), (4096, 0));
        assert!(vmas[0].flags.has("ht") && vmas[0].flags.has("zz") && vmas[0].flags.has("??"));
        assert!(!vmas[0].flags.has("gd") && vmas[1].flags.has("gd"));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["7f00-", "2000-1000 rw-p 0 0:0 0", "1-2 rw-p 0 0:0 x", "1-2 rwp 0 0:0 0", ""] {
            assert!(parse(format!("{line}\n").as_bytes()).is_err(), "{line}");
        }
        assert!(parse(b"1-2 rw-p 0 0:0 0\nProtectionKey:\n").is_err());
    }

    #[test]
    fn own_maps_and_smaps_agree() {
        let local = 0u8;
        let here = std::ptr::from_ref(&local).addr() as u64;
        let code = own_maps_and_smaps_agree as *const () as u64;
        for vmas in [we().maps().unwrap(), we().maps_with_flags().unwrap()] {
            assert!(vmas.is_sorted_by(|a, b| a.end <= b.start));
            let at = |addr| vmas.iter().find(|v| v.start <= addr && addr < v.end).unwrap();
            assert!(at(here).write && !at(here).shared);
            assert!(at(code).exec && !at(code).deleted);
            assert_eq!(at(code).name, std::env::current_exe().unwrap());
        }
        let flags = we().maps_with_flags().unwrap();
        let stack = flags.iter().find(|v| v.name == "[stack]").unwrap();
        assert!(stack.flags.has("gd") && stack.flags.has("wr"), "{:?}", stack.flags);
        assert!(we().maps().unwrap().iter().all(|v| v.flags == VmFlags::default()));
    }

    #[test]
    fn a_mapped_file_named_deleted_is_not_deleted() {
        let scratch = Scratch::new("maps");
        let path = scratch.0.join("really\nthere (deleted)");
        // Copied by another process: were it open for writing here, a child that another test
        // forks meanwhile would have it open too, and executing it would be ETXTBSY.
        let original = of(Cat::new().pid()).exe().unwrap().path;
        assert!(Command::new("cp").arg(original).arg(&path).status().unwrap().success());
        let cat = Cat::start(Command::new(&path).arg0("cat"));
        let look = || {
            let vma = of(cat.pid()).maps().unwrap().into_iter().find(|v| v.name == path).unwrap();
            let exe = of(cat.pid()).exe().unwrap();
            assert_eq!((exe.path, exe.deleted), (path.clone(), vma.deleted));
            vma.deleted
        };
        assert!(!look());
        std::fs::remove_file(&path).unwrap();
        assert!(look());
    }

    #[test]
    fn a_zombie_has_no_mappings() {
        let zombie = Zombie::new();
        match of(zombie.pid()).maps() {
            Ok(vmas) => assert_eq!(vmas, []),
            Err(e) => assert!(e.to_string().contains("has no memory of its own"), "{e}"),
        }
    }
}
