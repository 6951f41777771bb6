// SPDX-License-Identifier: LGPL-2.1-only
//! Which pages of a process hold something: /proc/PID/pagemap.

use super::id::Pid;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use nix::errno::Errno;

use super::failed;
use super::process::Process;
use super::scan::{
    PAGE_IS_FILE, PAGE_IS_GUARD, PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED,
    PAGE_IS_WRITTEN, PM_SCAN_CHECK_WPASYNC, PM_SCAN_WP_MATCHING, Want, each, push, scan,
};
use crate::error::{Because, Error, Kind, Result};

/// The size of the pages that pagemap counts, in bytes; huge pages are many of them.
pub(crate) const PAGE: u64 = 4096;

/// One read of the file: 8192 entries, which are 32 MiB of memory.
const CHUNK: usize = 64 << 10;

/// Below is user memory on every machine with four levels of page tables, and with five, too.
const USER_END: u64 = 0x7fff_ffff_f000;

/// One page as pagemap tells it (Documentation/admin-guide/mm/pagemap.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The 64 bits. The number of the page frame in the lower 55 is 0 without CAP_SYS_ADMIN.
    pub raw: u64,
}

impl Entry {
    /// The page is in memory.
    pub(crate) fn present(self) -> bool {
        self.raw >> 63 & 1 == 1
    }

    /// The page table names swap or another thing that is not memory: also of a page that is
    /// being migrated and of a [guard](Self::guard).
    pub(crate) fn swapped(self) -> bool {
        self.raw >> 62 & 1 == 1
    }

    /// The page is of a file or of shared memory, not an anonymous page.
    pub(crate) fn file_or_shared(self) -> bool {
        self.raw >> 61 & 1 == 1
    }

    /// No other page table has the page; never so of the zero page.
    pub(crate) fn exclusive(self) -> bool {
        self.raw >> 56 & 1 == 1
    }

    /// The page is a guard (MADV_GUARD_INSTALL), which has no content and cannot be read. Linux
    /// 6.13 and 6.14 have guards and do not show them here.
    pub(crate) fn guard(self) -> bool {
        self.raw >> 58 & 1 == 1
    }

    fn holds_something(self) -> bool {
        (self.present() || self.swapped()) && !self.guard()
    }

    /// The number of the page frame, if the page is in memory and we may know.
    fn frame(self) -> Option<u64> {
        let frame = self.raw & ((1 << 55) - 1);
        (self.present() && frame != 0).then_some(frame)
    }
}

/// The pagemap of a process, opened.
///
/// It shows the memory that the process had when this was opened: after an execve(2), and after
/// the end of the process, that memory is empty.
#[derive(Debug)]
pub(crate) struct Pagemap {
    file: File,
    pid: Pid,
}

impl Pagemap {
    /// Opens that of a process.
    ///
    /// # Errors
    /// The process is gone or may not be read (ptrace access, PTRACE_MODE_READ).
    pub(crate) fn of(process: &Process) -> Result<Self> {
        let why = |e| failed(process, None, &process.called("pagemap"), &e);
        let file = File::open(process.path("pagemap")).map_err(why)?;
        Ok(Self { file, pid: process.pid() })
    }

    /// Whether the kernel has PAGEMAP_SCAN (Linux 6.7).
    pub(crate) fn has_scan(&self) -> bool {
        let first = Want { any: PAGE_IS_PRESENT, ..Want::default() };
        scan(&self.file, 0..PAGE, first).is_ok()
    }

    /// Calls `visit` with the address and the entry of every page from `start` to `end`, in order.
    /// Both are rounded outwards to pages. Ends early where user memory ends.
    ///
    /// # Errors
    /// The file cannot be read, or the memory is gone ([`Kind::Gone`]).
    pub(crate) fn entries(
        &self,
        start: u64,
        end: u64,
        mut visit: impl FnMut(u64, Entry),
    ) -> Result<()> {
        let Range { start: mut address, end } = rounded(start, end);
        let mut chunk = vec![0; CHUNK];
        while address < end {
            let want = usize::try_from((end - address) / PAGE * 8).unwrap_or(CHUNK).min(CHUNK);
            let got = self
                .file
                .read_at(&mut chunk[..want], address / PAGE * 8)
                .because(|| self.cannot(address..end))?;
            // The kernel gives whole entries, and none beyond the end of user memory or of an mm that has no users.
            if got < 8 {
                match address < USER_END {
                    true => return Err(self.gone()),
                    false => break,
                }
            }
            for entry in chunk[..got].chunks_exact(8) {
                let raw = u64::from_ne_bytes(entry.try_into().expect("chunks of 8 bytes"));
                visit(address, Entry { raw });
                address += PAGE;
            }
        }
        Ok(())
    }

    /// The ranges of pages from `start` to `end` that hold something, in memory or in swap.
    ///
    /// With `private_only` just anonymous pages: of a private mapping of a file those that were
    /// written to. Pages that only exist in a file or in shared memory and that this process has
    /// not touched are in no page table, so they are not found.
    ///
    /// Left out are guards, and the zero page where it can be known: by PAGEMAP_SCAN (Linux 6.7),
    /// or by its page frame if we have CAP_SYS_ADMIN. A huge page of zeros may be told as one
    /// that holds something.
    ///
    /// # Errors
    /// The file cannot be read, or the range leaves user memory.
    pub(crate) fn populated(
        &self,
        start: u64,
        end: u64,
        private_only: bool,
    ) -> Result<Vec<Range<u64>>> {
        let pages = rounded(start, end);
        let file = if private_only { PAGE_IS_FILE } else { 0 };
        let any = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
        // EINVAL means a kernel that has PAGEMAP_SCAN and not the category of guards.
        for guard in [PAGE_IS_GUARD, 0] {
            let none = PAGE_IS_PFNZERO | file | guard;
            let want = Want { any, none, ..Want::default() };
            match scan(&self.file, pages.clone(), want) {
                Err(errno) if is_unknown(errno) => {}
                result => return result.because(|| self.cannot(pages)),
            }
        }
        self.populated_by_entries(pages, private_only)
    }

    /// The same as [`Self::populated`], not of anonymous pages alone: sooner where most pages exist, as the kernel tells
    /// those that do not.
    ///
    /// # Errors
    /// As [`Self::populated`].
    pub(crate) fn filled(&self, start: u64, end: u64) -> Result<Vec<Range<u64>>> {
        let pages = rounded(start, end);
        for guard in [PAGE_IS_GUARD, 0] {
            let told = PAGE_IS_SWAPPED | PAGE_IS_PFNZERO | guard;
            let want =
                Want { any: PAGE_IS_PFNZERO, lacking: PAGE_IS_PRESENT, told, ..Want::default() };
            let (mut found, mut at) = (Vec::new(), pages.start);
            let result = each(&self.file, pages.clone(), want, &mut |hole, is| {
                if is & told != PAGE_IS_SWAPPED {
                    found.extend(Some(at..hole.start).filter(|filled| !filled.is_empty()));
                    at = hole.end;
                }
            });
            match result {
                Err(errno) if is_unknown(errno) => {}
                result => {
                    found.extend(Some(at..pages.end).filter(|filled| !filled.is_empty()));
                    return result.map(|()| found).because(|| self.cannot(pages));
                }
            }
        }
        self.populated(start, end, false)
    }

    /// [`Self::filled`]; of a process that `runs` [`Self::populated`]: where nothing is mapped any more no page is lacking.
    ///
    /// # Errors
    /// As [`Self::populated`].
    #[inline(never)]
    pub(crate) fn there(&self, start: u64, end: u64, runs: bool) -> Result<Vec<Range<u64>>> {
        match runs {
            true => self.populated(start, end, false),
            false => self.filled(start, end),
        }
    }

    /// [`Self::populated`] for kernels without PAGEMAP_SCAN.
    fn populated_by_entries(
        &self,
        pages: Range<u64>,
        private_only: bool,
    ) -> Result<Vec<Range<u64>>> {
        let mut found = Vec::new();
        let zero = zero_frame();
        self.entries(pages.start, pages.end, |address, entry| {
            let is_zero = zero.is_some() && entry.frame() == zero && !entry.exclusive();
            let is_file = private_only && entry.file_or_shared();
            if entry.holds_something() && !is_zero && !is_file {
                push(&mut found, address..address + PAGE);
            }
        })?;
        Ok(found)
    }

    /// The ranges of guard pages (MADV_GUARD_INSTALL) from `start` to `end`; none before Linux
    /// 6.15, which does not tell.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn guards(&self, start: u64, end: u64) -> Result<Vec<Range<u64>>> {
        let pages = rounded(start, end);
        let want = Want { any: PAGE_IS_GUARD, ..Want::default() };
        match scan(&self.file, pages.clone(), want) {
            Err(errno) if is_unknown(errno) => Ok(Vec::new()),
            result => result.because(|| self.cannot(pages)),
        }
    }

    /// Whether the mapping of an address is [tracked](super::tracking).
    pub(crate) fn is_tracked(&self, address: u64) -> bool {
        let (any, flags) = (PAGE_IS_PRESENT, PM_SCAN_CHECK_WPASYNC);
        scan(&self.file, address..address + PAGE, Want { any, flags, ..Want::default() }).is_ok()
    }

    /// The ranges of pages in tracked mappings that exist and were written to since they were told here before; from now
    /// on they count as not written to. What does not exist stays as it is, and is told when it comes to be: reservations
    /// of terabytes get no page tables.
    ///
    /// # Errors
    /// What was found is lost then, and what was written to not known any more.
    pub(crate) fn rearm(&self, pages: Range<u64>) -> nix::Result<Vec<Range<u64>>> {
        let (all, any) = (PAGE_IS_WRITTEN, PAGE_IS_PRESENT | PAGE_IS_SWAPPED);
        for none in [PAGE_IS_GUARD, 0] {
            let want = Want { all, any, none, flags: PM_SCAN_WP_MATCHING, ..Want::default() };
            match scan(&self.file, pages.clone(), want) {
                // A kernel that does not know guards refuses before it does anything.
                Err(Errno::EINVAL) if none != 0 => {}
                result => return result,
            }
        }
        Err(Errno::EINVAL)
    }

    fn gone(&self) -> Error {
        Error::new(format!("the memory of process {} is gone", self.pid)).of(Kind::Gone)
    }

    fn cannot(&self, pages: Range<u64>) -> String {
        let (pid, Range { start, end }) = (self.pid, pages);
        format!("cannot read /proc/{pid}/pagemap for the memory {start:#x} to {end:#x}")
    }
}

/// Whether the kernel has no such scan, or a container's filter refuses it: then entries tell.
fn is_unknown(errno: Errno) -> bool {
    matches!(errno, Errno::EINVAL | Errno::ENOTTY | Errno::EPERM)
}

/// The whole pages that have the bytes from `start` to `end`, none in the kernel's half of the
/// address space, where /proc/PID/maps shows `[vsyscall]`.
fn rounded(start: u64, end: u64) -> Range<u64> {
    const KERNEL: u64 = 1 << 63;
    let end = end.min(KERNEL).next_multiple_of(PAGE);
    (start & !(PAGE - 1)).min(end)..end
}

/// The page frame of the zero page, if the kernel shows us page frames.
///
/// Two pages of our own that were only read are in the same frame: only the zero page can be
/// there twice. Were a frame that is later free taken for the zero page, pages would be lost.
fn zero_frame() -> Option<u64> {
    static FRAME: OnceLock<Option<u64>> = OnceLock::new();
    *FRAME.get_or_init(|| {
        let memory = memmap2::MmapMut::map_anon(2 * PAGE as usize).ok()?;
        // Reading makes the kernel put the zero page there.
        std::hint::black_box((memory[0], memory[PAGE as usize]));
        let start = memory.as_ptr().addr() as u64;
        let mut frames = Vec::new();
        Process::own()
            .and_then(|own| Pagemap::of(&own))
            .and_then(|own| own.entries(start, start + 2 * PAGE, |_, entry| frames.push(entry)))
            .ok()?;
        match frames[..] {
            [a, b] if a.frame() == b.frame() && !a.exclusive() => a.frame(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Cat, of, we};
    use super::*;
    use memmap2::{Advice, MmapMut};

    /// Sixteen pages of which the third, fourth and eighth are written and the tenth is read.
    fn sixteen() -> (MmapMut, u64) {
        let mut memory = MmapMut::map_anon(16 * PAGE as usize).unwrap();
        memory.advise(Advice::NoHugePage).unwrap();
        for page in [2, 3, 7] {
            memory[page * PAGE as usize + 5] = 1;
        }
        assert_eq!(std::hint::black_box(memory[9 * PAGE as usize]), 0);
        let start = memory.as_ptr().addr() as u64;
        (memory, start)
    }

    /// First page and page after the last of each range, counted from `start`.
    fn pages(start: u64, ranges: &[Range<u64>]) -> Vec<(u64, u64)> {
        ranges.iter().map(|r| ((r.start - start) / PAGE, (r.end - start) / PAGE)).collect()
    }

    fn may_see_frames() -> bool {
        let bytes = std::fs::read("/proc/self/status").unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let caps = text.lines().find_map(|l| l.strip_prefix("CapEff:\t")).unwrap();
        u64::from_str_radix(caps, 16).unwrap() >> 21 & 1 == 1
    }

    #[test]
    fn bits() {
        let entry = Entry { raw: 1 << 63 | 1 << 56 | 77 };
        assert!(entry.present() && entry.exclusive() && entry.holds_something());
        assert!(!entry.swapped() && !entry.file_or_shared() && !entry.guard());
        assert_eq!(entry.frame(), Some(77));
        let entry = Entry { raw: 1 << 62 | 1 << 61 | 77 };
        assert!(entry.swapped() && entry.file_or_shared() && entry.holds_something());
        assert_eq!(entry.frame(), None);
        let guard = Entry { raw: 1 << 62 | 1 << 58 };
        assert!(guard.guard() && !guard.holds_something());
        assert!(!Entry { raw: 0 }.holds_something());
        assert_eq!(Entry { raw: 1 << 63 }.frame(), None);
    }

    #[test]
    fn rounding_is_outwards() {
        assert_eq!(rounded(0x1fff, 0x2001), 0x1000..0x3000);
        assert_eq!(rounded(0x1000, 0x2000), 0x1000..0x2000);
        assert_eq!(rounded(0, u64::MAX), 0..1 << 63);
        assert!(rounded(0xffff_ffff_ff60_0000, 0xffff_ffff_ff60_1000).is_empty());
    }

    #[test]
    fn written_pages_are_populated() {
        let (memory, start) = sixteen();
        let end = start + memory.len() as u64;
        let map = Pagemap::of(&we()).unwrap();
        for private_only in [true, false] {
            let scanned = map.populated(start, end, private_only).unwrap();
            let walked = map.populated_by_entries(start..end, private_only).unwrap();
            // Without PAGEMAP_SCAN and without page frames the zero page passes for another.
            let mut known = vec![(2, 4), (7, 8)];
            if !may_see_frames() {
                known.push((9, 10));
            }
            assert_eq!(pages(start, &walked), known);
            let both = [&known[..], &[(2, 4), (7, 8)]];
            assert!(both.contains(&&pages(start, &scanned)[..]), "{scanned:x?}");
        }
        assert_eq!(map.filled(start, end).unwrap(), map.populated(start, end, false).unwrap());
        assert_eq!(pages(start, &map.filled(start + 3 * PAGE, end).unwrap())[0], (3, 4));
        assert_eq!(map.populated(start + PAGE, start + PAGE, true).unwrap(), []);
        assert_eq!(
            pages(start, &map.populated(start + 3 * PAGE + 1, start + 4 * PAGE, true).unwrap()),
            [(3, 4)]
        );
    }

    #[test]
    fn the_scan_of_a_new_kernel_knows_the_zero_page() {
        let (memory, start) = sixteen();
        let end = start + memory.len() as u64;
        let map = Pagemap::of(&we()).unwrap();
        let zeros = Want { any: PAGE_IS_PFNZERO, ..Want::default() };
        match scan(&map.file, start..end, zeros) {
            Ok(found) => {
                assert_eq!(pages(start, &found), [(9, 10)]);
                assert_eq!(
                    pages(start, &map.populated(start, end, true).unwrap()),
                    [(2, 4), (7, 8)]
                );
            }
            Err(errno) => assert_eq!(errno, Errno::ENOTTY),
        }
    }

    #[test]
    fn many_runs_take_many_calls() {
        let runs = 3000;
        let mut memory = MmapMut::map_anon(2 * runs * PAGE as usize).unwrap();
        memory.advise(Advice::NoHugePage).unwrap();
        for run in 0..runs {
            memory[2 * run * PAGE as usize] = 1;
        }
        let start = memory.as_ptr().addr() as u64;
        let map = Pagemap::of(&we()).unwrap();
        let expected: Vec<_> = (0..runs as u64).map(|r| (2 * r, 2 * r + 1)).collect();
        let end = start + memory.len() as u64;
        assert_eq!(pages(start, &map.populated(start, end, true).unwrap()), expected);
        assert_eq!(pages(start, &map.filled(start, end).unwrap()), expected);
        assert_eq!(pages(start, &map.populated_by_entries(start..end, true).unwrap()), expected);
    }

    #[test]
    fn runs_that_touch_are_one() {
        let mut memory = MmapMut::map_anon(20_000 * PAGE as usize).unwrap();
        // Refused where the kernel has no huge pages, which changes nothing here.
        let _ = memory.advise(Advice::HugePage);
        memory.fill(1);
        let start = memory.as_ptr().addr() as u64;
        let end = start + memory.len() as u64;
        let map = Pagemap::of(&we()).unwrap();
        let whole = (0, 20_000);
        assert_eq!(pages(start, &map.populated(start, end, true).unwrap()), [whole]);
        assert_eq!(pages(start, &map.filled(start, end).unwrap()), [whole]);
        assert_eq!(pages(start, &map.populated_by_entries(start..end, true).unwrap()), [whole]);
    }

    #[test]
    fn entries_come_in_order_in_chunks() {
        let memory = MmapMut::map_anon(20_000 * PAGE as usize).unwrap();
        let start = memory.as_ptr().addr() as u64;
        let map = Pagemap::of(&we()).unwrap();
        let mut next = start;
        let end = start + memory.len() as u64;
        map.entries(start, end, |address, entry| {
            assert_eq!(address, next);
            assert!(!entry.present());
            next += PAGE;
        })
        .unwrap();
        assert_eq!(next, end);
    }

    #[test]
    fn program_text_is_of_a_file() {
        let code = program_text_is_of_a_file as *const () as u64;
        let vmas = we().maps().unwrap();
        let vma = vmas.iter().find(|v| v.start <= code && code < v.end).unwrap();
        let map = Pagemap::of(&we()).unwrap();
        let all = map.populated(vma.start, vma.end, false).unwrap();
        assert!(all.iter().any(|r| r.contains(&code)), "{all:x?}");
        assert_eq!(map.populated(vma.start, vma.end, true).unwrap(), []);
        assert_eq!(map.populated_by_entries(vma.start..vma.end, true).unwrap(), []);
    }

    #[test]
    fn kernel_addresses_hold_nothing() {
        let map = Pagemap::of(&we()).unwrap();
        let (start, end) = (0xffff_ffff_ff60_0000, 0xffff_ffff_ff60_1000);
        assert_eq!(map.populated(start, end, true).unwrap(), []);
        assert_eq!(map.guards(start, end).unwrap(), []);
        map.entries(start, end, |address, _| panic!("{address:#x}")).unwrap();
    }

    #[test]
    fn another_process() {
        let cat = Cat::new();
        let vmas = of(cat.pid()).maps().unwrap();
        let stack = vmas.iter().find(|v| v.name == "[stack]").unwrap();
        let map = Pagemap::of(&of(cat.pid())).unwrap();
        assert!(!map.populated(stack.start, stack.end, true).unwrap().is_empty());
    }
}
